//! Pages on their way into DeepSeek-OCR and DeepSeek-OCR-2: a view of the whole, and tiles where it is large.

use crate::error::LoadError;
use crate::vision::sam::{MERGE_SIZE, PATCH_SIZE};
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    ContentHash, EncoderContent, EncoderInput, EngineError, Media, MediaContent, MediaKind,
    MediaProcessor, PixelLimits, ProcessedMedia,
};
use aha_media::MediaError;
use aha_media::image::{
    Filter, Image, PadOffset, Resampler, TileGrid, TileRule, choose_tile_grid, pad_to, resize,
    tiles,
};

/// Text of the token that stands for a place of a picture.
const IMAGE: &str = "<image>";
/// Colour around a page that is not square.
const GRAY: [u8; 3] = [127; 3];
/// Names of what a request may set, see [`Mode`].
const SETTINGS: [&str; 3] = ["base_size", "image_size", "crop_mode"];
/// Sides of views are multiples of a place of the map.
const PLACE: u32 = (PATCH_SIZE * MERGE_SIZE) as u32;
const LARGEST_SIDE: u32 = 2048;

/// How a release cuts pages.
#[derive(Debug, Clone, Copy)]
pub struct ViewRules {
    /// Side of a tile in pixels.
    pub tile_size: u32,
    /// Most tiles of a page.
    pub max_tiles: u32,
    /// Sides that views may have; none means any multiple of 64.
    pub sides: &'static [u32],
    /// Rows of places end with a token of their own.
    pub row_ends: bool,
    /// What stands where a request says nothing.
    pub mode: Mode,
}

/// How a page is shown (`mm_processor_kwargs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Side of the whole page's view beside tiles.
    pub base_size: u32,
    /// Side of a tile; without tiles that of the only view.
    pub image_size: u32,
    /// Large pages are cut into tiles, too.
    pub crop_mode: bool,
}

/// What a page becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    /// Tiles, if it is cut.
    grid: Option<TileGrid>,
    /// Side of the view of the whole.
    side: u32,
    /// The view is filled without regard to the page's shape.
    distorted: bool,
}

impl ViewRules {
    /// Places along a side of a view.
    fn places(side: u32) -> usize {
        (side / PLACE) as usize
    }

    /// Tokens of a page in the prompt, the separator behind its views included.
    fn num_tokens(&self, plan: Plan) -> usize {
        let row_end = usize::from(self.row_ends);
        let whole = Self::places(plan.side);
        let tiles = plan.grid.map_or(0, |grid| {
            let tile = Self::places(self.tile_size);
            let (columns, rows) = (grid.columns as usize * tile, grid.rows as usize * tile);
            (columns + row_end) * rows
        });
        tiles + (whole + row_end) * whole + 1
    }

    fn mode(&self, media: &Media) -> Result<Mode, EngineError> {
        let [base_size, image_size, crop_mode] = SETTINGS;
        let mode = Mode {
            base_size: media.setting(base_size)?.unwrap_or(self.mode.base_size),
            image_size: media.setting(image_size)?.unwrap_or(self.mode.image_size),
            crop_mode: media.setting(crop_mode)?.unwrap_or(self.mode.crop_mode),
        };
        let refused = |name: &str, reason: String| {
            let name = format!("mm_processor_kwargs.{name}");
            Err(EngineError::invalid(&name, format!("`{name}` is {reason}")))
        };
        let (name, side) = if mode.crop_mode {
            (base_size, mode.base_size)
        } else {
            (image_size, mode.image_size)
        };
        if mode.crop_mode && mode.image_size != self.tile_size {
            let reason = format!(
                "{}, but with `crop_mode` tiles are {} pixels wide",
                mode.image_size, self.tile_size
            );
            return refused(image_size, reason);
        }
        if !self.sides.is_empty() && !self.sides.contains(&side) {
            return refused(name, format!("{side}, but must be one of {:?}", self.sides));
        }
        if side == 0 || side > LARGEST_SIDE || !side.is_multiple_of(PLACE) {
            let reason =
                format!("{side}, but must be a multiple of {PLACE} of at most {LARGEST_SIDE}");
            return refused(name, reason);
        }
        Ok(mode)
    }

