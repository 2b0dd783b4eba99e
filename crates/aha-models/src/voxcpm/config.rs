//! Keys of VoxCPM's config.json.

use super::audio_vae::AudioVaeConfig;
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use crate::minicpm4::{MiniCpm4Config, TransformerSize};
use aha_nn::weights::StoredType;
use serde::Deserialize;

/// `VoxCPMConfig`: VoxCPM-0.5B and VoxCPM1.5 differ in numbers only.
#[derive(Debug, Clone, Deserialize)]
pub struct VoxCpmConfig {
    /// Absent from the first release.
    #[serde(default = "voxcpm")]
    architecture: String,
    lm_config: MiniCpm4Config,
    /// Latents a patch.
    pub patch_size: usize,
    /// Values a latent.
    pub feat_dim: usize,
    residual_lm_num_layers: usize,
    /// Width of the quantised bottleneck.
    #[serde(rename = "scalar_quantization_latent_dim")]
    pub quantized_dim: usize,
    /// Steps on either side of zero.
    #[serde(rename = "scalar_quantization_scale")]
    pub quantization_scale: usize,
    encoder_config: TransformerSize,
    dit_config: TransformerSize,
    /// The release of 0.5B leaves it out.
    audio_vae_config: Option<AudioVaeConfig>,
    /// Positions of an utterance.
    pub max_length: usize,
    #[serde(default = "bfloat16")]
    dtype: String,
    /// A later option of the reference's sampler, which no release has on.
    #[serde(default)]
    dit_mean_mode: bool,
}

fn voxcpm() -> String {
    "voxcpm".to_owned()
}

fn bfloat16() -> String {
    "bfloat16".to_owned()
}

impl VoxCpmConfig {
    /// Refuses what no release has.
    pub fn validate(&self) -> Result<(), LoadError> {
        if self.architecture != "voxcpm" {
            let reason = format!("`{}` is not supported; voxcpm is", self.architecture);
            return Err(LoadError::config("architecture", reason));
        }
        if self.dit_mean_mode {
            return Err(LoadError::config("dit_mean_mode", "true is not supported"));
        }
        let bounded = [
            ("patch_size", self.patch_size, 1 << 10),
            ("feat_dim", self.feat_dim, 1 << 16),
            (
                "scalar_quantization_latent_dim",
                self.quantized_dim,
                1 << 20,
            ),
            (
                "scalar_quantization_scale",
                self.quantization_scale,
                1 << 20,
            ),
            ("max_length", self.max_length, 1 << 24),
        ];
        for (key, value, most) in bounded {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        // Half of the width are sines, whose frequencies span from the first to the last.
        if self.dit_config.hidden_size < 4 || !self.dit_config.hidden_size.is_multiple_of(2) {
            let reason = format!(
                "{} has no room for the sines and cosines of a time",
                self.dit_config.hidden_size
            );
            return Err(LoadError::config("dit_config.hidden_dim", reason));
        }
        let autoencoder = self.audio_vae();
        autoencoder.validate()?;
        if autoencoder.latent_dim != self.feat_dim {
            let reason = format!(
                "{} is not the feat_dim of {}",
                autoencoder.latent_dim, self.feat_dim
            );
            return Err(LoadError::config("audio_vae_config.latent_dim", reason));
        }
        Ok(())
    }

    /// The autoencoder of sound.
    pub fn audio_vae(&self) -> AudioVaeConfig {
        self.audio_vae_config.clone().unwrap_or_default()
    }

    /// The type to compute in, as far as the configuration decides it.
    pub fn compute_type(&self) -> Result<StoredType, LoadError> {
        match self.dtype.as_str() {
            "bfloat16" => Ok(StoredType::Bf16),
            "float16" => Ok(StoredType::F16),
            "float32" => Ok(StoredType::F32),
            other => {
                let reason = format!("`{other}` is none of bfloat16, float16, float32");
                Err(LoadError::config("dtype", reason))
            }
        }
    }

    /// The language model of text and meaning.
    pub fn base_lm(&self) -> Result<DecoderConfig, LoadError> {
        self.lm_config.decoder()
    }

    /// The language model of what the quantisation leaves out.
    pub fn residual_lm(&self) -> Result<DecoderConfig, LoadError> {
        self.lm_config
            .with_layers(self.residual_lm_num_layers)
            .decoder()
    }

    /// The encoder of a patch.
    pub fn local_encoder(&self) -> Result<DecoderConfig, LoadError> {
        self.lm_config.resized(&self.encoder_config).decoder()
    }

    /// The diffusion transformer of a patch.
    pub fn local_dit(&self) -> Result<DecoderConfig, LoadError> {
        self.lm_config.resized(&self.dit_config).decoder()
    }
}
