//! Keys of Fun-ASR-Nano's config.yaml.

use crate::encoder::EncoderBlockConfig;
use crate::error::LoadError;
use aha_media::audio::{FbankConfig, FbankExtractor, FbankWindow};
use aha_nn::mlp::Activation;
use serde::Deserialize;

/// The parts that make a recogniser; what training and timestamps need is passed over.
#[derive(Debug, Clone, Deserialize)]
pub struct FunAsrConfig {
    audio_encoder: String,
    pub(super) audio_encoder_conf: EncoderConfig,
    audio_adaptor: String,
    pub(super) audio_adaptor_conf: AdaptorConfig,
    pub(super) llm_conf: LanguageModelConfig,
    pub(super) frontend_conf: FrontEndConfig,
}

/// `audio_encoder_conf`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct EncoderConfig {
    /// Width of the residual stream.
    pub(super) output_size: usize,
    pub(super) attention_heads: usize,
    /// Width inside the MLPs.
    pub(super) linear_units: usize,
    /// Blocks before the first norm.
    pub(super) num_blocks: usize,
    /// Blocks between the norms.
    pub(super) tp_blocks: usize,
    /// Taps of the memory filters.
    pub(super) kernel_size: usize,
    /// Spelt so by the release.
    #[serde(default)]
    sanm_shfit: i64,
    #[serde(default = "yes")]
    normalize_before: bool,
}

/// `audio_adaptor_conf`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AdaptorConfig {
    #[serde(default = "one")]
    downsample_rate: usize,
    /// Only the first eighth of the rows reaches the language model.
    #[serde(default)]
    pub(super) use_low_frame_rate: bool,
    pub(super) ffn_dim: usize,
    pub(super) llm_dim: usize,
    pub(super) encoder_dim: usize,
    #[serde(default = "two")]
    pub(super) n_layer: usize,
    #[serde(default = "eight")]
    attention_heads: usize,
}

/// `llm_conf`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct LanguageModelConfig {
    /// Folder of its configuration and tokenizer, inside the checkpoint.
    pub(super) init_param_path: String,
}

/// `frontend_conf`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct FrontEndConfig {
    #[serde(default = "rate")]
    pub(super) fs: u32,
    #[serde(default = "hamming")]
    window: String,
    #[serde(default = "bins")]
    n_mels: usize,
    #[serde(default = "frame_length")]
    frame_length: f64,
    #[serde(default = "frame_shift")]
    frame_shift: f64,
    #[serde(default = "one")]
    pub(super) lfr_m: usize,
    #[serde(default = "one")]
    pub(super) lfr_n: usize,
    /// Means and deviations, inside the checkpoint.
    pub(super) cmvn_file: Option<String>,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn eight() -> usize {
    8
}

fn rate() -> u32 {
    16_000
}

fn hamming() -> String {
    "hamming".to_owned()
}

fn bins() -> usize {
    80
}

fn frame_length() -> f64 {
    25.0
}

fn frame_shift() -> f64 {
    10.0
}

/// Epsilon of the encoder's layer norms, which no key names.
pub(super) const ENCODER_NORM_EPS: f64 = 1e-5;
/// That of the adaptor's, which is another.
const ADAPTOR_NORM_EPS: f64 = 1e-12;

