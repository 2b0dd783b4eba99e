//! Products with weight matrices: the one place that knows how they are stored.

use crate::cpu::{contiguous_f32, is_f32_on_cpu, with_f32};
use crate::mlp::Activation;
use crate::weights::{LoadedTensor, Precision, Result, StoredType, Weights, WeightsError};
use aha_kernels::{PackedMatrix, WeightKind};
use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Module, Shape, Tensor,
};
use half::{bf16, f16};
use std::borrow::Cow;
use std::sync::Arc;

/// A weight matrix `[out_features, in_features]` on its device.
#[derive(Debug, Clone)]
enum Matrix {
    /// On the CPU: panels of our own kernels in the stored type, products in f32.
    Packed(Arc<PackedMatrix>),
    /// On an accelerator: a dense tensor in the activation type.
    Dense(Tensor),
    /// On an accelerator: block-quantised as in the file.
    Quantized(Arc<QMatMul>),
    /// The checkpoint lacked it; `Weights::finish` reports that before anything runs.
    Absent,
}

impl Matrix {
    fn load(weights: &Weights, out_features: usize, in_features: usize) -> Result<Self> {
        Self::load_shaped(weights, &[out_features, in_features])
    }

    /// A matrix that is stored with more dimensions: the first are the rows, the others make up the columns.
    fn load_shaped(weights: &Weights, shape: &[usize]) -> Result<Self> {
        let Some(stored) = weights.stored("weight", shape)? else {
            return Ok(Self::Absent);
        };
        let (out_features, in_features) = match shape {
            [rows, columns @ ..] => (*rows, columns.iter().product()),
            [] => (1, 1),
        };
        let precision = weights.placement().weights;
        if weights.device().is_cpu() {
            let block_type = match shape {
                [_, _] => weights.block_type("weight", stored.stored(), in_features),
                _ => None,
            };
            let packed = match block_type {
                Some(to) => quantize(&stored, to, out_features, in_features)?,
                None => {
                    let shared = weights.unpacked().is_some();
                    pack(&stored, precision, shared, out_features, in_features)?
                }
            };
            let packed = Arc::new(packed);
            match weights.unpacked() {
                Some(unpacked) if packed.is_shared() => unpacked.push(packed.clone(), stored),
                // The packed copy is all that is read from here on: two copies need not be resident.
                _ => stored.release(),
            }
            return Ok(Self::Packed(packed));
        }
        match (precision, stored.stored().ggml_dtype()) {
            (Precision::Stored, Some(dtype)) if stored.stored().is_quantized() => {
                let storage = QStorage::from_data(stored.bytes()?, weights.device(), dtype)?;
                let tensor = QTensor::new(storage, (out_features, in_features))?;
                Ok(Self::Quantized(Arc::new(QMatMul::from_arc(Arc::new(
                    tensor,
                ))?)))
            }
            _ => Ok(Self::Dense(
                stored
                    .to_tensor(weights.dtype(), weights.device())?
                    .reshape((out_features, in_features))?,
            )),
        }
    }

    /// A matrix that single rows are taken from. Accelerators have no lookup in quantised rows: there it is dense.
    fn load_table(weights: &Weights, rows: usize, cols: usize) -> Result<Self> {
        if weights.device().is_cpu() {
            return Self::load(weights, rows, cols);
        }
        match weights.stored("weight", &[rows, cols])? {
            Some(stored) => Ok(Self::Dense(
                stored.to_tensor(weights.dtype(), weights.device())?,
            )),
            None => Ok(Self::Absent),
        }
    }

    /// The matrix of the CPU's kernels, where it is one.
    fn packed(&self) -> candle_core::Result<&PackedMatrix> {
        match self {
            Self::Packed(packed) => Ok(packed),
            _ => candle_core::bail!("a weight matrix is missing or not on the CPU"),
        }
    }

    /// `x · Wᵀ` for `x` of `[tokens, in_features]`.
    fn matmul(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Packed(packed) => x.contiguous()?.apply_op1_no_bwd(&PackedMatmul(packed)),
            Self::Dense(weight) => x.matmul(&weight.t()?),
            // Candle's quantised kernels take and give f32.
            Self::Quantized(weight) => weight
                .forward(&x.to_dtype(DType::F32)?)?
                .to_dtype(x.dtype()),
            Self::Absent => candle_core::bail!("a weight matrix is missing"),
        }
    }
}

