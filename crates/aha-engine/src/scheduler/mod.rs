//! Which tokens run in the next step: continuous batching with chunked prefill.
//!
//! The scheduler knows token ids and blocks, neither tensors nor channels; the worker drives it:
//! [`Scheduler::plan`] → forward → [`Scheduler::complete`] → [`Scheduler::push_token`] or [`Scheduler::remove`].

mod blocks;
mod states;

use crate::media::ContentHash;
use crate::request::Prompt;
use aha_nn::batch::{AxisPositions, SequenceSlice};
use blocks::BlockHash;
pub(crate) use blocks::BlockPool;
pub(crate) use states::StatePool;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Identifies a request inside one engine.
pub(crate) type SequenceId = u64;

/// A sequence as the scheduler sees it.
#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// Tokens that the prefix cache gave at the first admission.
    cached: Option<usize>,
    blocks: Vec<u32>,
    /// Hashes of the leading full blocks that were published or taken.
    hashes: Vec<BlockHash>,
    /// Whether its blocks may be shared with other sequences.
    shareable: bool,
    /// What stands in the place of some of the prompt's tokens: it belongs to their identity.
    media: Vec<(Range<usize>, ContentHash)>,
    axes: Option<Arc<AxisPositions>>,
    /// Where its recurrent state is kept while it runs; 0 for models without such state.
    state_slot: u32,
    /// Block borders at which a copy of its recurrent state is to be kept, ascending.
    snapshots_at: Vec<usize>,
    /// The last copy that was kept while it generated: replaced by the next one.
    last_snapshot: Option<BlockHash>,
}

impl Sequence {
    fn decoding(&self) -> bool {
        self.computed + 1 == self.tokens.len() && self.computed >= self.prompt_len
    }

    /// Tokens to compute next, at most `budget`. A chunk ends where the recurrent state is to be kept.
    fn next_chunk(&self, budget: usize) -> usize {
        let border = self.snapshots_at.iter().find(|at| **at > self.computed);
        let end = border.map_or(self.tokens.len(), |at| (*at).min(self.tokens.len()));
        (end - self.computed).min(budget)
    }
}

impl Sequence {
    /// Slot to which its recurrent state shall be copied now, if at all.
    fn keep_state(&mut self, states: &mut StatePool, block_size: usize) -> Option<u32> {
        let blocks = self.computed / block_size;
        if !self.shareable || blocks == 0 || !self.computed.is_multiple_of(block_size) {
            return None;
        }
        let hash = *self.hashes.get(blocks - 1)?;
        if self.computed > self.prompt_len {
            // The conversation's next turn may go on from the end of the answer: the newest border will do.
            if let Some(last) = self.last_snapshot.replace(hash) {
                states.forget(last);
            }
        } else if !self.snapshots_at.contains(&self.computed) {
            return None;
        }
        states.keep(hash)
    }
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scheduled {
    pub(crate) id: SequenceId,
    pub(crate) slice: SequenceSlice,
    /// Row of its logits among those asked for; `None` while a prompt is not finished.
    pub(crate) logits: Option<usize>,
}

/// What one step computes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) token_ids: Vec<u32>,
    pub(crate) logit_rows: Vec<u32>,
    pub(crate) scheduled: Vec<Scheduled>,
    /// Sequences that left the queue for the first time in this step.
    pub(crate) admitted: Vec<SequenceId>,
    /// Recurrent states to copy before the step, from slot to slot: prefixes that others have computed.
    pub(crate) restored: Vec<(u32, u32)>,
}

impl Plan {
    /// Whether the step only goes on with answers, a token each. Its work is that of the kernels, which have threads of
    /// their own: others that are woken for the step would take cores from them while they look for work.
    pub(crate) fn generates(&self) -> bool {
        self.scheduled
            .iter()
            .all(|scheduled| scheduled.slice.query_len == 1)
    }
}

/// Running and waiting sequences of one model.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pool: BlockPool,
    /// `None` for models without recurrent state.
    states: Option<StatePool>,
    max_batch_tokens: usize,
    max_sequences: usize,
    /// In order of admission: the last one is preempted first.
    running: Vec<Sequence>,
    /// First come, first served; preempted sequences return to the front.
    waiting: VecDeque<Sequence>,
    preemptions: u64,
}

