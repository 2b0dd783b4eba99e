//! The models a server offers, and where each stands between loading and answering.

use crate::error::ApiError;
use aha_engine::{
    EmbeddingEngine, Engine, MattingEngine, RerankEngine, Service, SpeechEngine, Task,
};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model under its name. Cloning gives another handle to the same model: the one who loads it
/// keeps a clone and calls [`ServedModel::ready`] or [`ServedModel::failed`].
#[derive(Debug, Clone)]
pub struct ServedModel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: String,
    aliases: Vec<String>,
    task: String,
    owned_by: String,
    created: u64,
    state: RwLock<ModelState>,
}

/// Where a model stands.
#[derive(Debug, Clone)]
pub enum ModelState {
    /// Its weights are being read.
    Loading,
    /// It answers.
    Ready(Service),
    /// It could not be loaded; the text is for the log and the operator, never for clients.
    Failed(String),
}

impl ServedModel {
    /// A model that is about to be loaded. Requests reach it by `id` or an alias, in any case;
    /// `task` is what `GET /models` tells about it (`chat`, `embed`, `rerank`).
    pub fn new(
        id: impl Into<String>,
        aliases: impl IntoIterator<Item = String>,
        task: impl Into<String>,
    ) -> Self {
        Self::owned_by(id, aliases, task, "aha")
    }

    /// Like [`ServedModel::new`], with the `owned_by` of `GET /models`.
    pub fn owned_by(
        id: impl Into<String>,
        aliases: impl IntoIterator<Item = String>,
        task: impl Into<String>,
        owner: impl Into<String>,
    ) -> Self {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        Self(Arc::new(Inner {
            id: id.into(),
            aliases: aliases.into_iter().collect(),
            task: task.into(),
            owned_by: owner.into(),
            created,
            state: RwLock::new(ModelState::Loading),
        }))
    }

    /// The name that answers carry.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The task as `GET /models` tells it.
    pub fn task(&self) -> &str {
        &self.0.task
    }

    pub(crate) fn owner(&self) -> &str {
        &self.0.owned_by
    }

    /// Seconds since 1970 at which the server took the model up.
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }

    /// Where the model stands now.
    pub fn state(&self) -> ModelState {
        self.0
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The model answers from now on.
    pub fn ready(&self, service: Service) {
        self.set(ModelState::Ready(service));
    }

    /// The model cannot answer; `message` says why, for the log.
    pub fn failed(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::error!(model = self.id(), message, "the model could not be loaded");
        self.set(ModelState::Failed(message));
    }

    fn set(&self, state: ModelState) {
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn is_named(&self, name: &str) -> bool {
        std::iter::once(&self.0.id)
            .chain(&self.0.aliases)
            .any(|known| known.to_lowercase() == name.to_lowercase())
    }

    /// The engine of a text generator, or the error that says why there is none.
    pub(crate) fn text_engine(&self) -> Result<Engine, ApiError> {
        match self.service()? {
            Service::Text(engine) => Ok(engine),
            other => Err(ApiError::wrong_task(self.id(), other.task(), Task::Chat)),
        }
    }

    /// The engine of a speech recogniser, or the error that says why there is none.
    pub(crate) fn transcription_engine(&self) -> Result<Engine, ApiError> {
        match self.service()? {
            Service::Text(engine) if engine.transcriber().is_some() => Ok(engine),
            other => Err(ApiError::wrong_task(
                self.id(),
                other.task(),
                Task::Transcribe,
            )),
        }
    }

    /// The engine of an embedder, or the error that says why there is none.
    pub(crate) fn embedding_engine(&self) -> Result<EmbeddingEngine, ApiError> {
        match self.service()? {
            Service::Embed(engine) => Ok(engine),
            other => Err(ApiError::wrong_task(self.id(), other.task(), Task::Embed)),
        }
    }

    /// The engine of a reranker, or the error that says why there is none.
    pub(crate) fn rerank_engine(&self) -> Result<RerankEngine, ApiError> {
        match self.service()? {
            Service::Rerank(engine) => Ok(engine),
            other => Err(ApiError::wrong_task(self.id(), other.task(), Task::Rerank)),
        }
    }

    /// The engine of a model for background removal, or the error that says why there is none.
    pub(crate) fn matting_engine(&self) -> Result<MattingEngine, ApiError> {
        match self.service()? {
            Service::Matte(engine) => Ok(engine),
            other => Err(ApiError::wrong_task(self.id(), other.task(), Task::Matte)),
        }
    }

    /// The engine of a speaking model, or the error that says why there is none.
    pub(crate) fn speech_engine(&self) -> Result<SpeechEngine, ApiError> {
        match self.service()? {
            Service::Speak(engine) => Ok(engine),
            other => Err(ApiError::wrong_task(self.id(), other.task(), Task::Speak)),
        }
    }

    /// The engine of whatever task, or the error that says why there is none.
    pub(crate) fn service(&self) -> Result<Service, ApiError> {
        match self.state() {
            ModelState::Ready(service) => Ok(service),
            ModelState::Loading => Err(ApiError::loading(self.id())),
            ModelState::Failed(_) => Err(ApiError::load_failed(self.id())),
        }
    }
}

/// All models of a server; the first one answers requests that name none.
#[derive(Debug, Clone)]
pub(crate) struct Models(Arc<[ServedModel]>);

impl Models {
    pub(crate) fn new(models: Vec<ServedModel>) -> Self {
        Self(models.into())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ServedModel> {
        self.0.iter()
    }

    /// The model of that name (404 when there is none), or the first one without a name.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<&ServedModel, ApiError> {
        let found = match name {
            Some(name) => self.iter().find(|model| model.is_named(name)),
            None => self.0.first(),
        };
        found.ok_or_else(|| {
            let served: Vec<_> = self.iter().map(ServedModel::id).collect();
            ApiError::unknown_model(name.unwrap_or_default(), &served)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Models {
        Models::new(vec![
            ServedModel::new(
                "Qwen/Qwen3-0.6B",
                ["LlamaForCausalLM (Llama 3 style)".to_owned()],
                "chat",
            ),
            ServedModel::new("second", [], "chat"),
        ])
    }

    #[test]
    fn models_are_found_by_id_and_alias_in_any_case() {
        let models = models();
        for name in [
            "Qwen/Qwen3-0.6B",
            "qwen/qwen3-0.6b",
            "llamaforcausallm (llama 3 style)",
        ] {
            assert_eq!(models.find(Some(name)).unwrap().id(), "Qwen/Qwen3-0.6B");
        }
        assert_eq!(models.find(None).unwrap().id(), "Qwen/Qwen3-0.6B");
        let error = models.find(Some("gpt-4")).unwrap_err();
        assert_eq!(error.status.as_u16(), 404);
        assert_eq!(error.body.code, Some("model_not_found"));
        assert_eq!(error.body.param.as_deref(), Some("model"));
    }

    #[test]
    fn a_model_that_does_not_answer_says_why_with_503() {
        let model = ServedModel::new("m", [], "chat");
        let loading = model.text_engine().err().unwrap();
        assert_eq!(
            (loading.status.as_u16(), loading.retry_after),
            (503, Some(2))
        );
        model.failed("no such file: /secret/path");
        let failed = model.text_engine().err().unwrap();
        assert_eq!(failed.status.as_u16(), 503);
        assert!(!failed.body.message.contains("secret"));
    }
}
