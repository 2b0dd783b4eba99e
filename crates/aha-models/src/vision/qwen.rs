//! Pictures and clips on their way into Qwen's vision-language models.

use super::mrope::mrope_positions;
use super::pictures::pixels_within;
use super::preprocessor::PreprocessorConfig;
use crate::error::LoadError;
use crate::text::token_text;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    ContentHash, EncoderContent, EncoderInput, EngineError, Media, MediaContent, MediaKind,
    MediaProcessor, MediaSpan, PixelLimits, ProcessedMedia,
};
use aha_media::MediaError;
use aha_media::image::{Filter, Image, PatchSizing, Resampler, ShortSides, resize, smart_resize};
use aha_nn::batch::AxisPositions;
use serde::Deserialize;

/// How clips stand in the prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum VideoForm {
    /// Each pair of frames behind the time that it shows, as a picture of its own (Qwen3-VL, Qwen3.5).
    TimedPairs,
    /// All pairs in one run, whose positions follow the clock (Qwen2.5-VL).
    OneRun {
        /// Positions a second (`tokens_per_second`).
        tokens_per_second: f64,
    },
}

/// Ids of the marks in config.json.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct MediaIds {
    image_token_id: u32,
    video_token_id: u32,
    vision_start_token_id: u32,
    vision_end_token_id: u32,
}

impl MediaIds {
    /// The marks as the tokenizer writes them.
    pub fn marks(&self, tokenizer: &Tokenizer) -> Result<Marks, LoadError> {
        let text = |key: &str, id: u32| token_text(tokenizer, id, key);
        Ok(Marks {
            vision_start: text("vision_start_token_id", self.vision_start_token_id)?,
            vision_end: text("vision_end_token_id", self.vision_end_token_id)?,
            image_pad: text("image_token_id", self.image_token_id)?,
            video_pad: text("video_token_id", self.video_token_id)?,
            pad_ids: [self.image_token_id, self.video_token_id],
        })
    }
}

/// The marks and placeholder tokens of a family, as text and as ids.
#[derive(Debug, Clone)]
pub struct Marks {
    /// `<|vision_start|>`.
    pub vision_start: String,
    /// `<|vision_end|>`.
    pub vision_end: String,
    /// `<|image_pad|>`.
    pub image_pad: String,
    /// `<|video_pad|>`.
    pub video_pad: String,
    /// Ids of the two pads.
    pub pad_ids: [u32; 2],
}

/// Sizes, marks and positions of Qwen's models.
#[derive(Debug, Clone)]
pub struct QwenMedia {
    marks: Marks,
    video_mark: String,
    video_form: VideoForm,
    patch_size: u32,
    merge_size: u32,
    temporal_patch_size: u32,
    filter: Filter,
    image_pixels: (u64, u64),
    video_pixels: (u64, u64),
}

impl QwenMedia {
    /// From the keys of the two preprocessor files; `patch_size` and the pixel areas are the family's defaults.
    pub fn new(
        marks: Marks,
        video_form: VideoForm,
        patch_size: u32,
        (image, image_pixels): (&PreprocessorConfig, (u64, u64)),
        (video, video_pixels): (&PreprocessorConfig, (u64, u64)),
    ) -> Result<Self, LoadError> {
        let video_mark = match video_form {
            // The release replaces the template's whole triple.
            VideoForm::TimedPairs => {
                format!(
                    "{}{}{}",
                    marks.vision_start, marks.video_pad, marks.vision_end
                )
            }
            VideoForm::OneRun { .. } => marks.video_pad.clone(),
        };
        Ok(Self {
            marks,
            video_mark,
            video_form,
            patch_size: image.patch_size.unwrap_or(patch_size),
            merge_size: image.merge_size.unwrap_or(2),
            temporal_patch_size: image.temporal_patch_size.unwrap_or(2),
            filter: image.filter(Filter::Bicubic)?,
            image_pixels: image.pixel_area(image_pixels),
            video_pixels: video.pixel_area(video_pixels),
        })
    }

    /// Patches along both sides of a picture, and the tokens that they become.
    fn grid(&self, (width, height): (u32, u32)) -> (usize, usize, usize) {
        let (rows, columns) = (
            (height / self.patch_size) as usize,
            (width / self.patch_size) as usize,
        );
        let merged = (self.merge_size * self.merge_size) as usize;
        (rows, columns, rows * columns / merged)
    }

    fn sized(&self, image: &Image, size: (u32, u32)) -> Result<Image, MediaError> {
        resize(image, size.0, size.1, self.filter, Resampler::Torch)
    }

    fn image(
        &self,
        media: &Media,
        image: Image,
        limits: PixelLimits,
    ) -> Result<ProcessedMedia, MediaError> {
        let (least, most) = pixels_within(self.image_pixels, limits);
        let sizing = PatchSizing::image(self.patch_size * self.merge_size, least, most);
        let size = smart_resize(image.width(), image.height(), &sizing)?;
        let (rows, columns, num_tokens) = self.grid(size);
        let picture = self.sized(&image.into_rgb_dropping_alpha(), size)?;
        Ok(ProcessedMedia {
            text: self.marks.image_pad.repeat(num_tokens),
            inputs: vec![EncoderInput {
                content: EncoderContent::Frames(vec![picture]),
                grid: [1, rows, columns],
                step_seconds: 0.0,
                num_tokens,
                hash: ContentHash::of((media.hash(), size)),
            }],
        })
    }

