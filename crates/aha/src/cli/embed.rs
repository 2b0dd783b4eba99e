//! `aha embed`: a vector for each text of a file.

use super::Context;
use super::args::{EngineArgs, ModelArgs};
use super::console::note;
use super::failure::Outcome;
use super::rows::{Format, Job, Journal, Source, complete, read_texts, write};
use super::units::positive;
use aha::{EmbeddingOptions, Truncate};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

const AFTER_HELP: &str = "\
Every line of a .txt, every line of a .jsonl (an object with `text`, or a string) and every record
of a .csv is one text. What is computed is kept in OUT.journal until the output is complete: a job
that was stopped goes on when it is started again.

Examples:
  aha embed notes.txt -m all-minilm-l6-v2 -o notes.npy
  aha embed corpus.jsonl --field body -m qwen3-embedding-0.6b -o corpus.parquet
  aha embed queries.csv --column question -m qwen3-embedding-0.6b --prompt-name query -o queries.jsonl";

/// How texts become vectors; shared with `aha run`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Embedding")]
pub(crate) struct EmbeddingArgs {
    /// A prompt of the model by name (query, document)
    #[arg(long, value_name = "NAME", conflicts_with = "instruct")]
    prompt_name: Option<String>,
    /// The task in words, for models that take one
    #[arg(long, value_name = "TEXT")]
    pub(crate) instruct: Option<String>,
    /// Numbers to keep of each vector, for models that were trained to be cut
    #[arg(long, value_name = "N", value_parser = positive)]
    dimensions: Option<usize>,
    /// Cut the end off texts that are too long, instead of failing
    #[arg(long)]
    truncate: bool,
}

impl EmbeddingArgs {
    pub(crate) fn options(&self) -> EmbeddingOptions {
        EmbeddingOptions {
            prompt_name: self.prompt_name.clone(),
            instruct: self.instruct.clone(),
            truncate: if self.truncate {
                Truncate::ToLimit
            } else {
                Truncate::Release
            },
            dimensions: self.dimensions,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Embed {
    /// The texts: a .txt, .jsonl or .csv file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Where the vectors go: a .npy, .jsonl or .parquet file
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Field or column that holds the text [default: text]
    #[arg(long, value_name = "NAME", visible_alias = "column")]
    field: Option<String>,
    /// Forget what an earlier run has computed
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    embedding: EmbeddingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Embed {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        // Everything that can be wrong is found before the time that a model takes.
        let format = Format::of(&self.output)?;
        let texts = read_texts(&self.file, self.field.as_deref())?;
        let (loader, bar) = context.loader(&self.model)?;
        let model = loader.engine_options(self.engine.options()).build()?;
        bar.finish();
        let options = self.embedding.options();
        let engine = model.embedding_engine()?;
        let width = options.dimensions.unwrap_or(engine.embedding_size());
        // Names of options and dimensions are checked before the journal says anything of them.
        engine.prepare(&[], &options, "texts")?;
        let described = format!("{:?} {options:?} {}", self.field, context.global.dtype);
        let job = Job::new(model.path(), &self.file, described, width)?;
        let mut journal = Journal::open(&self.output, &job, self.restart)?;
        let (started, before) = (Instant::now(), journal.rows());
        complete(&mut journal, &texts, |chunk| {
            Ok(model.embed(chunk, &options)?)
        })?;
        let seconds = started.elapsed().as_secs_f64();
        write(format, &self.output, &texts, &journal)?;
        journal.remove()?;
        let rate = (texts.len() - before) as f64 / seconds.max(1e-9);
        note(&format!(
            "{}: {} vectors of {width} numbers, {rate:.0} texts/s",
            self.output.display(),
            texts.len()
        ));
        Ok(())
    }
}
