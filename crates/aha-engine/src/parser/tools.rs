use crate::stop::unfinished;
use crate::template::{JsonStyle, dumps};
use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// A part of an answer in which calls were looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolPiece {
    /// Ordinary text.
    Content(String),
    /// A complete call.
    Call {
        /// A fresh identifier.
        id: String,
        /// Name of the function.
        name: String,
        /// The arguments as JSON text.
        arguments: String,
    },
}

/// Finds calls of the form `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Qwen, Hermes). What is not a
/// well-formed call stays text. The white space before and after a call is layout and dropped.
#[derive(Debug, Clone, Default)]
pub struct ToolCallParser {
    held: String,
    /// The held text begins with an opening tag.
    inside: bool,
    /// Bytes of the held text already searched for the closing tag.
    searched: usize,
    after_call: bool,
}

impl ToolCallParser {
    /// A parser at the beginning of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes more text and gives the parts that are final.
    pub fn push(&mut self, text: &str) -> Vec<ToolPiece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Ends the answer. A call that lacks only its closing tag counts; any other unfinished one is text.
    pub fn finish(&mut self) -> Vec<ToolPiece> {
        let mut pieces = Vec::new();
        while self.inside {
            match parse_call(&self.held[self.body_start()..]) {
                Parsed::Call(call) => {
                    pieces.push(call);
                    self.held.clear();
                    self.inside = false;
                    self.after_call = true;
                }
                Parsed::Unfinished | Parsed::Malformed => {
                    self.give_up(&mut pieces);
                    while self.step(&mut pieces) {}
                }
            }
        }
        let rest = std::mem::take(&mut self.held);
        self.emit(&mut pieces, &rest);
        pieces
    }

    fn step(&mut self, pieces: &mut Vec<ToolPiece>) -> bool {
        if self.inside {
            self.read_call(pieces)
        } else {
            self.find_call(pieces)
        }
    }

    /// Outside: gives text up to the next opening tag.
    fn find_call(&mut self, pieces: &mut Vec<ToolPiece>) -> bool {
        if let Some(start) = self.held.find(OPEN) {
            // Whether the space before the tag is layout is known when the call was read.
            let text = self.held[..start].trim_end().to_owned();
            self.emit(pieces, &text);
            self.held.drain(..text.len());
            self.inside = true;
            self.searched = 0;
            return true;
        }
        let certain = &self.held[..self.held.len() - unfinished(&self.held, OPEN)];
        let text = certain.trim_end().to_owned();
        self.emit(pieces, &text);
        self.held.drain(..text.len());
        false
    }

    /// Inside: the held text is white space, an opening tag and what follows.
    fn read_call(&mut self, pieces: &mut Vec<ToolPiece>) -> bool {
        let start = self.body_start();
        loop {
            let from = self.searched.max(start);
            let Some(found) = self.held[from..].find(CLOSE) else {
                self.searched = self.held.len() - unfinished(&self.held[from..], CLOSE);
                return false;
            };
            let end = from + found;
            match parse_call(&self.held[start..end]) {
                Parsed::Call(call) => {
                    pieces.push(call);
                    self.held.drain(..end + CLOSE.len());
                    self.inside = false;
                    self.after_call = true;
                    return true;
                }
                // The tag may stand in a string of the arguments: the call ends at a later one.
                Parsed::Unfinished => self.searched = end + CLOSE.len(),
                Parsed::Malformed => {
                    self.give_up(pieces);
                    return true;
                }
            }
        }
    }

    /// Where the call's JSON begins in the held text: behind white space and the opening tag.
    fn body_start(&self) -> usize {
        self.held.len() - self.held.trim_start().len() + OPEN.len()
    }

    /// The opening tag was only text.
    fn give_up(&mut self, pieces: &mut Vec<ToolPiece>) {
        let text: String = self.held.drain(..self.body_start()).collect();
        self.emit(pieces, &text);
        self.inside = false;
    }

    fn emit(&mut self, pieces: &mut Vec<ToolPiece>, text: &str) {
        let text = if self.after_call {
            text.trim_start()
        } else {
            text
        };
        if !text.is_empty() {
            self.after_call = false;
            pieces.push(ToolPiece::Content(text.to_owned()));
        }
    }
}

enum Parsed {
    Call(ToolPiece),
    /// The JSON text ends too early.
    Unfinished,
    Malformed,
}

fn parse_call(body: &str) -> Parsed {
    let value: Value = match serde_json::from_str(body) {
        Ok(value) => value,
        Err(error) if error.is_eof() => return Parsed::Unfinished,
        Err(_) => return Parsed::Malformed,
    };
    let Some(name) = value.get("name").and_then(Value::as_str) else {
        return Parsed::Malformed;
    };
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        // Some models write the arguments as a text of JSON, as clients do.
        Some(Value::String(text)) => text.clone(),
        Some(arguments @ Value::Object(_)) => {
            // The form in which templates write arguments, so that a history repeats what the model wrote.
            match dumps(
                &TemplateValue::from(Serde(arguments)),
                &JsonStyle::default(),
            ) {
                Ok(text) => text,
                Err(_) => return Parsed::Malformed,
            }
        }
        Some(_) => return Parsed::Malformed,
    };
    Parsed::Call(ToolPiece::Call {
        id: fresh_id(),
        name: name.to_owned(),
        arguments,
    })
}

/// Unique in this process and, but for chance, between processes.
fn fresh_id() -> String {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "call_{:016x}{:08x}",
        KEY.get_or_init(RandomState::new).hash_one(number),
        number & 0xFFFF_FFFF
    )
}
