//! Pictures on their way into HunyuanOCR.

use crate::error::LoadError;
use crate::text::token_text;
use crate::vision::PictureSizing;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{EngineError, Media, MediaKind, MediaProcessor, MediaSpan, ProcessedMedia};
use aha_nn::batch::AxisPositions;
use serde::Deserialize;

/// Ids of the tokens around and in the place of a picture.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct PictureIds {
    pub(super) image_start_token_id: u32,
    pub(super) image_end_token_id: u32,
    pub(super) image_token_id: u32,
}

/// Sizes, tokens and positions of pictures.
#[derive(Debug, Clone)]
pub struct HunyuanPictures {
    sizing: PictureSizing,
    image: String,
    image_id: u32,
    /// What stands around a picture's tokens, where the chat template does not write it.
    around: [String; 2],
}

impl HunyuanPictures {
    /// `template` is the chat template's text: some copies of the release write the image token without the tokens
    /// around it.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        ids: PictureIds,
        sizing: PictureSizing,
        template: &str,
    ) -> Result<Self, LoadError> {
        let start = token_text(tokenizer, ids.image_start_token_id, "image_start_token_id")?;
        let end = token_text(tokenizer, ids.image_end_token_id, "image_end_token_id")?;
        let around = if template.contains(&start) {
            Default::default()
        } else {
            [start, end]
        };
        Ok(Self {
            sizing,
            image: token_text(tokenizer, ids.image_token_id, "image_token_id")?,
            image_id: ids.image_token_id,
            around,
        })
    }

    /// Rows and columns of a grid's cells, the columns with the one that ends each row.
    fn places(&self, [_, rows, columns]: [usize; 3]) -> (usize, usize) {
        let merge = self.sizing.merge_size();
        (rows / merge, columns / merge + 1)
    }
}

impl MediaProcessor for HunyuanPictures {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Image).then_some(self.image.as_str())
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.image_id)
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let mut input = self.sizing.input(media)?;
        let (rows, columns) = self.places(input.grid);
        input.num_tokens = rows * columns + 2;
        let [start, end] = &self.around;
        Ok(ProcessedMedia {
            text: format!("{start}{}{end}", self.image.repeat(input.num_tokens)),
            inputs: vec![input],
        })
    }

    /// Position, column, row and ordinal of the picture. All but a picture's inner tokens have the plain count on all
    /// axes.
    fn positions(&self, len: usize, spans: &[MediaSpan]) -> Option<AxisPositions> {
        let mut positions: Vec<[u32; 4]> = (0..len as u32).map(|at| [at; 4]).collect();
        for (ordinal, span) in spans.iter().enumerate() {
            let (rows, columns) = self.places(span.input.grid);
            let inner = span.start + 1..span.start + 1 + rows * columns;
            for (cell, position) in positions.get_mut(inner)?.iter_mut().enumerate() {
                let (row, column) = (cell / columns, cell % columns);
                *position = [position[0], column as u32, row as u32, ordinal as u32];
            }
        }
        Some(AxisPositions::new(positions))
    }
}
