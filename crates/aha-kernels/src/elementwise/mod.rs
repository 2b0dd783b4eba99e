//! Fused operations on rows, each in one pass over memory.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
mod scalar;
mod softmax;

pub(crate) use scalar::gelu_of;
pub use softmax::softmax_weights;

use crate::error::{check_len, checked_mul};
use crate::pool::{for_each_stretch, for_each_stretch_of_two};
use crate::{InstructionSet, KernelError, Rows, instruction_set};

/// Values below which threads cost more than they bring.
pub(crate) const PARALLEL_FROM: usize = 64 * 1024;

/// Values that a task takes at least.
const CHUNK: usize = 4096;

/// Lanes that are summed apart: the order of a sum is the same for every row of a batch.
const LANES: usize = 16;

/// The part of the normal distribution beyond `a >= 0` is `t * TAIL(t) * e^(-a²/2)` with
/// `t = 1 / (1 + SLOPE * a)`: a fit of our own by reweighted least squares, within 4e-9 of the
/// value. Highest power first.
const TAIL: [f32; 10] = [
    0.025_473_356,
    -0.124_334_6,
    0.204_723_75,
    -0.143_193_24,
    0.140_487_86,
    0.028_714_275,
    0.087_551_77,
    0.088_983_62,
    0.095_850_78,
    0.095_742_44,
];
const SLOPE: f32 = 0.24;

/// Where the fit ends; beyond it, the tail is below the smallest `f32`.
const FARTHEST: f32 = 14.0;

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
    check_rows("length of x", x.len(), "length of weight", size)?;
    check_len("out", x.len(), out.len())?;
    for_each_row(x, out, size, |x, out| {
        rms_norm_row(set, x, weight, epsilon, out)
    });
    Ok(())
}

/// The step from one layer to the next on a residual stream: `x += other`, and `out` is the [`rms_norm`] of the sum, in one
/// pass over memory.
///
/// # Errors
/// As [`rms_norm`], and when `other` is not as long as `x`.
pub fn add_rms_norm(
    x: &mut [f32],
    other: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let (set, size) = (instruction_set(), weight.len());
    check_rows("length of x", x.len(), "length of weight", size)?;
    check_len("other", x.len(), other.len())?;
    check_len("out", x.len(), out.len())?;
    let stretch = |start: usize, x: &mut [f32], out: &mut [f32]| {
        let rows = x.chunks_exact_mut(size).zip(out.chunks_exact_mut(size));
        for ((x, out), other) in rows.zip(other[start..].chunks_exact(size)) {
            for (x, other) in x.iter_mut().zip(other) {
                *x += other;
            }
            rms_norm_row(set, x, weight, epsilon, out);
        }
    };
    for_each_stretch_of_two([x, out], PARALLEL_FROM, stretch_of(size), stretch);
    Ok(())
}

/// [`rms_norm`] of a single row; lengths are equal and the instruction set is present.
pub(crate) fn rms_norm_row(
    set: InstructionSet,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set is present (required by the callers).
            unsafe { avx2::rms_norm(x, weight, epsilon, out) }
        }
        _ => scalar::rms_norm(x, weight, epsilon, out),
    }
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
    let set = set.require()?;
    check_len("up", gate.len(), up.len())?;
    check_len("out", gate.len(), out.len())?;
    for_each_stretch(out, PARALLEL_FROM, CHUNK, |start, out| {
        let part = start..start + out.len();
        silu_mul_piece(set, &gate[part.clone()], &up[part], out);
    });
    Ok(())
}

/// [`silu_mul`] where gate and up lie side by side: `x` is `[rows, 2 * width]`, `out` is `[rows, width]`.
///
/// # Errors
/// When `width` is zero, or a slice does not fit.
pub fn silu_mul_halves(x: &[f32], width: usize, out: &mut [f32]) -> Result<(), KernelError> {
    let set = instruction_set();
    check_rows("length of out", out.len(), "width", width)?;
    check_len("x", checked_mul(2, out.len())?, x.len())?;
    for_each_stretch(out, PARALLEL_FROM, stretch_of(width), |start, out| {
        let rows = x[2 * start..].chunks_exact(2 * width);
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            silu_mul_piece(set, gate, up, out);
        }
    });
    Ok(())
}

