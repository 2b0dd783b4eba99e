//! A step's input: the new tokens of all scheduled sequences laid end to end, without padding.

use candle_core::{Device, Result, Tensor};

/// One sequence's share of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSlice {
    /// First row of this sequence among the batch's tokens.
    pub query_start: usize,
    /// New tokens of this sequence in this step.
    pub query_len: usize,
    /// Tokens in the cache after this step, the new ones included.
    pub context_len: usize,
    /// Length of the whole prompt: some rope scalings depend on it.
    pub prompt_len: usize,
    /// Cache blocks of the sequence in order; they hold at least `context_len` tokens.
    pub blocks: Vec<u32>,
    /// Slot of its recurrent state; 0 for models without such layers.
    pub state_slot: u32,
}

impl SequenceSlice {
    /// Positions of the new tokens.
    pub fn positions(&self) -> std::ops::Range<usize> {
        self.context_len - self.query_len..self.context_len
    }

    /// Whether the sequence begins with this step: there is no state yet.
    pub fn is_start(&self) -> bool {
        self.query_len == self.context_len
    }
}

/// The tokens of one forward pass.
#[derive(Debug)]
pub struct Batch {
    token_ids: Tensor,
    sequences: Vec<SequenceSlice>,
    slots: Vec<u32>,
    slot_index: Tensor,
    logit_rows: Tensor,
    block_size: usize,
}

impl Batch {
    /// Lays out a step.
    ///
    /// `token_ids` are those of all sequences in the order of `sequences`; `logit_rows` are the rows whose logits are
    /// asked for. Errors when the counts contradict each other: a fault of the scheduler, not of the user.
    pub fn new(
        token_ids: &[u32],
        sequences: Vec<SequenceSlice>,
        logit_rows: &[u32],
        block_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let mut slots = Vec::with_capacity(token_ids.len());
        for sequence in &sequences {
            if sequence.query_start != slots.len()
                || sequence.query_len == 0
                || sequence.query_len > sequence.context_len
                || sequence.context_len > sequence.blocks.len() * block_size
            {
                candle_core::bail!(
                    "inconsistent batch: {sequence:?} with {} rows before",
                    slots.len()
                );
            }
            for position in sequence.positions() {
                let block = sequence.blocks[position / block_size] as usize;
                slots.push((block * block_size + position % block_size) as u32);
            }
        }
        if slots.len() != token_ids.len()
            || logit_rows.iter().any(|row| *row as usize >= slots.len())
        {
            candle_core::bail!(
                "inconsistent batch: {} tokens, {} rows, logits of rows {logit_rows:?}",
                token_ids.len(),
                slots.len()
            );
        }
        Ok(Self {
            token_ids: Tensor::new(token_ids, device)?,
            slot_index: Tensor::new(slots.as_slice(), device)?,
            logit_rows: Tensor::new(logit_rows, device)?,
            slots,
            sequences,
            block_size,
        })
    }

    /// Token ids `[tokens]`, u32.
    pub fn token_ids(&self) -> &Tensor {
        &self.token_ids
    }

    /// Number of new tokens.
    pub fn num_tokens(&self) -> usize {
        self.slots.len()
    }

    /// The sequences in order.
    pub fn sequences(&self) -> &[SequenceSlice] {
        &self.sequences
    }

    /// Cache slot of each new token (`block * block_size + offset`).
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// The same as a tensor `[tokens]` on the model's device.
    pub fn slot_index(&self) -> &Tensor {
        &self.slot_index
    }

    /// Tokens in a cache block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Rows of `hidden` `[tokens, hidden_size]` whose logits are asked for.
    pub fn select_logit_rows(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.index_select(&self.logit_rows, 0)
    }
}
