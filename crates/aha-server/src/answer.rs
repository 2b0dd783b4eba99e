//! From the engine's events to the pieces of an answer: one path for plain and streamed answers,
//! so that both say the same.

use crate::error::ApiError;
use crate::types::chat::Reasoning;
use crate::types::response::{
    AssistantMessage, ChatDelta, ChatLogprobs, FinishReasonName, FunctionCall, TextLogprobs,
    TokenLogprobs, ToolCall,
};
use aha_engine::parser::{Delta, OutputParser};
use aha_engine::{Engine, EngineError, Event, Finished, Generation, GenerationRequest};
use futures_util::stream::{BoxStream, SelectAll, StreamExt, unfold};

/// The tag after which an answer is no reasoning any more.
const REASONING_END: &str = "</think>";

/// The running generations of one request. Dropping it cancels them.
pub(crate) struct Generations(SelectAll<BoxStream<'static, (usize, Event)>>);

impl Generations {
    /// Submits all requests, or none: the first refusal drops those before it.
    pub(crate) fn submit(
        engine: &Engine,
        requests: impl IntoIterator<Item = GenerationRequest>,
    ) -> Result<Self, EngineError> {
        let generations = requests
            .into_iter()
            .map(|request| engine.submit(request))
            .collect::<Result<Vec<Generation>, _>>()?;
        let tagged = generations
            .into_iter()
            .enumerate()
            .map(|(choice, generation)| {
                unfold(generation, move |mut generation| async move {
                    let event = generation.next().await?;
                    Some(((choice, event), generation))
                })
                .boxed()
            });
        Ok(Self(tagged.collect()))
    }

    /// Generations that a test writes down.
    #[cfg(test)]
    pub(crate) fn scripted(streams: Vec<BoxStream<'static, Event>>) -> Self {
        let tagged = streams
            .into_iter()
            .enumerate()
            .map(|(choice, events)| events.map(move |event| (choice, event)).boxed());
        Self(tagged.collect())
    }

    /// The next event of any generation, with the number of its answer; `None` after all ended.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        self.0.next().await
    }
}

/// The error of a request for `answers` answers that the engine refused; `param` sets their number.
///
/// A full queue is worth another try, unless the request alone is more than the queue holds: it
/// was full with fewer.
pub(crate) fn refusal(error: EngineError, answers: usize, param: &str) -> ApiError {
    match error {
        EngineError::Overloaded { waiting, .. } if waiting < answers => ApiError::invalid(
            param,
            format!(
                "{answers} answers at once are more than this server's queue holds ({waiting})"
            ),
        ),
        other => other.into(),
    }
}

/// What one event adds to a chat's answer.
#[derive(Debug, Default)]
pub(crate) struct ChatStep {
    pub(crate) deltas: Vec<ChatDelta>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) finished: Option<(FinishReasonName, Finished)>,
}

/// One answer of a chat, while it comes in.
pub(crate) struct ChatAnswer {
    parser: OutputParser,
    reasoning: Reasoning,
    called_tools: bool,
    in_reasoning: bool,
    reasoning_tokens: usize,
    listed: Listed,
}

impl ChatAnswer {
    pub(crate) fn new(parser: OutputParser, reasoning: Reasoning) -> Self {
        Self {
            parser,
            reasoning,
            called_tools: false,
            in_reasoning: false,
            reasoning_tokens: 0,
            listed: match reasoning {
                Reasoning::Hidden => Listed::after_reasoning(),
                Reasoning::Separate | Reasoning::InPlace => Listed::All,
            },
        }
    }

    /// Tokens of the reasoning so far.
    pub(crate) fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    pub(crate) fn step(&mut self, event: Event) -> Result<ChatStep, ApiError> {
        match event {
            Event::Token(token) => {
                let deltas = self.parser.push(&token.text);
                if let Some(last) = deltas.last() {
                    self.in_reasoning = matches!(last, Delta::Reasoning(_));
                }
                self.reasoning_tokens += usize::from(self.in_reasoning);
                let logprobs = self
                    .listed
                    .pass(TokenLogprobs::of(&token), &token.text, &deltas);
                Ok(ChatStep {
                    deltas: self.convert(deltas),
                    logprobs,
                    finished: None,
                })
            }
            Event::Finished(finished) => {
                let mut deltas = self.parser.push(&finished.text);
                deltas.extend(self.parser.finish());
                let logprobs = self.listed.pass(None, &finished.text, &deltas);
                let deltas = self.convert(deltas);
                let reason = FinishReasonName::of(finished.reason, self.called_tools);
                Ok(ChatStep {
                    deltas,
                    logprobs,
                    finished: Some((reason, finished)),
                })
            }
            Event::Failed(error) => Err(error.into()),
        }
    }

    fn convert(&mut self, deltas: Vec<Delta>) -> Vec<ChatDelta> {
        deltas
            .into_iter()
            .filter_map(|delta| self.convert_one(delta))
            .collect()
    }

