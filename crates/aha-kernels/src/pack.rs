use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::{bf16, f16};
use smallvec::SmallVec;

use crate::buffer::{as_f32, as_f32_mut, as_lines_mut, as_u16, as_u16_mut};
use crate::error::{check_len, checked_mul};
use crate::foresight::{Follower, Place};
use crate::matmul::{self, Job, MATRICES, Output};
use crate::memory::AlignedBytes;
use crate::quant::{self, Format};
use crate::transpose::turn;
use crate::{InstructionSet, KernelError, instruction_set};

/// Output rows that stand side by side in a panel: two AVX2 registers of `f32`.
pub(crate) const PANEL: usize = 16;

/// Bytes that are packed before those that they came from are released.
const RELEASED_BYTES: usize = 16 << 20;

/// How the values of a [`PackedMatrix`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightKind {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit floats with the exponent range of `f32`.
    Bf16,
    /// GGUF `Q4_0`: 4-bit codes around zero, a scale for 32 values.
    Q4_0,
    /// GGUF `Q4_1`: 4-bit codes, scale and minimum for 32 values.
    Q4_1,
    /// GGUF `Q5_0`: 5-bit codes around zero, a scale for 32 values.
    Q5_0,
    /// GGUF `Q5_1`: 5-bit codes, scale and minimum for 32 values.
    Q5_1,
    /// GGUF `Q8_0`: 8-bit codes around zero, a scale for 32 values.
    Q8_0,
    /// GGUF `Q2_K`: 2-bit codes, nested scales and minima for 16 values.
    Q2K,
    /// GGUF `Q3_K`: 3-bit codes around zero, nested scales for 16 values.
    Q3K,
    /// GGUF `Q4_K`: 4-bit codes, nested scales and minima for 32 values.
    Q4K,
    /// GGUF `Q5_K`: 5-bit codes, nested scales and minima for 32 values.
    Q5K,
    /// GGUF `Q6_K`: 6-bit codes around zero, nested scales for 16 values.
    Q6K,
}

impl WeightKind {
    /// Bytes of one panel of `cols` columns.
    fn panel_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::F32 => cols.checked_mul(4 * PANEL),
            Self::F16 => cols.checked_mul(2 * PANEL)?.checked_next_multiple_of(64),
            Self::Bf16 => cols.div_ceil(2).checked_mul(4 * PANEL),
            _ => {
                let format = Format::of(self)?;
                // Whole cache lines, so that every panel starts on one.
                let bytes = format.panel_bytes(cols)?;
                bytes.checked_next_multiple_of(64)
            }
        }
    }

    /// Bytes that kernels read for `depth` columns of a panel.
    pub(crate) fn span(self, depth: usize) -> usize {
        match self {
            Self::Bf16 => self.column_offset(depth.next_multiple_of(2)),
            _ => self.column_offset(depth),
        }
    }

    /// Byte at which column `col` starts inside a panel. `col` must be even for `Bf16`; block formats
    /// have no such place.
    pub(crate) fn column_offset(self, col: usize) -> usize {
        match self {
            Self::F32 => col * 4 * PANEL,
            _ => col * 2 * PANEL,
        }
    }
}

/// Bytes that somebody else holds, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where the values of a matrix are.
enum Values {
    Panels(AlignedBytes),
    /// `bf16` in rows of somebody else's, until they are packed.
    Shared {
        rows: SharedBytes,
        panels: OnceLock<AlignedBytes>,
    },
}

/// The values of a matrix as they lie at the moment. Either way, sixteen rows take [`PackedMatrix::panel_bytes`].
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    Panels(&'a [u8]),
    /// Row by row; the kernels turn sixteen of them into a panel as they go.
    Rows(&'a [u8]),
}

impl Values {
    fn view(&self) -> View<'_> {
        match self {
            Self::Panels(panels) => View::Panels(panels.as_slice()),
            Self::Shared { rows, panels } => match panels.get() {
                Some(panels) => View::Panels(panels.as_slice()),
                None => View::Rows((**rows).as_ref()),
            },
        }
    }
}

impl<'a> View<'a> {
    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Self::Panels(bytes) | Self::Rows(bytes) => bytes,
        }
    }

    pub(crate) fn is_rows(self) -> bool {
        matches!(self, Self::Rows(_))
    }
}

