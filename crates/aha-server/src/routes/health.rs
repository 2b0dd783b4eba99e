//! Probes: `GET /`, `/health`, `/live`; and `GET /metrics`.

use crate::model::ModelState;
use crate::state::AppState;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// What answers here.
pub(crate) async fn root() -> impl IntoResponse {
    Json(json!({"name": "aha", "version": env!("CARGO_PKG_VERSION")}))
}

/// 200 as long as the process answers.
pub(crate) async fn live() -> impl IntoResponse {
    Json(json!({"status": "ok"}))
}

/// 200 once every model can answer; 503 while one loads, has failed or hangs, and while the
/// server stops.
pub(crate) async fn health(State(state): State<AppState>) -> Response {
    let status = if state.shutdown.is_requested() {
        "shutting_down"
    } else {
        state
            .models
            .iter()
            .map(|model| health_of(&model.state()))
            .max_by_key(severity)
            .unwrap_or("ok")
    };
    let models: Vec<_> = state
        .models
        .iter()
        .map(|model| {
            json!({"id": model.id(), "task": model.task(), "status": health_of(&model.state())})
        })
        .collect();
    let body = Json(json!({"status": status, "models": models}));
    if status == "ok" {
        return body.into_response();
    }
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, body).into_response();
    if status == "loading" {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    response
}

fn health_of(state: &ModelState) -> &'static str {
    match state {
        ModelState::Loading => "loading",
        ModelState::Failed(_) => "failed",
        ModelState::Ready(engine) if engine.status().stuck => "stuck",
        ModelState::Ready(_) => "ok",
    }
}

/// Of several models the worst state is told.
fn severity(status: &&'static str) -> usize {
    ["ok", "loading", "stuck", "failed"]
        .iter()
        .position(|known| known == status)
        .unwrap_or(0)
}

/// Counters for Prometheus.
pub(crate) async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    (
        [(header::CONTENT_TYPE, kind)],
        state.metrics.render(&state.models),
    )
}