    fn convert_one(&mut self, delta: Delta) -> Option<ChatDelta> {
        match delta {
            Delta::Content(text) => Some(ChatDelta {
                content: Some(text),
                ..ChatDelta::default()
            }),
            Delta::Reasoning(_) if self.reasoning == Reasoning::Hidden => None,
            Delta::Reasoning(text) => Some(ChatDelta {
                reasoning_content: Some(text),
                ..ChatDelta::default()
            }),
            Delta::ToolCall {
                index,
                id,
                name,
                arguments,
            } => {
                self.called_tools = true;
                let call = ToolCall {
                    index: Some(index),
                    id: Some(id),
                    kind: Some("function"),
                    function: FunctionCall {
                        name: Some(name),
                        arguments,
                    },
                };
                Some(ChatDelta {
                    tool_calls: vec![call],
                    ..ChatDelta::default()
                })
            }
        }
    }
}

/// Which tokens' log-probabilities an answer lists.
enum Listed {
    All,
    /// Those after the reasoning. Entries wait until it is known which side their tokens are on.
    AfterReasoning {
        waiting: Vec<TokenLogprobs>,
        /// The end of the text so far, for finding a tag that several tokens make.
        tail: String,
    },
}

impl Listed {
    fn after_reasoning() -> Self {
        Self::AfterReasoning {
            waiting: Vec::new(),
            tail: String::new(),
        }
    }

    /// Takes the entry of a token that brought `text`, of which the parser made `deltas`; gives
    /// the entries that may be told now.
    fn pass(
        &mut self,
        entry: Option<TokenLogprobs>,
        text: &str,
        deltas: &[Delta],
    ) -> Vec<TokenLogprobs> {
        let Self::AfterReasoning { waiting, tail } = self else {
            return entry.into_iter().collect();
        };
        tail.push_str(text);
        if tail.contains(REASONING_END) {
            // The tag belongs to the reasoning.
            *self = Self::All;
            return Vec::new();
        }
        let kept = tail.ceil_char_boundary(tail.len().saturating_sub(REASONING_END.len()));
        tail.drain(..kept);
        waiting.extend(entry);
        match deltas.last() {
            None => Vec::new(),
            Some(Delta::Reasoning(_)) => {
                waiting.clear();
                Vec::new()
            }
            Some(Delta::Content(_) | Delta::ToolCall { .. }) => {
                let told = std::mem::take(waiting);
                *self = Self::All;
                told
            }
        }
    }
}

/// A whole message, gathered from its steps.
#[derive(Debug, Default)]
pub(crate) struct GatheredMessage {
    content: String,
    reasoning: Option<String>,
    tool_calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprobs>,
}

impl GatheredMessage {
    pub(crate) fn add(&mut self, deltas: Vec<ChatDelta>, logprobs: Vec<TokenLogprobs>) {
        self.logprobs.extend(logprobs);
        for delta in deltas {
            self.content
                .push_str(delta.content.as_deref().unwrap_or_default());
            if let Some(text) = delta.reasoning_content {
                self.reasoning.get_or_insert_default().push_str(&text);
            }
            let whole_calls = delta.tool_calls.into_iter();
            self.tool_calls.extend(whole_calls.map(|call| ToolCall {
                index: None,
                ..call
            }));
        }
    }

    /// The message, and its log-probabilities if `wanted`.
    pub(crate) fn finish(self, wanted: bool) -> (AssistantMessage, Option<ChatLogprobs>) {
        let silent = self.content.is_empty() && !self.tool_calls.is_empty();
        let message = AssistantMessage {
            role: "assistant",
            content: (!silent).then_some(self.content),
            reasoning_content: self.reasoning,
            tool_calls: self.tool_calls,
            refusal: None,
        };
        let logprobs = wanted.then_some(ChatLogprobs {
            content: self.logprobs,
            refusal: None,
        });
        (message, logprobs)
    }
}

/// What one event adds to a plain completion.
#[derive(Debug, Default)]
pub(crate) struct TextStep {
    pub(crate) text: String,
    pub(crate) logprobs: Option<TextLogprobs>,
    pub(crate) finished: Option<(FinishReasonName, Finished)>,
}

/// One answer of a plain completion, while it comes in.
#[derive(Debug, Default)]
pub(crate) struct TextAnswer {
    /// Characters of the answer so far, the echoed prompt included.
    characters: usize,
}

impl TextAnswer {
    /// An answer that begins with the prompt.
    pub(crate) fn after(echo: &str) -> Self {
        Self {
            characters: echo.chars().count(),
        }
    }

    pub(crate) fn step(&mut self, event: Event) -> Result<TextStep, ApiError> {
        match event {
            Event::Token(token) => {
                let logprobs = TokenLogprobs::of(&token).map(|entry| {
                    let mut logprobs = TextLogprobs::default();
                    logprobs.push(entry, self.characters);
                    logprobs
                });
                self.characters += token.text.chars().count();
                Ok(TextStep {
                    text: token.text,
                    logprobs,
                    finished: None,
                })
            }
            Event::Finished(mut finished) => {
                let text = std::mem::take(&mut finished.text);
                let reason = FinishReasonName::of(finished.reason, false);
                Ok(TextStep {
                    text,
                    logprobs: None,
                    finished: Some((reason, finished)),
                })
            }
            Event::Failed(error) => Err(error.into()),
        }
    }
}
