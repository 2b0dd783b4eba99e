//! The threads that kernels share.
//!
//! A step of generation issues hundreds of products of some tens of microseconds each. Waking a
//! sleeping thread for every one would cost as much as the product, so workers look out for the
//! next job for a short while ([`SPINS`]) before they sleep, and fetch what it will read ([`Foresight`]). There is one pool a process, with as
//! many threads as the [`rayon`] pool of loading and preprocessing. One job runs at a time: a call
//! from inside a job, or from another thread while a job runs, does its own work alone, so that
//! never more threads compute than there are.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use crate::affinity::take_core;
use crate::foresight::{Fetcher, Foresight};

/// Rounds that a worker looks out for work before it sleeps: some tens of microseconds, which is longer
/// than the pauses inside a step of generation and shorter than those between requests.
const SPINS: usize = 6_000;

/// Tasks that a product is cut into for each thread: a few, so that a thread that is held up elsewhere does not hold
/// up the rest.
pub(crate) const TASKS: usize = 4;

/// What a job runs for each index.
type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// The job that is running. Written by its owner while no worker is inside.
struct Job {
    task: *const Task<'static>,
    count: usize,
}

struct Shared {
    /// Held by the thread whose job runs.
    busy: AtomicBool,
    /// Counts jobs; workers watch it.
    epoch: AtomicUsize,
    /// Whether workers may enter the job.
    open: AtomicBool,
    /// Workers inside the job.
    inside: AtomicUsize,
    /// The next index to run.
    next: AtomicUsize,
    job: UnsafeCell<Job>,
    /// What threads fetch while they wait.
    foresight: Foresight,
    /// The first panic of a task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether the pool is going down.
    closed: AtomicBool,
}

// SAFETY: `job` is written by the holder of `busy` while `open` is false and `inside` is zero, and read
// by workers between raising and lowering `inside` after they saw `open`; see `enter` and `run`.
unsafe impl Sync for Shared {}
// SAFETY: the task behind the pointer is `Sync`, and its owner outlives every use.
unsafe impl Send for Shared {}

impl Shared {
    /// Runs tasks until none is left; keeps the first panic.
    fn work(&self) {
        // SAFETY: the caller is the job's owner, or a worker that entered it.
        let (task, count) = unsafe {
            let job = &*self.job.get();
            (&*job.task, job.count)
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Relaxed);
                if index >= count {
                    return;
                }
                task(index);
            }
        }));
        if let Err(panic) = outcome {
            self.next.store(count, Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
        }
    }

    /// A worker's part in the current job, if that still takes workers.
    fn enter(&self) {
        // Raise the count, then look: the owner closes the job, then looks at the count. Sequential
        // consistency makes one of the two see the other.
        self.inside.fetch_add(1, SeqCst);
        if self.open.load(SeqCst) {
            INSIDE.set(true);
            self.work();
            INSIDE.set(false);
        }
        self.inside.fetch_sub(1, Release);
    }

    /// What worker `number` does; the caller's thread is number zero.
    fn worker(&self, number: usize) {
        take_core(number);
        let mut seen = 0;
        let mut fetcher = Fetcher::default();
        loop {
            fetcher.look(&self.foresight, number);
            let mut spins = 0;
            loop {
                let epoch = self.epoch.load(Acquire);
                if epoch != seen {
                    seen = epoch;
                    break;
                }
                if self.closed.load(Acquire) {
                    return;
                }
                if fetcher.fetch() {
                    continue;
                }
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    // A job that begins between the look above and this line leaves its token, and
                    // parking returns at once.
                    std::thread::park();
                }
            }
            self.enter();
        }
    }
}

thread_local! {
    /// Whether this thread is running a task of a job.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

#[cfg(test)]
thread_local! {
    /// The pool that a test put in place of the process's.
    static OWN: std::cell::RefCell<Option<Arc<Pool>>> = const { std::cell::RefCell::new(None) };
}

/// Threads that run the tasks of one job at a time, the caller's among them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Thread>,
}

