//! `aha delete`: removes a model from the store.

use super::Context;
use super::args::NamedModel;
use super::console;
use super::failure::{Failure, Outcome};
use super::units::bytes;
use aha::hub::{ModelId, Store};
use clap::Args;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Only aha's own store is touched, never the caches of other tools.

Examples:
  aha delete Qwen/Qwen3-0.6B
  aha delete qwen3-4b --yes";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Delete {
    #[command(flatten)]
    model: NamedModel,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Folder that models are kept in [default: AHA_HOME, else ~/.aha]
    #[arg(long, value_name = "DIR")]
    save_dir: Option<PathBuf>,
}

impl Delete {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let store = Store::open(self.save_dir.as_deref(), &context.global.hub_config()?)?;
        let name = self.model.name();
        let release = aha::releases::find(name);
        let id: ModelId = release.map_or(name, |release| release.id).parse()?;
        if !self.yes && !agreed(&store, &id)? {
            console::note("nothing was deleted");
            return Err(Failure::Told);
        }
        let freed = store.delete(&id)?;
        console::print(&format!("deleted {id}, {} freed\n", bytes(freed)))
    }
}

fn agreed(store: &Store, id: &ModelId) -> Outcome<bool> {
    let size = store.size_on_disk(id)?;
    if size == 0 {
        // The deletion itself says best what is wrong.
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is nobody to ask: confirm with --yes"));
    }
    let place = store.model_dir(id).display().to_string();
    console::print(&format!("delete {id} ({}, {place})? [y/N] ", bytes(size)))?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::message(format!("cannot read standard input: {error}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
