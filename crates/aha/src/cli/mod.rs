//! The command line: what all commands share, and the way in. One file a command.

mod answer;
mod args;
mod bench;
mod chat;
mod completions;
mod console;
mod delete;
mod download;
mod embed;
mod failure;
mod golden;
mod input;
mod jobs;
mod list;
mod logging;
mod markdown;
mod memory;
mod ocr;
mod progress;
mod ps;
mod quantize;
mod rembg;
mod rerank;
mod rows;
mod run;
mod serv;
mod show;
mod signals;
mod speak;
mod stop;
mod transcribe;
mod units;
mod verify;
mod weights;

use args::GlobalArgs;
use clap::{CommandFactory, Parser, Subcommand};
use failure::{Failure, Outcome};
use signals::Signals;
use std::process::ExitCode;
use tokio::runtime::Runtime;

/// Stack of the runtime's threads matters to nobody; their number only to servers: handlers do
/// little, the engine and the preparing of prompts have threads of their own.
const RUNTIME_THREADS: usize = 2;

const AFTER_HELP: &str = "\
Examples:
  aha cli -m Qwen/Qwen3-0.6B                 get a model and serve it on port 10100
  aha run -m qwen3-0.6b -i \"Why is the sky blue?\"
  aha run --gguf-path model.gguf -i @letter.txt -o answer.txt
  aha chat -m ./my-checkpoint --quant q4_k_m

Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C (143 by SIGTERM).
Models are kept in AHA_HOME, else ~/.aha. One that is asked for and missing is downloaded, unless
--offline forbids it. `aha help COMMAND` tells more about a command.";

#[derive(Debug, Parser)]
#[command(
    name = "aha",
    version,
    about = "Local, OpenAI-compatible inference: one binary, one port, one library",
    after_help = AFTER_HELP,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model, with options for its download where it is missing
    Cli(serv::DownloadAndServe),
    /// Serve a model with OpenAI's HTTP interface
    #[command(visible_alias = "serve")]
    Serv(serv::Serv),
    /// Answer one prompt and end
    Run(Box<run::Run>),
    /// Talk with a model in the terminal
    Chat(chat::Chat),
    /// Make a vector of each text in a file
    Embed(embed::Embed),
    /// Order the texts of a file by how well they answer a query
    Rerank(rerank::Rerank),
    /// Speak a text into a file or a pipe
    Speak(speak::Speak),
    /// Read documents: scans, photos and PDFs to Markdown, HTML, JSON or text
    Ocr(ocr::Ocr),
    /// Write down what is said in recordings: text, subtitles or JSON
    Transcribe(transcribe::Transcribe),
    /// Remove the background of pictures
    Rembg(rembg::Rembg),
    /// Download a model
    Download(download::Download),
    /// List the models that are known by name, or those on this disk
    List(list::List),
    /// Tell what a checkpoint holds and how much memory it needs
    Show(show::Show),
    /// Compare a model's files with their checksums, and its answers with a golden set
    Verify(verify::Verify),
    /// Write a model as a quantised GGUF file
    Quantize(quantize::Quantize),
    /// Delete a model from this disk
    Delete(delete::Delete),
    /// List the servers that run on this machine
    Ps(ps::Ps),
    /// Stop servers on this machine
    Stop(stop::Stop),
    /// Measure prompt processing and generation
    Bench(bench::Bench),
    /// Print a completion script for a shell
    Completions(completions::Completions),
}

/// What a command works with.
struct Context {
    global: GlobalArgs,
    runtime: Runtime,
    signals: Signals,
}

impl Context {
    /// A loader that follows the global options and shows its progress. A model that is not on
    /// this disk is downloaded first.
    fn loader(&self, model: &args::ModelArgs) -> Outcome<(aha::Loader, console::LoadBar)> {
        let mut model = model.clone();
        download::provide(&mut model, &download::DownloadArgs::default(), self)?;
        let bar = console::LoadBar::new();
        let loader = model
            .loader()
            .device(self.global.device)
            .dtype(self.global.dtype)
            .on_progress(bar.callback())
            .on_note(console::note);
        let loader = match self.global.quant {
            Some(quant) => loader.quant(quant),
            None => loader,
        };
        Ok((loader, bar))
    }
}

/// Parses the arguments, runs the command and returns the exit status.
pub(crate) fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(cli: Cli) -> Outcome {
    // Needs neither log nor threads, and must not fail for their sake.
    if let Command::Completions(command) = &cli.command {
        return command.execute(&mut Cli::command());
    }
    let level = match cli.command {
        Command::Serv(_) | Command::Cli(_) => "info",
        _ => "warn",
    };
    logging::init(&cli.global, level)?;
    start_compute_threads(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::message(format!("cannot start threads: {error}")))?;
    let signals = Signals::install(&runtime)?;
    let context = Context {
        global: cli.global,
        runtime,
        signals,
    };
    let outcome = match cli.command {
        Command::Cli(command) => command.execute(&context),
        Command::Serv(command) => command.execute(&context),
        Command::Run(command) => command.execute(&context),
        Command::Chat(command) => command.execute(&context),
        Command::Embed(command) => command.execute(&context),
        Command::Rerank(command) => command.execute(&context),
        Command::Speak(command) => command.execute(&context),
        Command::Ocr(command) => command.execute(&context),
        Command::Transcribe(command) => command.execute(&context),
        Command::Rembg(command) => command.execute(&context),
        Command::Download(command) => command.execute(&context),
        Command::List(command) => command.execute(&context),
        Command::Show(command) => command.execute(),
        Command::Verify(command) => command.execute(&context),
        Command::Quantize(command) => command.execute(&context),
        Command::Delete(command) => command.execute(&context),
        Command::Ps(command) => command.execute(&context),
        Command::Stop(command) => command.execute(&context),
        Command::Bench(command) => command.execute(&context),
        Command::Completions(_) => Ok(()),
    };
    // A worker that still reads from a disk or a socket must not hold the process.
    context.runtime.shutdown_background();
    outcome
}

/// The pool that all products run on. Its size, and where its threads may run, are decided here and nowhere else.
fn start_compute_threads(global: &GlobalArgs) -> Outcome {
    check_kernels(std::env::var("AHA_KERNELS").unwrap_or_default().as_str())?;
    let wish = global.threads.flatten();
    if global.pin_cores {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        aha_kernels::pin_threads(wish.unwrap_or_else(cores))
            .map_err(|error| Failure::message(format!("--pin-cores: {error}")))?;
    }
    let Some(threads) = wish else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Failure::message(format!("cannot start {threads} threads: {error}")))
}

/// Refuses a wish for kernels that this processor cannot run: they would be others than asked for.
fn check_kernels(wish: &str) -> Outcome {
    let sets = || aha_kernels::InstructionSet::available().map(aha_kernels::InstructionSet::name);
    if wish.is_empty() || sets().any(|name| name == wish) {
        return Ok(());
    }
    let names: Vec<_> = sets().collect();
    Err(Failure::usage(format!(
        "AHA_KERNELS is {wish:?}, which this processor does not have or nobody knows; it may be {}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
