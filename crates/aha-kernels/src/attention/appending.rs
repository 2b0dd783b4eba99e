//! A step of a decoder's attention layer: new keys and values join the cache, and queries attend to it.

use std::cell::Cell;

use super::cache::PagedCache;
use super::{PagedAttention, Rows};
use crate::buffer::{flat_mut, with_scratch};
use crate::error::{check_len, checked_mul};
use crate::matmul::PARALLEL_FROM;
use crate::pack::PANEL;
use crate::pool::for_each_task;
use crate::rotary::HeadRotation;
use crate::{InstructionSet, KernelError, instruction_set};

/// Tokens whose keys and values a task writes.
const TOKENS: usize = 16;

/// What a step's tokens bring to an attention layer, as its projections left it.
#[derive(Debug, Clone, Copy)]
pub struct Projected<'a> {
    /// `[tokens, num_heads * head_dim]`.
    pub queries: Rows<'a>,
    /// `[tokens, num_kv_heads * head_dim]`.
    pub keys: Rows<'a>,
    /// `[tokens, num_kv_heads * head_dim]`.
    pub values: Rows<'a>,
    /// The rotation of queries and that of keys, with the norms of their heads; `None` where they are rotated.
    pub rotations: Option<[HeadRotation<'a>; 2]>,
}

impl Projected<'_> {
    fn check(&self, heads: [usize; 2], head_dim: usize, tokens: usize) -> Result<(), KernelError> {
        let kv_width = checked_mul(heads[1], head_dim)?;
        self.queries
            .check("queries", tokens, checked_mul(heads[0], head_dim)?)?;
        self.keys.check("keys", tokens, kv_width)?;
        self.values.check("values", tokens, kv_width)?;
        for (rotation, heads) in self.rotations.iter().flatten().zip(heads) {
            check_len("heads of a rotation", heads, rotation.num_heads)?;
            check_len("head_dim of a rotation", head_dim, rotation.head_dim)?;
            check_len("tokens of a rotation", tokens, rotation.check()?)?;
        }
        Ok(())
    }
}

/// New keys and values on their way to the cache.
#[derive(Clone, Copy)]
pub(super) struct Appending<'a> {
    projected: &'a Projected<'a>,
    cache: &'a PagedCache,
}

impl Appending<'_> {
    /// Writes what a token has of a head; `room` is as large as a head.
    ///
    /// # Safety
    /// Nobody else may write this part of the slot meanwhile, or read the head's part of its page.
    unsafe fn place(&self, set: InstructionSet, token: Token, kv_head: usize, room: &mut [f32]) {
        let dim = self.cache.head_dim();
        let head = |rows: Rows<'_>| token.row * rows.stride + kv_head * dim;
        let (keys, values) = (self.projected.keys, self.projected.values);
        let (key, value) = (
            &keys.values[head(keys)..][..dim],
            &values.values[head(values)..][..dim],
        );
        let key = match &self.projected.rotations {
            Some([_, rotation]) => {
                rotation.turn(set, token.row, key, room);
                room
            }
            None => key,
        };
        // SAFETY: the caller's promise.
        unsafe { self.cache.place(token.slot, kv_head, key, value) }
    }

    /// Writes what some tokens have of some heads.
    ///
    /// # Safety
    /// As [`place`](Self::place), for all of them.
    pub(super) unsafe fn place_all(
        &self,
        set: InstructionSet,
        tokens: &[Token],
        kv_heads: std::ops::Range<usize>,
    ) {
        with_scratch(self.cache.head_dim().div_ceil(PANEL), |room| {
            let room = &mut flat_mut(room)[..self.cache.head_dim()];
            for &token in tokens {
                for kv_head in kv_heads.clone() {
                    // SAFETY: the caller's promise.
                    unsafe { self.place(set, token, kv_head, room) }
                }
            }
        });
    }
}

/// A token of a step: its row, its position in its sequence, and the slot of that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    row: usize,
    pub(super) position: usize,
    slot: usize,
}

