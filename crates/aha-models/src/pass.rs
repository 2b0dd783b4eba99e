//! A decoder over whole sequences, of which nothing is kept: what embedders and rerankers on decoders do.

use crate::decoder::Decoder;
use aha_engine::{Generator, PooledBatch};
use aha_nn::batch::{Batch, SequenceSlice};
use aha_nn::cache::Cache;
use candle_core::{Result, Tensor};

/// Shorter common beginnings are computed with each sequence: a sequence of its own costs more.
const SHORTEST_SHARED: usize = 8;
/// Blocks of a single token let sequences part after any one.
const BLOCK_SIZE: usize = 1;

/// Hidden states after the final norm of each sequence's last token, `[sequences, hidden_size]`.
///
/// What the sequences of one request begin with (an instruction, a query) is computed once: theirs are then the same
/// cache blocks. All layers use one layer's cache in turn, since no later pass will ask for it; memory stays at what a
/// single layer needs, and a sequence's result has the same bits alone and in any company.
pub fn last_hidden(decoder: &Decoder, batch: &PooledBatch<'_>) -> Result<Tensor> {
    let mut spec = decoder.cache_spec();
    let shareable = |sequence: &[u32]| {
        spec.shareable_prompt_len
            .is_none_or(|longest| sequence.len() <= longest)
    };
    let mut layout = Layout::default();
    for request in &batch.requests {
        let sequences = &batch.sequences[request.clone()];
        let shared = if sequences.iter().all(|sequence| shareable(sequence)) {
            common_beginning(sequences)
        } else {
            0
        };
        layout.add(sequences, shared);
    }
    spec.layers.truncate(1);
    let device = decoder.device();
    let num_slots = layout.token_ids.len();
    let mut cache = Cache::new(&spec, num_slots, BLOCK_SIZE, 0, device)?;
    let Some(scratch) = cache.layers_mut().first_mut() else {
        candle_core::bail!("the decoder has no layers");
    };
    let batch = Batch::new(
        &layout.token_ids,
        layout.slices,
        &layout.last_rows,
        BLOCK_SIZE,
        device,
    )?;
    let rotation = decoder.rotation(&batch)?;
    let mut hidden = decoder.embed(&batch)?;
    for layer in decoder.layers() {
        hidden = layer.forward(&hidden, &rotation, &batch, scratch)?;
    }
    decoder.final_norm(&batch.select_logit_rows(&hidden)?)
}

/// Tokens that all sequences begin with, where sharing them pays; each keeps at least one of its own.
fn common_beginning(sequences: &[&[u32]]) -> usize {
    let Some((first, others)) = sequences
        .split_first()
        .filter(|(_, others)| !others.is_empty())
    else {
        return 0;
    };
    let common = others.iter().fold(first.len(), |common, other| {
        let same = first.iter().zip(*other).take_while(|(a, b)| a == b);
        common.min(same.count()).min(other.len().saturating_sub(1))
    });
    let common = common.min(first.len().saturating_sub(1));
    if common < SHORTEST_SHARED { 0 } else { common }
}

/// A batch in the making. The slot of a token is its row.
#[derive(Default)]
struct Layout {
    token_ids: Vec<u32>,
    slices: Vec<SequenceSlice>,
    last_rows: Vec<u32>,
}

impl Layout {
    /// Adds one request's sequences, whose first `shared` tokens become a sequence of their own.
    fn add(&mut self, sequences: &[&[u32]], shared: usize) {
        let beginning = if shared > 0 {
            self.push(&sequences[0][..shared], Vec::new())
        } else {
            Vec::new()
        };
        for sequence in sequences {
            self.push(&sequence[shared..], beginning.clone());
            self.last_rows.push(self.token_ids.len() as u32 - 1);
        }
    }

    /// Adds tokens behind those of `blocks`, and returns the blocks of all.
    fn push(&mut self, tokens: &[u32], mut blocks: Vec<u32>) -> Vec<u32> {
        let start = self.token_ids.len();
        self.token_ids.extend_from_slice(tokens);
        blocks.extend(start as u32..self.token_ids.len() as u32);
        self.slices.push(SequenceSlice {
            query_start: start,
            query_len: tokens.len(),
            context_len: blocks.len(),
            prompt_len: blocks.len(),
            blocks: blocks.clone(),
            state_slot: 0,
            axes: None,
        });
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_shared_where_it_pays_and_somebody_shares_it() {
        let long: Vec<u32> = (0..20).collect();
        let other: Vec<u32> = (0..12).chain([99, 98]).collect();
        assert_eq!(common_beginning(&[&long, &other]), 12);
        assert_eq!(common_beginning(&[&long]), 0);
        assert_eq!(common_beginning(&[]), 0);
        assert_eq!(common_beginning(&[&long, &long[1..]]), 0);
        // Equal sequences keep their last token, and so does one that is another's beginning.
        assert_eq!(common_beginning(&[&long, &long]), 19);
        assert_eq!(common_beginning(&[&long, &long[..10]]), 9);
        assert_eq!(common_beginning(&[&long[..10], &long]), 9);
        assert_eq!(common_beginning(&[&long, &long[..8]]), 0);
    }

    #[test]
    fn sequences_point_at_the_blocks_of_their_beginning() {
        let mut layout = Layout::default();
        layout.add(&[&[5, 6]], 0);
        layout.add(&[&[1, 2, 3], &[1, 2, 4, 7]], 2);
        assert_eq!(layout.token_ids, [5, 6, 1, 2, 3, 4, 7]);
        assert_eq!(layout.last_rows, [1, 4, 6]);
        let blocks: Vec<&[u32]> = layout.slices.iter().map(|s| s.blocks.as_slice()).collect();
        assert_eq!(
            blocks,
            [&[0_u32, 1][..], &[2, 3], &[2, 3, 4], &[2, 3, 5, 6]]
        );
        assert_eq!(layout.slices[3].positions(), 2..4);
    }
}
