//! What comes back from the engine while a request is served.

use crate::error::EngineError;
use crate::media::{MediaKind, MediaSpan};
use std::time::Duration;

/// Log-probability of one token, of the raw distribution (before penalties, temperature and truncation).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub token_id: u32,
    /// The token's bytes; not necessarily whole UTF-8 characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability (log-softmax in f32).
    pub logprob: f32,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// Token id.
    pub token_id: u32,
    /// Text that became final with this token: whole characters only, possibly empty (an unfinished character, or
    /// the possible beginning of a stop string, is held back).
    pub text: String,
    /// Present when log-probabilities were asked for.
    pub logprob: Option<TokenLogprob>,
    /// The most probable tokens, best first; empty unless asked for.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token, stop token or stop string.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
}

/// Tokens of a prompt that stand for media, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MediaTokens {
    /// Pictures.
    pub image: usize,
    /// Clips.
    pub video: usize,
    /// Recordings.
    pub audio: usize,
}

impl MediaTokens {
    /// Counts the tokens of `spans`.
    pub fn of(spans: &[MediaSpan]) -> Self {
        let mut tokens = Self::default();
        for span in spans {
            *match span.kind {
                MediaKind::Image => &mut tokens.image,
                MediaKind::Video => &mut tokens.video,
                MediaKind::Audio => &mut tokens.audio,
            } += span.input.num_tokens;
        }
        tokens
    }
}

/// Token counts of a finished generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens of the prompt that stand for pictures, clips and recordings.
    pub media: MediaTokens,
    /// Generated tokens, the end-of-sequence token included.
    pub completion_tokens: usize,
}

impl Usage {
    /// Adds the tokens of another generation.
    pub fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.media.image += other.media.image;
        self.media.video += other.media.video;
        self.media.audio += other.media.audio;
        self.completion_tokens += other.completion_tokens;
    }
}

/// Where the time of a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Waiting for admission.
    pub queued: Duration,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first to the last token.
    pub decode: Duration,
}

/// The end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Text that was held back and is now final.
    pub text: String,
    /// The stop string that was met, if one was.
    pub stop: Option<String>,
    /// Token counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
}

/// One event of a generation. The concatenated texts of all events are the answer.
#[derive(Debug)]
pub enum Event {
    /// The next token.
    Token(TokenEvent),
    /// The end; nothing follows.
    Finished(Finished),
    /// The request failed; nothing follows.
    Failed(EngineError),
}
