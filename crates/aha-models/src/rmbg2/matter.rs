//! From a picture to what the network takes, and from its answer to a mask.

use super::model::BiRefNet;
use aha_engine::{EngineError, Matter};
use aha_media::MediaError;
use aha_media::image::{Channels, Filter, Image, Normalization, Resampler, interleaved, resize};
use candle_core::{DType, Device, Result, Tensor};

/// The network with its preprocessing.
#[derive(Debug)]
pub struct Rmbg2 {
    pub(super) network: BiRefNet,
    /// Width and height of the network's input, whatever the picture's shape.
    pub(super) input_size: (u32, u32),
    pub(super) filter: Filter,
    pub(super) normalization: Normalization,
    pub(super) device: Device,
    pub(super) dtype: DType,
}

impl Rmbg2 {
    /// The network itself.
    pub fn network(&self) -> &BiRefNet {
        &self.network
    }

    /// A prepared picture as the network takes it, `[1, height, width, 3]`.
    ///
    /// # Errors
    /// When the picture is not RGB.
    pub fn pixels(&self, prepared: &Image) -> Result<Tensor> {
        let values = interleaved(prepared, &self.normalization)
            .map_err(|error| candle_core::Error::Msg(error.to_string()))?;
        let (height, width) = (prepared.height() as usize, prepared.width() as usize);
        Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)
    }
}

impl Matter for Rmbg2 {
    fn prepare(&self, picture: &Image) -> std::result::Result<Image, EngineError> {
        let rgb = picture.clone().into_rgb_dropping_alpha();
        let (width, height) = self.input_size;
        resize(&rgb, width, height, self.filter, Resampler::Pillow).map_err(refused)
    }

    fn alpha(&self, prepared: &Image, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Tensor> {
        self.network.alpha(&self.pixels(prepared)?, |_, _| {
            if cancelled() {
                candle_core::bail!("cancelled");
            }
            Ok(())
        })
    }

    /// As the release does: cut down to 8 bits, then brought to the picture's size by Pillow's bicubic filter.
    fn mask(
        &self,
        alpha: &Tensor,
        width: u32,
        height: u32,
    ) -> std::result::Result<Image, EngineError> {
        let (rows, columns) = alpha.dims2()?;
        let shares: Vec<f32> = alpha.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if shares.iter().any(|share| !share.is_finite()) {
            return Err(EngineError::internal(
                "the model computed numbers that are not finite: its weights may be damaged, or too large for the precision",
            ));
        }
        let samples = shares.iter().map(|share| (share * 255.0) as u8).collect();
        Image::new(columns as u32, rows as u32, Channels::Gray, samples)
            .and_then(|mask| resize(&mask, width, height, Filter::Bicubic, Resampler::Pillow))
            .map_err(refused)
    }
}

/// Pictures come decoded within limits, so what does not resize is too large for the masks, not a fault of ours.
fn refused(error: MediaError) -> EngineError {
    EngineError::invalid("image", error.to_string())
}
