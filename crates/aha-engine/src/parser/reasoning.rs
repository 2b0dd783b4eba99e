use crate::stop::unfinished;

pub(super) const OPEN: &str = "<think>";
pub(super) const CLOSE: &str = "</think>";

/// Text on one side of the end of the reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReasoningPiece {
    /// Part of the reasoning.
    Reasoning(String),
    /// Part of the answer.
    Content(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before anything but whitespace: an opening tag may come.
    Start,
    /// After the opening tag, before its first text.
    Opened,
    Inside,
    /// After the closing tag, before the first text of the answer.
    Closed,
    Outside,
}

/// Divides `<think>reasoning</think>answer`. The tags and the line breaks around them belong to neither side. An
/// answer that does not begin with the opening tag, when the prompt did not open it either, has no reasoning; if the
/// closing tag never comes, everything is reasoning.
#[derive(Debug, Clone)]
pub struct ReasoningParser {
    state: State,
    held: String,
}

impl ReasoningParser {
    /// A parser at the beginning of an answer; `inside` when the prompt ends with an open tag.
    pub fn new(inside: bool) -> Self {
        Self {
            state: if inside { State::Opened } else { State::Start },
            held: String::new(),
        }
    }

    /// Takes more text and gives what is known to be on one side.
    pub fn push(&mut self, text: &str) -> Vec<ReasoningPiece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// Ends the answer.
    pub fn finish(&mut self) -> Vec<ReasoningPiece> {
        let held = std::mem::take(&mut self.held);
        let (reasoning, text) = match self.state {
            State::Start | State::Outside => (false, held.as_str()),
            State::Closed => (false, ""),
            State::Opened | State::Inside => (true, held.trim_end_matches('\n')),
        };
        match (text.is_empty(), reasoning) {
            (true, _) => Vec::new(),
            (false, true) => vec![ReasoningPiece::Reasoning(text.to_owned())],
            (false, false) => vec![ReasoningPiece::Content(text.to_owned())],
        }
    }

    /// One change of state or one piece of output; false when more text is needed.
    fn step(&mut self, pieces: &mut Vec<ReasoningPiece>) -> bool {
        match self.state {
            State::Start => {
                let begun = self.held.trim_start();
                if let Some(rest) = begun.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Opened;
                } else if OPEN.starts_with(begun) {
                    return false;
                } else {
                    self.state = State::Outside;
                }
                true
            }
            State::Opened | State::Closed => {
                let skipped = self.held.len() - self.held.trim_start_matches('\n').len();
                self.held.drain(..skipped);
                if self.held.is_empty() {
                    return false;
                }
                self.state = if self.state == State::Opened {
                    State::Inside
                } else {
                    State::Outside
                };
                true
            }
            State::Inside => {
                let end = self.held.find(CLOSE);
                let final_part = match end {
                    Some(end) => &self.held[..end],
                    None => &self.held[..self.held.len() - unfinished(&self.held, CLOSE)],
                };
                let text = final_part.trim_end_matches('\n').to_owned();
                match end {
                    Some(end) => {
                        self.held.drain(..end + CLOSE.len());
                        self.state = State::Closed;
                    }
                    None => {
                        self.held.drain(..text.len());
                    }
                }
                if !text.is_empty() {
                    pieces.push(ReasoningPiece::Reasoning(text));
                }
                end.is_some()
            }
            State::Outside => {
                if !self.held.is_empty() {
                    pieces.push(ReasoningPiece::Content(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }
}
