//! `aha rerank`: texts of a file in the order of their relevance.

use super::Context;
use super::args::{EngineArgs, ModelArgs};
use super::console::{print, printable};
use super::failure::{Failure, Outcome};
use super::rows::{Job, Journal, Source, complete, read_texts};
use super::units::positive;
use aha::{Model, Ranked};
use clap::Args;
use std::fmt::Write;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
The table on standard output has the score, the number of the line or record, and how the text
begins. With -o all results go to a .jsonl file, and a job that was stopped goes on when it is
started again.

Examples:
  aha rerank \"What is gravity?\" passages.txt -m qwen3-reranker-0.6b -n 5
  aha rerank \"offene Rechnungen\" mails.jsonl --field body -m qwen3-reranker-0.6b -o ranked.jsonl";

/// Characters of a text that a table shows.
const SHOWN: usize = 80;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Rerank {
    /// What the documents shall answer
    #[arg(value_name = "QUERY")]
    query: String,
    /// The documents: a .txt, .jsonl or .csv file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Write all results, best first, to a .jsonl file instead of a table
    #[arg(short, long, value_name = "OUT", value_parser = jsonl)]
    output: Option<PathBuf>,
    /// Only the best N
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    top: Option<usize>,
    /// Field or column that holds the text [default: text]
    #[arg(long, value_name = "NAME", visible_alias = "column")]
    field: Option<String>,
    /// The task in words, for models that take one
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Forget what an earlier run has computed
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Rerank {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let texts = read_texts(&self.file, self.field.as_deref())?;
        let (loader, bar) = context.loader(&self.model)?;
        let model = loader.engine_options(self.engine.options()).build()?;
        bar.finish();
        // Asked for here, so that a model of another task is told of before anything is written.
        model.rerank_engine()?;
        let instruct = self.instruct.as_deref();
        let Some(output) = &self.output else {
            let mut ranked = model.rerank(&self.query, &texts, instruct)?;
            ranked.truncate(self.top.unwrap_or(texts.len()));
            return print(&table(&ranked, &texts));
        };
        let described = format!(
            "{:?} {:?} {instruct:?} {}",
            self.query, self.field, context.global.dtype
        );
        let job = Job::new(model.path(), &self.file, described, 1)?;
        let mut journal = Journal::open(output, &job, self.restart)?;
        complete(&mut journal, &texts, |chunk| {
            scores(&model, &self.query, chunk, instruct)
        })?;
        let mut ranked = Vec::with_capacity(texts.len());
        journal.read(|row| {
            ranked.push(Ranked {
                index: ranked.len(),
                score: row[0],
            });
            Ok(())
        })?;
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranked.truncate(self.top.unwrap_or(texts.len()));
        write(output, &ranked, &texts)?;
        journal.remove()
    }
}

/// Scores in the order of the documents.
fn scores(
    model: &Model,
    query: &str,
    documents: &[String],
    instruct: Option<&str>,
) -> Outcome<Vec<Vec<f32>>> {
    let mut rows = vec![Vec::new(); documents.len()];
    for ranked in model.rerank(query, documents, instruct)? {
        rows[ranked.index] = vec![ranked.score];
    }
    Ok(rows)
}

/// A line a document: score, number, beginning.
pub(super) fn table(ranked: &[Ranked], texts: &[String]) -> String {
    let mut table = String::new();
    for Ranked { index, score } in ranked {
        let line = texts[*index]
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let mut shown: String = line.chars().take(SHOWN).collect();
        if shown.len() < line.len() {
            shown.push('…');
        }
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{score:.4}  {:>5}  {}", index + 1, printable(&shown));
    }
    table
}

fn write(path: &Path, ranked: &[Ranked], texts: &[String]) -> Outcome {
    let mut lines = String::new();
    for Ranked { index, score } in ranked {
        let line = serde_json::json!({
            "index": index,
            "relevance_score": score,
            "document": {"text": texts[*index]},
        });
        let _ = writeln!(lines, "{line}");
    }
    std::fs::write(path, lines)
        .map_err(|error| Failure::output(&path.display().to_string(), &error))
}

fn jsonl(text: &str) -> Result<PathBuf, String> {
    if text.to_lowercase().ends_with(".jsonl") {
        Ok(text.into())
    } else {
        Err("the name must end in .jsonl".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_the_beginning_on_one_line() {
        let texts = ["a\n b\u{1b}[0m".to_owned(), "x".repeat(100)];
        let ranked = [1, 0].map(|index| Ranked { index, score: 0.5 });
        let table = table(&ranked, &texts);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("0.5000      2  xxx") && lines[0].ends_with('…'));
        assert_eq!(lines[1], "0.5000      1  a b\u{fffd}[0m");
        assert!(jsonl("a.csv").is_err());
    }
}
