//! Rotary positions put to use: the rotation of a batch's heads.

use crate::cpu::{borrowed, is_f32_on_cpu, rows_f32, with_f32};
use crate::norm::RmsNorm;
use crate::rope::RopePairing;
use aha_kernels::{HeadNorm, HeadRotation};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Module, Result, Shape, Tensor};

/// Cosines and sines of a batch's positions.
#[derive(Debug, Clone, Default)]
pub struct Rotation {
    pub(crate) table: Table,
    pub(crate) form: RotationForm,
}

/// Where cosines and sines `[tokens, width]` lie.
#[derive(Debug, Clone)]
pub(crate) enum Table {
    /// In f32, for the CPU's kernels.
    Host {
        cos: Vec<f32>,
        sin: Vec<f32>,
        width: usize,
    },
    /// In the activations' type.
    Tensors { cos: Tensor, sin: Tensor },
}

impl Default for Table {
    fn default() -> Self {
        Self::Host {
            cos: Vec::new(),
            sin: Vec::new(),
            width: 0,
        }
    }
}

impl Table {
    /// Brings values to where activations of this type are on this device.
    pub(crate) fn new(
        cos: Vec<f32>,
        sin: Vec<f32>,
        width: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let host = Self::Host { cos, sin, width };
        if device.is_cpu() && dtype == DType::F32 {
            return Ok(host);
        }
        let (cos, sin) = host.tensors()?;
        let moved = |values: Tensor| values.to_device(device)?.to_dtype(dtype);
        Ok(Self::Tensors {
            cos: moved(cos)?,
            sin: moved(sin)?,
        })
    }

    /// Both as tensors.
    fn tensors(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Host { cos, sin, width } => {
                let shape = (cos.len() / (*width).max(1), *width);
                let tensor = |values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu);
                Ok((tensor(cos)?, tensor(sin)?))
            }
            Self::Tensors { cos, sin } => Ok((cos.clone(), sin.clone())),
        }
    }
}

/// How a rotation's numbers belong to the values of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RotationForm {
    /// `[tokens, rotary_dim / 2]`: one angle for both values of a pair.
    Pairs(RopePairing),
    /// `[tokens, rotary_dim]`: an angle for each value; pairs are split in halves.
    Values,
}

impl Default for RotationForm {
    fn default() -> Self {
        Self::Pairs(RopePairing::default())
    }
}

impl Rotation {
    /// Rotation by given angles `[tokens, half]`, of heads whose first `2 * half` values are rotated.
    pub fn from_angles(angles: &[f32], half: usize, dtype: DType, device: &Device) -> Result<Self> {
        let values =
            |function: fn(f32) -> f32| angles.iter().map(|angle| function(*angle)).collect();
        Ok(Self {
            table: Table::new(values(f32::cos), values(f32::sin), half, dtype, device)?,
            form: RotationForm::Pairs(RopePairing::HalfSplit),
        })
    }