/// Packs a stored matrix for the CPU kernels, in its own type or the one that was asked for; where it may be `shared`
/// with the file, only if the kernels do not read it there.
fn pack(
    stored: &LoadedTensor,
    precision: Precision,
    shared: bool,
    rows: usize,
    cols: usize,
) -> Result<PackedMatrix> {
    let kind = kind_for(stored.stored(), precision);
    if kind != stored.stored() {
        return pack_values(kind, rows, cols, &stored.to_f32()?);
    }
    if shared
        && kind == StoredType::Bf16
        && let Some(bytes) = stored.shared_bytes()
    {
        let packed = PackedMatrix::from_shared_bf16(rows, cols, bytes);
        return packed.map_err(|error| WeightsError::from(candle_core::Error::wrap(error)));
    }
    let bytes = stored.bytes()?;
    let packed = match kind {
        StoredType::F32 => PackedMatrix::from_f32(rows, cols, &typed::<f32>(&bytes)),
        StoredType::F16 => PackedMatrix::from_f16(rows, cols, &typed::<f16>(&bytes)),
        StoredType::Bf16 => PackedMatrix::from_bf16(rows, cols, &typed::<bf16>(&bytes)),
        quantized => match gguf_kind(quantized) {
            Some(kind) => PackedMatrix::from_gguf_blocks(kind, rows, cols, &bytes),
            // A rare type without a kernel (f64, f8): exact in f32.
            None => PackedMatrix::from_f32(rows, cols, &stored.to_f32()?),
        },
    };
    packed.map_err(|error| WeightsError::from(candle_core::Error::wrap(error)))
}

/// Packs a stored matrix as blocks of the quantised type `to`.
fn quantize(
    stored: &LoadedTensor,
    to: StoredType,
    rows: usize,
    cols: usize,
) -> Result<PackedMatrix> {
    let packed = match gguf_kind(to) {
        Some(kind) => PackedMatrix::from_gguf_blocks(kind, rows, cols, &stored.to_blocks(to)?),
        None => PackedMatrix::from_f32(rows, cols, &stored.to_f32()?),
    };
    packed.map_err(|error| WeightsError::from(candle_core::Error::wrap(error)))
}

/// The type in which the CPU keeps values that a file stores as `stored`.
pub(crate) fn kind_for(stored: StoredType, precision: Precision) -> StoredType {
    match precision {
        Precision::F32 => StoredType::F32,
        Precision::F16 => StoredType::F16,
        Precision::Bf16 => StoredType::Bf16,
        Precision::Stored => stored,
    }
}

/// Packs values as `kind` where that is a 16-bit type, else as f32.
pub(crate) fn pack_values(
    kind: StoredType,
    rows: usize,
    cols: usize,
    values: &[f32],
) -> Result<PackedMatrix> {
    let packed = match kind {
        StoredType::F16 => {
            let values: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
            PackedMatrix::from_f16(rows, cols, &values)
        }
        StoredType::Bf16 => {
            let values: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
            PackedMatrix::from_bf16(rows, cols, &values)
        }
        _ => PackedMatrix::from_f32(rows, cols, values),
    };
    packed.map_err(|error| WeightsError::from(candle_core::Error::wrap(error)))
}

/// The kernels' name of a block-quantised type.
pub(crate) fn gguf_kind(stored: StoredType) -> Option<WeightKind> {
    Some(match stored {
        StoredType::Q4_0 => WeightKind::Q4_0,
        StoredType::Q4_1 => WeightKind::Q4_1,
        StoredType::Q5_0 => WeightKind::Q5_0,
        StoredType::Q5_1 => WeightKind::Q5_1,
        StoredType::Q8_0 => WeightKind::Q8_0,
        StoredType::Q2K => WeightKind::Q2K,
        StoredType::Q3K => WeightKind::Q3K,
        StoredType::Q4K => WeightKind::Q4K,
        StoredType::Q5K => WeightKind::Q5K,
        StoredType::Q6K => WeightKind::Q6K,
        _ => return None,
    })
}

/// Little-endian bytes as values; copied only where the file does not align them.
fn typed<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(
            bytes
                .chunks_exact(size_of::<T>())
                .map(bytemuck::pod_read_unaligned)
                .collect(),
        ),
    }
}

