//! The decoder's step on the CPU, where layers go from rows to rows in memory that is kept, without a tensor for each
//! operation. Every operation is that of the tensors' path, in its order: both give the same bits.

use super::{Decoder, DecoderLayer, DecoderStack, FeedForward};
use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, LayerCache};
use aha_nn::host::{HostStep, Parts, Stream, Workspace, head_rows, scale_rows};
use candle_core::{DType, Device, Result, Tensor};

impl FeedForward {
    /// From rows to rows, both `[tokens, hidden_size]`.
    fn forward_rows(
        &self,
        x: &[f32],
        tokens: usize,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::Dense(mlp) => mlp.forward_rows(x, tokens, parts, out),
            Self::Experts(experts) => experts.forward_rows(x, tokens, parts, out),
        }
    }
}

impl DecoderLayer {
    /// Takes the stream through the layer.
    fn advance(
        &self,
        stream: &mut Stream<'_>,
        step: &HostStep<'_>,
        cache: &mut LayerCache,
    ) -> Result<()> {
        stream.add(&self.input_layernorm, |x, parts, out| {
            self.mixer.forward_rows(x, step, cache, parts, out)
        })?;
        stream.adjust(self.post_mixer_norm.as_ref(), self.residual_scale)?;
        stream.add(&self.post_attention_layernorm, |x, parts, out| {
            self.mlp.forward_rows(x, step.num_tokens(), parts, out)
        })?;
        stream.adjust(self.post_mlp_norm.as_ref(), self.residual_scale)
    }
}

impl DecoderStack {
    /// Whether the stack's steps go by rows.
    pub(super) fn is_on_host(&self) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32
    }

    /// Takes the stream through all layers; `after` sees it behind each, whose index it is told.
    fn advance(
        &self,
        stream: &mut Stream<'_>,
        step: &HostStep<'_>,
        caches: &mut [LayerCache],
        after: impl Fn(&mut Stream<'_>, usize) -> Result<()>,
    ) -> Result<()> {
        for (index, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            layer.advance(stream, step, cache)?;
            after(stream, index)?;
        }
        Ok(())
    }

    /// All layers over `hidden` `[tokens, hidden_size]`, as [`DecoderStack::forward`].
    pub(super) fn forward_on_host(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        caches: &mut [LayerCache],
    ) -> Result<Tensor> {
        let (tokens, hidden_size) = hidden.dims2()?;
        let hidden = hidden.contiguous()?;
        let begin =
            |rows: &mut [f32]| aha_nn::with_f32(&hidden, |hidden| rows.copy_from_slice(hidden));
        Workspace::with(|workspace| {
            workspace.step(batch, &self.rotary, hidden_size, begin, |step, stream| {
                self.advance(stream, step, caches, |_, _| Ok(()))?;
                Tensor::from_slice(stream.hidden()?, (tokens, hidden_size), &Device::Cpu)
            })
        })
    }
}

impl Decoder {
    /// A step; `logits` becomes `[batch.logit_rows(), vocab_size]`.
    pub(super) fn step_on_host(
        &self,
        batch: &Batch,
        cache: &mut Cache,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let (hidden_size, scales) = (self.hidden_size(), self.config.scales);
        logits.resize(batch.logit_rows().len() * self.config.vocab_size, 0.0);
        let embed = |hidden: &mut [f32]| {
            self.embed_tokens.forward_rows(batch.token_ids(), hidden)?;
            scale_rows(hidden, scales.embedding);
            batch.place_encoded_rows(hidden, hidden_size)
        };
        let add_deepstack = |stream: &mut Stream<'_>, layer| {
            if !batch.has_deepstack(hidden_size, layer) {
                return Ok(());
            }
            batch.add_deepstack_rows(stream.hidden()?, hidden_size, layer)
        };
        Workspace::with(|workspace| {
            let rotary = &self.stack.rotary;
            workspace.step(batch, rotary, hidden_size, embed, |step, stream| {
                let caches = cache.layers_mut();
                self.stack.advance(stream, step, caches, add_deepstack)?;
                if batch.logit_rows().is_empty() {
                    return Ok(());
                }
                let (rows, norm) = (batch.logit_rows(), &self.stack.norm);
                head_rows(
                    stream,
                    rows,
                    hidden_size,
                    norm,
                    scales.logits,
                    &self.lm_head,
                    logits,
                )
            })
        })
    }
}
