//! The snake activation of audio codecs (arXiv 2006.08195): `x + sin²(alpha x) / alpha`, channel by channel.
//!
//! The square of the sine has period π and is even, so reducing its argument to within half a period of zero is all
//! that has to be done before one odd polynomial.

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::error::check_len;
use crate::fused::multiply_add;
use crate::pool::for_each_stretch;
use crate::{InstructionSet, KernelError, instruction_set};

/// Values below which threads cost more than they bring.
const PARALLEL_FROM: usize = 16 * 1024;

/// Values that one thread takes at a time.
const CHUNK: usize = 4096;

/// π in three parts. The first two have trailing zeros, so that their multiples are exact up to arguments of 25,000.
const PI_PARTS: [f32; 3] = [3.140_625, 9.675_026e-4, 1.509_958e-7];

/// Adding and subtracting 1.5 x 2^23 rounds to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;

/// Coefficients of (sin r - r) / r³ in r² on |r| <= π / 2, highest power first: a minimax fit of our own, within
/// 5e-9 of the sine.
const SINE: [f32; 4] = [
    2.599_900_9e-6,
    -1.980_654_6e-4,
    8.333_016e-3,
    -1.666_665_7e-1,
];

/// `out = x + scale * sin²(alpha * x)` for rows of channels: `x` and `out` are `[rows, alpha.len()]`, and `scale` is
/// what the codec makes of `1 / alpha`.
///
/// The sine is exact to the last places of `f32` while `alpha * x` stays within 25,000; beyond, its phase drifts.
///
/// # Errors
/// When `alpha` is empty, or a slice does not fit.
pub fn snake(x: &[f32], alpha: &[f32], scale: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    snake_on(instruction_set(), x, alpha, scale, out)
}

/// [`snake`] on a given instruction set, for tests and measurements.
///
/// # Errors
/// As [`snake`], and when the processor lacks the instruction set.
pub fn snake_on(
    set: InstructionSet,
    x: &[f32],
    alpha: &[f32],
    scale: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let (set, channels) = (set.require()?, alpha.len());
    if channels == 0 {
        return Err(KernelError::Zero {
            argument: "length of alpha",
        });
    }
    check_len("scale", channels, scale.len())?;
    check_len("out", x.len(), out.len())?;
    if !x.len().is_multiple_of(channels) {
        return Err(KernelError::NotMultiple {
            argument: "length of x",
            value: x.len(),
            of: channels,
        });
    }
    let rows = |x: &[f32], out: &mut [f32]| {
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            match set {
                #[cfg(target_arch = "x86_64")]
                set if set.has_avx2() => {
                    // SAFETY: the instruction set is present (required above).
                    unsafe { avx2::snake(x, alpha, scale, out) }
                }
                #[cfg(target_arch = "aarch64")]
                set if set.has_neon() => plain::<true>(x, alpha, scale, out),
                _ => plain::<false>(x, alpha, scale, out),
            }
        }
    };
    let size = CHUNK.div_ceil(channels) * channels;
    for_each_stretch(out, PARALLEL_FROM, size, |start, out| {
        rows(&x[start..start + out.len()], out);
    });
    Ok(())
}

/// The portable body; one row. With `FUSED` it is that of processors with fused multiply-adds.
fn plain<const FUSED: bool>(x: &[f32], alpha: &[f32], scale: &[f32], out: &mut [f32]) {
    for (((out, &x), &alpha), &scale) in out.iter_mut().zip(x).zip(alpha).zip(scale) {
        let sine = sine_up_to_sign::<FUSED>(alpha * x);
        *out = multiply_add::<FUSED>(scale, sine * sine, x);
    }
}

/// `sin y` or `-sin y`.
#[inline(always)]
fn sine_up_to_sign<const FUSED: bool>(y: f32) -> f32 {
    let periods = (y * std::f32::consts::FRAC_1_PI + ROUNDER) - ROUNDER;
    let mut r = y;
    for part in PI_PARTS {
        r = multiply_add::<FUSED>(-periods, part, r);
    }
    let square = r * r;
    let mut tail = SINE[0];
    for coefficient in &SINE[1..] {
        tail = multiply_add::<FUSED>(tail, square, *coefficient);
    }
    multiply_add::<FUSED>(r * square, tail, r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    #[test]
    fn it_agrees_with_double_precision_in_every_batch() {
        for (rows, channels, size) in [(3, 1, 1.0), (50, 7, 40.0), (70, 96, 300.0), (5, 768, 5.0)] {
            let x: Vec<f32> = values(rows * channels, 1)
                .iter()
                .map(|x| x * size)
                .collect();
            let alpha: Vec<f32> = values(channels, 2).iter().map(|a| a * 2.0).collect();
            let scale: Vec<f32> = alpha.iter().map(|alpha| 1.0 / (alpha + 1e-9)).collect();
            for set in InstructionSet::available() {
                let mut out = vec![f32::NAN; x.len()];
                snake_on(set, &x, &alpha, &scale, &mut out).unwrap();
                for (row, got) in x.chunks(channels).zip(out.chunks(channels)) {
                    for (((&x, &got), &alpha), &scale) in
                        row.iter().zip(got).zip(&alpha).zip(&scale)
                    {
                        // The phase as f32 gives it: its rounding is the caller's.
                        let sine = f64::from(alpha * x).sin();
                        let want = f64::from(x) + f64::from(scale) * sine * sine;
                        let allowed = 4e-7 * (f64::from(scale).abs() + f64::from(x).abs());
                        assert!(
                            (f64::from(got) - want).abs() <= allowed,
                            "{x} {alpha}: {got} {want}"
                        );
                    }
                    let mut alone = vec![0.0; channels];
                    snake_on(set, row, &alpha, &scale, &mut alone).unwrap();
                    assert_eq!(alone, got);
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so_and_misfits_are_refused() {
        for set in InstructionSet::available() {
            let mut out = [0.0; 3];
            let x = [f32::NAN, f32::INFINITY, 0.0];
            snake_on(set, &x, &[1.0], &[1.0], &mut out).unwrap();
            assert!(out[0].is_nan() && out[1].is_nan() && out[2] == 0.0);
        }
        let mut out = [0.0; 4];
        assert!(snake(&[0.0; 4], &[], &[], &mut out).is_err());
        assert!(snake(&[0.0; 4], &[1.0; 3], &[1.0; 3], &mut out).is_err());
        assert!(snake(&[0.0; 4], &[1.0; 2], &[1.0; 1], &mut out).is_err());
        assert!(snake(&[0.0; 2], &[1.0; 2], &[1.0; 2], &mut out).is_err());
    }
}
