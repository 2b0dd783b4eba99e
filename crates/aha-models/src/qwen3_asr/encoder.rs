//! The audio encoder of Qwen3-ASR: convolutions over chunks of a second, attention in windows of eight seconds.

use super::config::{AudioConfig, Chunking, LAYER_NORM_EPS, downsampled};
use crate::audio::{FeatureReader, sinusoids};
use crate::encoder::{BlockNames, EncoderBlock, Mlp, ProjectionNames, split_tokens};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_nn::conv::{Conv2d, Conv2dConfig};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

const NAMES: BlockNames = BlockNames {
    norms: ["self_attn_layer_norm", "final_layer_norm"],
    projections: ProjectionNames::Separate {
        names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        key_bias: true,
    },
    output: "self_attn.out_proj",
    mlp: ["fc1", "fc2"],
};

const HALVING: Conv2dConfig = Conv2dConfig {
    stride: 2,
    padding: 1,
    dilation: 1,
    groups: 1,
};

/// Chunks that go through the convolutions together: the values of one are 6 MB, hundreds of times those of its tokens,
/// and stay in a third-level cache between two convolutions.
const CHUNKS_AT_ONCE: usize = 2;

/// Spectrograms to embeddings of the language model.
#[derive(Debug)]
pub struct AudioEncoder {
    convolutions: [Conv2d; 3],
    conv_out: Linear,
    /// Positions within a chunk, `[chunk_tokens, d_model]`.
    positions: Tensor,
    blocks: Vec<EncoderBlock>,
    norm: LayerNorm,
    projector: Mlp,
    reader: FeatureReader,
    mel_bins: usize,
    chunking: Chunking,
}

impl AudioEncoder {
    /// Loads the encoder from `audio_tower`.
    pub fn load(
        weights: &Weights,
        config: &AudioConfig,
    ) -> std::result::Result<Self, crate::error::LoadError> {
        let AudioConfig {
            d_model,
            output_dim,
            num_mel_bins,
            downsample_hidden_size: channels,
            activation_function,
            ..
        } = *config;
        let convolution =
            |name, from| Conv2d::load(&weights.pp(name), from, channels, 3, HALVING, true);
        let chunking = config.chunking();
        let block = config.block();
        Ok(Self {
            convolutions: [
                convolution("conv2d1", 1)?,
                convolution("conv2d2", channels)?,
                convolution("conv2d3", channels)?,
            ],
            conv_out: Linear::load(
                &weights.pp("conv_out"),
                channels * downsampled(num_mel_bins),
                d_model,
                false,
            )?,
            positions: sinusoids(
                0,
                chunking.chunk_tokens,
                d_model,
                weights.dtype(),
                weights.device(),
            )?,
            blocks: (0..config.encoder_layers)
                .map(|index| {
                    EncoderBlock::load(&weights.pp(format_args!("layers.{index}")), &block, &NAMES)
                })
                .collect::<WeightsResult<_>>()?,
            norm: LayerNorm::load(&weights.pp("ln_post"), d_model, LAYER_NORM_EPS)?,
            projector: Mlp::load(
                &weights.pp("proj1"),
                &weights.pp("proj2"),
                (d_model, d_model, output_dim),
                activation_function,
            )?,
            reader: FeatureReader::new(num_mel_bins, weights),
            mel_bins: num_mel_bins,
            chunking,
        })
    }

    /// Recordings to `[tokens, output_dim]`, end to end. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        inputs: &[&EncoderInput],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (chunks, frames) = self.chunks(inputs)?;
        let mut convolved = Vec::with_capacity(chunks.len());
        for group in chunks.chunks(CHUNKS_AT_ONCE) {
            convolved.push(self.convolve(group)?);
        }
        let convolved = self.conv_out.forward(&Tensor::cat(&convolved, 0)?)?;
        visit("conv_out", &convolved);
        let mut hidden = self.pack(&convolved, &frames)?;

        let bounds = self.windows(&frames)?;
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = block.forward(&hidden, None, &bounds)?;
            if index == 0 {
                visit("layer0", &hidden);
            }
        }
        let normed = self.norm.forward(&hidden)?;
        visit("ln_post", &normed);
        self.projector.forward(&normed)
    }

    /// All recordings cut into chunks, each `mel_bins` rows of `chunk_frames` with zeros behind the last frame, and
    /// the frames of each recording.
    fn chunks(&self, inputs: &[&EncoderInput]) -> Result<(Vec<Vec<f32>>, Vec<usize>)> {
        let width = self.chunking.chunk_frames;
        let (mut chunks, mut lengths) = (Vec::new(), Vec::with_capacity(inputs.len()));
        for input in inputs {
            let (values, frames) = self.reader.spectrogram(input)?;
            for start in (0..frames).step_by(width) {
                let count = width.min(frames - start);
                let mut chunk = vec![0f32; self.mel_bins * width];
                for (row, padded) in values
                    .chunks_exact(frames)
                    .zip(chunk.chunks_exact_mut(width))
                {
                    padded[..count].copy_from_slice(&row[start..start + count]);
                }
                chunks.push(chunk);
            }
            lengths.push(frames);
        }
        Ok((chunks, lengths))
    }

    /// Chunks to `[chunks * chunk_tokens, channels * bins]`.
    fn convolve(&self, chunks: &[Vec<f32>]) -> Result<Tensor> {
        let shape = (chunks.len(), self.mel_bins, self.chunking.chunk_frames, 1);
        let mut x = self.reader.tensor(chunks.concat(), shape)?;
        for convolution in &self.convolutions {
            // The activation is exact here, whatever the blocks' is.
            x = convolution.forward_activated(&x, Activation::Gelu)?;
        }
        let (count, bins, steps, channels) = x.dims4()?;
        x.permute((0, 2, 3, 1))?
            .contiguous()?
            .reshape((count * steps, channels * bins))
    }

    /// Adds the positions and drops what the padding gave: `[tokens, d_model]`.
    fn pack(&self, convolved: &Tensor, frames: &[usize]) -> Result<Tensor> {
        let steps = self.chunking.chunk_tokens;
        let (rows, width) = convolved.dims2()?;
        let placed = convolved
            .reshape((rows / steps, steps, width))?
            .broadcast_add(&self.positions)?
            .reshape((rows, width))?;
        let mut start = 0;
        let mut kept = Vec::with_capacity(frames.len());
        for &frames in frames {
            kept.push(placed.narrow(0, start, self.chunking.tokens(frames))?);
            start += frames.div_ceil(self.chunking.chunk_frames) * steps;
        }
        Tensor::cat(&kept, 0)
    }

    /// Tokens see each other within windows counted from the start of their recording.
    fn windows(&self, frames: &[usize]) -> Result<SequenceBounds> {
        let most = self.chunking.window_tokens;
        SequenceBounds::from_lengths(frames.iter().flat_map(|&frames| {
            let tokens = self.chunking.tokens(frames);
            (0..tokens)
                .step_by(most)
                .map(move |start| most.min(tokens - start))
        }))
    }
}

impl MediaEncoder for AudioEncoder {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        split_tokens(&self.forward(inputs, |_, _| {})?, inputs)
    }
}
