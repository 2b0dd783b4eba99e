//! The causal audio autoencoder: sound to latents and back (a variational form of DAC, arXiv 2306.06546).
//!
//! Every layer looks back only, so sound can be computed piece by piece: each layer remembers the last rows of its
//! input, and the pieces are what the whole would have been, bit for bit. All of it works on rows, `[length, channels]`.

use crate::error::LoadError;
use aha_nn::conv::{Conv1d, Conv1dConfig, ConvTranspose1d};
use aha_nn::snake::Snake;
use aha_nn::weights::{self, Weights};
use candle_core::{Module, Result, Tensor};
use serde::Deserialize;

/// Kernel of the first, the last and the residual convolutions.
const KERNEL: usize = 7;
/// Kernel of the convolution that gives the latents.
const LATENT_KERNEL: usize = 3;
const DILATIONS: [usize; 3] = [1, 3, 9];
/// Latents whose sound is encoded at once: memory stays small however long the sound is.
const ENCODED_AT_ONCE: usize = 25;

/// Values of a layer's output in the decoder at once: 1 MiB, so that they meet the next layers in a cache.
const VALUES_AT_ONCE: usize = 1 << 18;

/// `audio_vae_config`; the defaults are those of VoxCPM-0.5B, whose release leaves it out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AudioVaeConfig {
    /// Channels of the encoder's first convolution; each stage doubles them.
    pub encoder_dim: usize,
    /// Strides of the encoder's stages.
    pub encoder_rates: Vec<usize>,
    /// Values a latent.
    pub latent_dim: usize,
    /// Channels of the decoder's first stage; each stage halves them.
    pub decoder_dim: usize,
    /// Strides of the decoder's stages.
    pub decoder_rates: Vec<usize>,
    /// Whether residual units convolve each channel by itself.
    pub depthwise: bool,
    /// Samples a second.
    pub sample_rate: u32,
    /// Noise inside the decoder, which no release has.
    pub use_noise_block: bool,
}

impl Default for AudioVaeConfig {
    fn default() -> Self {
        Self {
            encoder_dim: 128,
            encoder_rates: vec![2, 5, 8, 8],
            latent_dim: 64,
            decoder_dim: 1536,
            decoder_rates: vec![8, 8, 5, 2],
            depthwise: true,
            sample_rate: 16_000,
            use_noise_block: false,
        }
    }
}

impl AudioVaeConfig {
    /// Samples a latent.
    pub fn hop(&self) -> usize {
        self.encoder_rates.iter().product()
    }

    /// Refuses sizes that no checkpoint has.
    pub fn validate(&self) -> std::result::Result<(), LoadError> {
        let wrong = |key: &str, reason: String| {
            Err(LoadError::config(format!("audio_vae_config.{key}"), reason))
        };
        if self.use_noise_block {
            return wrong("use_noise_block", "true is not supported".to_owned());
        }
        for (key, rates) in [
            ("encoder_rates", &self.encoder_rates),
            ("decoder_rates", &self.decoder_rates),
        ] {
            let product = rates
                .iter()
                .try_fold(1_usize, |product, rate| product.checked_mul(*rate));
            if rates.is_empty()
                || rates.contains(&1)
                || rates.len() > 12
                || product.is_none_or(|hop| hop == 0 || hop > 1 << 20)
            {
                return wrong(key, format!("{rates:?} are no strides of an autoencoder"));
            }
        }
        let hop = self.hop();
        if self.decoder_rates.iter().product::<usize>() != hop {
            let reason = format!("{:?} do not undo a hop of {hop}", self.decoder_rates);
            return wrong("decoder_rates", reason);
        }
        for (key, value) in [
            ("encoder_dim", self.encoder_dim),
            ("latent_dim", self.latent_dim),
            ("decoder_dim", self.decoder_dim),
        ] {
            if value == 0 || value > 1 << 14 {
                return wrong(key, format!("{value} is not between 1 and {}", 1 << 14));
            }
        }
        if self.decoder_dim >> self.decoder_rates.len() == 0 {
            let reason = format!(
                "{} cannot be halved {} times",
                self.decoder_dim,
                self.decoder_rates.len()
            );
            return wrong("decoder_dim", reason);
        }
        if !(1_000..=384_000).contains(&self.sample_rate) {
            return wrong(
                "sample_rate",
                format!("{} Hz is no sound", self.sample_rate),
            );
        }
        Ok(())
    }
}

