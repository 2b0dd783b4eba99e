//! `POST /chat/completions`.

use crate::error::ApiError;
use crate::types::fields::{Fields, wrong_type};
use crate::types::generation::{
    Sampling, Streaming, TOP_LOGPROBS_LIMIT, choices, refuse_constraints, stop_params,
};
use crate::types::media::{RequestMedia, wishes_of_request};
use crate::types::message::{Messages, messages, tools};
use aha_engine::{Chat, OutputParams, StopParams};
use serde_json::{Map, Value};

/// What becomes of the text between `<think>` and `</think>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reasoning {
    /// It goes to `reasoning_content`.
    #[default]
    Separate,
    /// It stays in the content, tags included.
    InPlace,
    /// It is left out of the answer.
    Hidden,
}

/// A chat request, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRequest {
    pub(crate) model: Option<String>,
    pub(crate) chat: Chat,
    /// What is to be read and put into the chat.
    pub(crate) media: RequestMedia,
    pub(crate) sampling: Sampling,
    pub(crate) stop: StopParams,
    pub(crate) output: OutputParams,
    pub(crate) streaming: Streaming,
    pub(crate) n: usize,
    pub(crate) reasoning: Reasoning,
}

impl ChatRequest {
    pub(crate) fn parse(body: &[u8], max_choices: usize) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        let model = fields.string("model")?;
        refuse_constraints(fields)?;
        refuse_other_modalities(fields)?;
        let (chat, media) = chat(fields)?;
        Ok(Self {
            model,
            chat,
            media,
            sampling: Sampling::read(fields)?,
            stop: stop_params(fields)?,
            output: output(fields)?,
            streaming: Streaming::read(fields)?,
            n: choices(fields, 1, max_choices)?,
            reasoning: reasoning(fields)?,
        })
    }
}

/// Reads the conversation itself, its media apart; `POST /tokenize` takes the same fields.
pub(crate) fn chat(fields: &mut Fields) -> Result<(Chat, RequestMedia), ApiError> {
    let values = fields
        .array("messages")?
        .ok_or_else(|| ApiError::missing("messages", "'messages' is missing"))?;
    let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
    // A message that is to be continued needs no opening of another one.
    let add_generation_prompt = fields
        .boolean("add_generation_prompt")?
        .unwrap_or(!continue_final_message);
    if add_generation_prompt && continue_final_message {
        return Err(ApiError::invalid(
            "continue_final_message",
            "'continue_final_message' and 'add_generation_prompt' exclude each other",
        ));
    }
    let (wishes, settings) = wishes_of_request(fields)?;
    let Messages { messages, media } = messages(values, wishes)?;
    let chat = Chat {
        messages,
        tools: tools(fields)?,
        template_kwargs: template_kwargs(fields)?,
        add_generation_prompt,
        continue_final_message,
    };
    let media = RequestMedia {
        parts: media,
        settings,
    };
    Ok((chat, media))
}

/// `chat_template_kwargs`, and the two switches that are taken at the top level too.
fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut kwargs = fields.object("chat_template_kwargs")?.unwrap_or_default();
    let effort = fields.string("reasoning_effort")?;
    let thinking = match fields.boolean("enable_thinking")? {
        Some(thinking) => Some(thinking),
        None if effort.as_deref() == Some("none") => Some(false),
        None => None,
    };
    if let Some(thinking) = thinking {
        kwargs
            .entry("enable_thinking")
            .or_insert(Value::Bool(thinking));
    }
    if let Some(effort) = effort {
        kwargs
            .entry("reasoning_effort")
            .or_insert(Value::String(effort));
    }
    Ok(kwargs)
}

fn output(fields: &mut Fields) -> Result<OutputParams, ApiError> {
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=TOP_LOGPROBS_LIMIT)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::invalid(
            "top_logprobs",
            "'top_logprobs' is only allowed with 'logprobs': true",
        ));
    }
    Ok(OutputParams {
        logprobs: logprobs.then(|| top.unwrap_or(0)),
        skip_special_tokens: fields.boolean("skip_special_tokens")?,
        ..OutputParams::default()
    })
}

/// The three names of the switch that the field knows.
fn reasoning(fields: &mut Fields) -> Result<Reasoning, ApiError> {
    let format = match fields.string("reasoning_format")?.as_deref() {
        None | Some("auto" | "deepseek") => Reasoning::Separate,
        Some("none") => Reasoning::InPlace,
        Some(_) => {
            return Err(ApiError::invalid(
                "reasoning_format",
                "'reasoning_format' must be \"auto\", \"deepseek\" or \"none\"",
            ));
        }
    };
    let separate = fields.boolean("separate_reasoning")?.unwrap_or(true);
    let include = fields.boolean("include_reasoning")?.unwrap_or(true);
    Ok(match (format, separate, include) {
        (_, _, false) => Reasoning::Hidden,
        (Reasoning::InPlace, ..) | (_, false, _) => Reasoning::InPlace,
        _ => Reasoning::Separate,
    })
}

