//! `POST /audio/transcriptions`.

use crate::error::ApiError;
use crate::types::fields::{Fields, wrong_type};
use crate::types::generation::{Sampling, TOP_LOGPROBS_LIMIT, stop_params};
use crate::types::response::TokenLogprobs;
use aha_engine::{Cutting, Segment, StopParams, TranscriptionOptions, Usage};
use aha_media::audio::{VadMethod, VadOptions};
use serde::Serialize;
use serde_json::Value;

/// Form fields that are text whatever they look like.
pub(crate) const TEXT_FIELDS: [&str; 4] = ["model", "language", "prompt", "response_format"];

/// Most hotwords of a request, and most bytes of one.
const HOTWORDS_LIMIT: usize = 1000;
const HOTWORD_LENGTH_LIMIT: usize = 200;

/// What an answer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TranscriptFormat {
    Json,
    Text,
    Srt,
    Vtt,
    VerboseJson,
}

impl TranscriptFormat {
    const NAMES: [(&str, Self); 5] = [
        ("json", Self::Json),
        ("text", Self::Text),
        ("srt", Self::Srt),
        ("vtt", Self::Vtt),
        ("verbose_json", Self::VerboseJson),
    ];

    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let Some(asked) = fields.string("response_format")? else {
            return Ok(Self::Json);
        };
        let found = Self::NAMES.iter().find(|(name, _)| *name == asked);
        found.map(|(_, format)| *format).ok_or_else(|| {
            let shown: String = asked.chars().take(100).collect();
            ApiError::invalid(
                "response_format",
                format!(
                    "'response_format' must be one of json, text, srt, vtt and verbose_json, not '{shown}'"
                ),
            )
        })
    }

    /// Whether the answer tells when something was said.
    fn has_times(self) -> bool {
        matches!(self, Self::Srt | Self::Vtt | Self::VerboseJson)
    }
}

/// A request for a transcript, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TranscriptionForm {
    pub(crate) model: Option<String>,
    pub(crate) options: TranscriptionOptions,
    pub(crate) sampling: Sampling,
    pub(crate) stop: StopParams,
    pub(crate) cutting: Cutting,
    pub(crate) format: TranscriptFormat,
    pub(crate) stream: bool,
    /// The chosen tokens' log-probabilities, and those of so many others.
    pub(crate) logprobs: Option<usize>,
}

impl TranscriptionForm {
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let fields = &mut fields;
        let format = TranscriptFormat::read(fields)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        if stream && !matches!(format, TranscriptFormat::Json | TranscriptFormat::Text) {
            return Err(ApiError::unsupported(
                "stream",
                "'stream' is for the formats json and text: ask for the others whole",
            ));
        }
        granularities(fields, format)?;
        let logprobs = logprobs(fields)?;
        if logprobs.is_some()
            && !matches!(
                format,
                TranscriptFormat::Json | TranscriptFormat::VerboseJson
            )
        {
            return Err(ApiError::unsupported(
                "response_format",
                "log-probabilities have a place in the formats json and verbose_json only",
            ));
        }
        let cutting = match cutting(fields)? {
            Some(cutting) => cutting,
            None if format.has_times() => Cutting::Speech(VadOptions::default()),
            None => Cutting::Long,
        };
        let text = |value: Option<String>| value.filter(|text| !text.is_empty());
        Ok(Self {
            model: text(fields.string("model")?),
            options: TranscriptionOptions {
                language: text(fields.string("language")?),
                context: text(fields.string("prompt")?),
                hotwords: hotwords(fields)?,
                itn: fields.boolean("itn")?,
            },
            sampling: Sampling::read(fields)?,
            stop: stop_params(fields)?,
            cutting,
            format,
            stream,
            logprobs,
        })
    }
}

/// Segments have times, and only the long format has a place for them. Words have none.
fn granularities(fields: &mut Fields, format: TranscriptFormat) -> Result<(), ApiError> {
    const NAME: &str = "timestamp_granularities";
    for value in list(fields, NAME)? {
        match value.as_str() {
            Some("segment") if format == TranscriptFormat::VerboseJson => {}
            Some("segment") => {
                return Err(ApiError::invalid(
                    NAME,
                    "'timestamp_granularities' needs 'response_format': 'verbose_json'",
                ));
            }
            Some("word") => {
                return Err(ApiError::unsupported(
                    NAME,
                    "this model gives no times of words: ask for 'segment'",
                ));
            }
            _ => {
                return Err(ApiError::invalid(
                    NAME,
                    "'timestamp_granularities' holds 'segment' or 'word' only",
                ));
            }
        }
    }
    Ok(())
}

