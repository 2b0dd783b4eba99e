//! WAV and raw samples.

use super::super::error::Result;
use super::{AudioFormat, HeaderPatch, to_i16, unavailable};

pub(super) struct WavEncoder {
    float: bool,
    /// Where the sizes are in the header; `None` without one.
    header: Option<Header>,
    data_bytes: u64,
}

#[derive(Clone, Copy)]
struct Header {
    bytes: u32,
    /// Offset of the number of frames, which only the float form has.
    fact: Option<u64>,
    frame_bytes: u64,
}

const INTEGER: u16 = 1;
const FLOAT: u16 = 3;

impl WavEncoder {
    /// Writes a header whose sizes are the largest number, which readers take for "to the end".
    pub(super) fn new(
        format: AudioFormat,
        sample_rate: u32,
        channels: usize,
        out: &mut Vec<u8>,
    ) -> Result<Self> {
        let float = matches!(format, AudioFormat::WavFloat32 | AudioFormat::PcmFloat32);
        if matches!(format, AudioFormat::Pcm16 | AudioFormat::PcmFloat32) {
            return Ok(Self {
                float,
                header: None,
                data_bytes: 0,
            });
        }
        let sample_bytes: u16 = if float { 4 } else { 2 };
        let align = u16::try_from(channels)
            .ok()
            .and_then(|count| count.checked_mul(sample_bytes));
        let (Ok(channels), Some(align)) = (u16::try_from(channels), align) else {
            return Err(unavailable(
                "WAV",
                format!("it does not take {channels} channels"),
            ));
        };
        let Some(byte_rate) = sample_rate.checked_mul(u32::from(align)) else {
            return Err(unavailable(
                "WAV",
                format!("it does not take {sample_rate} Hz"),
            ));
        };
        let start = out.len();
        out.extend_from_slice(b"RIFF");
        out.extend_from_slice(&u32::MAX.to_le_bytes());
        out.extend_from_slice(b"WAVEfmt ");
        // The float form has an extension, which is empty, and a chunk with the number of frames.
        out.extend_from_slice(&(if float { 18u32 } else { 16 }).to_le_bytes());
        out.extend_from_slice(&(if float { FLOAT } else { INTEGER }).to_le_bytes());
        out.extend_from_slice(&channels.to_le_bytes());
        out.extend_from_slice(&sample_rate.to_le_bytes());
        out.extend_from_slice(&byte_rate.to_le_bytes());
        out.extend_from_slice(&align.to_le_bytes());
        out.extend_from_slice(&(8 * sample_bytes).to_le_bytes());
        let mut fact = None;
        if float {
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(b"fact\x04\0\0\0");
            fact = Some((out.len() - start) as u64);
            out.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        out.extend_from_slice(b"data");
        out.extend_from_slice(&u32::MAX.to_le_bytes());
        let bytes = (out.len() - start) as u32;
        let header = Some(Header {
            bytes,
            fact,
            frame_bytes: u64::from(align),
        });
        Ok(Self {
            float,
            header,
            data_bytes: 0,
        })
    }

    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<u8>) {
        let before = out.len();
        if self.float {
            out.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
        } else {
            out.extend(
                samples
                    .iter()
                    .flat_map(|&sample| to_i16(sample).to_le_bytes()),
            );
        }
        self.data_bytes += (out.len() - before) as u64;
    }

    /// Sizes beyond 4 GiB stay "to the end".
    pub(super) fn finish(self, out: &mut Vec<u8>) -> Vec<HeaderPatch> {
        let Some(header) = self.header else {
            return Vec::new();
        };
        if self.data_bytes % 2 == 1 {
            out.push(0);
        }
        let number = |value: u64| {
            u32::try_from(value)
                .unwrap_or(u32::MAX)
                .to_le_bytes()
                .to_vec()
        };
        let padded = self.data_bytes + self.data_bytes % 2;
        let mut patches = vec![
            HeaderPatch {
                offset: 4,
                bytes: number(u64::from(header.bytes) - 8 + padded),
            },
            HeaderPatch {
                offset: u64::from(header.bytes) - 4,
                bytes: number(self.data_bytes),
            },
        ];
        if let Some(offset) = header.fact {
            let bytes = number(self.data_bytes / header.frame_bytes);
            patches.push(HeaderPatch { offset, bytes });
        }
        patches
    }
}
