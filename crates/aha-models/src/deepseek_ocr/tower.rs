//! DeepEncoder of DeepSeek-OCR (arXiv 2510.18234): SAM's encoder, CLIP over its map, and a projection of both.

use super::views::ViewReader;
use crate::error::LoadError;
use crate::vision::clip::{ClipConfig, ClipEncoder};
use crate::vision::sam::{MERGE_SIZE, SamConfig, SamEncoder};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_nn::linear::Linear;
use aha_nn::weights::Weights;
use candle_core::{Module, Result, Tensor};
use serde::Deserialize;

/// Keys of `vision_config.width`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VisionWidths {
    sam_vit_b: SamConfig,
    #[serde(rename = "clip-l-14-224")]
    clip: ClipConfig,
}

/// Both encoders, the projector, and the tokens that end rows and pages.
#[derive(Debug)]
pub struct DeepEncoder {
    sam: SamEncoder,
    clip: ClipEncoder,
    projector: Linear,
    row_end: Tensor,
    page_end: Tensor,
    reader: ViewReader,
}

impl DeepEncoder {
    /// Loads the tensors at `model` of a release; `hidden_size` is the language model's.
    pub(super) fn load(
        model: &Weights,
        config: &VisionWidths,
        hidden_size: usize,
    ) -> std::result::Result<Self, LoadError> {
        let sam = SamEncoder::load(&model.pp("sam_model"), &config.sam_vit_b)?;
        let (channels, width) = (sam.channels(), config.clip.width());
        if channels != width && !model.has_problems() {
            let reason = format!("SAM's map has {channels} channels, not CLIP's {width}");
            let key = "vision_config.width.clip-l-14-224.width";
            return Err(LoadError::config(key, reason));
        }
        let projector = model.pp("projector.layers");
        Ok(Self {
            sam,
            clip: ClipEncoder::load(&model.pp("vision_model"), &config.clip)?,
            projector: Linear::load(&projector, 2 * width, hidden_size, true)?,
            row_end: model.tensor("image_newline", &[hidden_size])?,
            page_end: model.tensor("view_seperator", &[hidden_size])?,
            reader: ViewReader::new(model),
        })
    }

    /// Patches of an input's first view and how many lie along its side, as [`Self::forward`] takes them.
    pub fn pixels(&self, input: &EncoderInput) -> Result<(Tensor, usize)> {
        self.reader.first_view(input)
    }

    /// `pixels` of views of `side` by `side` patches to their places, `[views, places, hidden_size]`. `visit` sees the
    /// stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        side: usize,
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let map = self.sam.forward(pixels, side, &mut |name, x| {
            visit(&format!("sam.{name}"), x);
        })?;
        visit("sam.out", &map);
        let map = map.flatten(1, 2)?;
        let seen = self.clip.forward(&map, side / MERGE_SIZE, &mut |name, x| {
            visit(&format!("clip.{name}"), x);
        })?;
        let (views, places, width) = seen.dims3()?;
        let both = Tensor::cat(&[&seen.contiguous()?, &map], 2)?;
        let projected = self
            .projector
            .forward(&both.reshape((views * places, 2 * width))?)?;
        projected.reshape((views, places, ()))
    }

    /// A map `[rows, columns, hidden_size]` as tokens, each row with its end.
    fn lines(&self, map: &Tensor) -> Result<Tensor> {
        let (rows, _, hidden_size) = map.dims3()?;
        let ends = self.row_end.broadcast_as((rows, 1, hidden_size))?;
        Tensor::cat(&[map, &ends], 1)?.flatten(0, 1)
    }

    /// Tokens of a page: its tiles as one map, the view of the whole, the end.
    fn page(&self, input: &EncoderInput, views: &[Tensor]) -> Result<Tensor> {
        let [_, rows, columns] = input.grid;
        let Some((whole, tiles)) = views.split_first() else {
            candle_core::bail!("a page has no views");
        };
        let square = |view: &Tensor| -> Result<Tensor> {
            let (places, hidden_size) = view.dims2()?;
            let side = places.isqrt();
            view.reshape((side, side, hidden_size))
        };
        let mut parts = Vec::with_capacity(3);
        if !tiles.is_empty() {
            let joined: Vec<Tensor> = tiles
                .chunks(columns.max(1))
                .map(|row| {
                    let row: Vec<Tensor> = row.iter().map(square).collect::<Result<_>>()?;
                    Tensor::cat(&row, 1)
                })
                .collect::<Result<_>>()?;
            if joined.len() != rows {
                candle_core::bail!("{} tiles do not fill {rows} rows", tiles.len());
            }
            parts.push(self.lines(&Tensor::cat(&joined, 0)?)?);
        }
        parts.push(self.lines(&square(whole)?)?);
        parts.push(self.page_end.unsqueeze(0)?);
        Tensor::cat(&parts, 0)
    }
}

impl MediaEncoder for DeepEncoder {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let views = self
            .reader
            .encode_all(inputs, |pixels, side| self.forward(pixels, side, |_, _| {}))?;
        inputs
            .iter()
            .zip(views)
            .map(|(input, views)| self.page(input, &views))
            .collect()
    }
}
