//! The parameters that chat and plain completions share.

use crate::error::ApiError;
use crate::types::fields::{Fields, number_in, token_ids, wrong_type};
use aha_engine::{NGRAM_LIMIT, NgramWindow, SamplingParams, StopParams};
use serde_json::Value;
use std::collections::HashSet;
use std::hash::Hash;

/// Most stop strings of a request.
const STOP_LIMIT: usize = 16;
/// Longest stop string in bytes: the stream holds back at most this much text.
const STOP_LENGTH_LIMIT: usize = 1024;
/// Most stop tokens of a request.
const STOP_TOKEN_LIMIT: usize = 64;
/// Most alternatives listed beside each token.
pub(crate) const TOP_LOGPROBS_LIMIT: usize = 20;
/// Most tokens whose logits a request may shift.
const LOGIT_BIAS_LIMIT: usize = 1024;
/// Most tokens that a ban of n-grams may except.
const WHITELIST_LIMIT: usize = 1024;
/// Tokens among which n-grams are looked for unless `vllm_xargs` say: vLLM's own number.
const DEFAULT_WINDOW_SIZE: usize = 100;

/// Fields that would restrict the answer. They are refused rather than ignored: an answer that
/// looks unrestricted would be wrong.
const UNSUPPORTED_CONSTRAINTS: [&str; 14] = [
    "grammar",
    "ebnf",
    "regex",
    "structural_tag",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "allowed_token_ids",
    "bad_words",
    "logits_processors",
    "chat_template",
];

/// How tokens are chosen, as far as the request says; the rest is the model's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    no_repeat_ngram_size: Option<usize>,
    ngram_window: Option<NgramWindow>,
    logit_bias: Vec<(u32, f32)>,
    seed: Option<u64>,
}

impl Sampling {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let temperature = float(fields, "temperature", 0.0, 100.0)?;
        let top_p = float(fields, "top_p", 0.0, 1.0)?;
        if top_p == Some(0.0) {
            return Err(ApiError::invalid("top_p", "'top_p' must be greater than 0"));
        }
        // -1 and 0 both mean "all tokens": the field's two conventions.
        let top_k = fields
            .integer("top_k", -1..=i128::from(u32::MAX))?
            .map(|k| usize::try_from(k).unwrap_or(0));
        let repetition_penalty = match float(fields, "repetition_penalty", 0.01, 100.0)? {
            Some(penalty) => Some(penalty),
            None => float(fields, "repeat_penalty", 0.01, 100.0)?,
        };
        Ok(Self {
            temperature,
            top_p,
            top_k,
            min_p: float(fields, "min_p", 0.0, 1.0)?,
            repetition_penalty,
            presence_penalty: float(fields, "presence_penalty", -2.0, 2.0)?,
            frequency_penalty: float(fields, "frequency_penalty", -2.0, 2.0)?,
            no_repeat_ngram_size: fields.count("no_repeat_ngram_size", 0..=NGRAM_LIMIT)?,
            ngram_window: ngram_window(fields)?,
            logit_bias: logit_bias(fields)?,
            seed: seed(fields)?,
        })
    }

    /// The parameters of the answer number `choice`: the request's, then the model's defaults. A
    /// seed is counted up from answer to answer, or they would all be the same.
    pub(crate) fn resolve(&self, defaults: &SamplingParams, choice: usize) -> SamplingParams {
        let offset = u64::try_from(choice).unwrap_or(u64::MAX);
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            no_repeat_ngram_size: self
                .no_repeat_ngram_size
                .unwrap_or(defaults.no_repeat_ngram_size),
            ngram_window: self
                .ngram_window
                .clone()
                .or_else(|| defaults.ngram_window.clone()),
            logit_bias: if self.logit_bias.is_empty() {
                defaults.logit_bias.clone()
            } else {
                self.logit_bias.clone()
            },
            seed: self
                .seed
                .or(defaults.seed)
                .map(|seed| seed.wrapping_add(offset)),
        }
    }
}

