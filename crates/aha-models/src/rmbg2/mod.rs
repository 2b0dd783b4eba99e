//! RMBG-2.0 and other BiRefNet checkpoints with a Swin backbone: background removal.
//!
//! Reference: the release's own `birefnet.py`; arXiv 2401.03407 (BiRefNet) and 2103.14030 (Swin). config.json has no
//! sizes, so they are those of the tensors.

mod decoder;
mod matter;
mod model;
mod sizes;
mod swin;
#[cfg(test)]
mod tests;
mod windows;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::error::LoadError;
use crate::registry::Family;
use crate::vision::PreprocessorConfig;
use aha_engine::{LoadedModel, MattingModel, Task};
use aha_media::image::{Filter, Normalization};
use aha_nn::weights::NameMap;
pub use matter::Rmbg2;
pub use model::BiRefNet;
use serde::Deserialize;
use std::sync::Arc;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "rmbg2",
    task: Task::Matte,
    architectures: &["BiRefNet"],
    model_types: &[],
    gguf_architectures: &[],
    load,
};

const PREPROCESSOR: &str = "preprocessor_config.json";

/// Side of the input where the checkpoint does not say.
const DEFAULT_SIDE: u32 = 1024;

/// Longest side of an input: memory grows with its square.
const LONGEST_SIDE: u32 = 4096;

/// ImageNet's mean and standard deviation.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Tensors of training, and those that follow from others.
const UNUSED: [&str; 8] = [
    "*.num_batches_tracked",
    "*.relative_position_index",
    "decoder.conv_ms_spvn_4.*",
    "decoder.conv_ms_spvn_3.*",
    "decoder.conv_ms_spvn_2.*",
    "decoder.gdt_convs_pred_4.*",
    "decoder.gdt_convs_pred_3.*",
    "decoder.gdt_convs_pred_2.*",
];

/// The keys of preprocessor_config.json that are this family's own.
#[derive(Debug, Default, Deserialize)]
struct InputKeys {
    size: Option<InputSize>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct InputSize {
    width: u32,
    height: u32,
}

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    Ok(LoadedModel::Matte(MattingModel {
        matter: Arc::new(network(checkpoint, options)?),
    }))
}

/// Loads the network with its preprocessing.
///
/// # Errors
/// When the checkpoint lacks tensors or says something impossible.
pub fn network(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Rmbg2, LoadError> {
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let network = BiRefNet::load(&weights)?;
    weights.finish(&UNUSED)?;
    let keys: InputKeys = checkpoint.json(PREPROCESSOR)?.unwrap_or_default();
    let size = keys.size.unwrap_or(InputSize {
        width: DEFAULT_SIDE,
        height: DEFAULT_SIDE,
    });
    let multiple = network.side_multiple();
    for (key, side) in [("size.width", size.width), ("size.height", size.height)] {
        let fits = side > 0 && side <= LONGEST_SIDE && (side as usize).is_multiple_of(multiple);
        if !fits {
            return Err(LoadError::config(
                key,
                format!(
                    "{side} pixels are no input of this network: its sides are multiples of {multiple} up to {LONGEST_SIDE}"
                ),
            ));
        }
    }
    let preprocessor = PreprocessorConfig::read(checkpoint, PREPROCESSOR)?;
    let normalization = Normalization::stepwise(
        preprocessor.rescale_factor.unwrap_or(1.0 / 255.0),
        preprocessor.image_mean.unwrap_or(MEAN),
        preprocessor.image_std.unwrap_or(STD),
    )
    .map_err(|error| LoadError::config("image_std", error.to_string()))?;
    Ok(Rmbg2 {
        network,
        input_size: (size.width, size.height),
        filter: preprocessor.filter(Filter::Bilinear)?,
        normalization,
        device: weights.device().clone(),
        dtype: weights.dtype(),
    })
}
