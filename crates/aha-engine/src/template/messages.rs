//! The conversation in the form that a template expects.

use super::capabilities::{Arguments, Capabilities, Content};
use crate::chat::{Chat, Message, Part};
use crate::error::EngineError;
use serde_json::{Map, Value, json};

/// The messages as template variables, adapted to what the template can read.
pub(super) fn to_values(
    chat: &Chat,
    capabilities: &Capabilities,
) -> Result<Vec<Value>, EngineError> {
    chat.messages
        .iter()
        .enumerate()
        .map(|(index, message)| to_value(index, message, capabilities))
        .collect()
}

fn to_value(
    index: usize,
    message: &Message,
    capabilities: &Capabilities,
) -> Result<Value, EngineError> {
    let mut value = Map::new();
    let role = match message.role.as_str() {
        "developer" if !capabilities.knows_developer => "system",
        role => role,
    };
    value.insert("role".to_owned(), json!(role));
    value.insert("content".to_owned(), content(message, capabilities));
    if let Some(reasoning) = &message.reasoning_content {
        value.insert("reasoning_content".to_owned(), json!(reasoning));
    }
    if !message.tool_calls.is_empty() {
        let mut calls = Vec::with_capacity(message.tool_calls.len());
        for (number, call) in message.tool_calls.iter().enumerate() {
            let arguments =
                arguments(&call.arguments, capabilities.arguments).ok_or_else(|| {
                    EngineError::invalid(
                        format!("messages[{index}].tool_calls[{number}].function.arguments"),
                        "this model's chat template needs the arguments as a JSON object",
                    )
                })?;
            calls.push(json!({
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": arguments},
            }));
        }
        value.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    if let Some(id) = &message.tool_call_id {
        value.insert("tool_call_id".to_owned(), json!(id));
    }
    if let Some(name) = &message.name {
        value.insert("name".to_owned(), json!(name));
    }
    Ok(Value::Object(value))
}

fn content(message: &Message, capabilities: &Capabilities) -> Value {
    // Templates tell a turn of nothing but calls by its missing content, where they can.
    if message.content.is_empty()
        && !message.tool_calls.is_empty()
        && capabilities.reads_null_content
    {
        return Value::Null;
    }
    // A template that shows media reads parts: a string has no place for them.
    let form = if message.media().next().is_some() {
        Content::Parts
    } else {
        capabilities.content
    };
    match form {
        Content::Text => Value::String(message.joined_text()),
        Content::Parts => message
            .content
            .iter()
            .map(|part| match part {
                Part::Text(text) => json!({"type": "text", "text": text}),
                Part::Media(media) => json!({"type": media.kind().name()}),
            })
            .collect(),
    }
}

/// `None` when a mapping is needed and the text is not one.
fn arguments(sent: &Value, wanted: Arguments) -> Option<Value> {
    match (wanted, sent) {
        (Arguments::Mapping, Value::String(text)) if text.trim().is_empty() => Some(json!({})),
        (Arguments::Mapping, Value::String(text)) => {
            serde_json::from_str(text).ok().filter(Value::is_object)
        }
        _ => Some(sent.clone()),
    }
}
