//! What surrounds every request: its id, its deadline, its line in the log, its count.

use crate::error::ApiError;
use crate::ids;
use crate::shutdown::Phase;
use crate::state::AppState;
use aha_engine::Timings;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_LENGTH_LIMIT: usize = 128;

/// The other end of the connection, set by the accept loop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// When the request's time is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            // A limit beyond the clock's range is none.
            at: limit.and_then(|limit| now.checked_add(limit)),
            limit: limit.unwrap_or_default(),
        }
    }

    /// Resolves when the time is over, to the error that says so.
    pub(crate) async fn passed(&self) -> ApiError {
        match self.at {
            Some(at) => {
                tokio::time::sleep_until(at).await;
                ApiError::timeout(self.limit.as_secs_f64())
            }
            None => std::future::pending().await,
        }
    }
}

/// Where a whole answer's time went, in the standard `Server-Timing` header.
pub(crate) fn server_timing(timings: &Timings) -> [(HeaderName, String); 1] {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let value = format!(
        "queue;dur={:.1}, prefill;dur={:.1}, decode;dur={:.1}",
        milliseconds(timings.queued),
        milliseconds(timings.prefill),
        milliseconds(timings.decode)
    );
    [(HeaderName::from_static("server-timing"), value)]
}

/// The longer time of each part: answers of one request run beside each other.
pub(crate) fn longest(one: Timings, other: &Timings) -> Timings {
    Timings {
        queued: one.queued.max(other.queued),
        prefill: one.prefill.max(other.prefill),
        decode: one.decode.max(other.decode),
    }
}

/// Middleware, outermost: gives the request an id, logs and counts it.
pub(crate) async fn observe(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = std::time::Instant::now();
    let id = request_id(request.headers());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", id);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    request
        .extensions_mut()
        .insert(Deadline::new(state.options.request_timeout));
    let mut response = next.run(request).instrument(span.clone()).await;
    let took = started.elapsed();
    let status = response.status().as_u16();
    state.metrics.count_request(&route, status, took);
    // Debug formatting escapes what a client could smuggle into the log's lines.
    span.in_scope(|| {
        tracing::info!(%method, ?path, status, milliseconds = took.as_millis(), "answered");
    });
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The client's id when it is harmless, a new one otherwise.
fn request_id(headers: &HeaderMap) -> String {
    let harmless = |id: &&str| {
        (1..=REQUEST_ID_LENGTH_LIMIT).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(harmless)
        .map_or_else(|| format!("req-{}", ids::unique()), str::to_owned)
}

/// Middleware: ends a request whose time is over, whose server is stopping, or that came while it
/// stops. Dropping the handler cancels its generations. Streams see to themselves once their head
/// is sent.
pub(crate) async fn bound(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let deadline = request
        .extensions()
        .get()
        .copied()
        .unwrap_or(Deadline::new(None));
    let probe = matches!(
        request.uri().path().trim_start_matches("/v1"),
        "/health" | "/live"
    );
    if state.shutdown.is_requested() && !probe {
        return closing(ApiError::shutting_down());
    }
    tokio::select! {
        biased;
        response = next.run(request) => response,
        error = deadline.passed() => closing(error),
        () = state.shutdown.reached(Phase::Cutting) => closing(ApiError::shutting_down()),
    }
}

/// An error after which the connection is closed: its request was not read to the end.
fn closing(error: ApiError) -> Response {
    let mut response = error.into_response();
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_kept_when_harmless_and_replaced_otherwise() {
        let of = |value: &str| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request_id(&HeaderMap::from_iter([(REQUEST_ID, value)]))
        };
        assert_eq!(of("trace-1:a.b_c"), "trace-1:a.b_c");
        for bad in ["", "a b", "a\"b", "é", &"x".repeat(129)] {
            assert!(of(bad).starts_with("req-"), "{bad}");
        }
        assert!(request_id(&HeaderMap::new()).starts_with("req-"));
    }

    #[test]
    fn timings_read_as_a_standard_header() {
        let timings = Timings {
            queued: Duration::from_millis(2),
            prefill: Duration::from_micros(1500),
            decode: Duration::from_secs(1),
        };
        let [(name, value)] = server_timing(&longest(timings, &Timings::default()));
        assert_eq!(name, "server-timing");
        assert_eq!(value, "queue;dur=2.0, prefill;dur=1.5, decode;dur=1000.0");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_with_504() {
        let error = Deadline::new(Some(Duration::from_secs(5))).passed().await;
        assert_eq!(error.status.as_u16(), 504);
    }
}
