//! Convolutions that make one of the neighbouring patches of a token.

use aha_nn::linear::Linear;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

/// A convolution whose kernel and stride are a merged cell: a product over the patches of each cell.
#[derive(Debug)]
pub struct CellConv {
    product: Linear,
    channels: usize,
    patches: usize,
}

impl CellConv {
    /// Loads `weight` `[out_channels, channels, merge, merge]` and `bias` `[out_channels]`.
    pub fn load(
        weights: &Weights,
        channels: usize,
        merge: usize,
        out_channels: usize,
    ) -> WeightsResult<Self> {
        Ok(Self {
            product: Linear::load_kernel(weights, &[channels, merge, merge], out_channels, true)?,
            channels,
            patches: merge * merge,
        })
    }
}

impl Module for CellConv {
    /// `hidden` is `[patches, channels]`, cell by cell and row by row within a cell; the result
    /// `[cells, out_channels]`.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        // Kernels have the channel before the place.
        let cells = hidden
            .reshape(((), self.patches, self.channels))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape(((), self.channels * self.patches))?;
        self.product.forward(&cells)
    }
}
