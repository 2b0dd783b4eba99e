//! The pre-norm decoder that Llama introduced and most text families share; families choose its options.

mod host;

use aha_engine::Generator;
use aha_nn::attention::{AttentionConfig, SelfAttention};
use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, CacheSpec, LayerCache, LayerSpec};
use aha_nn::host::{HostStep, Parts};
use aha_nn::linear::{Embedding, Linear};
use aha_nn::mlp::{Activation, GatedMlp, Residual, add_residual};
use aha_nn::moe::MoeMlp;
use aha_nn::norm::RmsNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::rope::{RopeScaling, RotaryEmbedding, Rotation};
use aha_nn::weights::{LanguagePart, Weights};
use candle_core::{DType, Device, Module, Result, Tensor};

use crate::error::LoadError;
use std::fmt;

/// Sizes and options; keys of config.json in brackets.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding (`vocab_size`).
    pub vocab_size: usize,
    /// Width of the gated MLP (`intermediate_size`); layers with experts have theirs.
    pub intermediate_size: usize,
    /// Decoder layers (`num_hidden_layers`).
    pub num_layers: usize,
    /// Self-attention of every layer.
    pub attention: AttentionConfig,
    /// Epsilon of all RMS norms (`rms_norm_eps`).
    pub rms_norm_eps: f64,
    /// Activation of the MLP (`hidden_act`).
    pub activation: Activation,
    /// Biases in the MLP (`mlp_bias`).
    pub mlp_bias: bool,
    /// The output head is the embedding (`tie_word_embeddings`).
    pub tie_word_embeddings: bool,
    /// Longest sequence (`max_position_embeddings`).
    pub max_position_embeddings: usize,
    /// Values of a head that are rotated (`head_dim`, or a share of it: `partial_rotary_factor`).
    pub rotary_dim: usize,
    /// Base of the rotary frequencies (`rope_theta`).
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies (`rope_scaling`).
    pub rope_scaling: Option<RopeScaling>,
    /// Constant factors along the residual stream.
    pub scales: Scales,
    /// The checkpoint stores the weights of its RMS norms less one.
    pub zero_centred_norms: bool,
    /// What attention and MLP give passes a norm of its own before it joins the stream (GLM-4's
    /// `post_self_attn_layernorm` and `post_mlp_layernorm`).
    pub sandwich_norms: bool,
}

/// Constant factors along the residual stream, as models trained with muP have them; 1 is none and costs nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// On the embeddings.
    pub embedding: f64,
    /// On what attention and MLP each add to the stream.
    pub residual: f64,
    /// On the logits; applied to the normed hidden states before the head.
    pub logits: f64,
}

impl Default for Scales {
    fn default() -> Self {
        Self {
            embedding: 1.0,
            residual: 1.0,
            logits: 1.0,
        }
    }
}

fn scaled(x: Tensor, scale: f64) -> Result<Tensor> {
    if scale == 1.0 { Ok(x) } else { x * scale }
}

impl DecoderConfig {
    /// A norm over `size` values.
    fn norm(&self, weights: &Weights, size: usize) -> aha_nn::weights::Result<RmsNorm> {
        if self.zero_centred_norms {
            RmsNorm::load_zero_centred(weights, size, self.rms_norm_eps)
        } else {
            RmsNorm::load(weights, size, self.rms_norm_eps)
        }
    }

