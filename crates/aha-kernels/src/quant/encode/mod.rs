//! From values to the blocks of GGUF files: the mirror of [`dequantize_gguf`](crate::dequantize_gguf).
//!
//! The blocks are those of ggml's reference quantisers without an importance matrix. `Q8_0` and
//! `Q4_0` take their scale from the largest magnitude of a block. The nested kinds search: for every
//! group of a block a few scales are tried, each is refined by least squares over the codes that it
//! gives, and the one with the smallest weighted error stays. Large values weigh more.
//!
//! Groups of a block are searched side by side, one a lane, and each sums over its own values in
//! their order. So compilers vectorise the search, and the result is the same whatever the width.

mod affine;
mod symmetric;

use half::f16;

use super::{Format, format_of};
use crate::error::{check_len, checked_mul};
use crate::{InstructionSet, KernelError, WeightKind, instruction_set};

/// Values of a block of nested scales.
const NESTED: usize = 256;
/// The largest magnitude that blocks are made of. Scales are half floats: beyond, they may overflow.
const LARGEST: f32 = 65_504.0;
/// Groups whose largest magnitude is below this count as zero.
const NEGLIGIBLE: f32 = 1e-15;

/// Encodes `data`, values of a matrix row by row, as GGUF blocks of `kind`: `Q4_0`, `Q8_0`, `Q4K`,
/// `Q5K` or `Q6K`. Rows must be whole blocks, see [`WeightKind::gguf_block`].
///
/// A block that is zero decodes to zero. NaN, infinities and magnitudes above 65504 are refused, since
/// one of them would take all values of its block along.
///
/// # Errors
/// When `kind` is none of these, `data` is not a whole number of blocks, `out` has another length than
/// they need, or [`KernelError::Unencodable`] at the first value that is not finite or too large. `out`
/// holds nothing of use then.
pub fn quantize_gguf(kind: WeightKind, data: &[f32], out: &mut [u8]) -> Result<(), KernelError> {
    quantize_gguf_on(instruction_set(), kind, data, out)
}

/// [`quantize_gguf`] on a given instruction set. All of them give the same bytes.
fn quantize_gguf_on(
    set: InstructionSet,
    kind: WeightKind,
    data: &[f32],
    out: &mut [u8],
) -> Result<(), KernelError> {
    let format = format_of(kind)?;
    if !data.len().is_multiple_of(format.values) {
        return Err(KernelError::NotMultiple {
            argument: "length of data",
            value: data.len(),
            of: format.values,
        });
    }
    let bytes = checked_mul(data.len() / format.values, format.file_bytes)?;
    check_len("out", bytes, out.len())?;
    // A range holds no NaN.
    let unfit = |value: &f32| !(0.0..=LARGEST).contains(&value.abs());
    if let Some(index) = data.iter().position(unfit) {
        return Err(KernelError::Unencodable { index });
    }
    match set.require()? {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `require` found AVX2.
        set if set.has_avx2() => unsafe { encode_avx2(kind, &format, data, out) },
        _ => encode(kind, &format, data, out),
    }
}

/// The same code in wider registers. Without fused products, so that it gives the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn encode_avx2(
    kind: WeightKind,
    format: &Format,
    data: &[f32],
    out: &mut [u8],
) -> Result<(), KernelError> {
    encode(kind, format, data, out)
}

#[inline(always)]
fn encode(
    kind: WeightKind,
    format: &Format,
    data: &[f32],
    out: &mut [u8],
) -> Result<(), KernelError> {
    let blocks = out.chunks_exact_mut(format.file_bytes);
    let nested = data.as_chunks::<NESTED>().0;
    let plain = data.as_chunks::<32>().0;
    match kind {
        WeightKind::Q8_0 => plain.iter().zip(blocks).for_each(|(x, out)| q8_0(x, out)),
        WeightKind::Q4_0 => plain.iter().zip(blocks).for_each(|(x, out)| q4_0(x, out)),
        WeightKind::Q4K => nested
            .iter()
            .zip(blocks)
            .for_each(|(x, out)| affine::q4_k(x, out)),
        WeightKind::Q5K => nested
            .iter()
            .zip(blocks)
            .for_each(|(x, out)| affine::q5_k(x, out)),
        WeightKind::Q6K => nested
            .iter()
            .zip(blocks)
            .for_each(|(x, out)| symmetric::q6_k(x, out)),
        kind => {
            return Err(KernelError::Kind {
                kind,
                expected: "one that is encoded to: Q4_0, Q8_0, Q4K, Q5K or Q6K",
            });
        }
    }
    Ok(())
}

/// 127 steps on either side of zero; halves are rounded away from it.
#[inline(always)]
fn q8_0(values: &[f32; 32], out: &mut [u8]) {
    let largest = values
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = inverse_of(scale);
    put_half(out, 0, scale);
    for (code, value) in out[2..].iter_mut().zip(values) {
        *code = ((value * inverse).round() as i8).cast_unsigned();
    }
}

/// Eight steps towards the sign of the largest magnitude, seven to the other side.
#[inline(always)]
fn q4_0(values: &[f32; 32], out: &mut [u8]) {
    let furthest = values.iter().fold(0.0_f32, |most, &value| {
        if value.abs() > most.abs() {
            value
        } else {
            most
        }
    });
    let scale = furthest / -8.0;
    let inverse = inverse_of(scale);
    put_half(out, 0, scale);
    let code = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let (low, high) = values.split_at(16);
    for ((byte, &low), &high) in out[2..].iter_mut().zip(low).zip(high) {
        *byte = code(low) | code(high) << 4;
    }
}

/// `1 / scale`; 0 where that is none.
fn inverse_of(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The nearest whole number, of two the even one, for magnitudes below 2^22.
///
/// Adding 1.5 * 2^23 leaves no bits for fractions. It is two additions on every instruction set, where
/// rounding is a function call on some.
#[inline(always)]
fn nearest(value: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0;
    (value + NO_FRACTIONS) - NO_FRACTIONS
}

/// Lane `group` of line `place` is value `place` of that group.
#[inline(always)]
fn side_by_side<const GROUPS: usize, const PLACES: usize>(
    values: &[f32; NESTED],
) -> [[f32; GROUPS]; PLACES] {
    let mut lines = [[0.0; GROUPS]; PLACES];
    for (group, values) in values.chunks_exact(PLACES).enumerate() {
        for (line, value) in lines.iter_mut().zip(values) {
            line[group] = *value;
        }
    }
    lines
}

/// Writes the half float nearest to `value` at byte `at` and returns what it is now.
#[inline(always)]
fn put_half(out: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    out[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

#[cfg(test)]
mod tests;
