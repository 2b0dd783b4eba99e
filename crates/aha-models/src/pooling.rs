//! One vector for each sequence, out of the hidden states of its tokens.

use aha_nn::ragged::SequenceBounds;
use candle_core::{Result, Tensor};

/// Which tokens a sequence's vector comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first one (`cls`).
    First,
    /// The last one.
    Last,
}

impl Pooling {
    /// The pooling that llama.cpp's number in `<architecture>.pooling_type` stands for.
    pub fn from_gguf(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Mean),
            2 => Some(Self::First),
            3 => Some(Self::Last),
            _ => None,
        }
    }

    /// `hidden` is `[tokens, hidden_size]`; the result `[sequences, hidden_size]`. No sequence may be empty.
    pub fn forward(self, hidden: &Tensor, bounds: &SequenceBounds) -> Result<Tensor> {
        let rows = |row: fn(std::ops::Range<usize>) -> usize| {
            let rows: Vec<u32> = bounds.ranges().map(|range| row(range) as u32).collect();
            hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)
        };
        match self {
            Self::First => rows(|range| range.start),
            Self::Last => rows(|range| range.end.saturating_sub(1)),
            Self::Mean => {
                let means = bounds
                    .ranges()
                    .map(|range| hidden.narrow(0, range.start, range.len())?.mean_keepdim(0))
                    .collect::<Result<Vec<_>>>()?;
                Tensor::cat(&means, 0)
            }
        }
    }
}
