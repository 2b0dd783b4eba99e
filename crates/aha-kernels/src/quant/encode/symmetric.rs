//! `Q6_K`: sixteen groups of 16 values, each `scale * code` with codes on both sides of zero.

use super::{NEGLIGIBLE, NESTED, nearest, put_half, side_by_side};

const GROUPS: usize = 16;
const PLACES: usize = 16;
/// Codes go from `-LEVELS` to `LEVELS - 1`.
const LEVELS: f32 = 32.0;
/// Trials on either side of the scale that just holds the furthest value, a tenth of a code apart.
const TRIALS: i8 = 9;

type Lanes = [f32; GROUPS];

/// `out`: 128 bytes of low halves, 64 of high pairs, sixteen scales, a half float.
#[inline(always)]
pub(super) fn q6_k(values: &[f32; NESTED], out: &mut [u8]) {
    out.fill(0);
    let scales = fit(&side_by_side(values));
    let furthest = scales.iter().fold(0.0_f32, |most, &scale| {
        if scale.abs() > most.abs() {
            scale
        } else {
            most
        }
    });
    if furthest.abs() < NEGLIGIBLE {
        return;
    }
    // The furthest scale becomes -128, which a signed byte reaches on that side only.
    let inverse = -128.0 / furthest;
    let factor = put_half(out, 208, 1.0 / inverse);
    let scales = scales.map(|scale| nearest(inverse * scale).clamp(-128.0, 127.0) as i8);
    for (byte, scale) in out[192..208].iter_mut().zip(scales) {
        *byte = scale.cast_unsigned();
    }
    for (index, value) in values.iter().enumerate() {
        let scale = factor * f32::from(scales[index / PLACES]);
        // Nothing else than zero can be told with a scale of zero.
        let code = if scale == 0.0 { 0.0 } else { value / scale };
        let code = nearest(code.clamp(-LEVELS, LEVELS - 1.0)) + LEVELS;
        let code = code as u8;
        let (half, quarter, place) = (index / 128, index / 32 % 4, index % 32);
        out[64 * half + 32 * (quarter % 2) + place] |= (code & 15) << (4 * (quarter / 2));
        out[128 + 32 * half + place] |= (code >> 4) << (2 * quarter);
    }
}

/// Scales of all groups, before they are rounded. Squares of the values weigh the errors.
#[inline(always)]
fn fit(x: &[Lanes; PLACES]) -> Lanes {
    let mut furthest = [0.0_f32; GROUPS];
    for line in x {
        for group in 0..GROUPS {
            if line[group].abs() > furthest[group].abs() {
                furthest[group] = line[group];
            }
        }
    }
    let zero = furthest.map(|furthest| furthest.abs() < NEGLIGIBLE);
    // Any value will do where there is none: what comes of it is not used.
    let furthest = furthest.map(|furthest| {
        if furthest.abs() < NEGLIGIBLE {
            1.0
        } else {
            furthest
        }
    });
    let (mut scales, mut gains) = ([0.0; GROUPS], [0.0; GROUPS]);
    let (sum_xl, sum_ll) = sums(x, &furthest, LEVELS);
    for group in 0..GROUPS {
        if sum_ll[group] > 0.0 {
            scales[group] = sum_xl[group] / sum_ll[group];
        }
        gains[group] = scales[group] * sum_xl[group];
    }
    for trial in (-TRIALS..=TRIALS).filter(|trial| *trial != 0) {
        let (sum_xl, sum_ll) = sums(x, &furthest, LEVELS + 0.1 * f32::from(trial));
        for group in 0..GROUPS {
            // What a scale takes off the weighted error is the square of `xl` over `ll`.
            let (xl, ll) = (sum_xl[group], sum_ll[group]);
            if ll > 0.0 && xl * xl > gains[group] * ll {
                scales[group] = xl / ll;
                gains[group] = scales[group] * xl;
            }
        }
    }
    for group in 0..GROUPS {
        if zero[group] {
            scales[group] = 0.0;
        }
    }
    scales
}

/// Weighted sums of value times code and of squared codes, where the furthest value gets `-levels`.
#[inline(always)]
fn sums(x: &[Lanes; PLACES], furthest: &Lanes, levels: f32) -> (Lanes, Lanes) {
    let inverse = furthest.map(|furthest| -levels / furthest);
    let (mut sum_xl, mut sum_ll) = ([0.0; GROUPS], [0.0; GROUPS]);
    for line in x {
        for group in 0..GROUPS {
            let value = line[group];
            let code = nearest(inverse[group] * value).clamp(-LEVELS, LEVELS - 1.0);
            let weight = value * value;
            sum_xl[group] += weight * value * code;
            sum_ll[group] += weight * code * code;
        }
    }
    (sum_xl, sum_ll)
}
