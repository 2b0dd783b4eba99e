//! The portable body: the twin that the others are tested against.

use std::ops::Range;

use half::f16;

use super::kernel::{self, Lanes};
use super::{Format, Tile};
use crate::buffer::Line;
use crate::pack::PANEL;

struct Scalar;

impl Lanes for Scalar {
    type Int = [i32; PANEL];
    type Codes = [[u8; 4]; PANEL];
    type Float = [f32; PANEL];

    unsafe fn integers(value: i32) -> Self::Int {
        [value; PANEL]
    }

    unsafe fn codes<const WIDE: bool>(at: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self::Codes>().read() }
    }

    unsafe fn dot<const WIDE: bool>(mut sums: Self::Int, codes: Self::Codes, x: u32) -> Self::Int {
        let x = x.to_ne_bytes().map(u8::cast_signed);
        for (sum, codes) in sums.iter_mut().zip(codes) {
            for (code, x) in codes.into_iter().zip(x) {
                *sum += i32::from(code) * i32::from(x);
            }
        }
        sums
    }

    unsafe fn zeros() -> Self::Float {
        [0.0; PANEL]
    }

    unsafe fn load(at: *const f32) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self::Float>().read() }
    }

    unsafe fn store(values: Self::Float, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self::Float>().write(values) }
    }

    unsafe fn add_scaled(
        mut sums: Self::Float,
        integers: Self::Int,
        scale: Self::Float,
        factor: f32,
    ) -> Self::Float {
        for ((sum, integer), scale) in sums.iter_mut().zip(integers).zip(scale) {
            *sum += integer as f32 * (scale * factor);
        }
        sums
    }

    unsafe fn subtract(mut sums: Self::Float, minimum: Self::Float, factor: f32) -> Self::Float {
        for (sum, minimum) in sums.iter_mut().zip(minimum) {
            *sum -= minimum * factor;
        }
        sums
    }

    unsafe fn halves(at: *const u8) -> [f32; PANEL] {
        // SAFETY: the caller's promise.
        let bytes = unsafe { at.cast::<[[u8; 2]; PANEL]>().read() };
        bytes.map(|bytes| f16::from_bits(u16::from_ne_bytes(bytes)).to_f32())
    }
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there.
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Scalar, 1, 0>(tile) }
}

/// See [`super::unpack`].
///
/// # Safety
/// The lengths must be as asserted there.
pub(super) unsafe fn unpack(format: &Format, panel: &[u8], units: Range<usize>, out: &mut [Line]) {
    // SAFETY: the caller's promise.
    unsafe { kernel::unpack::<Scalar>(format, panel, units, out) }
}
