//! What a template can read, found out by rendering small conversations with it.

use serde_json::{Value, json};

/// The form of a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// One string.
    Text,
    /// A list of parts `{type, text}`.
    Parts,
}

/// The form of a tool call's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arguments {
    /// As the client sent them: a JSON text is written out as it is.
    AsSent,
    /// An object, also where the client sent its text.
    Mapping,
}

/// What a template can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) content: Content,
    pub(super) arguments: Arguments,
    /// A turn of tool calls may have null for its content.
    pub(super) reads_null_content: bool,
    /// The role `developer` has a meaning of its own.
    pub(super) knows_developer: bool,
}

const WORDS: &str = "probing words";
const ARGUMENTS: &str = r#"{"probing_key": "probing value"}"#;

impl Capabilities {
    /// Probes a template. `render` renders messages, or gives `None` when the template refuses them.
    pub(super) fn probe(source: &str, render: impl Fn(Value) -> Option<String>) -> Self {
        let shows = |messages: Value, needle: &str| {
            render(messages).is_some_and(|text| text.contains(needle))
        };

        let user = |content: Value| json!([{"role": "user", "content": content}]);
        let parts = json!([{"type": "text", "text": WORDS}]);
        let content = if !shows(user(json!(WORDS)), WORDS) && shows(user(parts.clone()), WORDS) {
            Content::Parts
        } else {
            Content::Text
        };

        let words = match content {
            Content::Text => json!(WORDS),
            Content::Parts => parts,
        };
        let called = |content: Value, arguments: Value| {
            let call = json!({
                "id": "call00000",
                "type": "function",
                "function": {"name": "probing_name", "arguments": arguments},
            });
            json!([
                {"role": "user", "content": words},
                {"role": "assistant", "content": content, "tool_calls": [call]},
            ])
        };
        let mapping: Value = json!({"probing_key": "probing value"});
        let arguments = if !shows(called(json!(""), json!(ARGUMENTS)), ARGUMENTS)
            && shows(called(json!(""), mapping.clone()), "probing_key")
        {
            Arguments::Mapping
        } else {
            Arguments::AsSent
        };
        let sample = match arguments {
            Arguments::AsSent => json!(ARGUMENTS),
            Arguments::Mapping => mapping,
        };
        let with_null = render(called(Value::Null, sample.clone()));
        let with_empty = render(called(json!(""), sample));
        let reads_null_content = match (with_null, with_empty) {
            (None, Some(_)) => false,
            (Some(null), _) => !null.contains("None"),
            (None, None) => true,
        };
        Self {
            content,
            arguments,
            reads_null_content,
            knows_developer: source.contains("developer"),
        }
    }
}
