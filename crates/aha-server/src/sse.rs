//! Answers as event streams.

use crate::answer::Generations;
use crate::context::Deadline;
use crate::error::ApiError;
use crate::shutdown::{Phase, Shutdown};
use aha_engine::Event;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, StreamExt, unfold};
use std::convert::Infallible;
use std::pin::pin;
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

/// Chunks as they come, several at once or none; after an error nothing follows.
pub(crate) type ChunkStream = BoxStream<'static, Result<Vec<String>, ApiError>>;

struct EventStream {
    /// `None` after the end.
    chunks: Option<ChunkStream>,
    limits: StreamLimits,
    span: tracing::Span,
}

/// A response that sends the chunks of `generations` as they come.
///
/// The body owns the generations: a client that goes away drops it, which cancels them.
pub(crate) fn respond(
    mut chunks: impl Chunks,
    generations: Generations,
    limits: StreamLimits,
) -> Response {
    let opening = stream::iter([Ok(chunks.opening())]);
    let running = unfold(Some((chunks, generations)), |running| async move {
        let (mut chunks, mut generations) = running?;
        Some(match generations.next().await {
            Some((choice, event)) => (chunks.event(choice, event), Some((chunks, generations))),
            None => (Ok(chunks.closing()), None),
        })
    });
    respond_with(opening.chain(running).boxed(), limits)
}

/// A response that sends chunks as they come. A client that goes away drops what makes them.
pub(crate) fn respond_with(chunks: ChunkStream, limits: StreamLimits) -> Response {
    let stream = EventStream {
        chunks: Some(chunks),
        limits,
        span: tracing::Span::current(),
    };
    let frames = unfold(stream, |mut stream| async move {
        stream.chunks.as_ref()?;
        let frame = stream.advance().await;
        Some((Ok::<_, Infallible>(frame), stream))
    });
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

impl EventStream {
    /// The next bytes: chunks, a keep-alive comment, or the end.
    async fn advance(&mut self) -> Bytes {
        let Some(chunks) = &mut self.chunks else {
            return Bytes::new();
        };
        // Counted from the bytes before: events that yield none do not keep a connection open.
        let mut silence = pin!(tokio::time::sleep(self.limits.keep_alive));
        loop {
            let outcome = tokio::select! {
                biased;
                () = self.limits.shutdown.reached(Phase::Cutting) => {
                    Err(ApiError::shutting_down())
                }
                error = self.limits.deadline.passed() => Err(error),
                () = silence.as_mut() => return Bytes::from_static(KEEP_ALIVE),
                outcome = chunks.next() => match outcome {
                    Some(outcome) => outcome,
                    None => {
                        self.chunks = None;
                        return Bytes::from_static(b"data: [DONE]\n\n");
                    }
                },
            };
            match outcome {
                Ok(chunks) if chunks.is_empty() => {}
                Ok(chunks) => return data(&chunks),
                Err(error) => {
                    self.span.in_scope(|| {
                        tracing::warn!(message = error.body.message, "the stream was cut");
                        error.log();
                    });
                    // Dropping what makes the chunks cancels it.
                    self.chunks = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use aha_engine::EngineError;
    use std::sync::Arc;

    /// Chunks that only say that they were there.
    struct Words;

    impl Chunks for Words {
        fn opening(&mut self) -> Vec<String> {
            vec!["\"open\"".into()]
        }

        fn event(&mut self, choice: usize, event: Event) -> Result<Vec<String>, ApiError> {
            match event {
                Event::Failed(error) => Err(error.into()),
                _ => Ok(vec![format!("\"event {choice}\"")]),
            }
        }

        fn closing(&mut self) -> Vec<String> {
            vec!["\"close\"".into()]
        }
    }

    fn finished() -> Event {
        Event::Finished(aha_engine::Finished {
            reason: aha_engine::FinishReason::Stop,
            text: String::new(),
            stop: None,
            usage: aha_engine::Usage::default(),
            timings: aha_engine::Timings::default(),
        })
    }

    fn limits(seconds: u64, shutdown: &Shutdown) -> StreamLimits {
        StreamLimits {
            deadline: Deadline::new(Some(Duration::from_secs(seconds))),
            shutdown: shutdown.clone(),
            keep_alive: Duration::from_secs(15),
        }
    }

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn never() -> BoxStream<'static, Event> {
        stream::pending().boxed()
    }

    #[tokio::test]
    async fn a_stream_opens_tells_closes_and_is_done() {
        let generations = Generations::scripted(vec![stream::iter([finished()]).boxed()]);
        let response = respond(Words, generations, limits(60, &Shutdown::default()));
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream; charset=utf-8"
        );
        assert_eq!(
            text(response).await,
            "data: \"open\"\n\ndata: \"event 0\"\n\ndata: \"close\"\n\ndata: [DONE]\n\n"
        );
    }

    #[tokio::test]
    async fn a_failure_is_an_error_event_and_the_end_of_all_answers() {
        let failing = stream::iter([Event::Failed(EngineError::internal("secret"))]).boxed();
        let generations = Generations::scripted(vec![never(), failing]);
        let text = text(respond(
            Words,
            generations,
            limits(60, &Shutdown::default()),
        ))
        .await;
        assert!(text.contains("data: {\"error\":{"), "{text}");
        assert!(
            text.ends_with("\n\ndata: [DONE]\n\n") && !text.contains("secret"),
            "{text}"
        );
        assert!(!text.contains("close"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_until_the_deadline() {
        let generations = Generations::scripted(vec![never()]);
        let text = text(respond(
            Words,
            generations,
            limits(50, &Shutdown::default()),
        ))
        .await;
        assert_eq!(text.matches(": keep-alive\n\n").count(), 3, "{text}");
        assert!(text.contains("\"code\":\"timeout\""), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn events_without_chunks_are_silence_too() {
        struct Hidden;
        impl Chunks for Hidden {
            fn opening(&mut self) -> Vec<String> {
                Vec::new()
            }
            fn event(&mut self, _: usize, _: Event) -> Result<Vec<String>, ApiError> {
                Ok(Vec::new())
            }
            fn closing(&mut self) -> Vec<String> {
                Vec::new()
            }
        }
        // An event a second for 50 seconds.
        let events = stream::iter(0..50).then(|_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            finished()
        });
        let generations = Generations::scripted(vec![events.boxed()]);
        let text = text(respond(
            Hidden,
            generations,
            limits(600, &Shutdown::default()),
        ))
        .await;
        assert_eq!(text.matches(": keep-alive\n\n").count(), 3, "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_grace_time_cuts_the_stream() {
        let shutdown = Shutdown::default();
        let response = respond(
            Words,
            Generations::scripted(vec![never()]),
            limits(600, &shutdown),
        );
        let reading = tokio::spawn(text(response));
        shutdown.request();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!reading.is_finished(), "draining must not cut");
        shutdown.advance(Phase::Cutting);
        let text = reading.await.unwrap();
        assert!(
            text.contains("shutting_down") && text.ends_with("data: [DONE]\n\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_dropped_body_drops_the_generations() {
        let held = Arc::new(());
        let watched = held.clone();
        let events = stream::repeat_with(move || {
            let _ = &watched;
            finished()
        });
        let generations = Generations::scripted(vec![events.boxed()]);
        let response = respond(Words, generations, limits(60, &Shutdown::default()));
        let mut body = response.into_body().into_data_stream();
        body.next().await.unwrap().unwrap();
        body.next().await.unwrap().unwrap();
        assert_eq!(Arc::strong_count(&held), 2);
        drop(body);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
