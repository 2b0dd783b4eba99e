//! The NEON body: four registers hold four codes of each of sixteen rows.
//!
//! Codes are multiplied with their sign: those of few bits have none, and those of eight bits get theirs back. The
//! intrinsics of dot products are not stable yet, so they are written as assembly.

use std::arch::aarch64::*;
use std::arch::asm;

use super::kernel::{self, Lanes, STEPS, Source};
use super::pairs;
use super::{Format, Layout, Tile};
use crate::buffer::Line;
use crate::quant::UNIT;
use crate::quant::activations::{Quantise, ROUNDING, Unit, scales};

/// How products of bytes are taken, by instruction set.
pub(super) const WIDENED: u8 = 0;
pub(super) const DOTPROD: u8 = 1;
pub(super) const I8MM: u8 = 2;

/// The lanes, with products as `HOW` says.
pub(super) struct Neon<const HOW: u8>;

/// Registers of sixteen lanes.
const PARTS: usize = 4;

/// Rows of the largest tile: their integer sums take sixteen of 32 registers, and unpacking needs most of the others.
pub(super) const MOST: usize = 4;

// The functions below are inlined into those with the target features at the end of the file. Loops over numbers,
// because iterators over arrays of vectors are not taken apart.
#[allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "only inlined do they have the instruction set"
)]
impl<const HOW: u8> Lanes for Neon<HOW> {
    type Int = [int32x4_t; PARTS];
    type Words = [uint8x16_t; PARTS];
    type Codes = [int8x16_t; PARTS];
    type Float = [float32x4_t; PARTS];

    const UNPACKS: bool = true;

