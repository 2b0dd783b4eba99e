//! Tokenizers as the metadata of GGUF files: the mirror of [`Tokenizer::from_gguf`].

use super::bpe::Bpe;
use super::coding::{PieceCoding, byte_piece};
use super::gguf::token_type;
use super::model::Model;
use super::pre::PreKind;
use super::{Tokenizer, TokenizerError};
use aha_nn::weights::gguf::Value as GgufValue;
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::ModelWrapper;

/// The kinds of tokenizers that can be written.
const KNOWN: &str = "byte-level BPE and sentencepiece's BPE";

impl Tokenizer {
    /// The keys `tokenizer.ggml.*` for a model with `rows` rows of embeddings, of which those without a token get one that
    /// no text has. `ends` are the tokens that end an answer; `pre` is the architecture's own name for its way of cutting
    /// texts, where it has one.
    ///
    /// # Errors
    /// [`TokenizerError::Unsupported`] when the format cannot say what the tokenizer does.
    pub fn to_gguf(
        &self,
        rows: usize,
        ends: &[u32],
        pre: Option<&str>,
    ) -> Result<Vec<(String, GgufValue)>, TokenizerError> {
        let model = self.exportable_model()?;
        let merges = merges(model)?;
        let wrong = |error| TokenizerError::malformed("the tokenizer", error);
        let normalizer = serde_json::to_value(self.inner.get_normalizer()).map_err(wrong)?;
        let cuts = serde_json::to_value(self.inner.get_pre_tokenizer()).map_err(wrong)?;
        let coding = model.pieces().coding();
        let mut keys = match coding {
            PieceCoding::ByteLevel => vec![
                ("model", GgufValue::Text("gpt2".to_owned())),
                (
                    "pre",
                    GgufValue::Text(pre_name(model, &cuts, &normalizer, pre)?.to_owned()),
                ),
                ("merges", GgufValue::Texts(merges)),
            ],
            PieceCoding::Metaspace => vec![
                ("model", GgufValue::Text("llama".to_owned())),
                ("pre", GgufValue::Text("default".to_owned())),
                ("scores", GgufValue::Floats(self.scores(rows, model))),
                (
                    "add_space_prefix",
                    GgufValue::Boolean(prepends_space(&normalizer, &cuts)),
                ),
            ],
            PieceCoding::Plain | PieceCoding::WordPiece => {
                return Err(unsupported("decoder", "of another kind", KNOWN));
            }
        };
        let (tokens, types) = self.tokens(rows, model);
        keys.extend([
            ("tokens", GgufValue::Texts(tokens)),
            ("token_type", GgufValue::Integers(types)),
        ]);
        keys.extend(self.special_ids(ends)?);
        let keys = keys.into_iter();
        Ok(keys
            .map(|(name, value)| (format!("tokenizer.ggml.{name}"), value))
            .collect())
    }

    /// The model, if the format can say what it does.
    fn exportable_model(&self) -> Result<&Bpe, TokenizerError> {
        let model = match self.inner.get_model() {
            Model::Bpe(model) => model,
            Model::Library { model, .. } => {
                let kind = match model {
                    ModelWrapper::BPE(_) => "BPE",
                    ModelWrapper::WordPiece(_) => "WordPiece",
                    ModelWrapper::WordLevel(_) => "WordLevel",
                    ModelWrapper::Unigram(_) => "Unigram",
                };
                return Err(unsupported("model.type", kind, KNOWN));
            }
        };
        let options = model.options();
        for (key, value) in [
            ("model.continuing_subword_prefix", &options.prefix),
            ("model.end_of_word_suffix", &options.suffix),
        ] {
            if !value.is_empty() {
                return Err(unsupported(key, value, "none"));
            }
        }
        Ok(model)
    }

