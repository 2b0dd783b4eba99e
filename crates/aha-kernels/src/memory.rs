//! Where packed weights lie: one matrix after another in regions that large pages may back.
//!
//! A product with few rows reads its weights from memory, from the first to the last. Where a page of 4 KiB ends the
//! processor's prefetchers end, too, and the next page has to be looked up; pages of 2 MiB were read a fifth to a
//! quarter faster on a Xeon. A matrix by itself would leave the last of its large pages partly empty; in a region that many share
//! only one is.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use crate::KernelError;
use crate::buffer::Line;
use crate::pool::for_each_task;

/// Bytes of a region, unless a piece wants more or there is no room for so many. What nobody writes takes no memory,
/// except where systems promise memory before it is used.
const REGION_BYTES: usize = if cfg!(unix) { 1 << 30 } else { 0 };

/// A large page, on which regions start.
const LARGE_PAGE: usize = 2 << 20;

/// Memory is given back in multiples of this, which is one of the size of a page on every system.
const GIVEN_BACK: usize = 64 << 10;

/// Bytes that a thread touches at a time.
const STRETCH: usize = 16 << 20;

/// Memory that pieces are cut from, each byte once, so that all are zero at first.
struct Region {
    mapping: MmapMut,
}

/// The region that the next piece comes from, and that piece's offset.
type Current = Option<(Arc<Region>, usize)>;

fn current() -> MutexGuard<'static, Current> {
    static CURRENT: Mutex<Current> = Mutex::new(None);
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Region {
    fn new(bytes: usize) -> Option<Self> {
        let mapping = MmapMut::map_anon(bytes.checked_add(LARGE_PAGE)?).ok()?;
        // A wish only: a refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::HugePage);
        Some(Self { mapping })
    }

    /// The next piece, and the region that it is of.
    fn take(bytes: usize) -> Option<(Arc<Self>, NonNull<u8>)> {
        let mut current = current();
        let has_room =
            |(region, offset): &(Arc<Self>, usize)| region.mapping.len() - *offset >= bytes;
        let (region, offset) = match current.take().filter(has_room) {
            Some(current) => current,
            None => {
                let region = Self::new(bytes.max(REGION_BYTES)).or_else(|| Self::new(bytes))?;
                let offset = region.mapping.as_ptr().align_offset(LARGE_PAGE);
                (Arc::new(region), offset)
            }
        };
        // SAFETY: the region has so much room behind the offset.
        let start = unsafe { region.mapping.as_ptr().add(offset) };
        let next = (offset + bytes).next_multiple_of(align_of::<Line>());
        *current = Some((Arc::clone(&region), next.min(region.mapping.len())));
        Some((region, NonNull::new(start.cast_mut())?))
    }

    /// Gives the whole pages of some bytes back to the system.
    ///
    /// # Safety
    /// The bytes must be inside, and nobody use them any more, or yet.
    unsafe fn give_back(&self, bytes: Range<usize>) {
        let from = bytes.start.next_multiple_of(GIVEN_BACK);
        let to = bytes.end / GIVEN_BACK * GIVEN_BACK;
        #[cfg(unix)]
        if from < to {
            // SAFETY: the caller's promise, and whole pages. A refusal leaves the memory until the region goes.
            let _ = unsafe {
                self.mapping.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    from,
                    to - from,
                )
            };
        }
        #[cfg(not(unix))]
        let _ = (from, to);
    }
}

/// Runs `work`, while which freed memory goes back to the system at once instead of being kept for a while by the
/// allocator: worth some milliseconds where something large is read, much is left behind, and little of it will be
/// wanted again. As [`give_back_memory`] afterwards.
pub fn giving_back_memory<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "mimalloc")]
    use libmimalloc_sys::{mi_option_get, mi_option_set};
    /// `mi_option_purge_delay` of mimalloc.h: milliseconds that freed memory is kept for.
    #[cfg(feature = "mimalloc")]
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    #[cfg(feature = "mimalloc")]
    // SAFETY: these functions take no pointer, and may be called by any thread at any time.
    let before = unsafe {
        let before = mi_option_get(PURGE_DELAY);
        mi_option_set(PURGE_DELAY, 0);
        before
    };
    let result = work();
    #[cfg(feature = "mimalloc")]
    // SAFETY: as above.
    unsafe {
        mi_option_set(PURGE_DELAY, before);
    }
    give_back_memory();
    result
}

