//! The answer's text, taken apart: reasoning, tool calls and the rest.

mod calls;
mod options;
mod reasoning;
mod schema;
mod tools;

pub use calls::ToolSyntax;
pub(crate) use options::control_tags;
pub use options::{OutputSwitches, ParserOptions};
pub use reasoning::{ReasoningParser, ReasoningPiece};
pub use tools::{ToolCallParser, ToolPiece};

use serde_json::Value;

/// A part of an answer, in the order in which the parts are to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More of the answer.
    Content(String),
    /// More of the reasoning before it.
    Reasoning(String),
    /// A complete call of a tool.
    ToolCall {
        /// Number of the call in this answer, from 0.
        index: usize,
        /// A fresh identifier.
        id: String,
        /// Name of the function.
        name: String,
        /// The arguments as JSON text.
        arguments: String,
    },
}

/// Takes an answer apart while it is written. However the text is cut into pieces, the concatenated parts are the same.
#[derive(Debug)]
pub struct OutputParser {
    reasoning: Option<ReasoningParser>,
    tools: Option<ToolCallParser>,
    calls: usize,
}

impl OutputParser {
    /// A parser at the beginning of an answer to a request that offers `tools`.
    pub fn new(options: ParserOptions, tools: &[Value]) -> Self {
        Self {
            reasoning: options
                .reasoning
                .then(|| ReasoningParser::new(options.starts_in_reasoning)),
            tools: options
                .tools
                .map(|syntax| ToolCallParser::new(syntax, tools)),
            calls: 0,
        }
    }

    /// Takes more text and gives the parts that are final. Text that may turn out to belong to a tag is held back.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        match &mut self.reasoning {
            Some(parser) => {
                let pieces = parser.push(text);
                self.route(pieces, &mut deltas);
            }
            None => self.content(text, &mut deltas),
        }
        deltas
    }

    /// Ends the answer and gives what was held back.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if let Some(parser) = &mut self.reasoning {
            let pieces = parser.finish();
            self.route(pieces, &mut deltas);
        }
        if let Some(parser) = &mut self.tools {
            let pieces = parser.finish();
            self.number(pieces, &mut deltas);
        }
        deltas
    }

    fn route(&mut self, pieces: Vec<ReasoningPiece>, deltas: &mut Vec<Delta>) {
        for piece in pieces {
            match piece {
                ReasoningPiece::Reasoning(text) => deltas.push(Delta::Reasoning(text)),
                ReasoningPiece::Content(text) => self.content(&text, deltas),
            }
        }
    }

    fn content(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        match &mut self.tools {
            Some(parser) => {
                let pieces = parser.push(text);
                self.number(pieces, deltas);
            }
            None if text.is_empty() => {}
            None => deltas.push(Delta::Content(text.to_owned())),
        }
    }

    fn number(&mut self, pieces: Vec<ToolPiece>, deltas: &mut Vec<Delta>) {
        for piece in pieces {
            deltas.push(match piece {
                ToolPiece::Content(text) => Delta::Content(text),
                ToolPiece::Call {
                    id,
                    name,
                    arguments,
                } => {
                    let index = self.calls;
                    self.calls += 1;
                    Delta::ToolCall {
                        index,
                        id,
                        name,
                        arguments,
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod tests;
