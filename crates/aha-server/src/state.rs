//! What every handler shares.

use crate::auth::ApiKeys;
use crate::error::ApiError;
use crate::limits::{BODY_PERMIT, HostRule};
use crate::media::{FetchError, Fetcher};
use crate::metrics::Metrics;
use crate::model::{Models, ServedModel};
use crate::options::ServerOptions;
use crate::shutdown::Shutdown;
use aha_engine::{MediaReader, VoiceStore};
use aha_media::source::RemoteUrl;
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Handle to the shared state; cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) options: ServerOptions,
    pub(crate) models: Models,
    pub(crate) keys: ApiKeys,
    pub(crate) hosts: HostRule,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    /// Requests that parse, fill templates or tokenise at the same time: one a core.
    preparing: Arc<Semaphore>,
    /// Files fetched at the same time. Apart from the preparing, which a slow host must not hold up.
    fetching: Arc<Semaphore>,
    fetcher: Fetcher,
    /// Memory of the request bodies that are being read, in units of [`BODY_PERMIT`].
    pub(crate) bodies: Arc<Semaphore>,
    /// Decodes media.
    pub(crate) reader: MediaReader,
    /// Voices that are kept by name.
    pub(crate) voices: Option<VoiceStore>,
}

/// At least one body of the largest size fits.
fn body_permits(options: &ServerOptions) -> usize {
    let bytes = options.body_memory.max(options.body_limit);
    bytes.div_ceil(BODY_PERMIT).min(Semaphore::MAX_PERMITS)
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl AppState {
    pub(crate) fn new(
        options: ServerOptions,
        models: Vec<ServedModel>,
        hosts: HostRule,
        shutdown: Shutdown,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Shared {
            keys: ApiKeys::new(options.api_keys.clone()),
            models: Models::new(models),
            hosts,
            metrics: Metrics::default(),
            shutdown,
            preparing: Arc::new(Semaphore::new(cores)),
            fetching: Arc::new(Semaphore::new(options.media.max_fetches)),
            bodies: Arc::new(Semaphore::new(body_permits(&options))),
            fetcher: Fetcher::new(options.media.policy.clone(), options.media.fetch),
            reader: MediaReader {
                limits: options.media.limits,
                ..MediaReader::default()
            },
            voices: options.voices.clone().map(VoiceStore::new),
            options,
        }))
    }

    /// Runs work that takes processor time (parsing, templates, tokenising, decoding) beside the
    /// runtime's own threads.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.beside(&self.preparing, work).await?
    }

    /// The voices that are kept by name, or the error that says that this server keeps none.
    pub(crate) fn voices(&self) -> Result<&VoiceStore, ApiError> {
        self.voices.as_ref().ok_or_else(|| {
            ApiError::unsupported(
                "voice",
                "this server keeps no voices: give 'ref_audio' and 'ref_text'",
            )
        })
    }

    /// Fetches a file of at most `max_bytes`.
    pub(crate) async fn fetch(
        &self,
        url: RemoteUrl,
        max_bytes: u64,
    ) -> Result<Result<Vec<u8>, FetchError>, ApiError> {
        let fetcher = self.fetcher.clone();
        self.beside(&self.fetching, move || fetcher.fetch(&url, max_bytes))
            .await
    }

    /// Runs blocking work on a thread of its own, as many at once as there are places.
    async fn beside<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(places)
            .acquire_owned()
            .await
            .map_err(|_| ApiError::shutting_down())?;
        let span = tracing::Span::current();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(work)
        });
        match task.await {
            Ok(result) => Ok(result),
            Err(error) if error.is_panic() => {
                self.metrics.count_panic();
                Err(ApiError::internal("a panic while a request was prepared"))
            }
            Err(_) => Err(ApiError::shutting_down()),
        }
    }
}