    /// Refuses sizes that no checkpoint has, before anything is allocated for them.
    fn validate(&self) -> std::result::Result<(), LoadError> {
        let AttentionConfig {
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = self.attention;
        let bounded = [
            ("hidden_size", hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_layers, 1 << 12),
            ("num_attention_heads", num_heads, 1 << 14),
            ("num_key_value_heads", num_kv_heads, 1 << 14),
            ("head_dim", head_dim, 1 << 14),
            ("vocab_size", self.vocab_size, 1 << 24),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 30,
            ),
        ];
        for (key, value, most) in bounded {
            if value == 0 || value > most {
                return Err(LoadError::config(
                    key,
                    format!("{value} is not between 1 and {most}"),
                ));
            }
        }
        if num_heads % num_kv_heads != 0 {
            let reason = format!(
                "{num_heads} query heads cannot share {num_kv_heads} key/value heads evenly"
            );
            return Err(LoadError::config("num_key_value_heads", reason));
        }
        if !self.rotary_dim.is_multiple_of(2) || self.rotary_dim == 0 || self.rotary_dim > head_dim
        {
            return Err(LoadError::config(
                "head_dim",
                format!(
                    "{} of {head_dim} values cannot be rotated in pairs",
                    self.rotary_dim
                ),
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(LoadError::config(
                "rope_theta",
                format!("{} is not a positive number", self.rope_theta),
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            let reason = format!("{} is not a positive number", self.rms_norm_eps);
            return Err(LoadError::config("rms_norm_eps", reason));
        }
        Ok(())
    }
}

/// What mixes the tokens of a sequence in one layer: attention, or a recurrent relative of it.
pub trait TokenMixer: fmt::Debug + Send + Sync {
    /// What it keeps of a sequence between steps.
    fn cache_spec(&self) -> LayerSpec;

    /// `x` is `[tokens, hidden_size]`, and so is the result; the sequences' caches gain the tokens.
    fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<Tensor>;

    /// The same on the CPU from rows to rows, both `[tokens, hidden_size]`; `parts` is memory to use meanwhile.
    fn forward_rows(
        &self,
        x: &[f32],
        step: &HostStep<'_>,
        cache: &mut LayerCache,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> Result<()>;
}

impl TokenMixer for SelfAttention {
    fn cache_spec(&self) -> LayerSpec {
        let AttentionConfig {
            num_kv_heads,
            head_dim,
            ..
        } = *self.config();
        LayerSpec::Attention {
            num_kv_heads,
            head_dim,
            dtype: self.cache_dtype(),
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        Self::forward(self, x, rotation, batch, cache.attention()?)
    }

    fn forward_rows(
        &self,
        x: &[f32],
        step: &HostStep<'_>,
        cache: &mut LayerCache,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> Result<()> {
        Self::forward_rows(self, x, step, cache.attention()?, parts, out)
    }
}

/// What follows the mixer in a layer.
#[derive(Debug)]
pub enum FeedForward {
    /// One MLP for all tokens.
    Dense(GatedMlp),
    /// Experts of which each token uses a few.
    Experts(MoeMlp),
}

impl FeedForward {
    /// The MLP that `config` describes, at `mlp` of a layer's weights.
    pub fn dense(layer: &Weights, config: &DecoderConfig) -> aha_nn::weights::Result<Self> {
        Ok(Self::Dense(GatedMlp::load(
            &layer.pp("mlp"),
            config.attention.hidden_size,
            config.intermediate_size,
            config.activation,
            config.mlp_bias,
        )?))
    }
}

impl Module for FeedForward {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}

impl Residual for FeedForward {
    fn forward_added(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward_added(x, residual),
            Self::Experts(experts) => add_residual(&experts.forward(x)?, residual),
        }
    }
}

/// Token mixer and MLP, each behind a norm (or between two) and beside a residual.
#[derive(Debug)]
pub struct TransformerLayer<M> {
    input_layernorm: RmsNorm,
    mixer: M,
    post_mixer_norm: Option<RmsNorm>,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
    post_mlp_norm: Option<RmsNorm>,
    residual_scale: f64,
}

/// A layer whose mixer keeps something of a sequence.
pub type DecoderLayer = TransformerLayer<Box<dyn TokenMixer>>;

impl<M> TransformerLayer<M> {
    fn load(
        weights: &Weights,
        config: &DecoderConfig,
        mixer: M,
        mlp: FeedForward,
    ) -> aha_nn::weights::Result<Self> {
        let hidden_size = config.attention.hidden_size;
        let sandwich = |name: &str| {
            let norm = || config.norm(&weights.pp(name), hidden_size);
            config.sandwich_norms.then(norm).transpose()
        };
        Ok(Self {
            input_layernorm: config.norm(&weights.pp("input_layernorm"), hidden_size)?,
            mixer,
            post_mixer_norm: sandwich("post_self_attn_layernorm")?,
            post_attention_layernorm: config
                .norm(&weights.pp("post_attention_layernorm"), hidden_size)?,
            mlp,
            post_mlp_norm: sandwich("post_mlp_layernorm")?,
            residual_scale: config.scales.residual,
        })
    }

    /// `hidden` is `[tokens, hidden_size]`; `mix` runs the mixer over the normed tokens.
    fn forward_with(
        &self,
        hidden: &Tensor,
        mix: impl FnOnce(&M, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let normed = self.input_layernorm.forward(hidden)?;
        let mixed = mix(&self.mixer, &normed)?;
        let mixed = self.post_mixer_norm.as_ref().forward(&mixed)?;
        let hidden = add_residual(&scaled(mixed, self.residual_scale)?, hidden)?;
        let normed = self.post_attention_layernorm.forward(&hidden)?;
        if self.post_mlp_norm.is_none() && self.residual_scale == 1.0 {
            return self.mlp.forward_added(&normed, &hidden);
        }
        let fed = self.mlp.forward(&normed)?;
        let fed = self.post_mlp_norm.as_ref().forward(&fed)?;
        add_residual(&scaled(fed, self.residual_scale)?, &hidden)
    }
}

impl DecoderLayer {
    /// `hidden` is `[tokens, hidden_size]`.
    pub fn forward(
        &self,
        hidden: &Tensor,
        rotation: &Rotation,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        self.forward_with(hidden, |mixer, normed| {
            mixer.forward(normed, rotation, batch, cache)
        })
    }
}

/// Layers, final norm and rotary positions: what a transformer has between embedding and output head.
#[derive(Debug)]
pub struct Stack<M> {
    layers: Vec<TransformerLayer<M>>,
    norm: RmsNorm,
    rotary: RotaryEmbedding,
    dtype: DType,
    device: Device,
}

/// A stack whose layers keep something of each sequence.
pub type DecoderStack = Stack<Box<dyn TokenMixer>>;

/// A stack whose layers see whole sequences at once, in both directions.
pub type EncoderStack = Stack<SelfAttention>;

impl<M> Stack<M> {
    /// Loads `layers` and `norm`; layers have the mixer and the MLP that `parts` makes of a layer's weights and index.
    pub fn load(
        weights: &Weights,
        config: &DecoderConfig,
        parts: impl Fn(&Weights, usize) -> aha_nn::weights::Result<(M, FeedForward)>,
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let layers = (0..config.num_layers)
            .map(|index| {
                let layer = weights.pp(format_args!("layers.{index}"));
                let (mixer, mlp) = parts(&layer, index)?;
                TransformerLayer::load(&layer, config, mixer, mlp)
            })
            .collect::<aha_nn::weights::Result<_>>()?;
        Ok(Self {
            layers,
            norm: config.norm(&weights.pp("norm"), config.attention.hidden_size)?,
            rotary: RotaryEmbedding::new(
                config.rotary_dim,
                config.rope_theta,
                config.rope_scaling.as_ref(),
                config.max_position_embeddings,
            )?
            .with_pairing(config.attention.rope_pairing),
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The final norm over `[rows, hidden_size]`.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(hidden)
    }
}

impl DecoderStack {
    /// Loads a stack of plain attention.
    pub fn load_decoder(
        weights: &Weights,
        config: &DecoderConfig,
    ) -> std::result::Result<Self, LoadError> {
        let weights = weights.of_part(LanguagePart::Layers);
        Self::load(&weights, config, |layer, _| {
            let attention = SelfAttention::load(&layer.pp("self_attn"), &config.attention)?;
            Ok((Box::new(attention), FeedForward::dense(layer, config)?))
        })
    }

    /// What each layer keeps of a sequence between steps.
    pub fn cache_spec(&self) -> CacheSpec {
        CacheSpec {
            layers: self
                .layers
                .iter()
                .map(|layer| layer.mixer.cache_spec())
                .collect(),
            shareable_prompt_len: self.rotary.length_independent_up_to(),
        }
    }

    /// Rotation of the batch's positions.
    pub fn rotation(&self, batch: &Batch) -> Result<Rotation> {
        self.rotary.rotation(batch, self.dtype, &self.device)
    }

    /// All layers over the batch's tokens `hidden` `[tokens, hidden_size]`; the final norm is the caller's.
    /// `caches` has one entry a layer.
    pub fn forward(
        &self,
        hidden: Tensor,
        batch: &Batch,
        caches: &mut [LayerCache],
    ) -> Result<Tensor> {
        if self.is_on_host() {
            return self.forward_on_host(&hidden, batch, caches);
        }
        self.forward_adding(hidden, batch, caches, |hidden, _| Ok(hidden))
    }

    /// The same with what `add` does to the hidden states after each layer, whose index it is told.
    fn forward_adding(
        &self,
        mut hidden: Tensor,
        batch: &Batch,
        caches: &mut [LayerCache],
        add: impl Fn(Tensor, usize) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rotation = self.rotation(batch)?;
        for (index, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            hidden = layer.forward(&hidden, &rotation, batch, cache)?;
            hidden = add(hidden, index)?;
        }
        Ok(hidden)
    }
}

impl EncoderStack {
    /// Loads a stack of plain self-attention.
    pub fn load_encoder(
        weights: &Weights,
        config: &DecoderConfig,
    ) -> std::result::Result<Self, LoadError> {
        Self::load(weights, config, |layer, _| {
            let attention = SelfAttention::load(&layer.pp("self_attn"), &config.attention)?;
            Ok((attention, FeedForward::dense(layer, config)?))
        })
    }

    /// Rotation of whole sequences, whose positions count from 0.
    pub fn rotation(&self, bounds: &SequenceBounds) -> Result<Rotation> {
        self.rotary
            .rotation_within(bounds, self.dtype, &self.device)
    }

    /// All layers and the final norm over sequences that lie end to end, `[tokens, hidden_size]`.
    pub fn forward(
        &self,
        mut hidden: Tensor,
        rotation: &Rotation,
        bounds: &SequenceBounds,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            hidden = layer.forward_with(&hidden, |attention, normed| {
                attention.forward_bidirectional(normed, rotation, bounds)
            })?;
        }
        self.final_norm(&hidden)
    }
}

/// Embedding, layers, final norm and output head.
#[derive(Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    stack: DecoderStack,
    lm_head: Linear,
    config: DecoderConfig,
    context_length: usize,
}

/// Rope divisors of GGUF files converted from Llama 3.
const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Decoder {
    /// Loads `model.*` and, unless tied, `lm_head` from `weights`, and reports what is missing or misshapen.
    pub fn load(weights: &Weights, config: DecoderConfig) -> std::result::Result<Self, LoadError> {
        // Checkpoints that were saved without a head lack the prefix.
        let bare = weights.contains("embed_tokens.weight");
        let model = weights.pp(if bare { "" } else { "model" });
        let mut decoder = Self::load_at(&model, &weights.pp("lm_head"), config)?;
        if weights.contains(ROPE_FACTORS) {
            let factors = weights.tensor(ROPE_FACTORS, &[decoder.config.rotary_dim / 2])?;
            let stack = &mut decoder.stack;
            stack.rotary = stack
                .rotary
                .clone()
                .divided_by(&factors.to_dtype(DType::F32)?.to_vec1::<f32>()?);
        }
        weights.finish(decoder.ignorable())?;
        Ok(decoder)
    }

    /// Loads a decoder of attention layers from where `model` and `lm_head` are, as [`load_parts`](Self::load_parts)
    /// does.
    pub fn load_at(
        model: &Weights,
        lm_head: &Weights,
        config: DecoderConfig,
    ) -> std::result::Result<Self, LoadError> {
        let attention = config.attention.clone();
        Self::load_parts(model, lm_head, config, |layer, _| {
            Ok(Box::new(SelfAttention::load(
                &layer.pp("self_attn"),
                &attention,
            )?))
        })
    }

    /// Loads a decoder whose layers mix tokens by what `mixer` makes of a layer's weights and index, from where
    /// `model` (`embed_tokens`, `layers`, `norm`) and `lm_head` are. The caller calls [`Weights::finish`] once all
    /// parts of the checkpoint are loaded.
    pub fn load_parts(
        model: &Weights,
        lm_head: &Weights,
        config: DecoderConfig,
        mixer: impl Fn(&Weights, usize) -> aha_nn::weights::Result<Box<dyn TokenMixer>>,
    ) -> std::result::Result<Self, LoadError> {
        let dense = config.clone();
        Self::load_layers(model, lm_head, config, |layer, index| {
            Ok((mixer(layer, index)?, FeedForward::dense(layer, &dense)?))
        })
    }

    /// The same for layers that differ in what follows the mixer, too.
    pub fn load_layers(
        model: &Weights,
        lm_head: &Weights,
        config: DecoderConfig,
        parts: impl Fn(&Weights, usize) -> aha_nn::weights::Result<(Box<dyn TokenMixer>, FeedForward)>,
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let hidden_size = config.attention.hidden_size;
        let table = if config.tie_word_embeddings {
            LanguagePart::Output
        } else {
            LanguagePart::Embedding
        };
        let embed_tokens = Embedding::load(
            &model.pp("embed_tokens").of_part(table),
            config.vocab_size,
            hidden_size,
        )?;
        let stack = Stack::load(&model.of_part(LanguagePart::Layers), &config, parts)?;
        // Some tied checkpoints carry a copy of the embedding as the head, others do not: neither is needed.
        let lm_head = if config.tie_word_embeddings {
            embed_tokens.tied_head()
        } else {
            let lm_head = lm_head.of_part(LanguagePart::Output);
            Linear::load(&lm_head, hidden_size, config.vocab_size, false)?
        };
        Ok(Self {
            embed_tokens,
            stack,
            lm_head,
            context_length: config.max_position_embeddings,
            config,
        })
    }

    /// Tensors that checkpoints carry and no decoder needs, for [`Weights::finish`].
    pub fn ignorable(&self) -> &'static [&'static str] {
        if self.config.tie_word_embeddings {
            &["lm_head.weight", "*.rotary_emb.inv_freq", "rope_factors_*"]
        } else {
            &["*.rotary_emb.inv_freq", "rope_factors_*"]
        }
    }

    /// The same decoder for sequences of at most `tokens`, where something besides the positions limits them.
    #[must_use]
    pub fn with_context_limit(mut self, tokens: usize) -> Self {
        self.context_length = self.context_length.min(tokens);
        self
    }

    /// Scaled embeddings of the batch's tokens, or what encoders give in their place, `[tokens, hidden_size]`.
    pub fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let embedded = self.embed_tokens.forward(&batch.token_tensor()?)?;
        batch.place_encoded(scaled(embedded, self.config.scales.embedding)?)
    }

    /// The token embedding, which is the output head of tied checkpoints, too.
    pub fn embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        self.config.attention.hidden_size
    }

    /// Rotation of the batch's positions.
    pub fn rotation(&self, batch: &Batch) -> Result<Rotation> {
        self.stack.rotation(batch)
    }

    /// The layers in order.
    pub fn layers(&self) -> &[DecoderLayer] {
        &self.stack.layers
    }

    /// Embedding and all layers by tensors: `[tokens, hidden_size]` before the final norm.
    fn forward_layers(&self, batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        let add = |hidden, layer| batch.add_deepstack(hidden, layer);
        self.stack
            .forward_adding(self.embed(batch)?, batch, cache.layers_mut(), add)
    }

    /// The final norm over `[rows, hidden_size]`.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.stack.final_norm(hidden)
    }
}

impl Generator for Decoder {
    fn cache_spec(&self) -> CacheSpec {
        self.stack.cache_spec()
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn device(&self) -> &Device {
        &self.stack.device
    }

    fn forward_into(&self, batch: &Batch, cache: &mut Cache, logits: &mut Vec<f32>) -> Result<()> {
        if self.stack.is_on_host() {
            return self.step_on_host(batch, cache, logits);
        }
        let hidden = self.forward_layers(batch, cache)?;
        if batch.logit_rows().is_empty() {
            return Ok(());
        }
        let rows = self.final_norm(&batch.select_logit_rows(&hidden)?)?;
        let rows = scaled(rows, self.config.scales.logits)?;
        let rows = self.lm_head.forward(&rows)?.to_dtype(DType::F32)?;
        *logits = rows.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        Ok(())
    }
}
