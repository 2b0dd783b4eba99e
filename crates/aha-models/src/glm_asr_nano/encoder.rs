//! The audio encoder of GLM-ASR: Whisper's with rotary positions over half of each head.

use super::config::{GlmAsrConfig, LAYER_NORM_EPS, MERGED};
use crate::audio::FeatureReader;
use crate::encoder::{BlockNames, EncoderBlock, Mlp, ProjectionNames};
use crate::error::LoadError;
use aha_engine::{EncoderInput, MediaEncoder};
use aha_nn::conv::{Conv1d, Conv1dConfig};
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::rope::Rotation;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

const NAMES: BlockNames = BlockNames {
    norms: ["input_layernorm", "post_attention_layernorm"],
    projections: ProjectionNames::Separate {
        names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        key_bias: false,
    },
    output: "self_attn.o_proj",
    mlp: ["mlp.fc1", "mlp.fc2"],
};

/// Windows of 30 s to embeddings of the language model.
#[derive(Debug)]
pub struct AudioEncoder {
    convolutions: [Conv1d; 2],
    blocks: Vec<EncoderBlock>,
    norm: LayerNorm,
    projector: Mlp,
    /// Rotary frequencies.
    inv_freq: Vec<f32>,
    reader: FeatureReader,
}

impl AudioEncoder {
    /// Loads `audio_tower` and `multi_modal_projector`; `output_size` is the language model's width.
    pub fn load(
        weights: &Weights,
        config: &GlmAsrConfig,
        output_size: usize,
    ) -> std::result::Result<Self, LoadError> {
        let audio = &config.audio_config;
        audio.validate()?;
        let (hidden, block) = (audio.hidden_size, audio.block());
        let tower = weights.pp("audio_tower");
        let projector = weights.pp("multi_modal_projector");
        let convolution = |name, from, stride| {
            let config = Conv1dConfig {
                stride,
                padding: 1,
                ..Conv1dConfig::default()
            };
            Conv1d::load(&tower.pp(name), from, hidden, 3, config, true)
        };
        let rotary_dim = audio.rotary_dim();
        let theta = audio.rope_theta();
        Ok(Self {
            convolutions: [
                convolution("conv1", audio.num_mel_bins, 1)?,
                convolution("conv2", hidden, 2)?,
            ],
            blocks: (0..audio.num_hidden_layers)
                .map(|index| {
                    EncoderBlock::load(&tower.pp(format_args!("layers.{index}")), &block, &NAMES)
                })
                .collect::<WeightsResult<_>>()?,
            norm: LayerNorm::load(&tower.pp("norm"), hidden, LAYER_NORM_EPS)?,
            projector: Mlp::load(
                &projector.pp("linear_1"),
                &projector.pp("linear_2"),
                (MERGED * hidden, 2 * output_size, output_size),
                config.projector_hidden_act,
            )?,
            inv_freq: (0..rotary_dim / 2)
                .map(|pair| theta.powf(-((2 * pair) as f64) / rotary_dim as f64) as f32)
                .collect(),
            reader: FeatureReader::new(audio.num_mel_bins, weights),
        })
    }

    /// Windows to the embeddings of the tokens that hold sound, one tensor each. `visit` sees the stages by their
    /// names.
    pub fn forward(
        &self,
        inputs: &[&EncoderInput],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let windows = inputs
            .iter()
            .map(|input| self.convolve(input))
            .collect::<Result<Vec<_>>>()?;
        // The padding of a short recording is heard, too: nothing masks it.
        let lengths = windows.iter().map(|window| window.dim(0));
        let bounds = SequenceBounds::from_lengths(lengths.collect::<Result<Vec<_>>>()?)?;
        let rotation = self.rotation(&bounds)?;
        let mut hidden = Tensor::cat(&windows, 0)?;
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = block.forward(&hidden, Some(&rotation), &bounds)?;
            if index == 0 {
                visit("layer0", &hidden);
            }
        }
        let normed = self.norm.forward(&hidden)?;
        visit("norm", &normed);
        let width = normed.dim(1)?;
        inputs
            .iter()
            .zip(bounds.ranges())
            .map(|(input, range)| {
                let heard = normed.narrow(0, range.start, MERGED * input.num_tokens)?;
                let merged = heard.reshape((input.num_tokens, MERGED * width))?;
                self.projector.forward(&merged)
            })
            .collect()
    }

    /// One window to `[frames / 2, hidden_size]`.
    fn convolve(&self, input: &EncoderInput) -> Result<Tensor> {
        let (values, frames) = self.reader.spectrogram(input)?;
        let shape = (values.len() / frames.max(1), frames);
        let mut x = self.reader.tensor(values.to_vec(), shape)?.t()?;
        for convolution in &self.convolutions {
            // The activation is exact here, whatever the blocks' is.
            x = Activation::Gelu.forward(&convolution.forward_rows(&x)?)?;
        }
        Ok(x)
    }

    /// Rotation by the positions within each window.
    fn rotation(&self, bounds: &SequenceBounds) -> Result<Rotation> {
        let angles: Vec<f32> = bounds
            .positions()
            .into_iter()
            .flat_map(|position| {
                let turn = move |inv_freq: &f32| position as f32 * inv_freq;
                self.inv_freq.iter().map(turn)
            })
            .collect();
        let (dtype, device) = (self.reader.dtype(), self.reader.device());
        Rotation::from_angles(&angles, self.inv_freq.len(), dtype, device)
    }
}

impl MediaEncoder for AudioEncoder {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        self.forward(inputs, |_, _| {})
    }
}
