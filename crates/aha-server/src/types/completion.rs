//! `POST /completions`.

use crate::error::ApiError;
use crate::types::fields::{Fields, token_ids, wrong_type};
use crate::types::generation::{
    Sampling, Streaming, TOP_LOGPROBS_LIMIT, choices, refuse_constraints, stop_params,
};
use aha_engine::{OutputParams, StopParams};
use serde_json::Value;

/// OpenAI's default length of a plain completion.
const DEFAULT_MAX_TOKENS: usize = 16;

/// One text to continue.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PromptInput {
    /// As text.
    Text(String),
    /// As token ids.
    Tokens(Vec<u32>),
}

/// A completion request, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompletionRequest {
    pub(crate) model: Option<String>,
    /// At least one.
    pub(crate) prompts: Vec<PromptInput>,
    pub(crate) sampling: Sampling,
    /// Without `max_tokens` the length is [`CompletionRequest::default_length`].
    pub(crate) stop: StopParams,
    pub(crate) output: OutputParams,
    pub(crate) streaming: Streaming,
    /// Answers a prompt.
    pub(crate) n: usize,
    /// The prompt stands before the answer.
    pub(crate) echo: bool,
}

impl CompletionRequest {
    pub(crate) fn parse(body: &[u8], max_choices: usize) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        let model = fields.string("model")?;
        refuse_constraints(fields)?;
        let prompts = prompts(fields)?;
        let n = choices(fields, prompts.len(), max_choices)?;
        if fields
            .count("best_of", 1..=max_choices.max(1))?
            .is_some_and(|best_of| best_of != n)
        {
            return Err(ApiError::unsupported("best_of", "'best_of' must equal 'n'"));
        }
        if fields
            .string("suffix")?
            .is_some_and(|suffix| !suffix.is_empty())
        {
            return Err(ApiError::unsupported("suffix", "'suffix' is not supported"));
        }
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let output = output(fields)?;
        if echo && output.logprobs.is_some() {
            return Err(ApiError::unsupported(
                "echo",
                "'echo' with 'logprobs' is not supported: prompts have no log-probabilities",
            ));
        }
        Ok(Self {
            model,
            prompts,
            sampling: Sampling::read(fields)?,
            stop: stop_params(fields)?,
            output,
            streaming: Streaming::read(fields)?,
            n,
            echo,
        })
    }

    /// Tokens to generate when the request does not say, with `room` tokens left in the context:
    /// what was not asked for must not make a request too long.
    pub(crate) fn default_length(&self, room: usize) -> usize {
        DEFAULT_MAX_TOKENS
            .min(room)
            .max(self.stop.min_tokens)
            .max(1)
    }
}

