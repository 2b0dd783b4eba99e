//! The AVX2 bodies.

use std::arch::x86_64::*;

use super::{Activation, QUICK, TANH_CUBIC, TANH_LINEAR};
use crate::elementwise::avx2::gelu_of;
use crate::exp::avx2::exp;

/// See `Activation::run`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn run(activation: Activation, bias: Option<&[f32]>, x: &mut [f32]) {
    match activation {
        Activation::Gelu => each(bias, x, |x| gelu_of(x)),
        Activation::GeluTanh => each(bias, x, |x| {
            let square = _mm256_mul_ps(x, x);
            let slope = _mm256_fmadd_ps(
                _mm256_set1_ps(TANH_CUBIC),
                square,
                _mm256_set1_ps(TANH_LINEAR),
            );
            _mm256_div_ps(x, one_and_exp_of_minus(_mm256_mul_ps(x, slope)))
        }),
        Activation::QuickGelu => each(bias, x, |x| {
            let slope = _mm256_set1_ps(QUICK);
            _mm256_div_ps(x, one_and_exp_of_minus(_mm256_mul_ps(x, slope)))
        }),
        Activation::Silu => each(bias, x, |x| _mm256_div_ps(x, one_and_exp_of_minus(x))),
        // When a lane of the second operand is NaN, `max` answers that operand.
        Activation::Relu => each(bias, x, |x| _mm256_max_ps(_mm256_setzero_ps(), x)),
        Activation::Sigmoid => each(bias, x, |x| {
            _mm256_div_ps(_mm256_set1_ps(1.0), one_and_exp_of_minus(x))
        }),
    }
}

/// `1 + e^-x`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn one_and_exp_of_minus(x: __m256) -> __m256 {
    let minus = _mm256_xor_ps(x, _mm256_set1_ps(-0.0));
    _mm256_add_ps(_mm256_set1_ps(1.0), exp(minus))
}

/// In place; a `bias` is as long as `x`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn each(bias: Option<&[f32]>, x: &mut [f32], function: impl Fn(__m256) -> __m256) {
    let whole = x.len() / 8 * 8;
    let (eights, rest) = x.split_at_mut(whole);
    match bias {
        Some(bias) => {
            for (x, bias) in eights.chunks_exact_mut(8).zip(bias.chunks_exact(8)) {
                // SAFETY: the chunks hold eight values each.
                unsafe {
                    let sum =
                        _mm256_add_ps(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(bias.as_ptr()));
                    _mm256_storeu_ps(x.as_mut_ptr(), function(sum));
                }
            }
        }
        None => {
            for x in eights.chunks_exact_mut(8) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(x.as_mut_ptr(), function(_mm256_loadu_ps(x.as_ptr()))) }
            }
        }
    }
    if rest.is_empty() {
        return;
    }
    let mut last = [0.0; 8];
    last[..rest.len()].copy_from_slice(rest);
    if let Some(bias) = bias {
        for (value, bias) in last.iter_mut().zip(&bias[whole..]) {
            *value += bias;
        }
    }
    // SAFETY: the array holds eight values.
    unsafe { _mm256_storeu_ps(last.as_mut_ptr(), function(_mm256_loadu_ps(last.as_ptr()))) }
    rest.copy_from_slice(&last[..rest.len()]);
}
