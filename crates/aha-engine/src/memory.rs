//! How much memory the machine has to give.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes of main memory that can be taken now, within the control group's limit where there is one.
///
/// Where the system does not tell, one GiB is assumed.
pub(crate) fn available_memory() -> usize {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let Ok(system) = System::new_with_specifics(refresh) else {
        return 1 << 30;
    };
    let free = system
        .cgroup_limits()
        .map_or(system.available_memory(), |limits| {
            limits.free_memory.min(system.available_memory())
        });
    usize::try_from(free).unwrap_or(usize::MAX)
}
