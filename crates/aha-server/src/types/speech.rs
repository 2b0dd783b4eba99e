//! Requests to speak, in OpenAI's form with the extensions of open models.

use super::fields::Fields;
use crate::error::ApiError;
use aha_engine::SpeechParams;
use aha_media::audio::AudioFormat;

/// Most characters of a text; beyond, one request would speak for hours.
const MOST_CHARACTERS: usize = 100_000;
const FORMATS: &str = "mp3, opus, flac, wav and pcm";

/// How the sound comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// As one answer, when all of it is there.
    Whole,
    /// As it is made, in the pieces of a chunked answer.
    Chunks,
    /// As it is made, in events.
    Events,
}

/// What the speech shall sound like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VoiceSource {
    /// Like nobody in particular.
    Default,
    /// A stored voice.
    Named(String),
    /// A reference that the request brings, and its words.
    Reference { audio: ReferenceAudio, text: String },
}

/// Where the sound of a reference is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReferenceAudio {
    /// In a data URL or base64, or at a URL where the server may fetch it.
    Named(String),
    /// It came as a file with the request's form.
    Uploaded,
}

/// A request to speak.
#[derive(Debug)]
pub(crate) struct SpeechRequest {
    pub(crate) model: Option<String>,
    pub(crate) input: String,
    pub(crate) voice: VoiceSource,
    pub(crate) format: AudioFormat,
    pub(crate) delivery: Delivery,
    pub(crate) params: SpeechParams,
    pub(crate) split: bool,
    pub(crate) normalize: bool,
}

impl SpeechRequest {
    /// Reads the fields of a request; `uploaded` says that a file came as its `ref_audio`.
    pub(crate) fn read(fields: &mut Fields, uploaded: bool) -> Result<Self, ApiError> {
        let model = fields.string("model")?;
        let Some(input) = fields.string("input")? else {
            return Err(ApiError::missing(
                "input",
                "'input' is missing: the text to speak",
            ));
        };
        let characters = input.chars().count();
        if characters > MOST_CHARACTERS {
            return Err(ApiError::invalid(
                "input",
                format!(
                    "'input' has {characters} characters, more than the limit of {MOST_CHARACTERS}"
                ),
            ));
        }
        // Speaking faster would mean another text to sound alignment, or a change of pitch: neither is this model's.
        if let Some(speed) = fields.number("speed", 0.25..=4.0)?
            && speed != 1.0
        {
            return Err(ApiError::unsupported(
                "speed",
                "'speed' other than 1 is not supported: the model chooses its own pace",
            ));
        }
        if fields
            .string("instructions")?
            .is_some_and(|text| !text.trim().is_empty())
        {
            return Err(ApiError::unsupported(
                "instructions",
                "'instructions' are not supported: the model speaks like its reference ('voice' or 'ref_audio')",
            ));
        }
        Ok(Self {
            model,
            voice: voice(fields, uploaded)?,
            format: format(fields)?,
            delivery: delivery(fields)?,
            params: params(fields)?,
            split: fields.boolean("split_text")?.unwrap_or(true),
            normalize: fields.boolean("normalize")?.unwrap_or(false),
            input,
        })
    }
}

fn voice(fields: &mut Fields, uploaded: bool) -> Result<VoiceSource, ApiError> {
    let named = match fields.take("voice") {
        None => None,
        Some(serde_json::Value::String(name)) => Some(name),
        // OpenAI's custom voices come as objects.
        Some(value) => {
            let mut voice = Fields::of(value, "voice".to_owned())?;
            voice.string("id")?
        }
    };
    let named = named.filter(|name| name != aha_engine::DEFAULT_VOICE);
    let audio = if uploaded {
        Some(ReferenceAudio::Uploaded)
    } else {
        fields.string("ref_audio")?.map(ReferenceAudio::Named)
    };
    let text = fields.string("ref_text")?;
    match (named, audio, text) {
        (None, None, None) => Ok(VoiceSource::Default),
        (Some(name), None, None) => Ok(VoiceSource::Named(name)),
        (None, Some(audio), Some(text)) => Ok(VoiceSource::Reference { audio, text }),
        (None, Some(_), None) => Err(ApiError::missing(
            "ref_text",
            "'ref_text' is missing: the words that 'ref_audio' says",
        )),
        (None, None, Some(_)) => Err(ApiError::missing(
            "ref_audio",
            "'ref_audio' is missing: the sound that 'ref_text' is of",
        )),
        (Some(_), ..) => Err(ApiError::invalid(
            "voice",
            "'voice' and 'ref_audio' exclude each other: give one of them",
        )),
    }
}

fn format(fields: &mut Fields) -> Result<AudioFormat, ApiError> {
    match fields.string("response_format")?.as_deref() {
        None | Some("mp3") => Ok(AudioFormat::Mp3),
        Some("opus") => Ok(AudioFormat::Opus),
        Some("flac") => Ok(AudioFormat::Flac),
        Some("wav") => Ok(AudioFormat::WavPcm16),
        Some("pcm") => Ok(AudioFormat::Pcm16),
        Some("aac") => Err(ApiError::unsupported(
            "response_format",
            format!("'response_format' aac is not available; {FORMATS} are"),
        )),
        Some(_) => Err(ApiError::invalid(
            "response_format",
            format!("'response_format' must be one of {FORMATS}"),
        )),
    }
}

