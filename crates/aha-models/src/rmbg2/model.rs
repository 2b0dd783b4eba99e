//! BiRefNet (arXiv 2401.03407): a Swin backbone at two scales, and a decoder that looks at the image again at each
//! level.

use super::decoder::{DecoderBlock, Gate, Head, ImageBranch, conv1x1};
use super::sizes::dim;
use super::swin::SwinTransformer;
use crate::error::LoadError;
use aha_nn::conv::Conv2d;
use aha_nn::resize::bilinear_align_corners;
use aha_nn::weights::Weights;
use candle_core::{Module, Result, Tensor};

/// Maps that the decoder works through, from the smallest on.
const LEVELS: usize = 4;

/// What comes back to a larger map: its gate, and the way around.
#[derive(Debug)]
struct Ascent {
    gate: Gate,
    lateral: Conv2d,
}

/// One size of the decoder. The last level goes to the head instead of a larger map.
#[derive(Debug)]
struct Level {
    image: ImageBranch,
    block: DecoderBlock,
    ascent: Option<Ascent>,
}

/// The network: an image to the logits of its foreground.
#[derive(Debug)]
pub struct BiRefNet {
    backbone: SwinTransformer,
    squeeze: DecoderBlock,
    levels: Vec<Level>,
    head: Head,
}

impl BiRefNet {
    /// Loads the network, whose sizes are those of its tensors.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing or tells an impossible one.
    pub fn load(weights: &Weights) -> std::result::Result<Self, LoadError> {
        let backbone = SwinTransformer::load(&weights.pp("bb"))?;
        if backbone.num_stages() != LEVELS {
            return Err(LoadError::config(
                "bb.layers",
                format!(
                    "the backbone has {} stages, and the decoder works on {LEVELS} maps",
                    backbone.num_stages()
                ),
            ));
        }
        // Two scales stand side by side in each map.
        let channels: Vec<usize> = (0..LEVELS)
            .rev()
            .map(|stage| 2 * (backbone.embed_dim() << stage))
            .collect();
        let decoder = weights.pp("decoder");
        let mut from = channels[0];
        let mut levels = Vec::with_capacity(LEVELS);
        for index in 0..LEVELS {
            let name = LEVELS - index;
            // Block 4 and image branch 5 work on the smallest map.
            let tiles = backbone.reduction() >> index;
            let image = ImageBranch::load(&decoder.pp(format_args!("ipt_blk{}", name + 1)), tiles)?;
            let weights = decoder.pp(format_args!("decoder_block{name}"));
            let to = match channels.get(index + 1) {
                Some(channels) => *channels,
                None => dim(&weights, "conv_out.weight", 0)?,
            };
            let ascent = (index + 1 < LEVELS).then(|| {
                let lateral = decoder.pp(format_args!("lateral_block{name}.conv"));
                Ok::<_, LoadError>(Ascent {
                    gate: Gate::load(&decoder, name, to)?,
                    lateral: conv1x1(&lateral, to, to)?,
                })
            });
            levels.push(Level {
                block: DecoderBlock::load(&weights, from + image.out_channels(), to)?,
                image,
                ascent: ascent.transpose()?,
            });
            from = to;
        }
        Ok(Self {
            squeeze: DecoderBlock::load(
                &weights.pp("squeeze_module.0"),
                channels.iter().sum(),
                channels[0],
            )?,
            head: Head::load(&decoder, from)?,
            backbone,
            levels,
        })
    }

    /// What the sides of an image must be multiples of.
    pub fn side_multiple(&self) -> usize {
        self.backbone.reduction()
    }

    /// Logits `[1, height, width, 1]` of `image` `[1, height, width, 3]`, normalised, whose sides are multiples of
    /// [`Self::side_multiple`]. `visit` sees the stages by their names and may stop the run by an error.
    pub fn forward(
        &self,
        image: &Tensor,
        mut visit: impl FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (_, height, width, _) = image.dims4()?;
        let whole = self.backbone.forward(image, |x| visit("block", x))?;
        let half = bilinear_align_corners(image, height / 2, width / 2)?;
        let half = self.backbone.forward(&half, |x| visit("half_block", x))?;
        let mut maps = Vec::with_capacity(LEVELS);
        for (index, (whole, half)) in whole.into_iter().zip(half).enumerate() {
            visit(&format!("swin_full_x{}", index + 1), &whole)?;
            visit(&format!("swin_half_x{}", index + 1), &half)?;
            let half = like(&half, &whole)?;
            maps.push(Tensor::cat(&[whole, half], 3)?);
        }
        let Some(smallest) = maps.pop() else {
            candle_core::bail!("the backbone gave no map");
        };
        let mut context = maps
            .iter()
            .map(|map| like(map, &smallest))
            .collect::<Result<Vec<_>>>()?;
        context.push(smallest);
        let context = Tensor::cat(&context, 3)?;
        visit("x4_context", &context)?;
        let mut x = self.squeeze.forward(&context)?;
        visit("squeeze", &x)?;
        for (index, level) in self.levels.iter().enumerate() {
            let (_, rows, columns, _) = x.dims4()?;
            let branch = level.image.forward(image, rows, columns)?;
            x = level.block.forward(&Tensor::cat(&[x, branch], 3)?)?;
            visit(&format!("p{}", LEVELS - index), &x)?;
            if let (Some(ascent), Some(map)) = (&level.ascent, maps.pop()) {
                let lateral = ascent.lateral.forward_channels_last(&map)?;
                x = (like(&ascent.gate.forward(&x)?, &map)? + lateral)?;
            }
        }
        let logits = self.head.forward(&x, image)?;
        visit("logits", &logits)?;
        Ok(logits)
    }

    /// Shares of the foreground `[height, width]`, between 0 and 1.
    pub fn alpha(
        &self,
        image: &Tensor,
        visit: impl FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let logits = self.forward(image, visit)?.squeeze(3)?.squeeze(0)?;
        aha_nn::mlp::Activation::Sigmoid.forward(&logits)
    }
}

/// `x` in the size of `map`.
fn like(x: &Tensor, map: &Tensor) -> Result<Tensor> {
    bilinear_align_corners(x, map.dim(1)?, map.dim(2)?)
}
