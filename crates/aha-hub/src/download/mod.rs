//! Downloads a model: chooses the hub, falls over to the other.

mod job;
mod race;

use std::path::PathBuf;
use std::sync::Arc;

use job::Job;
use race::race;

use crate::config::{HubConfig, Secret};
use crate::http::HttpClient;
use crate::hubs::{Hub, Listing};
use crate::lock::ModelLock;
use crate::manifest::Manifest;
use crate::{
    CancelToken, Event, FileFilter, HubError, ModelId, Progress, RetryPolicy, Revision, Silent,
    Source, Store, Timeouts,
};

/// Downloads models into a [`Store`].
///
/// ```no_run
/// # fn main() -> Result<(), aha_hub::HubError> {
/// use aha_hub::{Downloader, HubConfig, Source, Store};
/// let config = HubConfig::from_env()?;
/// let store = Store::open(None, &config)?;
/// let model = "Qwen/Qwen3-0.6B".parse()?;
/// let done = Downloader::new(&store, &config)
///     .source(Source::HuggingFace)
///     .download(&model)?;
/// assert!(done.dir.join("config.json").exists());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Downloader {
    store: Store,
    config: HubConfig,
    source: Source,
    revision: Revision,
    filter: Option<FileFilter>,
    include: Vec<String>,
    exclude: Vec<String>,
    token: Option<Secret>,
    hub_ids: Vec<(Source, ModelId)>,
    parallel: usize,
    retry: RetryPolicy,
    timeouts: Timeouts,
    disk_reserve: u64,
    progress: Arc<dyn Progress>,
    cancel: CancelToken,
}

/// A download that came to its end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Downloaded {
    /// The model's directory.
    pub dir: PathBuf,
    /// The hub that served it; [`Source::Auto`] where an offline download found the model here.
    pub source: Source,
    /// The commit, or the branch when the hub names no commit.
    pub revision: String,
    /// Number of wanted files.
    pub files: usize,
    /// Bytes of all wanted files.
    pub total_bytes: u64,
    /// Bytes that came over the network.
    pub downloaded_bytes: u64,
}

impl Downloader {
    /// A downloader with the defaults: both hubs, the default branch, the common files.
    pub fn new(store: &Store, config: &HubConfig) -> Self {
        Self {
            store: store.clone(),
            config: config.clone(),
            source: Source::Auto,
            revision: Revision::Default,
            filter: None,
            include: Vec::new(),
            exclude: Vec::new(),
            token: None,
            hub_ids: Vec::new(),
            parallel: 4,
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            disk_reserve: 64 << 20,
            progress: Arc::new(Silent),
            cancel: CancelToken::default(),
        }
    }

    /// Which hub to ask.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// Which branch, tag or commit.
    #[must_use]
    pub fn revision(mut self, revision: Revision) -> Self {
        self.revision = revision;
        self
    }

