//! preprocessor_config.json and its relatives.

use crate::checkpoint::{Checkpoint, Format};
use crate::error::LoadError;
use aha_media::MediaError;
use aha_media::image::{Filter, Normalization, PatchLayout, PatchOrder};
use serde::Deserialize;

/// Mean of red, green and blue that CLIP was trained with, and many towers after it.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of the same.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Keys of a picture's or clip's preprocessing; families supply what a file leaves out.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PreprocessorConfig {
    /// Pixel areas, or sides, by names that differ from family to family.
    #[serde(default)]
    pub size: Option<SizeKeys>,
    /// Fewest pixels.
    pub min_pixels: Option<u64>,
    /// Most pixels.
    pub max_pixels: Option<u64>,
    /// Side of a patch.
    pub patch_size: Option<u32>,
    /// Frames of a patch.
    pub temporal_patch_size: Option<u32>,
    /// Patches that become one token, along a side.
    pub merge_size: Option<u32>,
    /// Mean of each channel, of values in 0..1.
    pub image_mean: Option<[f64; 3]>,
    /// Standard deviation of each channel.
    pub image_std: Option<[f64; 3]>,
    /// Factor that brings samples to 0..1.
    pub rescale_factor: Option<f64>,
    /// Pillow's number of the resampling filter.
    pub resample: Option<u64>,
}

/// Keys of `size`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SizeKeys {
    /// Fewest pixels, in families that measure areas.
    pub shortest_edge: Option<u64>,
    /// Most pixels, in families that measure areas.
    pub longest_edge: Option<u64>,
    /// The same by their plain names.
    pub min_pixels: Option<u64>,
    /// See `min_pixels`.
    pub max_pixels: Option<u64>,
}

impl PreprocessorConfig {
    /// Reads `file` of a checkpoint folder; what is not there is left to defaults.
    pub fn read(checkpoint: &Checkpoint, file: &str) -> Result<Self, LoadError> {
        match checkpoint.format() {
            Format::Folder { .. } => Ok(checkpoint.json(file)?.unwrap_or_default()),
            Format::Gguf(_) => Ok(Self::default()),
        }
    }

    /// Fewest and most pixels; `min_pixels` and `max_pixels` count before `size`.
    pub fn pixel_area(&self, default: (u64, u64)) -> (u64, u64) {
        let size = self.size.clone().unwrap_or_default();
        let least = self.min_pixels.or(size.shortest_edge).or(size.min_pixels);
        let most = self.max_pixels.or(size.longest_edge).or(size.max_pixels);
        (least.unwrap_or(default.0), most.unwrap_or(default.1))
    }

    /// How pictures are cut into patches.
    pub fn patch_order(&self, patch_size: u32, layout: PatchLayout) -> PatchOrder {
        PatchOrder {
            patch_size: self.patch_size.unwrap_or(patch_size),
            merge_size: self.merge_size.unwrap_or(2),
            temporal_patch_size: self.temporal_patch_size.unwrap_or(2),
            layout,
        }
    }

    /// How samples become values, computed as processors on tensors do.
    pub fn normalization(&self, mean: [f64; 3], std: [f64; 3]) -> Result<Normalization, LoadError> {
        self.normalized_by(Normalization::fused, mean, std)
    }

    /// How samples become values, computed as processors on Pillow's pictures do.
    pub fn stepwise_normalization(
        &self,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> Result<Normalization, LoadError> {
        self.normalized_by(Normalization::stepwise, mean, std)
    }

    fn normalized_by(
        &self,
        rule: fn(f64, [f64; 3], [f64; 3]) -> Result<Normalization, MediaError>,
        mean: [f64; 3],
        std: [f64; 3],
    ) -> Result<Normalization, LoadError> {
        rule(
            self.rescale_factor.unwrap_or(1.0 / 255.0),
            self.image_mean.unwrap_or(mean),
            self.image_std.unwrap_or(std),
        )
        .map_err(|error| LoadError::config("image_std", error.to_string()))
    }

    /// The resampling filter.
    pub fn filter(&self, default: Filter) -> Result<Filter, LoadError> {
        match self.resample {
            None => Ok(default),
            Some(number) => Filter::from_pillow_number(number).ok_or_else(|| {
                LoadError::config("resample", format!("{number} is no filter of Pillow's"))
            }),
        }
    }
}

/// Refuses sizes of `vision_config` that no checkpoint has: of each key the value and the most that it may be.
pub fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<(), LoadError> {
    for &(key, value, most) in sizes {
        if value == 0 || value > most {
            let reason = format!("{value} is not between 1 and {most}");
            return Err(LoadError::config(format!("vision_config.{key}"), reason));
        }
    }
    Ok(())
}
