//! Pixels to the bytes of a file.

use super::{Channels, Image};
use crate::MediaError;
use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};

/// The image as a PNG file; equal images give equal bytes.
///
/// # Errors
/// [`MediaError::Io`] when the encoder fails, which memory alone can cause.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, MediaError> {
    let color = match image.channels() {
        Channels::Gray => ExtendedColorType::L8,
        Channels::GrayAlpha => ExtendedColorType::La8,
        Channels::Rgb => ExtendedColorType::Rgb8,
        Channels::Rgba => ExtendedColorType::Rgba8,
    };
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.samples(), image.width(), image.height(), color)
        .map_err(|error| MediaError::Io {
            what: "encoding the PNG",
            source: std::io::Error::other(error),
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Limits, decode};

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for channels in [
            Channels::Gray,
            Channels::GrayAlpha,
            Channels::Rgb,
            Channels::Rgba,
        ] {
            let samples = (0..3 * 2 * channels.count()).map(|sample| (sample * 9) as u8);
            let image = Image::new(3, 2, channels, samples.collect()).unwrap();
            let bytes = encode_png(&image).unwrap();
            assert_eq!(
                decode(&bytes, &Limits::default()).unwrap().as_stored(),
                image
            );
            assert_eq!(encode_png(&image).unwrap(), bytes);
        }
    }
}
