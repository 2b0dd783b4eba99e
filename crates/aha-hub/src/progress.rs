//! What a download tells while it runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::{HubError, ModelId, Source};

/// One step of a download. Serialised, it is one JSON object with the field `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Another process downloads the same model; this one waits for it.
    Waiting {
        /// The model.
        model: ModelId,
        /// The other process, when known.
        pid: Option<u32>,
    },
    /// A hub could not be used; the other one is tried.
    SourceFailed {
        /// The hub.
        source: Source,
        /// Why, in words.
        reason: String,
    },
    /// The list of files is known; the download begins.
    Started {
        /// The model.
        model: ModelId,
        /// The hub that serves it.
        source: Source,
        /// The commit, or the branch when the hub names no commit.
        revision: String,
        /// Number of wanted files.
        files: usize,
        /// Bytes of all wanted files whose size is known.
        total_bytes: u64,
        /// Bytes of them that are already on this disk, partial files included.
        present_bytes: u64,
    },
    /// A file is about to be requested.
    FileStarted {
        /// Path in the repository.
        path: String,
        /// Bytes, when the hub says.
        size: Option<u64>,
        /// Bytes that are already here.
        resumed_from: u64,
    },
    /// More of a file has arrived.
    FileProgress {
        /// Path in the repository.
        path: String,
        /// Bytes that are here now, counted from the start of the file.
        received: u64,
        /// Bytes, when the hub says.
        size: Option<u64>,
    },
    /// A file begins again at zero.
    FileRestarted {
        /// Path in the repository.
        path: String,
        /// Why, in words.
        reason: String,
    },
    /// A request failed and will be repeated.
    FileRetry {
        /// Path in the repository.
        path: String,
        /// How often in a row it failed.
        attempt: u32,
        /// Milliseconds until the next try.
        wait_ms: u64,
        /// Why, in words.
        reason: String,
    },
    /// A file is complete, checked and in place.
    FileFinished {
        /// Path in the repository.
        path: String,
        /// Bytes.
        size: u64,
        /// Whether the content was held against the hub's checksum.
        verified: bool,
    },
    /// Everything is in place.
    Finished {
        /// The model.
        model: ModelId,
        /// The hub that served it; `auto` where an offline download found it here.
        source: Source,
        /// The model's directory.
        path: PathBuf,
        /// Bytes of all wanted files.
        total_bytes: u64,
        /// Bytes that came over the network for them.
        downloaded_bytes: u64,
    },
}

/// Receives events from several threads; must return quickly.
pub trait Progress: Send + Sync {
    /// Called for each event.
    fn event(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync> Progress for F {
    fn event(&self, event: &Event) {
        self(event);
    }
}

/// Ignores every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: &Event) {}
}

/// Ends a download from another thread; what has arrived is kept.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    flag: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl CancelToken {
    /// Asks the download to stop at the next block of bytes.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        let parent = self.parent.as_ref();
        self.flag.load(Ordering::Relaxed) || parent.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// A token that this one cancels, too, but not the other way round.
    pub(crate) fn child(&self) -> Self {
        Self {
            flag: Arc::default(),
            parent: Some(Arc::clone(&self.flag)),
        }
    }

    pub(crate) fn check(&self) -> Result<(), HubError> {
        if self.is_cancelled() {
            return Err(HubError::Cancelled);
        }
        Ok(())
    }
}
