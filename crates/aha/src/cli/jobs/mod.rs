//! Jobs over many files: finding them, working on several at once, keeping what is done, going on after a stop.
//!
//! A command finds its [`Input`]s, plans its [`Outputs`], makes [`Item`]s (a file, or a page of one) and gives [`run`] the
//! work on an item. What an item comes to is in `OUT.journal` as soon as it is done, by the content of its file and the
//! options, so a job that was stopped or killed goes on where it was and ends with the same bytes.

mod inputs;
mod journal;
mod journal_file;
mod outputs;
mod runner;

pub(super) use inputs::{Input, find_inputs, has_ending};
pub(super) use journal_file::JournalFile;
pub(super) use outputs::{Outputs, part_of, write_atomically};
pub(super) use runner::{Item, Meter, Plan, Product, run};

use super::units::positive;
use clap::Args;

/// Options of every job.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Job")]
pub(super) struct JobArgs {
    /// Items that are worked on at once [default: 4]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(super) jobs: Option<usize>,
    /// Try again what failed in an earlier run
    #[arg(long)]
    pub(super) retry_failed: bool,
    /// Forget what an earlier run has done
    #[arg(long)]
    pub(super) restart: bool,
}