    fn plan(&self, (width, height): (u32, u32), mode: Mode, limits: PixelLimits) -> Plan {
        if !mode.crop_mode {
            return Plan {
                grid: None,
                side: mode.image_size,
                distorted: mode.image_size <= self.tile_size,
            };
        }
        // Where a request limits the pixels there are as many tiles as fit.
        let tile = u64::from(self.tile_size).pow(2);
        let affordable = limits.max_pixels.map_or(u64::MAX, |most| most / tile);
        let max_tiles = u32::try_from(affordable).map_or(self.max_tiles, |n| n.min(self.max_tiles));
        let is_large = width > self.tile_size || height > self.tile_size;
        let rule = TileRule {
            tile_size: self.tile_size,
            min_tiles: 2,
            max_tiles,
        };
        Plan {
            grid: (is_large && max_tiles >= rule.min_tiles)
                .then(|| choose_tile_grid(width, height, &rule)),
            side: mode.base_size,
            distorted: false,
        }
    }

    /// The view of the whole, then the tiles row by row.
    fn views(&self, page: &Image, plan: Plan) -> Result<Vec<Image>, MediaError> {
        let sized = |width, height| resize(page, width, height, Filter::Bicubic, Resampler::Pillow);
        let mut views = vec![if plan.distorted {
            sized(plan.side, plan.side)?
        } else {
            pad_to(page, plan.side, plan.side, GRAY, PadOffset::RoundHalfEven)?
        }];
        if let Some(grid) = plan.grid {
            let canvas = sized(grid.columns * self.tile_size, grid.rows * self.tile_size)?;
            views.extend(tiles(&canvas, grid)?);
        }
        Ok(views)
    }
}

/// Views and tokens of pages.
#[derive(Debug, Clone)]
pub struct DeepseekViews {
    rules: ViewRules,
    image_id: u32,
}

impl DeepseekViews {
    /// Looks up the image token, which config.json does not name.
    pub fn new(tokenizer: &Tokenizer, rules: ViewRules) -> Result<Self, LoadError> {
        let image_id = tokenizer.token_id(IMAGE).ok_or_else(|| {
            LoadError::config("tokenizer.json", format!("it has no token {IMAGE}"))
        })?;
        Ok(Self { rules, image_id })
    }
}

impl MediaProcessor for DeepseekViews {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Image).then_some(IMAGE)
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.image_id)
    }

    fn settings(&self) -> &[&str] {
        &SETTINGS
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let MediaContent::Image { image, limits } = media.content() else {
            let message = format!("this model does not take {} input", media.kind());
            return Err(EngineError::invalid("messages", message));
        };
        if limits.min_pixels.is_some() {
            let message = "`min_pixels` does not apply: this model's views have the sizes of its mode, see \
                           `mm_processor_kwargs`";
            return Err(EngineError::invalid("messages", message));
        }
        let mode = self.rules.mode(media)?;
        let page = image.clone().upright().into_rgb_dropping_alpha();
        let plan = self
            .rules
            .plan((page.width(), page.height()), mode, *limits);
        let views = self.rules.views(&page, plan);
        let views = views.map_err(|error| EngineError::invalid("messages", error.to_string()))?;
        let num_tokens = self.rules.num_tokens(plan);
        let (rows, columns) = plan.grid.map_or((0, 0), |grid| (grid.rows, grid.columns));
        Ok(ProcessedMedia {
            text: IMAGE.repeat(num_tokens),
            inputs: vec![EncoderInput {
                grid: [views.len(), rows as usize, columns as usize],
                content: EncoderContent::Frames(views),
                step_seconds: 0.0,
                num_tokens,
                hash: ContentHash::of((media.hash(), plan)),
            }],
        })
    }
}
