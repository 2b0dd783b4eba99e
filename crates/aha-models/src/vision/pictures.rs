//! Pictures on their way into models that take them whole, at a size near their own.

use super::mrope::mrope_positions;
use super::preprocessor::PreprocessorConfig;
use crate::error::LoadError;
use crate::text::token_text;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    ContentHash, EncoderContent, EncoderInput, EngineError, Media, MediaContent, MediaKind,
    MediaProcessor, MediaSpan, PixelLimits, ProcessedMedia,
};
use aha_media::MediaError;
use aha_media::image::{
    DecodedImage, Filter, Image, PatchSizing, Resampler, ShortSides, resize, smart_resize,
};
use aha_nn::batch::AxisPositions;

/// What shows through transparent pictures.
const PAPER: [u8; 3] = [255; 3];

/// The model's areas of pictures, fewest and most pixels, moved by what a request asks.
pub(super) fn pixels_within((least, most): (u64, u64), limits: PixelLimits) -> (u64, u64) {
    let most = limits.max_pixels.unwrap_or(most);
    (limits.min_pixels.unwrap_or(least).min(most), most)
}

/// How a family sizes pictures: to whole merged cells of patches, as Pillow does it.
#[derive(Debug, Clone)]
pub struct PictureSizing {
    patch_size: u32,
    merge_size: u32,
    filter: Filter,
    pixels: (u64, u64),
    short_sides: ShortSides,
    frames: u32,
}

impl PictureSizing {
    /// From the keys of preprocessor_config.json; side of a patch, areas and filter are what the family has where they
    /// are left out.
    pub fn new(
        config: &PreprocessorConfig,
        patch_size: u32,
        pixels: (u64, u64),
        filter: Filter,
    ) -> Result<Self, LoadError> {
        let sizing = Self {
            patch_size: config.patch_size.unwrap_or(patch_size),
            merge_size: config.merge_size.unwrap_or(2),
            filter: config.filter(filter)?,
            pixels: config.pixel_area(pixels),
            short_sides: ShortSides::Keep,
            frames: 1,
        };
        let sides = [
            ("patch_size", sizing.patch_size, 1 << 10),
            ("merge_size", sizing.merge_size, 16),
        ];
        for (key, value, most) in sides {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        Ok(sizing)
    }

    /// The same with another rule for sides shorter than a cell.
    #[must_use]
    pub fn with_short_sides(mut self, short_sides: ShortSides) -> Self {
        self.short_sides = short_sides;
        self
    }

    /// The same for a family whose areas count a picture as so many frames.
    #[must_use]
    pub fn with_frames(mut self, frames: u32) -> Self {
        self.frames = frames;
        self
    }

    /// The same whatever filter the preprocessor's file names, for families whose reference does not read it.
    #[must_use]
    pub fn with_filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Side of a merged cell in patches.
    pub fn merge_size(&self) -> usize {
        self.merge_size as usize
    }

    /// A picture as the tower reads it: one token a merged cell.
    ///
    /// Errors name what is wrong with the picture.
    pub fn input(&self, media: &Media) -> Result<EncoderInput, EngineError> {
        let MediaContent::Image { image, limits } = media.content() else {
            let message = format!("this model does not take {} input", media.kind());
            return Err(EngineError::invalid("messages", message));
        };
        let image = self
            .sized(image, *limits)
            .map_err(|error| EngineError::invalid("messages", error.to_string()))?;
        let size = (image.width(), image.height());
        let patches = |side: u32| (side / self.patch_size) as usize;
        let (rows, columns) = (patches(size.1), patches(size.0));
        Ok(EncoderInput {
            content: EncoderContent::Frames(vec![image]),
            grid: [1, rows, columns],
            step_seconds: 0.0,
            num_tokens: rows * columns / self.merge_size().pow(2),
            hash: ContentHash::of((media.hash(), size)),
        })
    }

    fn sized(&self, image: &DecodedImage, limits: PixelLimits) -> Result<Image, MediaError> {
        let image = image.clone().upright();
        let (least, most) = pixels_within(self.pixels, limits);
        let sizing = PatchSizing::image(self.patch_size * self.merge_size, least, most)
            .with_short_sides(self.short_sides)
            .with_frames(self.frames, self.frames);
        let (width, height) = smart_resize(image.width(), image.height(), &sizing)?;
        let image = image.composited_over(PAPER);
        resize(&image, width, height, self.filter, Resampler::Pillow)
    }
}

/// Pictures in prompts of models with M-RoPE, as runs of one placeholder token.
#[derive(Debug, Clone)]
pub struct MropePictures {
    sizing: PictureSizing,
    token: String,
    token_id: u32,
}

impl MropePictures {
    /// `token_id` is config.json's `image_token_id`, which the chat template writes once a picture.
    pub fn new(
        tokenizer: &Tokenizer,
        token_id: u32,
        sizing: PictureSizing,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            sizing,
            token: token_text(tokenizer, token_id, "image_token_id")?,
            token_id,
        })
    }
}

impl MediaProcessor for MropePictures {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Image).then_some(self.token.as_str())
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.token_id)
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let input = self.sizing.input(media)?;
        Ok(ProcessedMedia {
            text: self.token.repeat(input.num_tokens),
            inputs: vec![input],
        })
    }

    fn positions(&self, len: usize, spans: &[MediaSpan]) -> Option<AxisPositions> {
        let still = |_: &EncoderInput, _| 0;
        Some(mrope_positions(len, spans, self.sizing.merge_size(), still))
    }
}
