use super::super::pieces::{PieceList, VocabularyError};
use super::*;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Vocab};

impl Bpe {
    /// The library's model of the same vocabulary, to compare with.
    pub(in super::super) fn library(&self) -> BPE {
        let text = |id| self.pieces.text(id).map(|text| text.into_owned());
        let ids = 0..self.pieces.len() as u32;
        let vocabulary: Vocab = ids.filter_map(|id| Some((text(id)?, id))).collect();
        let pairs = self
            .merges()
            .map(|merge| (text(merge.left), text(merge.right)));
        let mut builder = BPE::builder()
            .vocab_and_merges(
                vocabulary,
                pairs
                    .map(|(left, right)| left.zip(right).unwrap())
                    .collect(),
            )
            .fuse_unk(self.options.fuse_unknown)
            .byte_fallback(self.options.byte_fallback)
            .ignore_merges(self.options.ignore_merges)
            .continuing_subword_prefix(self.options.prefix.clone())
            .end_of_word_suffix(self.options.suffix.clone());
        if let Some(unknown) = &self.options.unknown {
            builder = builder.unk_token(unknown.clone());
        }
        builder.build().unwrap()
    }
}

fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    move |bound| (rng.next_u64() % bound as u64) as usize
}

/// Options and merges at random over a few characters, not all of which have a piece.
fn random_parts(below: &mut impl FnMut(usize) -> usize) -> BpeParts {
    let mut flag = |one_in| below(one_in) == 0;
    let options = BpeOptions {
        unknown: (!flag(4)).then(|| if flag(4) { "absent" } else { "<unk>" }.to_owned()),
        fuse_unknown: flag(2),
        byte_fallback: flag(2),
        ignore_merges: flag(3),
        prefix: if flag(4) { "##" } else { "" }.to_owned(),
        suffix: if flag(4) { "</w>" } else { "" }.to_owned(),
    };
    let mut texts: Vec<String> = vec!["<unk>".to_owned()];
    for character in ["a", "b", "c", "Ġ", "é", "你", "🙂", "▁"] {
        for prefix in ["", &options.prefix] {
            for suffix in ["", &options.suffix] {
                texts.push(format!("{prefix}{character}{suffix}"));
            }
        }
    }
    if options.byte_fallback {
        // Some are missing.
        texts.extend(
            (0x80..=0xFF)
                .step_by(1 + below(2))
                .map(|byte| format!("<0x{byte:02X}>")),
        );
    }
    texts.sort();
    texts.dedup();
    texts.retain(|text| text == "<unk>" || below(8) > 0);
    let mut pairs = Vec::new();
    for _ in 0..below(60) {
        let (left, right) = (below(texts.len()), below(texts.len()));
        let Some(continued) = texts[right].strip_prefix(&options.prefix) else {
            continue;
        };
        let whole = format!("{}{continued}", texts[left]);
        if continued.is_empty() || whole.len() > 40 {
            continue;
        }
        pairs.push((texts[left].clone(), texts[right].clone()));
        if !texts.contains(&whole) {
            texts.push(whole);
        }
    }
    let mut list = PieceList::default();
    // Ids with holes, in no order.
    for (number, text) in texts.iter().enumerate() {
        list.push((number as u32 * 7) % 1009, text).unwrap();
    }
    let pieces = Pieces::new(list).unwrap();
    let mut merges = MergeList::new(&pieces, &options.prefix);
    for (left, right) in &pairs {
        merges.push(left, right).unwrap();
    }
    BpeParts {
        merges: merges.into_merges(),
        pieces,
        options,
    }
}

#[test]
fn random_vocabularies_give_the_ids_of_the_library() {
    let mut below = random(1);
    let alphabet = ["a", "b", "c", "Ġ", "é", "你", "🙂", "▁", "x", "ÿ", "<unk>"];
    let mut merged = 0;
    for round in 0..400 {
        let coding = [
            PieceCoding::Plain,
            PieceCoding::ByteLevel,
            PieceCoding::Metaspace,
        ][round % 3];
        let own = Bpe::new(random_parts(&mut below), coding);
        let library = own.library();
        for _ in 0..60 {
            // Around the border between the two ways of joining, and far behind it.
            let most = [6, 30, 200][below(3)];
            let length = 1 + below(most);
            let few = 1 + below(alphabet.len());
            let word: String = (0..length).map(|_| alphabet[below(few)]).collect();
            let expected = library.tokenize(&word).ok();
            let expected: Option<Vec<u32>> =
                expected.map(|tokens| tokens.iter().map(|token| token.id).collect());
            let ids = own.encode(&word).ok();
            assert_eq!(ids, expected, "{word} by {:?}, round {round}", own.options);
            merged += usize::from(ids.is_some_and(|ids| ids.len() < length));
        }
        for id in 0..1100 {
            assert_eq!(
                own.pieces.text(id).as_deref(),
                library.id_to_token(id).as_deref()
            );
        }
    }
    assert!(merged > 5000, "only {merged} words had anything to join");
}

fn small(merges: &[(&str, &str)]) -> Result<Bpe, VocabularyError> {
    let mut list = PieceList::default();
    let mut texts = vec!["a".to_owned(), "b".to_owned()];
    for (left, right) in merges {
        let whole = format!("{left}{right}");
        if !texts.contains(&whole) {
            texts.push(whole);
        }
    }
    for (id, text) in (0..).zip(&texts) {
        list.push(id, text)?;
    }
    let pieces = Pieces::new(list)?;
    let mut merges_of = MergeList::new(&pieces, "");
    for (left, right) in merges {
        merges_of.push(left, right)?;
    }
    let merges = merges_of.into_merges();
    Ok(Bpe::new(
        BpeParts {
            merges,
            pieces,
            options: BpeOptions::default(),
        },
        PieceCoding::ByteLevel,
    ))
}

#[test]
fn a_word_of_a_megabyte_takes_no_quadratic_time() {
    let doubling = ["a", "aa", "aaaa", "aaaaaaaa", "aaaaaaaaaaaaaaaa"].map(|half| (half, half));
    let model = small(&[&doubling[..], &[("a", "b"), ("ab", "ab"), ("b", "b")]].concat()).unwrap();
    for word in [
        "a".repeat(1 << 20),
        "ab".repeat(1 << 19),
        "abb".repeat(1 << 18),
    ] {
        let start = Instant::now();
        let ids = model.encode(&word).unwrap();
        // Half a second in a debug build; with the square of the length, it would be hours.
        assert!(start.elapsed() < Duration::from_secs(60));
        let text: usize = ids
            .iter()
            .map(|id| model.pieces.bytes(*id).unwrap().len())
            .sum();
        assert_eq!(text, word.len());
        assert!(ids.len() < word.len());
    }
}

#[test]
fn the_last_of_two_equal_merges_counts() {
    let model = small(&[("a", "b"), ("b", "a"), ("a", "b")]).unwrap();
    assert_eq!(model.merges().count(), 2);
    let ids = model.encode("aba").unwrap();
    let texts: Vec<_> = ids
        .iter()
        .map(|id| model.pieces.text(*id).unwrap())
        .collect();
    assert_eq!(texts, ["a", "ba"]);
}

#[test]
fn merges_of_nothing_are_named() {
    let error = |pair| small(&[pair]).err().unwrap().to_string();
    assert!(error(("a", "")).contains("merge 0"));
    assert!(error(("", "b")).contains("merge 0"));
    assert!(error(("a", "x")).contains("`x`, which is no token"));
}
