use super::*;
use std::path::{Path, PathBuf};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

impl Tokenizer {
    /// The library's own decoding, to compare with.
    pub(crate) fn inner_decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.inner.decode(ids, skip_special).unwrap()
    }

    /// The number of words that the text is cut into before merging.
    pub(crate) fn words(&self, text: &str) -> usize {
        let mut split = tokenizers::PreTokenizedString::from(text);
        let pre_tokenizer = self.inner.get_pre_tokenizer().unwrap();
        tokenizers::PreTokenizer::pre_tokenize(pre_tokenizer, &mut split).unwrap();
        let offsets = tokenizers::OffsetReferential::Original;
        split
            .get_splits(offsets, tokenizers::OffsetType::Byte)
            .len()
    }
}

#[test]
fn prompts_of_the_fixtures_encode_to_the_reference_ids() {
    for name in [
        "qwen3/sharded",
        "qwen3/untied-yarn",
        "llama/smol",
        "llama/llama3",
        "minicpm4/tied-short",
        "minicpm4/untied-long",
    ] {
        let folder = fixture(name);
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let golden: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap())
                .unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let expect = &case["expect"];
            let ids = tokenizer
                .encode_chat(expect["prompt_text"].as_str().unwrap())
                .unwrap();
            assert_eq!(
                serde_json::to_value(ids).unwrap(),
                expect["prompt_ids"],
                "{name} {}",
                case["name"]
            );
            for step in expect["steps"].as_array().into_iter().flatten() {
                let id = u32::try_from(step["id"].as_u64().unwrap()).unwrap();
                assert_eq!(
                    serde_json::to_value(tokenizer.token_bytes(id)).unwrap(),
                    step["bytes"]
                );
            }
            let answer: Vec<u32> =
                serde_json::from_value(expect["ids"].clone()).unwrap_or_default();
            if let Some(text) = expect["text"].as_str() {
                // Byte tokens that are no UTF-8: the library gives up on all of their neighbours at once.
                let malformed = name.starts_with("minicpm4") && text.contains('\u{FFFD}');
                if malformed {
                    continue;
                }
                assert_eq!(
                    tokenizer.decode(&answer, true),
                    text,
                    "{name} {}",
                    case["name"]
                );
            }
        }
    }
}

#[test]
fn a_chat_begins_once_with_the_token_that_the_tokenizer_puts_first() {
    let tokenizer = Tokenizer::from_folder(&fixture("minicpm4/tied-short")).unwrap();
    let begin = tokenizer.bos_token_id().unwrap();
    let turn = "<|im_start|>user\nhi there<|im_end|>\n";
    let ids = tokenizer.encode_chat(turn).unwrap();
    assert_eq!(ids[0], begin);
    assert_eq!(ids.iter().filter(|id| **id == begin).count(), 1);
    assert_eq!(tokenizer.encode_chat(&format!("<s>{turn}")).unwrap(), ids);
    // The text after every control token begins a piece with a space of its own, as in the reference.
    let user = tokenizer.encode("user\nhi there", false).unwrap();
    assert_eq!(ids[2..2 + user.len()], user);
    let without = Tokenizer::from_folder(&fixture("qwen3/sharded")).unwrap();
    assert_eq!(
        without.encode_chat(turn).unwrap(),
        without.encode(turn, false).unwrap()
    );
}

#[test]
fn control_text_becomes_control_tokens() {
    let tokenizer = Tokenizer::from_folder(&fixture("qwen3/sharded")).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let ids = tokenizer.encode("a<|im_end|>b", false).unwrap();
    assert_eq!(ids[1], end);
    assert_eq!(ids.len(), 3);
    assert!(tokenizer.is_special(end));
    assert!(!tokenizer.is_special(tokenizer.token_id("<think>").unwrap()));
    assert_eq!(tokenizer.eos_token_id(), Some(end));
    assert_eq!(tokenizer.end_token_ids(), [end]);
    assert_eq!(
        tokenizer.special_tokens().get("eos_token"),
        Some("<|im_end|>")
    );
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
}

#[test]
fn a_folder_without_a_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert_eq!(
        error,
        TokenizerError::Missing {
            path: folder.path().to_owned()
        }
    );
}

#[test]
fn malformed_files_are_named() {
    let good = std::fs::read_to_string(fixture("llama/smol").join("tokenizer.json")).unwrap();
    let mut unmergeable: Value = serde_json::from_str(&good).unwrap();
    // Both halves exist but their union is longer than any entry: the library would write past its buffer.
    let longest = unmergeable["model"]["vocab"]
        .as_object()
        .unwrap()
        .keys()
        .max_by_key(|key| key.len())
        .unwrap()
        .clone();
    unmergeable["model"]["merges"] = serde_json::json!([[longest, longest]]);
    let mut sparse: Value = serde_json::from_str(&good).unwrap();
    sparse["model"]["vocab"]["zz"] = serde_json::json!(4_000_000_000_u32);
    for text in [
        "",
        "{",
        "[]",
        "{\"model\": {}}",
        "null",
        &unmergeable.to_string(),
        &sparse.to_string(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::from_folder(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), [0xFF, 0xFE]).unwrap();
    assert!(
        Tokenizer::from_folder(folder.path())
            .unwrap_err()
            .to_string()
            .contains("tokenizer.json")
    );
}

#[test]
fn oversized_files_are_refused_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(500 << 20)
        .unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(
        matches!(error, TokenizerError::TooLarge { size, .. } if size == 500 << 20),
        "{error}"
    );
}

#[test]
fn vocabulary_and_merges_equal_tokenizer_json() {
    let source = fixture("qwen3/sharded");
    let parsed: Value =
        serde_json::from_str(&std::fs::read_to_string(source.join("tokenizer.json")).unwrap())
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        source.join("tokenizer_config.json"),
        folder.path().join("tokenizer_config.json"),
    )
    .unwrap();
    std::fs::write(
        folder.path().join("vocab.json"),
        parsed["model"]["vocab"].to_string(),
    )
    .unwrap();
    let merges: Vec<String> = parsed["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(text) => text.clone(),
            pair => format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            ),
        })
        .collect();
    std::fs::write(
        folder.path().join("merges.txt"),
        format!("#version: 0.2\n{}\n", merges.join("\n")),
    )
    .unwrap();

    let expected = Tokenizer::from_folder(&source).unwrap();
    let slow = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(slow.vocab_size(), expected.vocab_size());
    let text = "<|im_start|>user\nIt's 1234 naïve  words,\n\n  你好🙂!<think>\n<|im_end|>";
    assert_eq!(
        slow.encode(text, true).unwrap(),
        expected.encode(text, true).unwrap()
    );
}

#[test]
fn long_whitespace_is_an_error_and_not_another_tokenisation() {
    let tokenizer = Tokenizer::from_folder(&fixture("qwen3/sharded")).unwrap();
    let text = |spaces: usize| format!("a{}b c.d", " ".repeat(spaces));
    assert_eq!(tokenizer.words(&text(10)), 5);
    assert_eq!(
        tokenizer.words(&text(MAX_WHITESPACE_RUN)),
        5,
        "the limit is too high for the engine"
    );
    let ids = tokenizer.encode(&text(MAX_WHITESPACE_RUN), false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), text(MAX_WHITESPACE_RUN));
    let error = tokenizer
        .encode(&text(MAX_WHITESPACE_RUN + 1), false)
        .unwrap_err();
    assert!(matches!(error, TokenizerError::Encode { .. }));
    assert!(matches!(
        error.into(),
        crate::EngineError::InvalidRequest { .. }
    ));
}
