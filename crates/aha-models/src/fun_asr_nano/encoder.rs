//! Encoder and adaptor: filter banks to embeddings of the language model.

use super::config::{AdaptorConfig, FunAsrConfig};
use super::sanm::SanmEncoder;
use crate::audio::FeatureReader;
use crate::encoder::{BlockNames, EncoderBlock, Mlp, ProjectionNames};
use crate::error::LoadError;
use aha_engine::{EncoderInput, MediaEncoder};
use aha_nn::mlp::Activation;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

const ADAPTOR_NAMES: BlockNames = BlockNames {
    norms: ["norm1", "norm2"],
    projections: ProjectionNames::Separate {
        names: [
            "self_attn.linear_q",
            "self_attn.linear_k",
            "self_attn.linear_v",
        ],
        key_bias: true,
    },
    output: "self_attn.linear_out",
    mlp: ["feed_forward.w_1", "feed_forward.w_2"],
};

/// The encoder of SenseVoice with a transformer that speaks to the language model.
#[derive(Debug)]
pub struct AudioEncoder {
    encoder: SanmEncoder,
    linear: Mlp,
    blocks: Vec<EncoderBlock>,
    adaptor: AdaptorConfig,
    reader: FeatureReader,
}

impl AudioEncoder {
    /// Loads `audio_encoder` and `audio_adaptor`.
    pub fn load(weights: &Weights, config: &FunAsrConfig) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let width = config.frontend_conf.width();
        let adaptor = config.audio_adaptor_conf.clone();
        let block = adaptor.block();
        let own = weights.pp("audio_adaptor");
        Ok(Self {
            encoder: SanmEncoder::load(
                &weights.pp("audio_encoder"),
                width,
                &config.audio_encoder_conf,
            )?,
            linear: Mlp::load(
                &own.pp("linear1"),
                &own.pp("linear2"),
                (adaptor.encoder_dim, adaptor.ffn_dim, adaptor.llm_dim),
                Activation::Relu,
            )?,
            blocks: (0..adaptor.n_layer)
                .map(|index| {
                    let weights = own.pp(format_args!("blocks.{index}"));
                    EncoderBlock::load(&weights, &block, &ADAPTOR_NAMES)
                })
                .collect::<WeightsResult<_>>()?,
            adaptor,
            reader: FeatureReader::new(width, weights),
        })
    }

    /// Recordings to the rows that reach the language model, one tensor each. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        inputs: &[&EncoderInput],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>> {
        let (features, frames) = self.reader.frames(inputs)?;
        let bounds = SequenceBounds::from_lengths(frames)?;
        let encoded = self.encoder.forward(&features, &bounds, &mut visit)?;
        let mut hidden = self.linear.forward(&encoded)?;
        visit("linear2", &hidden);
        for block in &self.blocks {
            hidden = block.forward(&hidden, None, &bounds)?;
        }
        visit("adaptor", &hidden);
        bounds
            .ranges()
            .map(|range| {
                let rows = self.adaptor.tokens(range.len());
                // A copy: who keeps it does not keep the memory of all.
                hidden.narrow(0, range.start, rows)?.copy()
            })
            .collect()
    }
}

impl MediaEncoder for AudioEncoder {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        self.forward(inputs, |_, _| {})
    }
}
