//! Keys of LFM2-VL's config.json besides the language model's, and of its picture settings.

use crate::checkpoint::Checkpoint;
use crate::error::LoadError;
use crate::vision::{PreprocessorConfig, VisionBlockConfig};
use aha_nn::mlp::Activation;
use serde::Deserialize;
use serde_json::{Map, Value};

/// `Lfm2VlForConditionalGeneration`; keys that releases leave out have the reference's defaults.
#[derive(Debug, Clone, Deserialize)]
pub struct Lfm2VlConfig {
    #[serde(default)]
    pub(super) vision_config: VisionConfig,
    image_token_id: Option<u32>,
    /// The first releases' name for the same.
    image_token_index: Option<u32>,
    #[serde(default = "two")]
    pub(super) downsample_factor: usize,
    #[serde(default = "default_projector")]
    pub(super) projector_hidden_size: usize,
    #[serde(default = "gelu")]
    pub(super) projector_hidden_act: Activation,
    #[serde(default = "yes")]
    pub(super) projector_bias: bool,
    #[serde(default = "yes")]
    pub(super) projector_use_layernorm: bool,
}

fn two() -> usize {
    2
}

fn default_projector() -> usize {
    2560
}

fn gelu() -> Activation {
    Activation::Gelu
}

fn yes() -> bool {
    true
}

/// Id of `<image>` where no key names it.
const IMAGE_TOKEN: u32 = 396;

impl Lfm2VlConfig {
    /// Id of the token whose embeddings the tower gives.
    pub(super) fn image_token_id(&self) -> u32 {
        self.image_token_id
            .or(self.image_token_index)
            .unwrap_or(IMAGE_TOKEN)
    }

    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        self.vision_config.validate()?;
        for (key, value, most) in [
            ("downsample_factor", self.downsample_factor, 16),
            ("projector_hidden_size", self.projector_hidden_size, 1 << 20),
        ] {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        Ok(())
    }
}

/// The vision tower, a SigLIP 2 that takes pictures of any shape.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    /// Entries of the table of positions.
    pub(super) num_patches: usize,
    pub(super) patch_size: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
}

impl Default for VisionConfig {
    /// The reference's defaults.
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            num_patches: 256,
            patch_size: 16,
            hidden_act: Activation::GeluPytorchTanh,
            layer_norm_eps: 1e-6,
        }
    }
}

impl VisionConfig {
    fn validate(&self) -> Result<(), LoadError> {
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("num_patches", self.num_patches, 1 << 20),
            ("patch_size", self.patch_size, 1 << 10),
        ];
        let wrong = |key: &str, reason: String| {
            Err(LoadError::config(format!("vision_config.{key}"), reason))
        };
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not between 1 and {most}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let reason = format!(
                "{} values do not divide into {} heads",
                self.hidden_size, self.num_attention_heads
            );
            return wrong("num_attention_heads", reason);
        }
        if self.num_patches.isqrt().pow(2) != self.num_patches {
            return wrong("num_patches", format!("{} is no square", self.num_patches));
        }
        if self.num_channels != 3 {
            return wrong("num_channels", "pictures have three".to_owned());
        }
        Ok(())
    }

    /// Sizes of a layer.
    pub(super) fn block(&self) -> VisionBlockConfig {
        VisionBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_attention_heads,
            norm_eps: self.layer_norm_eps,
            activation: self.hidden_act,
        }
    }
}

/// How pictures are sized, cut into tiles and marked.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(super) struct ImageSettings {
    pub(super) do_image_splitting: bool,
    pub(super) use_thumbnail: bool,
    pub(super) use_image_special_tokens: bool,
    pub(super) tile_size: u32,
    pub(super) min_tiles: u32,
    pub(super) max_tiles: u32,
    pub(super) min_image_tokens: u64,
    pub(super) max_image_tokens: u64,
    pub(super) max_pixels_tolerance: f64,
    pub(super) encoder_patch_size: Option<u32>,
    pub(super) downsample_factor: u32,
    #[serde(flatten)]
    pub(super) pixels: PreprocessorConfig,
}

impl Default for ImageSettings {
    /// The reference's defaults.
    fn default() -> Self {
        Self {
            do_image_splitting: true,
            use_thumbnail: true,
            use_image_special_tokens: true,
            tile_size: 512,
            min_tiles: 2,
            max_tiles: 10,
            min_image_tokens: 64,
            max_image_tokens: 256,
            max_pixels_tolerance: 2.0,
            encoder_patch_size: None,
            downsample_factor: 2,
            pixels: PreprocessorConfig::default(),
        }
    }
}

impl ImageSettings {
    /// Reads the settings where releases keep them, the latest layout first: in `image_processor` of
    /// processor_config.json; in preprocessor_config.json; flat in processor_config.json and config.json, beside a
    /// preprocessor_config.json that knows no tiles. What one place leaves out the next may say.
    pub(super) fn read(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        type Keys = Map<String, Value>;
        let processor: Keys = checkpoint
            .json("processor_config.json")?
            .unwrap_or_default();
        let own: Keys = checkpoint
            .json("preprocessor_config.json")?
            .unwrap_or_default();
        let config: Keys = checkpoint.config_keys()?;
        let nested = processor.get("image_processor").and_then(Value::as_object);
        let places = [nested, Some(&own), Some(&processor), Some(&config)];
        let mut merged = Keys::new();
        for (key, value) in places.into_iter().flatten().flatten() {
            if !value.is_null() && !merged.contains_key(key) {
                merged.insert(key.clone(), value.clone());
            }
        }
        let path = checkpoint.path().join("processor_config.json");
        let settings: Self = crate::checkpoint::parse(&Value::Object(merged), &path)?;
        settings.validate()?;
        Ok(settings)
    }

    fn validate(&self) -> Result<(), LoadError> {
        const MOST_TOKENS: u64 = 1 << 16;
        let counts = [
            ("tile_size", u64::from(self.tile_size), 1 << 13),
            ("min_tiles", u64::from(self.min_tiles), 1 << 10),
            ("max_tiles", u64::from(self.max_tiles), 1 << 10),
            ("min_image_tokens", self.min_image_tokens, MOST_TOKENS),
            ("max_image_tokens", self.max_image_tokens, MOST_TOKENS),
            ("downsample_factor", self.downsample_factor.into(), 16),
        ];
        for (key, value, most) in counts {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        if self.min_tiles > self.max_tiles {
            let reason = format!("it is more than max_tiles ({})", self.max_tiles);
            return Err(LoadError::config("min_tiles", reason));
        }
        if !(self.max_pixels_tolerance.is_finite() && self.max_pixels_tolerance > 0.0) {
            let reason = format!("{} is not a positive number", self.max_pixels_tolerance);
            return Err(LoadError::config("max_pixels_tolerance", reason));
        }
        Ok(())
    }
}
