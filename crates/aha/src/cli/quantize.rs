//! `aha quantize`: a checkpoint as a quantised GGUF file.

use super::Context;
use super::args::NamedModelArgs;
use super::console::{self, byte_bar, note};
use super::download::{DownloadArgs, provide};
use super::failure::{Failure, Outcome};
use super::jobs::part_of;
use super::units::bytes;
use aha::{Dtype, Export, Quant, Quantization};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
The file has weights, tokenizer and chat template in it, for aha, llama.cpp and its relatives.
--quant says which types the matrices get, q4_k_m unless told otherwise; norms, biases and filters
stay in f32. Models of the families llama, qwen3 and lfm2 can be written, from a checkpoint or from
a GGUF file in F32, F16 or BF16.

Examples:
  aha quantize Qwen/Qwen3-0.6B -o qwen3-0.6b.Q4_K_M.gguf
  aha quantize ./checkpoint -o model.gguf --quant q8_0
  aha run --gguf-path model.gguf -i \"Why is the sky blue?\"";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Quantize {
    #[command(flatten)]
    model: NamedModelArgs,
    /// GGUF file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file where it is there already
    #[arg(long)]
    force: bool,
}

impl Quantize {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let recipe = recipe(context)?;
        self.check_output()?;
        let mut model = self.model.into_model();
        provide(&mut model, &DownloadArgs::default(), context)?;
        let loader = model.loader();
        let source = loader.locate()?.path;
        if is_same(&source, &self.output) {
            return Err(cannot_write(&self.output, "it is what is to be read"));
        }
        let export = loader.export(recipe)?;
        write(&export, &self.output, context)?;
        let report = export.report();
        let mut told = format!("{recipe}: {}", report.summary());
        if let Some(exceptions) = report.exceptions() {
            told += &format!("; {exceptions}");
        }
        if let Ok(metadata) = fs::metadata(&self.output) {
            told += &format!("; {}", bytes(metadata.len()));
        }
        note(&told);
        console::print(&format!("{}\n", self.output.display()))
    }

    /// Refuses what could only fail after the work.
    fn check_output(&self) -> Outcome {
        let output = &self.output;
        let folder = output.parent().unwrap_or(Path::new(""));
        if output.is_dir() {
            return Err(cannot_write(output, "it is a folder: name a file in it"));
        }
        if output.exists() && !self.force {
            return Err(cannot_write(
                output,
                "it is there already: take another name, or --force to replace it",
            ));
        }
        if !folder.as_os_str().is_empty() && !folder.is_dir() {
            return Err(cannot_write(output, "its folder does not exist"));
        }
        Ok(())
    }
}

fn recipe(context: &Context) -> Outcome<Quantization> {
    if context.global.dtype != Dtype::Auto {
        return Err(Failure::usage(
            "`--dtype` says how a model computes; the types of a file are chosen with `--quant`",
        ));
    }
    match context.global.quant {
        None => Ok(Quantization::Q4KM),
        Some(Quant::Recipe(recipe)) => Ok(recipe),
        Some(Quant::Auto) => Err(Failure::usage(
            "`--quant auto` depends on the machine that loads a model: name the type for a file",
        )),
    }
}

/// Writes beside the file's name and renames, so that the name has all of it or nothing.
fn write(export: &Export, output: &Path, context: &Context) -> Outcome {
    let part = part_of(output);
    let mut guard = context.signals.guard();
    let mut stopped = None;
    let bar = byte_bar(0, true).with_message("quantising");
    let written = export.write(&part, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        stopped = guard.heard();
        stopped.is_none()
    });
    bar.finish_and_clear();
    let failure = match (written, stopped) {
        (Ok(true), _) => match fs::rename(&part, output) {
            Ok(()) => return Ok(()),
            Err(error) => cannot_write(output, &error.to_string()),
        },
        (Ok(false), Some(signal)) => Failure::Stopped(signal),
        (Ok(false), None) => cannot_write(output, "it was stopped"),
        (Err(error), _) => error.into(),
    };
    // What is left of it is of no use; the failure is what the user has to know.
    let _ = fs::remove_file(&part);
    Err(failure)
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn cannot_write(path: &Path, why: &str) -> Failure {
    Failure::message(format!("cannot write {}: {why}", path.display()))
}
