//! `aha show`: what a checkpoint holds, without loading it.

use super::args::ModelArgs;
use super::console;
use super::failure::Outcome;
use super::units::bytes;
use super::weights::WeightsSummary;
use aha_models::Checkpoint;
use aha_models::checkpoint::{Architecture, Format};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Examples:
  aha show -m Qwen/Qwen3-0.6B
  aha show --gguf-path model.gguf --json";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Show {
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Description {
    name: String,
    path: PathBuf,
    format: &'static str,
    architecture: String,
    family: &'static str,
    task: &'static str,
    license: Option<&'static str>,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    bytes_by_type: BTreeMap<&'static str, u64>,
}

impl Show {
    pub(crate) fn execute(self) -> Outcome {
        let loader = self.model.loader();
        let found = loader.locate()?;
        let checkpoint = Checkpoint::open(&found.path)?;
        let family = loader.family()?;
        let weights = WeightsSummary::of(&found.path)?;
        let description = Description {
            name: found.name,
            path: found.path,
            format: match checkpoint.format() {
                Format::Folder { .. } => "safetensors",
                Format::Gguf(_) => "gguf",
            },
            architecture: match checkpoint.architecture()? {
                Architecture::Gguf(name) => name,
                Architecture::Config {
                    architectures,
                    model_type,
                } if architectures.is_empty() => model_type,
                Architecture::Config { architectures, .. } => architectures.join(", "),
            },
            family: family.slug,
            task: family.task.name(),
            license: found.release.map(|release| release.license),
            tensors: weights.tensors,
            parameters: weights.parameters,
            bytes: weights.bytes,
            bytes_by_type: weights
                .types
                .iter()
                .map(|(kind, size)| (kind.name(), *size))
                .collect(),
        };
        if self.json {
            console::print_json(&description)
        } else {
            description.print()
        }
    }
}

impl Description {
    fn print(&self) -> Outcome {
        let types: Vec<String> = self
            .bytes_by_type
            .iter()
            .map(|(kind, size)| format!("{kind} {}", bytes(*size)))
            .collect();
        let lines = [
            ("name", self.name.clone()),
            ("path", self.path.display().to_string()),
            ("format", self.format.to_owned()),
            ("architecture", self.architecture.clone()),
            ("family", self.family.to_owned()),
            ("task", self.task.to_owned()),
            (
                "licence",
                self.license
                    .unwrap_or("unknown: see the model's page")
                    .to_owned(),
            ),
            ("tensors", self.tensors.to_string()),
            ("parameters", count(self.parameters)),
            (
                "size",
                format!("{} ({})", bytes(self.bytes), types.join(", ")),
            ),
        ];
        let text: String = lines
            .iter()
            .map(|(name, value)| format!("{name:<14}{value}\n"))
            .collect();
        console::print(&text)
    }
}

/// A number of parameters as model names write it.
pub(crate) fn count(parameters: u64) -> String {
    match parameters {
        0..1_000 => parameters.to_string(),
        1_000..1_000_000 => format!("{:.1} K", parameters as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", parameters as f64 / 1e6),
        _ => format!("{:.2} B", parameters as f64 / 1e9),
    }
}
