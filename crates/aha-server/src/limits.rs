//! What a request may be: its body, and the host that it believes to talk to.

use crate::error::ApiError;
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use tokio::sync::OwnedSemaphorePermit;

/// The bytes of a body that is declared to be JSON and not larger than the limit.
pub(crate) struct JsonBody(pub(crate) Bytes);

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        // The check also keeps pages of other origins out: browsers ask before they send JSON.
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()));
        if !content_type.as_deref().is_some_and(is_json) {
            return Err(ApiError::not_json(content_type.as_deref()));
        }
        let limit = state.options.body_limit;
        let declared = declared_length(request.headers());
        if declared.is_some_and(|length| length > limit as u64) {
            return Err(ApiError::body_too_large(limit));
        }
        let expected = declared.map_or(limit, |length| length as usize);
        let place = BodyPlace::take(state, expected).await?;
        match tokio::time::timeout(
            state.options.body_timeout,
            Bytes::from_request(request, state),
        )
        .await
        {
            Ok(Ok(bytes)) => Ok(Self(place.hold(bytes))),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::body_too_large(limit))
            }
            Ok(Err(_)) => Err(ApiError::invalid_json("the request body could not be read")),
            Err(_) => Err(ApiError::body_timeout()),
        }
    }
}

/// Bodies up to so many bytes are not counted.
const SMALL_BODY: usize = 1 << 20;
/// Bytes that one permit of [`crate::state::Shared::bodies`] stands for.
pub(crate) const BODY_PERMIT: usize = 64 << 10;

/// The share of the memory for request bodies that one of them takes, until it has been read into what it asks for.
/// Pictures make bodies large: without a common limit, as many connections as the server holds could bring one each.
struct BodyPlace(Option<OwnedSemaphorePermit>);

impl BodyPlace {
    /// Waits for a share of `expected` bytes, as long as a body may take to arrive.
    async fn take(state: &AppState, expected: usize) -> Result<Self, ApiError> {
        if expected <= SMALL_BODY {
            return Ok(Self(None));
        }
        let permits = u32::try_from(expected.div_ceil(BODY_PERMIT)).unwrap_or(u32::MAX);
        let place = state.bodies.clone().acquire_many_owned(permits);
        match tokio::time::timeout(state.options.body_timeout, place).await {
            Ok(Ok(permit)) => Ok(Self(Some(permit))),
            Ok(Err(_)) => Err(ApiError::shutting_down()),
            Err(_) => Err(ApiError::too_many_bodies()),
        }
    }

    /// The body with its share, which ends with the body; what was more than its size ends now.
    fn hold(self, bytes: Bytes) -> Bytes {
        let Some(mut permit) = self.0.filter(|_| bytes.len() > SMALL_BODY) else {
            return bytes;
        };
        let needed = bytes.len().div_ceil(BODY_PERMIT);
        drop(permit.split(permit.num_permits().saturating_sub(needed)));
        Bytes::from_owner(HeldBody {
            bytes,
            _permit: permit,
        })
    }
}

struct HeldBody {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// `application/json` or a type built on it, parameters aside.
fn is_json(content_type: &str) -> bool {
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Which `Host` headers are answered.
///
/// A page of another site can point its own name to a loopback address and so reach a local
/// server past the browser's origin rules (DNS rebinding); the `Host` header gives it away.
#[derive(Debug, Clone)]
pub(crate) struct HostRule {
    /// `None` answers every host.
    allowed: Option<Vec<String>>,
}

impl HostRule {
    /// The rule of a server: on loopback only loopback names and those told, elsewhere those told
    /// or, without any, all.
    pub(crate) fn new(loopback: bool, address: &str, allowed_hosts: &[String]) -> Self {
        let checked = loopback || !allowed_hosts.is_empty();
        let named = allowed_hosts.iter().map(String::as_str).chain([address]);
        Self {
            allowed: checked.then(|| named.map(normalised).collect()),
        }
    }

    /// Whether a request to `host` (with or without a port) is answered.
    fn admits(&self, host: &str) -> bool {
        let Some(allowed) = &self.allowed else {
            return true;
        };
        let name = normalised(without_port(host));
        let loopback = name == "localhost"
            || name.ends_with(".localhost")
            || name
                .parse()
                .is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
        loopback || allowed.contains(&name)
    }
}

/// Lower case, without the brackets of IPv6 and the dot at the end of full names.
fn normalised(name: &str) -> String {
    name.trim_matches(['[', ']'])
        .trim_end_matches('.')
        .to_ascii_lowercase()
}

/// `host`, `host:port`, `[v6]` and `[v6]:port` without the port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// The host that the request names: in its target, or in its header.
fn requested_host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers
            .get(header::HOST)
            .map(|value| value.to_str().unwrap_or_default()),
    }
}

/// Middleware: 403 for requests that were sent to another host's name.
pub(crate) async fn check_host(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    // HTTP/1.0 clients may send none; browsers always do.
    match requested_host(request.uri(), request.headers()) {
        Some(host) if !state.hosts.admits(host) => ApiError::forbidden(
            "host_not_allowed",
            "the Host header does not name this server; add the name to the allowed hosts",
        )
        .into_response(),
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_several_names() {
        for yes in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/x+json",
        ] {
            assert!(is_json(yes), "{yes}");
        }
        for no in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json+x",
        ] {
            assert!(!is_json(no), "{no}");
        }
    }

    #[test]
    fn loopback_servers_answer_loopback_names_only() {
        let rule = HostRule::new(true, "127.0.0.1", &["box.lan".to_owned()]);
        for yes in [
            "localhost",
            "localhost:10100",
            "LOCALHOST.",
            "app.localhost:1",
            "127.0.0.1",
            "127.0.0.1:10100",
            "127.9.9.9",
            "[::1]",
            "[::1]:10100",
            "[::ffff:127.0.0.1]:1",
            "box.lan:10100",
        ] {
            assert!(rule.admits(yes), "{yes}");
        }
        for no in [
            "evil.example",
            "evil.example:10100",
            "127.0.0.1.evil.example",
            "localhost.evil",
            "",
            "10.0.0.1",
        ] {
            assert!(!rule.admits(no), "{no}");
        }
    }

    #[test]
    fn other_servers_answer_all_names_unless_told() {
        assert!(HostRule::new(false, "0.0.0.0", &[]).admits("anything.example"));
        let told = HostRule::new(false, "0.0.0.0", &["api.example".to_owned()]);
        assert!(told.admits("API.example:80"));
        assert!(!told.admits("other.example"));
    }
}