/// When the answer ends, as far as the request says.
pub(crate) fn stop_params(fields: &mut Fields) -> Result<StopParams, ApiError> {
    let max_tokens = fields.count("max_tokens", 1..=usize::MAX)?;
    let max_completion_tokens = fields.count("max_completion_tokens", 1..=usize::MAX)?;
    let params = StopParams {
        max_tokens: max_completion_tokens.or(max_tokens),
        min_tokens: fields.count("min_tokens", 0..=usize::MAX)?.unwrap_or(0),
        stop: stop(fields)?,
        stop_token_ids: stop_token_ids(fields)?,
        ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
    };
    match params.max_tokens {
        Some(max) if params.min_tokens > max => Err(ApiError::invalid(
            "min_tokens",
            format!(
                "'min_tokens' is {}, more than the {max} tokens allowed",
                params.min_tokens
            ),
        )),
        _ => Ok(params),
    }
}

/// Refuses fields that would restrict the answer and that this server cannot honour.
pub(crate) fn refuse_constraints(fields: &mut Fields) -> Result<(), ApiError> {
    if let Some(mut format) = fields
        .object("response_format")?
        .map(|map| Fields::of(Value::Object(map), "response_format".into()))
        .transpose()?
    {
        let kind = format.string("type")?;
        if kind.as_deref() != Some("text") {
            return Err(ApiError::unsupported(
                "response_format",
                "'response_format' supports {\"type\": \"text\"} only: other formats cannot be enforced",
            ));
        }
    }
    for name in UNSUPPORTED_CONSTRAINTS {
        let off = match fields.take(name) {
            None => true,
            Some(Value::Number(number)) => number.as_f64() == Some(0.0),
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(values)) => values.is_empty(),
            Some(_) => false,
        };
        if !off {
            return Err(ApiError::unsupported(
                name,
                format!("'{name}' is not supported"),
            ));
        }
    }
    if fields.boolean("use_beam_search")? == Some(true) {
        return Err(ApiError::unsupported(
            "use_beam_search",
            "beam search is not supported",
        ));
    }
    Ok(())
}

/// Whether and how the answer is streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Streaming {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl Streaming {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            None => false,
            Some(_) if !stream => {
                return Err(ApiError::invalid(
                    "stream_options",
                    "'stream_options' is only allowed with 'stream': true",
                ));
            }
            Some(map) => Fields::of(Value::Object(map), "stream_options".into())?
                .boolean("include_usage")?
                .unwrap_or(false),
        };
        Ok(Self {
            stream,
            include_usage,
        })
    }
}

/// The `n` of a request, whose answers are `prompts` times as many.
pub(crate) fn choices(
    fields: &mut Fields,
    prompts: usize,
    limit: usize,
) -> Result<usize, ApiError> {
    let n = fields.count("n", 1..=limit.max(1))?.unwrap_or(1);
    if prompts.saturating_mul(n) > limit {
        return Err(ApiError::invalid(
            if n > 1 { "n" } else { "prompt" },
            format!("{prompts} prompts with {n} answers each are more than the limit of {limit}"),
        ));
    }
    Ok(n)
}

/// A number that becomes an `f32`.
fn float(fields: &mut Fields, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
    Ok(fields.number(name, least..=most)?.map(|value| value as f32))
}

/// A seed of either sign: negative ones stand for their 64 bits.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let seed = fields.integer("seed", i64::MIN.into()..=u64::MAX.into())?;
    Ok(seed.map(|seed| seed as u64))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => {
            return Err(wrong_type(
                "stop",
                "a string or an array of strings",
                &other,
            ));
        }
    };
    bounded("stop", values.len(), STOP_LIMIT)?;
    let text = |(index, value): (usize, Value)| match value {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::invalid("stop", "a stop string must not be empty"))
        }
        Value::String(text) if text.len() > STOP_LENGTH_LIMIT => Err(ApiError::invalid(
            "stop",
            format!("a stop string is longer than the limit of {STOP_LENGTH_LIMIT} bytes"),
        )),
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("stop[{index}]"), "a string", &other)),
    };
    let texts: Result<Vec<_>, _> = values.into_iter().enumerate().map(text).collect();
    texts.map(without_repeats)
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let values = fields.array("stop_token_ids")?.unwrap_or_default();
    bounded("stop_token_ids", values.len(), STOP_TOKEN_LIMIT)?;
    token_ids(&values, "stop_token_ids").map(without_repeats)
}

/// Refuses lists that would be looked through at every token for too long.
fn bounded(name: &str, length: usize, limit: usize) -> Result<(), ApiError> {
    if length <= limit {
        return Ok(());
    }
    Err(ApiError::invalid(
        name,
        format!("'{name}' holds {length} entries, more than the limit of {limit}"),
    ))
}

