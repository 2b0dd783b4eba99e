//! `aha list`: the models that are known by name, and those on this disk.

use super::console;
use super::failure::Outcome;
use super::markdown::columns;
use super::units::bytes;
use aha::hub::{HubConfig, LocalModel, ModelId, Store};
use aha::releases::{RELEASES, Release};
use aha::{FAMILIES, Family};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Other checkpoints of a listed family load as well, whatever their size: give their path or hub id.

Examples:
  aha list
  aha list --local
  aha list --json | jq -r '.[] | select(.task == \"chat\") | .id'";

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
    license: &'static str,
    huggingface: &'static str,
    modelscope: &'static str,
    on_disk: bool,
    path: Option<PathBuf>,
}

impl Known {
    fn new(release: &'static Release, store: &Store) -> Self {
        let family = FAMILIES.iter().find(|family| family.slug == release.family);
        let path = [release.id, release.modelscope]
            .iter()
            .filter_map(|id| id.parse::<ModelId>().ok())
            .find_map(|id| store.locate(&id));
        Self {
            id: release.id,
            alias: release.alias,
            task: family.map_or("", |family| family.task.name()),
            family: release.family,
            license: release.license,
            huggingface: release.id,
            modelscope: release.modelscope,
            on_disk: path.is_some(),
            path,
        }
    }

    fn row(&self) -> Vec<String> {
        let on_disk = if self.on_disk { "yes" } else { "" };
        [
            self.id,
            self.alias,
            self.task,
            self.family,
            self.license,
            on_disk,
        ]
        .map(String::from)
        .into()
    }
}

impl List {
    pub(crate) fn execute(self) -> Outcome {
        let store = Store::open(None, &HubConfig::from_env()?)?;
        if self.local {
            return self.print_local(&store.local_models()?);
        }
        let known: Vec<Known> = RELEASES
            .iter()
            .map(|release| Known::new(release, &store))
            .collect();
        if self.json {
            return console::print_json(&known);
        }
        let rows: Vec<_> = known.iter().map(Known::row).collect();
        let headings = ["MODEL", "ALIAS", "TASK", "FAMILY", "LICENCE", "ON DISK"];
        let families: Vec<String> = FAMILIES.iter().map(describe).collect();
        console::print(&format!(
            "{}\nAny checkpoint of these families loads, by path or hub id:\n{}",
            columns(&headings, &rows),
            families.concat()
        ))
    }

    fn print_local(&self, models: &[LocalModel]) -> Outcome {
        if self.json {
            return console::print_json(&models);
        }
        let row = |model: &LocalModel| {
            let state = if model.complete {
                ""
            } else {
                "unfinished download"
            };
            let path = model.dir.display().to_string();
            vec![
                model.id.to_string(),
                bytes(model.size),
                path,
                state.to_owned(),
            ]
        };
        let rows: Vec<_> = models.iter().map(row).collect();
        console::print(&columns(&["MODEL", "SIZE", "PATH", ""], &rows))
    }
}

fn describe(family: &Family) -> String {
    let gguf = family.gguf_architectures.join(", ");
    format!(
        "  {}: {}; GGUF {gguf}\n",
        family.slug,
        family.architectures.join(", ")
    )
}
