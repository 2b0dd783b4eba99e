//! The exponential function of four lanes. [`super::exp_of`] is that of loops, which the compiler vectorises.

use std::arch::aarch64::*;

use super::{LEAST, LN_2_HIGH, LN_2_LOW, POLYNOMIAL, ROUNDER};

/// e^x of four lanes that are not positive, for softmax: zero below `LEAST`, where [`super::exp`] goes on to the
/// smallest numbers that there are. NaN stays NaN.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn exp_of_negative(x: float32x4_t) -> float32x4_t {
    let least = vdupq_n_f32(LEAST);
    let counts = vmvnq_u32(vcltq_f32(x, least));
    // Of NaN and a number this answers NaN.
    let x = vmaxq_f32(least, x);
    let rounder = vdupq_n_f32(ROUNDER);
    let rounded = vfmaq_f32(rounder, x, vdupq_n_f32(std::f32::consts::LOG2_E));
    let power = vsubq_f32(rounded, rounder);
    let r = vfmsq_f32(x, power, vdupq_n_f32(LN_2_HIGH));
    let r = vfmsq_f32(r, power, vdupq_n_f32(LN_2_LOW));
    let mut tail = vdupq_n_f32(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        tail = vfmaq_f32(vdupq_n_f32(coefficient), tail, r);
    }
    let mantissa = vfmaq_f32(r, tail, vmulq_f32(r, r));
    let mantissa = vaddq_f32(mantissa, vdupq_n_f32(1.0));
    // The low bits of what was rounded are the power itself, and the shift drops all others.
    let biased = vaddq_s32(vreinterpretq_s32_f32(rounded), vdupq_n_s32(127));
    let factor = vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased));
    let result = vreinterpretq_u32_f32(vmulq_f32(mantissa, factor));
    vreinterpretq_f32_u32(vandq_u32(result, counts))
}
