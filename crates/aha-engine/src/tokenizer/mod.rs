//! Text to token ids and back.
//!
//! The Hugging Face `tokenizers` library normalises, cuts texts into words and puts tokens around them. Byte-pair encoding is our
//! own, on tables a fifth the size of the library's, and so is decoding, on the bytes of every token, since streaming
//! needs bytes and the library gives strings.

mod bpe;
mod coding;
mod error;
mod export;
mod files;
mod folder;
mod gguf;
mod model;
mod pieces;
mod pre;
mod read;
mod slots;
mod special;

pub use error::TokenizerError;
pub use special::SpecialTokens;

pub(crate) use files::{read_json, read_text};

use coding::PieceCoding;
use model::{Model, ModelParts};
use read::Steps;
use serde_json::Value;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl,
};

/// Most whitespace characters in a row that a text may have. The usual patterns look ahead after whitespace, and the
/// regular expression engine gives up (silently, inside the tokenizer library) after a million steps back.
const MAX_WHITESPACE_RUN: usize = 200_000;

/// The library's pipeline around a model.
type Pipeline = TokenizerImpl<
    Model,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A checkpoint's tokenizer.
pub struct Tokenizer {
    inner: Pipeline,
    /// Tokens that are matched as a whole, many of which are no pieces of the model.
    added: HashMap<u32, AddedToken>,
    vocab_size: usize,
    special: SpecialTokens,
    ends: Vec<u32>,
    strips_leading_space: bool,
    /// The token that `encode` puts before every text, where it does so.
    first: Option<u32>,
}

impl Tokenizer {
    /// `ends` are the tokens that end a generation, as far as the tokenizer's files say.
    fn assemble(
        inner: Pipeline,
        special: SpecialTokens,
        ends: Vec<u32>,
    ) -> Result<Self, TokenizerError> {
        let (_, strips_leading_space) = decoding_rules(inner.get_decoder())?;
        let added: HashMap<_, _> = inner.get_added_tokens_decoder().into_iter().collect();
        let behind_added = added.keys().max().map_or(0, |id| *id as usize + 1);
        let mut tokenizer = Self {
            vocab_size: behind_added.max(inner.get_model().pieces().len()),
            inner,
            added,
            special,
            ends,
            strips_leading_space,
            first: None,
        };
        tokenizer.first = tokenizer.bos_token_id().filter(|bos| {
            tokenizer
                .encode("", true)
                .is_ok_and(|ids| ids.first() == Some(bos))
        });
        Ok(tokenizer)
    }

