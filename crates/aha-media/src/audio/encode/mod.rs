//! Samples to files and streams: WAV, raw PCM, FLAC, MP3 and Opus in Ogg.

mod flac;
mod mp3;
mod opus;
mod wav;

use super::error::{AudioError, Result};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AudioFormat {
    /// WAV with 16-bit integers.
    WavPcm16,
    /// WAV with 32-bit floats: nothing is rounded or clipped.
    WavFloat32,
    /// 16-bit little-endian integers without a header.
    Pcm16,
    /// 32-bit little-endian floats without a header.
    PcmFloat32,
    /// FLAC with 16 bits.
    Flac,
    /// MP3.
    Mp3,
    /// Opus in Ogg. Rates that Opus does not know are converted to 48 kHz.
    Opus,
}

impl AudioFormat {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::WavPcm16 | Self::WavFloat32 => "audio/wav",
            Self::Pcm16 | Self::PcmFloat32 => "audio/pcm",
            Self::Flac => "audio/flac",
            Self::Mp3 => "audio/mpeg",
            Self::Opus => "audio/ogg; codecs=opus",
        }
    }

    /// The usual ending of file names.
    pub fn extension(self) -> &'static str {
        match self {
            Self::WavPcm16 | Self::WavFloat32 => "wav",
            Self::Pcm16 | Self::PcmFloat32 => "pcm",
            Self::Flac => "flac",
            Self::Mp3 => "mp3",
            Self::Opus => "opus",
        }
    }
}

/// What is known of the sound before the first sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// What to write.
    pub format: AudioFormat,
    /// Samples a second and channel.
    pub sample_rate: u32,
    /// Channels.
    pub channels: usize,
    /// Bits a second of MP3 and Opus; `None` takes 64,000 (Opus: 48,000) a channel.
    pub bitrate: Option<u32>,
}

/// Bytes to write over the start of a finished file: lengths that a stream cannot know when its
/// header leaves. A stream is valid without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderPatch {
    /// Offset from the start of the file.
    pub offset: u64,
    /// What belongs there.
    pub bytes: Vec<u8>,
}

/// A streaming encoder. Samples beyond full scale are clipped, and what is no number is silence,
/// in all formats but the float ones.
pub struct AudioEncoder {
    kind: Kind,
    channels: usize,
}

enum Kind {
    Wav(wav::WavEncoder),
    Flac(Box<flac::FlacEncoder>),
    Mp3(Box<mp3::Mp3Stream>),
    Opus(Box<opus::OpusStream>),
}

impl std::fmt::Debug for AudioEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AudioEncoder")
            .finish_non_exhaustive()
    }
}

impl AudioEncoder {
    /// An encoder; the header goes to `out` at once where there is one.
    ///
    /// # Errors
    ///
    /// [`AudioError::EncoderUnavailable`] when the format does not take the rate or channels.
    pub fn new(options: EncodeOptions, out: &mut Vec<u8>) -> Result<Self> {
        Self::start(options, false, out)
    }

    fn start(options: EncodeOptions, whole: bool, out: &mut Vec<u8>) -> Result<Self> {
        let EncodeOptions {
            format,
            sample_rate,
            channels,
            bitrate,
        } = options;
        if channels == 0 || sample_rate == 0 {
            return Err(AudioError::InvalidOption {
                name: "output format",
                reason: format!("{sample_rate} Hz with {channels} channels is no sound"),
            });
        }
        let kind = match format {
            AudioFormat::WavPcm16
            | AudioFormat::WavFloat32
            | AudioFormat::Pcm16
            | AudioFormat::PcmFloat32 => {
                Kind::Wav(wav::WavEncoder::new(format, sample_rate, channels, out)?)
            }
            AudioFormat::Flac => Kind::Flac(Box::new(flac::FlacEncoder::new(
                sample_rate,
                channels,
                out,
            )?)),
            AudioFormat::Mp3 => Kind::Mp3(Box::new(mp3::Mp3Stream::new(
                sample_rate,
                channels,
                bitrate,
                whole,
            )?)),
            AudioFormat::Opus => Kind::Opus(Box::new(opus::OpusStream::new(
                sample_rate,
                channels,
                bitrate,
                out,
            )?)),
        };
        Ok(Self { kind, channels })
    }

    /// Adds samples, channels interleaved; bytes that are ready are appended to `out`.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] for a part of a frame, [`AudioError::Encode`].
    pub fn push(&mut self, interleaved: &[f32], out: &mut Vec<u8>) -> Result<()> {
        if !interleaved.len().is_multiple_of(self.channels) {
            return Err(AudioError::InvalidOption {
                name: "samples",
                reason: format!(
                    "{} do not fill {} channels",
                    interleaved.len(),
                    self.channels
                ),
            });
        }
        match &mut self.kind {
            Kind::Wav(encoder) => {
                encoder.push(interleaved, out);
                Ok(())
            }
            Kind::Flac(encoder) => encoder.push(interleaved, out),
            Kind::Mp3(encoder) => encoder.push(interleaved, out),
            Kind::Opus(encoder) => encoder.push(interleaved, out),
        }
    }

    /// Appends the last bytes. The patches are for files; a stream that has left is complete.
    ///
    /// # Errors
    ///
    /// [`AudioError::Encode`].
    pub fn finish(self, out: &mut Vec<u8>) -> Result<Vec<HeaderPatch>> {
        match self.kind {
            Kind::Wav(encoder) => Ok(encoder.finish(out)),
            Kind::Flac(encoder) => encoder.finish(out),
            Kind::Mp3(encoder) => encoder.finish(out).map(|()| Vec::new()),
            Kind::Opus(encoder) => encoder.finish(out).map(|()| Vec::new()),
        }
    }
}

/// A whole file from samples, channels interleaved.
///
/// # Errors
///
/// As [`AudioEncoder`].
pub fn encode(interleaved: &[f32], options: EncodeOptions) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = AudioEncoder::start(options, true, &mut out)?;
    encoder.push(interleaved, &mut out)?;
    for patch in encoder.finish(&mut out)? {
        let at = patch.offset as usize;
        if let Some(slot) = out.get_mut(at..at + patch.bytes.len()) {
            slot.copy_from_slice(&patch.bytes);
        }
    }
    Ok(out)
}

/// A sample as a 16-bit integer: the inverse of dividing by 32,768.
fn to_i16(sample: f32) -> i16 {
    // The cast saturates, and takes what is no number for 0.
    (sample * 32_768.0).round() as i16
}

fn unavailable(format: &'static str, reason: impl Into<String>) -> AudioError {
    AudioError::EncoderUnavailable {
        format,
        reason: reason.into(),
    }
}
