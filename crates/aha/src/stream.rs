//! The answer to one request, while it is made.

use crate::error::Result;
use aha_engine::parser::{Delta, OutputParser};
use aha_engine::{Event, FinishReason, Generation, Timings, Usage};
use std::collections::VecDeque;

/// One piece of an answer. The concatenated `Content` is its text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ChatEvent {
    /// More of the answer.
    Content(String),
    /// More of what the model thinks before it answers.
    Reasoning(String),
    /// A call of one of the chat's tools, complete.
    ToolCall {
        /// Its place among the calls of this answer.
        index: usize,
        /// Identifier for the tool's answer.
        id: String,
        /// The function.
        name: String,
        /// Its arguments, JSON as the model wrote it.
        arguments: String,
    },
    /// The end; nothing follows.
    Finished(Ended),
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Ended {
    /// Why.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
}

/// The events of one answer, awaited ([`ChatStream::next`], in any async runtime) or waited for
/// ([`ChatStream::blocking_next`]). Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping the stream cancels the request"]
pub struct ChatStream {
    generation: Generation,
    /// Absent for plain continuations: their text is passed on as it is.
    parser: Option<OutputParser>,
    ready: VecDeque<ChatEvent>,
}

impl ChatStream {
    pub(crate) fn new(generation: Generation, parser: Option<OutputParser>) -> Self {
        Self {
            generation,
            parser,
            ready: VecDeque::new(),
        }
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.generation.prompt_tokens()
    }

    /// The next event; `None` after the end or an error.
    ///
    /// May be used in `select!`: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<ChatEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.generation.next().await? {
                Event::Failed(error) => return Some(Err(error.into())),
                event => self.take(event),
            }
        }
    }

    /// The same for threads outside an async runtime.
    ///
    /// # Panics
    /// Inside an async runtime, where the whole thread would stand still.
    pub fn blocking_next(&mut self) -> Option<Result<ChatEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.generation.blocking_next()? {
                Event::Failed(error) => return Some(Err(error.into())),
                event => self.take(event),
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Token(token) => self.push(token.text),
            Event::Finished(end) => {
                self.push(end.text);
                let rest = self
                    .parser
                    .as_mut()
                    .map(OutputParser::finish)
                    .unwrap_or_default();
                self.ready.extend(rest.into_iter().map(ChatEvent::from));
                self.ready.push_back(ChatEvent::Finished(Ended {
                    reason: end.reason,
                    usage: end.usage,
                    timings: end.timings,
                }));
            }
            // The callers have taken failures out.
            Event::Failed(_) => {}
        }
    }

    fn push(&mut self, text: String) {
        match &mut self.parser {
            Some(parser) => self
                .ready
                .extend(parser.push(&text).into_iter().map(ChatEvent::from)),
            None if text.is_empty() => {}
            None => self.ready.push_back(ChatEvent::Content(text)),
        }
    }
}

impl From<Delta> for ChatEvent {
    fn from(delta: Delta) -> Self {
        match delta {
            Delta::Content(text) => Self::Content(text),
            Delta::Reasoning(text) => Self::Reasoning(text),
            Delta::ToolCall {
                index,
                id,
                name,
                arguments,
            } => Self::ToolCall {
                index,
                id,
                name,
                arguments,
            },
        }
    }
}
