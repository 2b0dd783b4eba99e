//! The portable body: the twin that the others are tested against.

use half::f16;

use super::kernel::{self, Lanes, Source};
use super::{Format, Tile};
use crate::buffer::Line;
use crate::pack::PANEL;

struct Scalar;

impl Lanes for Scalar {
    type Int = [i32; PANEL];
    type Words = [[u8; 4]; PANEL];
    type Codes = [[u8; 4]; PANEL];
    type Float = [f32; PANEL];

    const UNPACKS: bool = true;

    unsafe fn integers(value: i32) -> Self::Int {
        [value; PANEL]
    }

    unsafe fn words(at: *const u8) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self::Words>().read() }
    }

    unsafe fn field(words: Self::Words, shift: usize, bits: usize) -> Self::Words {
        words.map(|word| word.map(|byte| byte >> shift & ((1 << bits) - 1)))
    }

    unsafe fn join(mut low: Self::Words, high: Self::Words, up: usize) -> Self::Words {
        for (low, high) in low.iter_mut().zip(high) {
            for (low, high) in low.iter_mut().zip(high) {
                *low |= high << up;
            }
        }
        low
    }

    unsafe fn store_words(words: Self::Words, at: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self::Words>().write(words) }
    }

    unsafe fn codes(words: Self::Words, _wide: bool) -> Self::Codes {
        words
    }

    unsafe fn dot(mut sums: Self::Int, codes: Self::Codes, x: u32, _wide: bool) -> Self::Int {
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

    unsafe fn multiply(mut a: Self::Float, b: Self::Float) -> Self::Float {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }

    unsafe fn negate(a: Self::Float) -> Self::Float {
        a.map(|a| -a)
    }

    unsafe fn halves(at: *const u8) -> Self::Float {
        // SAFETY: the caller's promise.
        let bytes = unsafe { at.cast::<[[u8; 2]; PANEL]>().read() };
        bytes.map(|bytes| f16::from_bits(u16::from_ne_bytes(bytes)).to_f32())
    }

    unsafe fn bytes(at: *const u8, shift: usize, bits: usize) -> Self::Float {
        // SAFETY: the caller's promise.
        let bytes = unsafe { at.cast::<[i8; PANEL]>().read() };
        bytes.map(|byte| f32::from(if bits == 8 { byte } else { byte >> shift & 15 }))
    }

    unsafe fn run<S: Source<Self>, const ROWS: usize>(
        x: *const u32,
        units: usize,
        source: S,
        panels: usize,
        out: *mut Line,
    ) {
        // SAFETY: the caller's promise.
        unsafe { kernel::kernel::<Self, S, ROWS>(x, units, source, panels, out) }
    }
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there.
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Scalar, 1>(tile) }
}

/// See [`super::unpack`].
///
/// # Safety
/// The lengths must be as asserted there.
pub(super) unsafe fn unpack(format: &Format, panel: &[u8], units: usize, out: &mut [Line]) {
    // SAFETY: the caller's promise.
    unsafe { kernel::unpack::<Scalar>(format, panel, units, out) }
}
