//! The routes: one file a group.

pub(crate) mod admin;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod images;
pub(crate) mod models;
pub(crate) mod ocr;
pub(crate) mod rerank;
pub(crate) mod speech;
pub(crate) mod tokenize;
pub(crate) mod transcriptions;
pub(crate) mod voices;

use crate::error::ApiError;
use crate::state::AppState;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A large answer as JSON, written beside the runtime's own threads: millions of numbers take their time.
async fn json_response(
    state: &AppState,
    body: impl Serialize + Send + 'static,
) -> Result<Response, ApiError> {
    let text = state
        .prepare(move || {
            serde_json::to_vec(&body)
                .map_err(|error| ApiError::internal(format!("an answer is no JSON: {error}")))
        })
        .await?;
    let kind = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
