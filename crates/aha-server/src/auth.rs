//! API keys.

use crate::error::ApiError;
use crate::state::AppState;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

/// Paths that answer without a key: probes carry none.
const PUBLIC_PATHS: [&str; 5] = ["/", "/health", "/live", "/v1/health", "/v1/live"];

/// The keys that open the API.
#[derive(Clone)]
pub(crate) struct ApiKeys(Vec<String>);

impl ApiKeys {
    pub(crate) fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    /// Whether no key is asked for.
    pub(crate) fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the request shows one of the keys. Every key is compared, each in a time that does
    /// not depend on where it differs.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = shown_key(headers) else {
            return false;
        };
        self.0
            .iter()
            .fold(Choice::from(0), |found, key| {
                found | key.as_bytes().ct_eq(shown)
            })
            .into()
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({} keys)", self.0.len())
    }
}

/// The key in `Authorization: Bearer` or, without one there, in `X-Api-Key`.
fn shown_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let key = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))?;
    Some(key.trim_ascii())
}

/// Middleware: 401 without a right key, unless the path is public or no key is set.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let public = PUBLIC_PATHS.contains(&request.uri().path());
    if public || state.keys.is_open() || state.keys.admits(request.headers()) {
        next.run(request).await
    } else {
        ApiError::unauthorized().into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )])
    }

    #[test]
    fn both_headers_open_and_nothing_else_does() {
        let keys = ApiKeys::new(vec!["first".into(), "second".into()]);
        assert!(keys.admits(&headers("authorization", "Bearer second")));
        assert!(keys.admits(&headers("authorization", "bearer  first ")));
        assert!(keys.admits(&headers("x-api-key", "first")));
        for (name, value) in [
            ("authorization", "second"),
            ("authorization", "Bearer"),
            ("authorization", "Bearer "),
            ("authorization", "Basic first"),
            ("authorization", "Bearer firs"),
            ("authorization", "Bearer firsts"),
            ("x-api-key", ""),
            ("cookie", "first"),
        ] {
            assert!(!keys.admits(&headers(name, value)), "{name}: {value}");
        }
        assert!(!keys.admits(&HeaderMap::new()));
    }

    #[test]
    fn debug_output_hides_the_keys() {
        assert!(!format!("{:?}", ApiKeys::new(vec!["hunter2".into()])).contains("hunter2"));
    }
}
