//! The portable bodies.

use super::{FARTHEST, LANES, SLOPE, TAIL};
use crate::exp::exp_of;
use crate::fused::multiply_add;

/// See [`super::rms_norm`]; one row. Inlined so that the AVX2 body is this one, compiled for AVX2.
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mut sums = [0.0; LANES];
    for chunk in x.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let mean = sums.iter().sum::<f32>() / x.len() as f32;
    let factor = 1.0 / (mean + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

/// See [`super::silu_mul`]; `FUSED` for processors with fused multiply-adds.
pub(super) fn silu_mul<const FUSED: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp_of::<FUSED>(-gate)) * up;
    }
}

/// See [`super::layer_norm`]; one row. Inlined so that the AVX2 body is this one, compiled for AVX2.
#[inline(always)]
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let mut sums = [0.0; LANES];
    for chunk in x.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    let mean = sums.iter().sum::<f32>() / x.len() as f32;
    let mut sums = [0.0; LANES];
    for chunk in x.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += (x - mean) * (x - mean);
        }
    }
    let variance = sums.iter().sum::<f32>() / x.len() as f32;
    let factor = 1.0 / (variance + epsilon).sqrt();
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (x - mean) * factor * weight + bias;
    }
}

/// `x * Φ(x)`; `FUSED` for processors with fused multiply-adds.
#[inline(always)]
pub(crate) fn gelu_of<const FUSED: bool>(x: f32) -> f32 {
    let size = if x.abs() > FARTHEST {
        FARTHEST
    } else {
        x.abs()
    };
    let t = 1.0 / multiply_add::<FUSED>(SLOPE, size, 1.0);
    let mut tail = TAIL[0];
    for coefficient in &TAIL[1..] {
        tail = multiply_add::<FUSED>(tail, t, *coefficient);
    }
    let beyond = tail * t * exp_of::<FUSED>(size * size * -0.5);
    // Written as a comparison, because `f32::max` would drop NaN.
    let positive = if x < 0.0 { 0.0 } else { x };
    multiply_add::<FUSED>(-size, beyond, positive)
}
