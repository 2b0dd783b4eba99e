//! The kernel for products of small matrices (I8MM): two rows of weights with two rows of activations, eight
//! columns at once.
//!
//! A register of sums holds two lanes of a panel for two rows, `[lane][row]`, and stays so until the end: an output
//! has the bits that [`kernel`](super::kernel::kernel) gives it. A row without another beside it is its own partner.

use std::arch::aarch64::*;
use std::arch::asm;

use super::kernel::{STEPS, Source};
use super::neon::{Neon, code};
use crate::buffer::Line;

/// Pairs of lanes of a panel.
const LANES: usize = 8;

/// Pairs of rows of the largest tile.
const MOST: usize = super::neon::MOST / 2;

/// Sums, scales or minima of all pairs of lanes.
type Pairs<T> = [T; LANES];

/// Brings the codes of an unpacked unit to the order in which products take them: of each two lines, eight columns of
/// lane after lane.
///
/// # Safety
/// A unit's lines must be readable and writable at `unit`, and NEON present.
#[inline(always)]
pub(super) unsafe fn arrange(unit: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        for steps in 0..STEPS / 2 {
            let at = unit.add(2 * size_of::<Line>() * steps);
            let mut codes = [vdupq_n_u8(0); LANES];
            for (part, codes) in codes.iter_mut().enumerate() {
                *codes = vld1q_u8(at.add(16 * part));
            }
            for part in 0..LANES / 2 {
                let [low, high] = zip(codes[part], codes[LANES / 2 + part]);
                vst1q_u8(at.add(32 * part), low);
                vst1q_u8(at.add(32 * part + 16), high);
            }
        }
    }
}

/// Lanes of two steps beside each other.
#[inline(always)]
unsafe fn zip(first: uint8x16_t, second: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, second) = (vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second));
        [
            vreinterpretq_u8_u32(vzip1q_u32(first, second)),
            vreinterpretq_u8_u32(vzip2q_u32(first, second)),
        ]
    }
}

/// Each lane twice.
#[inline(always)]
unsafe fn doubled(lanes: [float32x4_t; 4]) -> Pairs<float32x4_t> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut pairs = [vdupq_n_f32(0.0); LANES];
        for part in 0..LANES / 2 {
            pairs[2 * part] = vzip1q_f32(lanes[part], lanes[part]);
            pairs[2 * part + 1] = vzip2q_f32(lanes[part], lanes[part]);
        }
        pairs
    }
}

/// The 32-bit words of a pair of rows, of which `at` is the first: twice, one behind the other.
#[inline(always)]
unsafe fn words_of_pair(at: *const u32, alone: bool) -> uint32x4_t {
    // SAFETY: the caller's promise: two words, or one where the row is alone.
    unsafe {
        if alone {
            vdupq_n_u32(at.read())
        } else {
            vreinterpretq_u32_u64(vdupq_n_u64(at.cast::<u64>().read_unaligned()))
        }
    }
}

/// `ROWS` rows of `x`, as [`Layout`](super::Layout) has them in pairs, with some panels, one after another.
///
/// # Safety
/// As [`kernel`](super::kernel::kernel), and I8MM must be present.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "only inlined does it have the instruction set"
)]
pub(super) unsafe fn kernel<const HOW: u8, S: Source<Neon<HOW>>, const ROWS: usize>(
    x: *const u32,
    units: usize,
    source: S,
    panels: usize,
    out: *mut Line,
) {
    for index in 0..panels {
        // SAFETY: the caller's promises.
        unsafe { multiply::<HOW, S, ROWS>(x, units, source, index, out.add(index * ROWS)) }
    }
}

