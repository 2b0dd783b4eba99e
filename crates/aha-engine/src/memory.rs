//! How much memory the machine has to give.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Where the system does not tell.
const ASSUMED: usize = 1 << 30;

/// Bytes of main memory in all, within the control group's limit where there is one.
///
/// Where the system does not tell, one GiB is assumed.
pub fn total_memory() -> u64 {
    system().map_or(ASSUMED as u64, |system| {
        system
            .cgroup_limits()
            .map_or(system.total_memory(), |limits| {
                limits.total_memory.min(system.total_memory())
            })
    })
}

fn system() -> Option<System> {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    System::new_with_specifics(refresh).ok()
}

/// Bytes of main memory that can be taken now, within the control group's limit where there is one.
///
/// Where the system does not tell, one GiB is assumed.
pub(crate) fn available_memory() -> usize {
    let Some(system) = system() else {
        return ASSUMED;
    };
    let free = system
        .cgroup_limits()
        .map_or(system.available_memory(), |limits| {
            limits.free_memory.min(system.available_memory())
        });
    usize::try_from(free).unwrap_or(usize::MAX)
}
