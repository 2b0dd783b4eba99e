//! One download from one hub: plans the files, fetches them side by side, keeps the manifest.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use super::{Downloaded, Downloader};
use crate::http::HttpClient;
use crate::hubs::{Hub, Listing, RemoteFile};
use crate::manifest::{FileRecord, Manifest, is_absent};
use crate::part::{part_len, parts_dir};
use crate::transfer::{Transfer, may_adopt};
use crate::{Event, FileFilter, HubError, ModelId};

/// One download from one hub.
pub(super) struct Job<'a> {
    pub(super) downloader: &'a Downloader,
    pub(super) id: &'a ModelId,
    pub(super) http: &'a HttpClient,
    pub(super) hub: &'a Hub,
    pub(super) filter: &'a FileFilter,
}

impl Job<'_> {
    /// Downloads what is missing; `listing` spares a request where it is at hand.
    pub(super) fn run(&self, listing: Option<Listing>) -> Result<Downloaded, HubError> {
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
        let wanted = self.filter.select(listing)?;
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
            path: dir.clone(),
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
                    // A function of its own, so that the queue is not locked during the transfer.
                    let next = || locked(queue).pop_front();
                    while let Some(remote) = next() {
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