/// Gives memory that nobody uses back to the system: what this thread has freed, as far as the program's allocator is
/// mimalloc (feature `mimalloc`), and what weights leave of their last large page. For when there is nothing else to do.
pub fn give_back_memory() {
    #[cfg(feature = "mimalloc")]
    // SAFETY: the function takes no pointer, and may be called by any thread at any time.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
    let current = current();
    if let Some((region, next)) = &*current {
        let end = region.mapping.len().min(next + LARGE_PAGE);
        // SAFETY: nobody has these bytes yet, nor can anybody take them while the lock is held.
        unsafe { region.give_back(*next..end) }
    }
}

/// Zeroed bytes that start on a cache line. Running out of memory is an error as far as the system tells.
pub(crate) struct AlignedBytes {
    region: Option<Arc<Region>>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is owned by this value alone and reached through `&self`/`&mut self` only.
unsafe impl Send for AlignedBytes {}
// SAFETY: `&self` gives shared reads only.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    pub(crate) fn zeroed(bytes: usize) -> Result<Self, KernelError> {
        Self::filled(bytes, STRETCH, |_, _| {})
    }

    /// Memory whose pieces of `size` bytes (the last may be shorter) `fill` writes, on all threads: they are zero
    /// when it sees them.
    pub(crate) fn filled(
        bytes: usize,
        size: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Result<Self, KernelError> {
        Self::filled_in_stretches(bytes, size, usize::MAX, fill, |_| {})
    }

    /// The same, so many pieces at a time; `after` is told which are done.
    pub(crate) fn filled_in_stretches(
        bytes: usize,
        size: usize,
        stretch: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
        after: impl Fn(Range<usize>),
    ) -> Result<Self, KernelError> {
        let (region, start) = Region::take(bytes).ok_or(KernelError::Memory { bytes })?;
        // Owned from here on, so that it is given back when `fill` panics.
        let filled = Self {
            region: Some(region),
            start,
            bytes,
        };
        let size = size.max(1);
        let memory = Memory(start);
        let write = |index: usize| {
            let from = index * size;
            let len = size.min(bytes - from);
            // SAFETY: pieces lie inside the memory, which is zero at first, and apart from each other, and each index
            // runs once.
            let piece = unsafe { std::slice::from_raw_parts_mut(memory.get().add(from), len) };
            fill(index, piece);
        };
        let pieces = bytes.div_ceil(size);
        let mut first = 0;
        while first < pieces {
            let end = first.saturating_add(stretch.max(1)).min(pieces);
            for_each_task(end - first, |index| write(first + index));
            after(first..end);
            first = end;
        }
        Ok(filled)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` addresses so many initialised bytes, which live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else {
            return;
        };
        let from = self.start.as_ptr().addr() - region.mapping.as_ptr().addr();
        // SAFETY: the piece was this value's alone.
        unsafe { region.give_back(from..from + self.bytes) }
        // The last piece's region goes, with what pieces had no page to themselves for.
        let address = Arc::as_ptr(&region);
        let mut current = current();
        drop(region);
        current.take_if(|(own, _)| Arc::as_ptr(own) == address && Arc::strong_count(own) == 1);
    }
}

/// The start of memory that tasks initialise piece by piece.
struct Memory(NonNull<u8>);

impl Memory {
    /// By method, so that closures capture the whole value.
    fn get(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

// SAFETY: tasks use disjoint pieces, see `AlignedBytes::filled`.
unsafe impl Sync for Memory {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zero_and_lie_apart() {
        let mut pieces = Vec::new();
        for bytes in [0, 1, 63, 64, 65, 4096, 3 << 20, 200_000] {
            let fill = |index: usize, piece: &mut [u8]| {
                assert!(piece.iter().all(|byte| *byte == 0));
                piece.fill((index as u8).wrapping_add(1));
            };
            pieces.push(AlignedBytes::filled(bytes, 1000, fill).unwrap());
            if bytes == 4096 {
                pieces.remove(2); // the others stay as they are
            }
        }
        let mut ranges: Vec<_> = (pieces.iter())
            .map(|piece| piece.as_slice().as_ptr_range())
            .collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        for piece in &pieces {
            assert!(piece.start.cast::<Line>().is_aligned());
            let is_filled =
                |(index, byte): (usize, &u8)| *byte == ((index / 1000) as u8).wrapping_add(1);
            assert!(piece.as_slice().iter().enumerate().all(is_filled));
        }
    }

    #[test]
    fn more_than_there_is_is_an_error() {
        let outcome = AlignedBytes::zeroed(isize::MAX as usize / 2);
        assert!(matches!(outcome, Err(KernelError::Memory { .. })));
        let outcome = AlignedBytes::zeroed(usize::MAX);
        assert!(matches!(outcome, Err(KernelError::Memory { .. })));
    }
}
