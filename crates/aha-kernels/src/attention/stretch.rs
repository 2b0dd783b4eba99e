//! The context of a cached sequence is taken in stretches of positions, each with a running softmax of its own, which are
//! joined in their order. So threads can share a long context that has few heads, and no bit of the result depends on
//! whether they do.

use std::ops::Range;

use super::call::Output;
use super::task::KEYS;
use crate::pack::PANEL;

/// Positions of a stretch.
pub(super) const STRETCH: usize = 8 * KEYS;

/// The running softmax of a row: the largest score so far and the sum of `exp(score - largest)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Running {
    pub(super) largest: f32,
    pub(super) sum: f32,
}

/// What becomes of the sums of two neighbouring stretches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Join {
    /// The second has nothing to add.
    First,
    /// The first has nothing yet.
    Second,
    /// The sum of both, by these factors.
    Both([f32; 2]),
}

impl Running {
    /// No score yet.
    pub(super) const NOTHING: Self = Self {
        largest: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// Goes on with the stretch that follows.
    pub(super) fn join(&mut self, next: Self) -> Join {
        if next == Self::NOTHING {
            return Join::First;
        }
        if *self == Self::NOTHING {
            *self = next;
            return Join::Second;
        }
        // Of NaN and a number this is the number: NaN is in the sum.
        let largest = self.largest.max(next.largest);
        let factor = |part: Self| {
            if part.largest == largest {
                1.0
            } else {
                (part.largest - largest).exp()
            }
        };
        let factors = [factor(*self), factor(next)];
        *self = Self {
            largest,
            sum: self.sum * factors[0] + next.sum * factors[1],
        };
        Join::Both(factors)
    }
}

impl Join {
    /// Does so with the weighted values of both.
    pub(super) fn apply(self, first: &mut [f32], second: &[f32]) {
        match self {
            Self::First => {}
            Self::Second => first.copy_from_slice(second),
            Self::Both(factors) => {
                for (first, second) in first.iter_mut().zip(second) {
                    *first = *first * factors[0] + second * factors[1];
                }
            }
        }
    }
}

/// What tasks that share contexts leave behind: of each stretch and query head the softmax and the weighted values.
#[derive(Clone, Copy)]
pub(super) struct Partials {
    out: Output,
    num_heads: usize,
    head_dim: usize,
}

impl Partials {
    /// Values that a stretch takes.
    pub(super) fn stretch_len(num_heads: usize, head_dim: usize) -> usize {
        num_heads * Self::record_len(head_dim)
    }

    fn record_len(head_dim: usize) -> usize {
        head_dim + 2
    }

    /// In memory for some stretches, see [`stretch_len`](Self::stretch_len).
    pub(super) fn new(memory: &mut [f32], num_heads: usize, head_dim: usize) -> Self {
        Self {
            out: Output::new(memory),
            num_heads,
            head_dim,
        }
    }

    /// # Safety
    /// No other piece of this stretch and head may be alive.
    unsafe fn record<'a>(self, stretch: usize, query_head: usize) -> &'a mut [f32] {
        let len = Self::record_len(self.head_dim);
        // SAFETY: the caller's promise.
        unsafe {
            self.out
                .piece((stretch * self.num_heads + query_head) * len, len)
        }
    }

    /// Keeps what a stretch gave a head: its softmax, and its weighted values panel by panel.
    ///
    /// # Safety
    /// Each stretch and head belongs to one task.
    pub(super) unsafe fn put<'a>(
        self,
        stretch: usize,
        query_head: usize,
        running: Running,
        panels: impl Iterator<Item = &'a [f32; PANEL]>,
    ) {
        // SAFETY: the caller's promise.
        let record = unsafe { self.record(stretch, query_head) };
        let (head, values) = record.split_at_mut(2);
        head.copy_from_slice(&[running.largest, running.sum]);
        for (values, panel) in values.chunks_mut(PANEL).zip(panels) {
            values.copy_from_slice(&panel[..values.len()]);
        }
    }

    /// Joins the stretches of a head into `out`, a head's part of a row.
    ///
    /// # Safety
    /// All tasks must be done.
    pub(super) unsafe fn join(self, stretches: Range<usize>, query_head: usize, out: &mut [f32]) {
        let mut total = Running::NOTHING;
        out.fill(0.0);
        for stretch in stretches {
            // SAFETY: the caller's promise.
            let record = unsafe { self.record(stretch, query_head) };
            let (head, values) = record.split_at(2);
            let next = Running {
                largest: head[0],
                sum: head[1],
            };
            total.join(next).apply(out, values);
        }
        let share = 1.0 / total.sum;
        out.iter_mut().for_each(|value| *value *= share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(largest: f32, sum: f32) -> Running {
        Running { largest, sum }
    }

    #[test]
    fn nothing_changes_nothing() {
        let some = running(2.0, 3.0);
        let mut total = Running::NOTHING;
        assert_eq!(total.join(Running::NOTHING), Join::First);
        assert_eq!(total.join(some), Join::Second);
        assert_eq!(total.join(Running::NOTHING), Join::First);
        assert_eq!(total, some);
    }

    #[test]
    fn both_sides_are_measured_by_the_larger_score() {
        let mut total = running(1.0, 4.0);
        let half = (-1.0_f32).exp();
        assert_eq!(total.join(running(2.0, 3.0)), Join::Both([half, 1.0]));
        assert_eq!(total, running(2.0, 4.0 * half + 3.0));
        assert_eq!(total.join(running(1.0, 1.0)), Join::Both([1.0, half]));
        let mut values = [1.0, 2.0];
        Join::Both([0.5, 2.0]).apply(&mut values, &[1.0, 1.0]);
        assert_eq!(values, [2.5, 3.0]);
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for (first, second) in [
            (running(f32::NEG_INFINITY, f32::NAN), running(1.0, 2.0)),
            (running(1.0, 2.0), running(f32::NEG_INFINITY, f32::NAN)),
            (running(1.0, f32::NAN), running(3.0, 2.0)),
        ] {
            let mut total = first;
            let join = total.join(second);
            assert!(total.sum.is_nan(), "{first:?} {second:?} {join:?}");
        }
    }
}