/// A piece of [`silu_mul`]; lengths are equal and the instruction set is present.
fn silu_mul_piece(set: InstructionSet, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set is present (required by the callers).
            unsafe { avx2::silu_mul(gate, up, out) }
        }
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => scalar::silu_mul::<true>(gate, up, out),
        _ => scalar::silu_mul::<false>(gate, up, out),
    }
}

/// Layer norm of rows: `out = (x - mean) / sqrt(variance + epsilon) * weight + bias`.
///
/// `x` and `out` are `[rows, weight.len()]`. Mean and variance are taken in `f32`, one after the other.
///
/// # Errors
/// When `weight` is empty, or a slice does not fit.
pub fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    layer_norm_on(instruction_set(), x, weight, bias, epsilon, out)
}

/// [`layer_norm`] on a given instruction set, for tests and measurements.
///
/// # Errors
/// As [`layer_norm`], and when the processor lacks the instruction set.
pub fn layer_norm_on(
    set: InstructionSet,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let (set, size) = (set.require()?, weight.len());
    check_rows("length of x", x.len(), "length of weight", size)?;
    check_len("bias", size, bias.len())?;
    check_len("out", x.len(), out.len())?;
    let row = |x: &[f32], out: &mut [f32]| match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set is present (required above).
            unsafe { avx2::layer_norm(x, weight, bias, epsilon, out) }
        }
        _ => scalar::layer_norm(x, weight, bias, epsilon, out),
    };
    for_each_row(x, out, size, row);
    Ok(())
}

/// Adds `bias` to every row of `x`, which is `[rows, bias.len()]`.
///
/// # Errors
/// When `bias` is empty or the rows are not as long.
pub fn add_bias(x: &mut [f32], bias: &[f32]) -> Result<(), KernelError> {
    check_rows("length of x", x.len(), "length of bias", bias.len())?;
    // One addition a value: compilers vectorise it for any processor, and every body gives the same bits.
    let row = |row: &mut [f32]| {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x += bias;
        }
    };
    for_each_stretch(x, PARALLEL_FROM, stretch_of(bias.len()), |_, rows| {
        rows.chunks_exact_mut(bias.len()).for_each(row);
    });
    Ok(())
}

/// `x += bias + other`: a bias on every row, then what a residual stream held. `x` and `other` are `[rows, bias.len()]`.
///
/// # Errors
/// When `bias` is empty, or a slice does not fit.
pub fn add_bias_and(x: &mut [f32], bias: &[f32], other: &[f32]) -> Result<(), KernelError> {
    let size = bias.len();
    check_rows("length of x", x.len(), "length of bias", size)?;
    check_len("other", x.len(), other.len())?;
    // Two additions a value: compilers vectorise it for any processor, and every body gives the same bits.
    for_each_stretch(x, PARALLEL_FROM, stretch_of(size), |start, rows| {
        let other = other[start..start + rows.len()].chunks_exact(size);
        for (row, other) in rows.chunks_exact_mut(size).zip(other) {
            for ((x, bias), other) in row.iter_mut().zip(bias).zip(other) {
                *x = other + (*x + bias);
            }
        }
    });
    Ok(())
}

/// `x += other`.
///
/// # Errors
/// When the slices differ in length.
pub fn add(x: &mut [f32], other: &[f32]) -> Result<(), KernelError> {
    check_len("other", x.len(), other.len())?;
    for_each_stretch(x, PARALLEL_FROM, CHUNK, |start, x| {
        for (x, other) in x.iter_mut().zip(&other[start..]) {
            *x += other;
        }
    });
    Ok(())
}

/// `out = a * b`, value by value; `out` and the parts of rows that `a` and `b` are hold `width` values a row.
///
/// # Errors
/// When `width` is zero, or a slice does not fit.
pub fn multiply(
    a: Rows<'_>,
    b: Rows<'_>,
    width: usize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    check_rows("length of out", out.len(), "width", width)?;
    let rows = out.len() / width;
    for (argument, factor) in [("a", a), ("b", b)] {
        let last = checked_mul(rows.saturating_sub(1), factor.stride)?;
        let least = if rows == 0 {
            0
        } else {
            last.saturating_add(width)
        };
        if factor.values.len() < least {
            return Err(KernelError::Length {
                argument,
                expected: least,
                actual: factor.values.len(),
            });
        }
    }
    // One product a value: every body gives the same bits.
    for_each_stretch(out, PARALLEL_FROM, stretch_of(width), |start, out| {
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            let row = start / width + index;
            let a = &a.values[row * a.stride..][..width];
            let b = &b.values[row * b.stride..][..width];
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = a * b;
            }
        }
    });
    Ok(())
}

