//! `POST /audio/speech`.

use crate::context::Deadline;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::media::read_file_of;
use crate::shutdown::Phase;
use crate::sse::event_stream_headers;
use crate::state::AppState;
use crate::types::speech::{Delivery, SpeechRequest, VoiceSource};
use aha_engine::{
    FinishReason, Speech, SpeechEngine, SpeechEvent, SpeechFinished, Voice, normalize_text,
};
use aha_media::audio::{AudioEncoder, EncodeOptions, encode};
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::unfold;
use serde_json::json;
use std::pin::pin;
use std::time::Duration;

/// Whether the model ended the speech or a limit did; streams tell it in their last event.
const FINISH_REASON: HeaderName = HeaderName::from_static("x-finish-reason");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A request whose model is found and has room for it.
struct Draft {
    engine: SpeechEngine,
    request: SpeechRequest,
}

impl Draft {
    fn read(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let request = SpeechRequest::parse(body)?;
        let model = state.models.find(request.model.as_deref())?;
        let engine = model.speech_engine()?;
        // A full queue refuses before the work of reading a reference.
        engine.check_room()?;
        Ok(Self { engine, request })
    }

    /// Reads the voice, and submits.
    fn start(self, state: &AppState, reference: Option<Vec<u8>>) -> Result<Started, ApiError> {
        let Self {
            engine, request, ..
        } = self;
        let voice = voice(state, &engine, request.voice, reference)?;
        let text = if request.normalize {
            normalize_text(&request.input)
        } else {
            request.input
        };
        let encoding = EncodeOptions {
            format: request.format,
            sample_rate: engine.format().sample_rate,
            channels: 1,
            bitrate: None,
        };
        // An encoder that does not take the model's rate is found before anything is computed.
        AudioEncoder::new(encoding, &mut Vec::new())
            .map_err(|error| ApiError::audio(error, "response_format"))?;
        let speech = engine.submit(aha_engine::SpeechRequest {
            text,
            voice,
            params: request.params,
            stream: request.delivery != Delivery::Whole,
            split: request.split,
        })?;
        Ok(Started {
            speech,
            encoding,
            delivery: request.delivery,
        })
    }
}

fn voice(
    state: &AppState,
    engine: &SpeechEngine,
    source: VoiceSource,
    reference: Option<Vec<u8>>,
) -> Result<Option<Voice>, ApiError> {
    match (source, reference) {
        (VoiceSource::Default, _) => Ok(None),
        (VoiceSource::Named(name), _) => {
            let voices = state.voices()?;
            let voice = voices.load(&name, engine, &state.reader.audio);
            Ok(Some(voice.map_err(ApiError::voice)?))
        }
        (VoiceSource::Reference { text, .. }, Some(audio)) => {
            let voice = engine.reference(&text, &audio, &state.reader.audio);
            Ok(Some(voice.map_err(ApiError::reference)?))
        }
        (VoiceSource::Reference { .. }, None) => {
            Err(ApiError::internal("the reference was not fetched"))
        }
    }
}

/// A speech that is being made, and how it is to be sent.
struct Started {
    speech: Speech,
    encoding: EncodeOptions,
    delivery: Delivery,
}

/// Speaks a text.
pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(deadline): Extension<Deadline>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let draft = state.prepare(move || Draft::read(&shared, &body)).await?;
    let reference = match &draft.request.voice {
        VoiceSource::Reference { audio, .. } => {
            let limit = state.options.media.limits.max_video_bytes;
            Some(read_file_of(&state, audio.clone(), limit, "ref_audio").await?)
        }
        VoiceSource::Default | VoiceSource::Named(_) => None,
    };
    let shared = state.clone();
    let started = state
        .prepare(move || draft.start(&shared, reference))
        .await?;
    match started.delivery {
        Delivery::Whole => whole(&state, started).await,
        Delivery::Chunks | Delivery::Events => stream(&state, started, deadline).await,
    }
}

/// All of the sound in one answer.
async fn whole(state: &AppState, started: Started) -> Result<Response, ApiError> {
    let Started {
        mut speech,
        encoding,
        ..
    } = started;
    let mut samples = Vec::new();
    let finished = loop {
        match speech.next().await {
            Some(SpeechEvent::Audio(more)) if samples.is_empty() => samples = more,
            Some(SpeechEvent::Audio(more)) => samples.extend(more),
            Some(SpeechEvent::Finished(finished)) => break finished,
            Some(SpeechEvent::Failed(error)) => return Err(error.into()),
            None => return Err(ApiError::internal("a speech ended without an end")),
        }
    };
    let bytes = state
        .prepare(move || {
            encode(&samples, encoding).map_err(|error| ApiError::audio(error, "response_format"))
        })
        .await?;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let timing = format!(
        "queue;dur={:.1}, speech;dur={:.1}",
        milliseconds(finished.queued),
        milliseconds(finished.computed)
    );
    let headers = [
        (
            header::CONTENT_TYPE,
            encoding.format.media_type().to_owned(),
        ),
        (FINISH_REASON, reason(&finished).to_owned()),
        (SERVER_TIMING, timing),
    ];
    Ok((headers, bytes).into_response())
}

