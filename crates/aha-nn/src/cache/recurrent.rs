//! States of recurrent layers.

use candle_core::{DType, Device, Result, Tensor};

/// One kind of state of all sequences, f32, a row for each slot.
#[derive(Debug)]
pub enum StateRows {
    /// On the CPU, where kernels update it in place.
    Host {
        /// `[slots, width]`.
        values: Vec<f32>,
        /// Values of one state.
        width: usize,
    },
    /// On an accelerator, `[slots, width]`.
    Device(Tensor),
}

impl StateRows {
    fn new(slots: usize, width: usize, device: &Device) -> Result<Self> {
        Ok(if device.is_cpu() {
            Self::Host {
                values: vec![0.0; slots * width],
                width,
            }
        } else {
            Self::Device(Tensor::zeros((slots, width), DType::F32, device)?)
        })
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Host { values, width } => {
                let (from, to) = (from as usize * *width, to as usize * *width);
                if from.max(to) + *width > values.len() {
                    candle_core::bail!("there is no such state slot");
                }
                values.copy_within(from..from + *width, to);
                Ok(())
            }
            Self::Device(rows) => {
                let state = rows.narrow(0, from as usize, 1)?.copy()?;
                rows.slice_set(&state, 0, to as usize)
            }
        }
    }

    /// The state in `slot` as a tensor `[width]`, for devices without a kernel of ours.
    pub(crate) fn read(&self, slot: u32, device: &Device) -> Result<Tensor> {
        match self {
            Self::Host { values, width } => {
                let from = slot as usize * width;
                Tensor::from_slice(&values[from..from + width], *width, device)
            }
            Self::Device(rows) => rows.get(slot as usize)?.copy(),
        }
    }

    /// Replaces the state in `slot`.
    pub(crate) fn write(&mut self, slot: u32, state: &Tensor) -> Result<()> {
        let state = state.flatten_all()?;
        match self {
            Self::Host { values, width } => {
                let from = slot as usize * *width;
                values[from..from + *width].copy_from_slice(&state.to_vec1::<f32>()?);
                Ok(())
            }
            Self::Device(rows) => rows.slice_set(&state.unsqueeze(0)?, 0, slot as usize),
        }
    }
}

/// What one recurrent layer keeps of all sequences.
#[derive(Debug)]
pub struct RecurrentCache {
    /// The last `kernel_size - 1` inputs of the convolution, `[slots, (kernel_size - 1) * channels]`.
    pub inputs: StateRows,
    /// A matrix for each head, `[slots, num_heads * key_dim * value_dim]`; empty for convolutions alone.
    pub matrices: StateRows,
}

impl RecurrentCache {
    pub(super) fn new(
        slots: usize,
        inputs: usize,
        matrices: usize,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            inputs: StateRows::new(slots, inputs, device)?,
            matrices: StateRows::new(slots, matrices, device)?,
        })
    }

    pub(super) fn copy(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        for &(from, to) in pairs {
            self.inputs.copy(from, to)?;
            self.matrices.copy(from, to)?;
        }
        Ok(())
    }
}
