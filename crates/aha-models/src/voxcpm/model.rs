//! The language models of VoxCPM (arXiv 2509.24650) and what lies between them: one forward pass over text and patches.
//!
//! ```text
//! patch ─ LocEnc ─ proj ─▶ base LM ─▶ FSQ ─┬─▶ (+ patch) residual LM ─▶ condition ─┐
//! text  ─ embedding ─────▶         ────────┘        └──▶ condition, stop           ├─▶ LocDiT ─▶ next patch
//!                                                         previous patch, noise ───┘
//! ```

use super::config::VoxCpmConfig;
use super::diffusion::LocalDit;
use crate::decoder::{DecoderStack, EncoderStack};
use crate::error::LoadError;
use aha_engine::PatchInput;
use aha_nn::batch::{Batch, EncodedRows, place_rows};
use aha_nn::cache::{Cache, CacheSpec};
use aha_nn::linear::{Embedding, Linear};
use aha_nn::mlp::Activation;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::Weights;
use candle_core::{D, DType, Device, Module, Result, Tensor};

/// Everything but the sound.
#[derive(Debug)]
pub struct VoxCpm {
    embed_tokens: Embedding,
    embedding_scale: f64,
    base_lm: DecoderStack,
    residual_lm: DecoderStack,
    encoder: LocalEncoder,
    quantizer: Quantizer,
    encoder_to_lm: Linear,
    lm_to_dit: Linear,
    residual_to_dit: Linear,
    dit: LocalDit,
    stop_proj: Linear,
    stop_head: Linear,
    hidden_size: usize,
    dtype: DType,
    device: Device,
}

