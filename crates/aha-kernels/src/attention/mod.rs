//! Attention: over a paged cache of keys and values, or among sequences that lie end to end.

mod appending;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod cache;
mod call;
mod grid;
#[cfg(target_arch = "aarch64")]
mod neon;
mod ragged;
mod scalar;
mod source;
mod stretch;
mod task;
mod windows;

use crate::error::{check_len, checked_mul};
use crate::rotary::HeadRotation;
use crate::{InstructionSet, KernelError, instruction_set};

pub use appending::Projected;
use appending::{Appending, Token};
pub use cache::PagedCache;
pub(crate) use call::Output;
pub use call::Rows;
use call::{Call, Places, Seen, Sequence};
pub use grid::GridBias;
pub use ragged::RaggedAttention;
pub use windows::WindowAttention;

/// Attention of each query token over its sequence's part of a paged cache.
///
/// Every query attends to the cached positions up to its own (its own included), in `f32`, with a
/// running softmax over tiles of keys: the matrix of scores never exists. Query heads share key and
/// value heads in equal groups (grouped-query attention), and a group reads its keys once.
///
/// The result for a query has the same bits whether its prompt was given at once, in chunks or
/// token by token, and whatever other sequences stand in the batch: tiles of keys begin at fixed
/// positions of the sequence.
#[derive(Debug, Clone, Copy)]
pub struct PagedAttention<'a> {
    /// Query heads; a multiple of the cache's key and value heads.
    pub num_heads: usize,
    /// Positions a block of the cache holds; a multiple of [`PagedCache::PAGE`].
    pub block_size: usize,
    /// Factor of the scores before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sliding window: a query sees this many positions, its own included. `None`: all.
    pub window: Option<usize>,
    /// The sequences of the batch.
    pub sequences: &'a [PagedSequence<'a>],
}

/// One sequence of a [`PagedAttention`] batch.
#[derive(Debug, Clone, Copy)]
pub struct PagedSequence<'a> {
    /// Row of `q` that holds the first query of this sequence.
    pub query_start: usize,
    /// Number of queries: the last tokens of the context.
    pub query_len: usize,
    /// Cached tokens, including these queries.
    pub context_len: usize,
    /// The blocks that hold positions `0..context_len`, in order.
    pub blocks: &'a [u32],
}

impl PagedAttention<'_> {
    /// Computes the attention of all queries.
    ///
    /// `q` and `out` are `[tokens, num_heads * head_dim]`; the cache already holds the keys and values of the
    /// queries' own tokens, position `p` of a sequence in slot `blocks[p / block_size] * block_size +
    /// p % block_size`. Rows of `out` that belong to no sequence keep their content.
    ///
    /// # Errors
    /// When a slice does not fit the shapes, a sequence points outside `q` or the cache, or two
    /// sequences claim the same row.
    pub fn forward(
        &self,
        q: &[f32],
        cache: &PagedCache,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), q, cache, out)
    }

    /// [`PagedAttention::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As [`PagedAttention::forward`], and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        q: &[f32],
        cache: &PagedCache,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        check_len("q", out.len(), q.len())?;
        self.check(cache, out)?;
        let q = Rows {
            values: q,
            stride: self.num_heads * cache.head_dim(),
        };
        self.attend(set, q, None, cache, None, out);
        Ok(())
    }

    /// The attention of all queries, which are rotated first where `rotation` says how; shapes were checked. With
    /// `new`, tasks write what that token, the only one, has of their heads.
    fn attend(
        &self,
        set: InstructionSet,
        q: Rows<'_>,
        rotation: Option<&HeadRotation<'_>>,
        cache: &PagedCache,
        new: Option<(Appending<'_>, Token)>,
        out: &mut [f32],
    ) {
        let sequence = |index: usize| {
            let sequence = &self.sequences[index];
            Sequence {
                query_start: sequence.query_start,
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                places: Places::Blocks {
                    cache,
                    blocks: sequence.blocks,
                    block_size: self.block_size,
                },
                seen: Seen::Causal(self.window),
            }
        };
        Call {
            set,
            num_heads: self.num_heads,
            group: self.num_heads / cache.num_kv_heads(),
            head_dim: cache.head_dim(),
            scale: self.scale,
            num_sequences: self.sequences.len(),
            sequence: &sequence,
            q,
            rotation,
            new,
            bias: None,
            out: Output::new(out),
        }
        .run();
    }

    /// The number of tokens, or what does not fit.
    fn check(&self, cache: &PagedCache, out: &[f32]) -> Result<usize, KernelError> {
        for (argument, value) in [
            ("num_heads", self.num_heads),
            ("block_size", self.block_size),
        ] {
            if value == 0 {
                return Err(KernelError::Zero { argument });
            }
        }
        let multiple = |argument, value: usize, of| {
            let fits = value.is_multiple_of(of);
            if fits {
                Ok(())
            } else {
                Err(KernelError::NotMultiple {
                    argument,
                    value,
                    of,
                })
            }
        };
        if self.window == Some(0) {
            return Err(KernelError::Zero { argument: "window" });
        }
        multiple("num_heads", self.num_heads, cache.num_kv_heads())?;
        multiple("block_size", self.block_size, PagedCache::PAGE)?;
        let row = checked_mul(self.num_heads, cache.head_dim())?;
        multiple("length of out", out.len(), row)?;
        let (tokens, slots) = (out.len() / row, cache.slots());
        for sequence in self.sequences {
            sequence.check(tokens, slots, self.block_size)?;
        }
        let ranges = (self.sequences.iter())
            .filter(|sequence| sequence.query_len > 0)
            .map(|sequence| {
                let start = sequence.query_start;
                (start, start + sequence.query_len)
            });
        // Nearly always they lie in order: nothing needs to be sorted, in memory of its own.
        let follows = |(_, end): &(usize, usize), (start, _): &(usize, usize)| end <= start;
        if ranges.clone().is_sorted_by(follows) {
            return Ok(tokens);
        }
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(KernelError::OverlappingQueries { row: pair[1].0 }),
            None => Ok(tokens),
        }
    }
}

impl PagedSequence<'_> {
    fn check(&self, tokens: usize, slots: usize, block_size: usize) -> Result<(), KernelError> {
        let at_most = |argument, value, maximum| {
            if value <= maximum {
                Ok(())
            } else {
                Err(KernelError::OutOfRange {
                    argument,
                    value,
                    maximum,
                })
            }
        };
        at_most("query_start", self.query_start, tokens)?;
        at_most(
            "query_len",
            self.query_len,
            (tokens - self.query_start).min(self.context_len),
        )?;
        let blocks = self.context_len.div_ceil(block_size);
        at_most("blocks of the context", blocks, self.blocks.len())?;
        // The cache may end inside its last block; kernels must not read behind it.
        let whole_blocks = slots / block_size;
        match self.blocks[..blocks]
            .iter()
            .find(|&&block| block as usize >= whole_blocks)
        {
            Some(&block) => Err(KernelError::OutOfRange {
                argument: "block number",
                value: block as usize,
                maximum: whole_blocks.saturating_sub(1),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod appending_tests;
#[cfg(test)]
mod grid_tests;
#[cfg(test)]
mod ragged_tests;
#[cfg(test)]
mod tests;
