//! The AVX2 body.

use std::arch::x86_64::*;

use super::{PI_PARTS, ROUNDER, SINE};

/// See [`super::snake`]; one row.
#[target_feature(enable = "avx2,fma")]
pub(super) fn snake(x: &[f32], alpha: &[f32], scale: &[f32], out: &mut [f32]) {
    let mut outs = out.chunks_exact_mut(8);
    let inputs = x
        .chunks_exact(8)
        .zip(alpha.chunks_exact(8))
        .zip(scale.chunks_exact(8));
    for (((x, alpha), scale), out) in inputs.zip(&mut outs) {
        // SAFETY: the chunks hold eight values each.
        unsafe { eight(x.as_ptr(), alpha.as_ptr(), scale.as_ptr(), out.as_mut_ptr()) }
    }
    let rest = outs.into_remainder();
    if rest.is_empty() {
        return;
    }
    let whole = x.len() - rest.len();
    let padded = |values: &[f32]| {
        let mut eight = [0.0; 8];
        eight[..rest.len()].copy_from_slice(&values[whole..]);
        eight
    };
    let (x, alpha, scale, mut last) = (padded(x), padded(alpha), padded(scale), [0.0; 8]);
    // SAFETY: the arrays hold eight values each.
    unsafe {
        eight(
            x.as_ptr(),
            alpha.as_ptr(),
            scale.as_ptr(),
            last.as_mut_ptr(),
        )
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Eight channels.
///
/// # Safety
/// All pointers address eight values.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn eight(x: *const f32, alpha: *const f32, scale: *const f32, out: *mut f32) {
    // SAFETY: as the caller promises.
    let (x, alpha, scale) = unsafe {
        (
            _mm256_loadu_ps(x),
            _mm256_loadu_ps(alpha),
            _mm256_loadu_ps(scale),
        )
    };
    let y = _mm256_mul_ps(alpha, x);
    let rounder = _mm256_set1_ps(ROUNDER);
    let periods = _mm256_mul_ps(y, _mm256_set1_ps(std::f32::consts::FRAC_1_PI));
    let periods = _mm256_sub_ps(_mm256_add_ps(periods, rounder), rounder);
    let mut r = y;
    for part in PI_PARTS {
        r = _mm256_fnmadd_ps(periods, _mm256_set1_ps(part), r);
    }
    let square = _mm256_mul_ps(r, r);
    let mut tail = _mm256_set1_ps(SINE[0]);
    for &coefficient in &SINE[1..] {
        tail = _mm256_fmadd_ps(tail, square, _mm256_set1_ps(coefficient));
    }
    let sine = _mm256_fmadd_ps(_mm256_mul_ps(r, square), tail, r);
    let result = _mm256_fmadd_ps(scale, _mm256_mul_ps(sine, sine), x);
    // SAFETY: as above.
    unsafe { _mm256_storeu_ps(out, result) }
}
