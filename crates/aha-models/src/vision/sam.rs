//! The image encoder of Segment Anything (arXiv 2304.02643), with the two convolutions by which DeepSeek-OCR shrinks its
//! map (arXiv 2510.18234).

use super::{Interpolation, Mlp, interpolate_axis, interpolate_table};
use crate::error::LoadError;
use aha_nn::conv::{Conv2d, Conv2dConfig};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::{GridBias, RaggedAttention, SequenceBounds};
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};
use serde::Deserialize;

/// Pixels along a side of a patch.
pub const PATCH_SIZE: usize = 16;
/// Patches along a side that become one place of the map.
pub const MERGE_SIZE: usize = 4;
/// Patches along a side of a window.
const WINDOW: usize = 14;
/// Width of the MLP over that of the stream.
const MLP_RATIO: usize = 4;
const NORM_EPS: f64 = 1e-6;
/// Patches along a side of the pictures that the tower was trained on.
const TRAINED_SIDE: usize = 64;
/// Channels of the neck, and of the two convolutions behind it, in the releases.
const CHANNELS: [usize; 3] = [256, 512, 1024];

/// Keys of `vision_config.width.sam_vit_b`; the channels are read off the tensors, since one release states them wrong.
#[derive(Debug, Clone, Deserialize)]
pub struct SamConfig {
    width: usize,
    layers: usize,
    heads: usize,
    global_attn_indexes: Vec<usize>,
}

impl SamConfig {
    fn validate(&self) -> std::result::Result<(), LoadError> {
        let wrong = |key: &str, reason: String| {
            let key = format!("vision_config.width.sam_vit_b.{key}");
            Err(LoadError::config(key, reason))
        };
        for (key, value, most) in [
            ("width", self.width, 1 << 14),
            ("layers", self.layers, 1 << 10),
            ("heads", self.heads, 1 << 10),
        ] {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not between 1 and {most}"));
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            let reason = format!(
                "{} values do not divide into {} heads",
                self.width, self.heads
            );
            return wrong("heads", reason);
        }
        match self.global_attn_indexes.iter().find(|i| **i >= self.layers) {
            Some(index) => wrong(
                "global_attn_indexes",
                format!("there is no layer {index} among {}", self.layers),
            ),
            None => Ok(()),
        }
    }
}

/// Tables of what a head's score gains by the rows and by the columns between query and key, as vectors that the query
/// is multiplied with: `[2 * side - 1, head_dim]`, beginning with the query furthest before the key.
#[derive(Debug)]
struct RelativePositions([Tensor; 2]);

impl RelativePositions {
    fn load(weights: &Weights, side: usize, head_dim: usize) -> WeightsResult<Self> {
        let table = |name| {
            let entries = weights.shape(name).and_then(|shape| shape.first().copied());
            weights.tensor(name, &[entries.unwrap_or(2 * side - 1), head_dim])
        };
        Ok(Self([table("rel_pos_h")?, table("rel_pos_w")?]))
    }

    /// The addends for all queries `q` `[tokens, heads * head_dim]` of grids of `side` by `side`.
    fn bias(&self, q: &Tensor, side: usize, attention: &RaggedAttention) -> Result<GridBias> {
        let entries = 2 * side - 1;
        // The tables count from the key to the query, a bias from the query to the key.
        let reversed: Vec<u32> = (0..entries as u32).rev().collect();
        let reversed = Tensor::new(reversed, q.device())?;
        let matrix = |table: &Tensor| {
            interpolate_axis(table, entries, Interpolation::HalfPixel)?.index_select(&reversed, 0)
        };
        let [rows, columns] = &self.0;
        let matrix = Tensor::cat(&[matrix(rows)?, matrix(columns)?], 0)?;
        // The factor of the scores does not apply to these products.
        let matrix = (matrix / attention.scale)?.to_dtype(q.dtype())?;
        let heads = q.contiguous()?.reshape(((), attention.head_dim))?;
        let terms = Linear::from_tensor(&matrix)?.forward(&heads)?;
        Ok(GridBias {
            height: side,
            width: side,
            terms: terms.reshape((q.dim(0)?, attention.num_heads * 2 * entries))?,
        })
    }
}

/// Windows of pictures of one size.
struct Windows {
    /// For each place of each window its token, or one behind the last where a window reaches over the edge.
    places: Tensor,
    /// For each token its place.
    tokens: Tensor,
    bounds: SequenceBounds,
}