/// OpenAI's `include[]=logprobs`, or chat's `logprobs` and `top_logprobs`.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let mut asked = fields.boolean("logprobs")?.unwrap_or(false);
    for value in list(fields, "include")? {
        if value.as_str() != Some("logprobs") {
            return Err(ApiError::invalid(
                "include",
                "'include' holds 'logprobs' only",
            ));
        }
        asked = true;
    }
    let top = fields.count("top_logprobs", 0..=TOP_LOGPROBS_LIMIT)?;
    if top.is_some_and(|top| top > 0) && !asked {
        return Err(ApiError::invalid(
            "top_logprobs",
            "'top_logprobs' is only allowed with 'logprobs': true",
        ));
    }
    Ok(asked.then(|| top.unwrap_or(0)))
}

/// OpenAI's `chunking_strategy`: `auto`, or an object with the settings of the voice activity.
fn cutting(fields: &mut Fields) -> Result<Option<Cutting>, ApiError> {
    const NAME: &str = "chunking_strategy";
    let map = match fields.take(NAME) {
        None => return Ok(None),
        Some(Value::String(text)) if text == "auto" => {
            return Ok(Some(Cutting::Speech(VadOptions::default())));
        }
        Some(map @ Value::Object(_)) => map,
        Some(other) => return Err(wrong_type(NAME, "'auto' or an object", &other)),
    };
    let mut fields = Fields::of(map, NAME.to_owned())?;
    let method = match fields.string("type")?.as_deref() {
        Some("server_vad") => VadMethod::Silero,
        Some("energy_vad") => VadMethod::Energy,
        _ => {
            return Err(ApiError::invalid(
                format!("{NAME}.type"),
                "the type of a 'chunking_strategy' is 'server_vad' or 'energy_vad'",
            ));
        }
    };
    let mut options = VadOptions {
        method,
        ..VadOptions::default()
    };
    let milliseconds = |fields: &mut Fields, name: &str, own: u32| {
        let found = fields.count(name, 0..=10_000)?;
        Ok::<_, ApiError>(
            found
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(own),
        )
    };
    options.min_silence_ms =
        milliseconds(&mut fields, "silence_duration_ms", options.min_silence_ms)?;
    options.padding_ms = milliseconds(&mut fields, "prefix_padding_ms", options.padding_ms)?;
    if let Some(threshold) = fields.number("threshold", 0.01..=0.99)? {
        options.threshold = threshold as f32;
    }
    Ok(Some(Cutting::Speech(options)))
}

fn hotwords(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "hotwords";
    let values = list(fields, NAME)?;
    if values.len() > HOTWORDS_LIMIT {
        let found = values.len();
        return Err(ApiError::invalid(
            NAME,
            format!("'hotwords' holds {found} words; {HOTWORDS_LIMIT} are the most"),
        ));
    }
    let word = |(index, value): (usize, Value)| match value {
        Value::String(word) if word.len() <= HOTWORD_LENGTH_LIMIT => Ok(word),
        Value::String(_) => Err(ApiError::invalid(
            format!("{NAME}[{index}]"),
            format!("a hotword is longer than the limit of {HOTWORD_LENGTH_LIMIT} bytes"),
        )),
        other => Err(wrong_type(&format!("{NAME}[{index}]"), "a string", &other)),
    };
    values.into_iter().enumerate().map(word).collect()
}

/// A list, or the one value that stands for it.
fn list(fields: &mut Fields, name: &str) -> Result<Vec<Value>, ApiError> {
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => Ok(values),
        Some(text @ Value::String(_)) => Ok(vec![text]),
        Some(other) => Err(wrong_type(name, "a list of strings", &other)),
    }
}

/// Token counts as the transcription routes tell them.
#[derive(Debug, Serialize)]
pub(crate) struct TranscriptUsage {
    #[serde(rename = "type")]
    kind: &'static str,
    input_tokens: usize,
    output_tokens: usize,
    total_tokens: usize,
    input_token_details: InputTokens,
}

#[derive(Debug, Serialize)]
struct InputTokens {
    text_tokens: usize,
    audio_tokens: usize,
}

impl From<&Usage> for TranscriptUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            kind: "tokens",
            input_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            input_token_details: InputTokens {
                text_tokens: usage.prompt_tokens.saturating_sub(usage.media.audio),
                audio_tokens: usage.media.audio,
            },
        }
    }
}

/// The short answer.
#[derive(Debug, Serialize)]
pub(crate) struct TranscriptAnswer {
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Vec<TokenLogprobs>>,
    /// Set where the text of a piece was cut at the limit of tokens.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) truncated: bool,
    pub(crate) usage: TranscriptUsage,
}

/// More of a streamed transcript.
#[derive(Debug, Serialize)]
pub(crate) struct TranscriptDelta {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) delta: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logprobs: Option<Vec<TokenLogprobs>>,
}