impl Pool {
    fn new(threads: usize) -> Self {
        fn nothing(_: usize) {}
        let nothing: &'static Task<'static> = &nothing;
        let shared = Arc::new(Shared {
            busy: AtomicBool::new(false),
            epoch: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(Job {
                task: nothing,
                count: 0,
            }),
            foresight: Foresight::default(),
            panic: Mutex::new(None),
            closed: AtomicBool::new(false),
        });
        let spawn = |number| {
            let shared = Arc::clone(&shared);
            let name = format!("aha-kernel-{number}");
            let thread = std::thread::Builder::new().name(name);
            // A system that grants no more threads computes with those that it granted.
            thread.spawn(move || shared.worker(number)).ok()
        };
        let workers = (1..threads)
            .map_while(spawn)
            .map(|handle| handle.thread().clone())
            .collect();
        Self { shared, workers }
    }

    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, count: usize, task: &Task<'_>) {
        let shared = &*self.shared;
        let alone = count < 2 || self.workers.is_empty() || INSIDE.get();
        if alone || shared.busy.swap(true, Acquire) {
            return (0..count).for_each(task);
        }
        // SAFETY: only the lifetime changes. No worker uses the task after `inside` is zero with the
        // job closed, which this function waits for, also when a task panics.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        // SAFETY: `busy` is ours, the last job is closed, and its workers have left.
        unsafe { *shared.job.get() = Job { task, count } };
        shared.next.store(0, Relaxed);
        shared.open.store(true, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        for worker in self.workers.iter().take(count - 1) {
            worker.unpark();
        }
        INSIDE.set(true);
        shared.work();
        INSIDE.set(false);
        shared.open.store(false, SeqCst);
        let mut spins = 0_usize;
        let mut fetcher = None;
        while shared.inside.load(SeqCst) > 0 {
            let fetcher = fetcher.get_or_insert_with(|| {
                let mut fetcher = Fetcher::default();
                fetcher.look(&shared.foresight, 0);
                fetcher
            });
            if fetcher.fetch() {
                continue;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        shared.busy.store(false, Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Release);
        self.workers.iter().for_each(Thread::unpark);
    }
}

/// Runs `work` with the process's pool, or with a test's own.
fn with_pool<R>(work: impl FnOnce(&Pool) -> R) -> R {
    static POOL: OnceLock<Pool> = OnceLock::new();
    #[cfg(test)]
    if let Some(own) = OWN.with_borrow(Clone::clone) {
        return work(&own);
    }
    work(POOL.get_or_init(|| Pool::new(rayon::current_num_threads())))
}

/// Calls `tell` with what threads fetch by while they wait.
pub(crate) fn with_foresight(tell: impl FnOnce(&Foresight)) {
    with_pool(|pool| tell(&pool.shared.foresight));
}

/// Threads that a job may run on.
pub(crate) fn threads() -> usize {
    with_pool(Pool::threads)
}

/// Runs `task` for each index below `count`, on all threads when there is more than one.
///
/// A panic of a task reaches the caller once all threads have left the job.
pub(crate) fn for_each_task(count: usize, task: impl Fn(usize) + Sync) {
    if count == 1 {
        task(0);
    } else {
        with_pool(|pool| pool.run(count, &task));
    }
}

/// Runs `task` for each stretch of `size` values of `out` (the last may be shorter), with its index.
pub(crate) fn for_each_chunk<T: Send>(
    out: &mut [T],
    size: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    let (size, len) = (size.max(1), out.len());
    let start = Shareable(out.as_mut_ptr());
    for_each_task(len.div_ceil(size), |index| {
        let from = index * size;
        // SAFETY: the chunks lie inside the exclusively borrowed slice and apart from each other, and
        // each index runs once.
        let chunk =
            unsafe { std::slice::from_raw_parts_mut(start.get().add(from), size.min(len - from)) };
        task(index, chunk);
    });
}

/// Runs `task` for each stretch of `size` values of `out` (the last may be shorter), with the place of its first
/// value; in one stretch on this thread where `out` has fewer than `parallel_from`, and threads would cost more
/// than they bring.
pub(crate) fn for_each_stretch<T: Send>(
    out: &mut [T],
    parallel_from: usize,
    size: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    let size = if out.len() < parallel_from {
        out.len()
    } else {
        size
    };
    for_each_chunk(out, size, |index, stretch| task(index * size, stretch));
}

/// The same for two slices of one length, which are cut alike.
pub(crate) fn for_each_stretch_of_two<T: Send>(
    [first, second]: [&mut [T]; 2],
    parallel_from: usize,
    size: usize,
    task: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    assert_eq!(first.len(), second.len());
    let start = Shareable(first.as_mut_ptr());
    for_each_stretch(second, parallel_from, size, |from, second| {
        // SAFETY: the stretches of `second`, which is as long, are inside it and apart; so are these of `first`, which
        // is borrowed exclusively.
        let first = unsafe { std::slice::from_raw_parts_mut(start.get().add(from), second.len()) };
        task(from, first, second);
    });
}

/// Runs `task` for each piece `starts[index]..starts[index + 1]` of `out`, on all threads where
/// `parallel`.
pub(crate) fn for_each_piece<T: Send>(
    out: &mut [T],
    starts: &[usize],
    parallel: bool,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    // The pieces must lie inside and apart.
    assert!(starts.is_sorted() && starts.last().is_none_or(|end| *end <= out.len()));
    let start = Shareable(out.as_mut_ptr());
    let piece = |index: usize| {
        let (from, to) = (starts[index], starts[index + 1]);
        // SAFETY: checked above; `out` is borrowed exclusively and each index runs once.
        let piece = unsafe { std::slice::from_raw_parts_mut(start.get().add(from), to - from) };
        task(index, piece);
    };
    let count = starts.len().saturating_sub(1);
    if parallel {
        for_each_task(count, piece);
    } else {
        (0..count).for_each(piece);
    }
}

/// A pointer that tasks on several threads derive their own parts from.
struct Shareable<T>(*mut T);

impl<T> Shareable<T> {
    /// By method, so that closures capture the whole value.
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: what the pointer is used for is argued where it is.
unsafe impl<T: Send> Sync for Shareable<T> {}

/// Runs `work` on a pool of `threads` threads of its own.
#[cfg(test)]
pub(crate) fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    OWN.set(Some(Arc::new(Pool::new(threads))));
    let result = work();
    OWN.set(None);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_index_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            with_threads(threads, || {
                for count in [0, 1, 2, 3, 7, 100] {
                    let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    for_each_task(count, |index| {
                        runs[index].fetch_add(1, Relaxed);
                    });
                    assert!(runs.iter().all(|runs| runs.load(Relaxed) == 1));
                }
            });
        }
    }

