//! Layers that keep a state of fixed size for each sequence instead of keys and values.

mod delta;
mod short_conv;

pub use delta::GatedDelta;
pub use short_conv::ShortConv;

use crate::KernelError;
use crate::error::check_len;

/// One sequence's share of a step of a recurrent layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecurrentSequence {
    /// First row of the sequence among the step's tokens.
    pub query_start: usize,
    /// Rows of the sequence in this step.
    pub query_len: usize,
    /// Where its state is kept.
    pub slot: usize,
    /// The sequence begins: whatever lies in the slot is not its state.
    pub fresh: bool,
}

/// Checks that the sequences lie end to end over all `tokens` and that no two share a slot; then lends each sequence
/// its state of `size` values, in the order of the sequences, with those of beginners zeroed.
fn lend_states<'s>(
    sequences: &[RecurrentSequence],
    tokens: usize,
    states: &'s mut [f32],
    size: usize,
) -> Result<Vec<&'s mut [f32]>, KernelError> {
    let mut end = 0;
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    for sequence in sequences {
        check_len("rows before a sequence", end, sequence.query_start)?;
        end += sequence.query_len;
    }
    check_len("rows of the sequences", tokens, end)?;
    order.sort_unstable_by_key(|&index| sequences[index].slot);
    let mut lent: Vec<Option<&mut [f32]>> = sequences.iter().map(|_| None).collect();
    let mut rest = states;
    let mut next_slot = 0;
    for index in order {
        let slot = sequences[index].slot;
        let skipped = slot
            .checked_sub(next_slot)
            .and_then(|gap| gap.checked_mul(size));
        let taken = skipped.and_then(|skipped| {
            let (_, from) = std::mem::take(&mut rest).split_at_mut_checked(skipped)?;
            from.split_at_mut_checked(size)
        });
        let Some((state, after)) = taken else {
            return Err(KernelError::Slot { slot });
        };
        if sequences[index].fresh {
            state.fill(0.0);
        }
        lent[index] = Some(state);
        rest = after;
        next_slot = slot + 1;
    }
    Ok(lent.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_lent_in_order_and_never_twice() {
        let sequence = |query_start, query_len, slot, fresh| RecurrentSequence {
            query_start,
            query_len,
            slot,
            fresh,
        };
        let mut states: Vec<f32> = (0..8).map(|value| value as f32).collect();
        let lent = lend_states(
            &[sequence(0, 2, 3, false), sequence(2, 1, 1, true)],
            3,
            &mut states,
            2,
        )
        .unwrap();
        assert_eq!(lent[0], [6.0, 7.0]);
        assert_eq!(lent[1], [0.0, 0.0]);
        for wrong in [
            [sequence(0, 2, 1, false), sequence(2, 1, 1, true)],
            [sequence(0, 2, 1, false), sequence(2, 1, 4, true)],
            [sequence(0, 2, 1, false), sequence(1, 2, 0, true)],
            [sequence(0, 2, 1, false), sequence(2, 2, 0, true)],
        ] {
            assert!(lend_states(&wrong, 3, &mut states, 2).is_err(), "{wrong:?}");
        }
    }
}
