//! The kernel of a tile for x86, written once over what an instruction set does with sixteen lanes: each is one chain of
//! fused multiply-adds.
//!
//! Everything here is inlined into functions that have the instruction set. Closures would not be: a call inside one would
//! be made without it, an instruction at a time.

use super::shapes::Operands;
use crate::buffer::{Line, prefetch_at};
use crate::pack::WeightKind;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Bytes that the narrow kernels ask for ahead of use, a panel.
const PREFETCH: usize = 1024;

/// Sixteen values, one for each row of a panel.
///
/// # Safety
/// All functions ask for the instruction set of the implementation, and that what they read or write is there.
pub(super) trait Lanes {
    /// Weights of one column, or sums.
    type Line: Copy;
    /// An activation, as often as a register has lanes.
    type Value: Copy;

    unsafe fn zeros() -> Self::Line;
    /// Sixteen `f32`, aligned or not.
    unsafe fn load(at: *const u8) -> Self::Line;
    unsafe fn store(line: Self::Line, at: *mut Line);
    /// Sixteen `f16` in 32 bytes.
    unsafe fn halves(at: *const u8) -> Self::Line;
    /// Sixteen pairs of `bf16`: the even column, and the odd one.
    unsafe fn pairs(at: *const u8) -> [Self::Line; 2];
    unsafe fn broadcast(at: *const f32) -> Self::Value;
    /// `value * column + sums`, rounded once.
    unsafe fn multiply_add(value: Self::Value, column: Self::Line, sums: Self::Line) -> Self::Line;
}

/// How columns are read from a panel.
///
/// # Safety
/// All functions ask for the instruction set of `L`.
pub(super) trait Columns<L: Lanes> {
    /// Bytes of two columns.
    const PAIR_BYTES: usize;

    /// Reads two columns: `PAIR_BYTES` must be readable.
    unsafe fn pair(at: *const u8) -> [L::Line; 2];

    /// Reads the last column of an odd number (for `bf16`, whose panels are filled up, as many bytes as `pair`).
    unsafe fn single(at: *const u8) -> L::Line;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl<L: Lanes> Columns<L> for F32 {
    const PAIR_BYTES: usize = 128;

    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [L::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe { [L::load(at), L::load(at.add(64))] }
    }

    #[inline(always)]
    unsafe fn single(at: *const u8) -> L::Line {
        // SAFETY: the caller's promise.
        unsafe { L::load(at) }
    }
}

#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl<L: Lanes> Columns<L> for F16 {
    const PAIR_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [L::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe { [L::halves(at), L::halves(at.add(32))] }
    }

    #[inline(always)]
    unsafe fn single(at: *const u8) -> L::Line {
        // SAFETY: the caller's promise.
        unsafe { L::halves(at) }
    }
}

#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl<L: Lanes> Columns<L> for Bf16 {
    const PAIR_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [L::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe { L::pairs(at) }
    }

    #[inline(always)]
    unsafe fn single(at: *const u8) -> L::Line {
        // SAFETY: the caller's promise.
        unsafe { L::pairs(at)[0] }
    }
}

impl Operands<'_> {
    /// The activation of a column and a row.
    #[inline(always)]
    fn value<const ROWS: usize, const PACKED: bool>(
        &self,
        column: usize,
        row: usize,
    ) -> *const f32 {
        self.x.wrapping_add(if PACKED {
            column * ROWS + row
        } else {
            row * self.x_stride + column
        })
    }
}

/// `ROWS` rows with `PANELS` panels; `LINES` lines of what is ahead are asked for with each pair of columns.
///
/// # Safety
/// The operands must be as asserted, and the instruction set of `L` present.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "only inlined does it have the instruction set"
)]
pub(super) unsafe fn kernel<
    L: Lanes,
    C: Columns<L>,
    const ROWS: usize,
    const PANELS: usize,
    const PACKED: bool,
    const LINES: usize,
