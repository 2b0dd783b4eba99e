//! Pre-tokenizers of byte-level BPE vocabularies, by the names that GGUF files and tokenizer classes give them.

use super::error::TokenizerError;
use serde_json::{Value, json};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const KNOWN: &str = "default, gpt-2, smollm, starcoder, qwen2, qwen35, llama-bpe, lfm2, tekken, gpt-4o, llama4, glm4, \
                     deepseek-v3, hunyuan-dense and their aliases";

/// How text is cut into words before byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreKind {
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    SmolLm,
    Qwen2,
    Qwen35,
    Llama3,
    Tekken,
    Gpt4o,
    DeepSeekV3,
}

impl PreKind {
    /// The kind that `tokenizer.ggml.pre` names. A file without the field predates it and is taken for GPT-2's, as is
    /// `default`; both are reported, since the converter did not recognise such a vocabulary.
    pub(super) fn from_gguf(pre: Option<&str>) -> Result<Self, TokenizerError> {
        let kind = match pre {
            None | Some("default") => {
                tracing::warn!(
                    "the file does not say how its text is pre-tokenised; taking GPT-2's pattern, which may be wrong"
                );
                Self::Gpt2
            }
            Some("gpt-2" | "phi-2" | "mpt" | "olmo" | "jais") => Self::Gpt2,
            Some(
                "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
                | "minerva-7b",
            ) => Self::SmolLm,
            Some("qwen2" | "stablelm2" | "hunyuan" | "deepseek-r1-qwen" | "megrez") => Self::Qwen2,
            Some("qwen35") => Self::Qwen35,
            Some(
                "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2"
                | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4",
            ) => Self::Llama3,
            Some("tekken") => Self::Tekken,
            Some("gpt-4o" | "llama4") => Self::Gpt4o,
            Some("deepseek-v3" | "hunyuan-dense") => Self::DeepSeekV3,
            Some(other) => {
                return Err(TokenizerError::Unsupported {
                    key: "tokenizer.ggml.pre".to_owned(),
                    value: other.to_owned(),
                    known: KNOWN.to_owned(),
                });
            }
        };
        Ok(kind)
    }

    const ALL: [Self; 8] = [
        Self::Gpt2,
        Self::SmolLm,
        Self::Qwen2,
        Self::Qwen35,
        Self::Llama3,
        Self::Tekken,
        Self::Gpt4o,
        Self::DeepSeekV3,
    ];

    /// The kind that a tokenizer.json describes, if it is one of these.
    ///
    /// # Errors
    /// [`TokenizerError`] when a kind has no description, which none of them lacks.
    pub(super) fn recognise(
        pre_tokenizer: &Value,
        normalizer: &Value,
    ) -> Result<Option<Self>, TokenizerError> {
        let wrong = |error| TokenizerError::malformed("the pre-tokenizer", error);
        let cuts = essence(pre_tokenizer);
        for kind in Self::ALL {
            let own = serde_json::to_value(kind.pre_tokenizer().map_err(wrong)?).map_err(wrong)?;
            let normal = kind.normalizer().map_err(wrong)?;
            let normal = serde_json::to_value(normal).map_err(wrong)?;
            if essence(&own) == cuts && normal == *normalizer {
                return Ok(Some(kind));
            }
        }
        Ok(None)
    }

    /// A name that [`PreKind::from_gguf`] takes for this kind; none where the format has no such vocabulary.
    pub(super) fn gguf_name(self, ignores_merges: bool) -> Option<&'static str> {
        Some(match (self, ignores_merges) {
            (Self::Gpt2, false) => "gpt-2",
            (Self::SmolLm, false) => "smollm",
            (Self::Qwen2, false) => "qwen2",
            (Self::Qwen35, false) => "qwen35",
            (Self::Llama3, true) => "llama-bpe",
            (Self::Llama3, false) => "dbrx",
            (Self::Tekken, true) => "tekken",
            (Self::Gpt4o, true) => "gpt-4o",
            (Self::DeepSeekV3, false) => "deepseek-v3",
            _ => return None,
        })
    }

    /// The kind of a slow tokenizer class of the Hugging Face library, for checkpoints without tokenizer.json.
    pub(super) fn from_class(class: &str) -> Result<Self, TokenizerError> {
        match class.trim_end_matches("Fast") {
            "GPT2Tokenizer" => Ok(Self::Gpt2),
            "Qwen2Tokenizer" => Ok(Self::Qwen2),
            other => Err(TokenizerError::Unsupported {
                key: "tokenizer_class".to_owned(),
                value: other.to_owned(),
                known: "GPT2Tokenizer, Qwen2Tokenizer (or a tokenizer.json)".to_owned(),
            }),
        }
    }

    /// Whether a word that is in the vocabulary as a whole is taken without merging.
    pub(super) fn ignores_merges(self, pre: Option<&str>) -> bool {
        match self {
            Self::Llama3 => matches!(
                pre,
                Some(
                    "llama3"
                        | "llama-v3"
                        | "llama-bpe"
                        | "falcon3"
                        | "falcon-h1"
                        | "pixtral"
                        | "lfm2"
                )
            ),
            Self::Tekken | Self::Gpt4o => true,
            _ => false,
        }
    }

    /// The normaliser that belongs to the vocabulary, if any.
    pub(super) fn normalizer(self) -> Result<Option<NormalizerWrapper>, serde_json::Error> {
        match self {
            Self::Qwen2 | Self::Qwen35 => serde_json::from_value(json!({"type": "NFC"})).map(Some),
            _ => Ok(None),
        }
    }

    /// The pre-tokenizer, ending with the byte-level alphabet.
    pub(super) fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, serde_json::Error> {
        let parts = match self {
            Self::Gpt2 => vec![byte_level(true)],
            Self::SmolLm => {
                vec![
                    json!({"type": "Digits", "individual_digits": true}),
                    byte_level(true),
                ]
            }
            Self::Qwen2 => vec![split(QWEN2), byte_level(false)],
            Self::Qwen35 => vec![split(QWEN3_5), byte_level(false)],
            Self::Llama3 => vec![split(LLAMA3), byte_level(false)],
            Self::Tekken => vec![split(TEKKEN), byte_level(false)],
            Self::Gpt4o => vec![split(GPT4O), byte_level(false)],
            Self::DeepSeekV3 => vec![
                split(r"\p{N}{1,3}"),
                split(DEEPSEEK_CJK),
                split(DEEPSEEK_WORDS),
                byte_level(false),
            ],
        };
        serde_json::from_value(json!({"type": "Sequence", "pretokenizers": parts}))
    }
}

/// The steps of a pre-tokenizer, without what changes no id.
fn essence(pre_tokenizer: &Value) -> Vec<Value> {
    let steps = match pre_tokenizer.get("pretokenizers") {
        Some(Value::Array(steps)) => steps.clone(),
        _ => vec![pre_tokenizer.clone()],
    };
    steps
        .into_iter()
        .map(|mut step| {
            if let Some(keys) = step.as_object_mut() {
                keys.remove("trim_offsets");
            }
            step
        })
        .collect()
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}
