//! `POST /embeddings`.

use super::json_response;
use crate::context::server_timing;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::state::AppState;
use crate::types::embedding::{
    EmbeddingObject, EmbeddingRequest, EmbeddingResponse, EncodingFormat, Vector,
};
use crate::types::rerank::Usage;
use aha_engine::embedding::PreparedInput;
use aha_engine::{EmbeddingEngine, Timings};
use axum::extract::State;
use axum::response::{IntoResponse, Response};

/// A request whose inputs are tokenised.
struct Prepared {
    model: String,
    engine: EmbeddingEngine,
    format: EncodingFormat,
    dimensions: Option<usize>,
    inputs: Vec<PreparedInput>,
}

impl Prepared {
    fn read(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let request = EmbeddingRequest::parse(body)?;
        let model = state.models.find(request.model.as_deref())?;
        let engine = model.embedding_engine()?;
        // A full queue refuses before the work of tokenising.
        engine.check_room()?;
        let inputs = engine.prepare(&request.inputs, &request.options, "input")?;
        Ok(Self {
            model: model.id().to_owned(),
            engine,
            format: request.format,
            dimensions: request.options.dimensions,
            inputs,
        })
    }
}

/// Answers with a vector for each input.
pub(crate) async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let prepared = state
        .prepare(move || Prepared::read(&shared, &body))
        .await?;
    let Prepared {
        model,
        engine,
        format,
        dimensions,
        inputs,
    } = prepared;
    let tokens = inputs.iter().map(|input| input.token_ids.len()).sum();
    let truncated: Vec<bool> = inputs.iter().map(|input| input.truncated).collect();
    let sequences = inputs.into_iter().map(|input| input.token_ids).collect();
    let output = engine.submit(sequences, dimensions)?.wait().await?;
    let timing = server_timing(&Timings {
        queued: output.queued,
        prefill: output.computed,
        ..Timings::default()
    });
    let data = output.rows.into_iter().zip(truncated).enumerate();
    let response = EmbeddingResponse {
        object: "list",
        data: data
            .map(|(index, (values, truncated))| EmbeddingObject {
                object: "embedding",
                index,
                embedding: Vector { values, format },
                truncated,
            })
            .collect(),
        model,
        usage: Usage::of(tokens),
    };
    Ok((timing, json_response(&state, response).await?).into_response())
}
