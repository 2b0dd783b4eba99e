//! `aha download`: from a hub to this disk.

use super::Context;
use super::args::{ModelArgs, NamedModel};
use super::console::{self, note, stderr_is_terminal};
use super::failure::{Failure, Outcome};
use super::progress::{Bars, JsonLines, Lines};
use aha::Checkpoint;
use aha::hub::{CancelToken, Downloaded, Manifest, Progress, Revision, Secret, Source, Store};
use aha::releases::{self, Release};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const AFTER_HELP: &str = "\
An interrupted download goes on where it stopped. Tokens come from HF_TOKEN and
MODELSCOPE_API_TOKEN, or --token; HF_ENDPOINT and MODELSCOPE_ENDPOINT name mirrors.

Examples:
  aha download Qwen/Qwen3-0.6B
  aha download qwen3-4b --source huggingface --revision main
  aha download owner/name-GGUF --include '*Q8_0.gguf'";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Download {
    #[command(flatten)]
    model: NamedModel,
    #[command(flatten)]
    args: DownloadArgs,
    /// Print one JSON object for each step instead of a bar
    #[arg(long)]
    json: bool,
}

/// Where from and what.
#[derive(Debug, Clone, Default, Args)]
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
    /// Token of the hub, which others on this machine can see: better use the variables
    #[arg(long, value_name = "TOKEN", value_parser = token)]
    token: Option<Secret>,
}

fn token(text: &str) -> Result<Secret, String> {
    Secret::new("--token", text).map_err(|error| error.to_string())
}

impl Download {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let name = self.model.name();
        if let Some(release) = releases::find(name)
            && !release.is_supported()
        {
            note(&format!(
                "{}: this build cannot run it, for it lacks the family {}",
                release.id, release.family
            ));
        }
        if self.json {
            let lines = Arc::new(JsonLines);
            return download(name, &self.args, lines.clone(), context)
                .inspect_err(|failure| lines.failed(failure))
                .map(drop);
        }
        let done = download(name, &self.args, for_people(), context)?;
        console::print(&format!("{}\n", done.dir.display()))
    }
}

/// Bars where somebody sees them, lines elsewhere.
fn for_people() -> Arc<dyn Progress> {
    if stderr_is_terminal() {
        Arc::new(Bars::default())
    } else {
        Arc::new(Lines::default())
    }
}

/// Makes sure that the model is on this disk: what is missing is downloaded. Then `model` names
/// the place.
pub(crate) fn provide(model: &mut ModelArgs, args: &DownloadArgs, context: &Context) -> Outcome {
    let (None, Some(name)) = (model.path(), &model.place.model) else {
        return Ok(());
    };
    let found = match find(name, args.save_dir.as_deref(), context)? {
        Some(found) if is_revision(&found, name, args.revision.as_ref())? => found,
        _ => {
            let release = releases::find(name);
            refuse_lacking(release)?;
            let path = download(name, args, for_people(), context)?.dir;
            let name = release
                .map_or(name.as_str(), |release| release.id)
                .to_owned();
            Checkpoint {
                name,
                path,
                release,
            }
        }
    };
    model.place.model = Some(found.name);
    model.place.weight_path = Some(found.path);
    Ok(())
}

/// The model where it is on this disk; `None` where a download may bring it.
fn find(name: &str, save_dir: Option<&Path>, context: &Context) -> Outcome<Option<Checkpoint>> {
    let found = match save_dir {
        Some(folder) => Store::open(Some(folder), &context.global.hub_config()?)
            .map_err(aha::Error::from)
            .and_then(|store| aha::resolve_in(&store, name)),
        None => aha::resolve(name),
    };
    match found {
        Ok(found) => Ok(Some(found)),
        Err(aha::Error::NotOnDisk { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether what was found is of the revision that is asked for. A path is what it is.
fn is_revision(found: &Checkpoint, name: &str, revision: Option<&Revision>) -> Outcome<bool> {
    let Some(revision) = revision.filter(|_| !Path::new(name).exists()) else {
        return Ok(true);
    };
    let manifest = Manifest::load(&found.path)?;
    Ok(manifest.is_some_and(|manifest| manifest.is_of(revision)))
}

/// Gigabytes are not worth a wait for an error at their end.
fn refuse_lacking(release: Option<&Release>) -> Outcome {
    match release {
        Some(release) if !release.is_supported() => Err(Failure::message(format!(
            "cannot run the model: {}: this build lacks its family {}; `aha list` tells which \
             models it runs",
            release.id, release.family
        ))),
        _ => Ok(()),
    }
}

fn download(
    name: &str,
    args: &DownloadArgs,
    progress: Arc<dyn Progress>,
    context: &Context,
) -> Outcome<Downloaded> {
    let config = context.global.hub_config()?;
    let store = Store::open(args.save_dir.as_deref(), &config)?;
    let (downloader, id) = aha::downloader(name, &store, &config)?;
    let cancel = CancelToken::default();
    let mut downloader = downloader
        .source(args.source)
        .include(&args.include)
        .exclude(&args.exclude)
        .progress(progress)
        .cancel(cancel.clone());
    if let Some(revision) = &args.revision {
        downloader = downloader.revision(revision.clone());
    }
    if let Some(token) = &args.token {
        downloader = downloader.token(token.clone());
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
