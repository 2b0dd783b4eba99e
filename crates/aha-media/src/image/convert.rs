//! Changes of the pixel layout, with the arithmetic of Pillow.

use super::{Channels, Image};

/// `a * b / 255`, rounded, as Pillow computes it.
pub(crate) const fn multiply_255(a: u8, b: u8) -> u8 {
    divide_255(a as u32 * b as u32)
}

/// `value / 255`, rounded, for values up to 255 * 255, as Pillow computes it.
const fn divide_255(value: u32) -> u8 {
    let value = value + 128;
    (((value >> 8) + value) >> 8) as u8
}

impl Image {
    /// Three samples a pixel, like Pillow's `convert("RGB")`: gray is repeated, alpha is dropped
    /// and the colours behind it stay as stored.
    #[must_use]
    pub fn into_rgb_dropping_alpha(self) -> Self {
        let samples = match self.channels {
            Channels::Rgb => return self,
            Channels::Gray => self.samples.iter().flat_map(|&gray| [gray; 3]).collect(),
            Channels::GrayAlpha => {
                let pixels = self.samples.chunks_exact(2);
                pixels.flat_map(|pixel| [pixel[0]; 3]).collect()
            }
            Channels::Rgba => {
                let pixels = self.samples.chunks_exact(4);
                pixels.flat_map(|p| [p[0], p[1], p[2]]).collect()
            }
        };
        Self {
            channels: Channels::Rgb,
            samples,
            ..self
        }
    }

    /// Three samples a pixel, laid over `color` by alpha, like pasting the image with its own alpha
    /// as the mask onto a plain one in Pillow. An image without alpha only becomes RGB.
    #[must_use]
    pub fn composited_over(self, color: [u8; 3]) -> Self {
        if !self.channels.has_alpha() {
            return self.into_rgb_dropping_alpha();
        }
        let mut samples = Vec::with_capacity(self.samples.len() / self.channels.count() * 3);
        for pixel in self.samples.chunks_exact(self.channels.count()) {
            let (own, alpha) = match *pixel {
                [gray, alpha] => ([gray; 3], alpha),
                [red, green, blue, alpha] => ([red, green, blue], alpha),
                _ => continue,
            };
            let alpha = u32::from(alpha);
            samples.extend(own.iter().zip(color).map(|(&front, back)| {
                divide_255(u32::from(back) * (255 - alpha) + u32::from(front) * alpha)
            }));
        }
        Self {
            channels: Channels::Rgb,
            samples,
            ..self
        }
    }

    /// The image with `alpha` (an image of [`Channels::Gray`] and the same size) as its alpha
    /// channel: an alpha that was there is replaced, the colours stay as they are.
    ///
    /// # Errors
    /// [`MediaError::InvalidSize`](crate::MediaError::InvalidSize) when the sizes differ or `alpha`
    /// has more than one channel.
    pub fn with_alpha(self, alpha: &Self) -> Result<Self, crate::MediaError> {
        if (alpha.width, alpha.height) != (self.width, self.height)
            || alpha.channels != Channels::Gray
        {
            return Err(crate::MediaError::InvalidSize {
                width: alpha.width.into(),
                height: alpha.height.into(),
                reason: "an alpha channel is gray and as large as its image",
            });
        }
        let rgb = self.into_rgb_dropping_alpha();
        let mut samples = Vec::with_capacity(alpha.samples.len() * 4);
        for (pixel, &alpha) in rgb.samples.chunks_exact(3).zip(&alpha.samples) {
            samples.extend_from_slice(pixel);
            samples.push(alpha);
        }
        Ok(Self {
            channels: Channels::Rgba,
            samples,
            ..rgb
        })
    }

    /// Colours multiplied with alpha: what Pillow resizes instead of the colours themselves.
    pub(crate) fn premultiply(&mut self) {
        let count = self.channels.count();
        for pixel in self.samples.chunks_exact_mut(count) {
            if let Some((&mut alpha, colors)) = pixel.split_last_mut() {
                for color in colors {
                    *color = multiply_255(*color, alpha);
                }
            }
        }
    }

    /// The inverse of [`premultiply`](Self::premultiply), as far as 8 bits allow.
    pub(crate) fn unpremultiply(&mut self) {
        let count = self.channels.count();
        for pixel in self.samples.chunks_exact_mut(count) {
            match pixel.split_last_mut() {
                None | Some((&mut (0 | 255), _)) => {}
                Some((&mut alpha, colors)) => {
                    for color in colors {
                        *color = (255 * u32::from(*color) / u32::from(alpha)).min(255) as u8;
                    }
                }
            }
        }
    }
}

/// The RGB pixels of CMYK pixels (255 is full ink), like Pillow's conversion.
pub(crate) fn cmyk_to_rgb(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for pixel in cmyk.chunks_exact(4) {
        let light = 255 - pixel[3];
        rgb.extend(
            pixel[..3]
                .iter()
                .map(|&ink| light - multiply_255(ink, light)),
        );
    }
    rgb
}