impl Scheduler {
    pub(crate) fn new(
        pool: BlockPool,
        states: Option<StatePool>,
        max_batch_tokens: usize,
        max_sequences: usize,
    ) -> Self {
        Self {
            pool,
            states,
            max_batch_tokens: max_batch_tokens.max(1),
            max_sequences: max_sequences.max(1),
            running: Vec::new(),
            waiting: VecDeque::new(),
            preemptions: 0,
        }
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// `None` for models without recurrent state.
    pub(crate) fn states(&self) -> Option<&StatePool> {
        self.states.as_ref()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Queues a prompt. It must fit in the pool together with what it may generate.
    pub(crate) fn add(&mut self, id: SequenceId, prompt: &Prompt, shareable: bool) {
        self.waiting.push_back(Sequence {
            id,
            prompt_len: prompt.token_ids.len(),
            tokens: prompt.token_ids.clone(),
            media: prompt
                .media
                .iter()
                .map(|span| (span.range(), span.input.hash))
                .collect(),
            axes: prompt.axes.clone(),
            computed: 0,
            cached: None,
            blocks: Vec::new(),
            hashes: Vec::new(),
            shareable,
            state_slot: 0,
            snapshots_at: Vec::new(),
            last_snapshot: None,
        });
    }

    /// Drops a sequence wherever it is and gives its blocks back at once.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            self.release(&mut sequence);
        }
        self.waiting.retain(|sequence| sequence.id != id);
    }

    /// Gives back what a running sequence holds.
    fn release(&mut self, sequence: &mut Sequence) {
        self.pool.release_all(&mut sequence.blocks);
        if let Some(states) = &mut self.states {
            states.release(sequence.state_slot);
        }
    }

    /// Tokens of a running sequence's prompt that were found in the prefix cache.
    pub(crate) fn cached_tokens(&self, id: SequenceId) -> usize {
        self.running
            .iter()
            .find(|sequence| sequence.id == id)
            .and_then(|sequence| sequence.cached)
            .unwrap_or(0)
    }

    /// Chooses the next step: every decoding sequence's next token first, then chunks of prompts within the token
    /// budget, oldest first. Empty only when nothing is queued.
    pub(crate) fn plan(&mut self) -> Plan {
        self.reserve_for_decoding();
        let mut plan = Plan::default();
        for sequence in self.running.iter().filter(|sequence| sequence.decoding()) {
            plan.push(sequence, 1);
        }
        // A full decode batch still lets prompts advance, so that nobody waits for ever.
        let mut budget = self
            .max_batch_tokens
            .saturating_sub(plan.token_ids.len())
            .max(self.pool.block_size().min(self.max_batch_tokens));
        for sequence in self.running.iter().filter(|sequence| !sequence.decoding()) {
            if budget == 0 {
                break;
            }
            let chunk = sequence.next_chunk(budget);
            plan.push(sequence, chunk);
            budget -= chunk;
        }
        while budget > 0 && self.running.len() < self.max_sequences {
            let Some(mut sequence) = self.waiting.pop_front() else {
                break;
            };
            if !self.admit(&mut sequence, &mut plan.restored) {
                self.waiting.push_front(sequence);
                break;
            }
            if sequence.cached.is_none() {
                sequence.cached = Some(sequence.computed);
                plan.admitted.push(sequence.id);
            }
            let chunk = sequence.next_chunk(budget);
            plan.push(&sequence, chunk);
            budget -= chunk;
            self.running.push(sequence);
        }
        plan
    }

