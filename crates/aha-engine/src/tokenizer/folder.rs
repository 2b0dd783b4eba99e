//! Tokenizers from the files of a Hugging Face checkpoint.

use super::bpe::{BpeOptions, BpeParts, MergeList};
use super::model::ModelParts;
use super::pre::PreKind;
use super::read::{Steps, TokenizerFile, Vocabulary};
use super::{
    Pipeline, SpecialTokens, Tokenizer, TokenizerError, guarded, pipeline, read_json, read_text,
};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::AddedToken;

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
            Some(text) => from_description(&path.display().to_string(), &text)?,
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

/// The tokenizer of a tokenizer.json.
fn from_description(origin: &str, text: &str) -> Result<Pipeline, TokenizerError> {
    let file: TokenizerFile = guarded(origin, || Ok(serde_json::from_str(text)?))?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(TokenizerError::Unsupported {
            key: format!("{origin}: version"),
            value: version,
            known: "1.0".to_owned(),
        });
    }
    let mut inner = pipeline(origin, file.model, file.steps)?;
    for listed in &file.added_tokens {
        let text = &listed.token.content;
        if let Some(id) = inner.token_to_id(text)
            && id != listed.id
        {
            tracing::warn!(
                origin,
                text,
                id,
                listed = listed.id,
                "an added token has another id in the vocabulary, which counts"
            );
        }
    }
    guarded(origin, || {
        inner.add_tokens(file.added_tokens.into_iter().map(|listed| listed.token))
    })?;
    Ok(inner)
}

/// Adds the tokens that only tokenizer_config.json lists, or lists otherwise: the reference does so after reading
/// tokenizer.json.
fn add_configured_tokens(
    inner: &mut Pipeline,
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
fn from_vocabulary_and_merges(folder: &Path, config: &Value) -> Result<Pipeline, TokenizerError> {
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

    let vocabulary: Vocabulary = serde_json::from_str(&vocabulary)
        .map_err(|error| TokenizerError::malformed(vocabulary_path.display().to_string(), error))?;
    let origin = merges_path.display().to_string();
    let mut list = MergeList::new(&vocabulary.0, "");
    for (number, line) in merges.lines().enumerate() {
        if line.is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        list.push_line(line)
            .map_err(|error| TokenizerError::malformed(&origin, error))?;
    }
    let merges = list.into_merges();
    byte_level_bpe(
        &origin,
        BpeParts {
            pieces: vocabulary.0,
            merges,
            options: BpeOptions::default(),
        },
        kind,
    )
}

/// A byte-level BPE tokenizer without added tokens.
pub(super) fn byte_level_bpe(
    origin: &str,
    parts: BpeParts,
    kind: PreKind,
) -> Result<Pipeline, TokenizerError> {
    let steps = guarded(origin, || {
        let decoder = json!(
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}
        );
        Ok(Steps {
            normalizer: kind.normalizer()?,
            pre_tokenizer: Some(kind.pre_tokenizer()?),
            post_processor: None,
            decoder: Some(serde_json::from_value(decoder)?),
        })
    })?;
    pipeline(origin, ModelParts::Bpe(parts), steps)
}