impl Windows {
    fn new(views: usize, side: usize, like: &Tensor) -> Result<Self> {
        let across = side.div_ceil(WINDOW);
        let outside = (views * side * side) as u32;
        let mut places = Vec::with_capacity(views * (across * WINDOW).pow(2));
        let mut tokens = vec![0u32; views * side * side];
        for view in 0..views {
            for (top, left) in (0..across * across).map(|i| (i / across, i % across)) {
                for (y, x) in (0..WINDOW * WINDOW).map(|i| (i / WINDOW, i % WINDOW)) {
                    let (row, column) = (top * WINDOW + y, left * WINDOW + x);
                    if row < side && column < side {
                        let token = (view * side + row) * side + column;
                        tokens[token] = places.len() as u32;
                        places.push(token as u32);
                    } else {
                        places.push(outside);
                    }
                }
            }
        }
        let lengths = std::iter::repeat_n(WINDOW * WINDOW, views * across * across);
        Ok(Self {
            places: Tensor::new(places, like.device())?,
            tokens: Tensor::new(tokens, like.device())?,
            bounds: SequenceBounds::from_lengths(lengths)?,
        })
    }

    /// The tokens in the order of windows, with zeros outside the pictures, which take part in attention.
    fn cut(&self, x: &Tensor) -> Result<Tensor> {
        let outside = Tensor::zeros((1, x.dim(1)?), x.dtype(), x.device())?;
        Tensor::cat(&[x, &outside], 0)?.index_select(&self.places, 0)
    }

    fn join(&self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&self.tokens, 0)
    }
}

/// Attention and MLP, each behind a norm.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    positions: RelativePositions,
    norm2: LayerNorm,
    mlp: Mlp,
    attention: RaggedAttention,
    /// Tokens see the whole picture, not their window alone.
    is_global: bool,
}

impl Block {
    fn load(weights: &Weights, config: &SamConfig, is_global: bool) -> WeightsResult<Self> {
        let width = config.width;
        let attn = weights.pp("attn");
        let attention = RaggedAttention::full(config.heads, width / config.heads);
        let side = if is_global { TRAINED_SIDE } else { WINDOW };
        Ok(Self {
            norm1: LayerNorm::load(&weights.pp("norm1"), width, NORM_EPS)?,
            qkv: Linear::load(&attn.pp("qkv"), width, 3 * width, true)?,
            proj: Linear::load(&attn.pp("proj"), width, width, true)?,
            positions: RelativePositions::load(&attn, side, attention.head_dim)?,
            norm2: LayerNorm::load(&weights.pp("norm2"), width, NORM_EPS)?,
            mlp: Mlp::load(
                &weights.pp("mlp.lin1"),
                &weights.pp("mlp.lin2"),
                (width, MLP_RATIO * width, width),
                Activation::Gelu,
            )?,
            attention,
            is_global,
        })
    }

    /// Attention among the tokens `x` of grids of `side` by `side`.
    fn attend(&self, x: &Tensor, side: usize, bounds: &SequenceBounds) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?;
        let width = qkv.dim(1)? / 3;
        let part = |index: usize| qkv.narrow(1, index * width, width);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let bias = self.positions.bias(&q, side, &self.attention)?;
        self.attention
            .forward_biased(&q, &k, &v, bounds, Some(&bias))
    }

    fn forward(
        &self,
        hidden: &Tensor,
        side: usize,
        views: &SequenceBounds,
        windows: &Windows,
    ) -> Result<Tensor> {
        let normed = self.norm1.forward(hidden)?;
        let attended = if self.is_global {
            self.attend(&normed, side, views)?
        } else {
            let cut = windows.cut(&normed)?;
            windows.join(&self.attend(&cut, WINDOW, &windows.bounds)?)?
        };
        let hidden = (hidden + self.proj.forward(&attended)?)?;
        let fed = self.mlp.forward(&self.norm2.forward(&hidden)?)?;
        hidden + fed
    }
}

/// Convolutions from the stream to the map, pixels channels-last.
#[derive(Debug)]
struct Neck {
    narrow: Linear,
    norm1: LayerNorm,
    smooth: Conv2d,
    norm2: LayerNorm,
    shrink: [Conv2d; 2],
}

