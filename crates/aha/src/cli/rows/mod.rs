//! Rows of numbers about many texts: reading the texts, keeping what is computed, writing the whole.

mod input;
mod journal;
mod output;

pub(super) use input::read_texts;
pub(super) use journal::{Job, Journal};
pub(super) use output::{Format, write};

use super::console;
use super::failure::Outcome;

/// Rows of one width, whether on a disk or in memory.
pub(super) trait Source {
    /// Numbers in a row.
    fn width(&self) -> usize;
    /// How many rows there are.
    fn rows(&self) -> usize;
    /// Calls `take` with each row in order.
    fn read(&self, take: impl FnMut(&[f32]) -> Outcome) -> Outcome;
}

/// Rows in memory.
pub(super) struct Rows<'a>(pub(super) &'a [Vec<f32>]);

impl Source for Rows<'_> {
    fn width(&self) -> usize {
        self.0.first().map_or(0, Vec::len)
    }

    fn rows(&self) -> usize {
        self.0.len()
    }

    fn read(&self, mut take: impl FnMut(&[f32]) -> Outcome) -> Outcome {
        self.0.iter().try_for_each(|row| take(row))
    }
}

/// Texts that are handed to the engine at once: enough to fill its batches, few enough to lose little.
const CHUNK: usize = 128;

/// Computes what the journal lacks, row by row in the order of the texts, under a bar.
pub(super) fn complete(
    journal: &mut Journal,
    texts: &[String],
    compute: impl Fn(&[String]) -> Outcome<Vec<Vec<f32>>>,
) -> Outcome {
    let done = journal.rows();
    if done > 0 {
        console::note(&format!("going on behind {done} of {} texts", texts.len()));
    }
    let bar = console::count_bar(texts.len() as u64);
    bar.set_position(done as u64);
    for chunk in texts[done.min(texts.len())..].chunks(CHUNK) {
        journal.append(&compute(chunk)?)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}
