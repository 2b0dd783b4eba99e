//! Answers in OpenAI's shapes.

use aha_engine::{FinishReason, TokenEvent, TokenLogprob};
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// What `system_fingerprint` says: the same version computes the same answers.
pub(crate) const SYSTEM_FINGERPRINT: &str = concat!("aha-", env!("CARGO_PKG_VERSION"));

/// The log-probability of a token that has none: JSON knows no infinities, and this is what
/// OpenAI sends in their place.
const LOWEST_LOGPROB: f32 = -9999.0;

/// What all answers and chunks of one request share.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: &'static str,
}

impl Envelope {
    pub(crate) fn new(prefix: &str, object: &'static str, model: &str) -> Self {
        Self {
            id: format!("{prefix}-{}", crate::ids::unique()),
            object,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            model: model.to_owned(),
            system_fingerprint: SYSTEM_FINGERPRINT,
        }
    }
}

/// A whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct Completion<Choice> {
    #[serde(flatten)]
    pub(crate) envelope: Envelope,
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Usage,
}

/// One event of a streamed answer. `usage` is absent unless the client asked for it; then it is
/// null in every chunk but the last.
#[derive(Debug, Serialize)]
pub(crate) struct Chunk<'a, Choice> {
    #[serde(flatten)]
    pub(crate) envelope: &'a Envelope,
    pub(crate) choices: &'a [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion_tokens_details: Option<CompletionTokensDetails>,
}

/// Where the prompt's tokens came from. Counts of media are left out where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) image_tokens: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) video_tokens: usize,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) audio_tokens: usize,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What the answer's tokens were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CompletionTokensDetails {
    pub(crate) reasoning_tokens: usize,
}

impl Usage {
    /// Adds one answer. Several answers to one prompt count that prompt once: `first` marks the
    /// one that does.
    pub(crate) fn add(&mut self, usage: &aha_engine::Usage, first: bool) {
        if first {
            self.prompt_tokens += usage.prompt_tokens;
            let details = &mut self.prompt_tokens_details;
            details.cached_tokens += usage.cached_tokens;
            details.image_tokens += usage.media.image;
            details.video_tokens += usage.media.video;
            details.audio_tokens += usage.media.audio;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// `finish_reason` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReasonName {
    Stop,
    Length,
    ToolCalls,
}

impl FinishReasonName {
    /// An answer that stopped by itself after calling tools ended because of the calls.
    pub(crate) fn of(reason: FinishReason, called_tools: bool) -> Self {
        match reason {
            FinishReason::Length => Self::Length,
            FinishReason::Stop if called_tools => Self::ToolCalls,
            FinishReason::Stop => Self::Stop,
        }
    }
}

/// One answer of a chat.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: AssistantMessage,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: FinishReasonName,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
pub(crate) struct AssistantMessage {
    pub(crate) role: &'static str,
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) refusal: Option<String>,
}

/// A call of a tool: `index` in chunks only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ToolCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionCall,
}

/// Name and arguments of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct FunctionCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// JSON as text.
    pub(crate) arguments: String,
}

/// One choice of a chat's chunk.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: ChatDelta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<FinishReasonName>,
}

/// What a chunk adds to the message.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct ChatDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// Log-probabilities of a chat's tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<TokenLogprobs>,
    pub(crate) refusal: Option<String>,
}

/// A token with its log-probability and the most probable ones at its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TokenLogprobs {
    #[serde(flatten)]
    pub(crate) token: TokenProbability,
    pub(crate) top_logprobs: Vec<TokenProbability>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TokenProbability {
    /// The token's text; bytes that are no whole characters appear as U+FFFD.
    pub(crate) token: String,
    pub(crate) logprob: f32,
    /// The token's bytes as they are.
    pub(crate) bytes: Vec<u8>,
}

impl From<&TokenLogprob> for TokenProbability {
    fn from(entry: &TokenLogprob) -> Self {
        Self {
            token: String::from_utf8_lossy(&entry.bytes).into_owned(),
            logprob: if entry.logprob.is_finite() {
                entry.logprob
            } else {
                LOWEST_LOGPROB
            },
            bytes: entry.bytes.clone(),
        }
    }
}

impl TokenLogprobs {
    /// The log-probabilities of a token, if they were asked for.
    pub(crate) fn of(event: &TokenEvent) -> Option<Self> {
        Some(Self {
            token: event.logprob.as_ref()?.into(),
            top_logprobs: event.top_logprobs.iter().map(Into::into).collect(),
        })
    }
}

/// One answer of a plain completion.
#[derive(Debug, Serialize)]
pub(crate) struct TextChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<TextLogprobs>,
    pub(crate) finish_reason: Option<FinishReasonName>,
}

/// Log-probabilities of a plain completion: OpenAI's parallel lists, and chat's list beside them,
/// which alone tells the tokens' bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct TextLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<f32>,
    pub(crate) top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Where each token's text begins, in characters of the answer.
    pub(crate) text_offset: Vec<usize>,
    pub(crate) content: Vec<TokenLogprobs>,
}

impl TextLogprobs {
    /// Adds a token whose text begins at `offset`.
    pub(crate) fn push(&mut self, entry: TokenLogprobs, offset: usize) {
        self.tokens.push(entry.token.token.clone());
        self.token_logprobs.push(entry.token.logprob);
        let top = entry.top_logprobs.iter();
        self.top_logprobs.push(
            top.map(|top| (top.token.clone(), top.logprob.into()))
                .collect(),
        );
        self.text_offset.push(offset);
        self.content.push(entry);
    }

    /// Adds all tokens of another part of the same answer.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.token_logprobs.append(&mut other.token_logprobs);
        self.top_logprobs.append(&mut other.top_logprobs);
        self.text_offset.append(&mut other.text_offset);
        self.content.append(&mut other.content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn broken_characters_show_their_bytes_and_infinities_stay_json() {
        let entry = TokenLogprob {
            token_id: 1,
            bytes: vec![0xf0, 0x9f],
            logprob: f32::NEG_INFINITY,
        };
        assert_eq!(
            serde_json::to_value(TokenProbability::from(&entry)).unwrap(),
            json!({"token": "\u{fffd}", "logprob": -9999.0, "bytes": [240, 159]})
        );
    }

    #[test]
    fn answers_to_one_prompt_count_it_once() {
        let one = aha_engine::Usage {
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 3,
            ..aha_engine::Usage::default()
        };
        let mut usage = Usage::default();
        usage.add(&one, true);
        usage.add(&one, false);
        assert_eq!(
            serde_json::to_value(usage).unwrap(),
            json!({"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16,
                   "prompt_tokens_details": {"cached_tokens": 4}})
        );
    }

    #[test]
    fn usage_of_a_chunk_is_absent_null_or_there() {
        let envelope = Envelope::new("x", "chat.completion.chunk", "m");
        let text = |usage| {
            let chunk: Chunk<'_, TextChoice> = Chunk {
                envelope: &envelope,
                choices: &[],
                usage,
            };
            serde_json::to_value(chunk).unwrap()
        };
        assert!(text(None).get("usage").is_none());
        assert!(text(Some(None))["usage"].is_null());
        assert_eq!(
            text(Some(Some(Usage::default())))["usage"]["total_tokens"],
            0
        );
    }
}