/// What the layers of one direction remember: the last rows of each one's input.
pub type Memory = Vec<Option<Tensor>>;

/// Encoder and decoder.
#[derive(Debug)]
pub struct AudioVae {
    encoder: Encoder,
    decoder: Decoder,
    hop: usize,
}

impl AudioVae {
    /// Loads `encoder` and `decoder`. The caller calls [`Weights::finish`].
    pub fn load(weights: &Weights, config: &AudioVaeConfig) -> weights::Result<Self> {
        Ok(Self {
            encoder: Encoder::load(&weights.pp("encoder"), config)?,
            decoder: Decoder::load(&weights.pp("decoder"), config)?,
            hop: config.hop(),
        })
    }

    /// Means of the latents `[count, latent_dim]` of `samples` `[length, 1]`, whose length is a multiple of the hop.
    pub fn encode(&self, samples: &Tensor) -> Result<Tensor> {
        let length = samples.dim(0)?;
        if length == 0 || !length.is_multiple_of(self.hop) {
            candle_core::bail!("{length} samples do not fill latents of {}", self.hop);
        }
        let (mut memory, mut latents) = (Memory::new(), Vec::new());
        for start in (0..length).step_by(ENCODED_AT_ONCE * self.hop) {
            let count = (length - start).min(ENCODED_AT_ONCE * self.hop);
            let piece = samples.narrow(0, start, count)?;
            latents.push(self.encoder.forward(&piece, &mut memory)?);
        }
        Tensor::cat(&latents, 0)
    }

    /// The next samples `[count * hop, 1]` of a sound whose next latents are `latents` `[count, latent_dim]`.
    pub fn decode(&self, latents: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        self.decoder.forward(latents, memory)
    }
}

#[derive(Debug)]
struct Encoder {
    first: CausalConv,
    blocks: Vec<EncoderBlock>,
    mean: CausalConv,
}

#[derive(Debug)]
struct EncoderBlock {
    residuals: Vec<ResidualUnit>,
    snake: Snake,
    down: CausalConv,
}

impl Encoder {
    fn load(weights: &Weights, config: &AudioVaeConfig) -> weights::Result<Self> {
        let mut layers = Layers(0);
        let mut channels = config.encoder_dim;
        let first = layers.conv(&weights.pp("block.0"), (1, channels), KERNEL, Shape::Dense)?;
        let mut blocks = Vec::new();
        for (index, &stride) in config.encoder_rates.iter().enumerate() {
            let block = weights.pp(format_args!("block.{}.block", index + 1));
            blocks.push(EncoderBlock {
                residuals: layers.residual_units(&block, 0, channels, config.depthwise)?,
                snake: Snake::load(&block.pp("3"), channels)?,
                down: layers.conv(
                    &block.pp("4"),
                    (channels, 2 * channels),
                    2 * stride,
                    Shape::Strided(stride),
                )?,
            });
            channels *= 2;
        }
        let latents = (channels, config.latent_dim);
        let mean = layers.conv(&weights.pp("fc_mu"), latents, LATENT_KERNEL, Shape::Dense)?;
        Ok(Self {
            first,
            blocks,
            mean,
        })
    }

    fn forward(&self, samples: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let mut hidden = self.first.forward(samples, memory)?;
        for block in &self.blocks {
            for unit in &block.residuals {
                hidden = unit.forward(&hidden, memory)?;
            }
            hidden = block.down.forward(&block.snake.forward(&hidden)?, memory)?;
        }
        self.mean.forward(&hidden, memory)
    }
}

#[derive(Debug)]
struct Decoder {
    first: CausalConv,
    /// Where the first convolution keeps channels apart.
    widen: Option<CausalConv>,
    blocks: Vec<DecoderBlock>,
    snake: Snake,
    last: CausalConv,
}

