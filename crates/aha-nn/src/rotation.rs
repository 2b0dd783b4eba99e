//! Rotary positions put to use: the rotation of a batch's heads.

use crate::cpu::{borrowed, contiguous_f32, is_f32_on_cpu, rows_f32, with_f32};
use crate::norm::RmsNorm;
use crate::rope::RopePairing;
use aha_kernels::{HeadNorm, HeadRotation};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Module, Result, Shape, Tensor};

/// Cosines and sines of a batch's positions.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    pub(crate) form: RotationForm,
}

/// How a rotation's numbers belong to the values of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RotationForm {
    /// `[tokens, rotary_dim / 2]`: one angle for both values of a pair.
    Pairs(RopePairing),
    /// `[tokens, rotary_dim]`: an angle for each value; pairs are split in halves.
    Values,
}

impl Rotation {
    /// Rotation by given angles `[tokens, half]`, of heads whose first `2 * half` values are rotated.
    pub fn from_angles(angles: &[f32], half: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (angles.len() / half.max(1), half);
        let tensor = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
        };
        Ok(Self {
            cos: tensor(f32::cos)?,
            sin: tensor(f32::sin)?,
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
        match self.form {
            RotationForm::Pairs(pairing)
                if is_f32_on_cpu(x) && is_f32_on_cpu(&self.cos) && x.elem_count() > 0 =>
            {
                let fused = Fused {
                    norm,
                    norm_after,
                    interleaved: pairing == RopePairing::Interleaved,
                };
                // Parts of a fused projection are taken as they lie.
                let whole_heads = x.stride()[1..] == [x.dim(2)?, 1];
                let x = if whole_heads { x } else { &x.contiguous()? };
                x.apply_op3_no_bwd(&self.cos.contiguous()?, &self.sin.contiguous()?, &fused)
            }
            _ if norm_after => norm.forward(&self.apply_plain(x)?),
            _ => self.apply_plain(&norm.forward(x)?),
        }
    }

    /// Calls `work` with the kernel's form of this rotation for queries and keys, each with the number of its heads and
    /// with its norm; with `None` where the kernel lacks the form.
    pub(crate) fn with_kernels<R>(
        &self,
        heads: [(usize, Option<&RmsNorm>); 2],
        head_dim: usize,
        norm_after: bool,
        work: impl FnOnce(Option<[HeadRotation<'_>; 2]>) -> Result<R>,
    ) -> Result<R> {
        let RotationForm::Pairs(pairing) = self.form else {
            return work(None);
        };
        if !is_f32_on_cpu(&self.cos) {
            return work(None);
        }
        let (cos, sin) = (self.cos.contiguous()?, self.sin.contiguous()?);
        let (cos, sin) = (borrowed(&cos), borrowed(&sin));
        let weights = heads.map(|(_, norm)| norm.map(|norm| borrowed(norm.weight())));
        let rotation = |index: usize| -> Result<HeadRotation<'_>> {
            let (num_heads, norm) = heads[index];
            let norm = match (norm, &weights[index]) {
                (Some(norm), Some(weight)) => Some(HeadNorm {
                    weight: weight.contiguous_f32()?,
                    epsilon: norm.eps(),
                    after_rotation: norm_after,
                }),
                _ => None,
            };
            Ok(HeadRotation {
                num_heads,
                head_dim,
                half: self.cos.dim(1)?,
                cos: cos.contiguous_f32()?,
                sin: sin.contiguous_f32()?,
                interleaved: pairing == RopePairing::Interleaved,
                norm,
            })
        };
        work(Some([rotation(0)?, rotation(1)?]))
    }

    /// The rotation by Candle's own operations.
    fn apply_plain(&self, x: &Tensor) -> Result<Tensor> {
        let head_dim = x.dim(2)?;
        let rotary_dim = match self.form {
            RotationForm::Pairs(_) => 2 * self.cos.dim(1)?,
            RotationForm::Values => self.cos.dim(1)?,
        };
        if rotary_dim == head_dim {
            return self.rotate(x);
        }
        let rotated = self.rotate(&x.narrow(2, 0, rotary_dim)?)?;
        Tensor::cat(
            &[rotated, x.narrow(2, rotary_dim, head_dim - rotary_dim)?],
            2,
        )
    }

    /// The same for `x` of which every value is rotated.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, dim) = x.dims3()?;
        let x = x.contiguous()?;
        // One batch entry a token lets Candle's kernels take an angle for each.
        let by_token = |table: &Tensor| table.reshape((tokens, 1, table.dim(1)?));
        let (cos, sin) = (by_token(&self.cos)?, by_token(&self.sin)?);
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

/// Norm and rotation in one pass; the other tensors are cosines and sines `[tokens, half]`.
struct Fused<'a> {
    norm: Option<&'a RmsNorm>,
    norm_after: bool,
    interleaved: bool,
}

impl CustomOp3 for Fused<'_> {
    fn name(&self) -> &'static str {
        "norm-rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, num_heads, head_dim) = x_layout.shape().dims3()?;
        let (_, half) = cos_layout.shape().dims2()?;
        let x = rows_f32(x, x_layout)?;
        let mut out = vec![0f32; x_layout.shape().elem_count()];
        let rotation = HeadRotation {
            num_heads,
            head_dim,
            half,
            cos: contiguous_f32(cos, cos_layout)?,
            sin: contiguous_f32(sin, sin_layout)?,
            interleaved: self.interleaved,
            norm: None,
        };
        match self.norm {
            None => rotation.forward(x, &mut out),
            Some(norm) => with_f32(norm.weight(), |weight| {
                HeadRotation {
                    norm: Some(HeadNorm {
                        weight,
                        epsilon: norm.eps(),
                        after_rotation: self.norm_after,
                    }),
                    ..rotation
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
