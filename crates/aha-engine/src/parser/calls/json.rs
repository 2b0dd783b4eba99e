//! `{"name": …, "arguments": {…}}`, or a list of such objects.

use super::{Call, Fault};
use crate::template::{JsonStyle, dumps};
use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::Value;

pub(super) fn parse(body: &str) -> Result<Vec<Call>, Fault> {
    let value: Value = serde_json::from_str(body).map_err(|error| {
        if error.is_eof() {
            Fault::Unfinished
        } else {
            Fault::Malformed
        }
    })?;
    match value {
        Value::Array(items) => items.iter().map(call).collect(),
        other => Ok(vec![call(&other)?]),
    }
}

fn call(value: &Value) -> Result<Call, Fault> {
    let name = value
        .get("name")
        .and_then(Value::as_str)
        .ok_or(Fault::Malformed)?;
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        // Some models write the arguments as a text of JSON, as clients do.
        Some(Value::String(text)) => text.clone(),
        Some(arguments @ Value::Object(_)) => text_of(arguments)?,
        Some(_) => return Err(Fault::Malformed),
    };
    Ok(Call {
        name: name.to_owned(),
        arguments,
    })
}

/// The form in which templates write arguments, so that a history repeats what the model wrote.
pub(super) fn text_of(value: &Value) -> Result<String, Fault> {
    dumps(&TemplateValue::from(Serde(value)), &JsonStyle::default()).map_err(|_| Fault::Malformed)
}

/// Writes an object whose values are JSON texts already, in the same form.
pub(super) fn object<'a>(
    entries: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<String, Fault> {
    let mut text = String::from("{");
    for (key, value) in entries {
        if text.len() > 1 {
            text.push_str(", ");
        }
        text.push_str(&string(key)?);
        text.push_str(": ");
        text.push_str(value);
    }
    text.push('}');
    Ok(text)
}

/// A text in quotes.
pub(super) fn string(text: &str) -> Result<String, Fault> {
    text_of(&Value::String(text.to_owned()))
}
