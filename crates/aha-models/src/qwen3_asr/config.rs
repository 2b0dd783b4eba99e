//! Keys of Qwen3-ASR's config.json.

use crate::encoder::EncoderBlockConfig;
use crate::error::LoadError;
use crate::qwen3::Qwen3Config;
use aha_nn::mlp::Activation;
use serde::Deserialize;

/// The whole file: everything but the languages is one level down.
#[derive(Debug, Clone, Deserialize)]
pub struct Qwen3AsrConfig {
    pub(super) thinker_config: ThinkerConfig,
    /// Names of the languages that a request may choose.
    #[serde(default)]
    pub(super) support_languages: Vec<String>,
}

/// `thinker_config`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ThinkerConfig {
    #[serde(default)]
    model_type: String,
    pub(super) audio_config: AudioConfig,
    pub(super) text_config: Qwen3Config,
    pub(super) audio_token_id: u32,
}

/// `audio_config`: the encoder.
#[derive(Debug, Clone, Deserialize)]
pub struct AudioConfig {
    /// Width of the residual stream.
    pub(super) d_model: usize,
    /// Blocks.
    pub(super) encoder_layers: usize,
    encoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    /// Width of the language model.
    pub(super) output_dim: usize,
    #[serde(default = "mel_bins")]
    pub(super) num_mel_bins: usize,
    /// Channels of the convolutions.
    pub(super) downsample_hidden_size: usize,
    /// Half the frames of a chunk.
    n_window: usize,
    /// Frames of an attention window.
    n_window_infer: usize,
    #[serde(default = "gelu")]
    pub(super) activation_function: Activation,
    #[serde(default)]
    scale_embedding: bool,
}

fn mel_bins() -> usize {
    128
}

fn gelu() -> Activation {
    Activation::Gelu
}

/// Epsilon of the layer norms, which no key names.
pub(super) const LAYER_NORM_EPS: f64 = 1e-5;

/// Length of an axis behind the three convolutions, each of which halves it, rounded up.
pub(super) fn downsampled(length: usize) -> usize {
    length.div_ceil(2).div_ceil(2).div_ceil(2)
}

/// How frames become tokens: chunks go through the convolutions one by one, windows of chunks through attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunking {
    /// Frames of a chunk.
    pub(super) chunk_frames: usize,
    /// Tokens of a full chunk.
    pub(super) chunk_tokens: usize,
    /// Tokens that see each other.
    pub(super) window_tokens: usize,
}

impl Chunking {
    /// Frames of a window.
    pub(super) fn window_frames(&self) -> usize {
        self.window_tokens / self.chunk_tokens * self.chunk_frames
    }

    /// Tokens of a recording.
    pub(super) fn tokens(&self, frames: usize) -> usize {
        frames / self.chunk_frames * self.chunk_tokens + downsampled(frames % self.chunk_frames)
    }
}

impl Qwen3AsrConfig {
    /// Refuses what is no recogniser.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        if self.thinker_config.model_type == "qwen3_forced_aligner" {
            return Err(LoadError::config(
                "thinker_config.model_type",
                "a forced aligner finds times of words and writes none: take Qwen3-ASR",
            ));
        }
        self.thinker_config.audio_config.validate()
    }
}

impl AudioConfig {
    fn validate(&self) -> Result<(), LoadError> {
        let sizes = [
            ("d_model", self.d_model, 1 << 16),
            ("encoder_layers", self.encoder_layers, 1 << 10),
            (
                "encoder_attention_heads",
                self.encoder_attention_heads,
                1 << 10,
            ),
            ("encoder_ffn_dim", self.encoder_ffn_dim, 1 << 18),
            ("output_dim", self.output_dim, 1 << 20),
            ("num_mel_bins", self.num_mel_bins, 1 << 10),
            (
                "downsample_hidden_size",
                self.downsample_hidden_size,
                1 << 14,
            ),
            ("n_window", self.n_window, 1 << 12),
            ("n_window_infer", self.n_window_infer, 1 << 20),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(format!("audio_config.{key}"), reason));
            }
        }
        let wrong = |key: &str, reason: String| {
            Err(LoadError::config(format!("audio_config.{key}"), reason))
        };
        if !self.d_model.is_multiple_of(self.encoder_attention_heads)
            || !self.d_model.is_multiple_of(2)
        {
            return wrong(
                "encoder_attention_heads",
                format!("they do not divide the {} of d_model", self.d_model),
            );
        }
        if self.n_window_infer < 2 * self.n_window {
            return wrong(
                "n_window_infer",
                format!(
                    "a window of {} frames is shorter than a chunk of {}",
                    self.n_window_infer,
                    2 * self.n_window
                ),
            );
        }
        if self.scale_embedding {
            return wrong(
                "scale_embedding",
                "no released model uses it, and it is not supported".to_owned(),
            );
        }
        Ok(())
    }

    /// How frames become tokens.
    pub(super) fn chunking(&self) -> Chunking {
        let chunk_frames = 2 * self.n_window;
        let chunk_tokens = downsampled(chunk_frames);
        Chunking {
            chunk_frames,
            chunk_tokens,
            window_tokens: chunk_tokens * (self.n_window_infer / chunk_frames),
        }
    }

    /// Sizes of a block.
    pub(super) fn block(&self) -> EncoderBlockConfig {
        EncoderBlockConfig {
            hidden_size: self.d_model,
            intermediate_size: self.encoder_ffn_dim,
            num_heads: self.encoder_attention_heads,
            norm_eps: LAYER_NORM_EPS,
            activation: self.activation_function,
        }
    }
}
