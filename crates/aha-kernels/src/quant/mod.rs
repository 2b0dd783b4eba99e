//! Block-quantised weights: the formats of GGUF files, and the panels they are packed to.
//!
//! A value is `scale * code - minimum`. Codes have a few bits; scales and minima belong to groups of
//! 32 (in some formats 16) neighbouring columns of a row. Packing moves bits and computes nothing:
//! scales keep the precision of the file, and a panel decodes to the very values of the file.
//!
//! A panel holds sixteen rows side by side as a row of packed blocks, whose two parts begin on cache
//! lines. A packed block is one block of the file, or two where a block has 32 values and no minima.
//!
//! ```text
//! scales
//!   factors   16 x f16 for each block of the file, then 16 more where the format has minima
//!   for each 32 columns (a unit), in formats of nested scales
//!     scales    16 x i8 a group
//!     minima    16 x i8 a group (Q2_K: both in one byte)
//! codes       for each unit `bits` words a row; word by word, each 16 x u32
//! ```
//!
//! Codes are held without sign ([`Format::offset`] was added), in planes of 8, 4, 2 or 1 bits: six bits
//! are a plane of the low four and a plane of the high two. Each byte of a word belongs to another
//! one of four neighbouring columns, so that a shift and a mask give four columns of sixteen rows
//! in the order in which integer dot products take them.

mod activations;
mod block;
mod encode;
pub(crate) mod product;
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
    /// Whether codes are centred on zero.
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

    /// A format with this layout in panels; only the size of its blocks in files is not told by that.
    pub(crate) const fn laid_out(bits: usize, minima: bool, nested: bool) -> Self {
        if !nested {
            return Self::plain(0, bits, !minima);
        }
        // Q2_K, Q3_K and Q6_K have groups of 16.
        let groups = if bits == 4 || bits == 5 { 1 } else { 2 };
        Self::nested(0, bits, !minima, groups)
    }

    /// Groups of columns with a scale of their own in a unit: one or two.
    pub(crate) const fn groups(&self) -> usize {
        match self.scales {
            Scales::Plain => 1,
            Scales::Nested { groups, .. } => groups,
        }
    }

    /// What was added to the codes to make them non-negative.
    pub(crate) const fn offset(&self) -> i32 {
        if self.signed { 1 << (self.bits - 1) } else { 0 }
    }

    /// The bits of the planes of a code.
    const fn planes(&self) -> &'static [usize] {
        match self.bits {
            6 => &[4, 2],
            5 => &[4, 1],
            3 => &[2, 1],
            8 => &[8],
            4 => &[4],
            _ => &[2],
        }
    }

    /// Where a packed unit has the codes of columns `4 * step..4 * step + 4`, plane by plane.
    #[inline(always)] // so that packing knows the places of a kind as it is compiled
    pub(crate) fn places(&self, step: usize) -> impl Iterator<Item = Place> {
        self.planes().iter().scan(0, move |low, &bits| {
            let steps = 8 / bits; // that share a word
            let place = Place {
                word: *low + step / steps,
                shift: step % steps * bits,
                bits,
                low: *low,
            };
            *low += bits;
            Some(place)
        })
    }

    /// Bytes of the factors at the start of a block's scales.
    pub(crate) const fn factor_bytes(&self) -> usize {
        if self.minima { 4 * PANEL } else { 2 * PANEL }
    }

    /// Bytes of the nested scales and minima of a unit.
    pub(crate) const fn scale_bytes(&self) -> usize {
        match self.scales {
            Scales::Plain => 0,
            Scales::Nested { groups, shared } => {
                groups * PANEL * if self.minima && !shared { 2 } else { 1 }
            }
        }
    }

    /// Bytes of a unit's codes.
    pub(crate) const fn code_bytes(&self) -> usize {
        4 * PANEL * self.bits
    }

    /// Lines of a unit whose codes are whole bytes: scales and minima of each group, then the codes.
    pub(crate) const fn unpacked_lines(&self) -> usize {
        self.groups() * if self.minima { 2 } else { 1 } + UNIT / 4
    }

    /// Blocks of the file that a packed block holds.
    pub(crate) const fn parts(&self) -> usize {
        if self.factor_bytes() < 64 && self.values == UNIT {
            2
        } else {
            1
        }
    }

    /// Units of a packed block.
    pub(crate) const fn units(&self) -> usize {
        self.parts() * self.values / UNIT
    }

    /// Bytes before the codes of a packed block.
    pub(crate) const fn side_bytes(&self) -> usize {
        let bytes = self.parts() * self.factor_bytes() + self.units() * self.scale_bytes();
        bytes.next_multiple_of(64)
    }

    /// Bytes of a packed block.
    pub(crate) const fn packed_bytes(&self) -> usize {
        self.side_bytes() + self.units() * self.code_bytes()
    }

    /// Bytes of a panel of `cols` columns; `None` beyond `usize`.
    pub(crate) const fn panel_bytes(&self, cols: usize) -> Option<usize> {
        cols.div_ceil(self.units() * UNIT)
            .checked_mul(self.packed_bytes())
    }

    /// Where unit `index` of a panel has its factors, its nested scales and its codes.
    pub(crate) const fn unit_places(&self, index: usize) -> [usize; 3] {
        let (block, unit) = (index / self.units(), index % self.units());
        let start = block * self.packed_bytes();
        let part = unit / (self.values / UNIT);
        [
            start + part * self.factor_bytes(),
            start + self.parts() * self.factor_bytes() + unit * self.scale_bytes(),
            start + self.side_bytes() + unit * self.code_bytes(),
        ]
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

/// Bits of the codes of four neighbouring columns within the words of a unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The word.
    pub(crate) word: usize,
    /// First bit within each byte of the word.
    pub(crate) shift: usize,
    /// How many bits.
    pub(crate) bits: usize,
    /// The bit of the code that the first one is.
    pub(crate) low: usize,
}

impl WeightKind {
    /// Values and bytes of one block in a GGUF file; `None` for kinds without blocks.
    pub fn gguf_block(self) -> Option<(usize, usize)> {
        Format::of(self).map(|format| (format.values, format.file_bytes))
    }
}

/// Runs `$body` with the format of `$kind` as a constant, of which the compiler makes a loop for each kind. Does nothing
/// for kinds without blocks.
macro_rules! with_format {
    ($kind:expr, |$format:ident| $body:block) => {
        with_format!(
            $kind, $format, $body, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K
        )
    };
    ($kind:expr, $format:ident, $body:block, $($name:ident),*) => {
        match $kind {
            WeightKind::F32 | WeightKind::F16 | WeightKind::Bf16 => {}
            $(WeightKind::$name => {
                const $format: Format = match Format::of(WeightKind::$name) {
                    Some(format) => format,
                    None => unreachable!(),
                };
                $body
            })*
        }
    };
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
    with_format!(kind, |FORMAT| {
        let blocks = data.chunks_exact(FORMAT.file_bytes);
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(FORMAT.values)) {
            Block::<{ FORMAT.values }>::read(kind, bytes).values(&FORMAT, out);
        }
    });
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
pub(crate) fn pack_panel(kind: WeightKind, panel: &mut [u8], rows: &[u8], row_bytes: usize) {
    with_format!(kind, |FORMAT| {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (index, bytes) in row.chunks_exact(FORMAT.file_bytes).enumerate() {
                Block::<{ FORMAT.values }>::read(kind, bytes).pack(&FORMAT, lane, index, panel);
            }
        }
    });
}

#[cfg(test)]
pub(crate) mod tests;
