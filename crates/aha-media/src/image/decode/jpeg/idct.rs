//! The inverse cosine transform of libjpeg's default ("slow integer") method, bit for bit.
//!
//! The factorisation is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989): 12 multiplications for eight values, in
//! fixed point with 13 bits behind the point. Columns keep two more bits for the rows.

/// Bits behind the point of the constants.
const CONST_BITS: u32 = 13;
/// Bits behind the point that columns keep.
const PASS_BITS: u32 = 2;

const fn fixed(value: f64) -> i32 {
    (value * (1 << CONST_BITS) as f64 + 0.5) as i32
}

/// Eight values through the transform, scaled by `2^CONST_BITS`.
fn transform(x: [i32; 8]) -> [i32; 8] {
    // Even part.
    let z1 = (x[2].wrapping_add(x[6])).wrapping_mul(fixed(0.541_196_100));
    let t2 = z1.wrapping_sub(x[6].wrapping_mul(fixed(1.847_759_065)));
    let t3 = z1.wrapping_add(x[2].wrapping_mul(fixed(0.765_366_865)));
    let t0 = x[0].wrapping_add(x[4]) << CONST_BITS;
    let t1 = x[0].wrapping_sub(x[4]) << CONST_BITS;
    let even = [
        t0.wrapping_add(t3),
        t1.wrapping_add(t2),
        t1.wrapping_sub(t2),
        t0.wrapping_sub(t3),
    ];
    // Odd part.
    let (t0, t1, t2, t3) = (x[7], x[5], x[3], x[1]);
    let z5 = t0
        .wrapping_add(t2)
        .wrapping_add(t1)
        .wrapping_add(t3)
        .wrapping_mul(fixed(1.175_875_602));
    let z1 = t0.wrapping_add(t3).wrapping_mul(-fixed(0.899_976_223));
    let z2 = t1.wrapping_add(t2).wrapping_mul(-fixed(2.562_915_447));
    let z3 = t0
        .wrapping_add(t2)
        .wrapping_mul(-fixed(1.961_570_560))
        .wrapping_add(z5);
    let z4 = t1
        .wrapping_add(t3)
        .wrapping_mul(-fixed(0.390_180_644))
        .wrapping_add(z5);
    let sum = |t: i32, factor: f64, a: i32, b: i32| {
        t.wrapping_mul(fixed(factor))
            .wrapping_add(a)
            .wrapping_add(b)
    };
    let odd = [
        sum(t3, 1.501_321_110, z1, z4),
        sum(t2, 3.072_711_026, z2, z3),
        sum(t1, 2.053_119_869, z2, z4),
        sum(t0, 0.298_631_336, z1, z3),
    ];
    std::array::from_fn(|index| {
        if index < 4 {
            even[index].wrapping_add(odd[index])
        } else {
            even[7 - index].wrapping_sub(odd[7 - index])
        }
    })
}

const fn descale(value: i32, bits: u32) -> i32 {
    value.wrapping_add(1 << (bits - 1)) >> bits
}

/// Samples of a block of coefficients, both row by row, into `plane` of `stride` samples a row, from `start` on.
pub(super) fn block(
    coefficients: &[i16; 64],
    quantization: &[u16; 64],
    plane: &mut [u8],
    start: usize,
    stride: usize,
) {
    let value =
        |index: usize| i32::from(coefficients[index]).wrapping_mul(i32::from(quantization[index]));
    let mut columns = [0_i32; 64];
    for column in 0..8 {
        let transformed = if (1..8).all(|row| coefficients[row * 8 + column] == 0) {
            [value(column) << PASS_BITS; 8]
        } else {
            let column = std::array::from_fn(|row| value(row * 8 + column));
            transform(column).map(|value| descale(value, CONST_BITS - PASS_BITS))
        };
        for (row, value) in transformed.into_iter().enumerate() {
            columns[row * 8 + column] = value;
        }
    }
    for (row, values) in columns.chunks_exact(8).enumerate() {
        let row_values = transform(std::array::from_fn(|index| values[index]));
        let from = start + row * stride;
        for (sample, value) in plane[from..from + 8].iter_mut().zip(row_values) {
            let value = descale(value, CONST_BITS + PASS_BITS + 3);
            *sample = (value + 128).clamp(0, 255) as u8;
        }
    }
}
