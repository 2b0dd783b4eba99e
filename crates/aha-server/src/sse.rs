//! Answers as event streams.

use crate::answer::Generations;
use crate::context::Deadline;
use crate::error::ApiError;
use crate::shutdown::{Phase, Shutdown};
use aha_engine::Event;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use std::convert::Infallible;
use std::time::Duration;

const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// How the events of one request become chunks. Each chunk is the JSON text of one `data:` line.
pub(crate) trait Chunks: Send + 'static {
    /// Chunks before the first event.
    fn opening(&mut self) -> Vec<String>;

    /// Chunks of one event of the answer number `choice`.
    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<String>, ApiError>;

    /// Chunks after the last event.
    fn closing(&mut self) -> Vec<String>;
}

/// What bounds a stream in time.
pub(crate) struct StreamLimits {
    pub(crate) deadline: Deadline,
    pub(crate) shutdown: Shutdown,
    pub(crate) keep_alive: Duration,
}

enum Stage {
    Opening,
    Running(Generations),
    Ended,
}

struct EventStream<C> {
    chunks: C,
    limits: StreamLimits,
    stage: Stage,
    span: tracing::Span,
}

/// A response that sends the chunks of `generations` as they come.
///
/// The body owns the generations: a client that goes away drops it, which cancels them.
pub(crate) fn respond(
    chunks: impl Chunks,
    generations: Generations,
    limits: StreamLimits,
) -> Response {
    let span = tracing::Span::current();
    let stream = EventStream {
        chunks,
        limits,
        stage: Stage::Opening,
        span,
    };
    let frames = unfold(
        (stream, Some(generations)),
        |(mut stream, mut waiting)| async move {
            let frame = match stream.stage {
                Stage::Opening => {
                    let frame = data(&stream.chunks.opening());
                    stream.stage = waiting.take().map_or(Stage::Ended, Stage::Running);
                    frame
                }
                Stage::Running(_) => stream.advance().await,
                Stage::Ended => return None,
            };
            Some((Ok::<_, Infallible>(frame), (stream, waiting)))
        },
    );
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies that buffer would turn the stream into one late answer.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

impl<C: Chunks> EventStream<C> {
    /// The next bytes: chunks, a keep-alive comment, or the end.
    async fn advance(&mut self) -> Bytes {
        let Stage::Running(generations) = &mut self.stage else {
            return Bytes::new();
        };
        loop {
            let outcome = tokio::select! {
                biased;
                () = self.limits.shutdown.reached(Phase::Cutting) => {
                    Err(ApiError::shutting_down())
                }
                error = self.limits.deadline.passed() => Err(error),
                event = generations.next() => match event {
                    Some((choice, event)) => self.chunks.event(choice, event),
                    None => {
                        let mut bytes = data(&self.chunks.closing()).to_vec();
                        bytes.extend_from_slice(b"data: [DONE]\n\n");
                        self.stage = Stage::Ended;
                        return bytes.into();
                    }
                },
                () = tokio::time::sleep(self.limits.keep_alive) => {
                    return Bytes::from_static(KEEP_ALIVE);
                }
            };
            match outcome {
                Ok(chunks) if chunks.is_empty() => {}
                Ok(chunks) => return data(&chunks),
                Err(error) => {
                    self.span.in_scope(|| {
                        tracing::warn!(message = error.body.message, "the stream was cut");
                        error.log();
                    });
                    // Ending the stage drops the generations, which cancels them.
                    self.stage = Stage::Ended;
                    return format!("data: {}\n\ndata: [DONE]\n\n", error.to_json()).into();
                }
            }
        }
    }
}

/// Chunks as `data:` lines. JSON text holds no line breaks.
fn data(chunks: &[String]) -> Bytes {
    let mut bytes = String::with_capacity(chunks.iter().map(|chunk| chunk.len() + 8).sum());
    for chunk in chunks {
        bytes.push_str("data: ");
        bytes.push_str(chunk);
        bytes.push_str("\n\n");
    }
    bytes.into()
}
