//! How a download tells of its progress: bars on a terminal, lines elsewhere, JSON on request.

use super::console::{self, byte_bar, note};
use super::failure::Failure;
use super::units::{bytes, span};
use aha::hub::{Event, Progress};
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines about a download that goes on.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// One JSON object a line on standard output.
pub(crate) struct JsonLines;

impl JsonLines {
    /// The last line of a download that failed.
    pub(crate) fn failed(&self, failure: &Failure) {
        let (code, message) = failure.described();
        self.write(&serde_json::json!({"event": "failed", "code": code, "message": message}));
    }

    fn write(&self, value: &impl serde::Serialize) {
        if let Ok(line) = serde_json::to_string(value) {
            // The download goes on when nobody listens any more.
            let _ = console::print(&format!("{line}\n"));
        }
    }
}

impl Progress for JsonLines {
    fn event(&self, event: &Event) {
        self.write(event);
    }
}

/// Bytes of all files together.
#[derive(Default)]
struct Total {
    wanted: u64,
    /// Here before the download began.
    present: u64,
    /// Bytes of each file when it began, and now.
    files: HashMap<String, (u64, u64)>,
    count: usize,
}

impl Total {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Started {
                total_bytes,
                present_bytes,
                files,
                ..
            } => {
                *self = Self {
                    wanted: *total_bytes,
                    present: *present_bytes,
                    count: *files,
                    ..Self::default()
                };
            }
            Event::FileStarted {
                path, resumed_from, ..
            } => {
                self.files
                    .insert(path.clone(), (*resumed_from, *resumed_from));
            }
            Event::FileProgress { path, received, .. } => self.set(path, *received),
            Event::FileRestarted { path, .. } => self.set(path, 0),
            Event::FileFinished { path, size, .. } => self.set(path, *size),
            _ => {}
        }
    }

    fn set(&mut self, path: &str, received: u64) {
        if let Some((_, now)) = self.files.get_mut(path) {
            *now = received;
        }
    }

    /// Bytes that are here now.
    fn here(&self) -> u64 {
        let arrived: u64 = self.files.values().map(|(_, now)| now).sum();
        let began: u64 = self.files.values().map(|(began, _)| began).sum();
        (self.present + arrived).saturating_sub(began)
    }
}

/// What is told in the same words on a terminal and elsewhere.
fn tell(event: &Event, failures: &Mutex<Vec<String>>) {
    match event {
        Event::Waiting { model, pid } => {
            let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            note(&format!(
                "another process{pid} downloads {model}; waiting for it"
            ));
        }
        Event::SourceFailed { reason, .. } => locked(failures).push(reason.clone()),
        Event::Started {
            model,
            source,
            files,
            total_bytes,
            present_bytes,
            ..
        } => {
            locked(failures).drain(..).for_each(|reason| note(&reason));
            let missing = match total_bytes.saturating_sub(*present_bytes) {
                // Nothing is missing, or the hub tells no sizes.
                0 => String::new(),
                missing => format!(", {} to download", bytes(missing)),
            };
            let here = match present_bytes {
                0 => String::new(),
                present => format!(", {} are here", bytes(*present)),
            };
            note(&format!(
                "{model} from {source}: {files} files{missing}{here}"
            ));
        }
        Event::FileRestarted { path, reason } => {
            note(&format!("{path} begins again: {reason}"));
        }
        Event::FileRetry {
            path,
            attempt,
            wait_ms,
            reason,
        } => {
            let wait = Duration::from_millis(*wait_ms).as_secs_f64();
            note(&format!(
                "{path}: {reason}; attempt {} in {wait:.1} s",
                attempt + 1
            ));
        }
        Event::Finished {
            downloaded_bytes, ..
        } => {
            note(&match downloaded_bytes {
                0 => "nothing to download".to_owned(),
                count => format!("done, {} downloaded", bytes(*count)),
            });
        }
        _ => {}
    }
}

