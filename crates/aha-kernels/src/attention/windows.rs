//! Attention among the tokens of windows of one size, with relative positions and masks.

use super::call::{Bias, Call, Output, Places, Rows, Seen, Sequence};
use super::task::KEYS;
use crate::error::{check_len, checked_mul};
use crate::{InstructionSet, KernelError, instruction_set};

/// Attention of each token over its window, as in Swin transformers (arXiv 2103.14030): a number for each head and each
/// pair of places in a window is added to the scaled score, and one that depends on the window.
///
/// The tokens of all windows lie end to end. Like [`RaggedAttention`](crate::RaggedAttention), a window has the same
/// bits alone and in any company.
#[derive(Debug, Clone, Copy)]
pub struct WindowAttention<'a> {
    /// Heads of queries, keys and values.
    pub num_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Factor of the scores before anything is added, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Tokens of a window.
    pub len: usize,
    /// What is added to every window's scores, `[num_heads, len, len]`: head, query, key.
    pub bias: &'a [f32],
    /// What is added to the scores of all heads, `[masks, len, len]`.
    pub masks: &'a [f32],
    /// For each window, which of `masks` is its own.
    pub mask_of: &'a [u32],
}

/// What is added to the scores of windows.
#[derive(Clone, Copy)]
pub(super) struct WindowBias<'a> {
    heads: &'a [f32],
    masks: &'a [f32],
    mask_of: &'a [u32],
    len: usize,
    /// The inverse of the scores' factor, which comes behind the sum.
    per_scale: f32,
}

impl WindowBias<'_> {
    /// Writes what keys `tile..end` get from the query at `position` of its window, which is row `token` of the call.
    pub(super) fn addends(
        &self,
        (token, head, position): (usize, usize, usize),
        (tile, end): (usize, usize),
        addends: &mut [f32; KEYS],
    ) {
        let pairs = self.len * self.len;
        let mask = self.mask_of[token / self.len] as usize;
        let keys = |table: usize| table * pairs + position * self.len + tile;
        let by_head = &self.heads[keys(head)..][..end - tile];
        let mask = &self.masks[keys(mask)..][..end - tile];
        for (addend, (by_head, mask)) in addends.iter_mut().zip(by_head.iter().zip(mask)) {
            *addend = (by_head + mask) * self.per_scale;
        }
    }
}

