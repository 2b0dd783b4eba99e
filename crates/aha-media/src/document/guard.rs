//! What keeps a hostile document from holding a worker: a thread of its own, a deadline, and a look at what unpacks.
//!
//! The reader of PDF has no notion of time. Each look-up of an object goes through the document's bytes, though, and those
//! are [`WatchedBytes`]: behind the deadline they unwind the thread instead of answering. Work that looks nothing up goes
//! on to its end on its thread, which nobody waits for; few such threads may be left over at once.

use super::DocumentError;
use crate::MediaError;
use crate::image::malformed;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Threads behind their deadline that may still run: beyond them nothing new is begun.
const MAX_LEFT_OVER: usize = 4;

/// Stack of a thread: content nests, and the reader follows it by recursion.
const STACK: usize = 32 << 20;

static LEFT_OVER: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What a thread unwinds with behind its deadline.
struct Late;

/// Unwinds the thread if it is behind its deadline.
pub(super) fn check_deadline() {
    if DEADLINE
        .get()
        .is_some_and(|deadline| Instant::now() > deadline)
    {
        // Once: cleaning up may look things up as well.
        DEADLINE.set(None);
        resume_unwind(Box::new(Late));
    }
}

/// The bytes of a document, which are not given behind the deadline of the thread that asks.
pub(super) struct WatchedBytes(pub(super) Arc<[u8]>);

impl AsRef<[u8]> for WatchedBytes {
    fn as_ref(&self) -> &[u8] {
        check_deadline();
        &self.0
    }
}

/// Runs `work` on a thread of its own for at most `limit`; what it panics with is an error of the document. `what` names
/// the work in messages.
pub(super) fn guarded<T: Send + 'static>(
    what: impl Into<String>,
    limit: Duration,
    work: impl FnOnce() -> Result<T, MediaError> + Send + 'static,
) -> Result<T, MediaError> {
    if LEFT_OVER.load(Ordering::Relaxed) >= MAX_LEFT_OVER {
        return Err(DocumentError::Busy.into());
    }
    let late = move |what: String| DocumentError::Timeout { what, limit }.into();
    // Without a buffer: what is sent is taken, or the sender hears that nobody does.
    let (sender, receiver) = mpsc::sync_channel(0);
    let thread = thread::Builder::new()
        .name("document".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            DEADLINE.set(Some(Instant::now() + limit));
            let outcome = catch_unwind(AssertUnwindSafe(work));
            DEADLINE.set(None);
            // Nobody listens any more when it came too late: then this thread is no longer left over.
            if sender.send(outcome).is_err() {
                LEFT_OVER.fetch_sub(1, Ordering::Relaxed);
            }
        });
    thread.map_err(|source| MediaError::Io {
        what: "starting a thread",
        source,
    })?;
    // The deadline inside comes first, so that a thread is only left over when it does not hear it.
    match receiver.recv_timeout(limit + limit / 4) {
        Ok(Ok(result)) => result,
        Ok(Err(payload)) if payload.is::<Late>() => Err(late(what.into())),
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
            Err(malformed("PDF")("the reader stopped at a broken invariant"))
        }
        Err(RecvTimeoutError::Timeout) => {
            LEFT_OVER.fetch_add(1, Ordering::Relaxed);
            Err(late(what.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    #[test]
    fn work_behind_its_deadline_is_unwound_by_its_look_ups() {
        let bytes = WatchedBytes(Arc::from(&b"abc"[..]));
        let (sender, ended) = mpsc::channel();
        let outcome = guarded("counting", SHORT, move || {
            let _told = Told(sender);
            loop {
                assert_eq!(bytes.as_ref().len(), 3);
            }
            #[allow(unreachable_code)]
            Ok(())
        });
        let error = outcome.unwrap_err().to_string();
        assert!(
            error.starts_with("counting took more than 0.1 s"),
            "{error}"
        );
        // The thread has ended, not only been left behind.
        ended.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    struct Told(mpsc::Sender<()>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn threads_that_were_left_behind_are_counted_out_again() {
        // More of them than may be left over at once, but not at the same time.
        for _ in 0..2 * MAX_LEFT_OVER {
            let late = guarded("sleeping", SHORT, || {
                thread::sleep(SHORT * 5 / 4);
                Ok(())
            });
            // It may just have come in time.
            assert!(!matches!(
                late,
                Err(MediaError::Document(DocumentError::Busy))
            ));
            thread::sleep(SHORT);
        }
    }

    #[test]
    fn work_that_does_not_hear_is_left_behind_and_panics_are_errors() {
        let outcome = guarded("sleeping", SHORT, || {
            thread::sleep(SHORT * 4);
            Ok(())
        });
        assert!(matches!(
            outcome,
            Err(MediaError::Document(DocumentError::Timeout { .. }))
        ));
        let outcome: Result<(), _> = guarded("x", SHORT, || resume_unwind(Box::new("bug")));
        assert!(matches!(
            outcome,
            Err(MediaError::Malformed { format: "PDF", .. })
        ));
        assert_eq!(guarded("x", SHORT, || Ok(7)).unwrap(), 7);
    }
}
