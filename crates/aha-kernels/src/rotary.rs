//! Rotary positions (arXiv 2104.09864) of attention heads, in one pass with the norm that some families
//! give each head.

use crate::attention::Rows;
use crate::buffer::{flat_mut, with_scratch};
use crate::elementwise::{PARALLEL_FROM, rms_norm_row};
use crate::error::{check_len, checked_mul};
use crate::pack::PANEL;
use crate::pool::for_each_stretch;
use crate::{InstructionSet, KernelError, instruction_set};

/// Values that a task takes at least.
const CHUNK: usize = 8192;

/// Rotates the heads of tokens: of each pair of values `(a, b)` it makes
/// `(a cos - b sin, a sin + b cos)`.
#[derive(Debug, Clone, Copy)]
pub struct HeadRotation<'a> {
    /// Heads of a token.
    pub num_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Pairs of a head; the values beyond the first `2 * half` pass unchanged.
    pub half: usize,
    /// `[tokens, half]`.
    pub cos: &'a [f32],
    /// `[tokens, half]`.
    pub sin: &'a [f32],
    /// Pairs are neighbours; otherwise value `i` goes with value `i + half`.
    pub interleaved: bool,
    /// The norm of each head, where there is one.
    pub norm: Option<HeadNorm<'a>>,
}

/// A root-mean-square norm over each head.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a> {
    /// `[head_dim]`.
    pub weight: &'a [f32],
    /// Added to the mean of the squares.
    pub epsilon: f32,
    /// Whether it follows the rotation instead of preceding it.
    pub after_rotation: bool,
}

