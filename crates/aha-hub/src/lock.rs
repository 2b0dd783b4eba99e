//! One process at a time changes a model. The operating system drops the lock with its holder, so
//! a crash leaves no stale lock behind.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::manifest::{RECORDS, create_parent};
use crate::{CancelToken, HubError, ModelId};

const POLL: Duration = Duration::from_millis(50);

/// How long a lock that was let go may still seem held: a program that another thread is just starting has it until
/// its first instruction.
const FORKED: Duration = Duration::from_millis(100);

/// Holds the lock until it is dropped.
pub(crate) struct ModelLock {
    _file: File,
}

impl ModelLock {
    /// Takes the lock if it is free.
    pub(crate) fn try_acquire(root: &Path, id: &ModelId) -> Result<Option<Self>, HubError> {
        let path = lock_path(root, id);
        create_parent(&path)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| HubError::io("open", &path, error))?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < FORKED => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(HubError::io("lock", &path, error));
                }
            }
        }
        // The number only serves messages; the lock itself is the system's.
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        if let Err(error) = note(&mut file) {
            tracing::debug!(path = %path.display(), %error, "the lock does not name its holder");
        }
        Ok(Some(Self { _file: file }))
    }

    /// Takes the lock, waiting for its holder; `waiting` is called once if there is one.
    pub(crate) fn acquire(
        root: &Path,
        id: &ModelId,
        cancel: &CancelToken,
        waiting: impl FnOnce(Option<u32>),
    ) -> Result<Self, HubError> {
        let mut waiting = Some(waiting);
        loop {
            if let Some(lock) = Self::try_acquire(root, id)? {
                return Ok(lock);
            }
            if let Some(waiting) = waiting.take() {
                waiting(holder(root, id));
            }
            cancel.check()?;
            std::thread::sleep(POLL);
        }
    }
}

/// The process that wrote itself into the lock last.
pub(crate) fn holder(root: &Path, id: &ModelId) -> Option<u32> {
    let mut text = String::new();
    let file = fs::File::open(lock_path(root, id)).ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn lock_path(root: &Path, id: &ModelId) -> PathBuf {
    root.join(RECORDS)
        .join("locks")
        .join(id.owner())
        .join(format!("{}.lock", id.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_let_go_in_a_moment_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let id: ModelId = "a/b".parse().unwrap();
        let lock = ModelLock::try_acquire(root.path(), &id).unwrap().unwrap();
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(FORKED / 10);
            drop(lock);
        });
        assert!(ModelLock::try_acquire(root.path(), &id).unwrap().is_some());
        letting_go.join().unwrap();
    }

    #[test]
    fn a_lock_has_one_holder() {
        let root = tempfile::tempdir().unwrap();
        let id: ModelId = "a/b".parse().unwrap();
        let lock = ModelLock::try_acquire(root.path(), &id).unwrap().unwrap();
        assert!(ModelLock::try_acquire(root.path(), &id).unwrap().is_none());
        assert_eq!(holder(root.path(), &id), Some(std::process::id()));
        let other: ModelId = "a/c".parse().unwrap();
        assert!(
            ModelLock::try_acquire(root.path(), &other)
                .unwrap()
                .is_some()
        );

        let cancel = CancelToken::default();
        cancel.cancel();
        let mut told = None;
        let waited = ModelLock::acquire(root.path(), &id, &cancel, |pid| told = pid);
        assert!(matches!(waited, Err(HubError::Cancelled)));
        assert_eq!(told, Some(std::process::id()));
        drop(lock);
        assert!(ModelLock::try_acquire(root.path(), &id).unwrap().is_some());
    }
}
