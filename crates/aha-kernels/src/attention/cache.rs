//! Keys and values of one attention layer, kept as attention reads them.

use std::fmt;
use std::ptr::NonNull;

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;

use crate::KernelError;
use crate::error::{check_len, checked_mul};
use crate::pack::{PANEL, WeightKind};

/// Keys and values of one attention layer for the tokens of all sequences, in `f32` or `f16`.
///
/// Sixteen neighbouring slots are a page. A page holds the keys of each head as `[head_dim][16 slots]` and their
/// values as `[head_dim / 16, rounded up][16 slots][16]`: the panels that products take, so that a query meets them
/// where they lie.
pub struct PagedCache {
    kind: WeightKind,
    num_kv_heads: usize,
    head_dim: usize,
    pages: usize,
    /// Bytes of a head's keys in a page, and of its values.
    key_bytes: usize,
    value_bytes: usize,
    keys: Memory,
    values: Memory,
}

impl fmt::Debug for PagedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f.debug_struct("PagedCache"))
            .field("kind", &self.kind)
            .field("slots", &self.slots())
            .field("num_kv_heads", &self.num_kv_heads)
            .field("head_dim", &self.head_dim)
            .finish_non_exhaustive()
    }
}

impl PagedCache {
    /// Slots of a page; blocks of a cache are multiples of it.
    pub const PAGE: usize = PANEL;

