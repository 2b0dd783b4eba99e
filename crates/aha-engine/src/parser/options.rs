use super::{ToolSyntax, reasoning};
use crate::tokenizer::Tokenizer;

/// How an answer is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParserOptions {
    /// Separate the reasoning from the answer.
    pub reasoning: bool,
    /// Look for tool calls, written in this syntax.
    pub tools: Option<ToolSyntax>,
    /// The prompt ends inside the reasoning.
    pub starts_in_reasoning: bool,
}

/// What a request wants of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputSwitches<'a> {
    /// Report reasoning apart from the answer; otherwise it stays in place with its tags.
    pub separate_reasoning: bool,
    /// Report tool calls apart from the answer: the request has tools and does not forbid their use.
    pub tools: bool,
    /// The text of the message that the answer continues, if it continues one.
    pub continued: Option<&'a str>,
}

impl ParserOptions {
    /// Decides from what the model knows (its template and vocabulary), what the prompt ends with and what the request
    /// wants. A prompt that ends with a closed block of reasoning (thinking turned off) gets an answer without any.
    pub fn decide(
        template: Option<&str>,
        tokenizer: &Tokenizer,
        prompt: &str,
        switches: OutputSwitches<'_>,
    ) -> Self {
        let position = match switches.continued {
            Some(begun) => position_in(begun),
            None => position_at_end(prompt),
        };
        let reasoning = switches.separate_reasoning
            && position != Position::After
            && knows(template, tokenizer, (reasoning::OPEN, reasoning::CLOSE));
        Self {
            reasoning,
            tools: ToolSyntax::of_model(template, tokenizer).filter(|_| switches.tools),
            starts_in_reasoning: reasoning && position == Position::Inside,
        }
    }
}

/// Whether a model writes tags, going by its template and vocabulary.
pub(super) fn knows(
    template: Option<&str>,
    tokenizer: &Tokenizer,
    (open, close): (&str, &str),
) -> bool {
    template.is_some_and(|text| text.contains(open) || text.contains(close))
        || (tokenizer.token_id(open).is_some() && tokenizer.token_id(close).is_some())
}

/// The tags among those that answers are searched for which are control tokens: they have no text unless they are
/// kept.
pub(crate) fn control_tags(template: Option<&str>, tokenizer: &Tokenizer, tools: bool) -> Vec<u32> {
    let calls = ToolSyntax::of_model(template, tokenizer).filter(|_| tools);
    [(reasoning::OPEN, reasoning::CLOSE)]
        .into_iter()
        .chain(calls.map(ToolSyntax::tags))
        .flat_map(|(open, close)| [open, close])
        .filter_map(|tag| tokenizer.token_id(tag))
        .filter(|id| tokenizer.is_special(*id))
        .collect()
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Before,
    Inside,
    After,
}

/// What a new turn's opening says. Tags elsewhere in the prompt belong to earlier turns or to what users wrote.
fn position_at_end(prompt: &str) -> Position {
    let end = prompt.trim_end();
    if end.ends_with(reasoning::OPEN) {
        Position::Inside
    } else if end.ends_with(reasoning::CLOSE) {
        Position::After
    } else {
        Position::Before
    }
}

/// What the begun turn says that an answer continues.
fn position_in(begun: &str) -> Position {
    let opened = begun.rfind(reasoning::OPEN);
    if opened.is_some() && opened > begun.rfind(reasoning::CLOSE) {
        Position::Inside
    } else if begun.trim().is_empty() {
        Position::Before
    } else {
        Position::After
    }
}
