//! Layers that keep a state of fixed size for each sequence instead of keys and values.

mod delta;
mod short_conv;

pub use delta::GatedDelta;
pub use short_conv::ShortConv;

use crate::KernelError;
use crate::buffer::with_indices;
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

/// Checks that the sequences lie end to end over all `tokens`, that each has a state of `size` values among `states`, in
/// the order of the slots, and that no two share one; then zeroes the states of beginners.
fn begin(
    sequences: &[RecurrentSequence],
    tokens: usize,
    states: &mut [f32],
    size: usize,
) -> Result<(), KernelError> {
    let mut end = 0;
    for sequence in sequences {
        check_len("rows before a sequence", end, sequence.query_start)?;
        end += sequence.query_len;
    }
    check_len("rows of the sequences", tokens, end)?;
    with_indices(|slots| {
        slots.extend(sequences.iter().map(|sequence| sequence.slot));
        slots.sort_unstable();
        let mut next_slot = 0;
        for &slot in slots.iter() {
            let end = slot.checked_add(1).and_then(|end| end.checked_mul(size));
            if slot < next_slot || end.is_none_or(|end| end > states.len()) {
                return Err(KernelError::Slot { slot });
            }
            next_slot = slot + 1;
        }
        Ok(())
    })?;
    for sequence in sequences.iter().filter(|sequence| sequence.fresh) {
        states[sequence.slot * size..][..size].fill(0.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_beginners_are_zeroed_and_none_is_shared() {
        let sequence = |query_start, query_len, slot, fresh| RecurrentSequence {
            query_start,
            query_len,
            slot,
            fresh,
        };
        let mut states: Vec<f32> = (0..8).map(|value| value as f32).collect();
        begin(
            &[sequence(0, 2, 3, false), sequence(2, 1, 1, true)],
            3,
            &mut states,
            2,
        )
        .unwrap();
        assert_eq!(states, [0.0, 1.0, 0.0, 0.0, 4.0, 5.0, 6.0, 7.0]);
        for wrong in [
            [sequence(0, 2, 1, false), sequence(2, 1, 1, true)],
            [sequence(0, 2, 1, false), sequence(2, 1, 4, true)],
            [sequence(0, 2, 1, false), sequence(2, 1, usize::MAX, true)],
            [sequence(0, 2, 1, false), sequence(1, 2, 0, true)],
            [sequence(0, 2, 1, false), sequence(2, 2, 0, true)],
        ] {
            assert!(begin(&wrong, 3, &mut states, 2).is_err(), "{wrong:?}");
        }
    }
}
