//! Pictures on their way into LFM2-VL: whole, or as tiles with a thumbnail.

use super::config::ImageSettings;
use crate::error::LoadError;
use crate::text::token_text;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    ContentHash, EncoderContent, EncoderInput, EngineError, Media, MediaContent, MediaKind,
    MediaProcessor, PixelLimits, ProcessedMedia,
};
use aha_media::MediaError;
use aha_media::image::{
    Filter, Image, PatchSizing, Resampler, ShortSides, TileGrid, TileRule, choose_tile_grid,
    resize, round_half_even, smart_resize, tiles,
};

const START: &str = "<|image_start|>";
const END: &str = "<|image_end|>";
const THUMBNAIL: &str = "<|img_thumbnail|>";

/// A picture of extreme shape keeps its longer side where the shorter one cannot shrink; beyond this many times the
/// pixels that the settings allow it is refused.
const MOST_OVERSIZE: u64 = 4;

/// Sizes, tiles and marks of LFM2-VL.
#[derive(Debug, Clone)]
pub struct Lfm2VlMedia {
    settings: ImageSettings,
    image_token: String,
    image_token_id: u32,
    patch_size: u32,
    filter: Filter,
}

/// What a picture is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Tiles, if it is cut.
    grid: Option<TileGrid>,
    /// Width and height of the whole picture: all there is, or the thumbnail.
    whole: (u32, u32),
}

impl Lfm2VlMedia {
    /// Checks the settings against the tower's `patch_size`, and finds the image token's text.
    pub(super) fn new(
        settings: ImageSettings,
        image_token_id: u32,
        patch_size: u32,
        tokenizer: &Tokenizer,
    ) -> Result<Self, LoadError> {
        let factor = patch_size * settings.downsample_factor;
        if !settings.tile_size.is_multiple_of(factor) {
            let reason = format!("{} is no multiple of {factor}", settings.tile_size);
            return Err(LoadError::config("tile_size", reason));
        }
        let image_token = token_text(tokenizer, image_token_id, "image_token_id")?;
        Ok(Self {
            filter: settings.pixels.filter(Filter::Bilinear)?,
            settings,
            image_token,
            image_token_id,
            patch_size,
        })
    }

    /// Side of a token in pixels.
    fn factor(&self) -> u32 {
        self.patch_size * self.settings.downsample_factor
    }

    fn plan(&self, width: u32, height: u32, limits: PixelLimits) -> Result<Plan, MediaError> {
        let settings = &self.settings;
        let area = u64::from(self.factor()).pow(2);
        let allowed = settings.max_image_tokens * area;
        // What a request asks narrows the settings: the tower's positions are not made for larger pictures.
        let most = limits.max_pixels.map_or(allowed, |most| most.min(allowed));
        let least = limits
            .min_pixels
            .unwrap_or(settings.min_image_tokens * area)
            .min(most);
        let sizing = PatchSizing::image(self.factor(), least, most)
            .with_short_sides(ShortSides::AtLeastFactor);
        let whole = smart_resize(width, height, &sizing)?;
        if u64::from(whole.0) * u64::from(whole.1) > MOST_OVERSIZE * allowed {
            return Err(MediaError::InvalidSize {
                width: width.into(),
                height: height.into(),
                reason: "it is too long and thin for this model; crop it",
            });
        }
        let grid = self
            .tile_rule(limits)
            .filter(|_| self.is_large(width, height))
            .map(|rule| choose_tile_grid(width, height, &rule))
            .filter(|grid| grid.columns * grid.rows > 1);
        Ok(Plan { grid, whole })
    }

    /// Whether a picture is more than one tile.
    fn is_large(&self, width: u32, height: u32) -> bool {
        let factor = f64::from(self.factor());
        let rounded = |side: u32| {
            let rounded = round_half_even(f64::from(side) / factor) * factor;
            rounded.max(f64::from(self.patch_size))
        };
        let most = self.settings.max_image_tokens as f64 * factor * factor;
        rounded(width) * rounded(height) > most * self.settings.max_pixels_tolerance
    }

    /// Which grids of tiles there are, if any: those within the pixels that a request allows.
    fn tile_rule(&self, limits: PixelLimits) -> Option<TileRule> {
        let settings = &self.settings;
        let tile = u64::from(settings.tile_size).pow(2);
        let affordable = limits.max_pixels.map_or(u64::MAX, |most| most / tile);
        let max_tiles = u32::try_from(affordable).map_or(settings.max_tiles, |affordable| {
            affordable.min(settings.max_tiles)
        });
        (settings.do_image_splitting && max_tiles >= settings.min_tiles).then_some(TileRule {
            tile_size: settings.tile_size,
            min_tiles: settings.min_tiles,
            max_tiles,
        })
    }

    fn sized(&self, image: &Image, (width, height): (u32, u32)) -> Result<Image, MediaError> {
        resize(image, width, height, self.filter, Resampler::Torch)
    }

    fn image(
        &self,
        media: &Media,
        image: &Image,
        limits: PixelLimits,
    ) -> Result<ProcessedMedia, MediaError> {
        let Plan { grid, whole } = self.plan(image.width(), image.height(), limits)?;
        let mut processed = ProcessedMedia {
            text: String::new(),
            inputs: Vec::new(),
        };
        self.mark(&mut processed, START);
        if let Some(grid) = grid {
            let side = self.settings.tile_size;
            let canvas = self.sized(image, (grid.columns * side, grid.rows * side))?;
            for (index, tile) in (0..).zip(tiles(&canvas, grid)?) {
                let (row, column) = (index / grid.columns + 1, index % grid.columns + 1);
                self.mark(&mut processed, &format!("<|img_row_{row}_col_{column}|>"));
                let hash = ContentHash::of((media.hash(), (grid.columns, grid.rows), index));
                self.push(&mut processed, tile, hash);
            }
        }
        if grid.is_none() || self.settings.use_thumbnail {
            if grid.is_some() {
                self.mark(&mut processed, THUMBNAIL);
            }
            let hash = ContentHash::of((media.hash(), whole));
            self.push(&mut processed, self.sized(image, whole)?, hash);
        }
        self.mark(&mut processed, END);
        Ok(processed)
    }

    fn mark(&self, processed: &mut ProcessedMedia, mark: &str) {
        if self.settings.use_image_special_tokens {
            processed.text += mark;
        }
    }

    /// Adds a tile with its tokens.
    fn push(&self, processed: &mut ProcessedMedia, tile: Image, hash: ContentHash) {
        let patches = |side: u32| (side / self.patch_size) as usize;
        let (rows, columns) = (patches(tile.height()), patches(tile.width()));
        let num_tokens = rows * columns / (self.settings.downsample_factor as usize).pow(2);
        processed.text += &self.image_token.repeat(num_tokens);
        processed.inputs.push(EncoderInput {
            content: EncoderContent::Frames(vec![tile]),
            grid: [1, rows, columns],
            step_seconds: 0.0,
            num_tokens,
            hash,
        });
    }
}

impl MediaProcessor for Lfm2VlMedia {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Image).then_some(self.image_token.as_str())
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.image_token_id)
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let MediaContent::Image { image, limits } = media.content() else {
            let message = format!("this model does not take {} input", media.kind());
            return Err(EngineError::invalid("messages", message));
        };
        let image = image.clone().upright().into_rgb_dropping_alpha();
        self.image(media, &image, *limits)
            .map_err(|error| EngineError::invalid("messages", error.to_string()))
    }
}
