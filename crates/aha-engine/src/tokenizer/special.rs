use serde_json::{Map, Value};

/// The special tokens that a checkpoint names (`bos_token`, `eos_token`, …), in the form that chat templates read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecialTokens {
    variables: Map<String, Value>,
}

impl SpecialTokens {
    /// The text of the token with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).and_then(Value::as_str)
    }

    /// Names a token; the last text given counts.
    pub fn set(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.variables
            .insert(name.into(), Value::String(text.into()));
    }

    /// All of them as template variables: a string for each name, and the list `additional_special_tokens`.
    pub fn variables(&self) -> &Map<String, Value> {
        &self.variables
    }

    /// Takes what tokenizer_config.json or special_tokens_map.json names and is not named yet. Tokens are written as
    /// strings or as objects with a `content`; anything else with such a name is not a token.
    pub(super) fn absorb(&mut self, config: &Value) {
        let Value::Object(config) = config else {
            return;
        };
        for (name, value) in config {
            if self.variables.contains_key(name) {
                continue;
            }
            let token = if name.ends_with("_token") {
                token_text(value).map(|text| Value::String(text.to_owned()))
            } else if name == "additional_special_tokens" {
                value.as_array().map(|tokens| {
                    let texts = tokens.iter().filter_map(token_text);
                    Value::Array(texts.map(|text| Value::String(text.to_owned())).collect())
                })
            } else {
                None
            };
            if let Some(token) = token {
                self.variables.insert(name.clone(), token);
            }
        }
    }

    /// Every text named here.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.variables
            .values()
            .flat_map(|value| match value {
                Value::Array(tokens) => tokens.as_slice(),
                single => std::slice::from_ref(single),
            })
            .filter_map(Value::as_str)
    }
}

fn token_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(token) => token.get("content").and_then(Value::as_str),
        _ => None,
    }
}
