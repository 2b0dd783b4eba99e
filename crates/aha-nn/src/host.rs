//! A decoder's step on the CPU: rows of f32 in memory that is kept from one step to the next.
//!
//! A step of generation is some three hundred operations on a few thousand values each. As tensors, each would take
//! and give back memory of its own, and the bookkeeping would cost as much as the smaller ones compute. Here blocks read
//! rows from one slice and write them to another.

use crate::batch::Batch;
use crate::linear::Linear;
use crate::moe::ExpertMemory;
use crate::norm::RmsNorm;
use crate::rope::{RotaryEmbedding, Rotation};
use crate::short_conv::recurrent_sequences;
pub use aha_kernels::Rows;
use aha_kernels::{PagedSequence, RecurrentSequence};
use candle_core::{Device, Error, Result, Tensor};
use std::cell::Cell;

/// Tokens up to which a step's memory is kept for the next one; that of a prompt is given back.
const KEPT_TOKENS: usize = 64;

/// What all layers of a step share.
#[derive(Debug, Clone, Copy)]
pub struct HostStep<'a> {
    /// The tokens and where they belong.
    pub batch: &'a Batch,
    /// Cosines and sines of their positions.
    pub rotation: &'a Rotation,
    /// The batch's sequences, as attention's kernel takes them.
    pub(crate) sequences: &'a [PagedSequence<'a>],
    /// The same, as the kernels of recurrent layers take them.
    pub(crate) recurrent_sequences: &'a [RecurrentSequence],
}

impl HostStep<'_> {
    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.batch.num_tokens()
    }
}

/// Most parts that a block has.
const PARTS: usize = 6;

/// Memory inside a block; blocks come one after another, so one set serves all.
#[derive(Debug, Default)]
pub struct Parts {
    parts: [Vec<f32>; PARTS],
    /// What a mixture of experts needs beside the memory of its experts, which is `parts`.
    pub(crate) experts: ExpertMemory,
}

impl Parts {
    /// At most six parts of so many values each, whose content is arbitrary.
    pub fn rows<const N: usize>(&mut self, sizes: [usize; N]) -> [&mut [f32]; N] {
        const { assert!(N <= PARTS) };
        let mut sizes = sizes.into_iter();
        let mut parts = self.parts.iter_mut();
        std::array::from_fn(|_| match (parts.next(), sizes.next()) {
            (Some(part), Some(size)) => sized(part, size),
            _ => &mut [],
        })
    }
}

/// The first `size` values of `memory`, which grows where it has not as many.
pub(crate) fn sized(memory: &mut Vec<f32>, size: usize) -> &mut [f32] {
    if memory.len() < size {
        *memory = vec![0.0; size];
    }
    &mut memory[..size]
}

/// The residual stream of a step: `[tokens, hidden_size]`, what is to be added to it, and its last norm.
///
/// An addition waits for the norm that follows it, and both are one pass over memory.
#[derive(Debug)]
pub struct Stream<'a> {
    hidden: &'a mut [f32],
    added: &'a mut [f32],
    normed: &'a mut [f32],
    /// Whether `added` is still to be added.
    is_pending: bool,
    parts: &'a mut Parts,
}

impl Stream<'_> {
    /// Norms the stream, runs `block` from the normed rows to other ones, and adds those to the stream.
    ///
    /// # Errors
    /// Those of `block`, and when the norm has not the stream's width.
    pub fn add(
        &mut self,
        norm: &RmsNorm,
        block: impl FnOnce(&[f32], &mut Parts, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        if std::mem::take(&mut self.is_pending) {
            norm.forward_sum(self.hidden, self.added, self.normed)?;
        } else {
            norm.forward_rows(self.hidden, self.normed)?;
        }
        block(self.normed, self.parts, self.added)?;
        self.is_pending = true;
        Ok(())
    }

    /// What the last block gave passes a norm, where there is one, and a factor before it joins the stream.
    ///
    /// # Errors
    /// When the norm has not the stream's width.
    pub fn adjust(&mut self, norm: Option<&RmsNorm>, scale: f64) -> Result<()> {
        if let Some(norm) = norm {
            norm.forward_rows(self.added, self.normed)?;
            std::mem::swap(&mut self.added, &mut self.normed);
        }
        scale_rows(self.added, scale);
        Ok(())
    }

    /// The stream, with all that was added.
    ///
    /// # Errors
    /// None where the stream was made by [`Workspace`].
    pub fn hidden(&mut self) -> Result<&mut [f32]> {
        if std::mem::take(&mut self.is_pending) {
            aha_kernels::add(self.hidden, self.added).map_err(Error::wrap)?;
        }
        Ok(self.hidden)
    }
}

/// Multiplies all values by a factor; 1 costs nothing.
pub fn scale_rows(rows: &mut [f32], scale: f64) {
    if scale != 1.0 {
        let scale = scale as f32;
        rows.iter_mut().for_each(|value| *value *= scale);
    }
}

/// `out = a * b`, value by value; `out` and the parts of rows that `a` and `b` are hold `width` values a row.
///
/// # Errors
/// When `width` is zero, or a slice does not fit.
pub fn multiply_rows(a: Rows<'_>, b: Rows<'_>, width: usize, out: &mut [f32]) -> Result<()> {
    aha_kernels::multiply(a, b, width, out).map_err(Error::wrap)
}