fn delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = fields.boolean("stream")?;
    match (stream, fields.string("stream_format")?.as_deref()) {
        (Some(false), _) | (None, None) => Ok(Delivery::Whole),
        (Some(true), None) | (_, Some("audio")) => Ok(Delivery::Chunks),
        (_, Some("sse")) => Ok(Delivery::Events),
        (_, Some(_)) => Err(ApiError::invalid(
            "stream_format",
            "'stream_format' must be audio or sse",
        )),
    }
}

fn params(fields: &mut Fields) -> Result<SpeechParams, ApiError> {
    let default = SpeechParams::default();
    let number = |fields: &mut Fields, name: &str, most: f64, default: f32| {
        let value = fields.number(name, 0.0..=most)?;
        Ok::<_, ApiError>(value.map_or(default, |value| value as f32))
    };
    let seed = fields.integer("seed", i128::from(i64::MIN)..=i128::from(u64::MAX))?;
    Ok(SpeechParams {
        temperature: number(fields, "temperature", 10.0, default.temperature)?,
        // Negative seeds are in use, and stand for the number of the same bits.
        seed: seed.map(|seed| seed as u64),
        guidance: number(fields, "cfg_value", 100.0, default.guidance)?,
        steps: fields
            .count("inference_timesteps", 1..=1000)?
            .unwrap_or(default.steps),
        min_patches: fields
            .count("min_len", 0..=1 << 20)?
            .unwrap_or(default.min_patches),
        max_patches: fields.count("max_tokens", 1..=usize::MAX)?,
        retry: fields.boolean("retry_badcase")?.unwrap_or(default.retry),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> Result<SpeechRequest, ApiError> {
        let mut fields = Fields::parse(value.to_string().as_bytes())?;
        SpeechRequest::read(&mut fields, false)
    }

    #[test]
    fn the_defaults_are_openais_and_the_references() {
        let request = parse(json!({"model": "m", "input": "Hi", "voice": "default"})).unwrap();
        assert_eq!(request.format, AudioFormat::Mp3);
        assert_eq!(request.delivery, Delivery::Whole);
        assert_eq!(request.voice, VoiceSource::Default);
        assert_eq!(request.params, SpeechParams::default());
        assert!(request.split && !request.normalize);
    }

    #[test]
    fn fields_reach_their_places() {
        let request = parse(json!({"input": "Hi", "voice": {"id": "anna"}, "response_format": "wav", "stream": true,
            "stream_format": "sse", "temperature": 0, "seed": -1, "cfg_value": 1.5, "inference_timesteps": 4,
            "min_len": 3, "max_tokens": 7, "retry_badcase": false, "speed": 1.0}))
        .unwrap();
        assert_eq!(request.voice, VoiceSource::Named("anna".into()));
        assert_eq!(request.delivery, Delivery::Events);
        let expected = SpeechParams {
            temperature: 0.0,
            seed: Some(u64::MAX),
            guidance: 1.5,
            steps: 4,
            min_patches: 3,
            max_patches: Some(7),
            retry: false,
        };
        assert_eq!(request.params, expected);
        let streams = |value| parse(value).unwrap().delivery;
        assert_eq!(
            streams(json!({"input": "a", "stream": true})),
            Delivery::Chunks
        );
        assert_eq!(
            streams(json!({"input": "a", "stream_format": "sse"})),
            Delivery::Events
        );
        assert_eq!(
            streams(json!({"input": "a", "stream": false, "stream_format": "sse"})),
            Delivery::Whole
        );
    }

    #[test]
    fn what_is_not_possible_is_refused_by_name() {
        for (value, param) in [
            (json!({}), "input"),
            (json!({"input": 3}), "input"),
            (json!({"input": "x".repeat(100_001)}), "input"),
            (json!({"input": "a", "speed": 1.5}), "speed"),
            (json!({"input": "a", "speed": 9}), "speed"),
            (
                json!({"input": "a", "instructions": "whisper"}),
                "instructions",
            ),
            (
                json!({"input": "a", "response_format": "aac"}),
                "response_format",
            ),
            (
                json!({"input": "a", "response_format": "midi"}),
                "response_format",
            ),
            (
                json!({"input": "a", "stream_format": "tape"}),
                "stream_format",
            ),
            (json!({"input": "a", "ref_audio": "data:,"}), "ref_text"),
            (json!({"input": "a", "ref_text": "b"}), "ref_audio"),
            (
                json!({"input": "a", "voice": "anna", "ref_audio": "data:,", "ref_text": "b"}),
                "voice",
            ),
            (json!({"input": "a", "temperature": -1}), "temperature"),
            (
                json!({"input": "a", "inference_timesteps": 0}),
                "inference_timesteps",
            ),
            (json!({"input": "a", "max_tokens": 0}), "max_tokens"),
            (json!({"input": "a", "cfg_value": 1e9}), "cfg_value"),
            (json!({"input": "a", "seed": "x"}), "seed"),
        ] {
            let error = parse(value).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert_eq!(error.body.param.as_deref(), Some(param));
        }
    }
}
