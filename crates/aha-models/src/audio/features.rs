//! Features of recordings on the device.

use aha_engine::{EncoderContent, EncoderInput};
use aha_nn::weights::Weights;
use candle_core::{DType, Device, Result, Tensor};

/// Lays what processors made of recordings on the device.
#[derive(Debug)]
pub struct FeatureReader {
    bins: usize,
    device: Device,
    dtype: DType,
}

impl FeatureReader {
    /// For frames of `bins` values, which go where `weights` are.
    pub fn new(bins: usize, weights: &Weights) -> Self {
        Self {
            bins,
            device: weights.device().clone(),
            dtype: weights.dtype(),
        }
    }

    /// Where features go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Their type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The features of an input, `[bins, frames]` as spectrograms are, and their frames.
    pub fn spectrogram<'a>(&self, input: &'a EncoderInput) -> Result<(&'a [f32], usize)> {
        match matrix(input)? {
            (values, [bins, frames]) if bins == self.bins => Ok((values, frames)),
            (_, shape) => candle_core::bail!("features of {shape:?} instead of {} bins", self.bins),
        }
    }

    /// The features of inputs that are `[frames, bins]`, end to end on the device, and the frames of each.
    pub fn frames(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<usize>)> {
        let (mut all, mut lengths) = (Vec::new(), Vec::with_capacity(inputs.len()));
        for input in inputs {
            match matrix(input)? {
                (values, [frames, bins]) if bins == self.bins => {
                    all.extend_from_slice(values);
                    lengths.push(frames);
                }
                (_, shape) => {
                    candle_core::bail!("features of {shape:?} instead of {} bins", self.bins)
                }
            }
        }
        let frames = lengths.iter().sum::<usize>();
        Ok((self.tensor(all, (frames, self.bins))?, lengths))
    }

    /// Values of a shape on the device.
    pub fn tensor(&self, values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        Tensor::from_vec(values, shape.into(), &self.device)?.to_dtype(self.dtype)
    }
}

/// The features of an input and their two dimensions.
fn matrix(input: &EncoderInput) -> Result<(&[f32], [usize; 2])> {
    match &input.content {
        EncoderContent::Features { values, shape } => match *shape.as_slice() {
            [rows, columns] if rows.checked_mul(columns) == Some(values.len()) => {
                Ok((values, [rows, columns]))
            }
            _ => candle_core::bail!("{} values are no features of {shape:?}", values.len()),
        },
        EncoderContent::Frames(_) => candle_core::bail!("a speech encoder takes features"),
    }
}
