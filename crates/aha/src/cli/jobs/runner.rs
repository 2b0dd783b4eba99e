//! Works through the items of a job: several at once, each kept as it comes, until the end or the first signal.

use super::journal::{Journal, State};
use super::outputs::{Outputs, write_atomically};
use crate::cli::Context;
use crate::cli::console;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::units::span;
use indicatif::ProgressBar;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Failures that are listed at the end; the journal has them all.
const LISTED: usize = 20;

/// One thing to do.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Item {
    /// What the user reads: the input's name, and the part of it.
    pub(in crate::cli) id: String,
    /// The file that it is in, whose content it is known by.
    pub(in crate::cli) path: PathBuf,
    /// Which part of the file it is, and what else only this item depends on.
    pub(in crate::cli) part: String,
    /// Its place in the caller's own list.
    pub(in crate::cli) index: usize,
}

/// What an item came to.
#[derive(Debug)]
pub(in crate::cli) struct Product<V> {
    /// Kept in the journal, for what is made of many items.
    pub(in crate::cli) value: V,
    /// Files below the root of the outputs, and what is in them.
    pub(in crate::cli) files: Vec<(PathBuf, Vec<u8>)>,
}

/// What all items have in common.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Plan<'a> {
    /// The command, which the journal is of.
    pub(in crate::cli) command: &'a str,
    /// Model and options: items that were done with others are done again.
    pub(in crate::cli) options: String,
    /// Where the results go.
    pub(in crate::cli) outputs: &'a Outputs,
    /// Items that are worked on at once.
    pub(in crate::cli) parallel: usize,
    /// What stands behind a rate: `pages/s`, `x real time`.
    pub(in crate::cli) unit: &'a str,
    /// Whether what failed in an earlier run is tried again.
    pub(in crate::cli) retry_failed: bool,
    /// Whether earlier runs are forgotten.
    pub(in crate::cli) restart: bool,
}

/// What became of the items.
#[derive(Debug)]
pub(in crate::cli) struct Report<V> {
    /// In the order of the items; the reason where there is none.
    pub(in crate::cli) results: Vec<Result<V, String>>,
    journal: Journal<V>,
    ids: Vec<String>,
    before: usize,
    units: f64,
    elapsed: Duration,
    unit: String,
    keeps_journal: bool,
}

/// The work that goes on, for the bar's rate.
#[derive(Debug, Default)]
pub(in crate::cli) struct Meter {
    /// In thousandths.
    units: AtomicU64,
}

impl Meter {
    /// Adds to what is done: 1 for a page or an image, seconds of sound for a recording, at any time in the work.
    pub(in crate::cli) fn advance(&self, units: f64) {
        self.units
            .fetch_add((units * 1000.0) as u64, Ordering::Relaxed);
    }

    fn units(&self) -> f64 {
        self.units.load(Ordering::Relaxed) as f64 / 1000.0
    }
}

/// What the threads share.
struct Shared<V, F> {
    items: Vec<Item>,
    work: F,
    root: PathBuf,
    options: String,
    retry_failed: bool,
    next: AtomicUsize,
    stopped: AtomicBool,
    meter: Meter,
    hashes: Hashes,
    /// Held while files and journal change, so that a signal falls between two items.
    journal: Mutex<Option<Journal<V>>>,
}

/// What became of an item, and whether that was known before.
type Told<V> = (usize, Outcome<Result<V, String>>, bool);

