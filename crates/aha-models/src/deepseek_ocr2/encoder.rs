//! The causal encoder of DeepSeek-OCR-2: Qwen2's layers let learned queries read a map in an order of their own.

use crate::error::LoadError;
use aha_nn::linear::Linear;
use aha_nn::mlp::{Activation, GatedMlp};
use aha_nn::norm::RmsNorm;
use aha_nn::ragged::{RaggedAttention, SequenceBounds};
use aha_nn::rope::Rotation;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{DType, Device, Module, Result, Tensor};

const HEAD_DIM: usize = 64;
const NORM_EPS: f64 = 1e-6;
const ROPE_THETA: f32 = 1e6;
/// More layers than any release has.
const MOST_LAYERS: usize = 1 << 10;
/// Key and value heads, and width of the MLP, of the release.
const RELEASE_SIZES: [usize; 2] = [2, 4864];

/// Grouped-query attention and a gated MLP, each behind a norm.
#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    projections: [Linear; 3],
    o_proj: Linear,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
    num_heads: usize,
    num_kv_heads: usize,
}

impl Layer {
    /// Sizes that config.json leaves out are those of the tensors.
    fn load(weights: &Weights, width: usize) -> WeightsResult<Self> {
        let rows = |name: &str| {
            let shape = weights.shape(name);
            shape.and_then(|shape| shape.first().copied())
        };
        let num_kv_heads =
            rows("self_attn.k_proj.weight").map_or(RELEASE_SIZES[0], |rows| rows / HEAD_DIM);
        let inner = rows("mlp.gate_proj.weight").unwrap_or(RELEASE_SIZES[1]);
        let attn = weights.pp("self_attn");
        let projection = |name, to| Linear::load(&attn.pp(name), width, to, true);
        let kv_size = num_kv_heads * HEAD_DIM;
        Ok(Self {
            input_layernorm: RmsNorm::load(&weights.pp("input_layernorm"), width, NORM_EPS)?,
            projections: [
                projection("q_proj", width)?,
                projection("k_proj", kv_size)?,
                projection("v_proj", kv_size)?,
            ],
            o_proj: Linear::load(&attn.pp("o_proj"), width, width, false)?,
            post_attention_layernorm: RmsNorm::load(
                &weights.pp("post_attention_layernorm"),
                width,
                NORM_EPS,
            )?,
            mlp: GatedMlp::load(&weights.pp("mlp"), width, inner, Activation::Silu, false)?,
            num_heads: width / HEAD_DIM,
            num_kv_heads,
        })
    }

    /// `hidden` is `[tokens, width]`, in sequences whose first `prefix` tokens all see each other.
    fn forward(
        &self,
        hidden: &Tensor,
        prefix: usize,
        rotation: &Rotation,
        bounds: &SequenceBounds,
    ) -> Result<Tensor> {
        let attention = RaggedAttention {
            num_kv_heads: self.num_kv_heads,
            causal: true,
            prefix,
            ..RaggedAttention::full(self.num_heads, HEAD_DIM)
        };
        let [q_proj, k_proj, v_proj] = &self.projections;
        let normed = self.input_layernorm.forward(hidden)?;
        let rotated = |x: Tensor| rotation.apply(&x.reshape((x.dim(0)?, (), HEAD_DIM))?);
        let (q, k) = (
            rotated(q_proj.forward(&normed)?)?,
            rotated(k_proj.forward(&normed)?)?,
        );
        let attended = attention.forward(&q, &k, &v_proj.forward(&normed)?, bounds)?;
        let hidden = (hidden + self.o_proj.forward(&attended)?)?;
        let fed = self
            .mlp
            .forward(&self.post_attention_layernorm.forward(&hidden)?)?;
        hidden + fed
    }
}

/// Layers and the queries for each size of map.
#[derive(Debug)]
pub(super) struct QueryEncoder {
    layers: Vec<Layer>,
    norm: RmsNorm,
    queries: Vec<Tensor>,
    dtype: DType,
    device: Device,
}

impl QueryEncoder {
    /// Loads `model.model.layers` and `model.model.norm`, and the tables of queries by their names and counts.
    pub(super) fn load(
        weights: &Weights,
        width: usize,
        queries: &[(&str, usize)],
    ) -> std::result::Result<Self, LoadError> {
        let key = "vision_config.width.qwen2-0-5b.dim";
        if width == 0 || !width.is_multiple_of(HEAD_DIM) || width > 1 << 14 {
            let reason = format!("{width} values are no heads of {HEAD_DIM}");
            return Err(LoadError::config(key, reason));
        }
        let model = weights.pp("model.model");
        let layers = model.pp("layers");
        let is_there = |index: &usize| layers.contains(&format!("{index}.input_layernorm.weight"));
        let num_layers = (0..MOST_LAYERS).take_while(is_there).count().max(1);
        Ok(Self {
            layers: (0..num_layers)
                .map(|index| Layer::load(&layers.pp(index), width))
                .collect::<WeightsResult<_>>()?,
            norm: RmsNorm::load(&model.pp("norm"), width, NORM_EPS)?,
            queries: queries
                .iter()
                .map(|(name, count)| weights.pp(name).tensor("weight", &[*count, width]))
                .collect::<WeightsResult<_>>()?,
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// Rotation of `count` tokens of each of `views` sequences.
    fn rotation(&self, views: usize, count: usize) -> Result<Rotation> {
        const HALF: usize = HEAD_DIM / 2;
        let inv_freq: [f32; HALF] =
            std::array::from_fn(|i| 1.0 / ROPE_THETA.powf((2 * i) as f32 / HEAD_DIM as f32));
        let angles: Vec<f32> = (0..views * count)
            .flat_map(|token| inv_freq.map(|inv_freq| (token % count) as f32 * inv_freq))
            .collect();
        Rotation::from_angles(&angles, HALF, self.dtype, &self.device)
    }

    /// `map` is `[views, places, width]`; the result is what as many queries read from it, of the same shape.
    pub(super) fn forward(
        &self,
        map: &Tensor,
        visit: &mut impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (views, places, width) = map.dims3()?;
        let fits = |queries: &&Tensor| queries.dim(0).is_ok_and(|count| count == places);
        let Some(queries) = self.queries.iter().find(fits) else {
            candle_core::bail!("the model has no queries for a map of {places} places");
        };
        let queries = queries.broadcast_as((views, places, width))?;
        let count = 2 * places;
        let mut hidden = Tensor::cat(&[map, &queries], 1)?.reshape((views * count, width))?;
        let bounds = SequenceBounds::from_lengths(std::iter::repeat_n(count, views))?;
        let rotation = self.rotation(views, count)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, places, &rotation, &bounds)?;
            visit(&format!("layer_{index}"), &hidden);
        }
        let read = hidden
            .reshape((views, count, width))?
            .narrow(1, places, places)?;
        self.norm.forward(&read)
    }
}
