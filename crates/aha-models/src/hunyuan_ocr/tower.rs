//! The vision tower of HunyuanOCR with the merger to the language model.

use super::config::VisionConfig;
use crate::error::LoadError;
use crate::vision::{
    BlockNames, CellConv, Interpolation, PatchReader, ProjectionNames, VisionBlock,
    learned_positions, patch_places, split_tokens,
};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_media::image::{Normalization, PatchOrder};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::RmsNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

/// The release's names of a layer's parts.
const LAYER_NAMES: BlockNames = BlockNames {
    norms: ["input_layernorm", "post_attention_layernorm"],
    projections: ProjectionNames::Separate {
        names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        key_bias: true,
    },
    output: "self_attn.o_proj",
    mlp: ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
};

/// Patches to tokens of the language model: a token a cell, one behind each row of cells, one at either end.
#[derive(Debug)]
struct Perceive {
    before_rms: RmsNorm,
    merge: CellConv,
    activation: Activation,
    widen: Linear,
    image_newline: Tensor,
    mlp: Linear,
    image_begin: Tensor,
    image_end: Tensor,
    after_rms: RmsNorm,
}

impl Perceive {
    fn load(weights: &Weights, config: &VisionConfig, hidden_size: usize) -> WeightsResult<Self> {
        let (width, eps) = (config.block().hidden_size, config.rms_norm_eps);
        let row = |name: &str, size: usize| -> WeightsResult<Tensor> {
            Ok(weights.tensor(name, &[size])?.unsqueeze(0)?)
        };
        Ok(Self {
            before_rms: RmsNorm::load(&weights.pp("before_rms"), width, eps)?,
            merge: CellConv::load(
                &weights.pp("proj.0"),
                width,
                config.spatial_merge_size,
                2 * width,
            )?,
            activation: config.hidden_act,
            widen: Linear::load_kernel(&weights.pp("proj.2"), &[2 * width, 1, 1], 4 * width, true)?,
            image_newline: row("image_newline", 4 * width)?,
            mlp: Linear::load(&weights.pp("mlp"), 4 * width, hidden_size, true)?,
            image_begin: row("image_begin", hidden_size)?,
            image_end: row("image_end", hidden_size)?,
            after_rms: RmsNorm::load(&weights.pp("after_rms"), hidden_size, eps)?,
        })
    }

    /// `hidden` is `[patches, width]` in blocks of a cell; `cells` are rows and columns of each picture's cells. The
    /// result is `[tokens, hidden_size]`, all pictures end to end.
    fn forward(&self, hidden: &Tensor, cells: &[(usize, usize)]) -> Result<Tensor> {
        let merged = self.merge.forward(&self.before_rms.forward(hidden)?)?;
        let merged = self.widen.forward(&self.activation.forward(&merged)?)?;
        // Every row is computed on its own: those that many tokens share once.
        let newline = merged.dim(0)? as u32;
        let rows = Tensor::cat(&[&merged, &self.image_newline], 0)?;
        let rows = self.mlp.forward(&rows)?;
        let rows = Tensor::cat(&[&rows, &self.image_begin, &self.image_end], 0)?;
        let rows = self.after_rms.forward(&rows)?;
        let order = token_order(cells, newline);
        rows.index_select(&Tensor::new(order, rows.device())?, 0)
    }
}

/// Which row stands for each token: cells first, then the newline, the begin and the end.
fn token_order(cells: &[(usize, usize)], newline: u32) -> Vec<u32> {
    let (begin, end) = (newline + 1, newline + 2);
    let mut order = Vec::new();
    let mut next = 0;
    for &(rows, columns) in cells {
        order.push(begin);
        for _ in 0..rows {
            order.extend(next..next + columns as u32);
            order.push(newline);
            next += columns as u32;
        }
        order.push(end);
    }
    order
}

/// Patches, layers and merger. Each picture sees itself alone.
#[derive(Debug)]
pub struct VisionTower {
    patch_embedding: Linear,
    position_embedding: Tensor,
    layers: Vec<VisionBlock>,
    perceive: Perceive,
    reader: PatchReader,
    merge: usize,
}

impl VisionTower {
    /// Loads the tower; `order` and `normalization` are the preprocessor's,
    /// `hidden_size` the language model's.
    pub fn load(
        weights: &Weights,
        config: &VisionConfig,
        hidden_size: usize,
        (order, normalization): (PatchOrder, Normalization),
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let block = config.block();
        let width = block.hidden_size;
        let embeddings = weights.pp("embeddings");
        let entries = config.table_side().pow(2);
        // The first row is a class token's, which the tower does not have.
        let table = embeddings
            .pp("position_embedding")
            .tensor("weight", &[entries + 1, width])?
            .narrow(0, 1, entries)?;
        let sizes = [config.patch_size, config.spatial_merge_size, 1];
        Ok(Self {
            patch_embedding: Linear::load_kernel(
                &embeddings.pp("patch_embedding"),
                &[3, config.patch_size, config.patch_size],
                width,
                true,
            )?,
            position_embedding: table,
            layers: (0..config.num_hidden_layers)
                .map(|index| {
                    let weights = weights.pp(format_args!("layers.{index}"));
                    VisionBlock::load(&weights, &block, &LAYER_NAMES)
                })
                .collect::<WeightsResult<_>>()?,
            perceive: Perceive::load(&weights.pp("perceive"), config, hidden_size)?,
            reader: PatchReader::new(order, sizes, normalization, weights)?,
            merge: config.spatial_merge_size,
        })
    }

    /// Patches of all inputs and their grids, as [`Self::forward`] takes them.
    pub fn pixels(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<[usize; 3]>)> {
        self.reader.read(inputs)
    }

    /// `pixels` `[patches, 3 * patch * patch]` of pictures with these grids (1, patches in height, in width), in
    /// blocks of a cell, to `[tokens, hidden_size]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (_, rows) = patch_places(grids, self.merge);
        let rule = Interpolation::HalfPixel;
        let positions = learned_positions(&self.position_embedding, grids, rows, rule)?;
        let mut hidden = (self.patch_embedding.forward(pixels)? + positions)?;
        visit("embeddings", &hidden);
        let lengths = grids.iter().map(|grid| grid.iter().product());
        let bounds = SequenceBounds::from_lengths(lengths)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, None, &bounds)?;
            visit(&format!("layer_{index}"), &hidden);
        }
        let cells: Vec<(usize, usize)> = grids
            .iter()
            .map(|[_, rows, columns]| (rows / self.merge, columns / self.merge))
            .collect();
        self.perceive.forward(&hidden, &cells)
    }
}

impl MediaEncoder for VisionTower {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let (pixels, grids) = self.pixels(inputs)?;
        split_tokens(&self.forward(&pixels, &grids, |_, _| {})?, inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_begin_break_lines_and_end() {
        // Two rows of three cells, then one of one: seven cells, newline 7, begin 8, end 9.
        let order = token_order(&[(2, 3), (1, 1)], 7);
        assert_eq!(order, [8, 0, 1, 2, 7, 3, 4, 5, 7, 9, 8, 6, 7, 9]);
    }
}