    /// Rotates `x` `[tokens, heads, head_dim]`; values of a head beyond `rotary_dim` pass unchanged.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.apply_normed(x, None, false)
    }

    /// The same with a norm of each head, before the rotation or after it.
    pub fn apply_normed(
        &self,
        x: &Tensor,
        norm: Option<&RmsNorm>,
        norm_after: bool,
    ) -> Result<Tensor> {
        let (_, num_heads, head_dim) = x.dims3()?;
        if is_f32_on_cpu(x)
            && x.elem_count() > 0
            && let Some(rotation) = self.kernel(num_heads, head_dim)
        {
            let fused = Fused {
                norm,
                norm_after,
                rotation,
            };
            // Parts of a fused projection are taken as they lie.
            let whole_heads = x.stride()[1..] == [head_dim, 1];
            let x = if whole_heads { x } else { &x.contiguous()? };
            return x.apply_op1_no_bwd(&fused);
        }
        if norm_after {
            norm.forward(&self.apply_plain(x)?)
        } else {
            self.apply_plain(&norm.forward(x)?)
        }
    }

    /// The kernel's form of this rotation, without a norm; `None` where the kernel lacks the form.
    fn kernel(&self, num_heads: usize, head_dim: usize) -> Option<HeadRotation<'_>> {
        match (&self.table, self.form) {
            (Table::Host { cos, sin, width }, RotationForm::Pairs(pairing)) => Some(HeadRotation {
                num_heads,
                head_dim,
                half: *width,
                cos,
                sin,
                interleaved: pairing == RopePairing::Interleaved,
                norm: None,
            }),
            _ => None,
        }
    }

    /// Whether the kernels know the form.
    pub(crate) fn has_kernel(&self) -> bool {
        self.kernel(1, 1).is_some()
    }

    /// Calls `work` with the kernel's form of this rotation for queries and keys, each with the number of its heads and
    /// with its norm.
    ///
    /// # Errors
    /// Those of `work`, and where the kernel lacks the form.
    pub(crate) fn with_kernels<R>(
        &self,
        heads: [(usize, Option<&RmsNorm>); 2],
        head_dim: usize,
        norm_after: bool,
        work: impl FnOnce([HeadRotation<'_>; 2]) -> Result<R>,
    ) -> Result<R> {
        let [Some(queries), Some(keys)] = heads.map(|(count, _)| self.kernel(count, head_dim))
        else {
            candle_core::bail!("the kernel does not know this form of rotation");
        };
        let weights = heads.map(|(_, norm)| norm.map(|norm| borrowed(norm.weight())));
        let normed = |rotation, index: usize| -> Result<HeadRotation<'_>> {
            let (_, norm) = heads[index];
            let norm = match (norm, &weights[index]) {
                (Some(norm), Some(weight)) => Some(HeadNorm {
                    weight: weight.contiguous_f32()?,
                    epsilon: norm.eps(),
                    after_rotation: norm_after,
                }),
                _ => None,
            };
            Ok(HeadRotation { norm, ..rotation })
        };
        work([normed(queries, 0)?, normed(keys, 1)?])
    }

    /// The rotation by Candle's own operations.
    fn apply_plain(&self, x: &Tensor) -> Result<Tensor> {
        let head_dim = x.dim(2)?;
        let table = self.table.tensors()?;
        let rotary_dim = match self.form {
            RotationForm::Pairs(_) => 2 * table.0.dim(1)?,
            RotationForm::Values => table.0.dim(1)?,
        };
        if rotary_dim == head_dim {
            return self.rotate(x, table);
        }
        let rotated = self.rotate(&x.narrow(2, 0, rotary_dim)?, table)?;
        Tensor::cat(
            &[rotated, x.narrow(2, rotary_dim, head_dim - rotary_dim)?],
            2,
        )
    }

    /// The same for `x` of which every value is rotated.
    fn rotate(&self, x: &Tensor, (cos, sin): (Tensor, Tensor)) -> Result<Tensor> {
        let (tokens, heads, dim) = x.dims3()?;
        let x = x.contiguous()?;
        // One batch entry a token lets Candle's kernels take an angle for each.
        let by_token = |table: &Tensor| table.reshape((tokens, 1, table.dim(1)?));
        let (cos, sin) = (by_token(&cos)?, by_token(&sin)?);
        let rotated = match self.form {
            RotationForm::Pairs(RopePairing::HalfSplit) => {
                candle_nn::rotary_emb::rope_thd(&x.reshape((tokens, 1, heads, dim))?, &cos, &sin)?
            }
            RotationForm::Pairs(RopePairing::Interleaved) => {
                candle_nn::rotary_emb::rope_i(&x.reshape((tokens, heads, 1, dim))?, &cos, &sin)?
            }
            RotationForm::Values => {
                let (first, second) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
                let turned = Tensor::cat(&[second.neg()?, first], 2)?;
                (x.broadcast_mul(&cos)? + turned.broadcast_mul(&sin)?)?
            }
        };
        rotated.reshape((tokens, heads, dim))
    }
}

/// Norm and rotation in one pass.
struct Fused<'a> {
    norm: Option<&'a RmsNorm>,
    norm_after: bool,
    rotation: HeadRotation<'a>,
}

impl CustomOp1 for Fused<'_> {
    fn name(&self) -> &'static str {
        "norm-rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = rows_f32(x, x_layout)?;
        let mut out = vec![0f32; x_layout.shape().elem_count()];
        match self.norm {
            None => self.rotation.forward(x, &mut out),
            Some(norm) => with_f32(norm.weight(), |weight| {
                HeadRotation {
                    norm: Some(HeadNorm {
                        weight,
                        epsilon: norm.eps(),
                        after_rotation: self.norm_after,
                    }),
                    ..self.rotation
                }
                .forward(x, &mut out)
            })?,
        }
        .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn the_fused_rotation_is_that_of_candle() {
        let device = Device::Cpu;
        let (tokens, heads, head_dim) = (5, 3, 12);
        let x = random(&[tokens, heads, head_dim]);
        let norm = RmsNorm::from_tensor(random(&[head_dim]), 1e-6);
        let angles: Vec<f32> = (0..tokens * 4).map(|index| index as f32 * 0.7).collect();
        for pairing in [RopePairing::HalfSplit, RopePairing::Interleaved] {
            // Eight of twelve values turn.
            let mut rotation = Rotation::from_angles(&angles, 4, DType::F32, &device).unwrap();
            rotation.form = RotationForm::Pairs(pairing);
            for norm in [None, Some(&norm)] {
                for norm_after in [false, true] {
                    let fused = rotation.apply_normed(&x, norm, norm_after).unwrap();
                    let plain = if norm_after {
                        norm.forward(&rotation.apply_plain(&x).unwrap()).unwrap()
                    } else {
                        rotation.apply_plain(&norm.forward(&x).unwrap()).unwrap()
                    };
                    close(&fused, &plain, 2e-6);
                }
            }
        }
    }
}