    /// Texts and types of all tokens.
    fn tokens(&self, rows: usize, model: &Bpe) -> (Vec<String>, Vec<i64>) {
        let unknown = model.options().unknown.as_deref();
        let sentencepiece = model.pieces().coding() == PieceCoding::Metaspace;
        (0..rows)
            .map(|id| {
                let number = u32::try_from(id).unwrap_or(u32::MAX);
                let Some(text) = self.inner.id_to_token(number) else {
                    return (format!("[PAD{id}]"), token_type::UNUSED);
                };
                let kind = match self.added.get(&number) {
                    _ if sentencepiece && unknown == Some(text.as_str()) => token_type::UNKNOWN,
                    Some(token) if token.special => token_type::CONTROL,
                    Some(_) => token_type::USER_DEFINED,
                    None if sentencepiece && byte_piece(&text).is_some() => token_type::BYTE,
                    None => token_type::NORMAL,
                };
                (text, kind)
            })
            .unzip()
    }

    /// Sentencepiece's scores, of which only the order counts: a piece has that of the merge that makes it.
    fn scores(&self, rows: usize, model: &Bpe) -> Vec<f32> {
        let mut ranks = HashMap::new();
        for (rank, merge) in model.merges().enumerate() {
            ranks.entry(merge.whole as usize).or_insert(rank);
        }
        let behind = model.merges().count();
        // Pieces that no merge makes come behind all others.
        let rank = |id| ranks.get(&id).copied().unwrap_or(behind + id);
        (0..rows).map(|id| -(rank(id) as f32)).collect()
    }

    /// Ids of named tokens, and which of them stand around a text.
    fn special_ids(&self, ends: &[u32]) -> Result<Vec<(&'static str, GgufValue)>, TokenizerError> {
        let mut keys = Vec::new();
        let mut id = |key, id: Option<u32>| {
            keys.extend(id.map(|id| (key, GgufValue::Unsigned(id.into()))));
        };
        let bos = self.named_id("bos_token");
        // The template may write it, so it stays what the tokenizer calls the end.
        let eos = self.named_id("eos_token").or(ends.first().copied());
        id("bos_token_id", bos);
        id("eos_token_id", eos);
        id("unknown_token_id", self.named_id("unk_token"));
        id("padding_token_id", self.named_id("pad_token"));
        let mut others = ends.iter().copied().filter(|end| Some(*end) != eos);
        id("eot_token_id", others.next());
        id("eom_token_id", others.next());
        let around = self.encode("", true)?;
        let adds = |id: Option<u32>, place: Option<&u32>| {
            GgufValue::Boolean(id.is_some() && id.as_ref() == place)
        };
        keys.push(("add_bos_token", adds(bos, around.first())));
        // An empty text with one token around it has it in front.
        let last = around.last().filter(|_| around.len() > 1 || bos != eos);
        keys.push(("add_eos_token", adds(eos, last)));
        Ok(keys)
    }
}

fn unsupported(key: &str, value: &str, known: &str) -> TokenizerError {
    TokenizerError::Unsupported {
        key: key.to_owned(),
        value: value.to_owned(),
        known: known.to_owned(),
    }
}

/// The pairs that are joined, by rank, with a space between the two.
fn merges(model: &Bpe) -> Result<Vec<String>, TokenizerError> {
    let pairs = model.merges().enumerate().map(|(number, merge)| {
        let text = |id| model.pieces().text(id);
        text(merge.left)
            .zip(text(merge.right))
            // Neither may have a space itself.
            .filter(|(left, right)| !left.contains(' ') && !right.contains(' '))
            .map(|(left, right)| format!("{left} {right}"))
            .ok_or_else(|| {
                TokenizerError::malformed("model.merges", format!("entry {number} is no pair"))
            })
    });
    pairs.collect()
}