/// A weight matrix `[rows = out_features, cols = in_features]`, packed once for fast products.
///
/// Sixteen rows at a time form a panel that is stored column after column, so that a product reads
/// memory strictly forwards and each of sixteen neighbouring lanes owns one output. The last panel
/// is filled up with zeros. Values keep their type: a `bf16` matrix takes two bytes a value, and may stay
/// where it is, see [`PackedMatrix::from_shared_bf16`].
pub struct PackedMatrix {
    kind: WeightKind,
    rows: usize,
    cols: usize,
    panel_bytes: usize,
    values: Values,
    follower: Arc<Follower>,
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PackedMatrix([{}, {}], {:?})",
            self.rows, self.cols, self.kind
        )
    }
}

impl PackedMatrix {
    /// Packs a row-major matrix of `f32`.
    ///
    /// # Errors
    /// When `data` has not `rows * cols` elements, or memory runs out.
    pub fn from_f32(rows: usize, cols: usize, data: &[f32]) -> Result<Self, KernelError> {
        Self::pack(WeightKind::F32, rows, cols, cols, data, |panel, source| {
            interleave(
                as_f32_mut(panel),
                source,
                cols,
                |col, lane| col * PANEL + lane,
                |value| value,
            );
        })
    }

    /// Packs a row-major matrix of `f16`, kept in 16 bits.
    ///
    /// # Errors
    /// As [`PackedMatrix::from_f32`].
    pub fn from_f16(rows: usize, cols: usize, data: &[f16]) -> Result<Self, KernelError> {
        Self::pack(
            WeightKind::F16,
            rows,
            cols,
            cols,
            bits_of_f16(data),
            |panel, source| {
                interleave(
                    as_u16_mut(panel),
                    source,
                    cols,
                    |col, lane| col * PANEL + lane,
                    |value| value,
                );
            },
        )
    }

    /// Packs a row-major matrix of `bf16`, kept in 16 bits.
    ///
    /// # Errors
    /// As [`PackedMatrix::from_f32`].
    pub fn from_bf16(rows: usize, cols: usize, data: &[bf16]) -> Result<Self, KernelError> {
        // Two columns share a 32-bit lane: the even one in the low half, the odd one in the high
        // half, where a shift and a mask turn them into `f32`.
        check_len("data", checked_mul(rows, cols)?, data.len())?;
        let values = Self::panels_of_rows(rows, cols, bytes_of_bf16(data), |_| {})?;
        Self::new(WeightKind::Bf16, rows, cols, values)
    }

    /// A row-major matrix of little-endian `bf16` in memory of somebody else: read where it is if the kernels of
    /// this processor and the matrix's shape allow that ([`PackedMatrix::is_shared`] tells), packed otherwise.
    ///
    /// # Errors
    /// When `bytes` has not two bytes for each of `rows * cols` elements, or memory runs out.
    pub fn from_shared_bf16(
        rows: usize,
        cols: usize,
        bytes: SharedBytes,
    ) -> Result<Self, KernelError> {
        Self::from_shared_bf16_for(instruction_set(), rows, cols, bytes)
    }

    /// [`PackedMatrix::from_shared_bf16`] for products on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there.
    pub fn from_shared_bf16_for(
        set: InstructionSet,
        rows: usize,
        cols: usize,
        bytes: SharedBytes,
    ) -> Result<Self, KernelError> {
        let len = (*bytes).as_ref().len();
        check_len("bytes", checked_mul(checked_mul(rows, cols)?, 2)?, len)?;
        if !reads_rows(set, rows, cols) {
            let values = Self::panels_of_rows(rows, cols, (*bytes).as_ref(), |_| {})?;
            return Self::new(WeightKind::Bf16, rows, cols, values);
        }
        let values = Values::Shared {
            rows: bytes,
            panels: OnceLock::new(),
        };
        Self::new(WeightKind::Bf16, rows, cols, values)
    }

    /// Whether the values are read where [`PackedMatrix::from_shared_bf16`] found them.
    pub fn is_shared(&self) -> bool {
        self.view().is_rows()
    }

    /// Packs values that are read where they were found, since panels are read a little faster. `release` is told
    /// piece by piece which bytes will hardly be read there any more. Changes no result; without effect on other
    /// matrices.
    ///
    /// # Errors
    /// When memory runs out; the matrix stays as it was.
    pub fn pack_shared(&self, release: impl Fn(Range<usize>)) -> Result<(), KernelError> {
        if let Values::Shared { rows, panels } = &self.values
            && panels.get().is_none()
        {
            let packed = Self::panels_of_rows(self.rows, self.cols, (**rows).as_ref(), release)?;
            if let Values::Panels(packed) = packed {
                // Another thread may have been faster; its panels are the same.
                let _ = panels.set(packed);
            }
        }
        Ok(())
    }