/// Memory of a thread's steps.
#[derive(Debug, Default)]
pub struct Workspace {
    hidden: Vec<f32>,
    added: Vec<f32>,
    normed: Vec<f32>,
    parts: Parts,
    rotation: Rotation,
    /// Empty: its memory alone is of use.
    sequences: Vec<PagedSequence<'static>>,
    recurrent_sequences: Vec<RecurrentSequence>,
}

impl Workspace {
    /// Runs `work` with the thread's workspace.
    pub fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static KEPT: Cell<Workspace> = Cell::default();
        }
        let mut workspace = KEPT.take();
        let result = work(&mut workspace);
        KEPT.set(workspace);
        result
    }

    /// Runs a step of `batch`: `begin` writes the embeddings to the stream, and `layers` does the rest.
    ///
    /// # Errors
    /// Those of `begin` and `layers`.
    pub fn step<R>(
        &mut self,
        batch: &Batch,
        rotary: &RotaryEmbedding,
        hidden_size: usize,
        begin: impl FnOnce(&mut [f32]) -> Result<()>,
        layers: impl FnOnce(&HostStep<'_>, &mut Stream<'_>) -> Result<R>,
    ) -> Result<R> {
        let size = batch.num_tokens() * hidden_size;
        rotary.rotate_on_host(batch, &mut self.rotation);
        let mut sequences: Vec<PagedSequence<'_>> = recycled(std::mem::take(&mut self.sequences));
        sequences.extend(paged_sequences(batch));
        self.recurrent_sequences.clear();
        self.recurrent_sequences.extend(recurrent_sequences(batch));
        let step = HostStep {
            batch,
            rotation: &self.rotation,
            sequences: &sequences,
            recurrent_sequences: &self.recurrent_sequences,
        };
        let mut stream = Stream {
            hidden: sized(&mut self.hidden, size),
            added: sized(&mut self.added, size),
            normed: sized(&mut self.normed, size),
            is_pending: false,
            parts: &mut self.parts,
        };
        let result = begin(stream.hidden).and_then(|()| layers(&step, &mut stream));
        self.sequences = recycled(sequences);
        if batch.num_tokens() > KEPT_TOKENS {
            *self = Self::default();
        }
        result
    }
}

/// A batch's sequences, as attention's kernel takes them.
pub(crate) fn paged_sequences(batch: &Batch) -> impl Iterator<Item = PagedSequence<'_>> {
    batch.sequences().iter().map(|sequence| PagedSequence {
        query_start: sequence.query_start,
        query_len: sequence.query_len,
        context_len: sequence.context_len,
        blocks: &sequence.blocks,
    })
}

/// An empty vector for elements of another lifetime. The standard library leaves it the memory of the old one, since
/// elements are as large; if it did not, nothing but the memory would be lost.
fn recycled<T, U>(mut old: Vec<T>) -> Vec<U> {
    old.clear();
    old.into_iter().filter_map(|_| None).collect()
}

/// Runs a block that knows tensors only: `x` is `[tokens, width]`, `out` what it gives.
///
/// # Errors
/// Those of the block, and when its result has another size than `out`.
pub(crate) fn through_tensors(
    x: &[f32],
    tokens: usize,
    out: &mut [f32],
    block: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let shape = (tokens, x.len() / tokens.max(1));
    let result = block(&Tensor::from_slice(x, shape, &Device::Cpu)?)?.contiguous()?;
    crate::with_f32(&result, |values| copy(values, out))?
}

/// Copies as many values as `out` takes.
fn copy(values: &[f32], out: &mut [f32]) -> Result<()> {
    if values.len() != out.len() {
        candle_core::bail!("{} values do not fill {}", values.len(), out.len());
    }
    out.copy_from_slice(values);
    Ok(())
}

/// What an output head makes of the stream's rows `rows`: `out` becomes `[rows, out_features]`.
///
/// # Errors
/// When a row is missing, or the head is not on the CPU.
pub fn head_rows(
    stream: &mut Stream<'_>,
    rows: &[u32],
    hidden_size: usize,
    norm: &RmsNorm,
    scale: f64,
    head: &Linear,
    out: &mut [f32],
) -> Result<()> {
    stream.hidden()?;
    let [chosen, normed] = stream.parts.rows([rows.len() * hidden_size; 2]);
    for (row, chosen) in rows.iter().zip(chosen.chunks_exact_mut(hidden_size)) {
        let start = *row as usize * hidden_size;
        match stream.hidden.get(start..start + hidden_size) {
            Some(values) => chosen.copy_from_slice(values),
            None => candle_core::bail!("row {row} is not one of the batch's"),
        }
    }
    norm.forward_rows(chosen, normed)?;
    scale_rows(normed, scale);
    Linear::forward_rows([head], normed, rows.len(), [out])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_vector_keeps_its_memory() {
        let old: Vec<&'static str> = Vec::with_capacity(7);
        let place = old.as_ptr().addr();
        let text = String::from("short-lived");
        let mut new: Vec<&str> = recycled(old);
        assert_eq!((new.capacity(), new.as_ptr().addr()), (7, place));
        new.push(&text);
        assert_eq!(new, ["short-lived"]);
    }

    #[test]
    fn parts_grow_and_stay() {
        let mut parts = Parts::default();
        let [a, b] = parts.rows([3, 5]);
        assert_eq!((a.len(), b.len()), (3, 5));
        b[4] = 1.0;
        let place = b.as_ptr();
        let [_, b] = parts.rows([9, 4]);
        assert_eq!((b.as_ptr(), b.len()), (place, 4));
    }
}
