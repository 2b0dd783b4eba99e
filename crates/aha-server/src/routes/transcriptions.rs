//! `POST /audio/transcriptions` and `POST /audio/translations`.

use crate::context::Deadline;
use crate::error::ApiError;
use crate::multipart::{Content, Form, Upload};
use crate::sse::{self, ChunkStream, StreamLimits};
use crate::state::AppState;
use crate::types::response::TokenLogprobs;
use crate::types::transcription::{
    SegmentAnswer, TEXT_FIELDS, TranscriptAnswer, TranscriptDelta, TranscriptDone,
    TranscriptFormat, TranscriptUsage, TranscriptionForm, VerboseAnswer,
};
use aha_engine::subtitles::{Cue, srt, vtt};
use aha_engine::{
    RecordingError, RecordingEvent, RecordingRequest, RecordingStream, Segment, TokenEvent,
    Transcription,
};
use aha_media::audio::AudioSource;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{StreamExt, unfold};
use serde::Serialize;
use tempfile::NamedTempFile;

/// The field with the recording.
const FILE: &str = "file";

/// Answers a recording.
pub(crate) async fn transcribe(
    State(state): State<AppState>,
    Extension(deadline): Extension<Deadline>,
    mut form: Form,
) -> Result<Response, ApiError> {
    let upload = form.take_file(FILE)?;
    let wishes = TranscriptionForm::read(form.texts.into_fields(&TEXT_FIELDS)?)?;
    let mut job = Job::start(&state, &wishes, upload)?;
    if !wishes.stream {
        return job.whole(&wishes).await;
    }
    // What is wrong with the recording or the request comes with the first event, while there still is a status to say so.
    let first = job.next().await?;
    let limits = StreamLimits {
        deadline,
        shutdown: state.shutdown.clone(),
        keep_alive: state.options.sse_keep_alive,
    };
    Ok(sse::respond_with(
        job.chunks(first, wishes.logprobs.is_some()),
        limits,
    ))
}

/// Refuses: no model here writes another language than it hears.
pub(crate) async fn translate(
    State(state): State<AppState>,
    mut form: Form,
) -> Result<Response, ApiError> {
    form.take_file(FILE)?;
    let wishes = TranscriptionForm::read(form.texts.into_fields(&TEXT_FIELDS)?)?;
    let model = state.models.find(wishes.model.as_deref())?;
    model.transcription_engine()?;
    Err(ApiError::unsupported(
        "model",
        format!(
            "the model {} does not translate: transcribe with /v1/audio/transcriptions, and let a chat model translate \
             the text",
            model.id()
        ),
    ))
}

/// A recording that is being transcribed.
struct Job {
    stream: RecordingStream,
    temperature: f32,
    /// Goes with the job.
    _file: Option<NamedTempFile>,
}

impl Job {
    fn start(
        state: &AppState,
        wishes: &TranscriptionForm,
        upload: Upload,
    ) -> Result<Self, ApiError> {
        let model = state.models.find(wishes.model.as_deref())?;
        let engine = model.transcription_engine()?;
        let (source, file) = match upload.into_content() {
            Content::Memory(bytes) => (AudioSource::from(bytes), None),
            Content::File(file) => (AudioSource::from(file.path()), Some(file)),
        };
        let sampling = wishes.sampling.resolve(&engine.defaults().sampling, 0);
        let temperature = sampling.temperature;
        // The long format tells the mean of each segment.
        let logprobs = match wishes.format {
            TranscriptFormat::VerboseJson => Some(wishes.logprobs.unwrap_or(0)),
            _ => wishes.logprobs,
        };
        let request = RecordingRequest {
            options: wishes.options.clone(),
            cutting: wishes.cutting.clone(),
            sampling,
            stop: wishes.stop.clone(),
            logprobs,
            decode: state.reader.audio.clone(),
            ..RecordingRequest::new(&engine)
        };
        Ok(Self {
            stream: RecordingStream::start(&engine, source, request)?,
            temperature,
            _file: file,
        })
    }

    async fn next(&mut self) -> Result<Option<RecordingEvent>, ApiError> {
        self.stream.next().await.transpose().map_err(refusal)
    }