    /// Room for `slots` tokens with `num_kv_heads` keys and values of `head_dim` each. Memory is taken from the
    /// system as slots are written.
    ///
    /// # Errors
    /// When `kind` is neither `F32` nor `F16`, a size is zero, `slots` is no multiple of [`PagedCache::PAGE`], or
    /// memory is short.
    pub fn new(
        kind: WeightKind,
        slots: usize,
        num_kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, KernelError> {
        if !matches!(kind, WeightKind::F32 | WeightKind::F16) {
            return Err(KernelError::Kind {
                kind,
                expected: "f32 or f16",
            });
        }
        for (argument, value) in [("num_kv_heads", num_kv_heads), ("head_dim", head_dim)] {
            if value == 0 {
                return Err(KernelError::Zero { argument });
            }
        }
        if !slots.is_multiple_of(Self::PAGE) {
            return Err(KernelError::NotMultiple {
                argument: "slots",
                value: slots,
                of: Self::PAGE,
            });
        }
        let pages = slots / Self::PAGE;
        let heads = checked_mul(pages, num_kv_heads)?;
        let key_bytes = checked_mul(head_dim, kind.span(1))?;
        let value_bytes = checked_mul(head_dim.div_ceil(PANEL), kind.span(PANEL))?;
        Ok(Self {
            kind,
            num_kv_heads,
            head_dim,
            pages,
            key_bytes,
            value_bytes,
            keys: Memory::untouched(checked_mul(heads, key_bytes)?)?,
            values: Memory::untouched(checked_mul(heads, value_bytes)?)?,
        })
    }

    /// Slots that it holds.
    pub fn slots(&self) -> usize {
        self.pages * Self::PAGE
    }

    /// Key and value heads of a token.
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// `F32` or `F16`.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Stores row `i` of `keys` and of `values`, both `[slots.len(), num_kv_heads * head_dim]`, in `slots[i]`.
    ///
    /// Finite values beyond ±65504 are kept as ±65504 in an `f16` cache.
    ///
    /// # Errors
    /// When lengths differ, or there is no such slot.
    pub fn write(
        &mut self,
        slots: &[u32],
        keys: &[f32],
        values: &[f32],
    ) -> Result<(), KernelError> {
        let width = self.num_kv_heads * self.head_dim;
        check_len("keys", checked_mul(slots.len(), width)?, keys.len())?;
        check_len("values", keys.len(), values.len())?;
        if let Some(&slot) = slots.iter().find(|&&slot| slot as usize >= self.slots()) {
            return Err(KernelError::OutOfRange {
                argument: "slot",
                value: slot as usize,
                maximum: self.slots().saturating_sub(1),
            });
        }
        let heads = keys
            .chunks_exact(self.head_dim)
            .zip(values.chunks_exact(self.head_dim));
        for (index, (key, value)) in heads.enumerate() {
            let slot = slots[index / self.num_kv_heads] as usize;
            // SAFETY: the cache is borrowed exclusively.
            unsafe { self.place(slot, index % self.num_kv_heads, key, value) }
        }
        Ok(())
    }

    /// Stores the key and the value of a head in a slot, as [`write`](Self::write) does: a key as one lane of
    /// `[head_dim][16]`, a value as one row of each panel `[16][16]`.
    ///
    /// # Safety
    /// Nobody else may write the slot's part of this head meanwhile, or read this head's part of its page.
    pub(super) unsafe fn place(&self, slot: usize, kv_head: usize, key: &[f32], value: &[f32]) {
        assert!(slot < self.slots() && kv_head < self.num_kv_heads);
        assert!(key.len() == self.head_dim && value.len() == self.head_dim);
        let (page, lane) = (slot / Self::PAGE, slot % Self::PAGE);
        let head = page * self.num_kv_heads + kv_head;
        // A head is rounded in pieces that are whole panels of values.
        const PIECE: usize = 4 * PANEL;
        let pieces = key.chunks(PIECE).zip(value.chunks(PIECE));
        for (index, (key, value)) in pieces.enumerate() {
            let place = Place {
                first: index * PIECE,
                lane,
            };
            // SAFETY: head and slot exist (asserted), so that all places lie inside the memory, which is aligned for
            // either type; nobody else is there (the caller's promise).
            unsafe {
                let keys = self.keys.at(head * self.key_bytes);
                let values = self.values.at(head * self.value_bytes);
                if self.kind == WeightKind::F16 {
                    let mut halves = [[f16::ZERO; PIECE]; 2];
                    let [key_halves, value_halves] = &mut halves;
                    let (key_halves, value_halves) =
                        (&mut key_halves[..key.len()], &mut value_halves[..key.len()]);
                    round(key, key_halves);
                    round(value, value_halves);
                    place.write(key_halves, keys.cast(), value_halves, values.cast());
                } else {
                    place.write(key, keys.cast(), value, values.cast());
                }
            }
        }
    }

    /// The keys of a head in a page, a panel `[head_dim][16]`.
    pub(super) fn keys(&self, page: usize, kv_head: usize) -> &[u8] {
        self.keys
            .part(page * self.num_kv_heads + kv_head, self.key_bytes)
    }

    /// The values of a head in a page, panels `[16][16]` for sixteen values of a head each.
    pub(super) fn values(&self, page: usize, kv_head: usize) -> &[u8] {
        self.values
            .part(page * self.num_kv_heads + kv_head, self.value_bytes)
    }
}

/// Zeroed memory that the system gives page by page as it is first written.
struct Memory {
    /// What `start` addresses.
    mapping: MmapMut,
    start: NonNull<u8>,
}

// SAFETY: the memory is owned by this value alone; what reads and writes it at the same time stays apart, see
// `PagedCache::place`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn untouched(bytes: usize) -> Result<Self, KernelError> {
        let error = KernelError::Memory { bytes };
        let mut mapping = MmapMut::map_anon(bytes).map_err(|_| error.clone())?;
        // A large page would become resident for the first token of many. A wish only: a refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::NoHugePage);
        let start = NonNull::new(mapping.as_mut_ptr()).ok_or(error)?;
        Ok(Self { mapping, start })
    }

    /// The address of a byte.
    fn at(&self, offset: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(offset)
    }

    /// Part `index` of those of `bytes` bytes.
    fn part(&self, index: usize, bytes: usize) -> &[u8] {
        let start = index * bytes;
        assert!(bytes <= self.mapping.len() && start <= self.mapping.len() - bytes);
        // SAFETY: inside the mapping (asserted), which lives as long as this value; nobody writes this part while the
        // slice lives: see `PagedCache::place`.
        unsafe { std::slice::from_raw_parts(self.at(start), bytes) }
    }
}

/// Where a piece of a head goes in the panels of a page.
struct Place {
    /// The piece's first value among those of the head, the first of a panel.
    first: usize,
    /// The slot in its page.
    lane: usize,
}

impl Place {
    /// Writes a piece of a key and of a value to the head's part of a page.
    ///
    /// # Safety
    /// The pointers must be aligned and address such parts, whose places for the piece belong to nobody else.
    unsafe fn write<T: Copy>(&self, key: &[T], keys: *mut T, value: &[T], values: *mut T) {
        // SAFETY: the caller's promise.
        unsafe {
            for (index, &key) in key.iter().enumerate() {
                keys.add((self.first + index) * PANEL + self.lane)
                    .write(key);
            }
            for (index, piece) in value.chunks(PANEL).enumerate() {
                let row = self.first + index * PANEL + self.lane;
                std::ptr::copy_nonoverlapping(piece.as_ptr(), values.add(row * PANEL), piece.len());
            }
        }
    }
}

/// Rounds to `f16`; what is finite stays so.
fn round(values: &[f32], halves: &mut [f16]) {
    halves.convert_from_f32_slice(values);
    for (half, value) in halves.iter_mut().zip(values) {
        if half.is_infinite() && value.is_finite() {
            *half = f16::MAX.copysign(*half);
        }
    }
}