    /// Token ids of `text`. Control tokens written in the text (`<|im_end|>`) become those tokens, as in the
    /// reference; `add_special_tokens` adds what the tokenizer puts around a text (usually a beginning-of-sequence
    /// token).
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the text cannot be split faithfully.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let run = longest_whitespace_run(text);
        if run > MAX_WHITESPACE_RUN {
            return Err(TokenizerError::Encode {
                message: format!(
                    "it has {run} whitespace characters in a row; {MAX_WHITESPACE_RUN} are the most"
                ),
            });
        }
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|error| TokenizerError::Encode {
                message: error.to_string(),
            })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a rendered chat. A tokenizer that begins every text with a beginning-of-sequence token does so here,
    /// too, unless the template has written it: some templates do, some leave it to the tokenizer.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text, false)?;
        if let Some(first) = self.first
            && ids.first() != Some(&first)
        {
            ids.insert(0, first);
        }
        Ok(ids)
    }

    /// The text of a whole sequence; bytes that are not UTF-8 become U+FFFD. Equal to what a
    /// [`Detokenizer`](crate::detokenizer::Detokenizer) gives in pieces. Unknown ids are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.token_bytes(id).unwrap_or_default());
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        match text.strip_prefix(' ') {
            Some(rest) if self.strips_leading_space => rest.to_owned(),
            _ => text.into_owned(),
        }
    }

    /// The bytes that one token stands for, not necessarily whole characters; `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        match self.added.get(&id) {
            Some(token) => Some(token.content.as_bytes()),
            None => self.inner.get_model().pieces().bytes(id),
        }
    }

    /// Whether `id` is a control token, left out of texts by `skip_special`.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|token| token.special)
    }

    /// The id of the token with exactly this text, in the vocabulary's own writing.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The text of a token in the vocabulary's own writing; `None` for an id without a token.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest token id. A model may have more rows of logits; those stand for no token.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The beginning-of-sequence token, if the tokenizer names one.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.named_id("bos_token")
    }

    /// The end-of-sequence token, if the tokenizer names one. See also [`Self::end_token_ids`].
    pub fn eos_token_id(&self) -> Option<u32> {
        self.named_id("eos_token")
    }

    /// The padding token, if the tokenizer names one.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.named_id("pad_token")
    }

    /// All tokens that end a generation as far as the tokenizer says: end of sequence, and in GGUF files end of turn
    /// and end of message. `generation_config.json`, where there is one, knows better.
    pub fn end_token_ids(&self) -> &[u32] {
        &self.ends
    }

    /// The named special tokens, which are variables of chat templates.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Whether the first space of a decoded text is the vocabulary's own and not the text's (sentencepiece).
    pub(crate) fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }

    fn named_id(&self, name: &str) -> Option<u32> {
        self.special.get(name).and_then(|text| self.token_id(text))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// A tokenizer without added tokens.
fn pipeline(origin: &str, model: ModelParts, steps: Steps) -> Result<Pipeline, TokenizerError> {
    let (coding, _) = decoding_rules(steps.decoder.as_ref())?;
    let model =
        Model::new(model, coding).map_err(|error| TokenizerError::malformed(origin, error))?;
    guarded(origin, || {
        let mut inner = Pipeline::new(model);
        inner.with_normalizer(steps.normalizer)?;
        inner.with_pre_tokenizer(steps.pre_tokenizer);
        inner.with_post_processor(steps.post_processor);
        inner.with_decoder(steps.decoder);
        Ok(inner)
    })
}

/// Runs a constructor of the tokenizer library, which asserts what it could report.
fn guarded<T>(
    origin: &str,
    build: impl FnOnce() -> Result<T, tokenizers::Error>,
) -> Result<T, TokenizerError> {
    match catch_unwind(AssertUnwindSafe(build)) {
        Ok(result) => result.map_err(|error| TokenizerError::malformed(origin, error)),
        Err(_) => Err(TokenizerError::malformed(
            origin,
            "its vocabulary and merges contradict each other",
        )),
    }
}

/// How pieces stand for bytes, and whether a leading space is dropped, read from the tokenizer's decoder.
fn decoding_rules(decoder: Option<&DecoderWrapper>) -> Result<(PieceCoding, bool), TokenizerError> {
    let decoder = serde_json::to_value(decoder)
        .map_err(|error| TokenizerError::malformed("the decoder", error))?;
    let steps = match decoder.get("decoders") {
        Some(Value::Array(steps)) => steps.as_slice(),
        _ => std::slice::from_ref(&decoder),
    };
    let mut coding = PieceCoding::Plain;
    let mut strips = false;
    for step in steps {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        match text("type") {
            Some("ByteLevel") => coding = PieceCoding::ByteLevel,
            Some("ByteFallback") => coding = PieceCoding::Metaspace,
            Some("Replace") if text("content") == Some(" ") => coding = PieceCoding::Metaspace,
            Some("Metaspace") => {
                coding = PieceCoding::Metaspace;
                strips |= text("prepend_scheme") != Some("never");
            }
            Some("Strip") if text("content") == Some(" ") => {
                strips |= step.get("start").and_then(Value::as_u64).unwrap_or(0) > 0;
            }
            Some("WordPiece") => {
                coding = PieceCoding::WordPiece;
                strips = true;
            }
            _ => {}
        }
    }
    Ok((coding, strips))
}

fn longest_whitespace_run(text: &str) -> usize {
    let (mut longest, mut run) = (0, 0);
    for character in text.chars() {
        run = if character.is_whitespace() {
            run + 1
        } else {
            0
        };
        longest = longest.max(run);
    }
    longest
}

#[cfg(test)]
mod compare_tests;
#[cfg(test)]
pub(crate) mod tests;
