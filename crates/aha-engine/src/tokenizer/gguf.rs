//! Tokenizers from the metadata of GGUF files.

use super::bpe::{BpeOptions, BpeParts, Merge, MergeList};
use super::coding::{SPACE, byte_piece};
use super::folder::byte_level_bpe;
use super::model::ModelParts;
use super::pieces::{PieceList, Pieces};
use super::pre::PreKind;
use super::read::Steps;
use super::{Pipeline, SpecialTokens, Tokenizer, TokenizerError, guarded, pipeline};
use aha_nn::weights::gguf::Metadata;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use tokenizers::models::bpe::Vocab;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::{AddedToken, NormalizerWrapper};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
/// Sentencepiece gives an unknown character this much less than the least probable piece.
const UNKNOWN_PENALTY: f64 = 10.0;

/// `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub(in super::super) const NORMAL: i64 = 1;
    pub(in super::super) const UNKNOWN: i64 = 2;
    pub(in super::super) const CONTROL: i64 = 3;
    pub(in super::super) const USER_DEFINED: i64 = 4;
    pub(in super::super) const UNUSED: i64 = 5;
    pub(in super::super) const BYTE: i64 = 6;
}

/// The tokenizer's metadata, of one length throughout.
#[derive(Debug, Default)]
pub(super) struct Vocabulary<'m> {
    pub(super) model: String,
    pub(super) pre: Option<String>,
    pub(super) tokens: &'m [String],
    pub(super) scores: Vec<f32>,
    pub(super) types: Vec<i64>,
    pub(super) merges: &'m [String],
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    pub(super) add_space_prefix: Option<bool>,
    pub(super) remove_extra_whitespaces: Option<bool>,
    pub(super) charsmap: Vec<u8>,
    /// Ids by name: `bos`, `eos`, `eot`, `eom`, `unknown`, `padding`, `cls`, `seperator`, `mask`.
    pub(super) ids: HashMap<&'static str, u32>,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes: `gpt2` (byte-level BPE), `llama` (sentencepiece BPE by score,
    /// with byte fallback), `t5` (unigram) or `bert` (WordPiece).
    ///
    /// # Errors
    /// [`TokenizerError`] when keys are missing, contradict each other or name an unknown kind.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Vocabulary::read(metadata)?.build()
    }
}

impl<'m> Vocabulary<'m> {
    fn read(metadata: &'m Metadata) -> Result<Self, TokenizerError> {
        let wrong = |error: aha_nn::weights::WeightsError| {
            TokenizerError::malformed("GGUF metadata", error)
        };
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let flag = |name: &str| metadata.boolean(&key(name)).map_err(wrong);
        let model = metadata.text(MODEL).map_err(wrong)?.ok_or_else(|| {
            TokenizerError::malformed("GGUF metadata", format!("{MODEL} is missing"))
        })?;
        let mut ids = HashMap::new();
        for name in [
            "bos",
            "eos",
            "eot",
            "eom",
            "unknown",
            "padding",
            "cls",
            // Spelt so by the format.
            "seperator",
            "mask",
        ] {
            let key = key(&format!("{name}_token_id"));
            if let Some(id) = metadata.unsigned(&key).map_err(wrong)? {
                let id = u32::try_from(id)
                    .map_err(|_| TokenizerError::malformed(&key, format!("{id} is no token id")))?;
                ids.insert(name, id);
            }
        }
        let charsmap = metadata
            .integers(&key("precompiled_charsmap"))
            .map_err(wrong)?
            .unwrap_or_default();
        Ok(Self {
            model: model.to_owned(),
            pre: metadata
                .text(&key("pre"))
                .map_err(wrong)?
                .map(str::to_owned),
            tokens: metadata.texts(TOKENS).map_err(wrong)?.unwrap_or_default(),
            scores: metadata
                .floats(&key("scores"))
                .map_err(wrong)?
                .unwrap_or_default(),
            types: metadata
                .integers(&key("token_type"))
                .map_err(wrong)?
                .unwrap_or_default(),
            merges: metadata.texts(MERGES).map_err(wrong)?.unwrap_or_default(),
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces")?,
            // Stored as signed or unsigned bytes.
            charsmap: charsmap.iter().map(|byte| (byte & 0xFF) as u8).collect(),
            ids,
        })
    }

