//! Memory in cache lines: views of packed weights, prefetches, and scratch space.

use std::cell::{Cell, RefCell};

/// Sixteen `f32` values in one cache line: a row of a panel.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; 16]);
}

/// The values of `lines` one after another.
pub(crate) fn flat(lines: &[Line]) -> &[f32] {
    // SAFETY: a `Line` is sixteen `f32` without padding (size and alignment are both 64 bytes).
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
}

/// The values of `lines` one after another, for writing.
pub(crate) fn flat_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `flat`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// The bytes of `lines`.
pub(crate) fn bytes_of(lines: &[Line]) -> &[u8] {
    // SAFETY: a `Line` has no padding, and every byte of it is initialised.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// The bytes of `lines`, for writing.
#[cfg(target_arch = "x86_64")]
pub(crate) fn bytes_of_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`, and every bit pattern is a valid `f32`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

/// `bytes` as 32-bit floats. Bytes of a trailing partial value are left out.
pub(crate) fn as_f32(bytes: &[u8]) -> &[f32] {
    // SAFETY: every bit pattern is a valid `f32`.
    let (head, values, _) = unsafe { bytes.align_to::<f32>() };
    debug_assert!(head.is_empty(), "panels start on cache lines");
    values
}

/// `bytes` as 16-bit words. Bytes of a trailing partial value are left out.
pub(crate) fn as_u16(bytes: &[u8]) -> &[u16] {
    // SAFETY: every bit pattern is a valid `u16`.
    let (head, values, _) = unsafe { bytes.align_to::<u16>() };
    debug_assert!(head.is_empty(), "panels start on cache lines");
    values
}

/// `bytes` as 32-bit floats, for writing.
pub(crate) fn as_f32_mut(bytes: &mut [u8]) -> &mut [f32] {
    // SAFETY: every bit pattern is a valid `f32`, and every `f32` is four valid bytes.
    let (head, values, _) = unsafe { bytes.align_to_mut::<f32>() };
    debug_assert!(head.is_empty(), "panels start on cache lines");
    values
}

/// `bytes` as 16-bit words, for writing.
pub(crate) fn as_u16_mut(bytes: &mut [u8]) -> &mut [u16] {
    // SAFETY: every bit pattern is a valid `u16`, and every `u16` is two valid bytes.
    let (head, values, _) = unsafe { bytes.align_to_mut::<u16>() };
    debug_assert!(head.is_empty(), "panels start on cache lines");
    values
}

/// `bytes`, which start on a cache line, as lines, for writing. Bytes of a trailing partial line are left out.
pub(crate) fn as_lines_mut(bytes: &mut [u8]) -> &mut [Line] {
    // SAFETY: a `Line` has no padding, and every bit pattern is a valid `f32`.
    let (head, lines, _) = unsafe { bytes.align_to_mut::<Line>() };
    debug_assert!(head.is_empty(), "panels start on cache lines");
    lines
}

/// Asks the processor to bring `data` into its second-level cache, from where it comes soon enough. Never changes a
/// result.
#[inline]
pub(crate) fn prefetch<T>(data: &[T]) {
    for offset in (0..size_of_val(data)).step_by(64) {
        prefetch_at(data.as_ptr().cast::<u8>().wrapping_add(offset));
    }
}

/// [`prefetch`] of the cache line at an address, which need not be one of ours.
#[inline(always)]
pub(crate) fn prefetch_at(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch reads nothing that the program could see, at any address.
    unsafe {
        std::arch::asm!(
            "prfm pldl2keep, [{address}]",
            address = in(reg) address.addr(),
            options(nomem, nostack, preserves_flags)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// The same into the first-level cache, for what is wanted at once.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn prefetch_now(address: *const u8) {
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address.addr(),
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Scratch memory that a thread keeps between calls; more than this is given back at once.
const KEPT_LINES: usize = (32 << 20) / size_of::<Line>();

/// Runs `work` on `lines` cache lines of scratch memory, whose content is arbitrary.
///
/// The memory is taken from the thread and put back; a nested call (a task may call another kernel)
/// takes another piece.
pub(crate) fn with_scratch<R>(lines: usize, work: impl FnOnce(&mut [Line]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
    }
    let mut memory = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if memory.len() < lines {
        memory.clear();
        memory.resize(lines, Line::ZERO);
    }
    let result = work(memory.get_mut(..lines).unwrap_or_default());
    if memory.len() <= KEPT_LINES {
        SCRATCH.with_borrow_mut(|pieces| pieces.push(memory));
    }
    result
}

/// Runs `work` on an empty vector, whose memory the thread keeps for the next call.
pub(crate) fn with_indices<R>(work: impl FnOnce(&mut Vec<usize>) -> R) -> R {
    thread_local! {
        static INDICES: Cell<Vec<usize>> = const { Cell::new(Vec::new()) };
    }
    let mut indices = INDICES.take();
    indices.clear();
    let result = work(&mut indices);
    INDICES.set(indices);
    result
}