#[derive(Debug)]
struct DecoderBlock {
    snake: Snake,
    up: CausalUpsample,
    residuals: Vec<ResidualUnit>,
}

impl Decoder {
    fn load(weights: &Weights, config: &AudioVaeConfig) -> weights::Result<Self> {
        let model = |index: usize| weights.pp(format_args!("model.{index}"));
        let (mut layers, mut channels) = (Layers(0), config.decoder_dim);
        let latents = config.latent_dim;
        let (first, widen) = if config.depthwise {
            (
                layers.conv(&model(0), (latents, latents), KERNEL, Shape::Depthwise(1))?,
                Some(layers.conv(&model(1), (latents, channels), 1, Shape::Dense)?),
            )
        } else {
            (
                layers.conv(&model(0), (latents, channels), KERNEL, Shape::Dense)?,
                None,
            )
        };
        let behind = 1 + usize::from(widen.is_some());
        let mut blocks = Vec::new();
        for (index, &stride) in config.decoder_rates.iter().enumerate() {
            let block = model(behind + index).pp("block");
            blocks.push(DecoderBlock {
                snake: Snake::load(&block.pp("0"), channels)?,
                up: layers.upsample(&block.pp("1"), (channels, channels / 2), stride)?,
                residuals: layers.residual_units(&block, 2, channels / 2, config.depthwise)?,
            });
            channels /= 2;
        }
        let end = behind + config.decoder_rates.len();
        Ok(Self {
            first,
            widen,
            blocks,
            snake: Snake::load(&model(end), channels)?,
            last: layers.conv(&model(end + 1), (channels, 1), KERNEL, Shape::Dense)?,
        })
    }

    fn forward(&self, latents: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let mut hidden = self.first.forward(latents, memory)?;
        if let Some(widen) = &self.widen {
            hidden = widen.forward(&hidden, memory)?;
        }
        self.rise(0, &hidden, memory)
    }

    /// Sound from the input of a block. What a block widens goes through all that follow while it is in a cache: pieces
    /// of the input give what the whole would.
    fn rise(&self, index: usize, hidden: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let Some(block) = self.blocks.get(index) else {
            return self
                .last
                .forward(&self.snake.forward(hidden)?, memory)?
                .tanh();
        };
        let (rows, channels) = hidden.dims2()?;
        let at_once = (VALUES_AT_ONCE / (block.up.stride * channels / 2).max(1)).max(1);
        let mut pieces = Vec::with_capacity(rows.div_ceil(at_once));
        for start in (0..rows).step_by(at_once) {
            let piece = hidden.narrow(0, start, at_once.min(rows - start))?;
            let mut piece = block.up.forward(&block.snake.forward(&piece)?, memory)?;
            for unit in &block.residuals {
                piece = unit.forward(&piece, memory)?;
            }
            pieces.push(self.rise(index + 1, &piece, memory)?);
        }
        match pieces.as_slice() {
            [whole] => Ok(whole.clone()),
            pieces => Tensor::cat(pieces, 0),
        }
    }
}

/// `x + conv1(snake(conv7(snake(x))))`, the wide convolution dilated.
#[derive(Debug)]
struct ResidualUnit {
    snake: Snake,
    wide: CausalConv,
    mid_snake: Snake,
    narrow: CausalConv,
}

impl ResidualUnit {
    fn forward(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let hidden = self.wide.forward(&self.snake.forward(x)?, memory)?;
        // Of one tap, it remembers nothing.
        self.narrow
            .conv
            .forward_rows_added(&self.mid_snake.forward(&hidden)?, x)
    }
}

/// How a convolution moves and mixes.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// All channels meet, every position gives one.
    Dense,
    /// All channels meet, with this dilation.
    Dilated(usize),
    /// Channels stay apart, with this dilation.
    Depthwise(usize),
    /// All channels meet, with this stride.
    Strided(usize),
}

/// Numbers the layers that remember something.
struct Layers(usize);

impl Layers {
    fn next(&mut self) -> usize {
        self.0 += 1;
        self.0 - 1
    }