/// An affine map `x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Whether the weights are kept in single precision.
    pub(crate) fn is_single(&self) -> bool {
        match &self.weight {
            Matrix::Packed(packed) => packed.kind() == WeightKind::F32,
            Matrix::Dense(weight) => weight.dtype() == DType::F32,
            Matrix::Quantized(_) | Matrix::Absent => false,
        }
    }

    /// Loads `weight` `[out_features, in_features]` and, when asked for, `bias` `[out_features]`.
    pub fn load(
        weights: &Weights,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Self> {
        Ok(Self {
            weight: Matrix::load(weights, out_features, in_features)?,
            bias: bias
                .then(|| weights.tensor("bias", &[out_features]))
                .transpose()?,
        })
    }
}

impl Linear {
    /// A map without bias by a matrix `[out_features, in_features]` that was computed, not loaded.
    pub fn from_tensor(weight: &Tensor) -> candle_core::Result<Self> {
        let (rows, columns) = weight.dims2()?;
        let weight = if weight.device().is_cpu() {
            let values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            let packed = PackedMatrix::from_f32(rows, columns, &values);
            Matrix::Packed(Arc::new(packed.map_err(candle_core::Error::wrap)?))
        } else {
            Matrix::Dense(weight.clone())
        };
        Ok(Self { weight, bias: None })
    }

    /// Loads a convolution that meets every input value once (its stride is its size) as the product that it is:
    /// `weight` is `[out_features, kernel...]`, rows of `x` are flattened pieces of the input.
    pub fn load_kernel(
        weights: &Weights,
        kernel: &[usize],
        out_features: usize,
        bias: bool,
    ) -> Result<Self> {
        let mut shape = vec![out_features];
        shape.extend(kernel);
        Ok(Self {
            weight: Matrix::load_shaped(weights, &shape)?,
            bias: bias
                .then(|| weights.tensor("bias", &[out_features]))
                .transpose()?,
        })
    }
}

impl Linear {
    /// What each of the maps makes of `x` `[tokens, in_features]`, computed in one round where that is
    /// possible.
    pub fn forward_together<const N: usize>(
        maps: [&Self; N],
        x: &Tensor,
    ) -> candle_core::Result<[Tensor; N]> {
        let mut packed = Vec::with_capacity(N);
        for map in maps {
            if let Matrix::Packed(matrix) = &map.weight {
                packed.push((matrix.as_ref(), map.bias.as_ref()));
            }
        }
        let outputs = if packed.len() == N {
            let tokens = x.dim(0)?;
            let all = x.contiguous()?.apply_op1_no_bwd(&PackedMatmuls(&packed))?;
            let mut start = 0;
            let mut outputs = Vec::with_capacity(N);
            for (matrix, _) in packed {
                let len = tokens * matrix.rows();
                outputs.push(
                    all.narrow(0, start, len)?
                        .reshape((tokens, matrix.rows()))?,
                );
                start += len;
            }
            outputs
        } else {
            maps.into_iter()
                .map(|map| map.forward(x))
                .collect::<candle_core::Result<_>>()?
        };
        outputs
            .try_into()
            .map_err(|_| candle_core::Error::msg("as many results as maps").bt())
    }

    /// What each of the maps makes of the rows `x` on the CPU, `outs[index]` being `[tokens, out_features]` of its map.
    ///
    /// # Errors
    /// When a map is on another device, or a slice does not fit.
    pub fn forward_rows<const N: usize>(
        maps: [&Self; N],
        x: &[f32],
        tokens: usize,
        mut outs: [&mut [f32]; N],
    ) -> candle_core::Result<()> {
        let Some(first) = maps.first() else {
            return Ok(());
        };
        let mut matrices = [first.weight.packed()?; N];
        for (map, matrix) in maps.iter().zip(&mut matrices) {
            *matrix = map.weight.packed()?;
        }
        PackedMatrix::matmul_into(matrices, x, tokens, outs.each_mut().map(|out| &mut **out))
            .map_err(candle_core::Error::wrap)?;
        for (map, out) in maps.iter().zip(outs) {
            if let Some(bias) = &map.bias {
                with_f32(bias, |bias| aha_kernels::add_bias(out, bias))?
                    .map_err(candle_core::Error::wrap)?;
            }
        }
        Ok(())
    }

