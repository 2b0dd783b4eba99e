//! A step's input: the new tokens of all scheduled sequences laid end to end, without padding.

use crate::cpu::with_f32;
use candle_core::{Device, Result, Tensor};
use std::sync::{Arc, OnceLock};

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
    token_ids: Vec<u32>,
    sequences: Vec<SequenceSlice>,
    logit_rows: Vec<u32>,
    block_size: usize,
    device: Device,
    /// Made when it is asked for: the CPU's kernels find slots by themselves.
    slot_index: OnceLock<Tensor>,
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
        let mut rows = 0;
        for sequence in &sequences {
            if sequence.query_start != rows
                || sequence.query_len == 0
                || sequence.query_len > sequence.context_len
                || sequence.context_len > sequence.blocks.len() * block_size
            {
                candle_core::bail!("inconsistent batch: {sequence:?} with {rows} rows before");
            }
            rows += sequence.query_len;
        }
        if rows != token_ids.len() || logit_rows.iter().any(|row| *row as usize >= rows) {
            candle_core::bail!(
                "inconsistent batch: {} tokens, {rows} rows, logits of rows {logit_rows:?}",
                token_ids.len()
            );
        }
        Ok(Self {
            token_ids: token_ids.to_vec(),
            logit_rows: logit_rows.to_vec(),
            sequences,
            block_size,
            device: device.clone(),
            slot_index: OnceLock::new(),
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

    /// The same by rows on the CPU: `hidden` is `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// When the encoders' rows are narrower, or not f32.
    pub fn place_encoded_rows(&self, hidden: &mut [f32], hidden_size: usize) -> Result<()> {
        self.for_encoded(0, hidden, hidden_size, |row, values| {
            row.copy_from_slice(values);
        })
    }

    /// [`add_deepstack`](Self::add_deepstack) by rows on the CPU.
    ///
    /// # Errors
    /// When the encoders' rows are not f32.
    pub fn add_deepstack_rows(
        &self,
        hidden: &mut [f32],
        hidden_size: usize,
        layer: usize,
    ) -> Result<()> {
        self.for_encoded(
            (layer + 1) * hidden_size,
            hidden,
            hidden_size,
            |row, values| {
                for (hidden, value) in row.iter_mut().zip(values) {
                    *hidden += value;
                }
            },
        )
    }

    /// Whether the encoders add something after decoder layer `layer`.
    pub fn has_deepstack(&self, hidden_size: usize, layer: usize) -> bool {
        let least = (layer + 2) * hidden_size;
        let width = |rows: &EncodedRows| rows.values.dim(1).unwrap_or(0);
        self.encoded.iter().any(|rows| width(rows) >= least)
    }

    /// Calls `join` with each row of `hidden` that an encoder computed and with what the encoder has for it, of which
    /// value `from` is the first; encoders' rows that end before are passed over.
    fn for_encoded(
        &self,
        from: usize,
        hidden: &mut [f32],
        hidden_size: usize,
        join: impl Fn(&mut [f32], &[f32]),
    ) -> Result<()> {
        for rows in &self.encoded {
            let (count, width) = rows.values.dims2()?;
            if width < from + hidden_size {
                if from == 0 {
                    candle_core::bail!("encoded rows of {width} values, {hidden_size} are needed");
                }
                continue;
            }
            let Some(hidden) = hidden.get_mut(rows.start * hidden_size..) else {
                candle_core::bail!("encoded rows begin behind the batch");
            };
            let values = rows.values.narrow(1, from, hidden_size)?.contiguous()?;
            let hidden = hidden.chunks_exact_mut(hidden_size).take(count);
            with_f32(&values, |values| {
                for (row, values) in hidden.zip(values.chunks_exact(hidden_size)) {
                    join(row, values);
                }
            })?;
        }
        Ok(())
    }

    /// Token ids in order.
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// Token ids `[tokens]`, u32, on the model's device.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn token_tensor(&self) -> Result<Tensor> {
        Tensor::new(self.token_ids.as_slice(), &self.device)
    }

    /// Number of new tokens.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// The sequences in order.
    pub fn sequences(&self) -> &[SequenceSlice] {
        &self.sequences
    }

    /// Cache slot of each new token (`block * block_size + offset`), `[tokens]` on the model's device.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn slot_index(&self) -> Result<&Tensor> {
        if let Some(index) = self.slot_index.get() {
            return Ok(index);
        }
        let slot = |sequence: &SequenceSlice, position: usize| {
            let block = sequence.blocks[position / self.block_size] as usize;
            (block * self.block_size + position % self.block_size) as u32
        };
        let slots: Vec<u32> = (self.sequences.iter())
            .flat_map(|sequence| {
                sequence
                    .positions()
                    .map(move |position| slot(sequence, position))
            })
            .collect();
        let index = Tensor::new(slots, &self.device)?;
        Ok(self.slot_index.get_or_init(|| index))
    }

    /// Rows whose logits are asked for.
    pub fn logit_rows(&self) -> &[u32] {
        &self.logit_rows
    }

    /// Tokens in a cache block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Rows of `hidden` `[tokens, hidden_size]` whose logits are asked for.
    pub fn select_logit_rows(&self, hidden: &Tensor) -> Result<Tensor> {
        let rows = Tensor::new(self.logit_rows.as_slice(), hidden.device())?;
        hidden.index_select(&rows, 0)
    }
}