    fn conv(
        &mut self,
        weights: &Weights,
        (in_channels, out_channels): (usize, usize),
        kernel_size: usize,
        shape: Shape,
    ) -> weights::Result<CausalConv> {
        let mut config = Conv1dConfig::default();
        let mut context = kernel_size - 1;
        match shape {
            Shape::Dense => {}
            Shape::Dilated(dilation) => config.dilation = dilation,
            Shape::Depthwise(dilation) => {
                config.dilation = dilation;
                config.groups = in_channels;
            }
            Shape::Strided(stride) => {
                config.stride = stride;
                context = 2 * stride.div_ceil(2);
            }
        }
        context *= config.dilation;
        Ok(CausalConv {
            conv: Conv1d::load(
                weights,
                in_channels,
                out_channels,
                kernel_size,
                config,
                true,
            )?,
            context,
            in_channels,
            index: self.next(),
        })
    }

    fn upsample(
        &mut self,
        weights: &Weights,
        (in_channels, out_channels): (usize, usize),
        stride: usize,
    ) -> weights::Result<CausalUpsample> {
        let (kernel_size, index) = (2 * stride, self.next());
        Ok(CausalUpsample {
            conv: ConvTranspose1d::load(
                weights,
                in_channels,
                out_channels,
                kernel_size,
                stride,
                true,
            )?,
            stride,
            in_channels,
            index,
        })
    }

    /// Three units, stored from `first` on.
    fn residual_units(
        &mut self,
        weights: &Weights,
        first: usize,
        channels: usize,
        depthwise: bool,
    ) -> weights::Result<Vec<ResidualUnit>> {
        let unit = |(index, &dilation): (usize, &usize)| {
            let unit = weights.pp(format_args!("{}.block", first + index));
            let shape = if depthwise {
                Shape::Depthwise(dilation)
            } else {
                Shape::Dilated(dilation)
            };
            let same = (channels, channels);
            Ok(ResidualUnit {
                snake: Snake::load(&unit.pp("0"), channels)?,
                wide: self.conv(&unit.pp("1"), same, KERNEL, shape)?,
                mid_snake: Snake::load(&unit.pp("2"), channels)?,
                narrow: self.conv(&unit.pp("3"), same, 1, Shape::Dense)?,
            })
        };
        DILATIONS.iter().enumerate().map(unit).collect()
    }
}

/// A convolution over what has been: its input is continued by the `context` rows before it, zeros at the start.
#[derive(Debug)]
struct CausalConv {
    conv: Conv1d,
    context: usize,
    in_channels: usize,
    index: usize,
}

impl CausalConv {
    fn forward(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        if self.context == 0 {
            return self.conv.forward_rows(x);
        }
        let x = continued(x, self.context, self.in_channels, self.index, memory)?;
        self.conv.forward_rows(&x)
    }
}

/// A transposed convolution of kernel `2 * stride`: each row of its output comes from this row of the input and the one
/// before.
#[derive(Debug)]
struct CausalUpsample {
    conv: ConvTranspose1d,
    stride: usize,
    in_channels: usize,
    index: usize,
}

impl CausalUpsample {
    fn forward(&self, x: &Tensor, memory: &mut Memory) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let x = continued(x, 1, self.in_channels, self.index, memory)?;
        // The first rows were handed out with the input before; the last wait for the input to come.
        self.conv
            .forward_rows(&x)?
            .narrow(0, self.stride, rows * self.stride)
    }
}

/// `x` behind the `context` rows that layer `index` remembers, which become the last ones of both.
fn continued(
    x: &Tensor,
    context: usize,
    channels: usize,
    index: usize,
    memory: &mut Memory,
) -> Result<Tensor> {
    if memory.len() <= index {
        memory.resize(index + 1, None);
    }
    let before = match memory[index].take() {
        Some(rows) => rows,
        None => Tensor::zeros((context, channels), x.dtype(), x.device())?,
    };
    let x = Tensor::cat(&[&before, x], 0)?;
    let rows = x.dim(0)?;
    // A copy: a view would keep the whole piece.
    memory[index] = Some(x.narrow(0, rows - context, context)?.copy()?);
    Ok(x)
}
