//! The NEON kernels: each accumulator lane is one chain of fused multiply-adds.

use std::arch::aarch64::*;
use std::arch::asm;

use super::shapes::{Operands, all_shapes, multiply_tile, shapes};
use super::{Activations, Panels, Sums};
use crate::buffer::{Line, prefetch_at, prefetch_now};
use crate::pack::WeightKind;

/// Sums of the largest tile, four registers each.
pub(super) const MOST_SUMS: usize = 6;

/// Bytes that the narrow kernels ask for ahead of use, a panel.
const PREFETCH: usize = 1024;

/// Registers that sixteen lanes take.
const PARTS: usize = 4;

/// Sixteen weights of one column.
type Column = [float32x4_t; PARTS];

/// How columns are read from a panel.
trait Columns {
    /// Bytes of two columns.
    const PAIR_BYTES: usize;

    /// Reads the first or the second (`half` is 0 or 1) of two columns.
    ///
    /// # Safety
    /// `PAIR_BYTES` must be readable at `at` (for the first column of `F32` and `F16` half of that), and NEON
    /// present.
    unsafe fn column(at: *const u8, half: usize) -> Column;
}

struct F32;
struct F16;
struct Bf16;

// Inlined into functions that have the instruction set.
impl Columns for F32 {
    const PAIR_BYTES: usize = 128;

    #[inline(always)]
    unsafe fn column(at: *const u8, half: usize) -> Column {
        // SAFETY: the caller's promise.
        unsafe {
            let at: *const f32 = at.add(64 * half).cast();
            [
                vld1q_f32(at),
                vld1q_f32(at.add(4)),
                vld1q_f32(at.add(8)),
                vld1q_f32(at.add(12)),
            ]
        }
    }
}

impl Columns for F16 {
    const PAIR_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn column(at: *const u8, half: usize) -> Column {
        // SAFETY: the caller's promise.
        unsafe {
            let at: *const u16 = at.add(32 * half).cast();
            let low = vreinterpretq_f16_u16(vld1q_u16(at));
            let high = vreinterpretq_f16_u16(vld1q_u16(at.add(8)));
            [
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            ]
        }
    }
}

impl Columns for Bf16 {
    const PAIR_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn column(at: *const u8, half: usize) -> Column {
        // SAFETY: the caller's promise.
        unsafe {
            let upper_half = vdupq_n_u32(0xffff_0000);
            let mut column = [vdupq_n_f32(0.0); PARTS];
            for (part, values) in column.iter_mut().enumerate() {
                let words = vld1q_u32(at.add(16 * part).cast());
                *values = vreinterpretq_f32_u32(if half == 0 {
                    vshlq_n_u32::<16>(words)
                } else {
                    vandq_u32(words, upper_half)
                });
            }
            column
        }
    }
}

/// See [`super::tile`].
///
/// # Safety
/// The lengths must be as `super::tile` asserts, and NEON present.
pub(super) unsafe fn tile(
    x: Activations<'_>,
    rows: usize,
    w: Panels<'_>,
    depth: usize,
    sums: Sums<'_>,
) {
    if w.kind != WeightKind::F32 && w.count > 1 && rows * w.count == MOST_SUMS {
        // Beside so many sums there is no room to unpack 16-bit weights in: one panel after another.
        for panel in 0..w.count {
            let one = Panels {
                data: &w.data[panel * w.stride..],
                count: 1,
                ahead: if panel == 0 { w.ahead } else { &[] },
                ..w
            };
            let sums = Sums {
                lines: &mut sums.lines[panel * sums.stride..],
                ..sums
            };
            multiply_tile!(x, rows, one, depth, sums);
        }
        return;
    }
    multiply_tile!(x, rows, w, depth, sums);
}

#[target_feature(enable = "neon")]
unsafe fn kernel<
    C: Columns,
    const ROWS: usize,
    const PANELS: usize,
    const PACKED: bool,
    const LINES: usize,