    /// Panels of row-major little-endian `bf16` values; `release` is told which bytes are done with.
    fn panels_of_rows(
        rows: usize,
        cols: usize,
        bytes: &[u8],
        release: impl Fn(Range<usize>),
    ) -> Result<Values, KernelError> {
        let panel_bytes = panel_bytes_of(WeightKind::Bf16, cols)?;
        let all = checked_mul(rows.div_ceil(PANEL), panel_bytes)?;
        let row_bytes = 2 * cols;
        let source = |panels: Range<usize>| {
            let end = bytes.len().min(panels.end * PANEL * row_bytes);
            (panels.start * PANEL * row_bytes).min(end)..end
        };
        let pack = |index: usize, panel: &mut [u8]| {
            let rows = &bytes[source(index..index + 1)];
            if are_words(cols) && rows.len() == PANEL * row_bytes {
                let next = rows.as_ptr_range().end;
                return turn(
                    instruction_set(),
                    rows,
                    row_bytes,
                    as_lines_mut(panel),
                    next,
                );
            }
            let rows = rows.as_chunks().0;
            interleave(
                as_u16_mut(panel),
                rows,
                cols,
                bf16_index,
                u16::from_le_bytes,
            );
        };
        let stretch = RELEASED_BYTES / panel_bytes.max(1);
        let done = |panels| release(source(panels));
        AlignedBytes::filled_in_stretches(all, panel_bytes, stretch, pack, done).map(Values::Panels)
    }

    /// The same matrix for an instruction set that does not read rows; none where it is fit for `set` as it is.
    fn packed_for(&self, set: InstructionSet) -> Result<Option<Self>, KernelError> {
        match self.view() {
            View::Rows(rows) if !reads_rows(set, self.rows, self.cols) => {
                let values = Self::panels_of_rows(self.rows, self.cols, rows, |_| {})?;
                Self::new(WeightKind::Bf16, self.rows, self.cols, values).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Packs the rows of a GGUF tensor, whose blocks `data` holds row by row as the file does. The
    /// values stay quantised and mean exactly what [`dequantize_gguf`](crate::dequantize_gguf) says.
    ///
    /// # Errors
    /// When `kind` has no blocks, `cols` is not a whole number of them, `data` has another length
    /// than `rows` such rows, or memory runs out.
    pub fn from_gguf_blocks(
        kind: WeightKind,
        rows: usize,
        cols: usize,
        data: &[u8],
    ) -> Result<Self, KernelError> {
        let format = quant::format_of(kind)?;
        let row_bytes = format.row_bytes(cols)?;
        Self::pack(kind, rows, cols, row_bytes, data, |panel, source| {
            quant::pack_panel(kind, panel, source, row_bytes);
        })
    }

    /// Packs `data`, of which a row takes `row_len` elements.
    fn pack<T: Sync>(
        kind: WeightKind,
        rows: usize,
        cols: usize,
        row_len: usize,
        data: &[T],
        pack_panel: impl Fn(&mut [u8], &[T]) + Sync,
    ) -> Result<Self, KernelError> {
        check_len("data", checked_mul(rows, row_len)?, data.len())?;
        let panel_bytes = panel_bytes_of(kind, cols)?;
        let bytes = checked_mul(rows.div_ceil(PANEL), panel_bytes)?;
        let packed = AlignedBytes::filled(bytes, panel_bytes, |index, panel| {
            let first = index * PANEL * row_len;
            let end = data.len().min(first + PANEL * row_len);
            pack_panel(panel, &data[first..end]);
        })?;
        Self::new(kind, rows, cols, Values::Panels(packed))
    }

    fn new(
        kind: WeightKind,
        rows: usize,
        cols: usize,
        values: Values,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            kind,
            rows,
            cols,
            panel_bytes: panel_bytes_of(kind, cols)?,
            values,
            follower: Arc::default(),
        })
    }

    /// The values as they lie now. Whoever reads several panels looks once: they may be packed meanwhile.
    pub(crate) fn view(&self) -> View<'_> {
        self.values.view()
    }

    /// What was multiplied after this matrix the last time.
    pub(crate) fn follower(&self) -> &Arc<Follower> {
        &self.follower
    }

    /// Where the packed values lie.
    pub(crate) fn place(&self) -> Place {
        let data = self.view().bytes();
        Place {
            address: data.as_ptr().addr(),
            bytes: data.len(),
        }
    }

