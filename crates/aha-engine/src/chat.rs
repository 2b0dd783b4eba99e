//! The domain's conversation: what every face (HTTP, CLI, library) turns its input into.

use crate::media::Media;
use serde_json::{Map, Value};
use std::sync::Arc;

/// One piece of a message's content.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Plain text.
    Text(String),
    /// A picture, clip or recording.
    Media(Arc<Media>),
}

/// A call of a tool that the assistant made in an earlier turn.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Identifier that the tool's answer refers to.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Arguments: a JSON object, or the text as the client sent it when that is not JSON.
    pub arguments: Value,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`; templates may know others.
    pub role: String,
    /// The parts in order; empty when the client sent null.
    pub content: Vec<Part>,
    /// Reasoning of an earlier assistant turn.
    pub reasoning_content: Option<String>,
    /// Calls made in an earlier assistant turn.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a `tool` message answers.
    pub tool_call_id: Option<String>,
    /// Optional name of the speaker or tool.
    pub name: Option<String>,
}

impl Message {
    /// A message of nothing yet; [`with_text`](Self::with_text) and [`with_media`](Self::with_media) add to it.
    pub fn new(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            ..Self::default()
        }
    }

    /// A message of one text part.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: vec![Part::Text(text.into())],
            ..Self::default()
        }
    }

    /// The same with a text after what it holds.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.content.push(Part::Text(text.into()));
        self
    }

    /// The same with a picture, clip or recording after what it holds.
    #[must_use]
    pub fn with_media(mut self, media: impl Into<Arc<Media>>) -> Self {
        self.content.push(Part::Media(media.into()));
        self
    }

    /// The text parts joined, as templates that expect a string need them.
    pub fn joined_text(&self) -> String {
        self.content
            .iter()
            .filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Media(_) => None,
            })
            .collect()
    }

    /// Its media in order.
    pub fn media(&self) -> impl Iterator<Item = &Arc<Media>> {
        self.content.iter().filter_map(|part| match part {
            Part::Media(media) => Some(media),
            Part::Text(_) => None,
        })
    }
}

/// A conversation to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
    /// Tool definitions as the client sent them (key order kept).
    pub tools: Vec<Value>,
    /// Extra variables of the template, e.g. `enable_thinking`.
    pub template_kwargs: Map<String, Value>,
    /// Ask the template for the assistant's opening (default true).
    pub add_generation_prompt: bool,
    /// Continue the last message instead of opening a new one (default false).
    pub continue_final_message: bool,
}

impl Default for Chat {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            template_kwargs: Map::new(),
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }
}

impl Chat {
    /// A conversation of one message.
    pub fn of(message: Message) -> Self {
        Self {
            messages: vec![message],
            ..Self::default()
        }
    }

    /// A conversation of one user turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self {
            messages: vec![Message::text("user", text)],
            ..Self::default()
        }
    }
}
