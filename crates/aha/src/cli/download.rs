//! `aha download`: from a hub to this disk.

use super::Context;
use super::console::{self, byte_bar, note};
use super::failure::{Failure, Outcome};
use super::units::bytes;
use aha::hub::{
    CancelToken, Downloaded, Downloader, Event, HubConfig, ModelId, Progress, Revision, Source,
    Store,
};
use clap::Args;
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const AFTER_HELP: &str = "\
An interrupted download goes on where it stopped. Tokens come from HF_TOKEN and
MODELSCOPE_API_TOKEN; HF_ENDPOINT and MODELSCOPE_ENDPOINT name mirrors.

Examples:
  aha download -m Qwen/Qwen3-0.6B
  aha download -m qwen3-4b --source huggingface --revision main
  aha download -m owner/name-GGUF --include '*Q8_0.gguf'";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Download {
    /// Hub id (Qwen/Qwen3-0.6B) or alias (qwen3-0.6b)
    #[arg(short, long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    args: DownloadArgs,
    /// Print one JSON object for each step instead of a bar
    #[arg(long)]
    json: bool,
}

/// Where from and what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Download")]
pub(crate) struct DownloadArgs {
    /// Hub: auto (the faster one), modelscope or huggingface
    #[arg(long, value_name = "HUB", default_value_t)]
    source: Source,
    /// Branch, tag or commit [default: the hub's main branch]
    #[arg(long, value_name = "NAME")]
    revision: Option<Revision>,
    /// Only files that match this pattern; may be repeated [default: what the model needs]
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No files that match this pattern; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Folder to keep models in [default: AHA_HOME, else ~/.aha]
    #[arg(long, value_name = "DIR")]
    save_dir: Option<PathBuf>,
}

impl DownloadArgs {
    /// Where models are kept, if not in the usual place.
    pub(crate) fn save_dir(&self) -> Option<&Path> {
        self.save_dir.as_deref()
    }
}

impl Download {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let progress: Arc<dyn Progress> = if self.json {
            Arc::new(JsonLines)
        } else {
            Arc::new(Bars::default())
        };
        let done = run(&self.model, &self.args, progress, context)?;
        if self.json {
            Ok(())
        } else {
            console::print(&format!("{}\n", done.dir.display()))
        }
    }
}

/// Downloads `name` with bars on the terminal.
pub(crate) fn download(name: &str, args: &DownloadArgs, context: &Context) -> Outcome<Downloaded> {
    run(name, args, Arc::new(Bars::default()), context)
}

fn run(
    name: &str,
    args: &DownloadArgs,
    progress: Arc<dyn Progress>,
    context: &Context,
) -> Outcome<Downloaded> {
    let config = HubConfig::from_env()?;
    let store = Store::open(args.save_dir.as_deref(), &config)?;
    let release = aha::releases::find(name);
    let id: ModelId = release.map_or(name, |release| release.id).parse()?;
    let cancel = CancelToken::default();
    let mut downloader = Downloader::new(&store, &config)
        .source(args.source)
        .include(&args.include)
        .exclude(&args.exclude)
        .progress(progress)
        .cancel(cancel.clone());
    if let Some(revision) = &args.revision {
        downloader = downloader.revision(revision.clone());
    }
    if let Some(release) = release {
        downloader = downloader.hub_id(Source::ModelScope, release.modelscope.parse()?);
    }
    context.runtime.block_on(async {
        let mut guard = context.signals.guard();
        let mut download = tokio::task::spawn_blocking(move || downloader.download(&id));
        let (ended, stopped) = tokio::select! {
            ended = &mut download => (ended, None),
            signal = guard.signalled() => {
                cancel.cancel();
                (download.await, Some(signal))
            }
        };
        let ended = ended.map_err(|error| Failure::message(format!("cannot download: {error}")))?;
        match (ended, stopped) {
            (Ok(done), _) => Ok(done),
            (Err(error), Some(signal)) => {
                note(&error.to_string());
                Err(Failure::Stopped(signal))
            }
            (Err(error), None) => Err(error.into()),
        }
    })
}

/// One JSON object a line on standard output.
struct JsonLines;

impl Progress for JsonLines {
    fn event(&self, event: &Event) {
        if let Ok(line) = serde_json::to_string(event) {
            // The download goes on when nobody listens any more.
            let _ = console::print(&format!("{line}\n"));
        }
    }
}

/// One bar a file, and notes for what went wrong on the way.
#[derive(Default)]
struct Bars {
    files: Mutex<HashMap<String, ProgressBar>>,
    /// Why hubs could not be used: told when another one takes over. Where none does, the
    /// command's own error tells of them all.
    failures: Mutex<Vec<String>>,
}

impl Bars {
    fn remove(&self, path: &str) {
        if let Some(bar) = self
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(path)
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: &Event) {
        let bars = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = || self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Waiting { model, pid } => {
                let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                note(&format!(
                    "another process{pid} downloads {model}; waiting for it"
                ));
            }
            Event::SourceFailed { reason, .. } => failures().push(reason.clone()),
            Event::Started {
                model,
                source,
                files,
                total_bytes,
                present_bytes,
                ..
            } => {
                failures().drain(..).for_each(|reason| note(&reason));
                let missing = bytes(total_bytes.saturating_sub(*present_bytes));
                note(&format!(
                    "{model} from {source}: {files} files, {missing} to download"
                ));
            }
            Event::FileStarted {
                path,
                size,
                resumed_from,
            } => {
                let bar = byte_bar(size.unwrap_or(0), true);
                bar.set_message(path.clone());
                bar.set_position(*resumed_from);
                bar.reset_eta();
                bars().insert(path.clone(), bar);
            }
            Event::FileProgress { path, received, .. } => {
                if let Some(bar) = bars().get(path) {
                    bar.set_position(*received);
                }
            }
            Event::FileRestarted { path, reason } => {
                note(&format!("{path} begins again: {reason}"));
            }
            Event::FileRetry {
                path,
                attempt,
                reason,
                ..
            } => {
                note(&format!("{path}, attempt {attempt}: {reason}"));
            }
            Event::FileFinished { path, .. } => self.remove(path),
            Event::Finished {
                downloaded_bytes, ..
            } => {
                note(&format!("done, {} downloaded", bytes(*downloaded_bytes)));
            }
            _ => {}
        }
    }
}