fn reason(finished: &SpeechFinished) -> &'static str {
    match finished.reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// A body in the making.
struct Stream {
    speech: Speech,
    encoder: Option<AudioEncoder>,
    events: bool,
    deadline: Deadline,
    state: AppState,
    span: tracing::Span,
}

/// The sound as it is made: bytes of a file, or events with base64 of the same bytes. The body owns the speech: a
/// client that goes away drops it, which cancels the work.
async fn stream(
    state: &AppState,
    started: Started,
    deadline: Deadline,
) -> Result<Response, ApiError> {
    let Started {
        mut speech,
        encoding,
        delivery,
    } = started;
    // The first sound decides the status: what fails before it is an error, not a broken stream.
    let first = match speech.next().await {
        Some(SpeechEvent::Failed(error)) => return Err(error.into()),
        first => first,
    };
    let mut head = Vec::new();
    let encoder = AudioEncoder::new(encoding, &mut head)
        .map_err(|error| ApiError::audio(error, "response_format"))?;
    let events = delivery == Delivery::Events;
    let stream = Stream {
        speech,
        encoder: Some(encoder),
        events,
        deadline,
        state: state.clone(),
        span: tracing::Span::current(),
    };
    let body = unfold(
        (stream, Some((first, head))),
        |(mut stream, first)| async move {
            let piece = match first {
                Some((event, head)) => stream.piece(event, head),
                None => stream.next().await,
            }?;
            Some((piece, (stream, None)))
        },
    );
    let body = Body::from_stream(body);
    if events {
        return Ok((event_stream_headers(), body).into_response());
    }
    let kind = HeaderValue::from_static(encoding.format.media_type());
    let buffering = HeaderName::from_static("x-accel-buffering");
    let headers = [
        (header::CONTENT_TYPE, kind),
        (buffering, HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}

/// What breaks off a stream of bytes, whose form has no place for words.
#[derive(Debug, thiserror::Error)]
#[error("the speech was cut")]
struct Cut;

impl Stream {
    /// The next bytes; `None` behind the end.
    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        self.encoder.as_ref()?;
        let keep_alive = self.state.options.sse_keep_alive;
        let mut silence = pin!(tokio::time::sleep(keep_alive));
        loop {
            let event = tokio::select! {
                biased;
                () = self.state.shutdown.reached(Phase::Cutting) => {
                    return self.cut(ApiError::shutting_down());
                }
                error = self.deadline.passed() => return self.cut(error),
                () = silence.as_mut(), if self.events => {
                    return Some(Ok(Bytes::from_static(b": keep-alive\n\n")));
                }
                event = self.speech.next() => event,
            };
            match self.piece(event, Vec::new()) {
                // An encoder may need more samples before it has bytes.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                piece => return piece,
            }
        }
    }

    /// The bytes of an event, behind `bytes`.
    fn piece(
        &mut self,
        event: Option<SpeechEvent>,
        mut bytes: Vec<u8>,
    ) -> Option<Result<Bytes, Cut>> {
        let mut encoder = self.encoder.take()?;
        let finished = match event {
            Some(SpeechEvent::Audio(samples)) => {
                if let Err(error) = encoder.push(&samples, &mut bytes) {
                    return self.cut(ApiError::internal(error.to_string()));
                }
                self.encoder = Some(encoder);
                None
            }
            Some(SpeechEvent::Finished(finished)) => {
                if let Err(error) = encoder.finish(&mut bytes) {
                    return self.cut(ApiError::internal(error.to_string()));
                }
                Some(finished)
            }
            Some(SpeechEvent::Failed(error)) => return self.cut(error.into()),
            None => return self.cut(ApiError::internal("a speech ended without an end")),
        };
        if !self.events {
            return Some(Ok(bytes.into()));
        }
        let mut text = String::new();
        if !bytes.is_empty() {
            let audio = BASE64_STANDARD.encode(&bytes);
            text = data(&json!({"type": "speech.audio.delta", "audio": audio}));
        }
        if let Some(finished) = finished {
            text.push_str(&data(&done(&finished)));
            text.push_str("data: [DONE]\n\n");
        }
        Some(Ok(text.into()))
    }

    /// Ends the stream where it is. Dropping the speech cancels it.
    fn cut(&mut self, error: ApiError) -> Option<Result<Bytes, Cut>> {
        self.encoder = None;
        self.span.in_scope(|| {
            tracing::warn!(message = error.body.message, "the speech was cut");
            error.log();
        });
        if self.events {
            let text = format!("data: {}\n\ndata: [DONE]\n\n", error.to_json());
            return Some(Ok(text.into()));
        }
        Some(Err(Cut))
    }
}

fn done(finished: &SpeechFinished) -> serde_json::Value {
    json!({
        "type": "speech.audio.done",
        "finish_reason": reason(finished),
        "usage": {
            "input_tokens": finished.prompt_tokens,
            "output_tokens": finished.patches,
            "total_tokens": finished.prompt_tokens + finished.patches,
        },
    })
}

fn data(event: &serde_json::Value) -> String {
    format!("data: {event}\n\n")
}
