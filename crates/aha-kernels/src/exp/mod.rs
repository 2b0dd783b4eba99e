//! The exponential function, in a form that vectorises and that both kernel bodies share.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;

use std::f32::consts::LOG2_E;

use crate::fused::multiply_add;

/// `exp` is zero below this and infinite above the other, in `f32`.
const LOWEST: f32 = -104.0;
const HIGHEST: f32 = 89.0;

/// Where a share of a softmax may as well be zero: e^-86 is 4.5e-38.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const LEAST: f32 = -86.0;

/// ln 2 in two parts; the first has trailing zeros, so that its small multiples are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Adding and subtracting 1.5 x 2^23 rounds to the nearest integer.
const ROUNDER: f32 = 12_582_912.0;

/// Coefficients of (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, highest power first: the minimax
/// polynomial of the Cephes library.
const POLYNOMIAL: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// e^x within two units in the last place; NaN stays NaN.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    exp_of::<false>(x)
}

/// [`exp`], with `FUSED` for processors with fused multiply-adds.
#[inline(always)]
pub(crate) fn exp_of<const FUSED: bool>(x: f32) -> f32 {
    // Written as comparisons, because `f32::max` would drop NaN.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let power = multiply_add::<FUSED>(x, LOG2_E, ROUNDER) - ROUNDER;
    let r = multiply_add::<FUSED>(-power, LN_2_HIGH, x);
    let r = multiply_add::<FUSED>(-power, LN_2_LOW, r);
    let mut tail = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        tail = multiply_add::<FUSED>(tail, r, *coefficient);
    }
    let mantissa = multiply_add::<FUSED>(tail, r * r, r) + 1.0;
    // Two factors, because 2^128 and the smallest denormals are out of reach of one exponent field.
    let power = power as i32;
    let half = power >> 1;
    mantissa * power_of_two(half) * power_of_two(power - half)
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) << 23).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.0_f32;
        while x < 88.7 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (got - want).abs() <= 2.5e-7 * want,
                "exp({x}) = {got}, not {want}"
            );
            x += 0.000_97 + x.abs() * 1e-4;
        }
    }

    #[test]
    fn exp_meets_its_limits() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-100.0) > 0.0 && exp(-100.0) < 1e-43);
    }

    #[test]
    fn exp_with_fused_products_is_exp() {
        let mut x = -104.5_f32;
        while x < 89.5 {
            let (got, want) = (f64::from(super::exp_of::<true>(x)), f64::from(exp(x)));
            assert!(
                got == want || (got - want).abs() <= 2.5e-7 * want + 1e-44,
                "{x}: {got} {want}"
            );
            x += 0.003;
        }
        assert!(super::exp_of::<true>(f32::NAN).is_nan());
        assert_eq!(super::exp_of::<true>(f32::INFINITY), f32::INFINITY);
    }

    /// One lane of the vector body for softmax, where there is one.
    #[cfg(target_arch = "x86_64")]
    fn exp_of_negative(x: f32) -> Option<f32> {
        use std::arch::x86_64::{_mm256_loadu_ps, _mm256_storeu_ps};
        let mut lanes = [x; 8];
        // SAFETY: the instruction set is available, and the array holds eight values.
        crate::InstructionSet::Avx2.is_available().then(|| unsafe {
            let result = super::avx2::exp_of_negative(_mm256_loadu_ps(lanes.as_ptr()));
            _mm256_storeu_ps(lanes.as_mut_ptr(), result);
            lanes[3]
        })
    }

    #[cfg(target_arch = "aarch64")]
    fn exp_of_negative(x: f32) -> Option<f32> {
        use std::arch::aarch64::{vdupq_n_f32, vgetq_lane_f32};
        // SAFETY: the instruction set is available.
        crate::InstructionSet::Neon
            .is_available()
            .then(|| unsafe { vgetq_lane_f32::<3>(super::neon::exp_of_negative(vdupq_n_f32(x))) })
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn exp_of_negative_numbers_is_exp_down_to_its_end() {
        if exp_of_negative(0.0).is_none() {
            return;
        }
        let of = |x: f32| exp_of_negative(x).unwrap();
        let mut x = -85.99_f32;
        while x <= 0.0 {
            let (got, want) = (f64::from(of(x)), f64::from(exp(x)));
            assert!((got - want).abs() <= 2.5e-7 * want, "{x}: {got} {want}");
            x += 0.003;
        }
        assert_eq!(of(0.0), 1.0);
        assert_eq!(
            (of(-86.5), of(-1e30), of(f32::NEG_INFINITY)),
            (0.0, 0.0, 0.0)
        );
        assert!(of(f32::NAN).is_nan() && of(f32::from_bits(0xffc0_0001)).is_nan());
    }
}
