//! Opus packets, whatever container they came in.

use opus_pure::{MAX_PACKET_SAMPLES, OpusDecoder, OpusMSDecoder};

use super::super::error::{AudioError, Result};
use super::container::Shape;

/// Opus is decoded at its own clock rate, as the references do.
pub(super) const RATE: u32 = 48_000;
const HEAD_BYTES: usize = 19;

/// Decoder of one Opus stream, with the pre-skip, the end trim and the gain of its header applied.
pub(super) struct OpusPackets {
    decoder: Streams,
    channels: usize,
    /// Samples a channel of encoder delay that still have to go.
    skip: usize,
    scratch: Vec<f32>,
}

enum Streams {
    One(Box<OpusDecoder>),
    Many(Box<OpusMSDecoder>),
}

/// The fields of an identification header that decoding depends on (RFC 7845, section 5.1).
struct Head {
    channels: usize,
    pre_skip: usize,
    gain_q8: i32,
    family: u8,
    /// Streams, coupled streams and the mapping, where the family has them.
    layout: Option<(usize, usize, Vec<u8>)>,
}

impl OpusPackets {
    /// `None` when the header names a channel layout that is not one of the standard's.
    pub(super) fn new(extra_data: Option<&[u8]>, channels: usize) -> Result<Option<Self>> {
        let head = match extra_data {
            Some(bytes) => parse_head(bytes)?,
            None => Head {
                channels,
                pre_skip: 0,
                gain_q8: 0,
                family: 0,
                layout: None,
            },
        };
        let failed = |_| malformed("its header asks for an impossible decoder");
        let decoder = if head.family == 0 {
            let mut decoder = OpusDecoder::new(RATE as i32, head.channels).map_err(failed)?;
            decoder.gain_q8 = head.gain_q8;
            Streams::One(Box::new(decoder))
        } else {
            let Ok(mut decoder) = OpusMSDecoder::new(RATE as i32, head.channels, head.family)
            else {
                return Ok(None);
            };
            let layout = decoder.layout();
            let same = head
                .layout
                .as_ref()
                .is_some_and(|(streams, coupled, mapping)| {
                    *streams == layout.nb_streams
                        && *coupled == layout.nb_coupled_streams
                        && mapping[..] == layout.mapping[..head.channels]
                });
            if !same {
                return Ok(None);
            }
            for stream in decoder.streams_mut() {
                stream.gain_q8 = head.gain_q8;
            }
            Streams::Many(Box::new(decoder))
        };
        Ok(Some(Self {
            decoder,
            channels: head.channels,
            skip: head.pre_skip,
            scratch: Vec::new(),
        }))
    }

    /// Decodes a packet into `out` without its last `cut` samples a channel. The inner error is
    /// damage that ends with this packet.
    pub(super) fn decode(
        &mut self,
        packet: &[u8],
        cut: usize,
        out: &mut Vec<f32>,
    ) -> Result<std::result::Result<Shape, &'static str>> {
        out.clear();
        self.scratch.resize(MAX_PACKET_SAMPLES * self.channels, 0.0);
        let decoded = match &mut self.decoder {
            Streams::One(decoder) => decoder.decode(packet, MAX_PACKET_SAMPLES, &mut self.scratch),
            Streams::Many(decoder) => decoder.decode(packet, MAX_PACKET_SAMPLES, &mut self.scratch),
        };
        let Ok(frames) = decoded else {
            return Ok(Err("an Opus packet is damaged"));
        };
        let first = self.skip.min(frames);
        self.skip -= first;
        let last = frames.saturating_sub(cut).max(first);
        out.extend_from_slice(&self.scratch[first * self.channels..last * self.channels]);
        Ok(Ok(Shape {
            rate: RATE,
            channels: self.channels,
        }))
    }
}

fn parse_head(bytes: &[u8]) -> Result<Head> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else {
        return Err(malformed("its header is cut off"));
    };
    if &head[..8] != b"OpusHead" || head[8] >> 4 != 0 {
        return Err(malformed("its header is of an unknown version"));
    }
    let channels = usize::from(head[9]);
    let family = head[18];
    if channels == 0 || family == 0 && channels > 2 {
        return Err(malformed("its header has an impossible number of channels"));
    }
    let layout = if family == 0 {
        None
    } else {
        let (Some(&streams), Some(&coupled), Some(mapping)) =
            (bytes.get(19), bytes.get(20), bytes.get(21..21 + channels))
        else {
            return Err(malformed("its channel mapping is cut off"));
        };
        Some((usize::from(streams), usize::from(coupled), mapping.to_vec()))
    };
    // MP4 stores the same fields as version 0, with the other byte order.
    let (pre_skip, gain) = ([head[10], head[11]], [head[16], head[17]]);
    let (pre_skip, gain_q8) = if head[8] == 0 {
        (u16::from_be_bytes(pre_skip), i16::from_be_bytes(gain))
    } else {
        (u16::from_le_bytes(pre_skip), i16::from_le_bytes(gain))
    };
    Ok(Head {
        channels,
        pre_skip: usize::from(pre_skip),
        gain_q8: i32::from(gain_q8),
        family,
        layout,
    })
}

fn malformed(reason: &str) -> AudioError {
    AudioError::Malformed {
        format: "Opus",
        reason: reason.into(),
    }
}
