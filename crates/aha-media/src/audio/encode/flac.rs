//! FLAC with 16 bits, frame by frame.

use flacenc::bitsink::ByteSink;
use flacenc::component::{BitRepr, Stream};
use flacenc::config;
use flacenc::encode_fixed_size_frame;
use flacenc::error::{Verified, Verify};
use flacenc::source::{Context, Fill, FrameBuf};

use super::super::error::{AudioError, Result};
use super::{HeaderPatch, to_i16, unavailable};

const BLOCK: usize = 4096;
const BITS: usize = 16;

pub(super) struct FlacEncoder {
    config: Verified<config::Encoder>,
    stream: Stream,
    /// Running checksum and number of samples.
    context: Context,
    channels: usize,
    pending: Vec<i32>,
    frames: usize,
}

impl FlacEncoder {
    pub(super) fn new(sample_rate: u32, channels: usize, out: &mut Vec<u8>) -> Result<Self> {
        if channels > 8 || sample_rate > 96_000 {
            return Err(unavailable(
                "FLAC",
                format!("{sample_rate} Hz with {channels} channels is beyond it; choose WAV"),
            ));
        }
        let mut config = config::Encoder::default();
        config.multithread = false;
        let config = config
            .into_verified()
            .map_err(|(_, error)| failed(&error))?;
        let mut stream =
            Stream::new(sample_rate as usize, channels, BITS).map_err(|error| failed(&error))?;
        stream
            .stream_info_mut()
            .set_block_sizes(BLOCK, BLOCK)
            .map_err(|error| failed(&error))?;
        // No length and no checksum: a reader goes on to the end of the stream.
        stream.stream_info_mut().set_md5_digest(&[0; 16]);
        out.extend(bytes_of(&stream)?);
        Ok(Self {
            config,
            stream,
            context: Context::new(BITS, channels),
            channels,
            pending: Vec::new(),
            frames: 0,
        })
    }

    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<u8>) -> Result<()> {
        self.pending
            .extend(samples.iter().map(|&sample| i32::from(to_i16(sample))));
        let whole = BLOCK * self.channels;
        let mut used = 0;
        while self.pending.len() - used >= whole {
            self.block(used..used + whole, out)?;
            used += whole;
        }
        self.pending.drain(..used);
        Ok(())
    }

    fn block(&mut self, range: std::ops::Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let samples = &self.pending[range];
        // The last block fills only a part of it.
        let mut buffer =
            FrameBuf::with_size(self.channels, BLOCK).map_err(|error| failed(&error))?;
        buffer
            .fill_interleaved(samples)
            .map_err(|error| failed(&error))?;
        self.context
            .fill_interleaved(samples)
            .map_err(|error| failed(&error))?;
        let info = self.stream.stream_info();
        let frame = encode_fixed_size_frame(&self.config, &buffer, self.frames, info)
            .map_err(|error| failed(&error))?;
        out.extend(bytes_of(&frame)?);
        self.stream.stream_info_mut().update_frame_info(&frame);
        self.frames += 1;
        Ok(())
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) -> Result<Vec<HeaderPatch>> {
        if !self.pending.is_empty() {
            self.block(0..self.pending.len(), out)?;
        }
        let (samples, digest) = (self.context.total_samples(), self.context.md5_digest());
        let info = self.stream.stream_info_mut();
        info.set_total_samples(samples);
        info.set_md5_digest(&digest);
        info.set_block_sizes(BLOCK, BLOCK)
            .map_err(|error| failed(&error))?;
        Ok(vec![HeaderPatch {
            offset: 0,
            bytes: bytes_of(&self.stream)?,
        }])
    }
}

fn bytes_of(part: &impl BitRepr) -> Result<Vec<u8>> {
    let mut sink = ByteSink::with_capacity(part.count_bits());
    part.write(&mut sink).map_err(|error| failed(&error))?;
    Ok(sink.into_inner())
}

fn failed(error: &impl std::fmt::Display) -> AudioError {
    AudioError::Encode {
        format: "FLAC",
        reason: error.to_string(),
    }
}
