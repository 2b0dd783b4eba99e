//! `aha show`: what a checkpoint holds and needs, without loading it.

use super::args::NamedModelArgs;
use super::console;
use super::failure::{Failure, Outcome};
use super::markdown::columns;
use super::memory::{Need, Shape};
use super::units::bytes;
use super::weights::WeightsSummary;
use aha::Family;
use aha::hub::{Manifest, Source};
use aha_engine::template::ChatTemplate;
use aha_models::Checkpoint;
use aha_models::checkpoint::{Architecture, Format};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Examples:
  aha show Qwen/Qwen3-0.6B
  aha show ./checkpoint
  aha show --gguf-path model.gguf --json";

const TORCH: [&str; 3] = [".bin", ".pt", ".pth"];
/// Folders of a checkpoint lie in one another no deeper.
const DEEPEST: usize = 4;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Show {
    #[command(flatten)]
    model: NamedModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Description {
    name: String,
    path: PathBuf,
    format: &'static str,
    architecture: Option<String>,
    family: Option<&'static str>,
    /// Whether this build can run it.
    supported: bool,
    task: Option<&'static str>,
    license: Option<String>,
    source: Option<Source>,
    revision: Option<String>,
    context_length: Option<u64>,
    chat_template: bool,
    dtype: Option<String>,
    tensors: Option<usize>,
    parameters: Option<u64>,
    bytes: u64,
    bytes_by_type: BTreeMap<&'static str, u64>,
    memory: Vec<Need>,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    bytes: u64,
}

impl Show {
    pub(crate) fn execute(self) -> Outcome {
        let loader = self.model.into_model().loader();
        let found = loader.locate()?;
        let description = Description::of(found, loader.family().ok())?;
        if self.json {
            console::print_json(&description)
        } else {
            description.print()
        }
    }
}

impl Description {
    fn of(found: aha::Checkpoint, family: Option<&'static Family>) -> Outcome<Self> {
        // Of a release that this build cannot run, what can be told is told.
        let lacking = found.release.is_some_and(|release| !release.is_supported());
        let checkpoint = match Checkpoint::open(&found.path) {
            Ok(checkpoint) => Some(checkpoint),
            Err(_) if lacking => None,
            Err(error) => return Err(error.into()),
        };
        // Torch files hold a part of the weights that is not looked into.
        let torch = found.release.is_some_and(|release| {
            let patterns = release.files.iter();
            patterns
                .into_iter()
                .any(|file| TORCH.iter().any(|ending| file.ends_with(ending)))
        });
        let weights = match WeightsSummary::of(&found.path) {
            Ok(weights) => Some(weights).filter(|_| !torch),
            Err(_) if lacking || torch => None,
            Err(error) => return Err(error),
        };
        let family = family.filter(|_| !lacking);
        let gguf = checkpoint
            .as_ref()
            .and_then(|opened| match opened.format() {
                Format::Gguf(file) => Some(file),
                Format::Folder { .. } => None,
            });
        let chat_template = match gguf {
            Some(file) => ChatTemplate::from_gguf(&file.metadata),
            None => ChatTemplate::from_folder(&found.path),
        };
        let chat_template = chat_template
            .map_err(|error| Failure::message(format!("cannot read the chat template: {error}")))?
            .is_some();
        let shape = checkpoint.as_ref().map(Shape::of).unwrap_or_default();
        let files = files(&found.path)?;
        let bytes = files.iter().map(|file| file.bytes).sum();
        let weight_bytes = weights.as_ref().map_or(bytes, |weights| weights.bytes);
        let manifest = match found.path.is_dir() {
            true => Manifest::load(&found.path)?,
            false => None,
        };
        let task = found.release.map(|release| release.task);
        let task = task.or(family.map(|family| family.task.name()));
        let shape = match task {
            Some("embed" | "rerank") => shape.without_cache(),
            _ => shape,
        };
        let release_license = found.release.map(|release| release.license);
        let license_of_gguf =
            || gguf.and_then(|file| file.metadata.text("general.license").ok().flatten());
        Ok(Self {
            format: match (gguf, &weights) {
                (Some(_), _) => "gguf",
                (None, Some(_)) => "safetensors",
                (None, None) if torch => "torch",
                (None, None) => "unknown",
            },
            architecture: checkpoint
                .as_ref()
                .map(architecture)
                .transpose()?
                .filter(|name| !name.is_empty()),
            family: family
                .map(|family| family.slug)
                .or(found.release.map(|release| release.family)),
            supported: family.is_some(),
            task,
            license: release_license
                .or_else(license_of_gguf)
                .filter(|license| *license != "unknown")
                .map(str::to_owned),
            source: manifest.as_ref().map(|manifest| manifest.source),
            revision: manifest.map(|manifest| manifest.commit.unwrap_or(manifest.revision)),
            context_length: shape.context_length,
            chat_template,
            dtype: dtype(checkpoint.as_ref(), weights.as_ref()),
            tensors: weights.as_ref().map(|weights| weights.tensors),
            parameters: weights.as_ref().map(|weights| weights.parameters),
            bytes: weight_bytes,
            bytes_by_type: weights
                .iter()
                .flat_map(|weights| &weights.types)
                .map(|(kind, size)| (kind.name(), *size))
                .collect(),
            memory: weights.as_ref().map_or_else(Vec::new, |weights| {
                let size = if weights.main_type() == "F32" { 4 } else { 2 };
                shape.needs(weights.parameters, weights.bytes, size)
            }),
            files,
            name: found.name,
            path: found.path,
        })
    }

    /// Where to read about a licence that nothing names.
    fn license_file(&self) -> String {
        let is_license = |file: &&File| file.path.to_uppercase().starts_with("LICENSE");
        match self.files.iter().find(is_license) {
            Some(file) => format!("unknown: see {}", file.path),
            None => "unknown: see the model's page".to_owned(),
        }
    }

    fn print(&self) -> Outcome {
        let types: Vec<String> = self
            .bytes_by_type
            .iter()
            .map(|(kind, size)| format!("{kind} {}", bytes(*size)))
            .collect();
        let unknown = || "unknown".to_owned();
        let mut lines = vec![
            ("name", self.name.clone()),
            ("path", self.path.display().to_string()),
            ("format", self.format.to_owned()),
        ];
        let family = self.family.unwrap_or("none of this build").to_owned();
        let family = match (self.supported, self.family) {
            (false, Some(_)) => format!("{family} (this build lacks it)"),
            _ => family,
        };
        lines.extend([
            (
                "architecture",
                self.architecture.clone().unwrap_or_else(unknown),
            ),
            ("family", family),
            ("task", self.task.map_or_else(unknown, str::to_owned)),
            (
                "licence",
                self.license.clone().unwrap_or_else(|| self.license_file()),
            ),
        ]);
        if let (Some(source), Some(revision)) = (&self.source, &self.revision) {
            lines.push(("from", format!("{source}, {revision}")));
        }
        let yes_or_no = |is: bool| if is { "yes" } else { "no" };
        lines.extend([
            (
                "context",
                self.context_length
                    .map_or_else(unknown, |tokens| format!("{tokens} tokens")),
            ),
            ("template", yes_or_no(self.chat_template).to_owned()),
            ("dtype", self.dtype.clone().unwrap_or_else(unknown)),
        ]);
        if let (Some(tensors), Some(parameters)) = (self.tensors, self.parameters) {
            lines.push(("tensors", tensors.to_string()));
            lines.push(("parameters", count(parameters)));
        }
        let types = match types.as_slice() {
            [] => String::new(),
            types => format!(" ({})", types.join(", ")),
        };
        lines.push(("size", bytes(self.bytes) + &types));
        let mut text: String = lines
            .iter()
            .map(|(name, value)| format!("{name:<14}{value}\n"))
            .collect();
        if !self.memory.is_empty() {
            text += "\n";
            text += &memory(&self.memory);
        }
        let rows: Vec<Vec<String>> = self
            .files
            .iter()
            .map(|file| vec![file.path.clone(), bytes(file.bytes)])
            .collect();
        text += "\n";
        text += &columns(&["FILE", "SIZE"], &rows);
        console::print(&text)
    }
}

fn memory(needs: &[Need]) -> String {
    let size = |size: Option<u64>| size.map_or_else(|| "-".to_owned(), bytes);
    let row = |need: &Need| {
        vec![
            need.dtype.to_owned(),
            bytes(need.weight_bytes),
            size(need.cache_bytes),
        ]
    };
    let rows: Vec<_> = needs.iter().map(row).collect();
    let headings = ["MEMORY AT --dtype", "WEIGHTS", "1000 TOKENS"];
    columns(&headings, &rows)
}

fn architecture(checkpoint: &Checkpoint) -> Outcome<String> {
    Ok(match checkpoint.architecture()? {
        Architecture::Gguf(name) => name,
        Architecture::Config {
            architectures,
            model_type,
        } if architectures.is_empty() => model_type,
        Architecture::Config { architectures, .. } => architectures.join(", "),
    })
}

/// What the configuration says, else the type of most bytes.
fn dtype(checkpoint: Option<&Checkpoint>, weights: Option<&WeightsSummary>) -> Option<String> {
    let said = checkpoint.and_then(|opened| match opened.format() {
        Format::Folder { config } => ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| Some(config.get(key)?.as_str()?.to_owned())),
        Format::Gguf(_) => None,
    });
    let stored = || {
        weights.map(|weights| match weights.main_type() {
            "F32" => "float32".to_owned(),
            "F16" => "float16".to_owned(),
            "BF16" => "bfloat16".to_owned(),
            other => other.to_owned(),
        })
    };
    said.or_else(stored)
}

/// Every file below `path`, without the records of the store.
fn files(path: &Path) -> Outcome<Vec<File>> {
    let failed = |error: std::io::Error| {
        Failure::message(format!("cannot read {}: {error}", path.display()))
    };
    if path.is_file() {
        let name = path.file_name().unwrap_or(path.as_os_str());
        return Ok(vec![File {
            path: name.to_string_lossy().into_owned(),
            bytes: fs::metadata(path).map_err(failed)?.len(),
        }]);
    }
    let mut files = Vec::new();
    let mut folders = vec![(path.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                if depth < DEEPEST && !name.starts_with('.') {
                    folders.push((entry.path(), format!("{prefix}{name}/"), depth + 1));
                }
            } else if let Ok(meta) = fs::metadata(entry.path())
                && meta.is_file()
            {
                files.push(File {
                    path: format!("{prefix}{name}"),
                    bytes: meta.len(),
                });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
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