impl HeadRotation<'_> {
    /// Rotates rows `x` of `num_heads * head_dim` values to `out` `[tokens, num_heads * head_dim]`.
    ///
    /// # Errors
    /// When a slice does not fit the shapes, or a size is zero.
    pub fn forward(&self, x: Rows<'_>, out: &mut [f32]) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), x, out)
    }

    /// [`HeadRotation::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        x: Rows<'_>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        let (tokens, width) = (self.check()?, self.num_heads * self.head_dim);
        x.check("x", tokens, width)?;
        check_len("out", checked_mul(tokens, width)?, out.len())?;
        let size = CHUNK.div_ceil(width) * width;
        for_each_stretch(out, PARALLEL_FROM, size, |start, out| {
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let token = start / width + row;
                let x = x.values[token * x.stride..].chunks_exact(self.head_dim);
                for (x, out) in x.zip(out.chunks_exact_mut(self.head_dim)) {
                    self.turn(set, token, x, out);
                }
            }
        });
        Ok(())
    }

    /// The number of tokens, or what does not fit.
    pub(crate) fn check(&self) -> Result<usize, KernelError> {
        if self.num_heads == 0 || self.head_dim == 0 || self.half == 0 {
            return Err(KernelError::Zero {
                argument: "num_heads, head_dim and half",
            });
        }
        if self.half > self.head_dim / 2 {
            return Err(KernelError::OutOfRange {
                argument: "half",
                value: self.half,
                maximum: self.head_dim / 2,
            });
        }
        checked_mul(self.num_heads, self.head_dim)?;
        let tokens = self.cos.len() / self.half;
        check_len("cos", checked_mul(tokens, self.half)?, self.cos.len())?;
        check_len("sin", self.cos.len(), self.sin.len())?;
        if let Some(norm) = &self.norm {
            check_len("weight of the norm", self.head_dim, norm.weight.len())?;
        }
        Ok(tokens)
    }

    /// Rotates a head of a token; shapes were checked, and the instruction set is present.
    pub(crate) fn turn(&self, set: InstructionSet, token: usize, x: &[f32], out: &mut [f32]) {
        let angles = token * self.half..(token + 1) * self.half;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        match &self.norm {
            Some(norm) if norm.after_rotation => {
                with_scratch(self.head_dim.div_ceil(PANEL), |scratch| {
                    let rotated = &mut flat_mut(scratch)[..self.head_dim];
                    rotated.copy_from_slice(x);
                    self.head(set, cos, sin, rotated);
                    rms_norm_row(set, rotated, norm.weight, norm.epsilon, out);
                });
            }
            Some(norm) => {
                rms_norm_row(set, x, norm.weight, norm.epsilon, out);
                self.head(set, cos, sin, out);
            }
            None => {
                out.copy_from_slice(x);
                self.head(set, cos, sin, out);
            }
        }
    }

    /// Rotates a head in its place.
    fn head(&self, set: InstructionSet, cos: &[f32], sin: &[f32], x: &mut [f32]) {
        let x = &mut x[..2 * self.half];
        match set {
            #[cfg(target_arch = "x86_64")]
            set if set.has_avx2() => {
                // SAFETY: the instruction set is present (required by the caller).
                unsafe { rotate_avx2(self.interleaved, cos, sin, x) }
            }
            _ => rotate(self.interleaved, cos, sin, x),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn rotate_avx2(interleaved: bool, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    rotate(interleaved, cos, sin, x);
}

/// Plain arithmetic that compilers vectorise: every body gives the same bits.
#[inline(always)]
fn rotate(interleaved: bool, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let angles = cos.iter().zip(sin);
    if interleaved {
        for ([a, b], (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    } else {
        let (first, second) = x.split_at_mut(cos.len());
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;
    use crate::rms_norm_on;

    fn rows(values: &[f32], stride: usize) -> Rows<'_> {
        Rows { values, stride }
    }

    #[test]
    fn rows_may_be_parts_of_longer_rows() {
        let (cos, sin) = angles(3, 2);
        let x = values(3 * 10, 5);
        let rotation = HeadRotation {
            num_heads: 1,
            head_dim: 4,
            half: 2,
            cos: &cos,
            sin: &sin,
            interleaved: false,
            norm: None,
        };
        let parts: Vec<f32> = x.chunks(10).flat_map(|row| row[3..7].to_vec()).collect();
        let (mut out, mut want) = ([0.0; 12], [0.0; 12]);
        rotation.forward(rows(&x[3..], 10), &mut out).unwrap();
        rotation.forward(rows(&parts, 4), &mut want).unwrap();
        assert_eq!(out, want);
    }

    fn angles(tokens: usize, half: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = values(tokens * half, 9);
        angles
            .iter()
            .map(|angle| (4.0 * angle).sin_cos())
            .map(|(sin, cos)| (cos, sin))
            .unzip()
    }

    #[test]
    fn pairs_turn_by_their_angle_and_the_rest_passes() {
        let (tokens, num_heads, head_dim, half) = (3, 2, 10, 4);
        let (cos, sin) = angles(tokens, half);
        let x = values(tokens * num_heads * head_dim, 1);
        for interleaved in [false, true] {
            let rotation = HeadRotation {
                num_heads,
                head_dim,
                half,
                cos: &cos,
                sin: &sin,
                interleaved,
                norm: None,
            };
            for set in InstructionSet::available() {
                let mut out = vec![f32::NAN; x.len()];
                rotation
                    .forward_on(set, rows(&x, num_heads * head_dim), &mut out)
                    .unwrap();
                for (head, (x, out)) in x.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                    for pair in 0..half {
                        let (a, b) = if interleaved {
                            (2 * pair, 2 * pair + 1)
                        } else {
                            (pair, pair + half)
                        };
                        let at = head / num_heads * half + pair;
                        assert_eq!(out[a], x[a] * cos[at] - x[b] * sin[at]);
                        assert_eq!(out[b], x[a] * sin[at] + x[b] * cos[at]);
                    }
                    assert_eq!(out[2 * half..], x[2 * half..]);
                }
            }
        }
    }

    #[test]
    fn a_norm_before_or_after_is_that_norm_and_that_rotation_alone() {
        // More values than one thread takes.
        let (tokens, num_heads, head_dim) = (70, 8, 128);
        let (cos, sin) = angles(tokens, 64);
        let (x, weight) = (
            values(tokens * num_heads * head_dim, 1),
            values(head_dim, 2),
        );
        let plain = HeadRotation {
            num_heads,
            head_dim,
            half: 64,
            cos: &cos,
            sin: &sin,
            interleaved: false,
            norm: None,
        };
        for set in InstructionSet::available() {
            let rotated = |x: &[f32]| {
                let mut out = vec![0.0; x.len()];
                plain
                    .forward_on(set, rows(x, num_heads * head_dim), &mut out)
                    .unwrap();
                out
            };
            let normed = |x: &[f32]| {
                let mut out = vec![0.0; x.len()];
                rms_norm_on(set, x, &weight, 1e-6, &mut out).unwrap();
                out
            };
            for after_rotation in [false, true] {
                let norm = HeadNorm {
                    weight: &weight,
                    epsilon: 1e-6,
                    after_rotation,
                };
                let mut out = vec![0.0; x.len()];
                let fused = HeadRotation {
                    norm: Some(norm),
                    ..plain
                };
                fused
                    .forward_on(set, rows(&x, num_heads * head_dim), &mut out)
                    .unwrap();
                let want = if after_rotation {
                    normed(&rotated(&x))
                } else {
                    rotated(&normed(&x))
                };
                assert_eq!(out, want);
            }
        }
    }

    #[test]
    fn slices_that_do_not_fit_are_errors() {
        let rotation = HeadRotation {
            num_heads: 2,
            head_dim: 4,
            half: 3,
            cos: &[1.0; 3],
            sin: &[0.0; 3],
            interleaved: false,
            norm: None,
        };
        let forward = |rotation: HeadRotation<'_>, len: usize| {
            rotation.forward(rows(&vec![0.0; len], 8), &mut vec![0.0; len])
        };
        assert!(matches!(
            forward(rotation, 8),
            Err(KernelError::OutOfRange { .. })
        ));
        let rotation = HeadRotation {
            half: 1,
            ..rotation
        };
        assert_eq!(forward(rotation, 24), Ok(()));
        assert!(matches!(
            forward(rotation, 23),
            Err(KernelError::Length { .. })
        ));
    }
}
