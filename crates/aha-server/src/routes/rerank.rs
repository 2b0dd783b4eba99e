//! `POST /rerank` and `POST /score`.

use super::json_response;
use crate::context::server_timing;
use crate::error::ApiError;
use crate::ids;
use crate::limits::JsonBody;
use crate::state::AppState;
use crate::types::rerank::{
    Document, RerankRequest, RerankResponse, RerankResult, ScoreObject, ScoreRequest,
    ScoreResponse, Usage,
};
use aha_engine::{EngineError, RerankEngine, Timings, Truncate};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use std::time::{SystemTime, UNIX_EPOCH};

/// Pairs of query and document that are tokenised.
struct Prepared<R> {
    model: String,
    engine: RerankEngine,
    request: R,
    sequences: Vec<Vec<u32>>,
    truncated: Vec<bool>,
}

/// What both kinds of requests are made of.
trait Pairs {
    fn model(&self) -> Option<&str>;
    fn instruct(&self) -> Option<&str>;
    fn truncate(&self) -> Truncate;
    /// Query and document, in order.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)>;
    /// What errors call the documents.
    fn documents_name(&self) -> &'static str;
}

impl Pairs for RerankRequest {
    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn instruct(&self) -> Option<&str> {
        self.instruct.as_deref()
    }

    fn truncate(&self) -> Truncate {
        self.truncate
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let documents = self.documents.iter();
        documents.map(|document| (self.query.as_str(), document.as_str()))
    }

    fn documents_name(&self) -> &'static str {
        "documents"
    }
}

impl Pairs for ScoreRequest {
    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn instruct(&self) -> Option<&str> {
        self.instruct.as_deref()
    }

    fn truncate(&self) -> Truncate {
        self.truncate
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.pairs.iter();
        pairs.map(|(query, document)| (query.as_str(), document.as_str()))
    }

    fn documents_name(&self) -> &'static str {
        "text_2"
    }
}

impl<R: Pairs> Prepared<R> {
    fn read(state: &AppState, request: R) -> Result<Self, ApiError> {
        let model = state.models.find(request.model())?;
        let engine = model.rerank_engine()?;
        // A full queue refuses before the work of tokenising.
        engine.check_room()?;
        let processor = engine.processor();
        if request.instruct().is_some() && !processor.takes_instruct() {
            return Err(ApiError::unsupported(
                "instruct",
                "this model takes no 'instruct'",
            ));
        }
        let most = engine.context_length();
        let limit = match request.truncate() {
            Truncate::To(tokens) => tokens.min(most),
            Truncate::Release | Truncate::Never | Truncate::ToLimit => most,
        };
        let (mut sequences, mut truncated) = (Vec::new(), Vec::new());
        for (index, (query, document)) in request.pairs().enumerate() {
            let prepared = processor.prepare(query, document, request.instruct(), limit)?;
            if prepared.truncated && request.truncate() == Truncate::Never {
                let path = format!("{}[{index}]", request.documents_name());
                return Err(EngineError::invalid(
                    &path,
                    format!(
                        "'{path}' does not fit: query and document have more than {limit} tokens together"
                    ),
                )
                .into());
            }
            sequences.push(prepared.token_ids);
            truncated.push(prepared.truncated);
        }
        Ok(Self {
            model: model.id().to_owned(),
            engine,
            request,
            sequences,
            truncated,
        })
    }

    /// Scores in the order of the request, with the tokens and times that they took.
    async fn score(&mut self) -> Result<(Vec<f32>, Usage, Timings), ApiError> {
        let sequences = std::mem::take(&mut self.sequences);
        let usage = Usage::of(sequences.iter().map(Vec::len).sum());
        let output = self.engine.submit(sequences)?.wait().await?;
        let scores = output.rows.into_iter().flatten().collect();
        let timings = Timings {
            queued: output.queued,
            prefill: output.computed,
            ..Timings::default()
        };
        Ok((scores, usage, timings))
    }
}

/// Orders documents by how well they answer a query.
pub(crate) async fn rerank(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let mut prepared = state
        .prepare(move || Prepared::read(&shared, RerankRequest::parse(&body)?))
        .await?;
    let (scores, usage, timings) = prepared.score().await?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(prepared.request.top_n);
    let results = order.into_iter().map(|index| RerankResult {
        index,
        relevance_score: scores[index],
        document: prepared.request.return_documents.then(|| Document {
            text: std::mem::take(&mut prepared.request.documents[index]),
        }),
        truncated: prepared.truncated[index],
    });
    let response = RerankResponse {
        id: format!("rerank-{}", ids::unique()),
        results: results.collect(),
        model: prepared.model,
        usage,
    };
    Ok((
        server_timing(&timings),
        json_response(&state, response).await?,
    )
        .into_response())
}

/// Scores pairs of texts.
pub(crate) async fn score(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let mut prepared = state
        .prepare(move || Prepared::read(&shared, ScoreRequest::parse(&body)?))
        .await?;
    let (scores, usage, timings) = prepared.score().await?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let data = scores.into_iter().enumerate();
    let response = ScoreResponse {
        id: format!("score-{}", ids::unique()),
        object: "list",
        created,
        model: prepared.model,
        data: data
            .map(|(index, score)| ScoreObject {
                index,
                object: "score",
                score,
            })
            .collect(),
        usage,
    };
    Ok((
        server_timing(&timings),
        json_response(&state, response).await?,
    )
        .into_response())
}
