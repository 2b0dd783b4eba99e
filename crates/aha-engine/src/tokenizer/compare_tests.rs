//! Our tokenizers against the library's, on every fixture and on whatever `AHA_TOKENIZERS` names (folders, separated by
//! colons).

use super::model::Model;
use super::tests::fixture;
use super::*;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use tokenizers::Model as _;

fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    move |bound| (rng.next_u64() % bound as u64) as usize
}

/// All folders with a tokenizer.json.
fn folders() -> Vec<PathBuf> {
    let mut open = vec![fixture("")];
    let more = std::env::var_os("AHA_TOKENIZERS").unwrap_or_default();
    open.extend(std::env::split_paths(&more).filter(|path| path.is_dir()));
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        let entries = std::fs::read_dir(&folder).unwrap();
        open.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_dir()),
        );
        if folder.join("tokenizer.json").is_file() {
            found.push(folder);
        }
    }
    found.sort();
    found
}

/// A tokenizer with a tokenizer of the library, which reads the same tokenizer.json.
fn pair(folder: &Path) -> (Tokenizer, tokenizers::Tokenizer) {
    let own = Tokenizer::from_folder(folder).unwrap();
    let mut library = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    library.with_truncation(None).unwrap();
    library.with_padding(None);
    let mut added: Vec<_> = own.added.iter().collect();
    added.sort_by_key(|(id, _)| **id);
    // Those that tokenizer_config.json adds.
    for (_, token) in added {
        library.add_tokens([token.clone()]).unwrap();
    }
    (own, library)
}

/// Texts of all sorts: pieces of the vocabulary, scripts, marks, spaces, broken characters.
fn random_text(own: &Tokenizer, below: &mut impl FnMut(usize) -> usize) -> String {
    const PARTS: [&str; 40] = [
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "\u{200b}",
        "\u{200d}",
        "\u{fe0f}",
        "the",
        "Don't",
        "I'LL",
        "x",
        "ßtraße",
        "naïve",
        "e\u{301}",
        "a\u{308}\u{323}",
        "Å",
        "ﬁ",
        "ＡＢ",
        "你好",
        "世界",
        "日本語",
        "カタカナ",
        "한국어",
        "ประเทศ",
        "هذا",
        "हिन्दी",
        "🙂",
        "👩‍🚀",
        "🇩🇪",
        "1234567",
        "3.14",
        "_snake_case",
        "!?…",
        "{\"a\": [0]}",
        "\0",
        "\u{FFFD}",
    ];
    let mut bytes = Vec::new();
    for _ in 0..1 + below(30) {
        match below(8) {
            0..=3 => bytes.extend_from_slice(PARTS[below(PARTS.len())].as_bytes()),
            4 | 5 => {
                let id = below(own.vocab_size()) as u32;
                bytes.extend_from_slice(own.token_bytes(id).unwrap_or_default());
            }
            6 => {
                // A long word, or a long run of spaces.
                let part = PARTS[below(PARTS.len())];
                bytes.extend_from_slice(part.repeat(1 + below(40)).as_bytes());
            }
            _ => bytes.push(below(256) as u8),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn tokenizers_are_those_of_the_library() {
    let folders = folders();
    assert!(folders.len() > 20);
    for (seed, folder) in folders.iter().enumerate() {
        let (own, library) = pair(folder);
        let name = folder.display();
        let mut below = random(seed as u64);
        for _ in 0..400 {
            let text = random_text(&own, &mut below);
            for special in [false, true] {
                let expected = library.encode_fast(text.as_str(), special).unwrap();
                assert_eq!(
                    own.encode(&text, special).unwrap(),
                    expected.get_ids(),
                    "{name}: {text:?}"
                );
            }
        }
        let size = own.vocab_size();
        assert_eq!(
            own.inner.get_vocab_size(true),
            library.get_vocab_size(true),
            "{name}"
        );
        assert_eq!(own.inner.get_vocab(true), library.get_vocab(true), "{name}");
        for id in 0..size as u32 + 3 {
            let text = library.id_to_token(id);
            assert_eq!(own.token_text(id), text, "{name} {id}");
            assert_eq!(own.token_bytes(id).is_some(), text.is_some(), "{name} {id}");
            if let Some(text) = text {
                assert_eq!(
                    own.token_id(&text),
                    library.token_to_id(&text),
                    "{name} {text}"
                );
            }
        }
        for _ in 0..100 {
            let ids: Vec<u32> = (0..below(30)).map(|_| below(size + 3) as u32).collect();
            let skip = below(2) == 0;
            assert_eq!(
                own.inner_decode(&ids, skip),
                library.decode(&ids, skip).unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn words_are_cut_as_the_library_cuts_them() {
    for folder in folders() {
        let own = Tokenizer::from_folder(&folder).unwrap();
        let Model::Bpe(model) = own.inner.get_model() else {
            continue;
        };
        let library = model.library();
        let mut below = random(7);
        for _ in 0..500 {
            // Not cut at spaces, and in the alphabet of the vocabulary or not.
            let text = random_text(&own, &mut below);
            let word = if below(2) == 0 {
                own.inner
                    .get_model()
                    .pieces()
                    .coding()
                    .text(text.as_bytes())
                    .into_owned()
            } else {
                text
            };
            let expected = library.tokenize(&word).map_err(|error| error.to_string());
            let ids = model.encode(&word).map_err(|_| ());
            let expected =
                expected.map(|tokens| tokens.iter().map(|token| token.id).collect::<Vec<_>>());
            assert_eq!(
                ids,
                expected.map_err(|_| ()),
                "{}: {word:?}",
                folder.display()
            );
        }
    }
}