/// The format's name for the way in which texts are cut.
fn pre_name<'a>(
    model: &Bpe,
    cuts: &Value,
    normalizer: &Value,
    own: Option<&'a str>,
) -> Result<&'a str, TokenizerError> {
    let ignores_merges = model.options().ignore_merges;
    let kind = PreKind::recognise(cuts, normalizer)?.ok_or_else(|| {
        unsupported(
            "pre_tokenizer",
            &cuts.to_string(),
            "those of the usual byte-level vocabularies",
        )
    })?;
    if let Some(own) = own
        && PreKind::from_gguf(Some(own))? == kind
    {
        return Ok(own);
    }
    kind.gguf_name(ignores_merges).ok_or_else(|| {
        let value = format!("ignore_merges: {ignores_merges}, with {cuts}");
        unsupported("pre_tokenizer", &value, "the other value of ignore_merges")
    })
}

fn prepends_space(normalizer: &Value, cuts: &Value) -> bool {
    let steps = match normalizer.get("normalizers") {
        Some(Value::Array(steps)) => steps.as_slice(),
        _ => std::slice::from_ref(normalizer),
    };
    steps.iter().any(|step| step["type"] == "Prepend")
        || cuts["type"] == "Metaspace" && cuts["prepend_scheme"] != "never"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tokenizer(fixture: &str) -> Tokenizer {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        Tokenizer::from_folder(&Path::new(root).join(fixture)).unwrap()
    }

    fn value<'a>(keys: &'a [(String, GgufValue)], name: &str) -> Option<&'a GgufValue> {
        let name = format!("tokenizer.ggml.{name}");
        keys.iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    #[test]
    fn the_way_of_cutting_texts_is_named() {
        for (fixture, own, model, pre) in [
            ("llama/smol", None, "gpt2", "smollm"),
            ("qwen3/sharded", None, "gpt2", "qwen2"),
            ("lfm2/lfm2", Some("lfm2"), "gpt2", "lfm2"),
            ("lfm2/lfm2", None, "gpt2", "dbrx"),
            ("lfm2/lfm2", Some("qwen2"), "gpt2", "dbrx"),
            ("minicpm4/tied-short", None, "llama", "default"),
        ] {
            let keys = tokenizer(fixture).to_gguf(600, &[], own).unwrap();
            for (name, expected) in [("model", model), ("pre", pre)] {
                let expected = GgufValue::Text(expected.to_owned());
                assert_eq!(value(&keys, name), Some(&expected), "{fixture}");
            }
        }
        let error = tokenizer("minilm/base")
            .to_gguf(600, &[], None)
            .unwrap_err();
        assert!(error.to_string().contains("WordPiece"), "{error}");
    }

    #[test]
    fn rows_without_a_token_get_one_that_no_text_has() {
        let smol = tokenizer("llama/smol");
        let rows = smol.vocab_size() + 2;
        let end = smol.token_id("<|im_end|>").unwrap();
        let keys = smol.to_gguf(rows, &[end, 0], None).unwrap();
        let Some(GgufValue::Texts(tokens)) = value(&keys, "tokens") else {
            panic!("{keys:?}");
        };
        assert_eq!(tokens.len(), rows);
        assert_eq!(tokens[rows - 1], format!("[PAD{}]", rows - 1));
        let Some(GgufValue::Integers(types)) = value(&keys, "token_type") else {
            panic!("{keys:?}");
        };
        assert_eq!((types[end as usize], types[rows - 1]), (3, 5));
        assert_eq!(
            value(&keys, "eos_token_id"),
            Some(&GgufValue::Unsigned(end.into()))
        );
        assert_eq!(value(&keys, "eot_token_id"), Some(&GgufValue::Unsigned(0)));
        assert_eq!(
            value(&keys, "add_bos_token"),
            Some(&GgufValue::Boolean(false))
        );
        let lfm2 = tokenizer("lfm2/lfm2").to_gguf(rows, &[], None).unwrap();
        assert_eq!(
            value(&lfm2, "add_bos_token"),
            Some(&GgufValue::Boolean(true))
        );
        assert_eq!(
            value(&lfm2, "add_eos_token"),
            Some(&GgufValue::Boolean(false))
        );
    }
}
