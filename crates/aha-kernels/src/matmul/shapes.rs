//! Which kernel a tile gets: each shape is compiled apart, so that its sums stay in registers.
//!
//! The macros call the `kernel` of the module that uses them, with its `F32`, `F16` and `Bf16`, for tiles of up to its
//! `MOST_SUMS` sums.

use crate::buffer::Line;

/// Where a tile's activations, weights and results are; lengths are as [`super::tile`] asserts.
pub(super) struct Operands<'a> {
    pub(super) x: *const f32,
    /// Values from one row to the next, where activations are not packed.
    pub(super) x_stride: usize,
    pub(super) w: *const u8,
    pub(super) w_stride: usize,
    pub(super) ahead: &'a [u8],
    pub(super) depth: usize,
    pub(super) c: *mut Line,
    pub(super) c_stride: usize,
    pub(super) accumulate: bool,
}

/// Runs the kernel for a tile whose lengths were checked, see [`super::tile`].
macro_rules! multiply_tile {
    ($x:expr, $rows:expr, $w:expr, $depth:expr, $sums:expr) => {{
        let (w, depth, sums) = ($w, $depth, $sums);
        let tile = (
            $rows,
            w,
            depth,
            w.data.as_ptr(),
            sums.lines.as_mut_ptr(),
            sums.stride,
            sums.accumulate,
        );
        match ($x, w.kind) {
            (Activations::Rows(x, stride), WeightKind::F32) => {
                all_shapes!(F32, false, x.as_ptr(), stride, tile)
            }
            (Activations::Rows(x, stride), WeightKind::F16) => {
                all_shapes!(F16, false, x.as_ptr(), stride, tile)
            }
            (Activations::Rows(x, stride), _) => {
                all_shapes!(Bf16, false, x.as_ptr(), stride, tile)
            }
            (Activations::Packed(x), WeightKind::F32) => {
                all_shapes!(F32, true, x.as_ptr(), 0, tile)
            }
            (Activations::Packed(x), WeightKind::F16) => {
                all_shapes!(F16, true, x.as_ptr(), 0, tile)
            }
            (Activations::Packed(x), _) => all_shapes!(Bf16, true, x.as_ptr(), 0, tile),
        }
    }};
}

macro_rules! all_shapes {
    ($columns:ty, $packed:literal, $x:expr, $stride:expr, $tile:expr) => {{
        let (_, w, depth, ..) = $tile;
        // Evenly: what is asked for all at once only waits.
        match (w.ahead.len() / size_of::<Line>()).div_ceil((depth / 2).max(1)) {
            0 => all_shapes!($columns, $packed, 0, $x, $stride, $tile),
            1 => all_shapes!($columns, $packed, 1, $x, $stride, $tile),
            _ => all_shapes!($columns, $packed, 2, $x, $stride, $tile),
        }
    }};
    ($columns:ty, $packed:literal, $lines:literal, $x:expr, $stride:expr, $tile:expr) => {
        shapes!(
            $columns, $packed, $lines, $x, $stride, $tile, 1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 2 x 4,
            3 x 1, 3 x 2, 3 x 4, 4 x 1, 4 x 2, 5 x 1, 5 x 2, 6 x 1, 6 x 2
        )
    };
}

macro_rules! shapes {
    (
        $columns:ty, $packed:literal, $lines:literal, $x:expr, $stride:expr, $tile:expr,
        $($rows:literal x $panels:literal),*
    ) => {{
        let (rows, w, depth, data, c, c_stride, accumulate) = $tile;
        match (rows, w.count) {
            // Not a guard of the arm: only so are tiles that cannot be not compiled.
            $(($rows, $panels) => if const { $rows * $panels <= MOST_SUMS } {
                // SAFETY: the caller's promise.
                unsafe {
                    kernel::<$columns, $rows, $panels, $packed, $lines>(Operands {
                        x: $x,
                        x_stride: $stride,
                        w: data,
                        w_stride: w.stride,
                        ahead: w.ahead,
                        depth,
                        c,
                        c_stride,
                        accumulate,
                    });
                }
            })*
            (rows, panels) => unreachable!("no tile of {rows} rows and {panels} panels"),
        }
    }};
}

pub(super) use {all_shapes, multiply_tile, shapes};