/// The first of each value, in order.
fn without_repeats<T: Clone + Eq + Hash>(mut values: Vec<T>) -> Vec<T> {
    let mut seen = HashSet::new();
    values.retain(|value| seen.insert(value.clone()));
    values
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = fields.object("logit_bias")?.unwrap_or_default();
    bounded("logit_bias", map.len(), LOGIT_BIAS_LIMIT)?;
    let mut seen = HashSet::new();
    map.iter()
        .map(|(token, bias)| {
            let id = token.parse::<u32>().map_err(|_| {
                let shown: String = token.chars().take(50).collect();
                ApiError::invalid(
                    "logit_bias",
                    format!("'logit_bias' key '{shown}' is no token id"),
                )
            })?;
            // "7" and "07" are two keys of one token.
            if !seen.insert(id) {
                return Err(ApiError::invalid(
                    "logit_bias",
                    format!("'logit_bias' names token {id} more than once"),
                ));
            }
            let bias = number_in(bias, &format!("logit_bias.{id}"), -100.0..=100.0)?;
            Ok((id, bias as f32))
        })
        .collect()
}

/// The ban of repetitions among the latest tokens, which vLLM's users know as arguments of its n-gram processor.
fn ngram_window(fields: &mut Fields) -> Result<Option<NgramWindow>, ApiError> {
    let Some(map) = fields.object("vllm_xargs")? else {
        return Ok(None);
    };
    let mut fields = Fields::of(Value::Object(map), "vllm_xargs".to_owned())?;
    let ngram_size = fields.count("ngram_size", 0..=NGRAM_LIMIT)?;
    let window_size = fields.count("window_size", 1..=usize::MAX)?;
    let whitelist = fields.token_ids("whitelist_token_ids")?;
    if let Some(name) = fields.rest().keys().next() {
        let shown: String = name.chars().take(50).collect();
        return Err(ApiError::unsupported(
            "vllm_xargs",
            format!(
                "'vllm_xargs' supports ngram_size, window_size and whitelist_token_ids, not '{shown}'"
            ),
        ));
    }
    let Some(ngram_size) = ngram_size else {
        if window_size.is_none() && whitelist.is_none() {
            return Ok(None);
        }
        let path = fields.path("ngram_size");
        let message = format!("'{path}' is missing");
        return Err(ApiError::missing(path, message));
    };
    let whitelist_token_ids = whitelist.unwrap_or_default();
    let path = fields.path("whitelist_token_ids");
    bounded(&path, whitelist_token_ids.len(), WHITELIST_LIMIT)?;
    Ok(Some(NgramWindow {
        ngram_size,
        window_size: window_size.unwrap_or(DEFAULT_WINDOW_SIZE),
        whitelist_token_ids,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of(value, String::new()).unwrap()
    }

    fn sampling(value: Value) -> Result<Sampling, ApiError> {
        Sampling::read(&mut fields(value))
    }

    #[test]
    fn sampling_falls_back_to_the_models_defaults() {
        let defaults = SamplingParams {
            temperature: 0.6,
            top_k: 20,
            ..SamplingParams::default()
        };
        let read = sampling(json!({
            "temperature": 0, "top_p": 0.5, "logit_bias": {"7": -100, "9": 1.5}, "seed": -1,
            "frequency_penalty": 1, "top_k": null}))
        .unwrap();
        let resolved = read.resolve(&defaults, 2);
        assert_eq!(
            resolved,
            SamplingParams {
                temperature: 0.0,
                top_k: 20,
                top_p: 0.5,
                frequency_penalty: 1.0,
                logit_bias: vec![(7, -100.0), (9, 1.5)],
                seed: Some(1),
                ..SamplingParams::default()
            }
        );
        assert_eq!(
            sampling(json!({"top_k": -1}))
                .unwrap()
                .resolve(&defaults, 0)
                .top_k,
            0
        );
    }

    #[test]
    fn values_out_of_range_name_their_field() {
        for (name, bad) in [
            ("temperature", json!(-1)),
            ("temperature", json!(1e9)),
            ("temperature", json!("hot")),
            ("top_p", json!(0)),
            ("top_p", json!(2)),
            ("top_k", json!(-2)),
            ("top_k", json!(1.5)),
            ("min_p", json!(1.1)),
            ("repetition_penalty", json!(0)),
            ("presence_penalty", json!(2.5)),
            ("frequency_penalty", json!(-3)),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!([1])),
            ("repetition_penalty", json!(0.001)),
            ("repeat_penalty", json!(101)),
            ("seed", json!(1.5)),
            ("seed", json!("1")),
            ("seed", json!(i64::MIN as f64 * 4.0)),
        ] {
            let error = sampling(json!({name: bad.clone()})).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(name), "{bad}");
            assert_eq!(error.status.as_u16(), 400);
        }
        let message = |value| sampling(value).unwrap_err().body.message;
        assert_eq!(
            message(json!({"repetition_penalty": 0})),
            "'repetition_penalty' must lie between 0.01 and 100, not 0"
        );
        assert_eq!(
            message(json!({"seed": 1.5})),
            "'seed' must be an integer, not 1.5"
        );
        let error = sampling(json!({"logit_bias": {"7": 101}})).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("logit_bias.7"));
    }

    #[test]
    fn seeds_are_integers_of_either_sign() {
        for (value, seed) in [
            (json!(1.0), 1),
            (json!(u64::MAX), u64::MAX),
            (json!(-1), u64::MAX),
            (json!(i64::MIN), 1 << 63),
        ] {
            let read = sampling(json!({"seed": value.clone()})).unwrap();
            assert_eq!(read.seed, Some(seed), "{value}");
        }
    }

    #[test]
    fn bans_of_ngrams_are_read_and_override_the_models() {
        let defaults = SamplingParams {
            no_repeat_ngram_size: 20,
            ngram_window: Some(NgramWindow {
                ngram_size: 30,
                window_size: 90,
                whitelist_token_ids: vec![5],
            }),
            ..SamplingParams::default()
        };
        let resolved = |value| sampling(value).unwrap().resolve(&defaults, 0);
        assert_eq!(resolved(json!({})), defaults);
        assert_eq!(resolved(json!({"vllm_xargs": {}})), defaults);
        let off = json!({"no_repeat_ngram_size": 0, "vllm_xargs": {"ngram_size": 0}});
        let off = resolved(off);
        assert_eq!(off.no_repeat_ngram_size, 0);
        assert_eq!(off.ngram_window.unwrap().ngram_size, 0);
        let own = json!({"ngram_size": 4, "window_size": 9, "whitelist_token_ids": [1, 2.0]});
        assert_eq!(
            resolved(json!({"vllm_xargs": own})).ngram_window,
            Some(NgramWindow {
                ngram_size: 4,
                window_size: 9,
                whitelist_token_ids: vec![1, 2],
            })
        );
        for (bad, param) in [
            (json!({"no_repeat_ngram_size": 257}), "no_repeat_ngram_size"),
            (json!({"no_repeat_ngram_size": -1}), "no_repeat_ngram_size"),
            (json!({"vllm_xargs": 3}), "vllm_xargs"),
            (
                json!({"vllm_xargs": {"window_size": 9}}),
                "vllm_xargs.ngram_size",
            ),
            (
                json!({"vllm_xargs": {"ngram_size": 2, "window_size": 0}}),
                "vllm_xargs.window_size",
            ),
            (
                json!({"vllm_xargs": {"ngram_size": 2, "whitelist_token_ids": ["a"]}}),
                "vllm_xargs.whitelist_token_ids[0]",
            ),
            (json!({"vllm_xargs": {"kv_transfer": 1}}), "vllm_xargs"),
        ] {
            let error = sampling(bad.clone()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{bad}");
        }
    }

    #[test]
    fn lists_are_bounded_and_say_each_thing_once() {
        let stop = |value: Value| stop_params(&mut fields(value));
        let read = stop(json!({"stop": ["a", "b", "a"], "stop_token_ids": [5, 3, 5.0, 3]}));
        let read = read.unwrap();
        assert_eq!(read.stop, ["a", "b"]);
        assert_eq!(read.stop_token_ids, [5, 3]);
        let ids: Vec<_> = (0..=STOP_TOKEN_LIMIT).collect();
        stop(json!({"stop_token_ids": ids[1..]})).unwrap();
        let error = stop(json!({"stop_token_ids": ids})).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("stop_token_ids"));
        assert_eq!(
            error.body.message,
            "'stop_token_ids' holds 65 entries, more than the limit of 64"
        );

        let bias = |count: usize| {
            let map = (0..count).map(|id| (id.to_string(), json!(1))).collect();
            sampling(json!({"logit_bias": Value::Object(map)}))
        };
        assert_eq!(
            bias(LOGIT_BIAS_LIMIT).unwrap().logit_bias.len(),
            LOGIT_BIAS_LIMIT
        );
        for error in [
            bias(LOGIT_BIAS_LIMIT + 1).unwrap_err(),
            sampling(json!({"logit_bias": {"7": 1, "07": 2}})).unwrap_err(),
        ] {
            assert_eq!(error.body.param.as_deref(), Some("logit_bias"));
        }
    }

    #[test]
    fn the_end_is_read_and_checked() {
        let read = |value: Value| stop_params(&mut fields(value));
        assert_eq!(
            read(
                json!({"max_tokens": 5, "max_completion_tokens": 7, "min_tokens": 2,
                        "stop": "x", "stop_token_ids": [3], "ignore_eos": true})
            )
            .unwrap(),
            StopParams {
                max_tokens: Some(7),
                min_tokens: 2,
                stop: vec!["x".into()],
                stop_token_ids: vec![3],
                ignore_eos: true
            }
        );
        let many: Vec<_> = (0..17).map(|i| i.to_string()).collect();
        for (bad, param) in [
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"max_tokens": "5"}), "max_tokens"),
            (
                json!({"max_completion_tokens": 1.5}),
                "max_completion_tokens",
            ),
            (json!({"stop": ""}), "stop"),
            (json!({"stop": ["a", ""]}), "stop"),
            (json!({"stop": ["a", 1]}), "stop[1]"),
            (json!({"stop": many}), "stop"),
            (json!({"stop": {}}), "stop"),
            (json!({"stop_token_ids": [1, -1]}), "stop_token_ids[1]"),
            (json!({"ignore_eos": 1}), "ignore_eos"),
            (json!({"max_tokens": 3, "min_tokens": 4}), "min_tokens"),
        ] {
            assert_eq!(
                read(bad.clone()).unwrap_err().body.param.as_deref(),
                Some(param),
                "{bad}"
            );
        }
    }

    #[test]
    fn constraints_are_refused_never_ignored() {
        let read = |value: Value| refuse_constraints(&mut fields(value));
        read(
            json!({"response_format": {"type": "text"}, "grammar": "", "guided_json": null,
                    "no_repeat_ngram_size": 0, "bad_words": []}),
        )
        .unwrap();
        for (bad, param) in [
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"response_format": {}}), "response_format"),
            (json!({"grammar": "root ::= x"}), "grammar"),
            (json!({"guided_choice": ["a"]}), "guided_choice"),
            (json!({"allowed_token_ids": [1]}), "allowed_token_ids"),
            (json!({"bad_words": ["x"]}), "bad_words"),
            (json!({"regex": "a+"}), "regex"),
            (json!({"ebnf": "root ::= x"}), "ebnf"),
            (json!({"structural_tag": "{}"}), "structural_tag"),
            (json!({"logits_processors": ["f"]}), "logits_processors"),
            (json!({"chat_template": "{{ x }}"}), "chat_template"),
            (json!({"use_beam_search": true}), "use_beam_search"),
        ] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param));
            assert_eq!(error.body.code, Some("unsupported_value"));
        }
    }

    #[test]
    fn streaming_is_off_unless_asked_for() {
        let read = |value: Value| Streaming::read(&mut fields(value));
        assert_eq!(read(json!({})).unwrap(), Streaming::default());
        assert_eq!(
            read(json!({"stream": true, "stream_options": {"include_usage": true}})).unwrap(),
            Streaming {
                stream: true,
                include_usage: true
            }
        );
        assert!(
            read(json!({"stream": true, "stream_options": null}))
                .unwrap()
                .stream
        );
        assert_eq!(
            read(json!({"stream_options": {}}))
                .unwrap_err()
                .body
                .param
                .as_deref(),
            Some("stream_options")
        );
        assert_eq!(
            read(json!({"stream": true, "stream_options": {"include_usage": 1}}))
                .unwrap_err()
                .body
                .param
                .as_deref(),
            Some("stream_options.include_usage")
        );
    }

    #[test]
    fn the_number_of_answers_is_bounded() {
        assert_eq!(choices(&mut fields(json!({"n": 4})), 2, 8).unwrap(), 4);
        for (n, prompts) in [
            (json!(0), 1),
            (json!(1000), 1),
            (json!(5), 2),
            (json!(null), 9),
        ] {
            assert!(choices(&mut fields(json!({"n": n})), prompts, 8).is_err());
        }
    }
}
