//! The AVX2 bodies. Without intrinsics but for the exponential: the loops vectorise as they stand.

use std::arch::x86_64::*;

use super::{FARTHEST, SLOPE, TAIL};
use crate::exp::avx2::exp;

/// See [`super::rms_norm`]; one row.
#[target_feature(enable = "avx2,fma")]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    super::scalar::rms_norm(x, weight, epsilon, out);
}

/// See [`super::silu_mul`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let mut outs = out.chunks_exact_mut(8);
    let inputs = gate.chunks_exact(8).zip(up.chunks_exact(8));
    for ((gate, up), out) in inputs.zip(&mut outs) {
        // SAFETY: the chunks hold eight values each.
        unsafe {
            let result = gated(_mm256_loadu_ps(gate.as_ptr()), _mm256_loadu_ps(up.as_ptr()));
            _mm256_storeu_ps(out.as_mut_ptr(), result);
        }
    }
    let rest = outs.into_remainder();
    let whole = gate.len() - rest.len();
    let (mut last_gate, mut last_up, mut last) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    last_gate[..rest.len()].copy_from_slice(&gate[whole..]);
    last_up[..rest.len()].copy_from_slice(&up[whole..]);
    // SAFETY: the arrays hold eight values each.
    unsafe {
        let (gate, up) = (
            _mm256_loadu_ps(last_gate.as_ptr()),
            _mm256_loadu_ps(last_up.as_ptr()),
        );
        _mm256_storeu_ps(last.as_mut_ptr(), gated(gate, up));
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn gated(gate: __m256, up: __m256) -> __m256 {
    let minus = _mm256_xor_ps(gate, _mm256_set1_ps(-0.0));
    let below = _mm256_add_ps(_mm256_set1_ps(1.0), exp(minus));
    _mm256_mul_ps(_mm256_div_ps(gate, below), up)
}

/// See [`super::layer_norm`]; one row.
#[target_feature(enable = "avx2,fma")]
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    super::scalar::layer_norm(x, weight, bias, epsilon, out);
}

/// `x * Φ(x)`; see [`super::gelu_of`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn gelu_of(x: __m256) -> __m256 {
    let one = _mm256_set1_ps(1.0);
    // When a lane of the second operand is NaN, `min` and `max` answer that operand.
    let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
    let size = _mm256_min_ps(_mm256_set1_ps(FARTHEST), size);
    let t = _mm256_div_ps(one, _mm256_fmadd_ps(_mm256_set1_ps(SLOPE), size, one));
    let mut tail = _mm256_set1_ps(TAIL[0]);
    for &coefficient in &TAIL[1..] {
        tail = _mm256_fmadd_ps(tail, t, _mm256_set1_ps(coefficient));
    }
    let half = _mm256_mul_ps(size, _mm256_set1_ps(-0.5));
    let beyond = _mm256_mul_ps(_mm256_mul_ps(tail, t), exp(_mm256_mul_ps(size, half)));
    let positive = _mm256_max_ps(_mm256_setzero_ps(), x);
    _mm256_fnmadd_ps(size, beyond, positive)
}
