//! Caches of running sequences: storage here, ownership and allocation in the engine.

mod kv;
mod recurrent;

use aha_kernels::PagedCache;
use candle_core::{DType, Device, Result};
pub use kv::KvCache;
pub(crate) use kv::append;
pub use recurrent::{RecurrentCache, StateRows};

/// What one layer keeps of a sequence between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerSpec {
    /// Keys and values of every token.
    Attention {
        /// Key/value heads (`num_key_value_heads`).
        num_kv_heads: usize,
        /// Size of a head (`head_dim`).
        head_dim: usize,
        /// Their type, on the CPU f32 or f16.
        dtype: DType,
    },
    /// The last inputs of a short convolution.
    ShortConv {
        /// Channels of the convolution.
        channels: usize,
        /// Taps of its filters.
        kernel_size: usize,
    },
    /// The last inputs of a short convolution and a matrix for each head.
    GatedDelta {
        /// Channels of the convolution: queries, keys and values.
        channels: usize,
        /// Taps of its filters (`linear_conv_kernel_dim`).
        kernel_size: usize,
        /// Heads of values (`linear_num_value_heads`).
        num_heads: usize,
        /// Rows of a head's matrix (`linear_key_head_dim`).
        key_dim: usize,
        /// Columns of a head's matrix (`linear_value_head_dim`).
        value_dim: usize,
    },
}

impl LayerSpec {
    /// Bytes kept for each token.
    fn bytes_per_token(&self) -> usize {
        match self {
            Self::Attention {
                num_kv_heads,
                head_dim,
                dtype,
            } => 2 * num_kv_heads * head_dim * dtype.size_in_bytes(),
            Self::ShortConv { .. } | Self::GatedDelta { .. } => 0,
        }
    }

    /// Values kept for each sequence, whatever its length: inputs of the convolution and matrices.
    fn values_per_sequence(&self) -> (usize, usize) {
        let past = |channels: usize, kernel_size: usize| channels * kernel_size.saturating_sub(1);
        match *self {
            Self::Attention { .. } => (0, 0),
            Self::ShortConv {
                channels,
                kernel_size,
            } => (past(channels, kernel_size), 0),
            Self::GatedDelta {
                channels,
                kernel_size,
                num_heads,
                key_dim,
                value_dim,
            } => (past(channels, kernel_size), num_heads * key_dim * value_dim),
        }
    }
}

/// What a model keeps of a sequence between steps, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// One entry a decoder layer.
    pub layers: Vec<LayerSpec>,
    /// Prompts up to this length may share cached blocks with others: beyond it some rope scalings make a key
    /// depend on the length of its whole prompt. `None`: always.
    pub shareable_prompt_len: Option<usize>,
}

impl CacheSpec {
    /// Bytes that one token takes in all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.layers.iter().map(LayerSpec::bytes_per_token).sum()
    }

    /// Type of cached keys and values, where there are any.
    pub fn kv_dtype(&self) -> Option<DType> {
        self.layers.iter().find_map(|layer| match layer {
            LayerSpec::Attention { dtype, .. } => Some(*dtype),
            LayerSpec::ShortConv { .. } | LayerSpec::GatedDelta { .. } => None,
        })
    }

    /// Bytes of recurrent state that one sequence takes in all layers, whatever its length; 0 without such layers.
    pub fn bytes_per_state(&self) -> usize {
        let values: usize = self
            .layers
            .iter()
            .map(LayerSpec::values_per_sequence)
            .map(|(inputs, matrices)| inputs + matrices)
            .sum();
        values * DType::F32.size_in_bytes()
    }
}

/// What one layer keeps of all sequences.
#[derive(Debug)]
pub enum LayerCache {
    /// Of an attention layer.
    Attention(KvCache),
    /// Of a recurrent layer.
    Recurrent(RecurrentCache),
}

impl LayerCache {
    /// The keys and values of an attention layer; errors when the layer was declared as another kind.
    pub fn attention(&mut self) -> Result<&mut KvCache> {
        match self {
            Self::Attention(cache) => Ok(cache),
            Self::Recurrent(_) => {
                candle_core::bail!("an attention layer was declared as a recurrent one")
            }
        }
    }

    /// The states of a recurrent layer; errors when the layer was declared as another kind.
    pub fn recurrent(&mut self) -> Result<&mut RecurrentCache> {
        match self {
            Self::Recurrent(cache) => Ok(cache),
            Self::Attention(_) => {
                candle_core::bail!("a recurrent layer was declared as an attention layer")
            }
        }
    }
}

/// The caches of all layers, sized once.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    block_size: usize,
    num_blocks: usize,
}

impl Cache {
    /// Tokens that blocks of attention layers' caches are multiples of on the CPU.
    pub const PAGE: usize = PagedCache::PAGE;

    /// Allocates `num_blocks` blocks of `block_size` tokens for every attention layer of `spec`, and `num_states`
    /// slots for every recurrent one.
    ///
    /// On the CPU the pages are only touched, and so only resident, once something is written to them.
    pub fn new(
        spec: &CacheSpec,
        num_blocks: usize,
        block_size: usize,
        num_states: usize,
        device: &Device,
    ) -> Result<Self> {
        let layer = |layer: &LayerSpec| match *layer {
            LayerSpec::Attention {
                num_kv_heads,
                head_dim,
                dtype,
            } => KvCache::new(
                num_blocks * block_size,
                num_kv_heads,
                head_dim,
                dtype,
                device,
            )
            .map(LayerCache::Attention),
            LayerSpec::ShortConv { .. } | LayerSpec::GatedDelta { .. } => {
                let (inputs, matrices) = layer.values_per_sequence();
                RecurrentCache::new(num_states, inputs, matrices, device).map(LayerCache::Recurrent)
            }
        };
        Ok(Self {
            layers: spec.layers.iter().map(layer).collect::<Result<_>>()?,
            block_size,
            num_blocks,
        })
    }

    /// The caches in the order of the layers.
    pub fn layers_mut(&mut self) -> &mut [LayerCache] {
        &mut self.layers
    }

    /// Copies the recurrent state of each first slot to the second one, pair after pair.
    pub fn copy_states(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        for layer in &mut self.layers {
            if let LayerCache::Recurrent(cache) = layer {
                cache.copy(pairs)?;
            }
        }
        Ok(())
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }
}