/// One bar a file, and one for all of them.
#[derive(Default)]
pub(crate) struct Bars {
    state: Mutex<Shown>,
    /// Why hubs could not be used: told when another one takes over. Where none does, the
    /// command's own error tells of them all.
    failures: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Shown {
    total: Total,
    all: Option<ProgressBar>,
    files: HashMap<String, ProgressBar>,
}

impl Shown {
    fn take(&mut self, event: &Event) {
        self.total.take(event);
        match event {
            Event::Started { .. } => {
                self.clear();
                // Where the hub tells no sizes, there is nothing to be a part of.
                if self.total.count > 1 && self.total.wanted > self.total.present {
                    let bar = byte_bar(self.total.wanted, true).with_message("total");
                    bar.set_position(self.total.present);
                    bar.reset_eta();
                    self.all = Some(bar);
                }
            }
            Event::FileStarted {
                path,
                size,
                resumed_from,
            } => {
                let bar = byte_bar(size.unwrap_or(0), true).with_message(path.clone());
                bar.set_position(*resumed_from);
                bar.reset_eta();
                self.files.insert(path.clone(), bar);
            }
            Event::FileProgress { path, received, .. } => {
                if let Some(bar) = self.files.get(path) {
                    bar.set_position(*received);
                }
            }
            Event::FileFinished { path, .. } => {
                if let Some(bar) = self.files.remove(path) {
                    bar.finish_and_clear();
                }
            }
            Event::Finished { .. } => self.clear(),
            _ => {}
        }
        if let Some(bar) = &self.all {
            bar.set_position(self.total.here());
        }
    }

    fn clear(&mut self) {
        let files = self.files.drain().map(|(_, bar)| bar);
        files
            .chain(self.all.take())
            .for_each(|bar| bar.finish_and_clear());
    }
}

impl Progress for Bars {
    fn event(&self, event: &Event) {
        locked(&self.state).take(event);
        tell(event, &self.failures);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        locked(&self.state).clear();
    }
}

/// A line for each file that is done, and now and then one for the whole.
#[derive(Default)]
pub(crate) struct Lines {
    state: Mutex<Written>,
    failures: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Written {
    total: Total,
    began: Option<Instant>,
    told: Option<Instant>,
}

impl Progress for Lines {
    fn event(&self, event: &Event) {
        tell(event, &self.failures);
        let mut state = locked(&self.state);
        state.total.take(event);
        match event {
            Event::Started { .. } => {
                state.began = Some(Instant::now());
                state.told = state.began;
            }
            Event::FileFinished { path, size, .. } => {
                note(&format!("{path}, {}", bytes(*size)));
            }
            Event::FileProgress { .. }
                if state.told.is_some_and(|told| told.elapsed() >= LINE_EVERY) =>
            {
                state.told = Some(Instant::now());
                let elapsed = state.began.map_or(Duration::ZERO, |began| began.elapsed());
                note(&summary(&state.total, elapsed));
            }
            _ => {}
        }
    }
}

/// How far a download has come in `elapsed`.
fn summary(total: &Total, elapsed: Duration) -> String {
    let here = total.here();
    let rate = here.saturating_sub(total.present) as f64 / elapsed.as_secs_f64().max(0.001);
    let speed = format!("{}/s", bytes(rate as u64));
    let left = total.wanted.saturating_sub(here);
    if total.wanted == 0 {
        return format!("{}, {speed}", bytes(here));
    }
    let percent = here.min(total.wanted) as f64 * 100.0 / total.wanted as f64;
    let remaining = if rate < 1.0 {
        String::new()
    } else {
        let time = Duration::from_secs_f64((left as f64 / rate).min(1e9));
        format!(", {} left", span(time))
    };
    format!(
        "{} of {} ({percent:.0} %), {speed}{remaining}",
        bytes(here),
        bytes(total.wanted)
    )
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha::hub::Source;

    fn started(total: u64, present: u64) -> Event {
        Event::Started {
            model: "a/b".parse().unwrap(),
            source: Source::HuggingFace,
            revision: "main".to_owned(),
            files: 2,
            total_bytes: total,
            present_bytes: present,
        }
    }

    fn progress(path: &str, received: u64) -> Event {
        Event::FileProgress {
            path: path.to_owned(),
            received,
            size: None,
        }
    }

    #[test]
    fn the_total_counts_what_was_here_once() {
        let mut total = Total::default();
        let began = |path: &str, resumed_from| Event::FileStarted {
            path: path.to_owned(),
            size: None,
            resumed_from,
        };
        for event in [
            started(4000, 1000),
            began("a", 1000),
            began("b", 0),
            progress("a", 2000),
            progress("b", 500),
        ] {
            total.take(&event);
        }
        assert_eq!(total.here(), 2500);
        let text = summary(&total, Duration::from_secs(3));
        assert_eq!(text, "2.4 KiB of 3.9 KiB (62 %), 500 B/s, 3s left");
        // A file that begins again is told as it is.
        total.take(&Event::FileRestarted {
            path: "a".to_owned(),
            reason: String::new(),
        });
        assert_eq!(total.here(), 500);
        total.take(&started(0, 0));
        assert_eq!(summary(&total, Duration::from_secs(1)), "0 B, 0 B/s");
    }
}
