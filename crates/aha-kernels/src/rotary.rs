//! Rotary positions (arXiv 2104.09864) of heads whose halves turn together.

use crate::attention::Rows;
use crate::elementwise::PARALLEL_FROM;
use crate::error::{check_len, checked_mul};
use crate::matmul::for_each_task;
use crate::{InstructionSet, KernelError, instruction_set};

/// Tokens that one thread takes at a time.
const TOKENS: usize = 16;

/// Turns value `i` of each head with value `i + half` by the token's angle `i`; values from `2 * half` on pass unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotateHalves {
    /// Heads of a row.
    pub num_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Angles of a token, at most half as many as a head has values.
    pub half: usize,
}

impl RotateHalves {
    /// `x` has rows of `num_heads * head_dim` values, `cos` and `sin` are `[tokens, half]`, `out` is
    /// `[tokens, num_heads * head_dim]`.
    ///
    /// # Errors
    /// When a size is zero, the angles are too many for a head, or a slice does not fit.
    pub fn forward(
        &self,
        x: Rows<'_>,
        cos: &[f32],
        sin: &[f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), x, cos, sin, out)
    }

    /// [`RotateHalves::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        x: Rows<'_>,
        cos: &[f32],
        sin: &[f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        let width = checked_mul(self.num_heads, self.head_dim)?;
        if width == 0 || self.half == 0 {
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
        if !cos.len().is_multiple_of(self.half) {
            return Err(KernelError::NotMultiple {
                argument: "length of cos",
                value: cos.len(),
                of: self.half,
            });
        }
        let tokens = cos.len() / self.half;
        check_len("sin", cos.len(), sin.len())?;
        check_len("out", checked_mul(tokens, width)?, out.len())?;
        x.check("x", tokens, width)?;
        let work = |index: usize, out: &mut [f32]| {
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let token = index * TOKENS + row;
                let angles = token * self.half..(token + 1) * self.half;
                let x = &x.values[token * x.stride..][..width];
                self.row(set, x, &cos[angles.clone()], &sin[angles], out);
            }
        };
        if out.len() < PARALLEL_FROM {
            for (index, out) in out.chunks_mut(TOKENS * width).enumerate() {
                work(index, out);
            }
            return Ok(());
        }
        let len = out.len();
        let start = Start(out.as_mut_ptr());
        for_each_task(tokens.div_ceil(TOKENS), |index| {
            let from = index * TOKENS * width;
            let size = (TOKENS * width).min(len - from);
            // SAFETY: inside the slice, which is borrowed for the whole call, and no two tasks have the same index.
            let out = unsafe { std::slice::from_raw_parts_mut(start.at(from), size) };
            work(index, out);
        });
        Ok(())
    }

    fn row(&self, set: InstructionSet, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if set != InstructionSet::Scalar {
            // SAFETY: every other instruction set of this architecture includes AVX2, and it is present.
            unsafe { avx2(self.head_dim, x, cos, sin, out) }
            return;
        }
        let _ = set;
        scalar(self.head_dim, x, cos, sin, out);
    }
}

/// One token. Inlined so that the AVX2 body is this one, compiled for AVX2.
#[inline(always)]
fn scalar(head_dim: usize, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        let (turned, rest) = out.split_at_mut(2 * half);
        let (first, second) = turned.split_at_mut(half);
        for index in 0..half {
            let (a, b) = (x[index], x[half + index]);
            first[index] = a * cos[index] - b * sin[index];
            second[index] = a * sin[index] + b * cos[index];
        }
        rest.copy_from_slice(&x[2 * half..]);
    }
}

/// See [`scalar`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(head_dim: usize, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    scalar(head_dim, x, cos, sin, out);
}

/// The start of the output, of which tasks take disjoint pieces.
struct Start(*mut f32);

// SAFETY: tasks take disjoint pieces, see `RotateHalves::forward_on`.
unsafe impl Sync for Start {}

impl Start {
    /// A method, so that closures capture the whole and not the pointer.
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    #[test]
    fn pairs_turn_by_their_angles_wherever_rows_lie() {
        for (tokens, num_heads, head_dim, half, stride) in [
            (1, 1, 2, 1, 2),
            (5, 3, 10, 4, 37),
            (70, 16, 64, 32, 3 * 16 * 64),
            (33, 2, 128, 64, 256),
        ] {
            let rotate = RotateHalves {
                num_heads,
                head_dim,
                half,
            };
            let x = values(tokens * stride, 1);
            let angles = values(tokens * half, 2);
            let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            let rows = Rows { values: &x, stride };
            let width = num_heads * head_dim;
            let mut outputs = Vec::new();
            for set in [InstructionSet::Scalar, InstructionSet::Avx2] {
                if !set.is_available() {
                    continue;
                }
                let mut out = vec![f32::NAN; tokens * width];
                rotate.forward_on(set, rows, &cos, &sin, &mut out).unwrap();
                outputs.push(out);
            }
            assert!(
                outputs.iter().all(|out| *out == outputs[0]),
                "the same bits"
            );
            for (index, &got) in outputs[0].iter().enumerate() {
                let (token, place) = (index / width, index % width);
                let (head, at) = (place / head_dim, place % head_dim);
                let value = |at: usize| x[token * stride + head * head_dim + at];
                let angle = |at: usize| (cos[token * half + at], sin[token * half + at]);
                let want = if at < half {
                    value(at) * angle(at).0 - value(at + half) * angle(at).1
                } else if at < 2 * half {
                    let (cos, sin) = angle(at - half);
                    value(at - half) * sin + value(at) * cos
                } else {
                    value(at)
                };
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn misfits_are_refused() {
        let rotate = RotateHalves {
            num_heads: 2,
            head_dim: 4,
            half: 2,
        };
        let x = Rows {
            values: &[0.0; 16],
            stride: 8,
        };
        let turn = |rotate: RotateHalves, cos: &[f32], sin: &[f32], out: usize| {
            rotate.forward(x, cos, sin, &mut vec![0.0; out])
        };
        assert!(turn(rotate, &[1.0; 4], &[0.0; 4], 16).is_ok());
        assert!(turn(rotate, &[1.0; 4], &[0.0; 3], 16).is_err());
        assert!(turn(rotate, &[1.0; 3], &[0.0; 3], 16).is_err());
        assert!(turn(rotate, &[1.0; 4], &[0.0; 4], 15).is_err());
        assert!(turn(rotate, &[1.0; 6], &[0.0; 6], 24).is_err());
        assert!(turn(RotateHalves { half: 3, ..rotate }, &[1.0; 6], &[0.0; 6], 16).is_err());
        assert!(turn(RotateHalves { half: 0, ..rotate }, &[], &[], 0).is_err());
    }
}
