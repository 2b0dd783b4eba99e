//! Fused f32 operations on the CPU, by our kernels.

use aha_kernels::Rows;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
};
use std::ops::Deref;

/// Whether the kernels of this module take the tensor.
pub(crate) fn is_f32_on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn contiguous_f32<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("the kernel needs contiguous f32 values"),
    }
}

/// Runs `work` on the values of a contiguous f32 tensor on the CPU.
///
/// # Errors
/// When the tensor is another one.
pub fn with_f32<R>(x: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    Ok(work(borrowed(x).contiguous_f32()?))
}

/// A tensor whose values are being read.
pub(crate) struct Borrowed<'a, S> {
    storage: S,
    layout: &'a Layout,
}

/// The tensor, to read its values.
pub(crate) fn borrowed(tensor: &Tensor) -> Borrowed<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Borrowed { storage, layout }
}

impl<S: Deref<Target = Storage>> Borrowed<'_, S> {
    fn storage(&self) -> Result<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => candle_core::bail!("the kernel needs values on the CPU"),
        }
    }

    /// The values of a contiguous f32 tensor on the CPU.
    pub(crate) fn contiguous_f32(&self) -> Result<&[f32]> {
        contiguous_f32(self.storage()?, self.layout)
    }

    /// The rows of an f32 tensor `[rows, …]` on the CPU, see [`rows_f32`].
    pub(crate) fn rows_f32(&self) -> Result<Rows<'_>> {
        rows_f32(self.storage()?, self.layout)
    }
}

/// The rows of an f32 tensor `[rows, …]` on the CPU, which may be parts of longer rows.
pub(crate) fn rows_f32<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Rows<'a>> {
    let CpuStorage::F32(values) = storage else {
        candle_core::bail!("the kernel needs f32 values");
    };
    let (dims, strides) = (layout.dims(), layout.stride());
    let width: usize = dims.iter().skip(1).product();
    // Inside a row everything must lie side by side.
    let mut step = 1;
    for (dim, stride) in dims.iter().zip(strides).skip(1).rev() {
        if *dim > 1 && *stride != step {
            candle_core::bail!("the kernel needs rows whose values lie side by side");
        }
        step *= dim;
    }
    Ok(Rows {
        values: values.get(layout.start_offset()..).unwrap_or_default(),
        stride: if dims.first().is_some_and(|rows| *rows > 1) {
            strides[0]
        } else {
            width
        },
    })
}

/// Root-mean-square norm of the last dimension; the second tensor is the weight.
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, x_layout)?;
        let mut out = vec![0f32; x.len()];
        aha_kernels::rms_norm(
            x,
            contiguous_f32(weight, weight_layout)?,
            self.eps,
            &mut out,
        )
        .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// Layer norm of the last dimension; the other tensors are weight and bias.
pub(crate) struct LayerNorm {
    pub(crate) eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, x_layout)?;
        let mut out = vec![0f32; x.len()];
        aha_kernels::layer_norm(
            x,
            contiguous_f32(weight, weight_layout)?,
            contiguous_f32(bias, bias_layout)?,
            self.eps,
            &mut out,
        )
        .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// An activation function.
pub(crate) struct Activate(pub(crate) aha_kernels::Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, layout)?;
        let mut out = vec![0f32; x.len()];
        self.0
            .apply(x, &mut out)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// The sum of two tensors.
pub(crate) struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = contiguous_f32(x, x_layout)?.to_vec();
        aha_kernels::add(&mut out, contiguous_f32(other, other_layout)?)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// `silu(gate) * up`.
pub(crate) struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu-mul"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let gate = contiguous_f32(gate, gate_layout)?;
        let mut out = vec![0f32; gate.len()];
        aha_kernels::silu_mul(gate, contiguous_f32(up, up_layout)?, &mut out)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlp::Activation;
    use candle_core::{Device, Module};

    fn close(a: &Tensor, b: &Tensor) {
        let worst = (a - b)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap();
        assert!(worst.to_scalar::<f32>().unwrap() < 1e-5, "{worst}");
    }

    #[test]
    fn fused_operations_equal_those_of_candle() {
        let random = |shape: &[usize]| Tensor::randn(0f32, 2.0, shape, &Device::Cpu).unwrap();
        let (x, up, weight) = (random(&[3, 5, 37]), random(&[3, 5, 37]), random(&[37]));
        let fused = x.apply_op2_no_bwd(&weight, &RmsNorm { eps: 1e-6 }).unwrap();
        close(
            &fused,
            &candle_nn::ops::rms_norm_slow(&x, &weight, 1e-6).unwrap(),
        );
        let fused = x.apply_op2_no_bwd(&up, &SiluMul).unwrap();
        close(&fused, &(x.silu().unwrap() * up).unwrap());
        let bias = random(&[37]);
        let fused = x
            .apply_op3_no_bwd(&weight, &bias, &LayerNorm { eps: 1e-6 })
            .unwrap();
        close(
            &fused,
            &candle_nn::ops::layer_norm_slow(&x, &weight, &bias, 1e-6).unwrap(),
        );
        for activation in [
            Activation::Gelu,
            Activation::GeluPytorchTanh,
            Activation::QuickGelu,
            Activation::Silu,
            Activation::Relu,
            Activation::Sigmoid,
        ] {
            let fused = activation.forward(&x).unwrap();
            close(&fused, &activation.forward_plain(&x).unwrap());
        }
    }
}
