//! `POST /audio/speech`.

use crate::context::Deadline;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::media::read_source;
use crate::multipart::{Form, Upload};
use crate::shutdown::Phase;
use crate::sse::{self, ChunkStream, StreamLimits};
use crate::state::AppState;
use crate::types::fields::Fields;
use crate::types::media::Source;
use crate::types::speech::{Delivery, ReferenceAudio, SpeechRequest, VoiceSource};
use aha_engine::{
    FinishReason, Speech, SpeechEngine, SpeechEvent, SpeechFinished, Voice, normalize_text,
};
use aha_media::audio::{AudioEncoder, EncodeOptions, encode};
use axum::body::Body;
use axum::extract::{Extension, FromRequest, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{Stream, StreamExt, unfold};
use serde_json::json;
use std::time::Duration;

/// Whether the model ended the speech or a limit did; streams tell it in their last event.
const FINISH_REASON: HeaderName = HeaderName::from_static("x-finish-reason");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A request as JSON, or as a form that brings the recording `ref_audio` as a file.
pub(crate) enum Received {
    Json(JsonBody),
    Form(Box<Form>),
}

/// Fields of a form whose text may look like JSON and is none.
const TEXTS: [&str; 7] = [
    "model",
    "name",
    "input",
    "voice",
    "ref_text",
    "response_format",
    "stream_format",
];

impl FromRequest<AppState> for Received {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_form = content_type
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/"));
        if is_form {
            let form = Form::from_request(request, state).await?;
            return Ok(Self::Form(Box::new(form)));
        }
        JsonBody::from_request(request, state).await.map(Self::Json)
    }
}

impl Received {
    /// The fields, and the recording that came with a form.
    pub(crate) fn open(self) -> Result<(Fields, Option<Upload>), ApiError> {
        match self {
            Self::Json(JsonBody(body)) => Ok((Fields::parse(&body)?, None)),
            Self::Form(mut form) => {
                let upload = form.take_file("ref_audio")?;
                Ok((form.texts.into_fields(&TEXTS)?, Some(upload)))
            }
        }
    }
}

/// Most bytes of a recording to speak like.
pub(crate) fn reference_limit(state: &AppState) -> u64 {
    state.options.media.limits.max_video_bytes
}

/// The recording that came with a form.
pub(crate) fn read_upload(state: &AppState, upload: Upload) -> Result<Vec<u8>, ApiError> {
    upload.into_bytes(reference_limit(state), "ref_audio")
}

/// A request whose model is found and has room for it.
struct Draft {
    engine: SpeechEngine,
    request: SpeechRequest,
}

