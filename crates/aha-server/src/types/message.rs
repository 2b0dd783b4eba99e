//! Messages and tools of a chat request.

use crate::error::ApiError;
use crate::types::fields::{Fields, wrong_type};
use crate::types::media::{MediaPart, Read, read_part};
use aha_engine::{MediaWishes, Message, Part, ToolCall};
use serde_json::{Map, Value};

/// The roles that a message can have.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Messages, and the media that are to be read and put into them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Messages {
    pub(crate) messages: Vec<Message>,
    /// In the order of their places.
    pub(crate) media: Vec<MediaPart>,
}

/// Reads the `messages` of a chat; `wishes` are the request's for all media.
pub(crate) fn messages(values: Vec<Value>, wishes: MediaWishes) -> Result<Messages, ApiError> {
    if values.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "'messages' must hold at least one message",
        ));
    }
    let mut messages = Vec::with_capacity(values.len());
    let mut media = Vec::new();
    let mut assistant_spoke = false;
    for (index, value) in values.into_iter().enumerate() {
        let place = (index, wishes);
        let message = message(value, &format!("messages[{index}]"), place, &mut media)?;
        if message.role == "tool" && !assistant_spoke {
            return Err(ApiError::invalid(
                format!("messages[{index}].role"),
                "a message of role 'tool' must follow the assistant message that made the call",
            ));
        }
        assistant_spoke |= message.role == "assistant";
        messages.push(message);
    }
    Ok(Messages { messages, media })
}

fn message(
    value: Value,
    path: &str,
    place: (usize, MediaWishes),
    media: &mut Vec<MediaPart>,
) -> Result<Message, ApiError> {
    let mut fields = Fields::of(value, path.to_owned())?;
    let role_path = fields.path("role");
    let role = fields
        .string("role")?
        .ok_or_else(|| ApiError::missing(&role_path, format!("'{role_path}' is missing")))?;
    if !ROLES.contains(&role.as_str()) {
        return Err(ApiError::invalid(
            &role_path,
            format!("'{role_path}' must be one of {}", ROLES.join(", ")),
        ));
    }
    if fields.has("function_call") {
        let path = fields.path("function_call");
        let message = format!("'{path}' is not supported: use tool_calls");
        return Err(ApiError::unsupported(path, message));
    }
    let tool_calls = tool_calls(&mut fields)?;
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(value) => content(value, &content_path, place, media)?,
        // An assistant that only called tools said nothing.
        None if role == "assistant" => Vec::new(),
        None => {
            return Err(ApiError::missing(
                &content_path,
                format!("'{content_path}' is missing: a message of role '{role}' needs it"),
            ));
        }
    };
    Ok(Message {
        content,
        reasoning_content: match fields.string("reasoning_content")? {
            Some(text) => Some(text),
            None => fields.string("reasoning")?,
        },
        tool_calls,
        tool_call_id: fields.string("tool_call_id")?,
        name: fields.string("name")?,
        role,
    })
}

/// Content: a string, or an array of parts. Media go to `media`, with the place that is left for them.
fn content(
    value: Value,
    path: &str,
    (message, wishes): (usize, MediaWishes),
    media: &mut Vec<MediaPart>,
) -> Result<Vec<Part>, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(vec![Part::Text(text)]),
        Value::Array(parts) => parts,
        other => {
            return Err(wrong_type(
                path,
                "a string or an array of content parts",
                &other,
            ));
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (place, value) in parts.into_iter().enumerate() {
        match part(value, format!("{path}[{place}]"), wishes)? {
            Content::Text(text) => texts.push(Part::Text(text)),
            Content::Media(read) => media.push(MediaPart {
                message,
                place,
                path: read.path,
                kind: read.kind,
                form: read.form,
                sources: read.sources,
                wishes: read.wishes,
                pages: read.pages,
            }),
        }
    }
    Ok(texts)
}

enum Content {
    Text(String),
    Media(Read),
}

