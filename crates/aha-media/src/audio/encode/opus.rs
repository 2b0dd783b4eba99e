//! Opus in Ogg, one or two channels.

use opus_pure::{Application, Error, MAX_PACKET_BYTES, OggOpusWriter, OpusEncoder, OpusHead};

use super::super::error::{AudioError, Result};
use super::super::resample::{ResampleMethod, Resampler};
use super::unavailable;

const RATES: [u32; 5] = [8_000, 12_000, 16_000, 24_000, 48_000];
/// Rate of the clock in the container, and the rate that others are converted to.
const CLOCK: u32 = 48_000;

pub(super) struct OpusStream {
    encoder: OpusEncoder,
    writer: OggOpusWriter<Vec<u8>>,
    pre_skip: u64,
    rate: u32,
    channels: usize,
    /// One for each channel, where the rate has to change.
    resamplers: Vec<Resampler>,
    lanes: Vec<Vec<f32>>,
    /// Interleaved samples at the encoder's rate that do not fill a packet yet.
    pending: Vec<f32>,
    /// Samples a channel that came in, at the encoder's rate.
    frames: u64,
}

impl OpusStream {
    pub(super) fn new(
        rate: u32,
        channels: usize,
        bitrate: Option<u32>,
        out: &mut Vec<u8>,
    ) -> Result<Self> {
        if channels > 2 {
            return Err(unavailable(
                "Opus",
                "it takes one or two channels; choose WAV or FLAC",
            ));
        }
        let bitrate = bitrate.unwrap_or(48_000 * channels as u32);
        if !(6_000..=510_000).contains(&bitrate) {
            return Err(unavailable(
                "Opus",
                format!("{bitrate} bits a second is beyond it"),
            ));
        }
        let coded = if RATES.contains(&rate) { rate } else { CLOCK };
        let resamplers = if coded == rate {
            Vec::new()
        } else {
            (0..channels)
                .map(|_| Resampler::new(rate, coded, ResampleMethod::SoxrHq))
                .collect::<Result<_>>()?
        };
        let mut encoder = OpusEncoder::new(coded as i32, channels, Application::Audio)
            .map_err(|error| failed(&error))?;
        encoder.bitrate_bps = bitrate as i32;
        let head = OpusHead::for_encoder(&encoder, rate);
        let pre_skip = u64::from(head.pre_skip);
        let writer = OggOpusWriter::new(Vec::new(), head).map_err(|error| failed(&error))?;
        let mut stream = Self {
            encoder,
            writer,
            pre_skip,
            rate: coded,
            channels,
            lanes: vec![Vec::new(); resamplers.len()],
            resamplers,
            pending: Vec::new(),
            frames: 0,
        };
        stream.flush(out);
        Ok(stream)
    }

    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<u8>) -> Result<()> {
        if self.resamplers.is_empty() {
            self.pending.extend_from_slice(samples);
            self.frames += (samples.len() / self.channels) as u64;
        } else {
            for (channel, resampler) in self.resamplers.iter_mut().enumerate() {
                let lane: Vec<f32> = samples
                    .iter()
                    .skip(channel)
                    .step_by(self.channels)
                    .copied()
                    .collect();
                resampler.push(&lane, &mut self.lanes[channel]);
            }
            self.interleave();
        }
        self.packets(out)
    }

    fn interleave(&mut self) {
        let count = self.lanes.iter().map(Vec::len).min().unwrap_or(0);
        for index in 0..count {
            self.pending
                .extend(self.lanes.iter().map(|lane| lane[index]));
        }
        for lane in &mut self.lanes {
            lane.drain(..count);
        }
        self.frames += count as u64;
    }

    fn packet_frames(&self) -> usize {
        self.rate as usize / 50
    }

    fn packets(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let length = self.packet_frames() * self.channels;
        let mut used = 0;
        // The last packet is kept back: its end may have to be marked.
        while self.pending.len() - used > length {
            let packet = self.encode(used)?;
            self.writer
                .write_packet(&packet)
                .map_err(|error| failed(&error))?;
            used += length;
        }
        self.pending.drain(..used);
        self.flush(out);
        Ok(())
    }

    fn encode(&mut self, start: usize) -> Result<Vec<u8>> {
        let frames = self.packet_frames();
        let block: Vec<f32> = self.pending[start..start + frames * self.channels]
            .iter()
            .map(|sample| {
                if sample.is_nan() {
                    0.0
                } else {
                    sample.clamp(-1.0, 1.0)
                }
            })
            .collect();
        let mut packet = vec![0; MAX_PACKET_BYTES];
        let length = self
            .encoder
            .encode(&block, frames, &mut packet)
            .map_err(|error| failed(&error))?;
        packet.truncate(length);
        Ok(packet)
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) -> Result<()> {
        for (resampler, lane) in self.resamplers.iter_mut().zip(&mut self.lanes) {
            resampler.finish(lane);
        }
        self.interleave();
        // The encoder runs behind by its pre-skip: that much silence brings out its last samples,
        // and the position of the last page says where the sound ended.
        let ticks = u64::from(CLOCK / self.rate);
        let delay = self.pre_skip.div_ceil(ticks);
        let length = self.packet_frames() * self.channels;
        let wanted = self.pending.len() + delay as usize * self.channels;
        self.pending
            .resize(wanted.div_ceil(length).max(1) * length, 0.0);
        let end = self.pre_skip + self.frames * ticks;
        let mut used = 0;
        while used < self.pending.len() {
            let packet = self.encode(used)?;
            used += length;
            let written = self.writer.granule().max(0) as u64;
            let left = end.saturating_sub(written);
            let whole = self.packet_frames() as u64 * ticks;
            self.writer
                .write_packet_with_duration(&packet, left.min(whole) as u32)
                .map_err(|error| failed(&error))?;
        }
        let sink = self.writer.finish().map_err(|error| failed(&error))?;
        out.extend(sink);
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(sink) = self.writer.get_mut() {
            out.append(sink);
        }
    }
}

fn failed(error: &Error) -> AudioError {
    AudioError::Encode {
        format: "Opus",
        reason: error.to_string(),
    }
}
