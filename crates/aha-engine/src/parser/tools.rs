use super::calls::{Call, Parsed, ToolSyntax};
use super::schema::ParameterTypes;
use crate::stop::unfinished;
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Finds calls in one of the syntaxes. What is not a well-formed call stays text, its tags included. The white space
/// before and after a call is layout and dropped.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    syntax: ToolSyntax,
    types: ParameterTypes,
    open: &'static str,
    close: &'static str,
    held: String,
    /// The held text begins with an opening tag.
    inside: bool,
    /// Bytes of the held text already searched for the closing tag.
    searched: usize,
    after_call: bool,
}

impl ToolCallParser {
    /// A parser at the beginning of an answer to a request that offers `tools`.
    pub fn new(syntax: ToolSyntax, tools: &[Value]) -> Self {
        let (open, close) = syntax.tags();
        Self {
            syntax,
            types: ParameterTypes::of_tools(tools),
            open,
            close,
            held: String::new(),
            inside: false,
            searched: 0,
            after_call: false,
        }
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
            match self.parse(self.held.len()) {
                Parsed::Calls(calls) => {
                    pieces.extend(calls.into_iter().map(ToolPiece::from));
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
        if let Some(start) = self.held.find(self.open) {
            // Whether the space before the tag is layout is known when the call was read.
            let text = self.held[..start].trim_end().to_owned();
            self.emit(pieces, &text);
            self.held.drain(..text.len());
            self.inside = true;
            self.searched = 0;
            return true;
        }
        let certain = &self.held[..self.held.len() - unfinished(&self.held, self.open)];
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
            let Some(found) = self.held[from..].find(self.close) else {
                self.searched = self.held.len() - unfinished(&self.held[from..], self.close);
                return false;
            };
            let end = from + found;
            match self.parse(end) {
                Parsed::Calls(calls) => {
                    pieces.extend(calls.into_iter().map(ToolPiece::from));
                    self.held.drain(..end + self.close.len());
                    self.inside = false;
                    self.after_call = true;
                    return true;
                }
                // The tag may stand in an argument: the call ends at a later one.
                Parsed::Unfinished => self.searched = end + self.close.len(),
                Parsed::Malformed => {
                    self.give_up(pieces);
                    return true;
                }
            }
        }
    }

    /// The held call, if it ends at `end`.
    fn parse(&self, end: usize) -> Parsed {
        let body = &self.held[self.body_start()..end];
        self.syntax.parse(body, &self.types)
    }

    /// Where the call begins in the held text: behind white space and the opening tag.
    fn body_start(&self) -> usize {
        self.held.len() - self.held.trim_start().len() + self.open.len()
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

impl From<Call> for ToolPiece {
    fn from(Call { name, arguments }: Call) -> Self {
        Self::Call {
            id: fresh_id(),
            name,
            arguments,
        }
    }
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
