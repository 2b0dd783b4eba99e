//! Who serves what on this machine: one small file a server in `<root>/run/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, Signal, System};

use crate::manifest::{is_absent, write_json};
use crate::{HubError, Store};

/// Start times are computed from the boot time, which shifts a little when the clock is set.
const START_TOLERANCE: u64 = 5;

/// A running server, as `aha ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// The process.
    pub pid: u32,
    /// The port it listens on.
    pub port: u16,
    /// The address it listens on.
    pub address: String,
    /// The model it serves.
    pub model: String,
    /// When it registered, in seconds since 1970.
    pub started: u64,
    /// When the process began, by the system: a pid alone may be given to another process.
    process_started: u64,
}

/// Removes the run file when the server ends.
#[derive(Debug)]
pub struct RunGuard {
    path: PathBuf,
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && !is_absent(&error)
        {
            tracing::warn!(path = %self.path.display(), %error, "the run file was not removed");
        }
    }
}

impl RunFile {
    /// How long the server has been running.
    pub fn uptime(&self) -> Duration {
        Duration::from_secs(unix_now().saturating_sub(self.started))
    }

    /// Resident memory in bytes; `None` when the process is gone.
    pub fn memory(&self) -> Option<u64> {
        with_process(self.pid, |process| process.memory())
    }

    /// Asks the process to end; `false` when it is gone already.
    pub fn terminate(&self) -> bool {
        self.is_alive()
            && with_process(self.pid, |process| {
                // Where there are no signals, the process is ended at once.
                process
                    .kill_with(Signal::Term)
                    .unwrap_or_else(|| process.kill())
            })
            .unwrap_or(false)
    }

    /// Whether the process still runs and is the one that registered.
    pub fn is_alive(&self) -> bool {
        process_start(self.pid)
            .is_some_and(|start| start.abs_diff(self.process_started) <= START_TOLERANCE)
    }
}

impl Store {
    /// Notes that this process serves `model`, until the guard is dropped.
    ///
    /// # Errors
    /// [`HubError::Io`] when the file cannot be written.
    pub fn register_server(
        &self,
        address: &str,
        port: u16,
        model: &str,
    ) -> Result<RunGuard, HubError> {
        let pid = std::process::id();
        let run_file = RunFile {
            pid,
            port,
            address: address.to_owned(),
            model: model.to_owned(),
            started: unix_now(),
            process_started: process_start(pid).unwrap_or_else(unix_now),
        };
        let path = run_dir(self.root()).join(format!("{pid}-{port}.json"));
        write_json(&path, &run_file)?;
        Ok(RunGuard { path })
    }

    /// The servers that run now, by port. Files of processes that are gone are removed.
    ///
    /// # Errors
    /// [`HubError::Io`] when the directory cannot be read.
    pub fn running_servers(&self) -> Result<Vec<RunFile>, HubError> {
        let dir = run_dir(self.root());
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(HubError::io("read", &dir, error)),
        };
        let mut servers = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|error| HubError::io("read", &dir, error))?
                .path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read_run_file(&path) {
                Some(server) if server.is_alive() => servers.push(server),
                _ => drop(RunGuard { path }),
            }
        }
        servers.sort_by_key(|server| (server.port, server.pid));
        Ok(servers)
    }
}

fn run_dir(root: &Path) -> PathBuf {
    root.join("run")
}

fn read_run_file(path: &Path) -> Option<RunFile> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn process_start(pid: u32) -> Option<u64> {
    with_process(pid, |process| process.start_time())
}

fn with_process<T>(pid: u32, read: impl FnOnce(&sysinfo::Process) -> T) -> Option<T> {
    let pid = Pid::from_u32(pid);
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        true,
        ProcessRefreshKind::nothing().with_memory(),
    );
    let process = system.process(pid)?;
    // A zombie has ended; only its parent has not noticed.
    (process.status() != sysinfo::ProcessStatus::Zombie).then(|| read(process))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HubConfig;

    fn store(root: &Path) -> Store {
        let config = HubConfig::from_lookup(|_| None).unwrap();
        Store::open(Some(root), &config).unwrap()
    }

    #[test]
    fn a_server_is_listed_while_it_runs() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        assert!(store.running_servers().unwrap().is_empty());
        let guard = store.register_server("127.0.0.1", 8080, "a/b").unwrap();
        let servers = store.running_servers().unwrap();
        assert_eq!(servers.len(), 1);
        assert_eq!(
            (servers[0].pid, servers[0].port),
            (std::process::id(), 8080)
        );
        assert_eq!(
            (servers[0].address.as_str(), servers[0].model.as_str()),
            ("127.0.0.1", "a/b")
        );
        assert!(servers[0].memory().unwrap() > 0);
        assert!(servers[0].uptime() < Duration::from_secs(60));
        drop(guard);
        assert!(store.running_servers().unwrap().is_empty());
    }

    #[test]
    fn files_of_dead_processes_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        drop(store.register_server("127.0.0.1", 1, "a/b").unwrap());
        let mut file = RunFile {
            pid: u32::MAX - 1,
            port: 1,
            address: "127.0.0.1".to_owned(),
            model: "a/b".to_owned(),
            started: 0,
            process_started: 0,
        };
        write_json(&root.path().join("run/dead.json"), &file).unwrap();
        // The pid lives, but another process has it now.
        file.pid = std::process::id();
        write_json(&root.path().join("run/reused.json"), &file).unwrap();
        fs::write(root.path().join("run/broken.json"), "{").unwrap();
        fs::write(root.path().join("run/note.txt"), "kept").unwrap();
        assert!(!file.is_alive() && !file.terminate());
        assert!(store.running_servers().unwrap().is_empty());
        let left: Vec<_> = fs::read_dir(root.path().join("run")).unwrap().collect();
        assert_eq!(left.len(), 1, "only the note is left");
    }
}