    /// Makes room for the next token of every decoding sequence, preempting the youngest where blocks run out.
    fn reserve_for_decoding(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index];
            let full = sequence.computed == sequence.blocks.len() * self.pool.block_size();
            if !(sequence.decoding() && full) {
                index += 1;
                continue;
            }
            match self.pool.allocate() {
                Some(block) => {
                    self.running[index].blocks.push(block);
                    index += 1;
                }
                None => self.preempt_youngest(),
            }
        }
    }

    /// Sends the youngest sequence back to the queue; its tokens are computed again when it returns. What it
    /// published stays in the prefix cache as long as nobody else needs the room.
    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.release(&mut sequence);
            sequence.hashes.clear();
            sequence.computed = 0;
            sequence.last_snapshot = None;
            self.preemptions += 1;
            self.waiting.push_front(sequence);
        }
    }

    /// Gives a waiting sequence the blocks of all its tokens and a state slot, or nothing.
    fn admit(&mut self, sequence: &mut Sequence, restored: &mut Vec<(u32, u32)>) -> bool {
        let block_size = self.pool.block_size();
        let mut prefix = if sequence.shareable {
            self.pool.take_prefix(&sequence.tokens, &sequence.media)
        } else {
            Vec::new()
        };
        let matched = prefix.len();
        if let Some(states) = &self.states {
            let kept = prefix.iter().rposition(|(_, hash)| states.contains(*hash));
            for (block, _) in prefix.drain(kept.map_or(0, |last| last + 1)..).rev() {
                self.pool.release(block);
            }
        }
        let needed = sequence.tokens.len().div_ceil(block_size) - prefix.len();
        (sequence.blocks, sequence.hashes) = prefix.into_iter().unzip();
        if self.pool.available() < needed {
            self.pool.release_all(&mut sequence.blocks);
            sequence.hashes.clear();
            return false;
        }
        if let Some(states) = &mut self.states {
            let Some(slot) = states.acquire() else {
                self.pool.release_all(&mut sequence.blocks);
                sequence.hashes.clear();
                return false;
            };
            sequence.state_slot = slot;
            let snapshot = sequence.hashes.last().and_then(|hash| states.find(*hash));
            restored.extend(snapshot.map(|from| (from, slot)));
            // Where this prompt parts from an earlier one others will part too; and the next turn of a
            // conversation goes on from the end of this prompt.
            let end = (sequence.tokens.len() - 1) / block_size;
            sequence.snapshots_at = if sequence.shareable {
                let mut borders = vec![matched.min(end) * block_size, end * block_size];
                borders.dedup();
                borders
            } else {
                Vec::new()
            };
        }
        sequence.computed = sequence.blocks.len() * block_size;
        let missing = (0..needed).filter_map(|_| self.pool.allocate());
        sequence.blocks.extend(missing);
        true
    }

    /// Records that a planned step was computed. Returns the recurrent states to copy, from slot to slot, before the
    /// next step changes them.
    pub(crate) fn complete(&mut self, plan: &Plan) -> Vec<(u32, u32)> {
        let mut kept = Vec::new();
        for scheduled in &plan.scheduled {
            let Some(sequence) = self
                .running
                .iter_mut()
                .find(|sequence| sequence.id == scheduled.id)
            else {
                continue;
            };
            sequence.computed = scheduled.slice.context_len;
            let block_size = self.pool.block_size();
            while sequence.shareable
                && (sequence.hashes.len() + 1) * block_size <= sequence.computed
            {
                let index = sequence.hashes.len();
                let tokens = &sequence.tokens[index * block_size..(index + 1) * block_size];
                let parent = sequence.hashes.last().copied();
                let hash = self
                    .pool
                    .hash(parent, tokens, index * block_size, &sequence.media);
                self.pool.publish(sequence.blocks[index], hash);
                sequence.hashes.push(hash);
            }
            if let Some(states) = &mut self.states
                && let Some(slot) = sequence.keep_state(states, block_size)
            {
                kept.push((sequence.state_slot, slot));
            }
        }
        kept
    }

    /// Appends a generated token, to be computed in the next step.
    pub(crate) fn push_token(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) {
            sequence.tokens.push(token);
        }
    }
}

impl Plan {
    fn push(&mut self, sequence: &Sequence, query_len: usize) {
        let context_len = sequence.computed + query_len;
        let query_start = self.token_ids.len();
        self.token_ids
            .extend_from_slice(&sequence.tokens[sequence.computed..context_len]);
        let logits = (context_len == sequence.tokens.len()).then(|| {
            self.logit_rows.push((query_start + query_len - 1) as u32);
            self.logit_rows.len() - 1
        });
        self.scheduled.push(Scheduled {
            id: sequence.id,
            slice: SequenceSlice {
                query_start,
                query_len,
                context_len,
                prompt_len: sequence.prompt_len,
                blocks: sequence.blocks.clone(),
                state_slot: sequence.state_slot,
                axes: sequence.axes.clone(),
            },
            logits,
        });
    }
}

#[cfg(test)]
mod tests;