    #[inline(always)]
    unsafe fn integers(value: i32) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { [vdupq_n_s32(value); PARTS] }
    }

    #[inline(always)]
    unsafe fn words(at: *const u8) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe {
            [
                vld1q_u8(at),
                vld1q_u8(at.add(16)),
                vld1q_u8(at.add(32)),
                vld1q_u8(at.add(48)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn field(mut words: Self::Words, shift: usize, bits: usize) -> Self::Words {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            words[part] = unsafe { field(words[part], shift, bits) };
        }
        words
    }

    #[inline(always)]
    unsafe fn join(mut low: Self::Words, high: Self::Words, up: usize) -> Self::Words {
        for part in 0..PARTS {
            // What is below `up` stays: the low bits, which are no more.
            // SAFETY: the caller's promise.
            low[part] = unsafe {
                match up {
                    2 => vsliq_n_u8::<2>(low[part], high[part]),
                    4 => vsliq_n_u8::<4>(low[part], high[part]),
                    _ => unreachable!("low planes have two or four bits"),
                }
            };
        }
        low
    }

    #[inline(always)]
    unsafe fn store_words(words: Self::Words, at: *mut u8) {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            unsafe { vst1q_u8(at.add(16 * part), words[part]) }
        }
    }

    #[inline(always)]
    unsafe fn codes(words: Self::Words, wide: bool) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe {
            let mut codes = [vdupq_n_s8(0); PARTS];
            for part in 0..PARTS {
                codes[part] = code(words[part], wide);
            }
            codes
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Int, codes: Self::Codes, x: u32, _wide: bool) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe {
            let x = vreinterpretq_s8_u32(vdupq_n_u32(x));
            dot_lane::<HOW, 0>(sums, codes, x)
        }
    }

    #[inline(always)]
    unsafe fn dot_rows<const STEP: usize, const ROWS: usize>(
        sums: &mut [Self::Int; ROWS],
        codes: Self::Codes,
        x: *const u32,
        _wide: bool,
    ) {
        // The words of a unit are whole registers, and a product takes any lane of one.
        macro_rules! rows {
            ($($row:literal)*) => {
                $(if $row < ROWS {
                    let place = STEP * ROWS + $row;
                    // SAFETY: the caller's promise.
                    unsafe {
                        let x = vld1q_s8(x.add(place / 4 * 4).cast());
                        sums[$row] = match place % 4 {
                            0 => dot_lane::<HOW, 0>(sums[$row], codes, x),
                            1 => dot_lane::<HOW, 1>(sums[$row], codes, x),
                            2 => dot_lane::<HOW, 2>(sums[$row], codes, x),
                            _ => dot_lane::<HOW, 3>(sums[$row], codes, x),
                        };
                    }
                })*
            };
        }
        debug_assert!(ROWS <= MOST);
        rows!(0 1 2 3);
    }

    #[inline(always)]
    unsafe fn zeros() -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { [vdupq_n_f32(0.0); PARTS] }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            [
                vld1q_f32(at),
                vld1q_f32(at.add(4)),
                vld1q_f32(at.add(8)),
                vld1q_f32(at.add(12)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Float, at: *mut f32) {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            unsafe { vst1q_f32(at.add(4 * part), values[part]) }
        }
    }

    #[inline(always)]
    unsafe fn add_scaled(
        mut sums: Self::Float,
        integers: Self::Int,
        scale: Self::Float,
        factor: f32,
    ) -> Self::Float {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            sums[part] = unsafe {
                let scale = vmulq_n_f32(scale[part], factor);
                vfmaq_f32(sums[part], vcvtq_f32_s32(integers[part]), scale)
            };
        }
        sums
    }

    #[inline(always)]
    unsafe fn subtract(mut sums: Self::Float, minimum: Self::Float, factor: f32) -> Self::Float {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            sums[part] = unsafe { vfmsq_n_f32(sums[part], minimum[part], factor) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn multiply(mut a: Self::Float, b: Self::Float) -> Self::Float {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            a[part] = unsafe { vmulq_f32(a[part], b[part]) };
        }
        a
    }

    #[inline(always)]
    unsafe fn negate(mut a: Self::Float) -> Self::Float {
        for part in 0..PARTS {
            // SAFETY: the caller's promise.
            a[part] = unsafe { vnegq_f32(a[part]) };
        }
        a
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let low = vreinterpretq_f16_u8(vld1q_u8(at));
            let high = vreinterpretq_f16_u8(vld1q_u8(at.add(16)));
            [
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8, shift: usize, bits: usize) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let mut bytes = vld1q_u8(at);
            if bits < 8 {
                bytes = field(bytes, shift, bits);
            }
            let bytes = vreinterpretq_s8_u8(bytes);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn arrange(unit: *mut u8) {
        if HOW == I8MM {
            // SAFETY: the caller's promise.
            unsafe { pairs::arrange(unit) }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Source<Self>, const ROWS: usize>(
        x: *const u32,
        units: usize,
        source: S,
        panels: usize,
        out: *mut Line,
    ) {
        macro_rules! with_features {
            ($features:literal, $kernel:path) => {{
                #[target_feature(enable = $features)]
                unsafe fn run<const HOW: u8, S: Source<Neon<HOW>>, const ROWS: usize>(
                    x: *const u32,
                    units: usize,
                    source: S,
                    panels: usize,
                    out: *mut Line,
                ) {
                    // SAFETY: the caller's promise.
                    unsafe { $kernel(x, units, source, panels, out) }
                }
                // SAFETY: the caller's promise.
                unsafe { run::<HOW, S, ROWS>(x, units, source, panels, out) }
            }};
        }
        match HOW {
            WIDENED => with_features!("neon", kernel::kernel::<Neon<HOW>, S, ROWS>),
            // A single row has no other to make a pair with.
            I8MM if ROWS > 1 || S::UNPACKED => {
                with_features!("neon,dotprod,i8mm", pairs::kernel::<HOW, S, ROWS>)
            }
            _ => with_features!("neon,dotprod", kernel::kernel::<Neon<HOW>, S, ROWS>),
        }
    }
}

/// The lowest `bits` bits of every byte after a shift to the right.
#[inline(always)]
unsafe fn field(bytes: uint8x16_t, shift: usize, bits: usize) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        let shifted = match shift {
            0 => bytes,
            1 => vshrq_n_u8::<1>(bytes),
            2 => vshrq_n_u8::<2>(bytes),
            3 => vshrq_n_u8::<3>(bytes),
            4 => vshrq_n_u8::<4>(bytes),
            5 => vshrq_n_u8::<5>(bytes),
            6 => vshrq_n_u8::<6>(bytes),
            _ => vshrq_n_u8::<7>(bytes),
        };
        vandq_u8(shifted, vdupq_n_u8(((1_u32 << bits) - 1) as u8))
    }
}

/// Codes with their sign.
#[inline(always)]
pub(super) unsafe fn code(word: uint8x16_t, wide: bool) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        vreinterpretq_s8_u8(if wide {
            veorq_u8(word, vdupq_n_u8(0x80))
        } else {
            word
        })
    }
}