fn part(value: Value, path: String, wishes: MediaWishes) -> Result<Content, ApiError> {
    if let Value::String(text) = value {
        return Ok(Content::Text(text));
    }
    let mut fields = Fields::of(value, path)?;
    let type_path = fields.path("type");
    let kind = fields
        .string("type")?
        .ok_or_else(|| ApiError::missing(&type_path, format!("'{type_path}' is missing")))?;
    if let Some(read) = read_part(&kind, &mut fields, wishes)? {
        return Ok(Content::Media(read));
    }
    // Reasoning models' clients send earlier answers back as they came.
    if !matches!(kind.as_str(), "text" | "input_text" | "output_text") {
        let shown: String = kind.chars().take(50).collect();
        return Err(ApiError::unsupported(
            &type_path,
            format!("'{type_path}' is '{shown}', which is no content part that this server knows"),
        ));
    }
    let text_path = fields.path("text");
    fields
        .string("text")?
        .map(Content::Text)
        .ok_or_else(|| ApiError::missing(&text_path, format!("'{text_path}' is missing")))
}

fn tool_calls(message: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let path = message.path("tool_calls");
    let calls = message.array("tool_calls")?.unwrap_or_default();
    calls
        .into_iter()
        .enumerate()
        .map(|(index, value)| tool_call(value, format!("{path}[{index}]"), index))
        .collect()
}

fn tool_call(value: Value, path: String, index: usize) -> Result<ToolCall, ApiError> {
    let mut fields = Fields::of(value, path)?;
    let id = fields
        .string("id")?
        .unwrap_or_else(|| format!("call_{index}"));
    let function_path = fields.path("function");
    let function = fields.object("function")?.ok_or_else(|| {
        ApiError::missing(&function_path, format!("'{function_path}' is missing"))
    })?;
    let mut function = Fields::of(Value::Object(function), function_path)?;
    let name_path = function.path("name");
    let name = function
        .string("name")?
        .ok_or_else(|| ApiError::missing(&name_path, format!("'{name_path}' is missing")))?;
    let arguments_path = function.path("arguments");
    let arguments = match function.take("arguments") {
        None => Value::Object(Map::new()),
        Some(Value::String(text)) => arguments_of_text(text),
        Some(object @ Value::Object(_)) => object,
        Some(other) => {
            return Err(wrong_type(
                &arguments_path,
                "a string of JSON or an object",
                &other,
            ));
        }
    };
    Ok(ToolCall {
        id,
        name,
        arguments,
    })
}

