//! One tensor of a file: borrowed, and as an owned handle.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use aha_kernels::SharedBytes;
use candle_core::{DType, Device, Tensor};

use super::catalog::tensor_bytes;
use super::convert;
use super::error::{Result, WeightsError};
use super::mapped::MappedFile;
use super::stored::StoredType;

/// One tensor's bytes as they lie in the file.
#[derive(Debug, Clone)]
pub struct StoredTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// The type of its values.
    pub stored: StoredType,
    /// Its dimensions, slowest first: `[out_features, in_features]` for a matrix.
    pub shape: Vec<usize>,
    /// Its values, little-endian, row by row.
    pub bytes: &'a [u8],
}

impl StoredTensor<'_> {
    /// All values as `f32`, dequantised where needed.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] for integers and booleans, or when `bytes` is not the size of `shape`.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        convert::to_f32(&self.name, self.stored, &self.shape, self.bytes)
    }

    /// The bytes with rows in the order of `source_rows`: new row `i` is old row `source_rows(i)`. Works on
    /// any type, since rows are whole blocks. A tensor of one dimension has rows of one value.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] when rows are not whole blocks or a source row is not in the tensor.
    pub fn with_rows(&self, source_rows: impl Fn(usize) -> usize) -> Result<Vec<u8>> {
        convert::gather_rows(
            &self.name,
            self.stored,
            &self.shape,
            self.bytes,
            source_rows,
        )
    }
}

/// A tensor of a mapped file that outlives the view it came from. Cloning copies no values.
#[derive(Debug, Clone)]
pub struct LoadedTensor {
    name: String,
    file: Arc<MappedFile>,
    stored: StoredType,
    shape: Vec<usize>,
    range: Range<usize>,
    /// Elements between neighbours by dimension; none where rows lie one after the other.
    strides: Option<Arc<[usize]>>,
    order: RowOrder,
}

/// How rows of a tensor differ from those of the file, `[heads, head_dim / 2, 2]` being the order of interleaved rotary
/// embeddings and `[heads, 2, head_dim / 2]` that of half-split ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowOrder {
    /// They do not.
    Stored,
    /// The file's are interleaved, the tensor's half-split.
    HalfSplit { heads: usize },
    /// The other way round.
    Interleaved { heads: usize },
}

impl LoadedTensor {
    pub(super) fn new(
        name: String,
        file: Arc<MappedFile>,
        stored: StoredType,
        shape: Vec<usize>,
        range: Range<usize>,
    ) -> Self {
        Self {
            name,
            file,
            stored,
            shape,
            range,
            strides: None,
            order: RowOrder::Stored,
        }
    }

    /// Declares that the range is a view of other layout than row by row.
    pub(super) fn with_strides(mut self, strides: Option<Arc<[usize]>>) -> Self {
        self.strides = strides;
        self
    }

    /// Declares that rows lie in the order of interleaved rotary embeddings, `[heads, head_dim / 2, 2]`,
    /// and are wanted in half-split order, `[heads, 2, head_dim / 2]`.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] when the rows do not divide into `heads` heads of even size.
    pub(super) fn with_interleaved_heads(mut self, heads: usize) -> Result<Self> {
        self.check_heads(heads)?;
        self.order = RowOrder::HalfSplit { heads };
        Ok(self)
    }

    /// The same tensor with its rows, which lie in half-split order, interleaved: what some GGUF files hold.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] when the rows do not divide into `heads` heads of even size.
    pub fn with_heads_interleaved(mut self, heads: usize) -> Result<Self> {
        self.check_heads(heads)?;
        self.order = RowOrder::Interleaved { heads };
        Ok(self)
    }

    fn check_heads(&self, heads: usize) -> Result<()> {
        let rows = self.rows();
        if heads == 0 || !rows.is_multiple_of(heads) || !(rows / heads).is_multiple_of(2) {
            return Err(self.unusable(format!(
                "its {rows} rows do not divide into {heads} attention heads of even size; the metadata \
                 belongs to another model"
            )));
        }
        Ok(())
    }

