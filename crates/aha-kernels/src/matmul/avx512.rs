//! The AVX-512 kernels: those of AVX2 with registers of sixteen lanes, of which there are twice as many. Each lane is the
//! same chain of fused multiply-adds.

use std::arch::x86_64::*;

use super::shapes::{all_shapes, multiply_tile, shapes};
use super::{Activations, Panels, Sums};
use crate::buffer::{Line, prefetch_at};
use crate::pack::WeightKind;

/// Sums of the largest tile, a register each.
pub(super) const MOST_SUMS: usize = 12;

/// Bytes that the narrow kernels ask for ahead of use, a panel.
const PREFETCH: usize = 1024;

/// Sixteen weights of one column.
type Column = __m512;

/// How columns are read from a panel.
trait Columns {
    /// Bytes of two columns.
    const PAIR_BYTES: usize;

    /// Reads two columns.
    ///
    /// # Safety
    /// `PAIR_BYTES` must be readable at `at`, and AVX-512 present.
    unsafe fn pair(at: *const u8) -> [Column; 2];

    /// Reads the last column of an odd number.
    ///
    /// # Safety
    /// As `pair`, for the bytes of one column (of two for `bf16`, whose panels are filled up).
    unsafe fn single(at: *const u8) -> Column;
}

struct F32;
struct F16;
struct Bf16;

impl Columns for F32 {
    const PAIR_BYTES: usize = 128;

    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [Column; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::single(at), Self::single(at.add(64))] }
    }

    #[inline(always)]
    unsafe fn single(at: *const u8) -> Column {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

impl Columns for F16 {
    const PAIR_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [Column; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::single(at), Self::single(at.add(32))] }
    }

    #[inline(always)]
    unsafe fn single(at: *const u8) -> Column {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

impl Columns for Bf16 {
    const PAIR_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pair(at: *const u8) -> [Column; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm512_loadu_si512(at.cast());
            let upper_half = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let even = _mm512_slli_epi32::<16>(pairs);
            let odd = _mm512_and_si512(pairs, upper_half);
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn single(at: *const u8) -> Column {
        // SAFETY: the caller's promise.
        unsafe { Self::pair(at)[0] }
    }
}

/// See [`super::tile`].
///
/// # Safety
/// The lengths must be as `super::tile` asserts, and AVX-512 present.
pub(super) unsafe fn tile(
    x: Activations<'_>,
    rows: usize,
    w: Panels<'_>,
    depth: usize,
    sums: Sums<'_>,
) {
    multiply_tile!(x, rows, w, depth, sums);
}

#[allow(
    clippy::too_many_arguments,
    reason = "one flat call into the innermost loop"
)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn kernel<
    C: Columns,
    const ROWS: usize,
    const PANELS: usize,
    const PACKED: bool,
    const LINES: usize,
>(
    x: *const f32,
    x_stride: usize,
    w: *const u8,
    w_stride: usize,
    ahead: &[u8],
    depth: usize,
    c: *mut Line,
    c_stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller checked all lengths; every offset below stays within them.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); ROWS]; PANELS];
        if accumulate {
            for (panel, sums) in sums.iter_mut().enumerate() {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = _mm512_load_ps(c.add(panel * c_stride + row).cast());
                }
            }
        }
        let value = |k: usize, row: usize| {
            let at = if PACKED {
                x.add(k * ROWS + row)
            } else {
                x.add(row * x_stride + k)
            };
            _mm512_set1_ps(at.read())
        };
        for pair in 0..depth / 2 {
            for line in 0..LINES {
                prefetch_at(ahead.as_ptr().wrapping_add(64 * (pair * LINES + line)));
            }
            let mut columns = [[_mm512_setzero_ps(); 2]; PANELS];
            for (panel, columns) in columns.iter_mut().enumerate() {
                let at = w.add(panel * w_stride + pair * C::PAIR_BYTES);
                if !PACKED && LINES == 0 {
                    for line in (0..C::PAIR_BYTES).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH + line).cast());
                    }
                }
                *columns = C::pair(at);
            }
            for half in 0..2 {
                for row in 0..ROWS {
                    let value = value(2 * pair + half, row);
                    for (sums, columns) in sums.iter_mut().zip(&columns) {
                        sums[row] = _mm512_fmadd_ps(value, columns[half], sums[row]);
                    }
                }
            }
        }
        if depth % 2 == 1 {
            for (panel, sums) in sums.iter_mut().enumerate() {
                let column = C::single(w.add(panel * w_stride + depth / 2 * C::PAIR_BYTES));
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = _mm512_fmadd_ps(value(depth - 1, row), column, *sums);
                }
            }
        }
        for (panel, sums) in sums.iter().enumerate() {
            for (row, sums) in sums.iter().enumerate() {
                _mm512_store_ps(c.add(panel * c_stride + row).cast(), *sums);
            }
        }
    }
}

/// See [`super::decode`].
///
/// # Safety
/// AVX-512 must be present.
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn decode_columns<C: Columns>(panel: &[u8], out: &mut [Line]) {
    let mut at = panel.as_ptr();
    // SAFETY: the caller checked that `panel` holds as many columns as `out` has lines.
    unsafe {
        let store = |line: &mut Line, column: Column| {
            _mm512_store_ps(line.0.as_mut_ptr(), column);
        };
        let mut pairs = out.chunks_exact_mut(2);
        for pair in &mut pairs {
            let [first, second] = C::pair(at);
            store(&mut pair[0], first);
            store(&mut pair[1], second);
            at = at.add(C::PAIR_BYTES);
        }
        if let [last] = pairs.into_remainder() {
            store(last, C::single(at));
        }
    }
}