/// The size of the stretches that tasks take, in whole rows of `size` values.
fn stretch_of(size: usize) -> usize {
    CHUNK.div_ceil(size) * size
}

/// Runs `row` for each row of `size` values of `x` and `out`.
fn for_each_row(x: &[f32], out: &mut [f32], size: usize, row: impl Fn(&[f32], &mut [f32]) + Sync) {
    for_each_stretch(out, PARALLEL_FROM, stretch_of(size), |start, out| {
        let x = &x[start..start + out.len()];
        for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            row(x, out);
        }
    });
}

/// Checks that values lie in whole rows of at least one value.
pub(crate) fn check_rows(
    argument: &'static str,
    len: usize,
    of: &'static str,
    size: usize,
) -> Result<(), KernelError> {
    if size == 0 {
        return Err(KernelError::Zero { argument: of });
    }
    if !len.is_multiple_of(size) {
        return Err(KernelError::NotMultiple {
            argument,
            value: len,
            of: size,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    #[test]
    fn rms_norm_agrees_with_double_precision_and_is_the_same_in_every_batch() {
        for size in [1, 7, 8, 16, 33, 1024] {
            let rows = 70;
            let (x, weight) = (values(rows * size, 1), values(size, 2));
            for set in InstructionSet::available() {
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
    fn a_sum_is_normed_as_if_it_had_been_taken_before() {
        for (rows, size) in [(1, 33), (3, 64), (70, 1024)] {
            let (x, other, weight) = (
                values(rows * size, 1),
                values(rows * size, 2),
                values(size, 3),
            );
            let mut want_sum = x.clone();
            add(&mut want_sum, &other).unwrap();
            let mut want = vec![f32::NAN; x.len()];
            rms_norm(&want_sum, &weight, 1e-6, &mut want).unwrap();
            let (mut sum, mut out) = (x, vec![f32::NAN; want.len()]);
            add_rms_norm(&mut sum, &other, &weight, 1e-6, &mut out).unwrap();
            assert_eq!((sum, out), (want_sum, want));
        }
    }

    #[test]
    fn layer_norm_agrees_with_double_precision_and_is_the_same_in_every_batch() {
        for size in [1, 7, 8, 16, 33, 384, 1024] {
            let rows = 70;
            let mut x = values(rows * size, 1);
            // A mean far from zero: the variance must not be taken as a difference of large numbers.
            x.iter_mut().for_each(|x| *x += 3.0);
            let (weight, bias) = (values(size, 2), values(size, 3));
            for set in InstructionSet::available() {
                let mut out = vec![f32::NAN; x.len()];
                layer_norm_on(set, &x, &weight, &bias, 1e-12, &mut out).unwrap();
                for (x, out) in x.chunks(size).zip(out.chunks(size)) {
                    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / size as f64;
                    let squares: f64 = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
                    let root = (squares / size as f64 + 1e-12).sqrt();
                    for (((&x, &weight), &bias), &out) in x.iter().zip(&weight).zip(&bias).zip(out)
                    {
                        let want =
                            (f64::from(x) - mean) / root * f64::from(weight) + f64::from(bias);
                        assert!((f64::from(out) - want).abs() <= 2e-5, "{out} {want} {size}");
                    }
                    let mut alone = vec![0.0; size];
                    layer_norm_on(set, x, &weight, &bias, 1e-12, &mut alone).unwrap();
                    assert_eq!(alone, out);
                }
            }
        }
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        for rows in [0, 1, 3, 9000] {
            let (x, bias) = (values(rows * 9, 1), values(9, 2));
            let mut out = x.clone();
            add_bias(&mut out, &bias).unwrap();
            for (index, out) in out.iter().enumerate() {
                assert_eq!(*out, x[index] + bias[index % 9]);
            }
        }
    }

    #[test]
    fn sums_are_taken_row_by_row() {
        for rows in [1, 3, 9000] {
            let (x, bias, other) = (values(rows * 9, 1), values(9, 2), values(rows * 9, 3));
            let mut out = x.clone();
            add_bias_and(&mut out, &bias, &other).unwrap();
            for (index, out) in out.iter().enumerate() {
                assert_eq!(*out, other[index] + (x[index] + bias[index % 9]));
            }
            let mut out = x.clone();
            add(&mut out, &other).unwrap();
            for (index, out) in out.iter().enumerate() {
                assert_eq!(*out, x[index] + other[index]);
            }
        }
    }

    #[test]
    fn parts_of_rows_are_multiplied() {
        for rows in [0, 1, 3, 9000] {
            let (x, other) = (values(rows * 20, 1), values(rows * 9, 2));
            let mut out = vec![f32::NAN; rows * 9];
            let a = Rows {
                values: x.get(11..).unwrap_or_default(),
                stride: 20,
            };
            let b = Rows {
                values: &other,
                stride: 9,
            };
            multiply(a, b, 9, &mut out).unwrap();
            for (index, out) in out.iter().enumerate() {
                assert_eq!(*out, x[index / 9 * 20 + 11 + index % 9] * other[index]);
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
            for set in InstructionSet::available() {
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
    fn halves_of_rows_are_what_they_are_apart() {
        for (rows, width) in [(1, 5), (3, 64), (70, 1024)] {
            let both = values(rows * 2 * width, 1);
            let mut out = vec![f32::NAN; rows * width];
            silu_mul_halves(&both, width, &mut out).unwrap();
            for (both, out) in both.chunks(2 * width).zip(out.chunks(width)) {
                let mut want = vec![f32::NAN; width];
                silu_mul(&both[..width], &both[width..], &mut want).unwrap();
                assert_eq!(out, want);
            }
        }
        assert!(silu_mul_halves(&[0.0; 8], 0, &mut [0.0; 4]).is_err());
        assert!(silu_mul_halves(&[0.0; 8], 3, &mut [0.0; 4]).is_err());
        assert!(silu_mul_halves(&[0.0; 7], 2, &mut [0.0; 4]).is_err());
    }

    #[test]
    fn silu_mul_meets_its_limits() {
        for set in InstructionSet::available() {
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
        let sum = |other: &[f32], weight: &[f32], out: &mut [f32]| {
            add_rms_norm(&mut [0.0; 4], other, weight, 0.0, out)
        };
        assert!(sum(&[0.0; 3], &[0.0; 2], &mut [0.0; 4]).is_err());
        assert!(sum(&[0.0; 4], &[0.0; 3], &mut [0.0; 4]).is_err());
        assert!(sum(&[0.0; 4], &[0.0; 2], &mut [0.0; 3]).is_err());
        assert!(silu_mul(&[0.0; 4], &[0.0; 3], &mut [0.0; 4]).is_err());
        assert!(silu_mul(&[0.0; 4], &[0.0; 4], &mut [0.0; 3]).is_err());
        assert!(layer_norm(&[0.0; 4], &[], &[], 0.0, &mut [0.0; 4]).is_err());
        assert!(layer_norm(&[0.0; 4], &[0.0; 2], &[0.0; 3], 0.0, &mut [0.0; 4]).is_err());
        assert!(layer_norm(&[0.0; 4], &[0.0; 2], &[0.0; 2], 0.0, &mut [0.0; 2]).is_err());
        assert!(add_bias(&mut [0.0; 4], &[]).is_err());
        assert!(add_bias(&mut [0.0; 4], &[0.0; 3]).is_err());
        assert!(add_bias_and(&mut [0.0; 4], &[0.0; 2], &[0.0; 3]).is_err());
        assert!(add_bias_and(&mut [0.0; 4], &[], &[0.0; 4]).is_err());
        assert!(add(&mut [0.0; 4], &[0.0; 3]).is_err());
        let product = |a: &[f32], b: &[f32], width: usize| {
            let rows = |values, stride| Rows { values, stride };
            multiply(rows(a, 3), rows(b, 2), width, &mut [0.0; 4])
        };
        assert!(product(&[0.0; 5], &[0.0; 4], 2).is_ok());
        assert!(product(&[0.0; 4], &[0.0; 4], 2).is_err());
        assert!(product(&[0.0; 5], &[0.0; 3], 2).is_err());
        assert!(product(&[0.0; 5], &[0.0; 4], 3).is_err());
        assert!(product(&[0.0; 5], &[0.0; 4], 0).is_err());
    }
}