    /// `activation` of the map of `x`. On the CPU the values stay where the product left them.
    pub fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
    ) -> candle_core::Result<Tensor> {
        match (&self.weight, &self.bias) {
            (Matrix::Packed(packed), Some(bias)) => {
                let op = BiasedMatmul {
                    matrix: packed,
                    activation: Some(activation),
                };
                x.contiguous()?.apply_op2_no_bwd(bias, &op)
            }
            _ => activation.forward(&self.forward(x)?),
        }
    }

    /// `residual` plus the map of `x`. On the CPU the sum is taken where the product left its values.
    pub fn forward_added(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        match (&self.weight, &self.bias) {
            (Matrix::Packed(packed), Some(bias)) if is_f32_on_cpu(residual) => {
                let op = BiasedMatmul {
                    matrix: packed,
                    activation: None,
                };
                x.contiguous()?
                    .apply_op3_no_bwd(bias, &residual.contiguous()?, &op)
            }
            (Matrix::Packed(packed), None) if is_f32_on_cpu(residual) => x
                .contiguous()?
                .apply_op2_no_bwd(&residual.contiguous()?, &AddedMatmul(packed)),
            _ => residual + self.forward(x)?,
        }
    }
}

impl Module for Linear {
    /// Maps the last dimension of `x`, which has two dimensions.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match (&self.weight, &self.bias) {
            (Matrix::Packed(packed), Some(bias)) => {
                let op = BiasedMatmul {
                    matrix: packed,
                    activation: None,
                };
                x.contiguous()?.apply_op2_no_bwd(bias, &op)
            }
            (weight, Some(bias)) => weight.matmul(x)?.broadcast_add(bias),
            (weight, None) => weight.matmul(x),
        }
    }
}

/// Token embeddings, whose matrix may double as the output head.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Matrix,
}

impl Embedding {
    /// Loads `weight` `[vocab_size, hidden_size]`.
    pub fn load(weights: &Weights, vocab_size: usize, hidden_size: usize) -> Result<Self> {
        Ok(Self {
            weight: Matrix::load_table(weights, vocab_size, hidden_size)?,
        })
    }

    /// Rows of the matrix for `token_ids` on the CPU, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// When the matrix is on another device, or has no such row.
    pub fn forward_rows(&self, token_ids: &[u32], out: &mut [f32]) -> candle_core::Result<()> {
        look_up(self.weight.packed()?, token_ids, out)
    }

    /// The output head of a checkpoint with `tie_word_embeddings`: the same matrix, not a copy.
    pub fn tied_head(&self) -> Linear {
        Linear {
            weight: self.weight.clone(),
            bias: None,
        }
    }
}

impl Module for Embedding {
    /// Rows of the matrix for `token_ids` `[tokens]` (u32).
    fn forward(&self, token_ids: &Tensor) -> candle_core::Result<Tensor> {
        match &self.weight {
            Matrix::Packed(packed) => token_ids.apply_op1_no_bwd(&PackedLookup(packed)),
            Matrix::Dense(weight) => weight.index_select(token_ids, 0),
            Matrix::Quantized(_) | Matrix::Absent => {
                candle_core::bail!("the embedding matrix is missing")
            }
        }
    }
}

/// `x · Wᵀ` on the CPU.
struct PackedMatmul<'a>(&'a PackedMatrix);

impl CustomOp1 for PackedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-matmul"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (y, shape) = product(self.0, storage, layout)?;
        Ok((CpuStorage::F32(y), shape))
    }
}

/// The same for some matrices, each with its bias: `[tokens, rows]` after `[tokens, rows]`.
struct PackedMatmuls<'a>(&'a [(&'a PackedMatrix, Option<&'a Tensor>)]);

impl CustomOp1 for PackedMatmuls<'_> {
    fn name(&self) -> &'static str {
        "packed-matmuls"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let matrices: Vec<_> = self.0.iter().map(|(matrix, _)| *matrix).collect();
        let (mut y, tokens) = products(&matrices, storage, layout)?;
        let mut rest = y.as_mut_slice();
        for (matrix, bias) in self.0 {
            let (own, others) = rest.split_at_mut(tokens * matrix.rows());
            if let Some(bias) = bias {
                with_f32(bias, |bias| aha_kernels::add_bias(own, bias))?
                    .map_err(candle_core::Error::wrap)?;
            }
            rest = others;
        }
        let shape = Shape::from(y.len());
        Ok((CpuStorage::F32(y), shape))
    }
}

/// The same plus the second tensor, which is as large as the result.
struct AddedMatmul<'a>(&'a PackedMatrix);