    /// Number of rows: output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the values are stored.
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Bytes of memory that the packed values take.
    pub fn size_in_bytes(&self) -> usize {
        self.view().bytes().len()
    }

    /// `out[m, rows] = x[m, cols] · Wᵀ`, accumulated in `f32` over the columns in their order.
    ///
    /// Every output element is computed by the same operations in the same order for every `m` and
    /// every number of threads.
    ///
    /// # Errors
    /// When `x` has not `m * cols` or `out` not `m * rows` elements.
    pub fn matmul(&self, x: &[f32], m: usize, out: &mut [f32]) -> Result<(), KernelError> {
        self.matmul_on(instruction_set(), x, m, out)
    }

    /// [`PackedMatrix::matmul`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As [`PackedMatrix::matmul`], and when the processor lacks the instruction set.
    pub fn matmul_on(
        &self,
        set: InstructionSet,
        x: &[f32],
        m: usize,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        Self::matmul_into_on(set.require()?, [self], x, m, [out])
    }

    /// The products of the same rows with several matrices, one result `[m, rows]` after another: one
    /// round of the threads instead of several.
    ///
    /// Each result has the bits that [`PackedMatrix::matmul`] gives.
    ///
    /// # Errors
    /// When `x` has not `m * cols` elements for any of the matrices, or memory runs out.
    pub fn matmul_together(
        weights: &[&Self],
        x: &[f32],
        m: usize,
    ) -> Result<Vec<f32>, KernelError> {
        Self::matmul_together_on(instruction_set(), weights, x, m)
    }

    /// [`PackedMatrix::matmul_together`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn matmul_together_on(
        set: InstructionSet,
        weights: &[&Self],
        x: &[f32],
        m: usize,
    ) -> Result<Vec<f32>, KernelError> {
        let set = set.require()?;
        let packed = (weights.iter())
            .map(|w| w.packed_for(set))
            .collect::<Result<Vec<_>, _>>()?;
        let weights = (weights.iter().zip(&packed)).map(|(w, packed)| packed.as_ref().unwrap_or(w));
        let mut len = 0_usize;
        for w in weights.clone() {
            check_len("x", checked_mul(m, w.cols)?, x.len())?;
            let more = len.checked_add(checked_mul(m, w.rows)?);
            len = more.ok_or(KernelError::Memory { bytes: usize::MAX })?;
        }
        let mut out = Vec::<f32>::new();
        // Not zeroed: every value is written below.
        out.try_reserve_exact(len)
            .map_err(|_| KernelError::Memory {
                bytes: len.saturating_mul(4),
            })?;
        let mut start = out.as_mut_ptr();
        let jobs: Vec<Job<'_>> = weights
            .map(|w| {
                // SAFETY: the results lie one after another in the reserved memory.
                let job = unsafe {
                    Job {
                        w,
                        out: Output::new(start, m, w.rows),
                    }
                };
                start = start.wrapping_add(m * w.rows);
                job
            })
            .collect();
        matmul::matmul(set, &jobs, x, m);
        // SAFETY: `len` values were reserved, and the products have written each of them.
        unsafe { out.set_len(len) };
        Ok(out)
    }

    /// [`PackedMatrix::matmul_together`] into given places, `outs[index]` being `[m, rows]` of its matrix.
    ///
    /// # Errors
    /// As there, and when a slice of `outs` does not fit.
    pub fn matmul_into<const N: usize>(
        weights: [&Self; N],
        x: &[f32],
        m: usize,
        outs: [&mut [f32]; N],
    ) -> Result<(), KernelError> {
        Self::matmul_into_on(instruction_set(), weights, x, m, outs)
    }

    /// [`PackedMatrix::matmul_into`] on an instruction set that the processor has.
    fn matmul_into_on<const N: usize>(
        set: InstructionSet,
        weights: [&Self; N],
        x: &[f32],
        m: usize,
        outs: [&mut [f32]; N],
    ) -> Result<(), KernelError> {
        let mut packed = [const { None }; N];
        for ((w, out), packed) in weights.iter().zip(&outs).zip(&mut packed) {
            check_len("x", checked_mul(m, w.cols)?, x.len())?;
            check_len("out", checked_mul(m, w.rows)?, out.len())?;
            *packed = w.packed_for(set)?;
        }
        let mut outs = outs.into_iter();
        let jobs: SmallVec<[Job<'_>; MATRICES]> = (weights.iter().zip(&packed))
            .zip(&mut outs)
            .map(|((w, packed), out)| Job {
                w: packed.as_ref().unwrap_or(w),
                // SAFETY: the matrix is this part of `outs`, which is borrowed exclusively.
                out: unsafe { Output::new(out.as_mut_ptr(), m, w.rows) },
            })
            .collect();
        matmul::matmul(set, &jobs, x, m);
        Ok(())
    }

    /// Copies row `index` into `out` as `f32`: the embedding lookup of tied weights.
    ///
    /// # Errors
    /// When there is no such row, or `out` has not `cols` elements.
    pub fn row(&self, index: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if index >= self.rows {
            let maximum = self.rows.saturating_sub(1);
            return Err(KernelError::OutOfRange {
                argument: "row index",
                value: index,
                maximum,
            });
        }
        check_len("out", self.cols, out.len())?;
        if let View::Rows(bytes) = self.view() {
            let values = bytes.as_chunks().0[index * self.cols..].iter();
            for (out, value) in out.iter_mut().zip(values) {
                *out = bf16::from_le_bytes(*value).to_f32();
            }
            return Ok(());
        }
        let (panel, lane) = (self.panel(index / PANEL), index % PANEL);
        match self.kind {
            WeightKind::F32 => {
                for (value, line) in out.iter_mut().zip(as_f32(panel).chunks_exact(PANEL)) {
                    *value = line[lane];
                }
            }
            WeightKind::F16 => {
                for (value, line) in out.iter_mut().zip(as_u16(panel).chunks_exact(PANEL)) {
                    *value = f16::from_bits(line[lane]).to_f32();
                }
            }
            WeightKind::Bf16 => {
                let words = as_u16(panel);
                for (col, value) in out.iter_mut().enumerate() {
                    *value = bf16::from_bits(words[bf16_index(col, lane)]).to_f32();
                }
            }
            kind => {
                let format = quant::format_of(kind)?;
                quant::scalar::row(&format, panel, lane, out);
            }
        }
        Ok(())
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Bytes from one panel to the next.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// The bytes of panel `index`, in a matrix that is packed.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        debug_assert!(!self.is_shared());
        &self.view().bytes()[index * self.panel_bytes..][..self.panel_bytes]
    }

    /// The bytes of `count` panels from `first` on, in a matrix that is packed.
    pub(crate) fn panel_range(&self, first: usize, count: usize) -> &[u8] {
        debug_assert!(!self.is_shared());
        &self.view().bytes()[first * self.panel_bytes..][..count * self.panel_bytes]
    }
}

