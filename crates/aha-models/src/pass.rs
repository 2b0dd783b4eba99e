//! A decoder over whole sequences, of which nothing is kept: what embedders and rerankers on decoders do.

use crate::decoder::Decoder;
use aha_engine::{Generator, PooledBatch};
use aha_nn::batch::{Batch, SequenceSlice};
use aha_nn::cache::Cache;
use candle_core::{Result, Tensor};

/// Sequences share whole blocks only.
const BLOCK_SIZE: usize = Cache::PAGE;

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
    let mut cache = Cache::new(&spec, layout.num_blocks as usize, BLOCK_SIZE, 0, device)?;
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

/// Tokens of whole blocks that all sequences begin with; each keeps at least one of its own.
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
    common.min(first.len().saturating_sub(1)) / BLOCK_SIZE * BLOCK_SIZE
}

/// A batch in the making.
#[derive(Default)]
struct Layout {
    token_ids: Vec<u32>,
    slices: Vec<SequenceSlice>,
    last_rows: Vec<u32>,
    num_blocks: u32,
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

    /// Adds tokens behind those that fill `blocks`, and returns the blocks of all.
    fn push(&mut self, tokens: &[u32], mut blocks: Vec<u32>) -> Vec<u32> {
        let query_start = self.token_ids.len();
        let context_len = blocks.len() * BLOCK_SIZE + tokens.len();
        self.token_ids.extend_from_slice(tokens);
        let end = self.num_blocks + tokens.len().div_ceil(BLOCK_SIZE) as u32;
        blocks.extend(self.num_blocks..end);
        self.num_blocks = end;
        self.slices.push(SequenceSlice {
            query_start,
            query_len: tokens.len(),
            context_len,
            prompt_len: context_len,
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
    fn a_beginning_of_whole_blocks_is_shared_by_all() {
        let long: Vec<u32> = (0..40).collect();
        let other: Vec<u32> = (0..35).chain([99, 98]).collect();
        assert_eq!(common_beginning(&[&long, &other]), 32);
        assert_eq!(common_beginning(&[&long]), 0);
        assert_eq!(common_beginning(&[]), 0);
        assert_eq!(common_beginning(&[&long, &long[1..]]), 0);
        // Equal sequences keep their last token, and so does one that is another's beginning.
        assert_eq!(common_beginning(&[&long[..33], &long[..33]]), 32);
        assert_eq!(common_beginning(&[&long[..32], &long[..32]]), 16);
        assert_eq!(common_beginning(&[&long, &long[..32]]), 16);
        assert_eq!(common_beginning(&[&long[..17], &long]), 16);
        assert_eq!(common_beginning(&[&long, &long[..16]]), 0);
    }

    #[test]
    fn sequences_point_at_the_blocks_of_their_beginning() {
        let mut layout = Layout::default();
        let long: Vec<u32> = (0..40).collect();
        layout.add(&[&[5, 6]], 0);
        layout.add(&[&long[..18], &long], 16);
        assert_eq!(layout.token_ids.len(), 2 + 16 + 2 + 24);
        assert_eq!(layout.last_rows, [1, 19, 43]);
        let blocks: Vec<&[u32]> = layout.slices.iter().map(|s| s.blocks.as_slice()).collect();
        assert_eq!(blocks, [&[0_u32][..], &[1], &[1, 2], &[1, 3, 4]]);
        assert_eq!(layout.num_blocks, 5);
        assert_eq!(layout.slices[3].positions(), 16..40);
    }
}