/// A string, token ids, or an array of either.
fn prompts(fields: &mut Fields) -> Result<Vec<PromptInput>, ApiError> {
    let values = match fields.take("prompt") {
        None => return Err(ApiError::missing("prompt", "'prompt' is missing")),
        Some(Value::String(text)) => return Ok(vec![PromptInput::Text(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(wrong_type("prompt", "a string or an array", &other)),
    };
    match values.first() {
        None => Err(ApiError::invalid("prompt", "'prompt' must not be empty")),
        Some(Value::Number(_)) => Ok(vec![PromptInput::Tokens(token_ids(&values, "prompt")?)]),
        Some(_) => values.into_iter().enumerate().map(prompt).collect(),
    }
}

fn prompt((index, value): (usize, Value)) -> Result<PromptInput, ApiError> {
    let path = format!("prompt[{index}]");
    match value {
        Value::String(text) => Ok(PromptInput::Text(text)),
        Value::Array(values) if values.is_empty() => Err(ApiError::invalid(
            &path,
            format!("'{path}' must not be empty"),
        )),
        Value::Array(values) => Ok(PromptInput::Tokens(token_ids(&values, &path)?)),
        other => Err(wrong_type(
            &path,
            "a string or an array of token ids",
            &other,
        )),
    }
}

/// `logprobs` is a number of alternatives here; chat's pair of fields is taken as well.
fn output(fields: &mut Fields) -> Result<OutputParams, ApiError> {
    let top = fields.count("top_logprobs", 0..=TOP_LOGPROBS_LIMIT)?;
    let logprobs = match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(top.unwrap_or(0)),
        Some(value) => {
            let map = [("logprobs".to_owned(), value)].into_iter().collect();
            Fields::of(Value::Object(map), String::new())?
                .count("logprobs", 0..=TOP_LOGPROBS_LIMIT)?
                .map(|count| top.unwrap_or(count))
        }
    };
    if top.is_some_and(|top| top > 0) && logprobs.is_none() {
        return Err(ApiError::invalid(
            "top_logprobs",
            "'top_logprobs' is only allowed with 'logprobs'",
        ));
    }
    Ok(OutputParams {
        logprobs,
        skip_special_tokens: fields.boolean("skip_special_tokens")?,
        ..OutputParams::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(body: Value) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(body.to_string().as_bytes(), 8)
    }

    fn param(body: Value) -> String {
        parse(body).unwrap_err().body.param.unwrap()
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let prompts = |value: Value| parse(json!({"prompt": value})).unwrap().prompts;
        assert_eq!(prompts(json!("a")), [PromptInput::Text("a".into())]);
        assert_eq!(
            prompts(json!(["a", "b"])),
            [PromptInput::Text("a".into()), PromptInput::Text("b".into())]
        );
        assert_eq!(prompts(json!([1, 2])), [PromptInput::Tokens(vec![1, 2])]);
        assert_eq!(
            prompts(json!([[1], [2, 3]])),
            [
                PromptInput::Tokens(vec![1]),
                PromptInput::Tokens(vec![2, 3])
            ]
        );
    }

    #[test]
    fn lengths_default_to_sixteen() {
        let request = parse(json!({"prompt": "a"})).unwrap();
        assert_eq!(request.stop.max_tokens, None);
        assert_eq!(request.default_length(1000), 16);
        assert_eq!(request.default_length(5), 5);
        // The engine tells that one token does not fit.
        assert_eq!(request.default_length(0), 1);
        let longer = parse(json!({"prompt": "a", "min_tokens": 20})).unwrap();
        assert_eq!(longer.default_length(1000), 20);
        assert_eq!(longer.default_length(5), 20);
        assert_eq!(
            parse(json!({"prompt": "a", "max_tokens": 99}))
                .unwrap()
                .stop
                .max_tokens,
            Some(99)
        );
    }

    #[test]
    fn log_probabilities_are_a_number_or_chats_pair() {
        let of = |extra: Value| {
            let mut body = json!({"prompt": "a"});
            for (name, value) in extra.as_object().unwrap() {
                body[name] = value.clone();
            }
            parse(body).map(|request| request.output.logprobs)
        };
        assert_eq!(of(json!({})).unwrap(), None);
        assert_eq!(of(json!({"logprobs": 0})).unwrap(), Some(0));
        assert_eq!(of(json!({"logprobs": 3})).unwrap(), Some(3));
        assert_eq!(
            of(json!({"logprobs": true, "top_logprobs": 5})).unwrap(),
            Some(5)
        );
        assert!(of(json!({"logprobs": -1})).is_err());
        assert!(of(json!({"logprobs": 21})).is_err());
        assert!(of(json!({"logprobs": "3"})).is_err());
        assert!(of(json!({"top_logprobs": 3})).is_err());
    }

    #[test]
    fn faults_name_their_place() {
        for (body, name) in [
            (json!({}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": {}}), "prompt"),
            (json!({"prompt": [1, "a"]}), "prompt[1]"),
            (json!({"prompt": ["a", 1]}), "prompt[1]"),
            (json!({"prompt": [[1], []]}), "prompt[1]"),
            (json!({"prompt": [[1, -4]]}), "prompt[0][1]"),
            (json!({"prompt": "a", "best_of": 2}), "best_of"),
            (json!({"prompt": "a", "suffix": "b"}), "suffix"),
            (json!({"prompt": "a", "echo": true, "logprobs": 1}), "echo"),
            (json!({"prompt": "a", "n": 9}), "n"),
            (json!({"prompt": ["a", "b"], "n": 5}), "n"),
        ] {
            assert_eq!(param(body.clone()), name, "{body}");
        }
        parse(json!({"prompt": "a", "n": 2, "best_of": 2, "suffix": ""})).unwrap();
    }
}
