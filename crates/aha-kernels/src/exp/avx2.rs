//! The exponential function of eight lanes.

use std::arch::x86_64::*;

use super::{HIGHEST, LEAST, LN_2_HIGH, LN_2_LOW, LOWEST, POLYNOMIAL, ROUNDER};

/// e^x of eight lanes: the vector body of [`crate::exp::exp`].
#[target_feature(enable = "avx2,fma")]
pub(crate) fn exp(x: __m256) -> __m256 {
    // When a lane of the second operand is NaN, `min` and `max` answer that operand.
    let x = _mm256_max_ps(_mm256_set1_ps(LOWEST), x);
    let x = _mm256_min_ps(_mm256_set1_ps(HIGHEST), x);
    let rounder = _mm256_set1_ps(ROUNDER);
    let log2_e = _mm256_set1_ps(std::f32::consts::LOG2_E);
    let power = _mm256_sub_ps(_mm256_fmadd_ps(x, log2_e, rounder), rounder);
    let r = _mm256_fnmadd_ps(power, _mm256_set1_ps(LN_2_HIGH), x);
    let r = _mm256_fnmadd_ps(power, _mm256_set1_ps(LN_2_LOW), r);
    let mut tail = _mm256_set1_ps(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        tail = _mm256_fmadd_ps(tail, r, _mm256_set1_ps(coefficient));
    }
    let mantissa = _mm256_add_ps(
        _mm256_fmadd_ps(tail, _mm256_mul_ps(r, r), r),
        _mm256_set1_ps(1.0),
    );
    let power = _mm256_cvtps_epi32(power);
    let half = _mm256_srai_epi32::<1>(power);
    let rest = _mm256_sub_epi32(power, half);
    _mm256_mul_ps(
        _mm256_mul_ps(mantissa, power_of_two(half)),
        power_of_two(rest),
    )
}

/// e^x of eight lanes that are not positive, for softmax: zero below `LEAST`, where [`exp`] goes on to the smallest
/// numbers that there are. NaN stays NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn exp_of_negative(x: __m256) -> __m256 {
    let least = _mm256_set1_ps(LEAST);
    let counts = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, least);
    let x = _mm256_max_ps(least, x);
    let rounder = _mm256_set1_ps(ROUNDER);
    let rounded = _mm256_fmadd_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E), rounder);
    let power = _mm256_sub_ps(rounded, rounder);
    let r = _mm256_fnmadd_ps(power, _mm256_set1_ps(LN_2_HIGH), x);
    let r = _mm256_fnmadd_ps(power, _mm256_set1_ps(LN_2_LOW), r);
    let mut tail = _mm256_set1_ps(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        tail = _mm256_fmadd_ps(tail, r, _mm256_set1_ps(coefficient));
    }
    let mantissa = _mm256_fmadd_ps(tail, _mm256_mul_ps(r, r), r);
    let mantissa = _mm256_add_ps(mantissa, _mm256_set1_ps(1.0));
    // The low bits of what was rounded are the power itself, and the shift drops all others.
    let biased = _mm256_add_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(127));
    let factor = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
    _mm256_and_ps(_mm256_mul_ps(mantissa, factor), counts)
}

#[target_feature(enable = "avx2,fma")]
fn power_of_two(exponent: __m256i) -> __m256 {
    let biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
}
