//! Fused operations on rows, each in one pass over memory.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use rayon::prelude::*;

use crate::error::check_len;
use crate::{InstructionSet, KernelError, instruction_set};

/// Values below which threads cost more than they bring.
const PARALLEL_FROM: usize = 64 * 1024;

/// Lanes that are summed apart: the order of a sum is the same for every row of a batch.
const LANES: usize = 16;

/// Root-mean-square norm of rows: `out = x / sqrt(mean(x²) + epsilon) * weight`.
///
/// `x` and `out` are `[rows, weight.len()]`. The mean is taken in `f32`.
///
/// # Errors
/// When `weight` is empty, or a slice does not fit.
pub fn rms_norm(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    rms_norm_on(instruction_set(), x, weight, epsilon, out)
}

/// [`rms_norm`] on a given instruction set, for tests and measurements.
///
/// # Errors
/// As [`rms_norm`], and when the processor lacks the instruction set.
pub fn rms_norm_on(
    set: InstructionSet,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let (set, size) = (set.require()?, weight.len());
    if size == 0 {
        return Err(KernelError::Zero {
            argument: "length of weight",
        });
    }
    if !x.len().is_multiple_of(size) {
        return Err(KernelError::NotMultiple {
            argument: "length of x",
            value: x.len(),
            of: size,
        });
    }
    check_len("out", x.len(), out.len())?;
    let row = |(x, out): (&[f32], &mut [f32])| match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => {
            // SAFETY: the instruction set is present (required above).
            unsafe { avx2::rms_norm(x, weight, epsilon, out) }
        }
        _ => scalar::rms_norm(x, weight, epsilon, out),
    };
    if x.len() < PARALLEL_FROM {
        x.chunks_exact(size)
            .zip(out.chunks_exact_mut(size))
            .for_each(row);
    } else {
        x.par_chunks_exact(size)
            .zip(out.par_chunks_exact_mut(size))
            .for_each(row);
    }
    Ok(())
}

/// The gate of a gated feed-forward layer: `out = silu(gate) * up`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Errors
/// When the slices differ in length.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    silu_mul_on(instruction_set(), gate, up, out)
}

/// [`silu_mul`] on a given instruction set, for tests and measurements.
///
/// # Errors
/// As [`silu_mul`], and when the processor lacks the instruction set.
pub fn silu_mul_on(
    set: InstructionSet,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    const CHUNK: usize = 4096;
    let set = set.require()?;
    check_len("up", gate.len(), up.len())?;
    check_len("out", gate.len(), out.len())?;
    let piece = |((gate, up), out): ((&[f32], &[f32]), &mut [f32])| match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => {
            // SAFETY: the instruction set is present (required above).
            unsafe { avx2::silu_mul(gate, up, out) }
        }
        _ => scalar::silu_mul(gate, up, out),
    };
    if gate.len() < PARALLEL_FROM {
        piece(((gate, up), out));
    } else {
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
        inputs.zip(out.par_chunks_mut(CHUNK)).for_each(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    fn available() -> impl Iterator<Item = InstructionSet> {
        [InstructionSet::Scalar, InstructionSet::Avx2]
            .into_iter()
            .filter(|set| set.is_available())
    }

    #[test]
    fn rms_norm_agrees_with_double_precision_and_is_the_same_in_every_batch() {
        for size in [1, 7, 8, 16, 33, 1024] {
            let rows = 70;
            let (x, weight) = (values(rows * size, 1), values(size, 2));
            for set in available() {
                let mut out = vec![f32::NAN; x.len()];
                rms_norm_on(set, &x, &weight, 1e-6, &mut out).unwrap();
                for (x, out) in x.chunks(size).zip(out.chunks(size)) {
                    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
                    let root = (squares / size as f64 + 1e-6).sqrt();
                    for ((&x, &weight), &out) in x.iter().zip(&weight).zip(out) {
                        let want = f64::from(x) / root * f64::from(weight);
                        assert!((f64::from(out) - want).abs() <= 1e-6 * want.abs().max(1e-3));
                    }
                    let mut alone = vec![0.0; size];
                    rms_norm_on(set, x, &weight, 1e-6, &mut alone).unwrap();
                    assert_eq!(alone, out);
                }
            }
        }
    }

    #[test]
    fn silu_mul_agrees_with_double_precision() {
        for len in [0, 1, 7, 8, 100, 70_000] {
            let gate: Vec<f32> = values(len, 1)
                .into_iter()
                .map(|value| value * 30.0)
                .collect();
            let up = values(len, 2);
            for set in available() {
                let mut out = vec![f32::NAN; len];
                silu_mul_on(set, &gate, &up, &mut out).unwrap();
                for ((&gate, &up), &out) in gate.iter().zip(&up).zip(&out) {
                    let (gate, up) = (f64::from(gate), f64::from(up));
                    let want = gate / (1.0 + (-gate).exp()) * up;
                    assert!((f64::from(out) - want).abs() <= 1e-6 * want.abs() + 1e-30);
                }
            }
        }
    }

    #[test]
    fn silu_mul_meets_its_limits() {
        for set in available() {
            let gate = [
                f32::NAN,
                200.0,
                -200.0,
                0.0,
                f32::INFINITY,
                -1e30,
                1.0,
                2.0,
                -300.0,
            ];
            let mut out = [7.0; 9];
            silu_mul_on(set, &gate, &[1.0; 9], &mut out).unwrap();
            assert!(out[0].is_nan());
            assert_eq!((out[1], out[3], out[4]), (200.0, 0.0, f32::INFINITY));
            assert!(
                [out[2], out[5], out[8]]
                    .iter()
                    .all(|value| value.abs() < 1e-30)
            );
        }
    }

    #[test]
    fn wrong_shapes_are_errors() {
        assert!(rms_norm(&[0.0; 4], &[], 0.0, &mut [0.0; 4]).is_err());
        assert!(rms_norm(&[0.0; 4], &[0.0; 3], 0.0, &mut [0.0; 4]).is_err());
        assert!(rms_norm(&[0.0; 4], &[0.0; 2], 0.0, &mut [0.0; 3]).is_err());
        assert!(silu_mul(&[0.0; 4], &[0.0; 3], &mut [0.0; 4]).is_err());
        assert!(silu_mul(&[0.0; 4], &[0.0; 4], &mut [0.0; 3]).is_err());
    }
}
