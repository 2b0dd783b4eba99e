use super::super::tests::fixture;
use super::*;
use aha_nn::weights::gguf::GgufFile;
use std::path::Path;

/// Writes the metadata part of a GGUF file.
#[derive(Default)]
struct Writer {
    pairs: Vec<u8>,
    count: u64,
}

impl Writer {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        Self::text(&mut self.pairs, &format!("tokenizer.ggml.{key}"));
        self.pairs.extend(kind.to_le_bytes());
        self.pairs.extend(value);
        self.count += 1;
        self
    }

    fn string(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        Self::text(&mut bytes, value);
        self.pair(key, 8, &bytes)
    }

    fn number(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    fn flag(self, key: &str, value: bool) -> Self {
        self.pair(key, 7, &[u8::from(value)])
    }

    fn array(self, key: &str, kind: u32, count: usize, items: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((count as u64).to_le_bytes());
        bytes.extend(items);
        self.pair(key, 9, &bytes)
    }

    fn strings(self, key: &str, items: &[String]) -> Self {
        let mut bytes = Vec::new();
        items.iter().for_each(|item| Self::text(&mut bytes, item));
        self.array(key, 8, items.len(), &bytes)
    }

    fn integers(self, key: &str, items: &[i32]) -> Self {
        let bytes: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
        self.array(key, 5, items.len(), &bytes)
    }

    fn floats(self, key: &str, items: &[f32]) -> Self {
        let bytes: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
        self.array(key, 6, items.len(), &bytes)
    }

    fn tokenizer(self) -> Result<Tokenizer, TokenizerError> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(self.pairs);
        let file = GgufFile::from_bytes(Path::new("test.gguf"), bytes).unwrap();
        Tokenizer::from_gguf(&file.metadata)
    }
}

/// The GGUF form of a fixture's tokenizer.json.
fn converted(name: &str, pre: &str) -> Writer {
    let text = std::fs::read_to_string(fixture(name).join("tokenizer.json")).unwrap();
    let source: Value = serde_json::from_str(&text).unwrap();
    let mut entries: Vec<(u64, String, i32)> = source["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(text, id)| (id.as_u64().unwrap(), text.clone(), 1))
        .collect();
    for token in source["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap();
        entries.retain(|entry| entry.0 != id);
        let kind = if token["special"].as_bool().unwrap() {
            3
        } else {
            4
        };
        entries.push((id, token["content"].as_str().unwrap().to_owned(), kind));
    }
    entries.sort();
    let merges: Vec<String> = source["model"]["merges"]
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
    let tokens: Vec<String> = entries.iter().map(|entry| entry.1.clone()).collect();
    let types: Vec<i32> = entries.iter().map(|entry| entry.2).collect();
    Writer::default()
        .string("model", "gpt2")
        .string("pre", pre)
        .strings("tokens", &tokens)
        .integers("token_type", &types)
        .strings("merges", &merges)
}

#[test]
fn byte_level_bpe_equals_the_same_vocabulary_in_tokenizer_json() {
    for (name, pre) in [("qwen3/sharded", "qwen2"), ("llama/smol", "smollm")] {
        let folder = Tokenizer::from_folder(&fixture(name)).unwrap();
        let end = folder.token_id("<|im_end|>").unwrap();
        let gguf = converted(name, pre)
            .number("eos_token_id", end)
            .tokenizer()
            .unwrap();
        assert_eq!(gguf.vocab_size(), folder.vocab_size());
        assert_eq!(gguf.end_token_ids(), [end]);
        assert_eq!(gguf.special_tokens().get("eos_token"), Some("<|im_end|>"));
        for id in 0..folder.vocab_size() as u32 {
            assert_eq!(gguf.token_bytes(id), folder.token_bytes(id));
            assert_eq!(gguf.is_special(id), folder.is_special(id), "{id}");
        }
        let golden: Value = serde_json::from_str(
            &std::fs::read_to_string(fixture(name).join("golden.json")).unwrap(),
        )
        .unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let text = case["expect"]["prompt_text"].as_str().unwrap();
            let ids = gguf.encode(text, true).unwrap();
            assert_eq!(
                serde_json::to_value(ids).unwrap(),
                case["expect"]["prompt_ids"],
                "{name} {}",
                case["name"]
            );
        }
    }
}

#[test]
fn every_known_pattern_compiles_and_keeps_the_text() {
    for pre in [
        "default",
        "gpt-2",
        "smollm",
        "starcoder",
        "qwen2",
        "qwen35",
        "llama-bpe",
        "lfm2",
        "tekken",
        "gpt-4o",
        "llama4",
        "glm4",
        "deepseek-v3",
        "hunyuan-dense",
    ] {
        let tokenizer = converted("qwen3/sharded", pre).tokenizer().unwrap();
        let text =
            "It's 12345  naïve WORDS and snake_case,\n\n 你好 هذا ประเทศ 🙂!\t<|im_end|>\r\n";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text, "{pre}");
    }
    let error = converted("qwen3/sharded", "no-such-thing")
        .tokenizer()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no-such-thing") && error.contains("tokenizer.ggml.pre"),
        "{error}"
    );
}