/// Arguments as OpenAI sends them: JSON in a string. Text that is no JSON object stays text.
fn arguments_of_text(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Value::Object(map),
        _ => Value::String(text),
    }
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`: the tools that the template is to show.
pub(crate) fn tools(fields: &mut Fields) -> Result<Vec<Value>, ApiError> {
    if fields.has("functions") || fields.has("function_call") {
        return Err(ApiError::unsupported(
            "functions",
            "'functions' and 'function_call' are not supported: use 'tools' and 'tool_choice'",
        ));
    }
    let tools = fields.array("tools")?.unwrap_or_default();
    for (index, tool) in tools.iter().enumerate() {
        check_tool(tool, &format!("tools[{index}]"))?;
    }
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    match fields.take("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "auto" => {}
        // Nothing is called, so nothing has to be enforced.
        Some(Value::String(choice)) if choice == "none" => return Ok(Vec::new()),
        Some(Value::String(choice)) if choice == "required" => {
            return Err(cannot_force("'required'"));
        }
        Some(Value::Object(_)) => return Err(cannot_force("a named function")),
        Some(Value::String(_)) => {
            return Err(ApiError::invalid(
                "tool_choice",
                "'tool_choice' must be \"none\" or \"auto\"",
            ));
        }
        Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    }
    if !parallel && !tools.is_empty() {
        return Err(ApiError::unsupported(
            "parallel_tool_calls",
            "'parallel_tool_calls': false is not supported: the number of calls cannot be enforced",
        ));
    }
    for (index, tool) in tools.iter().enumerate() {
        refuse_strict(tool, &format!("tools[{index}]"))?;
    }
    Ok(tools)
}

/// Refuses `strict`, which promises arguments that fit the schema.
fn refuse_strict(tool: &Value, path: &str) -> Result<(), ApiError> {
    for (holder, path) in [
        (tool, format!("{path}.strict")),
        (&tool["function"], format!("{path}.function.strict")),
    ] {
        match holder.get("strict") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) => {
                let message = format!(
                    "'{path}': true is not supported: arguments cannot be held to the schema; leave it out or send false"
                );
                return Err(ApiError::unsupported(path, message));
            }
            Some(other) => return Err(wrong_type(&path, "true or false", other)),
        }
    }
    Ok(())
}

fn cannot_force(what: &str) -> ApiError {
    ApiError::unsupported(
        "tool_choice",
        format!("'tool_choice' {what} is not supported: a call cannot be enforced; use \"auto\""),
    )
}

fn check_tool(tool: &Value, path: &str) -> Result<(), ApiError> {
    let Value::Object(map) = tool else {
        return Err(wrong_type(path, "an object", tool));
    };
    let kind_path = format!("{path}.type");
    match map.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(_)) => {
            return Err(ApiError::unsupported(
                &kind_path,
                format!("'{kind_path}' must be \"function\""),
            ));
        }
        Some(other) => return Err(wrong_type(&kind_path, "a string", other)),
    }
    // Some clients send the function without its wrapper; templates take both.
    let (function, name_path) = match map.get("function") {
        Some(Value::Object(function)) => (function, format!("{path}.function.name")),
        Some(other) => return Err(wrong_type(&format!("{path}.function"), "an object", other)),
        None => (map, format!("{path}.name")),
    };
    match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() => Ok(()),
        Some(Value::String(_)) => Err(ApiError::invalid(
            &name_path,
            format!("'{name_path}' must not be empty"),
        )),
        Some(other) => Err(wrong_type(&name_path, "a string", other)),
        None => Err(ApiError::missing(
            &name_path,
            format!("'{name_path}' is missing"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_all(value: Value) -> Result<Messages, ApiError> {
        let Value::Array(values) = value else {
            panic!("not an array")
        };
        messages(values, MediaWishes::default())
    }

    fn read(value: Value) -> Result<Vec<Message>, ApiError> {
        read_all(value).map(|read| read.messages)
    }

    fn param(value: Value) -> String {
        read(value).unwrap_err().body.param.unwrap()
    }

    #[test]
    fn content_is_a_string_or_text_parts() {
        let read = read(json!([
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]))
        .unwrap();
        assert_eq!(read[0], Message::text("developer", "be kind"));
        assert_eq!(
            read[1].content,
            vec![Part::Text("a".into()), Part::Text("b".into())]
        );
    }

    #[test]
    fn faults_name_their_place() {
        assert_eq!(param(json!([])), "messages");
        assert_eq!(param(json!([3])), "messages[0]");
        assert_eq!(param(json!([{"content": "x"}])), "messages[0].role");
        assert_eq!(
            param(json!([{"role": "wizard", "content": "x"}])),
            "messages[0].role"
        );
        assert_eq!(param(json!([{"role": "user"}])), "messages[0].content");
        assert_eq!(
            param(json!([{"role": "user", "content": null}])),
            "messages[0].content"
        );
        assert_eq!(
            param(json!([{"role": "user", "content": 1}])),
            "messages[0].content"
        );
        let unknown = json!([{"role": "user", "content": [
            {"type": "text", "text": "see"}, {"type": "hologram", "hologram": "x"}]}]);
        assert_eq!(param(unknown), "messages[0].content[1].type");
        assert_eq!(
            param(json!([{"role": "tool", "content": "3", "tool_call_id": "x"}])),
            "messages[0].role"
        );
        assert_eq!(
            param(json!([{"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]}])),
            "messages[0].tool_calls[0].function.name"
        );
    }

    #[test]
    fn media_are_kept_apart_with_their_places() {
        let read = read_all(json!([
            {"role": "system", "content": "s"},
            {"role": "user", "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "u"}},
                {"type": "text", "text": "b"},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]},
        ]))
        .unwrap();
        let texts = vec![Part::Text("a".into()), Part::Text("b".into())];
        assert_eq!(read.messages[1].content, texts);
        let places: Vec<_> = read
            .media
            .iter()
            .map(|part| (part.message, part.place, part.path.as_str()))
            .collect();
        assert_eq!(
            places,
            [
                (1, 1, "messages[1].content[1].image_url"),
                (1, 3, "messages[1].content[3].input_audio")
            ]
        );
    }

    #[test]
    fn tool_calls_of_the_past_become_objects() {
        let read = read(json!([
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": {"y": 2}}},
                {"type": "function", "function": {"name": "h", "arguments": "not json"}},
                {"id": "d", "function": {"name": "i", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "a", "content": "ok"},
        ]))
        .unwrap();
        let arguments: Vec<_> = read[1]
            .tool_calls
            .iter()
            .map(|call| &call.arguments)
            .collect();
        assert_eq!(
            arguments,
            [
                &json!({"x": 1}),
                &json!({"y": 2}),
                &json!("not json"),
                &json!({})
            ]
        );
        assert_eq!(read[1].tool_calls[2].id, "call_2");
        assert!(read[1].content.is_empty());
        assert_eq!(read[2].tool_call_id.as_deref(), Some("a"));
    }

    #[test]
    fn tool_choice_hides_shows_or_is_refused() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let read = |choice: Value| {
            let body = json!({"tools": [tool.clone()], "tool_choice": choice});
            tools(&mut Fields::of(body, String::new()).unwrap())
        };
        assert_eq!(read(Value::Null).unwrap().len(), 1);
        assert_eq!(read(json!("auto")).unwrap().len(), 1);
        assert_eq!(read(json!("none")).unwrap().len(), 0);
        for forced in [
            json!("required"),
            json!({"type": "function", "function": {"name": "f"}}),
            json!("x"),
            json!(1),
        ] {
            assert_eq!(
                read(forced).unwrap_err().body.param.as_deref(),
                Some("tool_choice")
            );
        }
        for (bad, param) in [
            (json!([1]), "tools[0]"),
            (
                json!([{"type": "function", "function": {}}]),
                "tools[0].function.name",
            ),
            (json!([{"type": "web_search"}]), "tools[0].type"),
        ] {
            let mut fields = Fields::of(json!({"tools": bad}), String::new()).unwrap();
            assert_eq!(
                tools(&mut fields).unwrap_err().body.param.as_deref(),
                Some(param)
            );
        }
    }

    #[test]
    fn promises_about_calls_are_refused_unless_nothing_is_called() {
        let read = |extra: Value| {
            let mut body = json!({"tools": [{"type": "function", "function": {"name": "f"}}]});
            for (name, value) in extra.as_object().unwrap() {
                body[name] = value.clone();
            }
            tools(&mut Fields::of(body, String::new()).unwrap())
        };
        let strict = json!([{"type": "function", "function": {"name": "f", "strict": true}}]);
        let bare = json!([{"name": "f", "strict": true}]);
        for (extra, param) in [
            (json!({"parallel_tool_calls": false}), "parallel_tool_calls"),
            (json!({"tools": strict.clone()}), "tools[0].function.strict"),
            (json!({"tools": bare}), "tools[0].strict"),
        ] {
            let error = read(extra.clone()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{extra}");
            assert_eq!(error.body.code, Some("unsupported_value"), "{extra}");
        }
        let lax = json!([{"type": "function", "function": {"name": "f", "strict": false}}]);
        for extra in [
            json!({"parallel_tool_calls": true, "tools": lax}),
            json!({"parallel_tool_calls": false, "tools": []}),
            json!({"parallel_tool_calls": false, "tools": strict, "tool_choice": "none"}),
        ] {
            read(extra).unwrap();
        }
        let odd = json!({"tools": [{"function": {"name": "f", "strict": "yes"}}]});
        assert_eq!(read(odd).unwrap_err().body.code, Some("invalid_type"));
    }
}