/// Adds the dot products with the four bytes of a lane of `x`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "as above")]
unsafe fn dot_lane<const HOW: u8, const LANE: i32>(
    mut sums: [int32x4_t; PARTS],
    codes: [int8x16_t; PARTS],
    x: int8x16_t,
) -> [int32x4_t; PARTS] {
    for part in 0..PARTS {
        // SAFETY: the caller's promise.
        unsafe {
            if HOW == WIDENED {
                let x = vreinterpretq_s32_s8(x);
                let x = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(x));
                // Two products are added in 16 bits: 2 * 128 * 127 fits.
                let low = vmull_s8(vget_low_s8(codes[part]), vget_low_s8(x));
                let high = vmull_high_s8(codes[part], x);
                sums[part] = vpadalq_s16(sums[part], vpaddq_s16(low, high));
            } else {
                asm!(
                    "sdot {sums:v}.4s, {codes:v}.16b, {x:v}.4b[{lane}]",
                    sums = inout(vreg) sums[part],
                    codes = in(vreg) codes[part],
                    x = in(vreg) x,
                    lane = const LANE,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    }
    sums
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and the instruction set of `HOW` present.
pub(super) unsafe fn multiply<const HOW: u8>(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Neon<HOW>, MOST>(tile) }
}

/// See [`super::unpack`].
///
/// # Safety
/// The lengths must be as asserted there, and NEON present.
#[target_feature(enable = "neon")]
pub(super) unsafe fn unpack<const HOW: u8>(
    format: &Format,
    panel: &[u8],
    units: usize,
    out: &mut [Line],
) {
    // SAFETY: the caller's promise.
    unsafe { kernel::unpack::<Neon<HOW>>(format, panel, units, out) }
}

/// See [`Layout::quantise`].
///
/// # Safety
/// NEON must be present.
#[target_feature(enable = "neon")]
pub(super) unsafe fn quantise(layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    // SAFETY: the caller's promise.
    unsafe { layout.quantise::<Neon<WIDENED>>(x, rows, words) }
}

#[allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "only inlined does it have the instruction set"
)]
impl Quantise for Neon<WIDENED> {
    #[inline(always)]
    unsafe fn unit(x: &[f32; UNIT]) -> Unit {
        let mut words = [0; STEPS];
        // SAFETY: the caller's promise; a unit is eight registers of values, and two of codes.
        unsafe {
            let mut values = [vdupq_n_f32(0.0); UNIT / 4];
            let mut sizes = vdupq_n_u32(0);
            for part in 0..UNIT / 4 {
                values[part] = vld1q_f32(x.as_ptr().add(4 * part));
                sizes = vmaxq_u32(sizes, vreinterpretq_u32_f32(vabsq_f32(values[part])));
            }
            let (scale, inverse) = scales(vmaxvq_u32(sizes));
            let mut half_sums = [0; 2];
            for half in 0..2 {
                let mut codes = [vdupq_n_u16(0); 4];
                for part in 0..4 {
                    let product = vmulq_n_f32(values[4 * half + part], inverse);
                    let rounded = vaddq_f32(product, vdupq_n_f32(ROUNDING));
                    codes[part] = vreinterpretq_u16_f32(rounded);
                }
                // The lowest byte of each.
                let low = vreinterpretq_s8_u16(vuzp1q_u16(codes[0], codes[1]));
                let high = vreinterpretq_s8_u16(vuzp1q_u16(codes[2], codes[3]));
                let bytes = vuzp1q_s8(low, high);
                vst1q_s8(words.as_mut_ptr().add(4 * half).cast(), bytes);
                half_sums[half] = i32::from(vaddlvq_s8(bytes));
            }
            Unit {
                words,
                scale,
                half_sums,
            }
        }
    }
}
