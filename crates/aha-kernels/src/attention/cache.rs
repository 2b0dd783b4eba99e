//! Keys and values of one attention layer, kept as attention reads them.

use std::fmt;

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;

use crate::KernelError;
use crate::buffer::{as_f32_mut, as_u16_mut};
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
    keys: MmapMut,
    values: MmapMut,
    /// A token's key and value on their way to an `f16` cache.
    halves: Vec<f16>,
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
        let width = checked_mul(num_kv_heads, head_dim)?;
        let key_bytes = checked_mul(head_dim, kind.span(1))?;
        let value_bytes = checked_mul(head_dim.div_ceil(PANEL), kind.span(PANEL))?;
        let halves = match kind {
            WeightKind::F16 => checked_mul(2, width)?,
            _ => 0,
        };
        Ok(Self {
            kind,
            num_kv_heads,
            head_dim,
            pages,
            key_bytes,
            value_bytes,
            keys: untouched(checked_mul(heads, key_bytes)?)?,
            values: untouched(checked_mul(heads, value_bytes)?)?,
            halves: vec![f16::ZERO; halves],
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
        for (index, &slot) in slots.iter().enumerate() {
            let (page, lane) = (slot as usize / Self::PAGE, slot as usize % Self::PAGE);
            let row = index * width..(index + 1) * width;
            let (keys, values) = (&keys[row.clone()], &values[row]);
            let first = page * self.num_kv_heads;
            let key_pages = self.keys[first * self.key_bytes..].chunks_exact_mut(self.key_bytes);
            let value_pages =
                self.values[first * self.value_bytes..].chunks_exact_mut(self.value_bytes);
            let pages = key_pages.zip(value_pages);
            if self.kind == WeightKind::F16 {
                let (key_halves, value_halves) = self.halves.split_at_mut(width);
                round(keys, key_halves);
                round(values, value_halves);
                let (keys, values) = (
                    key_halves.reinterpret_cast(),
                    value_halves.reinterpret_cast(),
                );
                place((keys, values), self.head_dim, pages, lane, as_u16_mut);
            } else {
                place((keys, values), self.head_dim, pages, lane, as_f32_mut);
            }
        }
        Ok(())
    }

    /// The keys of a head in a page, a panel `[head_dim][16]`.
    pub(super) fn keys(&self, page: usize, kv_head: usize) -> &[u8] {
        let bytes = self.key_bytes;
        &self.keys[(page * self.num_kv_heads + kv_head) * bytes..][..bytes]
    }

    /// The values of a head in a page, panels `[16][16]` for sixteen values of a head each.
    pub(super) fn values(&self, page: usize, kv_head: usize) -> &[u8] {
        let bytes = self.value_bytes;
        &self.values[(page * self.num_kv_heads + kv_head) * bytes..][..bytes]
    }
}

/// Zeroed memory that the system gives page by page as it is first written.
fn untouched(bytes: usize) -> Result<MmapMut, KernelError> {
    let memory = MmapMut::map_anon(bytes).map_err(|_| KernelError::Memory { bytes })?;
    // A large page would become resident for the first token of many. A wish only: a refusal changes nothing.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::NoHugePage);
    Ok(memory)
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

/// Writes the keys and values of a token, head by head: a key as one lane of `[head_dim][16]`, a value as one row of
/// each panel `[16][16]`.
fn place<'a, T: Copy + 'a>(
    (keys, values): (&[T], &[T]),
    head_dim: usize,
    pages: impl Iterator<Item = (&'a mut [u8], &'a mut [u8])>,
    lane: usize,
    view: fn(&mut [u8]) -> &mut [T],
) {
    let heads = keys
        .chunks_exact(head_dim)
        .zip(values.chunks_exact(head_dim));
    for ((key, value), (key_page, value_page)) in heads.zip(pages) {
        let lanes = view(key_page)[lane..].iter_mut().step_by(PANEL);
        for (place, &value) in lanes.zip(key) {
            *place = value;
        }
        let panels = view(value_page).chunks_exact_mut(PANEL * PANEL);
        for (panel, piece) in panels.zip(value.chunks(PANEL)) {
            panel[lane * PANEL..][..piece.len()].copy_from_slice(piece);
        }
    }
}
