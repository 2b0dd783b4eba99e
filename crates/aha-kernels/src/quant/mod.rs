//! Block-quantised weights: the formats of GGUF files, and the panels they are packed to.
//!
//! A value is `scale * code - minimum`. Codes have a few bits; scales and minima belong to groups of
//! 32 (in some formats 16) neighbouring columns of a row. Packing moves bits and computes nothing:
//! scales keep the precision of the file, and a panel decodes to the very values of the file.
//!
//! A panel is a row of blocks. A block holds, for sixteen rows side by side:
//!
//! ```text
//! factors   16 x f16, then 16 more where the format has minima
//! units     for each 32 columns:
//!   scales    16 x i8 a group     } only in formats of nested scales
//!   minima    16 x i8 a group     } (Q2_K: both in one byte)
//!   codes     `bits` words a row: 32 codes end to end from the lowest bit of the first word;
//!             word by word, each 16 x u32
//! ```

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
mod block;
mod encode;
pub(crate) mod scalar;

use crate::error::{check_len, checked_mul};
use crate::pack::PANEL;
use crate::{KernelError, WeightKind};

use block::Block;
pub use encode::quantize_gguf;

/// Columns of a unit: 32 codes of `bits` bits are `bits` whole words.
pub(crate) const UNIT: usize = 32;

/// What distinguishes a block format.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// Values of a block in the file and in a panel.
    pub(crate) values: usize,
    /// Bytes of a block in the file.
    file_bytes: usize,
    /// Bits of a code.
    pub(crate) bits: usize,
    /// Whether codes are centred on zero (kept in two's complement).
    pub(crate) signed: bool,
    /// Whether there are minima.
    pub(crate) minima: bool,
    /// How scales are kept.
    pub(crate) scales: Scales,
}

/// How the scales of a block are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// The block's factor is the scale.
    Plain,
    /// Each group has an integer that multiplies the block's factor.
    Nested {
        /// Groups of a unit: one or two.
        groups: usize,
        /// Whether scale and minimum share a byte (low and high half).
        shared: bool,
    },
}

impl Format {
    const fn plain(file_bytes: usize, bits: usize, signed: bool) -> Self {
        Self {
            values: 32,
            file_bytes,
            bits,
            signed,
            minima: !signed,
            scales: Scales::Plain,
        }
    }

    const fn nested(file_bytes: usize, bits: usize, signed: bool, groups: usize) -> Self {
        // Only Q2_K has unsigned codes and groups of 16.
        let scales = Scales::Nested {
            groups,
            shared: !signed && groups == 2,
        };
        Self {
            values: 256,
            file_bytes,
            bits,
            signed,
            minima: !signed,
            scales,
        }
    }

    /// The format of `kind`, if that is a block format.
    pub(crate) const fn of(kind: WeightKind) -> Option<Self> {
        Some(match kind {
            WeightKind::F32 | WeightKind::F16 | WeightKind::Bf16 => return None,
            WeightKind::Q4_0 => Self::plain(18, 4, true),
            WeightKind::Q4_1 => Self::plain(20, 4, false),
            WeightKind::Q5_0 => Self::plain(22, 5, true),
            WeightKind::Q5_1 => Self::plain(24, 5, false),
            WeightKind::Q8_0 => Self::plain(34, 8, true),
            WeightKind::Q2K => Self::nested(84, 2, false, 2),
            WeightKind::Q3K => Self::nested(110, 3, true, 2),
            WeightKind::Q4K => Self::nested(144, 4, false, 1),
            WeightKind::Q5K => Self::nested(176, 5, false, 1),
            WeightKind::Q6K => Self::nested(210, 6, true, 2),
        })
    }

    /// Bytes of the factors at the start of a packed block.
    pub(crate) const fn factor_bytes(&self) -> usize {
        if self.minima { 4 * PANEL } else { 2 * PANEL }
    }

    /// Bytes of the scales and minima at the start of a unit.
    pub(crate) const fn scale_bytes(&self) -> usize {
        match self.scales {
            Scales::Plain => 0,
            Scales::Nested { groups, shared } => {
                groups * PANEL * if self.minima && !shared { 2 } else { 1 }
            }
        }
    }

    /// Bytes of a unit.
    pub(crate) const fn unit_bytes(&self) -> usize {
        self.scale_bytes() + 4 * PANEL * self.bits
    }

    /// Bytes of a packed block of sixteen rows.
    pub(crate) const fn packed_bytes(&self) -> usize {
        self.factor_bytes() + self.values / UNIT * self.unit_bytes()
    }

    /// Bytes of a row of `cols` values in the file.
    pub(crate) fn row_bytes(&self, cols: usize) -> Result<usize, KernelError> {
        if !cols.is_multiple_of(self.values) {
            let (argument, value, of) = ("cols", cols, self.values);
            return Err(KernelError::NotMultiple {
                argument,
                value,
                of,
            });
        }
        checked_mul(cols / self.values, self.file_bytes)
    }
}

impl WeightKind {
    /// Values and bytes of one block in a GGUF file; `None` for kinds without blocks.
    pub fn gguf_block(self) -> Option<(usize, usize)> {
        Format::of(self).map(|format| (format.values, format.file_bytes))
    }
}

/// Decodes GGUF blocks: `out` receives the values of `data` one after another.
///
/// # Errors
/// When `kind` has no blocks, `data` is not a whole number of them, or `out` has another length than
/// the values of `data`.
pub fn dequantize_gguf(kind: WeightKind, data: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    let format = format_of(kind)?;
    if !data.len().is_multiple_of(format.file_bytes) {
        return Err(KernelError::NotMultiple {
            argument: "length of data",
            value: data.len(),
            of: format.file_bytes,
        });
    }
    check_len(
        "out",
        checked_mul(data.len() / format.file_bytes, format.values)?,
        out.len(),
    )?;
    for (bytes, out) in data
        .chunks_exact(format.file_bytes)
        .zip(out.chunks_exact_mut(format.values))
    {
        Block::read(kind, bytes).values(&format, out);
    }
    Ok(())
}

/// The format of a kind that must have one.
pub(crate) fn format_of(kind: WeightKind) -> Result<Format, KernelError> {
    Format::of(kind).ok_or(KernelError::Kind {
        kind,
        expected: "a block-quantised kind",
    })
}

/// Packs up to sixteen rows of blocks to a panel of zeros.
pub(crate) fn pack_panel(
    kind: WeightKind,
    format: &Format,
    panel: &mut [u8],
    rows: &[u8],
    row_bytes: usize,
) {
    for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
        let blocks = row.chunks_exact(format.file_bytes);
        for (bytes, packed) in blocks.zip(panel.chunks_exact_mut(format.packed_bytes())) {
            Block::read(kind, bytes).pack(format, lane, packed);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
