//! `aha verify`: recomputes checksums, and the numbers of a golden set.

use super::Context;
use super::args::{ModelArgs, ModelPlace, NamedModel};
use super::console;
use super::failure::{Failure, Outcome};
use super::golden::{CaseReport, CaseState, GoldenReport};
use super::markdown::columns;
use aha::hub::{self, FileCheck, FileState, VerifyReport};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Files are compared with the checksums that were recorded when they were downloaded (in Hugging
Face's cache: with the names of its objects). Where golden.json lies in the folder, its chat
requests are answered in f32 on the CPU, and the log-probabilities are compared.

Ends with status 1 when a file is missing or changed, when a number differs, or when there is
nothing to compare with.

Examples:
  aha verify Qwen/Qwen3-0.6B
  aha verify ./checkpoint --json";

#[derive(Debug, Args)]
#[command(
    after_help = AFTER_HELP,
    mut_arg("name", |arg| arg.help("Hub id (Qwen/Qwen3-0.6B), alias (qwen3-0.6b) or path"))
)]
pub(crate) struct Verify {
    #[command(flatten)]
    model: NamedModel,
    /// Compare the files only, even where there is a golden set
    #[arg(long)]
    no_golden: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    path: PathBuf,
    ok: bool,
    #[serde(flatten)]
    checksums: VerifyReport,
    golden: Option<GoldenReport>,
}

impl Verify {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        if context.global.quant.is_some() {
            return Err(Failure::usage(
                "golden sets are compared in f32, so `--quant` does not go with verify",
            ));
        }
        let checkpoint = aha::resolve(self.model.name())?;
        let checksums = hub::verify(&checkpoint.path)?;
        let golden = if self.no_golden {
            None
        } else {
            let place = ModelPlace {
                model: Some(checkpoint.name.clone()),
                weight_path: Some(checkpoint.path.clone()),
                gguf_path: None,
            };
            let model = ModelArgs { place, task: None };
            let (loader, _bar) = context.loader(&model)?;
            GoldenReport::of(&checkpoint.path, loader)?
        };
        let report = Report {
            ok: is_ok(&checksums, golden.as_ref()),
            model: checkpoint.name,
            path: checkpoint.path,
            checksums,
            golden,
        };
        if self.json {
            console::print_json(&report)?;
        } else {
            report.print()?;
        }
        if report.ok {
            return Ok(());
        }
        Err(Failure::message(report.fault()))
    }
}

/// Something was compared, and nothing differs.
fn is_ok(checksums: &VerifyReport, golden: Option<&GoldenReport>) -> bool {
    let compared = golden.is_some_and(|golden| golden.passed > 0);
    let files_ok = checksums.is_ok() || (compared && !has_known(checksums));
    files_ok && golden.is_none_or(GoldenReport::is_ok)
}

/// Whether there was anything to compare the files with.
fn has_known(checksums: &VerifyReport) -> bool {
    let known = |file: &FileCheck| file.state != FileState::Unknown;
    checksums.files.iter().any(known)
}

impl Report {
    fn print(&self) -> Outcome {
        let rows: Vec<_> = self
            .checksums
            .files
            .iter()
            .map(|file| vec![file.path.clone(), state(file).to_owned()])
            .collect();
        console::print(&columns(&["FILE", "STATE"], &rows))?;
        let Some(golden) = &self.golden else {
            return Ok(());
        };
        let rows: Vec<_> = golden.cases.iter().map(row).collect();
        let headings = ["GOLDEN CASE", "STATE", "TOKENS", "|ΔLOGPROB|"];
        let worst = golden
            .worst_logprob_difference
            .map_or_else(|| "-".to_owned(), |worst| format!("{worst:.6}"));
        let reference = golden.reference.as_deref().unwrap_or("its reference");
        console::print(&format!(
            "\n{}\n{} passed, {} failed, {} skipped; worst |Δlogprob| {worst} against {reference}\n",
            columns(&headings, &rows),
            golden.passed,
            golden.failed,
            golden.skipped
        ))
    }

    fn fault(&self) -> String {
        let place = self.path.display();
        let broken = has_known(&self.checksums) && !self.checksums.is_ok();
        match &self.golden {
            _ if broken => format!("the model is not intact: {place}: download it again"),
            Some(golden) if golden.failed > 0 => format!(
                "the model's numbers differ from its golden set: {place}: {} of {} cases",
                golden.failed,
                golden.failed + golden.passed
            ),
            Some(_) => format!(
                "cannot verify the model: {place}: no checksums are recorded for it, and no case of \
                 its golden set can be compared"
            ),
            None => format!("cannot verify the model: {place}: no checksums are recorded for it"),
        }
    }
}

fn row(case: &CaseReport) -> Vec<String> {
    let state = match (case.state, &case.reason) {
        (CaseState::Passed, _) => "ok".to_owned(),
        (CaseState::Failed, reason) => format!("differs: {}", reason.as_deref().unwrap_or("")),
        (CaseState::Skipped, reason) => format!("skipped: {}", reason.as_deref().unwrap_or("")),
    };
    let difference = case
        .logprob_difference
        .map_or_else(|| "-".to_owned(), |found| format!("{found:.6}"));
    vec![
        case.name.clone(),
        state,
        case.tokens.to_string(),
        difference,
    ]
}

fn state(file: &FileCheck) -> &'static str {
    match file.state {
        FileState::Ok if file.from_hub => "ok",
        FileState::Ok => "ok (as it arrived; the hub gives no checksum)",
        FileState::Missing => "missing",
        FileState::Changed => "changed",
        FileState::Unknown => "nothing to compare with",
    }
}