    /// Waits for the whole transcript.
    async fn whole(mut self, wishes: &TranscriptionForm) -> Result<Response, ApiError> {
        let mut segments = Vec::new();
        loop {
            match self.next().await? {
                Some(RecordingEvent::Text { .. }) => {}
                Some(RecordingEvent::Segment(segment)) => segments.push(segment),
                Some(RecordingEvent::Finished(transcription)) => {
                    return Ok(self.answer(wishes, &segments, transcription));
                }
                None => return Err(ApiError::internal("a transcription ended without its end")),
            }
        }
    }

    fn answer(
        &self,
        wishes: &TranscriptionForm,
        segments: &[Segment],
        transcription: Transcription,
    ) -> Response {
        let duration = transcription.seconds;
        let cues = segments.iter().map(cue).collect::<Vec<_>>();
        let tokens = segments.iter().flat_map(|segment| &segment.tokens);
        let logprobs = wishes
            .logprobs
            .map(|_| tokens.filter_map(TokenLogprobs::of).collect());
        let answer = answer(transcription, logprobs);
        let text = |kind, text: String| {
            (
                [(header::CONTENT_TYPE, HeaderValue::from_static(kind))],
                text,
            )
                .into_response()
        };
        match wishes.format {
            TranscriptFormat::Json => Json(answer).into_response(),
            TranscriptFormat::Text => text("text/plain; charset=utf-8", answer.text + "\n"),
            TranscriptFormat::Srt => text("application/x-subrip; charset=utf-8", srt(&cues)),
            TranscriptFormat::Vtt => text("text/vtt; charset=utf-8", vtt(&cues)),
            TranscriptFormat::VerboseJson => Json(VerboseAnswer {
                task: "transcribe",
                duration,
                segments: segments
                    .iter()
                    .enumerate()
                    .map(|(id, segment)| SegmentAnswer::of(id, segment, self.temperature))
                    .collect(),
                answer,
            })
            .into_response(),
        }
    }

    /// OpenAI's events: deltas of the text, and the whole at the end.
    fn chunks(self, first: Option<RecordingEvent>, logprobs: bool) -> ChunkStream {
        let listed = logprobs.then(Vec::new);
        let state = (self, first.map(Ok), listed);
        unfold(state, |(mut job, waiting, mut listed)| async move {
            let event = match waiting {
                Some(event) => event,
                None => job.next().await.transpose()?,
            };
            let chunks = event.map(|event| match event {
                // Tokens without text, which end an answer.
                RecordingEvent::Text { delta, .. } if delta.is_empty() && listed.is_none() => {
                    Vec::new()
                }
                RecordingEvent::Text { delta, tokens } => {
                    let logprobs = listed.as_mut().map(|listed| {
                        let tokens = of(&tokens);
                        listed.extend(tokens.clone());
                        tokens
                    });
                    vec![written(&TranscriptDelta {
                        kind: "transcript.text.delta",
                        delta,
                        logprobs,
                    })]
                }
                RecordingEvent::Segment(_) => Vec::new(),
                RecordingEvent::Finished(transcription) => {
                    vec![written(&TranscriptDone {
                        kind: "transcript.text.done",
                        answer: answer(transcription, listed.take()),
                    })]
                }
            });
            Some((chunks, (job, None, listed)))
        })
        .boxed()
    }
}

/// An event as JSON text. Our own types always have one.
fn written(event: &impl Serialize) -> String {
    serde_json::to_string(event).unwrap_or_default()
}

fn of(tokens: &[TokenEvent]) -> Vec<TokenLogprobs> {
    tokens.iter().filter_map(TokenLogprobs::of).collect()
}

fn answer(transcription: Transcription, logprobs: Option<Vec<TokenLogprobs>>) -> TranscriptAnswer {
    TranscriptAnswer {
        usage: TranscriptUsage::from(&transcription.usage),
        text: transcription.transcript.text,
        language: transcription.transcript.language,
        logprobs,
        truncated: transcription.truncated,
    }
}

fn cue(segment: &Segment) -> Cue {
    Cue {
        start: segment.start,
        end: segment.end,
        text: segment.transcript.text.clone(),
    }
}

fn refusal(error: RecordingError) -> ApiError {
    match error {
        RecordingError::Audio(error) => ApiError::audio(error, FILE),
        RecordingError::Engine(error) => error.into(),
    }
}