>(
    tile: Operands<'_>,
) {
    let Operands {
        x,
        x_stride,
        w,
        w_stride,
        ahead,
        depth,
        c,
        c_stride,
        accumulate,
    } = tile;
    // SAFETY: the caller checked all lengths; every offset below stays within them.
    unsafe {
        let mut sums = [[[vdupq_n_f32(0.0); PARTS]; ROWS]; PANELS];
        if accumulate {
            for (panel, sums) in sums.iter_mut().enumerate() {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = F32::column(c.add(panel * c_stride + row).cast(), 0);
                }
            }
        }
        let value = |k: usize, row: usize| {
            if PACKED {
                x.add(k * ROWS + row).read()
            } else {
                x.add(row * x_stride + k).read()
            }
        };
        for pair in 0..depth / 2 {
            for line in 0..LINES {
                prefetch_at(ahead.as_ptr().wrapping_add(64 * (pair * LINES + line)));
            }
            // Panel by panel, so that few weights are in registers at once.
            for (panel, sums) in sums.iter_mut().enumerate() {
                let at = w.add(panel * w_stride + pair * C::PAIR_BYTES);
                if !PACKED && LINES == 0 {
                    for line in (0..C::PAIR_BYTES).step_by(64) {
                        prefetch_now(at.wrapping_add(PREFETCH + line));
                    }
                }
                for half in 0..2 {
                    let column = C::column(at, half);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        if PACKED {
                            // The values of two columns are whole vectors of four, or of two.
                            let (place, size) = (
                                half * ROWS + row,
                                if ROWS.is_multiple_of(2) { 4 } else { 2 },
                            );
                            let at = x.add(2 * pair * ROWS + place / size * size);
                            let values = if size == 4 {
                                vld1q_f32(at)
                            } else {
                                vcombine_f32(vld1_f32(at), vdup_n_f32(0.0))
                            };
                            multiply_add_lane(sums, &column, values, place % size);
                        } else {
                            multiply_add(sums, &column, value(2 * pair + half, row));
                        }
                    }
                    if ROWS * PANELS == MOST_SUMS {
                        settle(&mut sums[ROWS - 1][PARTS - 1]);
                    }
                }
            }
        }
        if depth % 2 == 1 {
            for (panel, sums) in sums.iter_mut().enumerate() {
                let column = C::column(w.add(panel * w_stride + depth / 2 * C::PAIR_BYTES), 0);
                for (row, sums) in sums.iter_mut().enumerate() {
                    multiply_add(sums, &column, value(depth - 1, row));
                }
            }
        }
        for (panel, sums) in sums.iter().enumerate() {
            for (row, sums) in sums.iter().enumerate() {
                store(&mut *c.add(panel * c_stride + row), *sums);
            }
        }
    }
}

/// Plain loops over numbers: iterators over arrays of vectors are not taken apart, and the sums would lie in memory.
#[inline]
#[target_feature(enable = "neon")]
#[allow(clippy::needless_range_loop, reason = "said above")]
fn multiply_add(sums: &mut Column, column: &Column, value: f32) {
    for part in 0..PARTS {
        sums[part] = vfmaq_n_f32(sums[part], column[part], value);
    }
}

/// [`multiply_add`] with lane `lane` of `values`.
#[inline]
#[target_feature(enable = "neon")]
#[allow(clippy::needless_range_loop, reason = "as above")]
fn multiply_add_lane(sums: &mut Column, column: &Column, values: float32x4_t, lane: usize) {
    for part in 0..PARTS {
        let (sum, weights) = (sums[part], column[part]);
        sums[part] = match lane {
            0 => vfmaq_laneq_f32::<0>(sum, weights, values),
            1 => vfmaq_laneq_f32::<1>(sum, weights, values),
            2 => vfmaq_laneq_f32::<2>(sum, weights, values),
            _ => vfmaq_laneq_f32::<3>(sum, weights, values),
        };
    }
}

/// What is loaded behind this waits for `sum`, without an instruction. A tile whose sums fill 24 registers has room
/// for one column of weights; the compiler would load the next ones early, and put sums in memory for it.
#[inline(always)]
fn settle(sum: &mut float32x4_t) {
    // SAFETY: a comment does nothing.
    unsafe {
        asm!(
            "// {0:v}",
            inout(vreg) * sum,
            options(nostack, preserves_flags)
        )
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(line: &mut Line, column: Column) {
    let line = line.0.as_mut_ptr();
    // SAFETY: a line is four vectors of four values.
    unsafe {
        vst1q_f32(line, column[0]);
        vst1q_f32(line.add(4), column[1]);
        vst1q_f32(line.add(8), column[2]);
        vst1q_f32(line.add(12), column[3]);
    }
}

/// See [`super::decode`].
///
/// # Safety
/// NEON must be present.
pub(super) unsafe fn decode(kind: WeightKind, panel: &[u8], start: usize, out: &mut [Line]) {
    let panel = &panel[kind.column_offset(start)..];
    assert!(panel.len() >= kind.span(out.len()));
    // SAFETY: the panel holds a column for each line of `out` (asserted).
    unsafe {
        match kind {
            WeightKind::F32 => decode_columns::<F32>(panel, out),
            WeightKind::F16 => decode_columns::<F16>(panel, out),
            _ => decode_columns::<Bf16>(panel, out),
        }
    }
}

#[target_feature(enable = "neon")]
unsafe fn decode_columns<C: Columns>(panel: &[u8], out: &mut [Line]) {
    let mut at = panel.as_ptr();
    // SAFETY: the caller checked that `panel` holds as many columns as `out` has lines.
    unsafe {
        let mut pairs = out.chunks_exact_mut(2);
        for pair in &mut pairs {
            store(&mut pair[0], C::column(at, 0));
            store(&mut pair[1], C::column(at, 1));
            at = at.add(C::PAIR_BYTES);
        }
        if let [last] = pairs.into_remainder() {
            store(last, C::column(at, 0));
        }
    }
}
