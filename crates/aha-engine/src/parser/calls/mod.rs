//! What stands between the tags of a tool call.

mod json;
mod python;
mod xml;

use super::schema::ParameterTypes;
use crate::tokenizer::Tokenizer;
use serde_json::Value;

/// A function and its arguments as JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) arguments: String,
}

/// What the text between two tags turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// At least one call.
    Calls(Vec<Call>),
    /// The text ends too early: the closing tag may have been part of an argument.
    Unfinished,
    /// No call, whatever follows.
    Malformed,
}

/// Why there is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Unfinished,
    Malformed,
}

/// Models whose system message asks for JSON write it, or a list of it, between the tags of Python's calls.
fn is_json(body: &str) -> bool {
    let first = body.strip_prefix('[').unwrap_or(body);
    first.trim_start().starts_with('{')
}

/// A list or an object in the form in which templates write arguments.
pub(super) fn json_text(value: &Value) -> Option<String> {
    json::text_of(value).ok()
}

impl From<Result<Vec<Call>, Fault>> for Parsed {
    fn from(result: Result<Vec<Call>, Fault>) -> Self {
        match result {
            Ok(calls) if calls.is_empty() => Self::Malformed,
            Ok(calls) => Self::Calls(calls),
            Err(Fault::Unfinished) => Self::Unfinished,
            Err(Fault::Malformed) => Self::Malformed,
        }
    }
}

/// How a model writes calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolSyntax {
    /// `<tool_call>…</tool_call>` around `{"name": …, "arguments": {…}}` (Qwen3, Hermes) or around `<function=name>`
    /// with a `<parameter=key>` for each argument (Qwen3.5).
    Tags,
    /// `<|tool_call_start|>[name(key=value, …), …]<|tool_call_end|>` (LFM2), the values in Python's notation.
    PythonCalls,
}

impl ToolSyntax {
    /// The syntax that a model knows by its template or vocabulary.
    pub fn of_model(template: Option<&str>, tokenizer: &Tokenizer) -> Option<Self> {
        [Self::PythonCalls, Self::Tags]
            .into_iter()
            .find(|syntax| super::options::knows(template, tokenizer, syntax.tags()))
    }

    /// The opening and the closing tag.
    pub(super) fn tags(self) -> (&'static str, &'static str) {
        match self {
            Self::Tags => ("<tool_call>", "</tool_call>"),
            Self::PythonCalls => ("<|tool_call_start|>", "<|tool_call_end|>"),
        }
    }

    /// Reads the text between the tags. `types` say what the arguments are where the syntax does not.
    pub(super) fn parse(self, body: &str, types: &ParameterTypes) -> Parsed {
        let begun = body.trim_start();
        let result = if self == Self::Tags && begun.starts_with('<') {
            xml::parse(begun, types)
        } else if self == Self::Tags || is_json(begun) {
            json::parse(body)
        } else {
            python::parse(begun)
        };
        result.into()
    }
}