    pub(super) fn build(mut self) -> Result<Tokenizer, TokenizerError> {
        self.check()?;
        let mut inner = match self.model.as_str() {
            "gpt2" => self.byte_level()?,
            "llama" => self.sentencepiece_bpe()?,
            "t5" => self.unigram()?,
            "bert" => self.word_piece()?,
            other => {
                return Err(TokenizerError::Unsupported {
                    key: MODEL.to_owned(),
                    value: other.to_owned(),
                    known: "gpt2, llama, t5, bert".to_owned(),
                });
            }
        };
        let added = self.added_tokens();
        guarded(TOKENS, || {
            inner.add_tokens(added)?;
            if let Some(processor) = self.post_processor() {
                inner.with_post_processor(Some(serde_json::from_value::<
                    tokenizers::PostProcessorWrapper,
                >(processor)?));
            }
            Ok(())
        })?;

        let mut special = SpecialTokens::default();
        for (name, variable) in [
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("unknown", "unk_token"),
            ("padding", "pad_token"),
            ("cls", "cls_token"),
            ("seperator", "sep_token"),
            ("mask", "mask_token"),
        ] {
            if let Some(text) = self.named(name) {
                special.set(variable, text);
            }
        }
        let mut ends = Vec::new();
        for id in ["eos", "eot", "eom"]
            .iter()
            .filter_map(|name| self.ids.get(name).copied())
        {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        Tokenizer::assemble(inner, special, ends)
    }

    /// Arrays of one length, ids within it; absent scores and types get their defaults.
    fn check(&mut self) -> Result<(), TokenizerError> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(TokenizerError::malformed(TOKENS, "there are no tokens"));
        }
        if self.types.is_empty() {
            self.types = vec![token_type::NORMAL; count];
        }
        if self.scores.is_empty() {
            if !matches!(self.model.as_str(), "gpt2" | "bert") {
                return Err(TokenizerError::malformed(
                    "tokenizer.ggml.scores",
                    format!("a tokenizer of the kind {} needs scores", self.model),
                ));
            }
            self.scores = vec![0.0; count];
        }
        for (key, length) in [
            ("tokenizer.ggml.scores", self.scores.len()),
            ("tokenizer.ggml.token_type", self.types.len()),
        ] {
            if length != count {
                return Err(TokenizerError::malformed(
                    key,
                    format!("{length} entries for {count} tokens"),
                ));
            }
        }
        for (name, &id) in &self.ids {
            if id as usize >= count {
                return Err(TokenizerError::malformed(
                    format!("tokenizer.ggml.{name}_token_id"),
                    format!("{id} is not below the number of tokens, {count}"),
                ));
            }
        }
        Ok(())
    }

    fn named(&self, name: &str) -> Option<&str> {
        let id = *self.ids.get(name)?;
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// All tokens by text and by id. Of two with the same text, the first one is used for encoding.
    fn pieces(&self) -> Result<Pieces, TokenizerError> {
        let mut seen = HashSet::with_capacity(self.tokens.len());
        let mut list = PieceList::default();
        let mut entries = (0..).zip(self.tokens).filter(|entry| seen.insert(entry.1));
        entries
            .try_for_each(|(id, text)| list.push(id, text))
            .and_then(|()| Pieces::new(list))
            .map_err(|error| TokenizerError::malformed(TOKENS, error))
    }

    /// Tokens that are matched as a whole before anything else. User-defined pieces with sentencepiece's space are
    /// ordinary pieces: their text only exists after normalisation.
    fn added_tokens(&self) -> Vec<AddedToken> {
        self.tokens
            .iter()
            .zip(&self.types)
            .filter_map(|(text, &kind)| match kind {
                token_type::CONTROL | token_type::UNKNOWN => {
                    Some(AddedToken::from(text.as_str(), true))
                }
                token_type::USER_DEFINED if self.model == "gpt2" || !text.contains(SPACE) => {
                    Some(AddedToken::from(text.as_str(), false).normalized(false))
                }
                _ => None,
            })
            .collect()
    }

    fn byte_level(&self) -> Result<Pipeline, TokenizerError> {
        let kind = PreKind::from_gguf(self.pre.as_deref())?;
        let pieces = self.pieces()?;
        let mut merges = MergeList::new(&pieces, "");
        for merge in self.merges {
            merges
                .push_line(merge)
                .map_err(|error| TokenizerError::malformed(MERGES, error))?;
        }
        let merges = merges.into_merges();
        let options = BpeOptions {
            ignore_merges: kind.ignores_merges(self.pre.as_deref()),
            ..BpeOptions::default()
        };
        let parts = BpeParts {
            pieces,
            merges,
            options,
        };
        byte_level_bpe(MERGES, parts, kind)
    }

    /// Sentencepiece's BPE joins the neighbours whose union has the best score. As ranked merges: every way to cut
    /// every piece into two pieces, by the score of the whole.
    fn sentencepiece_bpe(&self) -> Result<Pipeline, TokenizerError> {
        let pieces = self.pieces()?;
        let mut merges: Vec<(f32, Merge)> = Vec::new();
        for ((text, &score), &kind) in self.tokens.iter().zip(&self.scores).zip(&self.types) {
            if matches!(kind, token_type::CONTROL | token_type::UNKNOWN)
                || byte_piece(text).is_some()
            {
                continue;
            }
            for (cut, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(cut);
                if let (Some(left), Some(right), Some(whole)) =
                    (pieces.id(left), pieces.id(right), pieces.id(text))
                {
                    merges.push((score, Merge { left, right, whole }));
                }
            }
        }
        merges.sort_by(|(score, merge), (other_score, other)| {
            let order = other_score.total_cmp(score);
            order.then((merge.left, merge.right).cmp(&(other.left, other.right)))
        });
        let options = BpeOptions {
            unknown: self.named("unknown").map(str::to_owned),
            fuse_unknown: true,
            byte_fallback: pieces.id("<0x00>").is_some(),
            ..BpeOptions::default()
        };
        let parts = BpeParts {
            merges: merges.into_iter().map(|(_, merge)| merge).collect(),
            pieces,
            options,
        };

        let prefix = self.add_space_prefix.unwrap_or(true);
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let normalizers = if prefix {
            json!([{"type": "Prepend", "prepend": SPACE}, space])
        } else {
            json!([space])
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let steps = described_steps(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "decoder": {"type": "Sequence", "decoders": decoders},
        }))?;
        pipeline(TOKENS, ModelParts::Bpe(parts), steps)
    }

    fn unigram(&self) -> Result<Pipeline, TokenizerError> {
        let unknown = self.ids.get("unknown").map(|&id| id as usize);
        let mut seen = HashSet::new();
        let floor = self.scores.iter().copied().fold(0.0_f32, f32::min);
        let pieces: Vec<(String, f64)> = self
            .tokens
            .iter()
            .zip(&self.scores)
            .zip(&self.types)
            .map(|((text, &score), &kind)| {
                // Control tokens and repeated texts must never be chosen for text.
                let usable = kind != token_type::CONTROL && seen.insert(text);
                (
                    text.clone(),
                    if usable {
                        f64::from(score)
                    } else {
                        f64::from(floor) - UNKNOWN_PENALTY
                    },
                )
            })
            .collect();
        let has_bytes = self.tokens.iter().any(|text| text == "<0x00>");
        let prefix = self.add_space_prefix.unwrap_or(true);
        let squeeze = self.remove_extra_whitespaces.unwrap_or(true);
        let metaspace = json!({
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": if prefix { "always" } else { "never" },
            "split": true,
        });
        let mut steps = described_steps(json!({"pre_tokenizer": metaspace, "decoder": metaspace}))?;
        let model = guarded(TOKENS, || {
            let mut normalizers = Vec::new();
            if !self.charsmap.is_empty() {
                normalizers.push(NormalizerWrapper::from(Precompiled::from(&self.charsmap)?));
            }
            if squeeze {
                normalizers.push(normalizer(
                    json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                )?);
                normalizers.push(normalizer(
                    json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
                )?);
            }
            let sequence = tokenizers::normalizers::utils::Sequence::new(normalizers);
            steps.normalizer = Some(NormalizerWrapper::from(sequence));
            Unigram::from(pieces, unknown, has_bytes)
        })?;
        pipeline(TOKENS, ModelParts::Library(model.into()), steps)
    }

    /// WordPiece as BERT has it. Converters mark the beginnings of words instead of their continuations.
    fn word_piece(&self) -> Result<Pipeline, TokenizerError> {
        let control = |kind: i64| matches!(kind, token_type::CONTROL | token_type::UNKNOWN);
        let pieces = || {
            let pairs = self.tokens.iter().zip(&self.types);
            pairs.map(|(text, &kind)| (text, control(kind)))
        };
        let marked = pieces().any(|(text, control)| !control && text.starts_with(SPACE));
        let mut vocabulary = Vocab::default();
        for (id, (text, control)) in (0..).zip(pieces()) {
            let text = match text.strip_prefix(SPACE) {
                Some(beginning) if !control => beginning.to_owned(),
                None if marked && !control => format!("##{text}"),
                _ => text.clone(),
            };
            vocabulary.entry(text).or_insert(id);
        }
        // The format does not say whether case matters; capitals in the vocabulary do.
        let cased = pieces()
            .any(|(text, control)| !control && text.bytes().any(|b| b.is_ascii_uppercase()));
        let unknown = self.named("unknown").unwrap_or("[UNK]").to_owned();
        let model = guarded(TOKENS, || {
            let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown);
            model.build()
        })?;
        let steps = described_steps(json!({
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": true,
                "strip_accents": null,
                "lowercase": !cased,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        }))?;
        pipeline(TOKENS, ModelParts::Library(model.into()), steps)
    }

    /// The tokens around a text, with the defaults of each kind where the file does not say.
    fn post_processor(&self) -> Option<Value> {
        let llama3 = matches!(
            self.pre.as_deref(),
            Some("llama3" | "llama-v3" | "llama-bpe")
        );
        let bos = self.add_bos.unwrap_or(self.model == "llama" || llama3);
        let eos = self.add_eos.unwrap_or(self.model == "t5");
        let token = |wanted: bool, name: &str| {
            if wanted {
                self.named(name).zip(self.ids.get(name))
            } else {
                None
            }
        };
        let (bos, eos) = if self.model == "bert" {
            let either = |names: [&str; 2]| names.into_iter().find_map(|name| token(true, name));
            (either(["cls", "bos"]), either(["seperator", "eos"]))
        } else {
            (token(bos, "bos"), token(eos, "eos"))
        };
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let mut around = json!({});
        let mut piece = |token: (&str, &u32)| {
            around[token.0] = json!({"id": token.0, "ids": [token.1], "tokens": [token.0]});
            json!({"SpecialToken": {"id": token.0, "type_id": 0}})
        };
        let mut single = Vec::new();
        single.extend(bos.map(&mut piece));
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.extend(eos.map(&mut piece));
        let mut pair = single.clone();
        pair.push(json!({"Sequence": {"id": "B", "type_id": 1}}));
        Some(
            json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": around}),
        )
    }
}

/// Steps as tokenizer.json describes them.
fn described_steps(description: Value) -> Result<Steps, TokenizerError> {
    guarded(TOKENS, || Ok(serde_json::from_value(description)?))
}

fn normalizer(description: Value) -> Result<NormalizerWrapper, serde_json::Error> {
    serde_json::from_value(description)
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