impl VoxCpm {
    /// Loads the tensors of the model file. The caller calls [`Weights::finish`].
    pub fn load(weights: &Weights, config: &VoxCpmConfig) -> std::result::Result<Self, LoadError> {
        let (base, residual) = (config.base_lm()?, config.residual_lm()?);
        let hidden_size = base.attention.hidden_size;
        let encoder = LocalEncoder::load(&weights.pp("feat_encoder"), config)?;
        let dit = LocalDit::load(&weights.pp("feat_decoder"), config)?;
        let linear = |name, from, to| Linear::load(&weights.pp(name), from, to, true);
        Ok(Self {
            base_lm: DecoderStack::load_decoder(&weights.pp("base_lm"), &base)?,
            residual_lm: DecoderStack::load_decoder(&weights.pp("residual_lm"), &residual)?,
            embed_tokens: Embedding::load(
                &weights.pp("base_lm.embed_tokens"),
                base.vocab_size,
                hidden_size,
            )?,
            embedding_scale: base.scales.embedding,
            quantizer: Quantizer::load(&weights.pp("fsq_layer"), hidden_size, config)?,
            encoder_to_lm: linear("enc_to_lm_proj", encoder.width, hidden_size)?,
            lm_to_dit: linear("lm_to_dit_proj", hidden_size, dit.width())?,
            residual_to_dit: linear("res_to_dit_proj", hidden_size, dit.width())?,
            stop_proj: linear("stop_proj", hidden_size, hidden_size)?,
            stop_head: Linear::load(&weights.pp("stop_head"), hidden_size, 2, false)?,
            encoder,
            dit,
            hidden_size,
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The layers of the base LM, then those of the residual LM.
    pub fn cache_spec(&self) -> CacheSpec {
        let mut spec = self.base_lm.cache_spec();
        spec.layers.extend(self.residual_lm.cache_spec().layers);
        spec
    }

    /// The encoder of patches.
    pub fn encoder(&self) -> &LocalEncoder {
        &self.encoder
    }

    /// What quantises the base LM's hidden states of patches.
    pub fn quantizer(&self) -> &Quantizer {
        &self.quantizer
    }

    /// What makes patches of noise.
    pub fn dit(&self) -> &LocalDit {
        &self.dit
    }

    /// Hidden states of both language models for the rows asked for, side by side: `[rows, 2 * hidden_size]`.
    pub fn forward(&self, batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        let patches = self.embed_patches(batch.encoded())?;
        let text = (self.embed_tokens.forward(&batch.token_tensor()?)? * self.embedding_scale)?;
        let base_layers = self.base_lm.num_layers();
        let Some((base_cache, residual_cache)) =
            cache.layers_mut().split_at_mut_checked(base_layers)
        else {
            candle_core::bail!("the cache has no {base_layers} layers");
        };
        let hidden = place_rows(text, &patches)?;
        let hidden = self.base_lm.forward(hidden, batch, base_cache)?;
        let hidden = self.base_lm.final_norm(&hidden)?;

        let quantized = patches
            .iter()
            .map(|rows| {
                let count = rows.values.dim(0)?;
                let values = self
                    .quantizer
                    .forward(&hidden.narrow(0, rows.start, count)?)?;
                Ok(EncodedRows {
                    start: rows.start,
                    values,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let meaning = place_rows(hidden, &quantized)?;
        let sound = place_rows(meaning.zeros_like()?, &patches)?;
        let residual = self
            .residual_lm
            .forward((&meaning + sound)?, batch, residual_cache)?;
        let residual = self
            .residual_lm
            .final_norm(&batch.select_logit_rows(&residual)?)?;
        Tensor::cat(&[batch.select_logit_rows(&meaning)?, residual], 1)
    }

    /// The next patch of each utterance.
    pub fn sample(&self, inputs: &[PatchInput]) -> Result<Vec<Tensor>> {
        let conditions: Vec<&Tensor> = inputs.iter().map(|input| &input.condition).collect();
        let (meaning, residual) = self.halves(&Tensor::cat(&conditions, 0)?)?;
        let condition =
            (self.lm_to_dit.forward(&meaning)? + self.residual_to_dit.forward(&residual)?)?;
        self.dit.solve(&condition, inputs)
    }

    /// Whether each utterance ends.
    pub fn stops(&self, conditions: &Tensor) -> Result<Vec<bool>> {
        let (meaning, _) = self.halves(conditions)?;
        let hidden = Activation::Silu.forward(&self.stop_proj.forward(&meaning)?)?;
        let logits = self.stop_head.forward(&hidden)?;
        let stops = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        Ok(stops.into_iter().map(|stop| stop == 1).collect())
    }

    fn halves(&self, conditions: &Tensor) -> Result<(Tensor, Tensor)> {
        let half = |start| conditions.narrow(1, start, self.hidden_size)?.contiguous();
        Ok((half(0)?, half(self.hidden_size)?))
    }

    /// Embeddings of patches in the places of their latents.
    fn embed_patches(&self, patches: &[EncodedRows]) -> Result<Vec<EncodedRows>> {
        patches
            .iter()
            .map(|rows| {
                let encoded = self.encoder.forward(&rows.values)?;
                Ok(EncodedRows {
                    start: rows.start,
                    values: self.encoder_to_lm.forward(&encoded)?,
                })
            })
            .collect()
    }
}

/// A patch to one vector: a bidirectional transformer over its latents behind a special token, whose output it is.
#[derive(Debug)]
pub struct LocalEncoder {
    special_token: Tensor,
    in_proj: Linear,
    encoder: EncoderStack,
    patch_size: usize,
    feat_dim: usize,
    width: usize,
}

impl LocalEncoder {
    fn load(weights: &Weights, config: &VoxCpmConfig) -> std::result::Result<Self, LoadError> {
        let encoder = config.local_encoder()?;
        let width = encoder.attention.hidden_size;
        Ok(Self {
            special_token: weights.tensor("special_token", &[1, 1, 1, width])?,
            in_proj: Linear::load(&weights.pp("in_proj"), config.feat_dim, width, true)?,
            encoder: EncoderStack::load_encoder(&weights.pp("encoder"), &encoder)?,
            patch_size: config.patch_size,
            feat_dim: config.feat_dim,
            width,
        })
    }

    /// `patches` are `[count, patch_size * feat_dim]`; the result `[count, width]`.
    pub fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        let (count, length) = (patches.dim(0)?, 1 + self.patch_size);
        let latents = patches.reshape((count * self.patch_size, self.feat_dim))?;
        let latents =
            self.in_proj
                .forward(&latents)?
                .reshape((count, self.patch_size, self.width))?;
        let special = self
            .special_token
            .reshape((1, 1, self.width))?
            .broadcast_as((count, 1, self.width))?;
        let tokens = Tensor::cat(&[&special.contiguous()?, &latents], 1)?.flatten(0, 1)?;
        let bounds = SequenceBounds::from_lengths(vec![length; count])?;
        let rotation = self.encoder.rotation(&bounds)?;
        self.encoder
            .forward(tokens, &rotation, &bounds)?
            .reshape((count, length, self.width))?
            .narrow(1, 0, 1)?
            .contiguous()?
            .reshape((count, self.width))
    }
}

/// Finite scalar quantisation (arXiv 2309.15505) of a narrow view of the hidden states.
#[derive(Debug)]
pub struct Quantizer {
    in_proj: Linear,
    out_proj: Linear,
    scale: f64,
}

/// Adding and subtracting 1.5 x 2^23 rounds single precision to integers, halves to the even one.
const ROUNDER: f64 = 12_582_912.0;

impl Quantizer {
    fn load(
        weights: &Weights,
        hidden_size: usize,
        config: &VoxCpmConfig,
    ) -> aha_nn::weights::Result<Self> {
        let narrow = config.quantized_dim;
        Ok(Self {
            in_proj: Linear::load(&weights.pp("in_proj"), hidden_size, narrow, true)?,
            out_proj: Linear::load(&weights.pp("out_proj"), narrow, hidden_size, true)?,
            scale: config.quantization_scale as f64,
        })
    }

    /// `hidden` is `[rows, hidden_size]`, and so is the result.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let narrow = self.in_proj.forward(hidden)?;
        let scaled = (narrow.to_dtype(DType::F32)?.tanh()? * self.scale)?;
        let rounded = ((scaled + ROUNDER)? - ROUNDER)?;
        let quantized = (rounded / self.scale)?.to_dtype(narrow.dtype())?;
        self.out_proj.forward(&quantized)
    }
}
