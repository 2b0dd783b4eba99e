//! Cores of their own for the threads that compute.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::KernelError;

/// Whether threads that start from now on get a core of their own.
static PINNED: AtomicBool = AtomicBool::new(false);

/// Gives each thread of the kernels a core of its own, of those that the process may run on: no thread then waits
/// behind another one while a core is idle, nor leaves behind what its core's caches hold. The threads that call
/// kernels stay where the system puts them, the first core being left to them.
///
/// To be called before the first kernel runs; threads that run already are not moved. Worth it on machines that have
/// nothing else to do: a pinned thread cannot go elsewhere when another program wants its core.
///
/// # Errors
/// [`KernelError::Affinity`] when the system does not let threads be pinned (only Linux does), and when the process may
/// run on fewer cores than `threads`.
pub fn pin_threads(threads: usize) -> Result<(), KernelError> {
    let cores = cores().len();
    if cores == 0 {
        let reason = "this system does not let threads be bound to cores".to_owned();
        return Err(KernelError::Affinity { reason });
    }
    if threads > cores {
        let reason = format!("there are {threads} threads, but this process may use {cores} cores");
        return Err(KernelError::Affinity { reason });
    }
    PINNED.store(true, Relaxed);
    Ok(())
}

/// Binds this thread, number `number` of the kernels', to its core, where that was asked for.
pub(crate) fn take_core(number: usize) {
    if PINNED.load(Relaxed)
        && let Some(core) = cores().get(number)
    {
        bind(*core);
    }
}

/// The cores that this thread may run on; none where the system does not say.
#[cfg(target_os = "linux")]
fn cores() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let Ok(set) = sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn cores() -> Vec<usize> {
    Vec::new()
}

#[cfg(target_os = "linux")]
fn bind(core: usize) {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    set.set(core);
    // The core was one of this thread's a moment ago; if it is no longer, the thread stays as free as it was.
    let _ = sched_setaffinity(None, &set);
}

#[cfg(not(target_os = "linux"))]
fn bind(_core: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_bound_has_one_core() {
        let all = cores();
        assert!(!all.is_empty());
        let last = all[all.len() - 1];
        let own = std::thread::spawn(move || {
            bind(last);
            cores()
        });
        assert_eq!(own.join().unwrap(), [last]);
        assert_eq!(cores(), all, "other threads are as free as before");
    }

    #[test]
    fn more_threads_than_cores_are_refused() {
        let cores = cores().len();
        let outcome = pin_threads(cores + 1);
        assert_eq!(
            outcome.unwrap_err().to_string(),
            format!(
                "threads cannot be bound to cores: there are {} threads, but this process may use {cores} cores",
                cores + 1
            )
        );
    }
}
