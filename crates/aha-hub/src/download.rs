//! Downloads a model: chooses the hub, plans the files, fetches them side by side.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use crate::config::{HubConfig, Secret};
use crate::http::HttpClient;
use crate::hubs::{Hub, Listing, RemoteFile};
use crate::lock::ModelLock;
use crate::manifest::{FileRecord, Manifest, is_absent};
use crate::part::{part_len, parts_dir};
use crate::race::race;
use crate::transfer::{Transfer, may_adopt};
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
        tracing::warn!(%source, %error, "the hub could not be used");
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

/// One download from one hub.
struct Job<'a> {
    downloader: &'a Downloader,
    id: &'a ModelId,
    http: &'a HttpClient,
    hub: &'a Hub,
    filter: &'a FileFilter,
}

impl Job<'_> {
    fn run(&self, listing: Option<Listing>) -> Result<Downloaded, HubError> {
        let listing = match listing {
            Some(listing) => listing,
            None => self.list()?,
        };
        let result = self.fetch(&listing);
        // A repository may change between its list and its files: look once more.
        let (Err(HubError::Changed { path }) | Err(HubError::ChecksumMismatch { path, .. })) =
            &result
        else {
            return result;
        };
        let fresh = self.list()?;
        let find = |listing: &Listing| {
            listing
                .files
                .iter()
                .find(|file| file.path == *path)
                .cloned()
        };
        if find(&fresh) == find(&listing) {
            return result;
        }
        self.fetch(&fresh)
    }

    fn list(&self) -> Result<Listing, HubError> {
        let Downloader {
            revision,
            retry,
            cancel,
            ..
        } = self.downloader;
        let repo = self.downloader.id_on(self.hub.source, self.id);
        retry.run(cancel, || self.hub.list(self.http, repo, revision))
    }

    fn fetch(&self, listing: &Listing) -> Result<Downloaded, HubError> {
        let dir = self.downloader.store.model_dir(self.id);
        let wanted: Vec<&RemoteFile> = listing
            .files
            .iter()
            .filter(|file| self.filter.matches(&file.path))
            .collect();
        if wanted.is_empty() {
            return Err(HubError::NoFiles {
                source_hub: self.hub.source,
                id: listing.repo.clone(),
                listed: listing.files.len(),
            });
        }
        let mut manifest = self.manifest(&dir, listing);
        let mut missing: Vec<&RemoteFile> = wanted
            .iter()
            .copied()
            .filter(|file| !is_present(&dir, &manifest, file, listing))
            .collect();
        let replaced = missing
            .iter()
            .any(|file| manifest.files.contains_key(&file.path));
        let stale = self.stale(&manifest, listing);
        manifest.complete &= !replaced && stale.is_empty();

        let total_bytes = wanted.iter().filter_map(|file| file.size).sum();
        let to_write = missing.iter().map(|file| bytes_to_write(&dir, file)).sum();
        self.check_space(&dir, to_write)?;
        self.downloader.progress.event(&Event::Started {
            model: self.id.clone(),
            source: self.hub.source,
            revision: listing.revision.clone(),
            files: wanted.len(),
            total_bytes,
            present_bytes: total_bytes.saturating_sub(to_write),
        });

        if !missing.is_empty() || !stale.is_empty() {
            // From here on the directory is no longer what the old manifest says.
            manifest.save(&dir)?;
        }
        remove_stale(&dir, &mut manifest, &stale)?;
        // The largest first: the small ones then fill the gaps between the workers.
        missing.sort_by_key(|file| std::cmp::Reverse(file.size.unwrap_or(u64::MAX)));
        let manifest = Mutex::new(manifest);
        let downloaded_bytes = self.fetch_all(&dir, listing, missing, &manifest)?;

        let mut manifest = manifest
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        manifest.source = self.hub.source;
        manifest.repo = listing.repo.clone();
        manifest.revision = self.downloader.revision.name_on(self.hub.source).to_owned();
        manifest.commit = listing.commit.clone();
        manifest.complete = true;
        manifest.save(&dir)?;
        remove_parts(&dir)?;
        let total_bytes = wanted
            .iter()
            .filter_map(|file| manifest.files.get(&file.path))
            .map(|record| record.size)
            .sum();
        self.downloader.progress.event(&Event::Finished {
            model: self.id.clone(),
            source: self.hub.source,
            total_bytes,
            downloaded_bytes,
        });
        Ok(Downloaded {
            dir,
            source: self.hub.source,
            revision: listing.revision.clone(),
            files: wanted.len(),
            total_bytes,
            downloaded_bytes,
        })
    }

    /// The manifest to continue, or a new one.
    fn manifest(&self, dir: &Path, listing: &Listing) -> Manifest {
        let revision = self.downloader.revision.name_on(self.hub.source);
        let fresh = || Manifest::new(self.id, self.hub.source, &listing.repo, revision);
        let mut manifest = match Manifest::load(dir) {
            Ok(found) => found.unwrap_or_else(fresh),
            Err(error) => {
                // Without it every file counts as missing and is fetched again.
                tracing::warn!(%error, "the manifest is replaced");
                fresh()
            }
        };
        if !manifest.complete {
            manifest.source = self.hub.source;
        }
        manifest
    }

    /// Files of an earlier commit that the repository no longer has; left in place, an old shard
    /// beside new ones would mislead a loader.
    fn stale(&self, manifest: &Manifest, listing: &Listing) -> Vec<String> {
        let listed = |path: &String| listing.files.iter().any(|file| file.path == *path);
        manifest
            .files
            .keys()
            .filter(|path| !listed(path))
            .cloned()
            .collect()
    }

    fn check_space(&self, dir: &Path, to_write: u64) -> Result<(), HubError> {
        if to_write == 0 {
            return Ok(());
        }
        let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(dir);
        let available = fs4::available_space(existing)
            .map_err(|error| HubError::io("ask for the free space of", existing, error))?;
        let needed = to_write.saturating_add(self.downloader.disk_reserve);
        if needed > available {
            return Err(HubError::NoSpace {
                path: dir.to_owned(),
                needed,
                available,
            });
        }
        Ok(())
    }

    /// Fetches `missing` on a few threads, noting each finished file in the manifest at once.
    fn fetch_all(
        &self,
        dir: &Path,
        listing: &Listing,
        missing: Vec<&RemoteFile>,
        manifest: &Mutex<Manifest>,
    ) -> Result<u64, HubError> {
        let Downloader {
            parallel,
            retry,
            progress,
            cancel,
            ..
        } = self.downloader;
        let workers = (*parallel).min(missing.len());
        let queue = Mutex::new(VecDeque::from(missing));
        // Ends the other workers when one fails, without touching the caller's token.
        let stop = cancel.child();
        let (results, collected) = mpsc::channel::<Result<u64, HubError>>();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (results, stop, queue) = (results.clone(), &stop, &queue);
                scope.spawn(move || {
                    let transfer = Transfer {
                        http: self.http,
                        hub: self.hub,
                        listing,
                        model_dir: dir,
                        retry,
                        progress: progress.as_ref(),
                        cancel: stop,
                    };
                    while let Some(remote) = locked(queue).pop_front() {
                        let result = transfer.fetch(remote).and_then(|(record, received)| {
                            note_file(dir, manifest, &remote.path, record)?;
                            Ok(received)
                        });
                        let failed = result.is_err();
                        // The receiver outlives the workers.
                        let _ = results.send(result);
                        if failed {
                            stop.cancel();
                            return;
                        }
                    }
                });
            }
        });
        drop(results);
        let mut downloaded = 0;
        let mut failure = None;
        for result in collected {
            match result {
                Ok(bytes) => downloaded += bytes,
                // The first failure is the cause; the workers it stopped report a cancellation.
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(downloaded), Err)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note_file(
    dir: &Path,
    manifest: &Mutex<Manifest>,
    path: &str,
    record: FileRecord,
) -> Result<(), HubError> {
    let mut manifest = locked(manifest);
    manifest.files.insert(path.to_owned(), record);
    manifest.save(dir)
}

/// Whether the file on disk is known to be what the hub lists.
fn is_present(dir: &Path, manifest: &Manifest, remote: &RemoteFile, listing: &Listing) -> bool {
    let Some(record) = manifest.files.get(&remote.path) else {
        return false;
    };
    let size = std::fs::metadata(dir.join(&remote.path)).map(|meta| meta.len());
    let same_size = size.is_ok_and(|size| size == record.size)
        && remote.size.is_none_or(|size| size == record.size);
    let same_content = match (&remote.sha256, &remote.object_id, &record.object_id) {
        (Some(listed), _, _) => *listed == record.sha256,
        (None, Some(listed), Some(had)) => record.source == listing.source && listed == had,
        _ => {
            record.source == listing.source
                && listing.commit.is_some()
                && manifest.commit == listing.commit
        }
    };
    same_size && same_content
}

/// Bytes that the file will still take on the disk, as far as the hub tells.
fn bytes_to_write(dir: &Path, remote: &RemoteFile) -> u64 {
    let Some(size) = remote.size.filter(|_| !may_adopt(dir, remote)) else {
        return 0;
    };
    size.saturating_sub(part_len(dir, &remote.path))
}

fn remove_stale(dir: &Path, manifest: &mut Manifest, stale: &[String]) -> Result<(), HubError> {
    for path in stale {
        let file = dir.join(path);
        match std::fs::remove_file(&file) {
            Err(error) if !is_absent(&error) => return Err(HubError::io("remove", &file, error)),
            _ => manifest.files.remove(path),
        };
    }
    Ok(())
}

fn remove_parts(dir: &Path) -> Result<(), HubError> {
    let parts = parts_dir(dir);
    match std::fs::remove_dir_all(&parts) {
        Err(error) if !is_absent(&error) => Err(HubError::io("remove", &parts, error)),
        _ => Ok(()),
    }
}