impl WindowAttention<'_> {
    /// Computes the attention of all tokens.
    ///
    /// `q`, `k` and `v` have rows of `num_heads * head_dim` values, a row a token; `out` is
    /// `[windows * len, num_heads * head_dim]`.
    ///
    /// # Errors
    /// When a slice does not fit the shapes, or a window names a mask that is not there.
    pub fn forward(
        &self,
        q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), q, k, v, out)
    }

    /// [`WindowAttention::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As [`WindowAttention::forward`], and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        self.check(q, k, v, out)?;
        let sequence = |window: usize| Sequence {
            query_start: window * self.len,
            query_len: self.len,
            context_len: self.len,
            places: Places::Rows {
                k,
                v,
                start: window * self.len,
            },
            seen: Seen::All,
        };
        Call {
            set,
            num_heads: self.num_heads,
            group: 1,
            head_dim: self.head_dim,
            scale: self.scale,
            num_sequences: self.mask_of.len(),
            sequence: &sequence,
            q,
            rotation: None,
            new: None,
            bias: Some(Bias::Windows(WindowBias {
                heads: self.bias,
                masks: self.masks,
                mask_of: self.mask_of,
                len: self.len,
                per_scale: 1.0 / self.scale,
            })),
            out: Output::new(out),
        }
        .run();
        Ok(())
    }

    fn check(&self, q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, out: &[f32]) -> Result<(), KernelError> {
        for (argument, value) in [
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
            ("len", self.len),
        ] {
            if value == 0 {
                return Err(KernelError::Zero { argument });
            }
        }
        let pairs = checked_mul(self.len, self.len)?;
        check_len("bias", checked_mul(self.num_heads, pairs)?, self.bias.len())?;
        if !self.masks.len().is_multiple_of(pairs) {
            return Err(KernelError::NotMultiple {
                argument: "length of masks",
                value: self.masks.len(),
                of: pairs,
            });
        }
        let masks = self.masks.len() / pairs;
        if let Some(mask) = self.mask_of.iter().find(|mask| **mask as usize >= masks) {
            return Err(KernelError::OutOfRange {
                argument: "mask of a window",
                value: *mask as usize,
                maximum: masks.saturating_sub(1),
            });
        }
        let tokens = checked_mul(self.mask_of.len(), self.len)?;
        let width = checked_mul(self.num_heads, self.head_dim)?;
        check_len("out", checked_mul(tokens, width)?, out.len())?;
        for (argument, rows) in [("q", q), ("k", k), ("v", v)] {
            rows.check(argument, tokens, width)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    fn rows(values: &[f32], width: usize) -> Rows<'_> {
        Rows {
            values,
            stride: width,
        }
    }

    #[test]
    fn it_agrees_with_double_precision_and_a_window_is_the_same_in_any_company() {
        // Shorter than a tile of keys, longer than one, and the size of Swin transformers.
        for (len, num_heads, head_dim, windows) in [(9, 2, 5, 3), (49, 3, 8, 4), (144, 2, 32, 3)] {
            let (width, pairs) = (num_heads * head_dim, len * len);
            let tokens = windows * len;
            let [q, k, v] = [1, 2, 3].map(|seed| values(tokens * width, seed));
            let (bias, mut masks) = (values(num_heads * pairs, 4), values(2 * pairs, 5));
            masks
                .iter_mut()
                .skip(pairs)
                .step_by(3)
                .for_each(|mask| *mask = -100.0);
            let mask_of: Vec<u32> = (0..windows as u32).map(|window| window % 2).collect();
            let attention = WindowAttention {
                num_heads,
                head_dim,
                scale: 0.3,
                len,
                bias: &bias,
                masks: &masks,
                mask_of: &mask_of,
            };
            for set in InstructionSet::available() {
                let mut out = vec![f32::NAN; tokens * width];
                let [q, k, v] = [&q, &k, &v].map(|x| rows(x, width));
                attention.forward_on(set, q, k, v, &mut out).unwrap();
                let at = |x: Rows<'_>, token: usize, head: usize| {
                    x.values[token * width + head * head_dim..][..head_dim].to_vec()
                };
                for token in 0..tokens {
                    let (window, query) = (token / len, token % len);
                    for head in 0..num_heads {
                        let scores: Vec<f64> = (0..len)
                            .map(|key| {
                                let (a, b) = (at(q, token, head), at(k, window * len + key, head));
                                let dot: f64 = a
                                    .iter()
                                    .zip(&b)
                                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                                    .sum();
                                let pair = query * len + key;
                                dot * f64::from(0.3f32)
                                    + f64::from(bias[head * pairs + pair])
                                    + f64::from(masks[mask_of[window] as usize * pairs + pair])
                            })
                            .collect();
                        let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                        for (dim, got) in at(rows(&out, width), token, head).iter().enumerate() {
                            let want: f64 = (0..len)
                                .map(|key| {
                                    let share = (scores[key] - largest).exp() / sum;
                                    share * f64::from(at(v, window * len + key, head)[dim])
                                })
                                .sum();
                            assert!((f64::from(*got) - want).abs() < 2e-5, "{got} {want}");
                        }
                    }
                }
                let alone = WindowAttention {
                    mask_of: &mask_of[1..2],
                    ..attention
                };
                let mut own = vec![f32::NAN; len * width];
                let [q, k, v] = [q, k, v].map(|x| rows(&x.values[len * width..], width));
                alone.forward_on(set, q, k, v, &mut own).unwrap();
                assert_eq!(own, out[len * width..2 * len * width]);
            }
        }
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let x = values(2 * 4 * 6, 1);
        let attention = WindowAttention {
            num_heads: 2,
            head_dim: 3,
            scale: 1.0,
            len: 4,
            bias: &[0.0; 32],
            masks: &[0.0; 16],
            mask_of: &[0, 0],
        };
        let run = |attention: WindowAttention<'_>| {
            let mut out = vec![0.0; 48];
            attention.forward(rows(&x, 6), rows(&x, 6), rows(&x, 6), &mut out)
        };
        assert_eq!(run(attention), Ok(()));
        let wrong = [
            WindowAttention {
                len: 0,
                ..attention
            },
            WindowAttention {
                bias: &[0.0; 31],
                ..attention
            },
            WindowAttention {
                masks: &[0.0; 17],
                ..attention
            },
            WindowAttention {
                mask_of: &[0, 1],
                ..attention
            },
            WindowAttention {
                mask_of: &[0, 0, 0],
                ..attention
            },
            WindowAttention {
                num_heads: 3,
                ..attention
            },
        ];
        for attention in wrong {
            assert!(run(attention).is_err(), "{attention:?}");
        }
    }
}