thread_local! {
    /// Memory for a step's tokens, kept for the thread's next one.
    static STEP: Cell<Step> = Cell::default();
}

/// The tokens of a step.
#[derive(Default)]
struct Step {
    tokens: Vec<Token>,
    /// Their slots in order.
    slots: Vec<usize>,
}

impl Step {
    /// Looks up the queries' tokens.
    fn lay_out(&mut self, attention: &PagedAttention<'_>) -> Result<(), KernelError> {
        let block_size = attention.block_size;
        self.tokens.clear();
        for sequence in attention.sequences {
            let first = sequence.context_len - sequence.query_len;
            self.tokens.extend((0..sequence.query_len).map(|index| {
                let position = first + index;
                let block = sequence.blocks[position / block_size] as usize;
                Token {
                    row: sequence.query_start + index,
                    position,
                    slot: block * block_size + position % block_size,
                }
            }));
        }
        if self.tokens.len() == 1 {
            return Ok(());
        }
        self.slots.clear();
        self.slots
            .extend(self.tokens.iter().map(|token| token.slot));
        self.slots.sort_unstable();
        match self.slots.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(KernelError::SharedSlot { slot: pair[0] }),
            None => Ok(()),
        }
    }
}

impl PagedAttention<'_> {
    /// Stores the keys and values of all queries' tokens in the cache, rotated, and computes the attention of the
    /// rotated queries: what [`HeadRotation::forward`], [`PagedCache::write`] and [`PagedAttention::forward`] do one
    /// after another, to the same bits.
    ///
    /// `out` is `[tokens, num_heads * head_dim]`; position `p` of a sequence has slot
    /// `blocks[p / block_size] * block_size + p % block_size`. Rows of `out` that belong to no sequence keep their
    /// content.
    ///
    /// # Errors
    /// As [`PagedAttention::forward`], and when two tokens have the same slot.
    pub fn forward_appending(
        &self,
        projected: &Projected<'_>,
        cache: &mut PagedCache,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_appending_on(instruction_set(), projected, cache, out)
    }

    /// [`PagedAttention::forward_appending`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn forward_appending_on(
        &self,
        set: InstructionSet,
        projected: &Projected<'_>,
        cache: &mut PagedCache,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        let tokens = self.check(cache, out)?;
        let (num_kv_heads, head_dim) = (cache.num_kv_heads(), cache.head_dim());
        projected.check([self.num_heads, num_kv_heads], head_dim, tokens)?;
        let mut step = STEP.take();
        let laid_out = step.lay_out(self);
        let result =
            laid_out.map(|()| self.append_and_attend(set, projected, &step.tokens, cache, out));
        STEP.set(step);
        result
    }

    /// The same for tokens that were looked up; shapes were checked.
    fn append_and_attend(
        &self,
        set: InstructionSet,
        projected: &Projected<'_>,
        tokens: &[Token],
        cache: &mut PagedCache,
        out: &mut [f32],
    ) {
        let (num_kv_heads, head_dim) = (cache.num_kv_heads(), cache.head_dim());
        // Nobody else has the cache: it was borrowed exclusively.
        let cache = &*cache;
        let appending = Appending { projected, cache };
        let rotation = projected.rotations.as_ref().map(|[queries, _]| queries);
        if let &[token] = tokens {
            // A task reads no heads but its own, and the one that reads this position writes it first.
            let new = Some((appending, token));
            return self.attend(set, projected.queries, rotation, cache, new, out);
        }
        let chunks = tokens.chunks(TOKENS);
        // SAFETY: tokens have slots of their own (checked), and nobody reads the cache yet.
        let place = |tokens: &[Token]| unsafe { appending.place_all(set, tokens, 0..num_kv_heads) };
        if tokens.len() * num_kv_heads * head_dim < PARALLEL_FROM {
            chunks.for_each(place);
        } else {
            for_each_task(chunks.len(), |index| {
                place(&tokens[index * TOKENS..tokens.len().min((index + 1) * TOKENS)]);
            });
        }
        self.attend(set, projected.queries, rotation, cache, None, out);
    }
}