/// The same with panel `index`.
#[inline(always)]
#[allow(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "only inlined does it have the instruction set; iterators over arrays of vectors are not taken apart"
)]
unsafe fn multiply<const HOW: u8, S: Source<Neon<HOW>>, const ROWS: usize>(
    x: *const u32,
    units: usize,
    source: S,
    index: usize,
    out: *mut Line,
) {
    let pairs = const { ROWS.div_ceil(2) };
    debug_assert!(pairs <= MOST);
    let alone = |pair: usize| 2 * pair + 1 == ROWS;
    // SAFETY: the caller's promises; all offsets are those of the layouts.
    unsafe {
        let scales: *const f32 = x.add(ROWS * units * STEPS).cast();
        let row_sums: *const u32 = scales.add(ROWS * units).cast();
        let mut sums = [[vdupq_n_f32(0.0); LANES]; MOST];
        for unit in 0..units {
            let panel = source.panel(index, unit);
            let x = x.add(unit * STEPS * ROWS);
            let scales: *const u32 = scales.add(unit * ROWS).cast();
            let row_sums = row_sums.add(unit * S::GROUPS * ROWS);
            macro_rules! group {
                ($group:literal: $($first:literal $second:literal),*) => {{
                    let row_sums = row_sums.add($group * ROWS);
                    let mut integers = [[vdupq_n_s32(0); LANES]; MOST];
                    if !S::MINIMA {
                        for pair in 0..pairs {
                            let start = words_of_pair(row_sums.add(2 * pair), alone(pair));
                            integers[pair] = [vreinterpretq_s32_u32(start); LANES];
                        }
                    }
                    $(
                        let mut rows = [vdupq_n_s8(0); MOST];
                        for pair in 0..pairs {
                            let at = x.add($first * ROWS + 4 * pair);
                            rows[pair] = if alone(pair) {
                                vreinterpretq_s8_u64(vdupq_n_u64(at.cast::<u64>().read_unaligned()))
                            } else {
                                vld1q_s8(at.cast())
                            };
                        }
                        let words = [panel.words::<$first>(unit), panel.words::<$second>(unit)];
                        for part in 0..LANES / 2 {
                            let codes = if S::UNPACKED {
                                let place = 2 * part;
                                [words[place / 4][place % 4], words[place / 4][place % 4 + 1]]
                            } else {
                                zip(words[0][part], words[1][part])
                            };
                            for half in 0..2 {
                                let codes = code(codes[half], S::WIDE);
                                for pair in 0..pairs {
                                    let sums = &mut integers[pair][2 * part + half];
                                    *sums = products(*sums, codes, rows[pair]);
                                }
                            }
                        }
                    )*
                    let (scale, minimum) = panel.factors::<$group>(unit);
                    let (scale, minimum) = (doubled(scale), doubled(minimum));
                    for pair in 0..pairs {
                        let factor = words_of_pair(scales.add(2 * pair), alone(pair));
                        let factor = vreinterpretq_f32_u32(factor);
                        for place in 0..LANES {
                            let scale = vmulq_f32(scale[place], factor);
                            let integers = vcvtq_f32_s32(integers[pair][place]);
                            sums[pair][place] = vfmaq_f32(sums[pair][place], integers, scale);
                        }
                        if S::MINIMA {
                            let factor = words_of_pair(row_sums.add(2 * pair), alone(pair));
                            let factor = vreinterpretq_f32_u32(factor);
                            for place in 0..LANES {
                                let sums = &mut sums[pair][place];
                                *sums = vfmsq_f32(*sums, minimum[place], factor);
                            }
                        }
                    }
                }};
            }
            if S::GROUPS == 1 {
                group!(0: 0 1, 2 3, 4 5, 6 7);
            } else {
                group!(0: 0 1, 2 3);
                group!(1: 4 5, 6 7);
            }
        }
        for row in 0..ROWS {
            let line: *mut f32 = out.add(row).cast();
            let sums = &sums[row / 2];
            for part in 0..LANES / 2 {
                let (low, high) = (sums[2 * part], sums[2 * part + 1]);
                let lanes = match row % 2 {
                    0 => vuzp1q_f32(low, high),
                    _ => vuzp2q_f32(low, high),
                };
                vst1q_f32(line.add(4 * part), lanes);
            }
        }
    }
}

/// Adds the products of two rows of eight codes with two rows of eight activations.
#[inline(always)]
unsafe fn products(mut sums: int32x4_t, codes: int8x16_t, rows: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "smmla {sums:v}.4s, {codes:v}.16b, {rows:v}.16b",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            rows = in(vreg) rows,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
