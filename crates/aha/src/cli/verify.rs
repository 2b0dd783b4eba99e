//! `aha verify`: recomputes checksums.

use super::console;
use super::failure::{Failure, Outcome};
use super::markdown::columns;
use aha::hub::{self, FileCheck, FileState};
use clap::Args;

const AFTER_HELP: &str = "\
Ends with status 1 when a file is missing or changed, or when nothing is known to compare with.

Examples:
  aha verify -m Qwen/Qwen3-0.6B";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Verify {
    /// Hub id, alias or path
    #[arg(short, long, value_name = "MODEL")]
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn execute(self) -> Outcome {
        let checkpoint = aha::resolve(&self.model)?;
        let report = hub::verify(&checkpoint.path)?;
        if self.json {
            console::print_json(&report)?;
        } else {
            let rows: Vec<_> = report
                .files
                .iter()
                .map(|file| vec![file.path.clone(), state(file.state).to_owned()])
                .collect();
            console::print(&columns(&["FILE", "STATE"], &rows))?;
        }
        if report.is_ok() {
            return Ok(());
        }
        let place = checkpoint.path.display();
        let known = |file: &FileCheck| file.state != FileState::Unknown;
        Err(Failure::message(if report.files.iter().any(known) {
            format!("the model is not intact: {place}: download it again")
        } else {
            format!("cannot verify the model: {place}: no checksums are recorded for it")
        }))
    }
}

fn state(state: FileState) -> &'static str {
    match state {
        FileState::Ok => "ok",
        FileState::Missing => "missing",
        FileState::Changed => "changed",
        FileState::Unknown => "unknown",
    }
}
