//! A step's input: the new tokens of all scheduled sequences laid end to end, without padding.

use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// Positions of a sequence's tokens on several axes (time, height, width, ...), where media stand among the text: the
/// tokens of a picture lie on a grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AxisPositions {
    /// Of each token of the prompt, one number an axis.
    prompt: Vec<u32>,
    axes: usize,
    /// Of the first token after the prompt, on all axes.
    next: u32,
}

impl AxisPositions {
    /// The prompt's positions; generated tokens count on from the largest one.
    pub fn new<const AXES: usize>(prompt: Vec<[u32; AXES]>) -> Self {
        let prompt = prompt.into_flattened();
        Self {
            next: prompt.iter().max().map_or(0, |largest| largest + 1),
            prompt,
            axes: AXES.max(1),
        }
    }

    /// Position of the token at `index` on one of the axes.
    pub fn on(&self, axis: usize, index: usize) -> u32 {
        let length = self.prompt.len() / self.axes;
        match index.checked_sub(length) {
            Some(after) => self.next.saturating_add(after as u32),
            None => self.prompt[index * self.axes + axis.min(self.axes - 1)],
        }
    }

    /// Positions of the token at `index` on the first axes.
    pub fn at<const AXES: usize>(&self, index: usize) -> [u32; AXES] {
        std::array::from_fn(|axis| self.on(axis, index))
    }
}

/// Rows of a batch that an encoder computed: they stand in the place of token embeddings.
#[derive(Debug, Clone)]
pub struct EncodedRows {
    /// First of the rows among the batch's tokens.
    pub start: usize,
    /// `[rows, width]`: the embeddings `[rows, hidden_size]` and, beside them, what models with deepstack add to the
    /// hidden states after their first layers, `[rows, hidden_size]` each.
    pub values: Tensor,
}

/// `base` `[tokens, hidden_size]` with the first `hidden_size` values of `rows`, which are ascending and apart, in
/// their places.
pub fn place_rows(base: Tensor, rows: &[EncodedRows]) -> Result<Tensor> {
    if rows.is_empty() {
        return Ok(base);
    }
    let (tokens, hidden_size) = base.dims2()?;
    let mut pieces = Vec::with_capacity(2 * rows.len() + 1);
    let mut end = 0;
    for rows in rows {
        if rows.start > end {
            pieces.push(base.narrow(0, end, rows.start - end)?);
        }
        let values = rows.values.narrow(1, 0, hidden_size)?;
        end = rows.start + values.dim(0)?;
        pieces.push(values.to_dtype(base.dtype())?);
    }
    if end < tokens {
        pieces.push(base.narrow(0, end, tokens - end)?);
    }
    Tensor::cat(&pieces, 0)
}

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
    /// Positions on several axes, where they differ from the plain count.
    pub axes: Option<Arc<AxisPositions>>,
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
    num_tokens: usize,
    slot_index: Tensor,
    logit_rows: Tensor,
    block_size: usize,
    encoded: Vec<EncodedRows>,
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
            num_tokens: slots.len(),
            sequences,
            block_size,
            encoded: Vec::new(),
        })
    }

    /// The same batch with rows of encoders' outputs, ascending and apart.
    ///
    /// Errors when they overlap or exceed the batch.
    pub fn with_encoded(mut self, encoded: Vec<EncodedRows>) -> Result<Self> {
        let mut end = 0;
        for rows in &encoded {
            let count = rows.values.dims2()?.0;
            if rows.start < end || rows.start + count > self.num_tokens() {
                candle_core::bail!(
                    "inconsistent batch: {count} encoded rows at {} of {}, after {end}",
                    rows.start,
                    self.num_tokens()
                );
            }
            end = rows.start + count;
        }
        self.encoded = encoded;
        Ok(self)
    }

    /// Rows of encoders' outputs.
    pub fn encoded(&self) -> &[EncodedRows] {
        &self.encoded
    }

    /// `embeddings` `[tokens, hidden_size]` of the tokens, with those of the encoders in their places.
    pub fn place_encoded(&self, embeddings: Tensor) -> Result<Tensor> {
        place_rows(embeddings, &self.encoded)
    }

    /// `hidden` `[tokens, hidden_size]` after decoder layer `layer`, with what the encoders add there.
    pub fn add_deepstack(&self, hidden: Tensor, layer: usize) -> Result<Tensor> {
        let (tokens, hidden_size) = hidden.dims2()?;
        let from = (layer + 1) * hidden_size;
        let adds = |rows: &&EncodedRows| {
            rows.values
                .dim(1)
                .is_ok_and(|width| width >= from + hidden_size)
        };
        if !self.encoded.iter().any(|rows| adds(&rows)) {
            return Ok(hidden);
        }
        let mut addend = Vec::new();
        let mut end = 0;
        let zeros = |rows| Tensor::zeros((rows, hidden_size), hidden.dtype(), hidden.device());
        for rows in self.encoded.iter().filter(adds) {
            if rows.start > end {
                addend.push(zeros(rows.start - end)?);
            }
            let values = rows.values.narrow(1, from, hidden_size)?;
            end = rows.start + values.dim(0)?;
            addend.push(values.to_dtype(hidden.dtype())?);
        }
        if end < tokens {
            addend.push(zeros(tokens - end)?);
        }
        hidden + Tensor::cat(&addend, 0)?
    }

    /// Token ids `[tokens]`, u32.
    pub fn token_ids(&self) -> &Tensor {
        &self.token_ids
    }

    /// Number of new tokens.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The sequences in order.
    pub fn sequences(&self) -> &[SequenceSlice] {
        &self.sequences
    }

    /// Cache slot of each new token (`block * block_size + offset`), `[tokens]` on the model's device.
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