    fn video(
        &self,
        media: &Media,
        frames: &[Image],
        (timestamps, fps): (&[f64], f64),
        limits: PixelLimits,
    ) -> Result<ProcessedMedia, MediaError> {
        let Some(first) = frames.first() else {
            return Err(MediaError::InvalidSetting {
                name: "video",
                reason: "it has no frames".to_owned(),
            });
        };
        let size = self.video_size(first, frames.len(), limits)?;
        let (rows, columns, num_tokens) = self.grid(size);
        let mut pictures = Vec::with_capacity(frames.len());
        for frame in frames {
            let frame = frame.clone().into_rgb_dropping_alpha();
            pictures.push(self.sized(&frame, size)?);
        }
        let step = self.temporal_patch_size.max(1) as usize;
        match self.video_form {
            VideoForm::OneRun { .. } => {
                let steps = pictures.len().div_ceil(step);
                let num_tokens = steps * num_tokens;
                Ok(ProcessedMedia {
                    text: self.marks.video_pad.repeat(num_tokens),
                    inputs: vec![EncoderInput {
                        content: EncoderContent::Frames(pictures),
                        grid: [steps, rows, columns],
                        step_seconds: step as f64 / fps,
                        num_tokens,
                        hash: ContentHash::of((media.hash(), size)),
                    }],
                })
            }
            VideoForm::TimedPairs => {
                let mut processed = ProcessedMedia {
                    text: String::new(),
                    inputs: Vec::new(),
                };
                for (index, pair) in pictures.chunks(step).enumerate() {
                    let times = &timestamps[index * step..index * step + pair.len()];
                    // A last frame without a partner is shown twice.
                    let ends = (times.first(), times.last());
                    let seconds = ends.0.zip(ends.1).map_or(0.0, |(a, b)| (a + b) / 2.0);
                    processed.text += &format!(
                        "<{seconds:.1} seconds>{}{}{}",
                        self.marks.vision_start,
                        self.marks.video_pad.repeat(num_tokens),
                        self.marks.vision_end
                    );
                    processed.inputs.push(EncoderInput {
                        content: EncoderContent::Frames(pair.to_vec()),
                        grid: [1, rows, columns],
                        step_seconds: 0.0,
                        num_tokens,
                        hash: ContentHash::of((media.hash(), size, index)),
                    });
                }
                Ok(processed)
            }
        }
    }

    fn video_size(
        &self,
        first: &Image,
        frames: usize,
        limits: PixelLimits,
    ) -> Result<(u32, u32), MediaError> {
        let factor = self.patch_size * self.merge_size;
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        let (least, most) = pixels_within(self.video_pixels, limits);
        let sizing = match self.video_form {
            // The areas are of all frames together.
            VideoForm::TimedPairs => PatchSizing::image(factor, least, most)
                .with_short_sides(ShortSides::ScaleUp)
                .with_frames(
                    frames.max(self.temporal_patch_size),
                    self.temporal_patch_size,
                ),
            VideoForm::OneRun { .. } => PatchSizing::image(factor, least, most),
        };
        smart_resize(first.width(), first.height(), &sizing)
    }
}

impl MediaProcessor for QwenMedia {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        match kind {
            MediaKind::Image => Some(&self.marks.image_pad),
            MediaKind::Video => Some(&self.video_mark),
            MediaKind::Audio => None,
        }
    }

    fn placeholder_tokens(&self) -> &[u32] {
        &self.marks.pad_ids
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let processed = match media.content() {
            MediaContent::Image { image, limits } => {
                self.image(media, image.clone().upright(), *limits)
            }
            MediaContent::Video {
                frames,
                timestamps,
                fps,
                limits,
            } => self.video(media, frames, (timestamps, *fps), *limits),
            MediaContent::Audio { .. } => {
                return Err(EngineError::invalid("messages", "this model hears nothing"));
            }
        };
        processed.map_err(|error| EngineError::invalid("messages", error.to_string()))
    }

    fn positions(&self, len: usize, spans: &[MediaSpan]) -> Option<AxisPositions> {
        let merge = self.merge_size as usize;
        let clock = |input: &EncoderInput, step| self.clock(input, step);
        Some(mrope_positions(len, spans, merge, clock))
    }
}

impl QwenMedia {
    /// Position on the time axis of a clip's step, from its first.
    fn clock(&self, input: &EncoderInput, step: usize) -> u32 {
        match self.video_form {
            VideoForm::TimedPairs => step as u32,
            VideoForm::OneRun { tokens_per_second } => {
                (step as f64 * tokens_per_second * input.step_seconds) as u32
            }
        }
    }
}