/// Does what the journal lacks. Threads take the items in order; `work` runs on several of them, and says in a user's words
/// why an item cannot come. What it panics with is such a reason too.
///
/// `came` hears of each item, by its place, with all that came so far.
///
/// # Errors
/// When the journal or an output cannot be written, when `came` fails, or at the first signal: everything that is done is
/// kept.
pub(in crate::cli) fn run<V, F>(
    context: &Context,
    plan: &Plan<'_>,
    items: Vec<Item>,
    work: F,
    mut came: impl FnMut(usize, &[Option<Result<V, String>>]) -> Outcome,
) -> Outcome<Report<V>>
where
    V: Serialize + DeserializeOwned + Clone + Send + 'static,
    F: Fn(&Item, &Meter) -> Result<Product<V>, String> + Send + Sync + 'static,
{
    let journal = Journal::open(&plan.outputs.named, plan.command, plan.restart)?;
    let ids: Vec<String> = items.iter().map(|item| item.id.clone()).collect();
    let total = items.len();
    let shared = Arc::new(Shared {
        items,
        work,
        root: plan.outputs.root.clone(),
        options: plan.options.clone(),
        retry_failed: plan.retry_failed,
        next: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        meter: Meter::default(),
        hashes: Hashes::default(),
        journal: Mutex::new(Some(journal)),
    });
    let (sender, receiver) = mpsc::channel();
    for _ in 0..plan.parallel.clamp(1, total.max(1)) {
        let (shared, sender) = (Arc::clone(&shared), sender.clone());
        std::thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || shared.work_off(&sender))
            .map_err(|error| Failure::message(format!("cannot start a thread: {error}")))?;
    }
    drop(sender);
    let started = Instant::now();
    let mut collector = Collector {
        receiver,
        meter: &shared.meter,
        unit: plan.unit,
        started,
        results: (0..total).map(|_| None).collect(),
        before: 0,
    };
    let collected = collector.collect(context, &mut came);
    // Nobody writes any more once this is taken: the threads may end with the process.
    shared.stopped.store(true, Ordering::Relaxed);
    let journal = shared.journal().take();
    collected?;
    let Some(journal) = journal else {
        return Err(Failure::message("the job lost its journal"));
    };
    let missing = || Err("it did not come".to_owned());
    let results = collector.results.into_iter();
    Ok(Report {
        results: results
            .map(|result| result.unwrap_or_else(missing))
            .collect(),
        journal,
        ids,
        before: collector.before,
        units: shared.meter.units(),
        elapsed: started.elapsed(),
        unit: plan.unit.to_owned(),
        keeps_journal: !plan.outputs.is_file(),
    })
}

/// How often signals are looked for and the bar is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Takes results as they come.
struct Collector<'a, V> {
    receiver: mpsc::Receiver<Told<V>>,
    meter: &'a Meter,
    unit: &'a str,
    started: Instant,
    results: Vec<Option<Result<V, String>>>,
    /// Those that were known from before.
    before: usize,
}

impl<V> Collector<'_, V> {
    /// Shows a bar until all are there.
    fn collect(
        &mut self,
        context: &Context,
        came: &mut impl FnMut(usize, &[Option<Result<V, String>>]) -> Outcome,
    ) -> Outcome {
        let mut guard = context.signals.guard();
        let total = self.results.len();
        let bar = console::job_bar(total as u64);
        let mut count = 0;
        while count < total {
            if let Some(signal) = guard.heard() {
                bar.finish_and_clear();
                console::note(&format!(
                    "stopped with {count} of {total}: start it again to go on"
                ));
                return Err(Failure::Stopped(signal));
            }
            match self.receiver.recv_timeout(TICK) {
                Ok((index, outcome, known)) => {
                    if let Some(place) = self.results.get_mut(index) {
                        *place = Some(outcome?);
                    }
                    count += 1;
                    self.before += usize::from(known);
                    bar.inc(1);
                    came(index, &self.results)?;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Failure::message("the threads of the job broke off"));
                }
            }
            self.show(&bar, count - self.before, total - count);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn show(&self, bar: &ProgressBar, done: usize, left: usize) {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        let mut text = format!("{} {}", short(self.meter.units() / seconds), self.unit);
        if done > 0 {
            let time = Duration::from_secs_f64((seconds / done as f64 * left as f64).min(1e9));
            let _ = write!(text, ", {} left", span(time));
        }
        bar.set_message(text);
    }
}

/// A rate with as many digits as say something.
fn short(rate: f64) -> String {
    match rate {
        10.0.. => format!("{rate:.0}"),
        1.0.. => format!("{rate:.1}"),
        _ => format!("{rate:.2}"),
    }
}

