//! The numerators of a softmax, of which the next token is drawn.

use crate::exp::exp;
use crate::pool::for_each_stretch;
use crate::{InstructionSet, instruction_set};

/// Values below which threads cost more than they bring.
const PARALLEL_FROM: usize = 16 * 1024;

/// Values that a task takes at least.
const CHUNK: usize = 8 * 1024;

/// Lanes that are summed apart.
const LANES: usize = 16;

/// `out[i] = e^((x[i] - largest) * scale)`, and their sum in double precision. `largest` is the largest value of `x`, so
/// that no weight exceeds 1; `out` becomes as long as `x`.
///
/// Weights have the same bits on every instruction set and any number of threads.
pub fn softmax_weights(x: &[f32], largest: f32, scale: f32, out: &mut Vec<f32>) -> f64 {
    softmax_weights_on(instruction_set(), x, largest, scale, out)
}

fn softmax_weights_on(
    set: InstructionSet,
    x: &[f32],
    largest: f32,
    scale: f32,
    out: &mut Vec<f32>,
) -> f64 {
    out.resize(x.len(), 0.0);
    for_each_stretch(out, PARALLEL_FROM, CHUNK, |start, out| {
        let x = &x[start..start + out.len()];
        match set {
            #[cfg(target_arch = "x86_64")]
            set if set.has_avx2() => {
                // SAFETY: instruction sets are chosen among those that the processor has.
                unsafe { weights_avx2(x, largest, scale, out) }
            }
            _ => weights(x, largest, scale, out),
        }
    });
    let mut sums = [0.0; LANES];
    for chunk in out.chunks(LANES) {
        for (sum, weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*weight);
        }
    }
    sums.iter().sum()
}

/// Inlined so that the AVX2 body is this one, compiled for AVX2.
#[inline(always)]
fn weights(x: &[f32], largest: f32, scale: f32, out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        *out = exp((x - largest) * scale);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn weights_avx2(x: &[f32], largest: f32, scale: f32, out: &mut [f32]) {
    weights(x, largest, scale, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;
    use crate::pool::with_threads;

    #[test]
    fn weights_agree_with_double_precision_and_are_the_same_everywhere() {
        for len in [1, 17, 40_000] {
            let mut x = values(len, 1);
            x.iter_mut().for_each(|x| *x *= 20.0);
            x[0] = f32::NEG_INFINITY;
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max).max(0.0);
            let mut plain = Vec::new();
            let sum = softmax_weights_on(InstructionSet::Scalar, &x, largest, 1.25, &mut plain);
            let mut exact = 0.0;
            for (x, weight) in x.iter().zip(&plain) {
                let want = ((f64::from(*x) - f64::from(largest)) * 1.25).exp();
                // The argument is rounded, which the exponential enlarges.
                assert!((f64::from(*weight) - want).abs() <= 1e-5 * want + 1e-37);
                exact += want;
            }
            assert!((sum - exact).abs() <= 1e-5 * exact);
            for set in InstructionSet::available() {
                for threads in [1, 3] {
                    let mut out = vec![f32::NAN; 3];
                    let again = with_threads(threads, || {
                        softmax_weights_on(set, &x, largest, 1.25, &mut out)
                    });
                    assert_eq!((again, &out), (sum, &plain), "{set:?}");
                }
            }
        }
    }
}
