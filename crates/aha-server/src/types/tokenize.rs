//! `POST /tokenize` and `POST /detokenize`, with the field names of both vLLM and llama-server.

use crate::error::ApiError;
use crate::types::chat::chat;
use crate::types::fields::Fields;
use crate::types::media::RequestMedia;
use aha_engine::Chat;
use serde::Serialize;

/// What is to become tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenizeInput {
    /// Plain text.
    Text {
        text: String,
        /// Whether the tokenizer puts its own special tokens around the text (default true).
        add_special_tokens: bool,
    },
    /// A conversation, through the chat template, and the media that are to be read into it.
    Chat(Chat, RequestMedia),
}

/// A request to tokenise.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenizeRequest {
    pub(crate) model: Option<String>,
    pub(crate) input: TokenizeInput,
}

impl TokenizeRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        if fields.has("messages") {
            let (chat, media) = chat(&mut fields)?;
            return Ok(Self {
                model,
                input: TokenizeInput::Chat(chat, media),
            });
        }
        let mut text = None;
        for name in ["prompt", "content", "text"] {
            text = text.or(fields.string(name)?);
        }
        let text = text.ok_or_else(|| {
            ApiError::missing(
                "prompt",
                "one of 'prompt', 'content', 'text' or 'messages' is needed",
            )
        })?;
        let add_special_tokens = match fields.boolean("add_special_tokens")? {
            Some(add) => add,
            None => fields.boolean("add_special")?.unwrap_or(true),
        };
        Ok(Self {
            model,
            input: TokenizeInput::Text {
                text,
                add_special_tokens,
            },
        })
    }
}

/// The answer of `POST /tokenize`.
#[derive(Debug, Serialize)]
pub(crate) struct TokenizeResponse {
    pub(crate) count: usize,
    pub(crate) max_model_len: usize,
    pub(crate) tokens: Vec<u32>,
}

/// A request to turn tokens into text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DetokenizeRequest {
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<u32>,
    /// Leave special tokens out of the text (default false: the text is that of all tokens).
    pub(crate) skip_special_tokens: bool,
}

impl DetokenizeRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        Ok(Self {
            model: fields.string("model")?,
            tokens: fields
                .token_ids("tokens")?
                .ok_or_else(|| ApiError::missing("tokens", "'tokens' is missing"))?,
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(false),
        })
    }
}

/// The answer of `POST /detokenize`: the same text under both names.
#[derive(Debug, Serialize)]
pub(crate) struct DetokenizeResponse {
    pub(crate) prompt: String,
    pub(crate) content: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(body: Value) -> Result<TokenizeRequest, ApiError> {
        TokenizeRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn text_has_three_names() {
        for name in ["prompt", "content", "text"] {
            let input = parse(json!({name: "hi", "add_special_tokens": false}))
                .unwrap()
                .input;
            assert_eq!(
                input,
                TokenizeInput::Text {
                    text: "hi".into(),
                    add_special_tokens: false
                }
            );
        }
        assert!(parse(json!({})).is_err());
        assert!(parse(json!({"text": 1})).is_err());
    }

    #[test]
    fn messages_go_through_the_template() {
        let body = json!({"messages": [{"role": "user", "content": "hi"}],
                          "add_generation_prompt": false});
        let TokenizeInput::Chat(chat, _) = parse(body).unwrap().input else {
            panic!("not a chat")
        };
        assert!(!chat.add_generation_prompt);
    }

    #[test]
    fn tokens_are_checked() {
        let parse = |body: Value| DetokenizeRequest::parse(body.to_string().as_bytes());
        assert_eq!(parse(json!({"tokens": [1, 2]})).unwrap().tokens, [1, 2]);
        assert!(parse(json!({"tokens": "1"})).is_err());
        assert!(parse(json!({})).is_err());
    }
}