impl Draft {
    fn read(state: &AppState, fields: &mut Fields, uploaded: bool) -> Result<Self, ApiError> {
        let request = SpeechRequest::read(fields, uploaded)?;
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
    received: Received,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let (draft, upload) = state
        .prepare(move || {
            let (mut fields, upload) = received.open()?;
            let upload = upload
                .map(|upload| read_upload(&shared, upload))
                .transpose()?;
            Ok((Draft::read(&shared, &mut fields, upload.is_some())?, upload))
        })
        .await?;
    let reference = match &draft.request.voice {
        VoiceSource::Reference {
            audio: ReferenceAudio::Uploaded,
            ..
        } => upload,
        VoiceSource::Reference {
            audio: ReferenceAudio::Named(audio),
            ..
        } => {
            let limit = reference_limit(&state);
            Some(read_source(&state, Source::Named(audio.clone()), limit, "ref_audio").await?)
        }
        VoiceSource::Default | VoiceSource::Named(_) => None,
    };
    let shared = state.clone();
    let started = state
        .prepare(move || draft.start(&shared, reference))
        .await?;
    match started.delivery {
        Delivery::Whole => whole(&state, started).await,
        Delivery::Chunks | Delivery::Events => {
            let limits = StreamLimits {
                deadline,
                shutdown: state.shutdown.clone(),
                keep_alive: state.options.sse_keep_alive,
            };
            stream(started, limits).await
        }
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

/// The sound as it is made: bytes of a file, or events with base64 of the same bytes. The body owns the speech: a
/// client that goes away drops it, which cancels the work.
async fn stream(started: Started, limits: StreamLimits) -> Result<Response, ApiError> {
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
    let pieces = Pieces {
        speech,
        first,
        head,
        encoder: Some(encoder),
    };
    if delivery == Delivery::Events {
        return Ok(sse::respond_with(pieces.events(), limits));
    }
    let kind = HeaderValue::from_static(encoding.format.media_type());
    let headers = [
        (header::CONTENT_TYPE, kind),
        // Proxies that buffer would turn the stream into one late answer.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, Body::from_stream(pieces.bytes(limits))).into_response())
}

/// A file in the making.
struct Pieces {
    speech: Speech,
    /// What was awaited already.
    first: Option<SpeechEvent>,
    /// Bytes that come before those of the next event.
    head: Vec<u8>,
    /// `None` after the end.
    encoder: Option<AudioEncoder>,
}

/// What one event of a speech became.
struct Piece {
    bytes: Vec<u8>,
    finished: Option<SpeechFinished>,
}

/// What breaks off a stream of bytes, whose form has no place for words.
#[derive(Debug, thiserror::Error)]
#[error("the speech was cut")]
struct Cut;

impl Pieces {
    /// The next piece, possibly without bytes: an encoder may need more samples before it has some. `None` after the
    /// end; after an error nothing follows.
    async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        self.encoder.as_ref()?;
        let event = match self.first.take() {
            Some(event) => Some(event),
            None => self.speech.next().await,
        };
        let mut encoder = self.encoder.take()?;
        let mut bytes = std::mem::take(&mut self.head);
        let encoded = match event {
            Some(SpeechEvent::Audio(samples)) => encoder.push(&samples, &mut bytes).map(|()| {
                self.encoder = Some(encoder);
                None
            }),
            Some(SpeechEvent::Finished(finished)) => {
                encoder.finish(&mut bytes).map(|_| Some(finished))
            }
            Some(SpeechEvent::Failed(error)) => return Some(Err(error.into())),
            None => {
                return Some(Err(ApiError::internal("a speech ended without an end")));
            }
        };
        Some(match encoded {
            Ok(finished) => Ok(Piece { bytes, finished }),
            Err(error) => Err(ApiError::internal(error.to_string())),
        })
    }

    /// Events of the stream.
    fn events(self) -> ChunkStream {
        unfold(self, |mut pieces| async move {
            let piece = pieces.next().await?;
            Some((piece.map(|piece| piece.events()), pieces))
        })
        .boxed()
    }

    /// Bytes of the file, until its end or that of the time.
    fn bytes(
        self,
        limits: StreamLimits,
    ) -> impl Stream<Item = Result<Vec<u8>, Cut>> + Send + 'static {
        let span = tracing::Span::current();
        unfold(
            (self, limits, span),
            |(mut pieces, limits, span)| async move {
                let piece = tokio::select! {
                    biased;
                    () = limits.shutdown.reached(Phase::Cutting) => Err(ApiError::shutting_down()),
                    error = limits.deadline.passed() => Err(error),
                    piece = pieces.next() => piece?,
                };
                let bytes = piece.map(|piece| piece.bytes).map_err(|error| {
                    pieces.encoder = None;
                    span.in_scope(|| {
                        tracing::warn!(message = error.body.message, "the speech was cut");
                        error.log();
                    });
                    Cut
                });
                Some((bytes, (pieces, limits, span)))
            },
        )
        .filter(|bytes| std::future::ready(!matches!(bytes, Ok(bytes) if bytes.is_empty())))
    }
}

impl Piece {
    /// In OpenAI's events.
    fn events(self) -> Vec<String> {
        let mut events = Vec::new();
        if !self.bytes.is_empty() {
            let audio = BASE64_STANDARD.encode(&self.bytes);
            events.push(json!({"type": "speech.audio.delta", "audio": audio}).to_string());
        }
        if let Some(finished) = &self.finished {
            let (input, output) = (finished.prompt_tokens, finished.patches);
            let done = json!({
                "type": "speech.audio.done",
                "finish_reason": reason(finished),
                "usage": {
                    "input_tokens": input,
                    "output_tokens": output,
                    "total_tokens": input + output,
                },
            });
            events.push(done.to_string());
        }
        events
    }
}