    #[test]
    fn jobs_follow_each_other_without_losing_any() {
        with_threads(4, || {
            let sum = AtomicUsize::new(0);
            for round in 0..20_000 {
                for_each_task(5, |index| {
                    sum.fetch_add(index + round % 3, Relaxed);
                });
                if round % 5000 == 0 {
                    std::thread::sleep(Duration::from_millis(5)); // workers fall asleep
                }
            }
            let extra: usize = (0..20_000).map(|round| round % 3).sum();
            assert_eq!(sum.into_inner(), 20_000 * 10 + 5 * extra);
        });
    }

    #[test]
    fn chunks_cover_the_slice() {
        with_threads(3, || {
            let mut values = vec![0; 1003];
            for_each_chunk(&mut values, 100, |index, chunk| {
                assert_eq!(chunk.len(), if index == 10 { 3 } else { 100 });
                chunk.iter_mut().for_each(|value| *value += index + 1);
            });
            assert!(
                values
                    .iter()
                    .enumerate()
                    .all(|(place, value)| *value == place / 100 + 1)
            );
            for_each_chunk(&mut [0; 0], 4, |_, _| unreachable!());
        });
    }

    #[test]
    fn a_nested_job_runs_where_it_is_called() {
        with_threads(3, || {
            let runs = AtomicUsize::new(0);
            for_each_task(6, |_| {
                let thread = std::thread::current().id();
                for_each_task(4, |_| {
                    assert_eq!(std::thread::current().id(), thread);
                    runs.fetch_add(1, Relaxed);
                });
            });
            assert_eq!(runs.into_inner(), 24);
        });
    }

    #[test]
    fn two_callers_at_once_both_get_their_work_done() {
        let pool = Arc::new(Pool::new(3));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let pool = Arc::clone(&pool);
                scope.spawn(move || {
                    OWN.set(Some(pool));
                    for _ in 0..2000 {
                        let runs = AtomicUsize::new(0);
                        for_each_task(7, |_| {
                            runs.fetch_add(1, Relaxed);
                        });
                        assert_eq!(runs.into_inner(), 7);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        with_threads(3, || {
            for _ in 0..50 {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    for_each_task(8, |index| assert_ne!(index, 5, "task five fails"));
                }));
                let panic = outcome.unwrap_err();
                assert!(
                    panic
                        .downcast_ref::<String>()
                        .unwrap()
                        .contains("task five")
                );
                for_each_task(8, |_| {});
            }
        });
    }
}