    /// The files that the model's family needs; without it [`FileFilter::common`].
    #[must_use]
    pub fn filter(mut self, filter: FileFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Patterns of the user; where there are any, they replace the family's choice.
    #[must_use]
    pub fn include(mut self, patterns: impl IntoIterator<Item: Into<String>>) -> Self {
        self.include.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Patterns of the user for files to leave out.
    #[must_use]
    pub fn exclude(mut self, patterns: impl IntoIterator<Item: Into<String>>) -> Self {
        self.exclude.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// A token that replaces the environment's. With [`Source::Auto`] it goes only to the hub
    /// that its prefix names (`hf_` or `ms-`).
    #[must_use]
    pub fn token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// The model's id on one hub, where it differs from the id in the store.
    #[must_use]
    pub fn hub_id(mut self, source: Source, id: ModelId) -> Self {
        self.hub_ids.push((source, id));
        self
    }

    /// How many files to fetch at once (at least 1).
    #[must_use]
    pub fn parallel(mut self, files: usize) -> Self {
        self.parallel = files.max(1);
        self
    }

    /// How often to try again.
    #[must_use]
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Limits of patience.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Bytes of the disk that must stay free.
    #[must_use]
    pub fn disk_reserve(mut self, bytes: u64) -> Self {
        self.disk_reserve = bytes;
        self
    }

    /// No connection is attempted: a model that is here is returned, another is an error.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.config.offline = offline;
        self
    }

    /// Who hears of the progress.
    #[must_use]
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// A token that ends the download from another thread.
    #[must_use]
    pub fn cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Downloads what is missing of `id` and returns where it lies. What an earlier, interrupted
    /// download left is continued.
    ///
    /// # Errors
    /// The hub's failure ([`HubError::AllSourcesFailed`] for both), the disk's
    /// ([`HubError::NoSpace`], [`HubError::Io`]), [`HubError::Offline`], [`HubError::Cancelled`],
    /// or an unusable setting.
    pub fn download(&self, id: &ModelId) -> Result<Downloaded, HubError> {
        let filter = self.effective_filter()?;
        if self.config.offline {
            return self.local(id);
        }
        let hubs = self.hubs()?;
        let http = Arc::new(HttpClient::new(&self.config, self.timeouts)?);
        let _lock = ModelLock::acquire(self.store.root(), id, &self.cancel, |pid| {
            self.progress.event(&Event::Waiting {
                model: id.clone(),
                pid,
            });
        })?;
        let mut hubs = self.in_order(id, hubs);
        let mut failures = Vec::new();
        while !hubs.is_empty() {
            let (hub, listing) = self.choose(id, &http, &filter, &mut hubs, &mut failures);
            let Some(hub) = hub else { break };
            let job = Job {
                downloader: self,
                id,
                http: &http,
                hub: &hub,
                filter: &filter,
            };
            match job.run(listing) {
                Ok(done) => return Ok(done),
                Err(error) if error.is_hub_fault() => self.note(hub.source, error, &mut failures),
                Err(error) => return Err(error),
            }
        }
        self.cancel.check()?;
        match failures.pop() {
            Some((_, only)) if failures.is_empty() => Err(only),
            Some(last) => {
                failures.push(last);
                Err(HubError::AllSourcesFailed {
                    id: id.clone(),
                    failures,
                })
            }
            None => Err(HubError::Cancelled),
        }
    }

    fn effective_filter(&self) -> Result<FileFilter, HubError> {
        let chosen = match (&self.filter, self.include.is_empty()) {
            (_, false) => FileFilter::new(&self.include, [] as [&str; 0])?,
            (Some(filter), true) => filter.clone(),
            (None, true) => FileFilter::common()?,
        };
        chosen.without(&self.exclude)
    }

    fn local(&self, id: &ModelId) -> Result<Downloaded, HubError> {
        let dir = self.store.locate(id).ok_or_else(|| HubError::Offline {
            what: format!("downloading {id}, which is not on this disk,"),
        })?;
        let total_bytes = crate::store::directory_size(&dir)?;
        let manifest = Manifest::load(&dir)?;
        let is_wanted = match &manifest {
            Some(manifest) => manifest.is_of(&self.revision),
            None => self.revision == Revision::Default,
        };
        if !is_wanted {
            let revision = self.revision.name_on(self.source);
            return Err(HubError::Offline {
                what: format!("downloading revision {revision} of {id}"),
            });
        }
        self.progress.event(&Event::Finished {
            model: id.clone(),
            source: Source::Auto,
            path: dir.clone(),
            total_bytes,
            downloaded_bytes: 0,
        });
        Ok(Downloaded {
            dir,
            source: Source::Auto,
            revision: manifest.as_ref().map_or_else(String::new, |manifest| {
                manifest
                    .commit
                    .clone()
                    .unwrap_or_else(|| manifest.revision.clone())
            }),
            files: manifest.map_or(0, |manifest| manifest.files.len()),
            total_bytes,
            downloaded_bytes: 0,
        })
    }

    fn hubs(&self) -> Result<Vec<Hub>, HubError> {
        let hub = |source, token| Hub::new(source, &self.config, token);
        let Some(token) = &self.token else {
            return Ok(match self.source {
                Source::Auto => vec![
                    hub(Source::ModelScope, None),
                    hub(Source::HuggingFace, None),
                ],
                source => vec![hub(source, None)],
            });
        };
        if self.source != Source::Auto {
            return Ok(vec![hub(self.source, Some(token))]);
        }
        // A token shown to the wrong hub is a leaked token.
        let owner = match token.expose() {
            text if text.starts_with("hf_") => Source::HuggingFace,
            text if text.starts_with("ms-") => Source::ModelScope,
            _ => {
                return Err(HubError::InvalidSetting {
                    name: "the token",
                    reason: "it does not show which hub it is for; choose the source, too".into(),
                });
            }
        };
        Ok([Source::ModelScope, Source::HuggingFace]
            .into_iter()
            .map(|source| hub(source, (source == owner).then_some(token)))
            .collect())
    }

    /// Puts the hub of an earlier, unfinished download first: its bytes can be continued.
    fn in_order(&self, id: &ModelId, hubs: Vec<Hub>) -> Vec<Vec<Hub>> {
        let earlier = Manifest::load(&self.store.model_dir(id))
            .ok()
            .flatten()
            .map(|manifest| manifest.source);
        let (first, rest): (Vec<Hub>, Vec<Hub>) = hubs
            .into_iter()
            .partition(|hub| Some(hub.source) == earlier);
        [first, rest]
            .into_iter()
            .filter(|group| !group.is_empty())
            .collect()
    }

    /// Takes the next hub out of `groups`: the faster one where a group has two.
    fn choose(
        &self,
        id: &ModelId,
        http: &Arc<HttpClient>,
        filter: &FileFilter,
        groups: &mut Vec<Vec<Hub>>,
        failures: &mut Vec<(Source, HubError)>,
    ) -> (Option<Hub>, Option<Listing>) {
        let mut group = groups.remove(0);
        if group.len() == 1 {
            return (group.pop(), None);
        }
        let entrants = group
            .iter()
            .map(|hub| (hub.clone(), self.id_on(hub.source, id).clone()))
            .collect();
        let race = race(
            entrants,
            http,
            &self.revision,
            filter,
            &self.retry,
            &self.cancel,
        );
        for (source, error) in race.failures {
            group.retain(|hub| hub.source != source);
            self.note(source, error, failures);
        }
        let Some((source, listing)) = race.winner else {
            return (None, None);
        };
        let (winner, rest): (Vec<Hub>, Vec<Hub>) =
            group.into_iter().partition(|hub| hub.source == source);
        if !rest.is_empty() {
            groups.insert(0, rest);
        }
        (winner.into_iter().next(), Some(listing))
    }

    fn note(&self, source: Source, error: HubError, failures: &mut Vec<(Source, HubError)>) {
        // Told by the event, and by the error where no other hub does better.
        tracing::debug!(%source, %error, "the hub could not be used");
        self.progress.event(&Event::SourceFailed {
            source,
            reason: error.to_string(),
        });
        failures.push((source, error));
    }

    fn id_on<'a>(&'a self, source: Source, id: &'a ModelId) -> &'a ModelId {
        let named = self.hub_ids.iter().find(|(hub, _)| *hub == source);
        named.map_or(id, |(_, id)| id)
    }
}