fn refuse_other_modalities(fields: &mut Fields) -> Result<(), ApiError> {
    let only_text = |value: &Value| value.as_str() == Some("text");
    match fields.take("modalities") {
        None => {}
        Some(Value::Array(values)) if values.iter().all(only_text) => {}
        Some(Value::Array(_)) => {
            return Err(ApiError::unsupported(
                "modalities",
                "this model answers with text only",
            ));
        }
        Some(other) => return Err(wrong_type("modalities", "an array", &other)),
    }
    if fields.has("audio") {
        return Err(ApiError::unsupported(
            "audio",
            "this model answers with text only",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(extra: Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        ChatRequest::parse(body.to_string().as_bytes(), 8)
    }

    fn param(extra: Value) -> String {
        parse(extra).unwrap_err().body.param.unwrap()
    }

    #[test]
    fn the_smallest_request_has_the_documented_defaults() {
        let request = parse(json!({})).unwrap();
        assert_eq!(
            request,
            ChatRequest {
                model: None,
                chat: Chat::user("hi"),
                media: RequestMedia::default(),
                sampling: Sampling::default(),
                stop: StopParams::default(),
                output: OutputParams::default(),
                streaming: Streaming::default(),
                n: 1,
                reasoning: Reasoning::Separate,
            }
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_nulls_are_absent() {
        let request = parse(json!({
            "user": "u", "metadata": {"a": 1}, "store": true, "service_tier": "auto",
            "tools": null, "tool_choice": null, "stop": null, "logprobs": null,
            "response_format": null, "stream": null, "n": null, "max_tokens": null,
            "chat_template_kwargs": null, "made_up": [1, 2]}))
        .unwrap();
        assert_eq!(request, parse(json!({})).unwrap());
    }

    #[test]
    fn thinking_is_switched_by_three_fields() {
        let kwargs = |extra: Value| Value::Object(parse(extra).unwrap().chat.template_kwargs);
        assert_eq!(
            kwargs(json!({"enable_thinking": false})),
            json!({"enable_thinking": false})
        );
        assert_eq!(
            kwargs(json!({"enable_thinking": true,
                          "chat_template_kwargs": {"enable_thinking": false}})),
            json!({"enable_thinking": false})
        );
        assert_eq!(
            kwargs(json!({"reasoning_effort": "none"})),
            json!({"enable_thinking": false, "reasoning_effort": "none"})
        );
        assert_eq!(
            kwargs(json!({"reasoning_effort": "low"})),
            json!({"reasoning_effort": "low"})
        );
    }

    #[test]
    fn reasoning_can_stay_in_place_or_be_hidden() {
        let of = |extra: Value| parse(extra).unwrap().reasoning;
        assert_eq!(of(json!({"reasoning_format": "auto"})), Reasoning::Separate);
        assert_eq!(of(json!({"reasoning_format": "none"})), Reasoning::InPlace);
        assert_eq!(of(json!({"separate_reasoning": false})), Reasoning::InPlace);
        assert_eq!(of(json!({"include_reasoning": false})), Reasoning::Hidden);
        assert_eq!(
            param(json!({"reasoning_format": "loud"})),
            "reasoning_format"
        );
    }

    #[test]
    fn log_probabilities_need_their_switch() {
        let output = parse(json!({"logprobs": true, "top_logprobs": 5}))
            .unwrap()
            .output;
        assert_eq!(output.logprobs, Some(5));
        assert_eq!(
            parse(json!({"logprobs": true})).unwrap().output.logprobs,
            Some(0)
        );
        assert_eq!(param(json!({"top_logprobs": 5})), "top_logprobs");
        assert_eq!(
            param(json!({"logprobs": true, "top_logprobs": 21})),
            "top_logprobs"
        );
        assert_eq!(param(json!({"logprobs": 3})), "logprobs");
    }

    #[test]
    fn a_familys_own_settings_are_told_apart_from_those_of_all_media() {
        let kwargs = json!({"max_pixels": 4096, "base_size": 640, "crop_mode": null});
        let request = parse(json!({"mm_processor_kwargs": kwargs})).unwrap();
        let settings = Value::Object(request.media.settings);
        assert_eq!(settings, json!({"base_size": 640}));
        assert_eq!(
            param(json!({"mm_processor_kwargs": [640]})),
            "mm_processor_kwargs"
        );
    }

    #[test]
    fn a_final_message_is_continued_without_a_new_opening() {
        let chat = parse(json!({"continue_final_message": true})).unwrap().chat;
        assert!(chat.continue_final_message && !chat.add_generation_prompt);
        assert_eq!(
            param(json!({"continue_final_message": true, "add_generation_prompt": true})),
            "continue_final_message"
        );
    }

    #[test]
    fn wrong_types_name_the_field() {
        for (extra, name) in [
            (json!({"model": 1}), "model"),
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": null}), "messages"),
            (json!({"stream": "yes"}), "stream"),
            (json!({"n": 0}), "n"),
            (json!({"n": 1000}), "n"),
            (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
            (json!({"enable_thinking": "no"}), "enable_thinking"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"skip_special_tokens": 0}), "skip_special_tokens"),
            (json!({"tools": {}}), "tools"),
        ] {
            assert_eq!(param(extra), name);
        }
    }
}