impl Neck {
    fn load(weights: &Weights, width: usize) -> WeightsResult<Self> {
        let rows = |name, release| {
            let shape = weights.shape(name);
            shape
                .and_then(|shape| shape.first().copied())
                .unwrap_or(release)
        };
        let [neck, net_2, net_3] = [
            rows("neck.0.weight", CHANNELS[0]),
            rows("net_2.weight", CHANNELS[1]),
            rows("net_3.weight", CHANNELS[2]),
        ];
        let conv = |name, from, to, stride| {
            let config = Conv2dConfig {
                stride,
                padding: 1,
                ..Conv2dConfig::default()
            };
            Conv2d::load(&weights.pp(name), from, to, 3, config, false)
        };
        let norm = |name| LayerNorm::load(&weights.pp(name), neck, NORM_EPS);
        Ok(Self {
            narrow: Linear::load_kernel(&weights.pp("neck.0"), &[width, 1, 1], neck, false)?,
            norm1: norm("neck.1")?,
            smooth: conv("neck.2", neck, neck, 1)?,
            norm2: norm("neck.3")?,
            shrink: [
                conv("net_2", neck, net_2, 2)?,
                conv("net_3", net_2, net_3, 2)?,
            ],
        })
    }

    /// `hidden` is `[views * side * side, width]`; the result `[views, side / 4, side / 4, channels]`.
    fn forward(
        &self,
        hidden: &Tensor,
        side: usize,
        visit: &mut impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let narrow = self.norm1.forward(&self.narrow.forward(hidden)?)?;
        let map = narrow.reshape(((), side, side, narrow.dim(1)?))?;
        let map = self
            .norm2
            .forward(&self.smooth.forward_channels_last(&map)?)?;
        visit("neck", &map);
        let [net_2, net_3] = &self.shrink;
        net_3.forward_channels_last(&net_2.forward_channels_last(&map)?)
    }
}

/// Patches to a map of a sixteenth as many places.
#[derive(Debug)]
pub struct SamEncoder {
    patch_embed: Linear,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    neck: Neck,
}

impl SamEncoder {
    /// Loads `patch_embed.proj`, `pos_embed`, `blocks`, `neck`, `net_2` and `net_3`.
    pub fn load(weights: &Weights, config: &SamConfig) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let width = config.width;
        let patch = [3, PATCH_SIZE, PATCH_SIZE];
        let embed = weights.pp("patch_embed.proj");
        let table = [1, TRAINED_SIDE, TRAINED_SIDE, width];
        let table = weights.tensor("pos_embed", &table)?;
        Ok(Self {
            patch_embed: Linear::load_kernel(&embed, &patch, width, true)?,
            pos_embed: table.reshape((TRAINED_SIDE * TRAINED_SIDE, width))?,
            blocks: (0..config.layers)
                .map(|index| {
                    let is_global = config.global_attn_indexes.contains(&index);
                    Block::load(
                        &weights.pp(format_args!("blocks.{index}")),
                        config,
                        is_global,
                    )
                })
                .collect::<WeightsResult<_>>()?,
            neck: Neck::load(weights, width)?,
        })
    }

    /// Channels of the map.
    pub fn channels(&self) -> usize {
        self.neck.shrink[1].out_channels()
    }

    /// `pixels` `[views * side * side, 3 * 16 * 16]`, patches of square pictures of `side` by `side` of them row by
    /// row, to `[views, side / 4, side / 4, channels]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        side: usize,
        visit: &mut impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let tokens = side * side;
        let views = pixels.dim(0)? / tokens.max(1);
        let patches = self.patch_embed.forward(pixels)?;
        visit("patch_embed", &patches);
        let width = patches.dim(1)?;
        let rule = Interpolation::CubicAntialiased;
        let positions = if side == TRAINED_SIDE {
            self.pos_embed.clone()
        } else {
            interpolate_table(&self.pos_embed, (side, side), rule)?
        };
        let mut hidden = patches
            .reshape((views, tokens, width))?
            .broadcast_add(&positions)?
            .reshape((views * tokens, width))?;
        let bounds = SequenceBounds::from_lengths(std::iter::repeat_n(tokens, views))?;
        let windows = Windows::new(views, side, &hidden)?;
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = block.forward(&hidden, side, &bounds, &windows)?;
            visit(&format!("block_{index}"), &hidden);
        }
        self.neck.forward(&hidden, side, visit)
    }
}
