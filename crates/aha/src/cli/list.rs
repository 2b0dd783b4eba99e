//! `aha list`: the models that are known by name, and those on this disk.

use super::Context;
use super::console;
use super::failure::Outcome;
use super::markdown::columns;
use super::units::bytes;
use aha::hub::{LocalModel, ModelId, Origin, Source, Store};
use aha::releases::{self, RELEASES, Release};
use aha::{FAMILIES, Family};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Other checkpoints of a listed family load as well, whatever their size: give their path or hub id.

Examples:
  aha list
  aha list --local
  aha list --json | jq -r '.[] | select(.task == \"chat\" and .supported) | .id'";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List what is on this disk: aha's own models and those in the hubs' caches
    #[arg(long)]
    local: bool,
}

/// A known release, with what this disk has of it.
#[derive(Debug, Serialize)]
struct Known {
    id: &'static str,
    alias: &'static str,
    task: &'static str,
    family: &'static str,
    supported: bool,
    parameters: u64,
    license: &'static str,
    huggingface: &'static str,
    modelscope: &'static str,
    on_disk: bool,
    path: Option<PathBuf>,
    size_bytes: Option<u64>,
}

impl Known {
    fn new(release: &'static Release, store: &Store, sizes: &BTreeMap<PathBuf, u64>) -> Self {
        let path = [release.id, release.modelscope]
            .iter()
            .filter_map(|id| id.parse::<ModelId>().ok())
            .find_map(|id| store.locate(&id));
        Self {
            id: release.id,
            alias: release.alias,
            task: release.task,
            family: release.family,
            supported: release.is_supported(),
            parameters: release.parameters,
            license: release.license,
            huggingface: release.id,
            modelscope: release.modelscope,
            on_disk: path.is_some(),
            size_bytes: path.as_ref().and_then(|path| sizes.get(path)).copied(),
            path,
        }
    }

    fn row(&self) -> Vec<String> {
        let on_disk = match self.size_bytes {
            Some(size) => bytes(size),
            None if self.on_disk => "yes".to_owned(),
            None => String::new(),
        };
        vec![
            self.id.to_owned(),
            self.alias.to_owned(),
            self.task.to_owned(),
            parameters(self.parameters),
            self.license.to_owned(),
            on_disk,
        ]
    }
}

/// A model on this disk, with what the table knows of it.
#[derive(Debug, Serialize)]
struct Local<'a> {
    id: &'a ModelId,
    path: &'a Path,
    size_bytes: u64,
    origin: Origin,
    complete: bool,
    source: Option<Source>,
    revision: Option<&'a str>,
    task: Option<&'static str>,
    license: Option<&'static str>,
}

impl List {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let store = Store::open(None, &context.global.hub_config()?)?;
        if self.local {
            return self.print_local(&store.local_models()?);
        }
        // A folder that cannot be read is no reason to hide the table.
        let models = store.local_models().unwrap_or_else(|error| {
            tracing::warn!(%error, "sizes on this disk are left out");
            Vec::new()
        });
        let sizes = models
            .into_iter()
            .map(|model| (model.dir, model.size))
            .collect();
        let known: Vec<Known> = RELEASES
            .iter()
            .map(|release| Known::new(release, &store, &sizes))
            .collect();
        if self.json {
            return console::print_json(&known);
        }
        let headings = ["MODEL", "ALIAS", "TASK", "SIZE", "LICENCE", "ON DISK"];
        let rows = |supported: bool| -> Vec<_> {
            let known = known.iter().filter(|known| known.supported == supported);
            known.map(Known::row).collect()
        };
        let mut text = columns(&headings, &rows(true));
        let lacking = rows(false);
        if !lacking.is_empty() {
            text += "\nKnown, but this build lacks their families and cannot run them:\n";
            text += &columns(&headings, &lacking);
        }
        let families: Vec<String> = FAMILIES.iter().map(describe).collect();
        console::print(&format!(
            "{text}\nAny checkpoint of these families loads, by path or hub id:\n{}",
            families.concat()
        ))
    }

    fn print_local(&self, models: &[LocalModel]) -> Outcome {
        if self.json {
            let local: Vec<_> = models.iter().map(describe_local).collect();
            return console::print_json(&local);
        }
        let row = |model: &LocalModel| {
            let state = match (model.complete, model.origin) {
                (false, _) => "unfinished download",
                (true, Origin::Store) => "",
                (true, Origin::HuggingFaceCache) => "Hugging Face's cache",
                (true, Origin::ModelScopeCache) => "ModelScope's cache",
            };
            vec![
                model.id.to_string(),
                describe_local(model).task.unwrap_or("").to_owned(),
                bytes(model.size),
                model.dir.display().to_string(),
                state.to_owned(),
            ]
        };
        let rows: Vec<_> = models.iter().map(row).collect();
        console::print(&columns(&["MODEL", "TASK", "SIZE", "PATH", ""], &rows))
    }
}

fn describe_local(model: &LocalModel) -> Local<'_> {
    let release = releases::find(&model.id.to_string());
    Local {
        id: &model.id,
        path: &model.dir,
        size_bytes: model.size,
        origin: model.origin,
        complete: model.complete,
        source: model.source,
        revision: model.revision.as_deref(),
        task: release.map(|release| release.task),
        license: release.map(|release| release.license),
    }
}

/// A published number of parameters, as names of models write it.
fn parameters(count: u64) -> String {
    match count {
        0..1_000_000_000 => format!("{}M", count / 1_000_000),
        _ if count.is_multiple_of(1_000_000_000) => format!("{}B", count / 1_000_000_000),
        _ => format!("{:.1}B", count as f64 / 1e9),
    }
}

fn describe(family: &Family) -> String {
    let gguf = match family.gguf_architectures {
        [] => String::new(),
        names => format!("; GGUF {}", names.join(", ")),
    };
    let architectures = family.architectures.join(", ");
    format!("  {}: {architectures}{gguf}\n", family.slug)
}
