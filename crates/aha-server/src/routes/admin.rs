//! `POST /shutdown`.

use crate::context::Peer;
use crate::error::ApiError;
use crate::state::AppState;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

/// Headers that a proxy adds: behind one, a loopback peer says nothing about the caller.
const FORWARDING_HEADERS: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

/// Stops the server gracefully. Only for callers on this machine, unless the operator allowed
/// others, which then need the key. (Where keys are set, callers on this machine need one too.)
pub(crate) async fn shutdown(
    State(state): State<AppState>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    // A web page can post to loopback without asking first; only its origin gives it away.
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        if !state
            .options
            .cors_origins
            .iter()
            .any(|allowed| allowed == origin)
        {
            return Err(ApiError::forbidden(
                "origin_not_allowed",
                "web pages may not stop the server",
            ));
        }
    }
    let forwarded = FORWARDING_HEADERS
        .iter()
        .any(|name| headers.contains_key(*name));
    let local = !forwarded
        && peer.is_some_and(|Extension(Peer(address))| address.ip().to_canonical().is_loopback());
    let remote_allowed = state.options.allow_remote_shutdown && !state.keys.is_open();
    if !local && !remote_allowed {
        return Err(ApiError::forbidden(
            "remote_shutdown_not_allowed",
            "only callers on the server's own machine may stop it",
        ));
    }
    if !state.shutdown.is_requested() {
        tracing::info!("shutdown asked for over HTTP");
        state.shutdown.request();
    }
    Ok(Json(json!({"status": "shutting_down"})))
}
