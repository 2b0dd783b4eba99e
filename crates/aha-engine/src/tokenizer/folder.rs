//! Tokenizers from the files of a Hugging Face checkpoint.

use super::pre::PreKind;
use super::{SpecialTokens, Tokenizer, TokenizerError, guarded, read_json, read_text};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

/// The largest known tokenizer.json has 34 MB.
const MAX_TOKENIZER_BYTES: u64 = 192 << 20;
const MAX_CONFIG_BYTES: u64 = 32 << 20;

impl Tokenizer {
    /// Reads `tokenizer.json` (or `vocab.json` and `merges.txt`), and `tokenizer_config.json` and
    /// `special_tokens_map.json` where they are.
    ///
    /// # Errors
    /// [`TokenizerError`] naming the file that is missing, too large or malformed.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json(&config_path, MAX_CONFIG_BYTES)?.unwrap_or(Value::Null);
        let mut special = SpecialTokens::default();
        special.absorb(&config);
        if let Some(map) = read_json(&folder.join("special_tokens_map.json"), MAX_CONFIG_BYTES)? {
            special.absorb(&map);
        }

        let path = folder.join("tokenizer.json");
        let mut inner = match read_text(&path, MAX_TOKENIZER_BYTES)? {
            Some(text) => guarded(&path.display().to_string(), || {
                tokenizers::Tokenizer::from_bytes(text.as_bytes())
            })?,
            None => from_vocabulary_and_merges(folder, &config)?,
        };
        let origin = config_path.display().to_string();
        guarded(&origin, || {
            add_configured_tokens(&mut inner, &config, &special)
        })?;

        let ends = special
            .get("eos_token")
            .and_then(|text| inner.token_to_id(text));
        Self::assemble(inner, special, ends.into_iter().collect())
    }
}

/// Adds the tokens that only tokenizer_config.json lists, or lists otherwise: the reference does so after reading
/// tokenizer.json.
fn add_configured_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
    special: &SpecialTokens,
) -> Result<(), tokenizers::Error> {
    let mut listed = Vec::new();
    if let Some(Value::Object(tokens)) = config.get("added_tokens_decoder") {
        for (id, token) in tokens {
            let id: u32 = id
                .parse()
                .map_err(|_| format!("added_tokens_decoder: `{id}` is no token id"))?;
            let token: AddedToken = serde_json::from_value(token.clone())
                .map_err(|error| format!("added_tokens_decoder.{id}: {error}"))?;
            listed.push((id, token));
        }
    }
    listed.sort_unstable_by_key(|(id, _)| *id);
    let known = inner.get_added_tokens_decoder();
    for (id, token) in listed {
        if known.get(&id) == Some(&token) {
            continue;
        }
        let text = token.content.clone();
        inner.add_tokens([token])?;
        if inner.token_to_id(&text) != Some(id) {
            return Err(format!(
                "added_tokens_decoder.{id}: `{text}` has another id in the vocabulary"
            )
            .into());
        }
    }
    // A named token without an entry of its own must still be matched as a whole. Names for which the vocabulary has
    // no token are left alone: a new id would point behind the model's embedding.
    let known = inner.get_added_tokens_decoder();
    let unmarked: Vec<_> = special
        .texts()
        .filter(|text| {
            inner
                .token_to_id(text)
                .is_some_and(|id| !known.contains_key(&id))
        })
        .map(|text| AddedToken::from(text, true))
        .collect();
    inner.add_special_tokens(unmarked)?;
    Ok(())
}

/// Byte-level BPE of the slow tokenizer classes, whose checkpoints may come without a tokenizer.json.
fn from_vocabulary_and_merges(
    folder: &Path,
    config: &Value,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let missing = || TokenizerError::Missing {
        path: folder.to_owned(),
    };
    let vocabulary_path = folder.join("vocab.json");
    let merges_path = folder.join("merges.txt");
    let vocabulary = read_text(&vocabulary_path, MAX_TOKENIZER_BYTES)?.ok_or_else(missing)?;
    let merges = read_text(&merges_path, MAX_TOKENIZER_BYTES)?.ok_or_else(missing)?;
    let class = config
        .get("tokenizer_class")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = PreKind::from_class(class)?;

    let vocabulary: HashMap<String, u32> = serde_json::from_str(&vocabulary)
        .map_err(|error| TokenizerError::malformed(vocabulary_path.display().to_string(), error))?;
    let mut pairs = Vec::new();
    for (number, line) in merges.lines().enumerate() {
        if line.is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        let (left, right) = line.split_once(' ').ok_or_else(|| {
            TokenizerError::malformed(
                merges_path.display().to_string(),
                format!("line {} is not a pair", number + 1),
            )
        })?;
        pairs.push((left.to_owned(), right.to_owned()));
    }
    byte_level_bpe(
        &merges_path.display().to_string(),
        vocabulary,
        pairs,
        kind,
        false,
    )
}

/// A byte-level BPE tokenizer without added tokens.
pub(super) fn byte_level_bpe(
    origin: &str,
    vocabulary: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    kind: PreKind,
    ignore_merges: bool,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    // The library takes these for granted.
    for (left, right) in &merges {
        for text in [left.as_str(), right.as_str(), &format!("{left}{right}")] {
            if !vocabulary.contains_key(text) {
                return Err(TokenizerError::malformed(
                    origin,
                    format!(
                        "the merge of `{left}` and `{right}` needs `{text}`, which is no token"
                    ),
                ));
            }
        }
    }
    guarded(origin, || {
        let model = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges)
            .ignore_merges(ignore_merges)
            .build()?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(kind.normalizer()?)?;
        inner.with_pre_tokenizer(Some(kind.pre_tokenizer()?));
        inner.with_decoder(Some(serde_json::from_value::<tokenizers::DecoderWrapper>(json!(
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}
        ))?));
        Ok(inner)
    })
}
