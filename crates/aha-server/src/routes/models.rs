//! `GET /models` and `GET /models/{id}`.

use crate::error::ApiError;
use crate::model::{ModelState, ServedModel};
use crate::state::AppState;
use aha_engine::{MediaKind, Service};
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

/// A model as OpenAI lists it, with what vLLM and llama-server tell besides.
#[derive(Debug, Serialize)]
pub(crate) struct ModelEntry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
    task: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
    /// What a message may hold, once the model is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_modalities: Option<Vec<&'static str>>,
}

/// A list in OpenAI's shape.
#[derive(Debug, Serialize)]
pub(crate) struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

impl From<&ServedModel> for ModelEntry {
    fn from(model: &ServedModel) -> Self {
        let (status, service) = match model.state() {
            ModelState::Loading => ("loading", None),
            ModelState::Ready(service) => ("ready", Some(service)),
            ModelState::Failed(_) => ("failed", None),
        };
        Self {
            id: model.id().to_owned(),
            object: "model",
            created: model.created(),
            owned_by: model.owner().to_owned(),
            task: model.task().to_owned(),
            status,
            max_model_len: service.as_ref().and_then(Service::context_length),
            input_modalities: service.as_ref().map(input_modalities),
        }
    }
}

fn input_modalities(service: &Service) -> Vec<&'static str> {
    if let Service::Matte(_) = service {
        return vec![MediaKind::Image.name()];
    }
    let mut kinds = vec!["text"];
    if let Service::Text(engine) = service {
        let taken = [MediaKind::Image, MediaKind::Video, MediaKind::Audio].into_iter();
        let taken = taken.filter(|kind| engine.processor().takes(*kind));
        kinds.extend(taken.map(MediaKind::name));
    }
    kinds
}

/// Lists the models.
pub(crate) async fn list(State(state): State<AppState>) -> Json<List<ModelEntry>> {
    Json(List {
        object: "list",
        data: state.models.iter().map(Into::into).collect(),
    })
}

/// One model, by id or alias; ids hold slashes.
pub(crate) async fn get(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<ModelEntry>, ApiError> {
    Ok(Json(state.models.find(Some(&id))?.into()))
}