impl<V, F> Shared<V, F>
where
    V: Serialize + DeserializeOwned + Clone,
    F: Fn(&Item, &Meter) -> Result<Product<V>, String>,
{
    fn work_off(&self, sender: &mpsc::Sender<Told<V>>) {
        while !self.stopped.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = self.items.get(index) else {
                return;
            };
            let told = match self.known(item) {
                Ok(Some(result)) => (index, Ok(result), true),
                Ok(None) => (index, self.complete(item), false),
                // A file that cannot be read has no content to be known by.
                Err(error) => (index, Ok(Err(format!("cannot be read: {error}"))), false),
            };
            let is_fatal = told.1.is_err();
            // The receiver goes away when the job is stopped.
            if sender.send(told).is_err() || is_fatal {
                return;
            }
        }
    }

    /// What an earlier run has made of the item.
    fn known(&self, item: &Item) -> io::Result<Option<Result<V, String>>> {
        let key = self.key(item)?;
        let journal = self.journal();
        Ok(
            match journal.as_ref().and_then(|journal| journal.state(&key)) {
                Some(State::Done { outputs, value })
                    if outputs.iter().all(|name| self.root.join(name).is_file()) =>
                {
                    Some(Ok(value.clone()))
                }
                Some(State::Failed { message }) if !self.retry_failed => Some(Err(message.clone())),
                _ => None,
            },
        )
    }

    /// Does the work and keeps what came of it.
    fn complete(&self, item: &Item) -> Outcome<Result<V, String>> {
        let product = catch_unwind(AssertUnwindSafe(|| (self.work)(item, &self.meter)))
            .unwrap_or_else(|_| Err("aha failed on it: please report this".to_owned()));
        let mut guard = self.journal();
        let Some(journal) = guard.as_mut() else {
            // The job is stopped: what came too late is done again.
            return Ok(Err("stopped".to_owned()));
        };
        let (state, result) = match product {
            Ok(Product { value, files }) => {
                let mut outputs = Vec::with_capacity(files.len());
                for (name, bytes) in files {
                    let path = self.root.join(&name);
                    write_atomically(&path, &bytes)
                        .map_err(|error| Failure::output(&path.display().to_string(), &error))?;
                    outputs.push(name);
                }
                let kept = State::Done {
                    outputs,
                    value: value.clone(),
                };
                (kept, Ok(value))
            }
            Err(message) => {
                let kept = State::Failed {
                    message: message.clone(),
                };
                (kept, Err(message))
            }
        };
        let key = self
            .key(item)
            .map_err(|error| Failure::message(format!("cannot read {}: {error}", item.id)))?;
        journal.append(key, &item.id, state)?;
        Ok(result)
    }

    /// What the item is known by: its content and everything that its result depends on.
    fn key(&self, item: &Item) -> io::Result<String> {
        let mut hash = Sha256::new();
        for part in [
            self.hashes.of(&item.path)?.as_slice(),
            item.part.as_bytes(),
            self.options.as_bytes(),
            // The same content under two names makes two files.
            item.id.as_bytes(),
        ] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(hash
            .finalize()
            .iter()
            .fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            }))
    }
}

impl<V, F> Shared<V, F> {
    fn journal(&self) -> MutexGuard<'_, Option<Journal<V>>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SHA-256 of files, each read once: the pages of a document are one file.
#[derive(Default)]
struct Hashes(Mutex<HashMap<PathBuf, Arc<OnceLock<[u8; 32]>>>>);

impl Hashes {
    fn of(&self, path: &Path) -> io::Result<[u8; 32]> {
        let place = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(places.entry(path.to_owned()).or_default())
        };
        if let Some(hash) = place.get() {
            return Ok(*hash);
        }
        let (mut hash, mut file, mut block) = (Sha256::new(), File::open(path)?, vec![0; 1 << 20]);
        loop {
            match file.read(&mut block)? {
                0 => break,
                length => hash.update(&block[..length]),
            }
        }
        let hash = hash.finalize().into();
        Ok(*place.get_or_init(|| hash))
    }
}

impl<V: Serialize + DeserializeOwned + Clone> Report<V> {
    /// Tells what came and what did not; the error is that of the exit code. The journal of an output that is one complete
    /// file is deleted; that of a folder stays, so that another run finds what is new.
    pub(in crate::cli) fn finish(self) -> Outcome {
        let failed: Vec<(&String, &String)> = self
            .ids
            .iter()
            .zip(&self.results)
            .filter_map(|(id, result)| result.as_ref().err().map(|message| (id, message)))
            .collect();
        for (id, message) in failed.iter().take(LISTED) {
            console::error(&format!("{id}: {message}"));
        }
        if failed.len() > LISTED {
            console::note(&format!("and {} more that failed", failed.len() - LISTED));
        }
        let done = self.results.len() - failed.len();
        let mut text = format!("{done} of {} done", self.results.len());
        if self.before > 0 {
            let _ = write!(text, " ({} known from before)", self.before);
        }
        if self.units > 0.0 {
            let rate = self.units / self.elapsed.as_secs_f64().max(1e-3);
            let _ = write!(text, ", {} {}", short(rate), self.unit);
        }
        if !failed.is_empty() {
            let _ = write!(
                text,
                ", {} failed: try them again with --retry-failed",
                failed.len()
            );
        }
        console::note(&text);
        if !failed.is_empty() {
            return Err(Failure::Told);
        }
        if self.keeps_journal {
            return Ok(());
        }
        self.journal.remove()
    }
}