/// The end of a streamed transcript.
#[derive(Debug, Serialize)]
pub(crate) struct TranscriptDone {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) answer: TranscriptAnswer,
}

/// The long answer, with times.
#[derive(Debug, Serialize)]
pub(crate) struct VerboseAnswer {
    pub(crate) task: &'static str,
    /// Length of the recording in seconds.
    pub(crate) duration: f64,
    pub(crate) segments: Vec<SegmentAnswer>,
    #[serde(flatten)]
    pub(crate) answer: TranscriptAnswer,
}

/// What was said in one utterance.
#[derive(Debug, Serialize)]
pub(crate) struct SegmentAnswer {
    pub(crate) id: usize,
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) language: Option<String>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) temperature: f32,
    pub(crate) avg_logprob: Option<f32>,
}

impl SegmentAnswer {
    pub(crate) fn of(id: usize, segment: &Segment, temperature: f32) -> Self {
        Self {
            id,
            start: segment.start,
            end: segment.end,
            text: segment.transcript.text.clone(),
            language: segment.transcript.language.clone(),
            tokens: segment.tokens.iter().map(|token| token.token_id).collect(),
            temperature,
            avg_logprob: segment.average_logprob(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(fields: Value) -> Result<TranscriptionForm, ApiError> {
        TranscriptionForm::read(Fields::of(fields, String::new())?)
    }

    #[test]
    fn wishes_are_read() {
        let form = read(json!({"model": "m", "language": "", "prompt": "Names: Ada",
            "hotwords": ["a", "b"], "itn": false, "temperature": 0, "max_tokens": 20,
            "ignore_eos": true, "include": ["logprobs"], "response_format": "verbose_json",
            "timestamp_granularities": ["segment"]}))
        .unwrap();
        assert_eq!(form.options.language, None);
        assert_eq!(form.options.context.as_deref(), Some("Names: Ada"));
        assert_eq!(form.options.hotwords, ["a", "b"]);
        assert_eq!(form.options.itn, Some(false));
        assert_eq!(form.stop.max_tokens, Some(20));
        assert_eq!(form.logprobs, Some(0));
        assert_eq!(form.cutting, Cutting::Speech(VadOptions::default()));
        assert_eq!(read(json!({})).unwrap().cutting, Cutting::Long);
        assert_eq!(
            read(json!({"hotwords": "one"})).unwrap().options.hotwords,
            ["one"]
        );
    }

    #[test]
    fn cutting_has_openais_settings() {
        let form = read(
            json!({"chunking_strategy": {"type": "energy_vad", "threshold": 0.4,
            "silence_duration_ms": 500, "prefix_padding_ms": 60}}),
        )
        .unwrap();
        let Cutting::Speech(options) = form.cutting else {
            panic!("not cut at speech");
        };
        assert_eq!(options.method, VadMethod::Energy);
        assert_eq!((options.min_silence_ms, options.padding_ms), (500, 60));
        assert_eq!(options.threshold, 0.4);
        let auto = read(json!({"chunking_strategy": "auto"})).unwrap();
        assert_eq!(auto.cutting, Cutting::Speech(VadOptions::default()));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        for (fields, param) in [
            (json!({"response_format": "xml"}), "response_format"),
            (
                json!({"response_format": "diarized_json"}),
                "response_format",
            ),
            (
                json!({"timestamp_granularities": ["word"]}),
                "timestamp_granularities",
            ),
            (
                json!({"timestamp_granularities": ["segment"]}),
                "timestamp_granularities",
            ),
            (
                json!({"timestamp_granularities": ["letter"]}),
                "timestamp_granularities",
            ),
            (json!({"include": ["usage"]}), "include"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (
                json!({"logprobs": true, "response_format": "srt"}),
                "response_format",
            ),
            (json!({"stream": true, "response_format": "vtt"}), "stream"),
            (json!({"stream": "maybe"}), "stream"),
            (json!({"itn": "yes"}), "itn"),
            (json!({"hotwords": [1]}), "hotwords[0]"),
            (json!({"hotwords": ["x".repeat(201)]}), "hotwords[0]"),
            (json!({"hotwords": vec!["x"; 1001]}), "hotwords"),
            (json!({"temperature": -1}), "temperature"),
            (json!({"temperature": "warm"}), "temperature"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"chunking_strategy": "none"}), "chunking_strategy"),
            (
                json!({"chunking_strategy": {"type": "x"}}),
                "chunking_strategy.type",
            ),
            (
                json!({"chunking_strategy": {"type": "server_vad", "threshold": 2}}),
                "chunking_strategy.threshold",
            ),
        ] {
            let error = read(fields.clone()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{fields}");
            assert_eq!(error.status.as_u16(), 400);
        }
    }
}
