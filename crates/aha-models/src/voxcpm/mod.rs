//! VoxCPM-0.5B and VoxCPM1.5: text to speech without audio tokens.
//!
//! Reference: the Python package `voxcpm` 2.0.3; technical report arXiv 2509.24650. Two language models continue text
//! and patches of audio latents, a small diffusion transformer samples each patch, an autoencoder turns patches into
//! sound. Computed in the type that config.json names, not the one that the weights are stored in; the autoencoder
//! always in single precision.

pub mod audio_vae;
mod config;
pub mod diffusion;
pub mod model;
mod processor;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::tokenizer;
use aha_engine::{LoadedModel, PatchInput, SoundState, Speaker, SpeechFormat, SpeechModel, Task};
use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, CacheSpec};
use aha_nn::weights::{Catalog, NameMap, Placement, Precision, Weights};
use audio_vae::AudioVae;
use candle_core::{DType, Device, Result, Tensor};
pub use config::VoxCpmConfig;
pub use model::VoxCpm;
pub use processor::VoxCpmProcessor;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The registry's entry. config.json names no architecture in the usual way, see [`Checkpoint::architecture`].
pub const FAMILY: Family = Family {
    slug: "voxcpm",
    task: Task::Speak,
    architectures: &[],
    model_types: &["voxcpm"],
    gguf_architectures: &[],
    load,
};

/// VoxCPM1.5, which is the same model in other files: the table of releases tells them apart, a checkpoint need not.
pub const FAMILY_1_5: Family = Family {
    slug: "voxcpm1_5",
    model_types: &["voxcpm1_5"],
    ..FAMILY
};

/// Names of the autoencoder's file, the first that is there.
const AUTOENCODERS: [&str; 2] = ["audiovae.safetensors", "audiovae.pth"];

fn load(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> std::result::Result<LoadedModel, LoadError> {
    let voice = VoxCpmSpeaker::load(checkpoint, options)?;
    let processor = VoxCpmProcessor::new(tokenizer(checkpoint)?)?;
    Ok(LoadedModel::Speak(SpeechModel {
        fingerprint: fingerprint(checkpoint.path())?,
        speaker: Arc::new(voice),
        processor: Arc::new(processor),
    }))
}

/// The model as the engine sees it.
#[derive(Debug)]
pub struct VoxCpmSpeaker {
    model: VoxCpm,
    autoencoder: AudioVae,
    format: SpeechFormat,
    max_length: usize,
}

impl VoxCpmSpeaker {
    /// Loads both files of a release.
    pub fn load(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> std::result::Result<Self, LoadError> {
        let config: VoxCpmConfig = checkpoint.config_keys()?;
        config.validate()?;
        let weights = checkpoint.weights(NameMap::identity(), options)?;
        let (placement, explanation) = Placement::resolve(
            options.dtype,
            &options.device,
            Some(config.compute_type()?),
            options.quant,
        );
        tracing::info!("{explanation}");
        let model = VoxCpm::load(&weights.with_placement(placement), &config)?;
        weights.finish(&["*.rotary_emb.inv_freq"])?;

        let weights = autoencoder_weights(checkpoint.path(), &options.device)?;
        let audio_vae = config.audio_vae();
        let autoencoder = AudioVae::load(&weights, &audio_vae)?;
        weights.finish(&["encoder.fc_logvar*"])?;
        Ok(Self {
            model,
            autoencoder,
            format: SpeechFormat {
                sample_rate: audio_vae.sample_rate,
                patch_samples: config.patch_size * audio_vae.hop(),
                patch_size: config.patch_size,
                latent_dim: config.feat_dim,
            },
            max_length: config.max_length,
        })
    }

    /// The language models and the diffusion transformer.
    pub fn model(&self) -> &VoxCpm {
        &self.model
    }

    /// The autoencoder.
    pub fn autoencoder(&self) -> &AudioVae {
        &self.autoencoder
    }
}

/// The autoencoder's file.
fn autoencoder_file(folder: &Path) -> std::result::Result<PathBuf, LoadError> {
    AUTOENCODERS
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| LoadError::NotACheckpoint {
            path: folder.to_owned(),
            reason: format!("there is neither {}", AUTOENCODERS.join(" nor ")),
        })
}

/// The autoencoder's tensors, in single precision.
fn autoencoder_weights(folder: &Path, device: &Device) -> std::result::Result<Weights, LoadError> {
    let placement = Placement {
        device: device.clone(),
        dtype: DType::F32,
        weights: Precision::F32,
    };
    let catalog = Catalog::open(&autoencoder_file(folder)?)?;
    Ok(Weights::from_catalog(
        catalog,
        NameMap::identity(),
        placement,
    ))
}

/// Tells apart what would encode a voice in other ways: the configuration, and the autoencoder's file by its length,
/// its beginning and its end.
fn fingerprint(folder: &Path) -> std::result::Result<String, LoadError> {
    const PIECE: u64 = 64 << 10;
    let path = autoencoder_file(folder)?;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut content = std::fs::read(folder.join("config.json"))?;
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        content.extend(length.to_le_bytes());
        (&file).take(PIECE).read_to_end(&mut content)?;
        file.seek(SeekFrom::Start(length.saturating_sub(PIECE)))?;
        file.take(PIECE).read_to_end(&mut content)?;
        Ok(content)
    };
    let content = read().map_err(|source| LoadError::Io {
        path: path.clone(),
        source,
    })?;
    // FNV-1a: files of voices outlive versions of the standard library's hashes.
    let hash = content
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Ok(format!("voxcpm-{hash:016x}"))
}

impl Speaker for VoxCpmSpeaker {
    fn format(&self) -> SpeechFormat {
        self.format
    }

    fn cache_spec(&self) -> CacheSpec {
        self.model.cache_spec()
    }

    fn context_length(&self) -> usize {
        self.max_length
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn encode(&self, samples: &[f32]) -> Result<Tensor> {
        let SpeechFormat {
            patch_samples,
            patch_size,
            latent_dim,
            ..
        } = self.format;
        // Silence comes first, so that the speech goes on where the reference ends.
        let patches = samples.len().div_ceil(patch_samples);
        let mut padded = vec![0f32; patches * patch_samples - samples.len()];
        padded.extend_from_slice(samples);
        let padded = Tensor::from_vec(padded, (patches * patch_samples, 1), self.model.device())?;
        self.autoencoder
            .encode(&padded)?
            .reshape((patches, patch_size, latent_dim))?
            .to_dtype(self.model.dtype())
    }

    fn forward(&self, batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        self.model.forward(batch, cache)
    }

    fn sample(&self, inputs: &[PatchInput]) -> Result<Vec<Tensor>> {
        self.model.sample(inputs)
    }

    fn stops(&self, conditions: &Tensor) -> Result<Vec<bool>> {
        self.model.stops(conditions)
    }

    fn decode(&self, latents: &Tensor, state: &mut SoundState) -> Result<Vec<f32>> {
        self.autoencoder
            .decode(&latents.to_dtype(DType::F32)?, &mut state.0)?
            .flatten_all()?
            .to_vec1()
    }
}
