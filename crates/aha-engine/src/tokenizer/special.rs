use serde_json::{Map, Value};

/// Names of special tokens that every tokenizer may have.
const TEMPLATE_NAMES: [&str; 8] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
];

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

    /// Those that chat templates see, as in the reference: a string for each of the usual names, and the list
    /// `additional_special_tokens`. Names of one family's own (`image_token`) are not among them: PaddleOCR-VL's
    /// template means something else by that.
    pub fn variables(&self) -> Map<String, Value> {
        let seen = self.variables.iter();
        seen.filter(|(name, _)| TEMPLATE_NAMES.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_see_the_usual_names_only() {
        let mut tokens = SpecialTokens::default();
        tokens.absorb(&serde_json::json!({
            "cls_token": "<cls>", "eos_token": {"content": "</s>"}, "image_token": "<image>",
            "additional_special_tokens": ["<a>"],
        }));
        let names: Vec<String> = tokens.variables().keys().cloned().collect();
        assert_eq!(
            names,
            ["cls_token", "eos_token", "additional_special_tokens"]
        );
        assert!(tokens.texts().any(|text| text == "<image>"));
    }
}