>(
    tile: Operands<'_>,
) {
    // SAFETY: the caller checked all lengths; every offset below stays within them.
    unsafe {
        let mut sums = [[L::zeros(); ROWS]; PANELS];
        if tile.accumulate {
            for (panel, sums) in sums.iter_mut().enumerate() {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = L::load(tile.c.add(panel * tile.c_stride + row).cast());
                }
            }
        }
        for pair in 0..tile.depth / 2 {
            for line in 0..LINES {
                let offset = size_of::<Line>() * (pair * LINES + line);
                prefetch_at(tile.ahead.as_ptr().wrapping_add(offset));
            }
            let mut columns = [[L::zeros(); 2]; PANELS];
            for (panel, columns) in columns.iter_mut().enumerate() {
                let at = tile.w.add(panel * tile.w_stride + pair * C::PAIR_BYTES);
                if !PACKED && LINES == 0 {
                    for line in (0..C::PAIR_BYTES).step_by(size_of::<Line>()) {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH + line).cast());
                    }
                }
                *columns = C::pair(at);
            }
            for half in 0..2 {
                for row in 0..ROWS {
                    let value = L::broadcast(tile.value::<ROWS, PACKED>(2 * pair + half, row));
                    for (sums, columns) in sums.iter_mut().zip(&columns) {
                        sums[row] = L::multiply_add(value, columns[half], sums[row]);
                    }
                }
            }
        }
        if tile.depth % 2 == 1 {
            for (panel, sums) in sums.iter_mut().enumerate() {
                let offset = panel * tile.w_stride + tile.depth / 2 * C::PAIR_BYTES;
                let column = C::single(tile.w.add(offset));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = L::broadcast(tile.value::<ROWS, PACKED>(tile.depth - 1, row));
                    *sums = L::multiply_add(value, column, *sums);
                }
            }
        }
        for (panel, sums) in sums.iter().enumerate() {
            for (row, sums) in sums.iter().enumerate() {
                L::store(*sums, tile.c.add(panel * tile.c_stride + row));
            }
        }
    }
}

/// See [`super::decode`]: a column for each line of `out` from the beginning of `panel`.
///
/// # Safety
/// The instruction set of `L` must be present.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "only inlined does it have the instruction set"
)]
pub(super) unsafe fn decode<L: Lanes>(
    kind: WeightKind,
    panel: &[u8],
    start: usize,
    out: &mut [Line],
) {
    let panel = &panel[kind.column_offset(start)..];
    assert!(panel.len() >= kind.span(out.len()));
    // SAFETY: the panel holds a column for each line of `out` (asserted).
    unsafe {
        match kind {
            WeightKind::F32 => decode_columns::<L, F32>(panel, out),
            WeightKind::F16 => decode_columns::<L, F16>(panel, out),
            _ => decode_columns::<L, Bf16>(panel, out),
        }
    }
}

#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "only inlined does it have the instruction set"
)]
unsafe fn decode_columns<L: Lanes, C: Columns<L>>(panel: &[u8], out: &mut [Line]) {
    let mut at = panel.as_ptr();
    // SAFETY: the caller checked that `panel` holds as many columns as `out` has lines.
    unsafe {
        let mut pairs = out.chunks_exact_mut(2);
        for pair in &mut pairs {
            let [first, second] = C::pair(at);
            L::store(first, &raw mut pair[0]);
            L::store(second, &raw mut pair[1]);
            at = at.add(C::PAIR_BYTES);
        }
        if let [last] = pairs.into_remainder() {
            L::store(C::single(at), &raw mut *last);
        }
    }
}

/// The functions of a module for an instruction set: the above, compiled for its features.
macro_rules! functions {
    ($lanes:ty, $features:literal) => {
        use super::lanes::{self, Bf16, Columns, F16, F32};
        use super::shapes::{Operands, all_shapes, multiply_tile, shapes};
        use super::{Activations, Panels, Sums};
        use crate::pack::WeightKind;

        /// See [`super::tile`].
        ///
        /// # Safety
        /// The lengths must be as `super::tile` asserts, and the instruction set present.
        pub(super) unsafe fn tile(
            x: Activations<'_>,
            rows: usize,
            w: Panels<'_>,
            depth: usize,
            sums: Sums<'_>,
        ) {
            multiply_tile!(x, rows, w, depth, sums);
        }

        #[target_feature(enable = $features)]
        unsafe fn kernel<
            C: Columns<$lanes>,
            const ROWS: usize,
            const PANELS: usize,
            const PACKED: bool,
            const LINES: usize,
        >(
            tile: Operands<'_>,
        ) {
            // SAFETY: the caller's promise.
            unsafe { lanes::kernel::<$lanes, C, ROWS, PANELS, PACKED, LINES>(tile) }
        }

        /// See [`super::decode`].
        ///
        /// # Safety
        /// The instruction set must be present.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn decode(
            kind: WeightKind,
            panel: &[u8],
            start: usize,
            out: &mut [Line],
        ) {
            // SAFETY: the caller's promise.
            unsafe { lanes::decode::<$lanes>(kind, panel, start, out) }
        }
    };
}

pub(super) use functions;