/// Bytes from one panel to the next.
fn panel_bytes_of(kind: WeightKind, cols: usize) -> Result<usize, KernelError> {
    let bytes = kind.panel_bytes(cols);
    bytes.ok_or(KernelError::Memory { bytes: usize::MAX })
}

/// Whether products on `set` read the rows of a `bf16` matrix: whole panels only, and on AVX-512 in whole registers.
fn reads_rows(set: InstructionSet, rows: usize, cols: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if set.rounds_to_bf16() {
        return crate::bf16::rows::reads(rows, cols);
    }
    let _ = set;
    rows.is_multiple_of(PANEL) && are_words(cols) && rows > 0
}

/// Whether a row of `bf16` of a file is words as panels have them, two columns each.
fn are_words(cols: usize) -> bool {
    cols > 0 && cols.is_multiple_of(2) && cfg!(target_endian = "little")
}

/// Place of a value among the 16-bit words of a `bf16` panel.
pub(crate) fn bf16_index(col: usize, lane: usize) -> usize {
    (col / 2) * 2 * PANEL + 2 * lane + col % 2
}

/// Spreads up to sixteen rows of `source` over `panel`; `place(col, lane)` says where a value goes.
fn interleave<S: Copy, T>(
    panel: &mut [T],
    source: &[S],
    cols: usize,
    place: impl Fn(usize, usize) -> usize,
    value_of: impl Fn(S) -> T,
) {
    // Column blocks keep the panel's lines in the first-level cache while the rows pass.
    const BLOCK: usize = 64;
    for start in (0..cols).step_by(BLOCK) {
        let end = cols.min(start + BLOCK);
        for (lane, row) in source.chunks_exact(cols).enumerate() {
            for (offset, &value) in row[start..end].iter().enumerate() {
                panel[place(start + offset, lane)] = value_of(value);
            }
        }
    }
}

fn bits_of_f16(data: &[f16]) -> &[u16] {
    // SAFETY: `f16` is a transparent wrapper of `u16`.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
}

fn bytes_of_bf16(data: &[bf16]) -> &[u8] {
    // SAFETY: `bf16` is a transparent wrapper of `u16`, of which every byte is initialised.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}
