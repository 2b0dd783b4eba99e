//! Types of parameters, for calls whose notation does not tell a number from its digits.

use serde_json::Value;
use std::collections::HashMap;

/// The parameters of the tools that a request offers, by function and name.
#[derive(Debug, Clone, Default)]
pub(super) struct ParameterTypes(HashMap<String, HashMap<String, Types>>);

/// JSON types that a value may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Types {
    string: bool,
    number: bool,
    boolean: bool,
    object: bool,
    array: bool,
    null: bool,
}

impl ParameterTypes {
    /// Reads OpenAI's tool definitions, `{"function": {"name": …, "parameters": {…}}}` or the function alone.
    pub(super) fn of_tools(tools: &[Value]) -> Self {
        let function = |tool| {
            let tool: &Value = tool;
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?;
            let properties = function.get("parameters")?.get("properties")?.as_object()?;
            let types = properties
                .iter()
                .map(|(key, schema)| (key.clone(), Types::of_schema(schema)))
                .collect();
            Some((name.to_owned(), types))
        };
        Self(tools.iter().filter_map(function).collect())
    }

    /// The JSON text that `text` stands for; `None` where it is a string.
    pub(super) fn json(&self, function: &str, parameter: &str, text: &str) -> Option<String> {
        let types = self.0.get(function)?.get(parameter)?;
        let text = text.trim();
        // Templates write Python's names for these.
        let text = match text {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let value: Value = serde_json::from_str(text).ok()?;
        let fits = match &value {
            Value::Null => types.null,
            // A text that may be a string as well is one.
            Value::Bool(_) => types.boolean && !types.string,
            Value::Number(_) => types.number && !types.string,
            Value::Array(_) => types.array && !types.string,
            Value::Object(_) => types.object && !types.string,
            Value::String(_) => false,
        };
        match value {
            _ if !fits => None,
            Value::Array(_) | Value::Object(_) => super::calls::json_text(&value),
            _ => Some(text.to_owned()),
        }
    }
}

impl Types {
    /// Nothing is known of a schema without types; its values are strings.
    fn of_schema(schema: &Value) -> Self {
        let mut types = Self::default();
        match schema.get("type") {
            Some(Value::String(name)) => types.allow(name),
            Some(Value::Array(names)) => {
                for name in names.iter().filter_map(Value::as_str) {
                    types.allow(name);
                }
            }
            _ => {
                for key in ["anyOf", "oneOf", "allOf"] {
                    for part in schema
                        .get(key)
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                    {
                        types = types.or(Self::of_schema(part));
                    }
                }
                let values = schema.get("enum").and_then(Value::as_array);
                for value in values.into_iter().flatten().chain(schema.get("const")) {
                    types.allow(name_of(value));
                }
            }
        }
        types.null |= schema.get("nullable") == Some(&Value::Bool(true));
        types
    }

    fn allow(&mut self, name: &str) {
        match name {
            "string" => self.string = true,
            "number" | "integer" => self.number = true,
            "boolean" => self.boolean = true,
            "object" => self.object = true,
            "array" => self.array = true,
            "null" => self.null = true,
            _ => {}
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            string: self.string || other.string,
            number: self.number || other.number,
            boolean: self.boolean || other.boolean,
            object: self.object || other.object,
            array: self.array || other.array,
            null: self.null || other.null,
        }
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