#[test]
fn tokens_around_a_text_follow_the_flags() {
    let writer = || {
        converted("llama/smol", "smollm")
            .number("bos_token_id", 1)
            .number("eos_token_id", 2)
    };
    let plain = writer().tokenizer().unwrap().encode("hi", true).unwrap();
    let both = writer()
        .flag("add_bos_token", true)
        .flag("add_eos_token", true)
        .tokenizer()
        .unwrap();
    let ids = both.encode("hi", true).unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (1, 2));
    assert_eq!(&ids[1..ids.len() - 1], plain);
    assert_eq!(both.encode("hi", false).unwrap(), plain);
    // A chat's text gets the first token unless its template wrote it, and never the last.
    assert_eq!(both.encode_chat("hi").unwrap(), ids[..ids.len() - 1]);
    assert_eq!(
        both.encode_chat("<|im_start|>hi").unwrap(),
        ids[..ids.len() - 1]
    );
}

/// A small sentencepiece vocabulary with byte fallback.
fn sentencepiece() -> Writer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    let mut scores = vec![0.0_f32; 3];
    for byte in 0..=255_u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(6);
        scores.push(0.0);
    }
    for (piece, score) in [
        ("▁", -20.0),
        ("a", -21.0),
        ("b", -22.0),
        ("c", -23.0),
        ("ab", -1.0),
        ("bc", -2.0),
        ("▁a", -3.0),
        ("abc", -4.0),
        ("▁ab", -5.0),
        ("▁abc", -6.0),
    ] {
        tokens.push(piece.to_owned());
        types.push(1);
        scores.push(score);
    }
    Writer::default()
        .string("model", "llama")
        .strings("tokens", &tokens)
        .integers("token_type", &types)
        .floats("scores", &scores)
        .number("bos_token_id", 1)
        .number("eos_token_id", 2)
        .number("unknown_token_id", 0)
}

#[test]
fn sentencepiece_joins_by_score_and_falls_back_to_bytes() {
    let tokenizer = sentencepiece().tokenizer().unwrap();
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    // `bc` scores below `ab`, so it is `ab` that is joined first; with the space it becomes one piece.
    assert_eq!(tokenizer.encode("abc", false).unwrap(), [id("▁abc")]);
    assert_eq!(
        tokenizer.encode("bcab bc", false).unwrap(),
        [id("▁"), id("bc"), id("ab"), id("▁"), id("bc")]
    );
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, id("▁a")]);
    let ids = tokenizer.encode("é</s>", false).unwrap();
    assert_eq!(ids, [id("▁"), id("<0xC3>"), id("<0xA9>"), 2]);
    assert_eq!(tokenizer.token_bytes(id("<0xC3>")).unwrap(), [0xC3]);
    assert_eq!(tokenizer.decode(&ids, true), "é");
    assert_eq!(tokenizer.decode(&ids, false), "é</s>");
    assert_eq!(
        tokenizer.decode(&tokenizer.encode("  abc  é", false).unwrap(), true),
        "  abc  é"
    );

    let bare = sentencepiece()
        .flag("add_space_prefix", false)
        .flag("add_bos_token", false)
        .tokenizer()
        .unwrap();
    assert_eq!(bare.encode("abc", true).unwrap(), [id("abc")]);
    assert_eq!(bare.decode(&[id("▁ab")], true), " ab");
}

#[test]
fn unigram_takes_the_most_probable_pieces() {
    let pieces = [
        ("<pad>", 3, 0.0),
        ("</s>", 3, 0.0),
        ("<unk>", 2, 0.0),
        ("▁", 1, -2.0),
        ("▁the", 1, -3.0),
        ("re", 1, -3.5),
        ("▁there", 1, -5.0),
        ("x", 1, -8.0),
    ];
    let tokenizer = Writer::default()
        .string("model", "t5")
        .strings("tokens", &pieces.map(|piece| piece.0.to_owned()))
        .integers("token_type", &pieces.map(|piece| piece.1))
        .floats("scores", &pieces.map(|piece| piece.2))
        .number("eos_token_id", 1)
        .number("unknown_token_id", 2)
        .tokenizer()
        .unwrap();
    assert_eq!(tokenizer.encode("there  x", true).unwrap(), [6, 3, 7, 1]);
    assert_eq!(tokenizer.decode(&[6, 3, 7, 1], true), "there x");
    assert_eq!(tokenizer.encode("q", false).unwrap(), [3, 2]);
}

#[test]
fn contradictions_are_errors_that_name_the_key() {
    let tokens = ["a".to_owned(), "b".to_owned(), "ab".to_owned()];
    let base = || {
        Writer::default()
            .string("model", "gpt2")
            .string("pre", "gpt-2")
            .strings("tokens", &tokens)
    };
    let cases = [
        (
            Writer::default().strings("tokens", &tokens),
            "tokenizer.ggml.model",
        ),
        (
            Writer::default().string("model", "gpt2"),
            "tokenizer.ggml.tokens",
        ),
        (
            Writer::default()
                .string("model", "rwkv")
                .strings("tokens", &tokens),
            "rwkv",
        ),
        (
            Writer::default()
                .string("model", "llama")
                .strings("tokens", &tokens),
            "tokenizer.ggml.scores",
        ),
        (
            base().integers("token_type", &[1]),
            "tokenizer.ggml.token_type",
        ),
        (
            base().number("eos_token_id", 3),
            "tokenizer.ggml.eos_token_id",
        ),
        (
            base().strings("merges", &["ab".to_owned()]),
            "tokenizer.ggml.merges",
        ),
        (
            base().strings("merges", &["ab ab".to_owned()]),
            "tokenizer.ggml.merges",
        ),
        (
            Writer::default()
                .string("model", "gpt2")
                .string("tokens", "no list"),
            "tokenizer.ggml.tokens",
        ),
    ];
    for (writer, expected) in cases {
        let error = writer.tokenizer().unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not name {expected}");
    }
}
