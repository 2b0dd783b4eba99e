//! MP3, one or two channels.

use rusty_mp3::{Error, Mp3Encoder, Mp3EncoderConfig};

use super::super::error::{AudioError, Result};
use super::unavailable;

const RATES: [u32; 9] = [
    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000,
];

pub(super) struct Mp3Stream {
    encoder: Mp3Encoder,
    rate: u32,
    channels: u16,
    /// Nothing leaves before the end.
    whole: bool,
    /// The frame that tells the length has left, or was left out.
    tag_passed: bool,
}

impl Mp3Stream {
    /// `whole` keeps everything back until the end, and then begins with a frame that tells the
    /// exact length. A stream has no such frame: what it would say is not known yet.
    pub(super) fn new(
        rate: u32,
        channels: usize,
        bitrate: Option<u32>,
        whole: bool,
    ) -> Result<Self> {
        if !RATES.contains(&rate) || channels > 2 {
            return Err(unavailable(
                "MP3",
                format!(
                    "{rate} Hz with {channels} channels is beyond it; take one or two channels and \
                     one of {RATES:?} Hz, or choose WAV"
                ),
            ));
        }
        let bitrate = bitrate.unwrap_or(64_000 * channels as u32);
        if !(8_000..=320_000).contains(&bitrate) {
            return Err(unavailable(
                "MP3",
                format!("{bitrate} bits a second is beyond it"),
            ));
        }
        let kilobits = bitrate / 1000;
        // At the higher rates, a constant bit rate would share bits between frames and give nothing
        // before the end. A variable one with this average streams.
        let vbr_quality = (rate >= 32_000).then_some(kilobits as f32);
        let config = Mp3EncoderConfig {
            bitrate_kbps: kilobits,
            vbr_quality,
        };
        Ok(Self {
            encoder: Mp3Encoder::new(config),
            rate,
            channels: channels as u16,
            whole,
            tag_passed: whole,
        })
    }

    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<u8>) -> Result<()> {
        // Full scale is where a decoder clips.
        let clipped: Vec<f32> = samples
            .iter()
            .map(|sample| sample.clamp(-1.0, 1.0))
            .collect();
        self.encoder
            .push_pcm_f32(&clipped, self.channels, self.rate)
            .map_err(|error| failed(&error))?;
        if self.whole {
            return Ok(());
        }
        self.drain(out)
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) -> Result<()> {
        self.encoder.finish();
        self.drain(out)
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Result<()> {
        loop {
            match self.encoder.next_packet() {
                Ok(_) if !self.tag_passed => self.tag_passed = true,
                Ok(packet) => out.extend_from_slice(&packet),
                Err(Error::Again | Error::Eof) => return Ok(()),
                Err(error) => return Err(failed(&error)),
            }
        }
    }
}

fn failed(error: &Error) -> AudioError {
    AudioError::Encode {
        format: "MP3",
        reason: error.to_string(),
    }
}
