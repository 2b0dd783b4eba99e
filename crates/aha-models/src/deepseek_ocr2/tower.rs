//! DeepEncoder V2: SAM's encoder, Qwen2's layers over its map, and a projection.

use super::encoder::QueryEncoder;
use crate::deepseek_ocr::ViewReader;
use crate::error::LoadError;
use crate::vision::sam::{SamConfig, SamEncoder};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_nn::linear::Linear;
use aha_nn::weights::Weights;
use candle_core::{Module, Result, Tensor};
use serde::Deserialize;

/// Tables of queries: their names, and how many there are, as places of the map of a view of 768 and 1024 pixels.
const QUERIES: [(&str, usize); 2] = [("query_768", 144), ("query_1024", 256)];

/// Keys of `vision_config.width`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VisionWidths {
    sam_vit_b: SamConfig,
    #[serde(rename = "qwen2-0-5b")]
    qwen2: Qwen2Width,
}

#[derive(Debug, Clone, Deserialize)]
struct Qwen2Width {
    dim: usize,
}

/// Both encoders, the projector, and the token that ends a page.
#[derive(Debug)]
pub struct DeepEncoderV2 {
    sam: SamEncoder,
    reader: ViewReader,
    encoder: QueryEncoder,
    projector: Linear,
    page_end: Tensor,
}

impl DeepEncoderV2 {
    /// Loads the tensors at `model` of a release; `hidden_size` is the language model's.
    pub(super) fn load(
        model: &Weights,
        config: &VisionWidths,
        hidden_size: usize,
    ) -> std::result::Result<Self, LoadError> {
        let width = config.qwen2.dim;
        let sam = SamEncoder::load(&model.pp("sam_model"), &config.sam_vit_b)?;
        if sam.channels() != width && !model.has_problems() {
            let reason = format!("SAM's map has {} channels, not {width}", sam.channels());
            let key = "vision_config.width.qwen2-0-5b.dim";
            return Err(LoadError::config(key, reason));
        }
        Ok(Self {
            sam,
            reader: ViewReader::new(model),
            encoder: QueryEncoder::load(&model.pp("qwen2_model"), width, &QUERIES)?,
            projector: Linear::load(&model.pp("projector.layers"), width, hidden_size, true)?,
            page_end: model.tensor("view_seperator", &[hidden_size])?,
        })
    }

    /// Patches of an input's first view and how many lie along its side, as [`Self::forward`] takes them.
    pub fn pixels(&self, input: &EncoderInput) -> Result<(Tensor, usize)> {
        self.reader.first_view(input)
    }

    /// `pixels` of views of `side` by `side` patches to their tokens, `[views, places, hidden_size]`. `visit` sees the
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
        let read = self.encoder.forward(&map, &mut |name, x| {
            visit(&format!("qwen2.{name}"), x);
        })?;
        let (views, places, width) = read.dims3()?;
        self.projector
            .forward(&read.reshape((views * places, width))?)?
            .reshape((views, places, ()))
    }
}

impl MediaEncoder for DeepEncoderV2 {
    /// The tokens of a page: those of its tiles, of the view of the whole, and the end.
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let pages = self
            .reader
            .encode_all(inputs, |pixels, side| self.forward(pixels, side, |_, _| {}))?;
        pages
            .into_iter()
            .map(|mut views| {
                if !views.is_empty() {
                    views.rotate_left(1);
                }
                views.push(self.page_end.unsqueeze(0)?);
                Tensor::cat(&views, 0)
            })
            .collect()
    }
}