    /// The same values under a shape of the same size and rows.
    #[must_use]
    pub fn with_shape(mut self, shape: &[usize]) -> Self {
        self.shape = shape.to_vec();
        self
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its values.
    pub fn stored(&self) -> StoredType {
        self.stored
    }

    /// Its dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The file that holds it.
    pub fn file(&self) -> &MappedFile {
        &self.file
    }

    /// Size of its values in bytes.
    pub fn byte_len(&self) -> usize {
        tensor_bytes(self.stored, &self.shape).unwrap_or_default()
    }

    /// Size of the first dimension (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Whether [`LoadedTensor::bytes`] differs from the order in the file.
    pub fn rows_permuted(&self) -> bool {
        self.order != RowOrder::Stored || self.strides.is_some()
    }

    /// The values in row order: borrowed from the mapping, or copied when the file has them in another order.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] when rows of a permuted tensor are not whole blocks.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>> {
        let mut bytes = Cow::Borrowed(self.mapped_bytes()?);
        if let Some(strides) = &self.strides {
            let (name, shape) = (&self.name, &self.shape);
            bytes = convert::gather_strided(name, self.stored, shape, strides, &bytes)?.into();
        }
        if self.order != RowOrder::Stored {
            let source = |row| self.source_row(row);
            bytes =
                convert::gather_rows(&self.name, self.stored, &self.shape, &bytes, source)?.into();
        }
        Ok(bytes)
    }

    /// The values in row order, for whoever reads them from the mapping for longer; none when the file has them in
    /// another order.
    pub(crate) fn shared_bytes(&self) -> Option<SharedBytes> {
        if self.rows_permuted() || self.mapped_bytes().is_err() {
            return None;
        }
        self.file.will_need(self.range.clone());
        Some(Arc::new(FileRange {
            file: self.file.clone(),
            range: self.range.clone(),
        }))
    }

    /// Lets the system take back the pages of the file that hold the tensor, once its values were copied.
    pub fn release(&self) {
        self.release_part(0..self.range.len());
    }

    /// The same for some of its bytes, in the order of the file.
    pub(crate) fn release_part(&self, part: Range<usize>) {
        let start = self.range.start;
        self.file.release(start + part.start..start + part.end);
    }

    /// All values as `f32` in row order, dequantised where needed.
    ///
    /// # Errors
    /// As [`StoredTensor::to_f32`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        convert::to_f32(&self.name, self.stored, &self.shape, &self.bytes()?)
    }

    /// All values in row order as blocks of the quantised type `to`.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] where the tensor holds no numbers that blocks can hold, or its rows are no whole
    /// blocks.
    pub fn to_blocks(&self, to: StoredType) -> Result<Vec<u8>> {
        convert::to_blocks(&self.name, self.stored, &self.shape, &self.bytes()?, to)
    }

    /// The values as a tensor of `dtype` on `device`. Floating-point and quantised types convert to any
    /// floating-point type; integers only keep their own.
    ///
    /// # Errors
    /// [`WeightsError::Unconvertible`] where there is no such conversion; errors of the device.
    pub fn to_tensor(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        if self.stored.dtype() == Some(dtype) {
            let bytes = self.bytes()?;
            return Ok(Tensor::from_raw_buffer(&bytes, dtype, &self.shape, device)?);
        }
        if !dtype.is_float() {
            return Err(self.unusable(format!("cannot become {}", dtype.as_str())));
        }
        let values = Tensor::from_vec(self.to_f32()?, self.shape.as_slice(), &Device::Cpu)?;
        // Converted before the copy, so that an accelerator never holds the wider type.
        Ok(values.to_dtype(dtype)?.to_device(device)?)
    }

    /// The row of the file that is row `row` of this tensor.
    fn source_row(&self, row: usize) -> usize {
        match self.order {
            RowOrder::Stored => row,
            RowOrder::HalfSplit { heads } => {
                let head_dim = self.rows() / heads;
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + pair * 2 + half
            }
            RowOrder::Interleaved { heads } => {
                let head_dim = self.rows() / heads;
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
        }
    }

    fn mapped_bytes(&self) -> Result<&[u8]> {
        self.file
            .bytes()
            .get(self.range.clone())
            .ok_or_else(|| self.unusable("lies outside its file".to_owned()))
    }

    fn unusable(&self, reason: String) -> WeightsError {
        WeightsError::Unconvertible {
            tensor: self.name.clone(),
            stored: self.stored.name(),
            reason,
        }
    }
}

/// A part of a mapped file.
struct FileRange {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl AsRef<[u8]> for FileRange {
    fn as_ref(&self) -> &[u8] {
        self.file
            .bytes()
            .get(self.range.clone())
            .unwrap_or_default()
    }
}