impl FunAsrConfig {
    /// Refuses sizes that no checkpoint has and parts that are not known here.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        for (key, found, known) in [
            (
                "audio_encoder",
                &self.audio_encoder,
                "SenseVoiceEncoderSmall",
            ),
            ("audio_adaptor", &self.audio_adaptor, "Transformer"),
        ] {
            if found != known {
                let reason = format!("`{found}` is not {known}");
                return Err(LoadError::config(key, reason));
            }
        }
        let encoder = &self.audio_encoder_conf;
        let adaptor = &self.audio_adaptor_conf;
        let front = &self.frontend_conf;
        let sizes = [
            (
                "audio_encoder_conf.output_size",
                encoder.output_size,
                1 << 16,
            ),
            (
                "audio_encoder_conf.attention_heads",
                encoder.attention_heads,
                1 << 10,
            ),
            (
                "audio_encoder_conf.linear_units",
                encoder.linear_units,
                1 << 18,
            ),
            ("audio_encoder_conf.num_blocks", encoder.num_blocks, 1 << 10),
            (
                "audio_encoder_conf.kernel_size",
                encoder.kernel_size,
                1 << 10,
            ),
            ("audio_adaptor_conf.ffn_dim", adaptor.ffn_dim, 1 << 18),
            ("audio_adaptor_conf.llm_dim", adaptor.llm_dim, 1 << 20),
            (
                "audio_adaptor_conf.attention_heads",
                adaptor.attention_heads,
                1 << 10,
            ),
            ("frontend_conf.lfr_m", front.lfr_m, 64),
            ("frontend_conf.lfr_n", front.lfr_n, 64),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        let most = 1 << 10;
        if encoder.tp_blocks > most || adaptor.n_layer > most {
            let reason = format!("there are more than {most} blocks");
            return Err(LoadError::config("audio_encoder_conf.tp_blocks", reason));
        }
        let fits = [
            (
                "audio_encoder_conf.attention_heads",
                encoder.output_size.is_multiple_of(encoder.attention_heads),
                "the heads do not divide output_size",
            ),
            (
                "audio_encoder_conf.kernel_size",
                !encoder.kernel_size.is_multiple_of(2),
                "an even filter has no centre",
            ),
            (
                "audio_encoder_conf.sanm_shfit",
                encoder.sanm_shfit == 0,
                "no released model shifts its filters, and it is not supported",
            ),
            (
                "audio_encoder_conf.normalize_before",
                encoder.normalize_before,
                "no released model has its norms behind, and it is not supported",
            ),
            (
                "audio_adaptor_conf.attention_heads",
                adaptor.llm_dim.is_multiple_of(adaptor.attention_heads) && adaptor.llm_dim >= 4,
                "the heads do not divide llm_dim",
            ),
            (
                "audio_adaptor_conf.encoder_dim",
                adaptor.encoder_dim == encoder.output_size,
                "it is not the encoder's output_size",
            ),
            (
                "audio_adaptor_conf.downsample_rate",
                adaptor.downsample_rate == 1,
                "no released model joins frames here, and it is not supported",
            ),
        ];
        for (key, fine, reason) in fits {
            if !fine {
                return Err(LoadError::config(key, reason));
            }
        }
        Ok(())
    }
}

impl FrontEndConfig {
    /// Values of a stacked frame, which the encoder takes.
    pub(super) fn width(&self) -> usize {
        self.n_mels * self.lfr_m
    }

    /// Kaldi's filter banks. The reference's own dither makes no two answers alike: there is none here.
    pub(super) fn extractor(&self) -> Result<FbankExtractor, LoadError> {
        let window = match self.window.as_str() {
            "hamming" => FbankWindow::Hamming,
            "hanning" => FbankWindow::Hanning,
            "povey" => FbankWindow::Povey,
            "rectangular" => FbankWindow::Rectangular,
            other => {
                let reason = format!("`{other}` is not hamming, hanning, povey or rectangular");
                return Err(LoadError::config("frontend_conf.window", reason));
            }
        };
        FbankExtractor::new(FbankConfig {
            sample_rate: self.fs,
            frame_length_ms: self.frame_length,
            frame_shift_ms: self.frame_shift,
            bins: self.n_mels,
            window,
            ..FbankConfig::default()
        })
        .map_err(|error| LoadError::config("frontend_conf", error.to_string()))
    }
}

impl AdaptorConfig {
    /// Sizes of a block.
    pub(super) fn block(&self) -> EncoderBlockConfig {
        EncoderBlockConfig {
            hidden_size: self.llm_dim,
            intermediate_size: self.llm_dim / 4,
            num_heads: self.attention_heads,
            norm_eps: ADAPTOR_NORM_EPS,
            activation: Activation::Relu,
        }
    }

    /// Rows of `frames` that reach the language model.
    pub(super) fn tokens(&self, frames: usize) -> usize {
        if self.use_low_frame_rate {
            frames.div_ceil(2).div_ceil(2).div_ceil(2)
        } else {
            frames
        }
    }
}