impl CustomOp2 for AddedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-matmul-add"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (mut y, shape) = product(self.0, storage, layout)?;
        aha_kernels::add(&mut y, contiguous_f32(residual, residual_layout)?)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(y), shape))
    }
}

/// `x · Wᵀ` plus a bias, which is the second tensor, and what comes behind it while the values are at hand.
struct BiasedMatmul<'a> {
    matrix: &'a PackedMatrix,
    activation: Option<Activation>,
}

impl CustomOp2 for BiasedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-matmul-bias"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (mut y, shape) = product(self.matrix, storage, layout)?;
        let bias = contiguous_f32(bias, bias_layout)?;
        match self.activation {
            Some(activation) => activation.kernel().apply_to_biased(&mut y, bias),
            None => aha_kernels::add_bias(&mut y, bias),
        }
        .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(y), shape))
    }
}

impl CustomOp3 for BiasedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-matmul-bias-add"
    }

    /// The third tensor is added to the result, as large as which it is.
    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (mut y, shape) = product(self.matrix, storage, layout)?;
        let bias = contiguous_f32(bias, bias_layout)?;
        aha_kernels::add_bias_and(&mut y, bias, contiguous_f32(residual, residual_layout)?)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(y), shape))
    }
}

fn product(
    matrix: &PackedMatrix,
    storage: &CpuStorage,
    layout: &Layout,
) -> candle_core::Result<(Vec<f32>, Shape)> {
    let (y, tokens) = products(&[matrix], storage, layout)?;
    Ok((y, Shape::from((tokens, matrix.rows()))))
}

/// The results of all matrices, one after another, and the number of tokens.
fn products(
    matrices: &[&PackedMatrix],
    storage: &CpuStorage,
    layout: &Layout,
) -> candle_core::Result<(Vec<f32>, usize)> {
    let (tokens, _) = layout.shape().dims2()?;
    let x = contiguous_f32(storage, layout)?;
    let y = PackedMatrix::matmul_together(matrices, x, tokens);
    Ok((y.map_err(candle_core::Error::wrap)?, tokens))
}

/// Rows of a packed matrix by token id.
struct PackedLookup<'a>(&'a PackedMatrix);

impl CustomOp1 for PackedLookup<'_> {
    fn name(&self) -> &'static str {
        "packed-lookup"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (CpuStorage::U32(ids), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("token ids must be contiguous u32 values");
        };
        let hidden_size = self.0.cols();
        let mut rows = vec![0f32; (end - start) * hidden_size];
        look_up(self.0, &ids[start..end], &mut rows)?;
        Ok((
            CpuStorage::F32(rows),
            Shape::from((end - start, hidden_size)),
        ))
    }
}

/// Writes the rows of `ids` one after another.
fn look_up(table: &PackedMatrix, ids: &[u32], rows: &mut [f32]) -> candle_core::Result<()> {
    for (id, row) in ids.iter().zip(rows.chunks_exact_mut(table.cols().max(1))) {
        table
            .row(*id as usize, row)
            .map_err(candle_core::Error::wrap)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn maps_together_give_what_each_gives_alone() {
        let mut maps = [7, 32, 1].map(|rows| Linear::from_tensor(&random(&[rows, 24])).unwrap());
        maps[1].bias = Some(random(&[32]));
        for tokens in [1, 9] {
            let x = random(&[tokens, 24]);
            let together = Linear::forward_together(maps.each_ref(), &x).unwrap();
            for (map, together) in maps.iter().zip(&together) {
                close(together, &map.forward(&x).unwrap(), 0.0);
            }
        }
    }

    #[test]
    fn what_comes_behind_a_product_is_the_same_in_one_step() {
        let packed = |rows: usize, columns: usize| {
            Linear::from_tensor(&random(&[rows, columns]))
                .unwrap()
                .weight
        };
        for (tokens, bias) in [(1, true), (70, true), (70, false)] {
            let linear = Linear {
                weight: packed(33, 17),
                bias: bias.then(|| random(&[33])),
            };
            let (x, residual) = (random(&[tokens, 17]), random(&[tokens, 33]));
            let plain = linear.forward(&x).unwrap();
            for activation in [Activation::Gelu, Activation::Silu, Activation::Relu] {
                let fused = linear.forward_activated(&x, activation).unwrap();
                close(&fused, &activation.forward(&plain).unwrap(), 0.0);
            }
            let added = linear.forward_added(&x, &residual).unwrap();
            close(&added, &(&residual + &plain).unwrap(), 0.0);
        }
    }
}
