//! WAV with uncompressed or companded samples, read leniently: telephony recorders and programs
//! that write to pipes leave headers that are not by the book.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::super::error::{AudioError, Result};
use super::container::Shape;
use super::limits::AudioLimits;
use super::source::TaglessStream;

const BLOCK_FRAMES: usize = 4096;
/// Lengths from here on mean "to the end": the largest numbers are what programs write that do not
/// know better.
const UNKNOWN_LENGTH: u64 = 0x7fff_f000;

#[derive(Debug, Clone, Copy)]
enum Samples {
    Unsigned8,
    Signed16,
    Signed24,
    Signed32,
    Float32,
    Float64,
    ALaw,
    MuLaw,
}

pub(super) struct Wav {
    stream: BufReader<TaglessStream>,
    samples: Samples,
    shape: Shape,
    /// Bytes of samples that are left, as far as the header and the file agree.
    left: u64,
    ended_early: bool,
    bytes: Vec<u8>,
}

struct Format {
    tag: u16,
    shape: Shape,
    align: usize,
    bits: u16,
}

impl Wav {
    /// Reads the header. `None` when the samples are coded in another way; the stream is then to be
    /// opened anew.
    pub(super) fn open(stream: TaglessStream, limits: &AudioLimits) -> Result<Option<(Self, u64)>> {
        let length = stream.length();
        let mut stream = BufReader::new(stream);
        let mut head = [0; 12];
        read_header(&mut stream, &mut head)?;
        let mut format = None;
        let mut at = 12;
        // The length of the samples in a file beyond 4 GiB stands in a chunk of its own.
        let mut long_data = None;
        loop {
            let mut chunk = [0; 8];
            if at + 8 > length {
                return Err(no_samples());
            }
            read_header(&mut stream, &mut chunk)?;
            at += 8;
            let size = u64::from(u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]));
            match &chunk[..4] {
                b"fmt " => {
                    format = Some(Format::read(&mut stream, size)?);
                }
                b"ds64" => {
                    let mut sizes = [0; 16];
                    read_header(&mut stream, &mut sizes)?;
                    long_data = sizes
                        .last_chunk::<8>()
                        .map(|bytes| u64::from_le_bytes(*bytes));
                }
                b"data" => {
                    let format = format.ok_or_else(|| malformed("its format is not stated"))?;
                    limits.check_stream(format.shape.rate, format.shape.channels)?;
                    let Some(samples) = format.samples()? else {
                        return Ok(None);
                    };
                    let claimed = match (size, long_data) {
                        (0xffff_ffff, Some(long)) => long,
                        (0, _) if head[4..8] == [0; 4] => u64::MAX,
                        (UNKNOWN_LENGTH.., _) => u64::MAX,
                        _ => size,
                    };
                    let left = claimed.min(length - at);
                    let align = format.align as u64;
                    let ended_early = claimed != u64::MAX && claimed > left;
                    limits.check_frames(left / align, format.shape.rate)?;
                    let wav = Self {
                        stream,
                        samples,
                        shape: format.shape,
                        left: left / align * align,
                        ended_early,
                        bytes: Vec::new(),
                    };
                    return Ok(Some((wav, left / align)));
                }
                _ => {}
            }
            at += size + size % 2;
            if at > length {
                return Err(no_samples());
            }
            stream
                .seek(SeekFrom::Start(at))
                .map_err(AudioError::io("reading WAV data"))?;
        }
    }

    pub(super) fn ended_early(&self) -> bool {
        self.ended_early
    }

    pub(super) fn next(&mut self, out: &mut Vec<f32>) -> Result<Option<Shape>> {
        out.clear();
        let width = self.samples.width();
        let block = (BLOCK_FRAMES * self.shape.channels * width) as u64;
        let wanted = block.min(self.left);
        self.bytes.clear();
        let read = (&mut self.stream)
            .take(wanted)
            .read_to_end(&mut self.bytes)
            .map_err(AudioError::io("reading WAV data"))? as u64;
        if read < wanted {
            // The file was shortened while it was read.
            self.ended_early = true;
            self.left = 0;
            let frame = self.shape.channels * width;
            self.bytes.truncate(self.bytes.len() / frame * frame);
        } else {
            self.left -= read;
        }
        self.samples.convert(&self.bytes, out);
        Ok((!out.is_empty()).then_some(self.shape))
    }
}

impl Format {
    fn read(stream: &mut impl Read, size: u64) -> Result<Self> {
        if size < 16 {
            return Err(malformed("its format is cut off"));
        }
        let mut fmt = [0; 40];
        let known = (size as usize).min(fmt.len());
        read_header(stream, &mut fmt[..known])?;
        let number = |at: usize| u16::from_le_bytes([fmt[at], fmt[at + 1]]);
        let mut tag = number(0);
        if tag == 0xfffe && known >= 26 {
            // The first two bytes of the long name are the short one.
            tag = number(24);
        }
        let rate = u32::from_le_bytes([fmt[4], fmt[5], fmt[6], fmt[7]]);
        let shape = Shape {
            rate,
            channels: usize::from(number(2)),
        };
        if shape.channels == 0 {
            return Err(malformed("it has no channels"));
        }
        Ok(Self {
            tag,
            shape,
            align: usize::from(number(12)),
            bits: number(14),
        })
    }

    /// `None` for codecs that are not plain samples.
    fn samples(&self) -> Result<Option<Samples>> {
        // Samples of 12 or 20 bits stand at the upper end of whole bytes.
        let samples = match (self.tag, self.bits.div_ceil(8)) {
            (1, 1) => Samples::Unsigned8,
            (1, 2) => Samples::Signed16,
            (1, 3) => Samples::Signed24,
            (1, 4) => Samples::Signed32,
            (3, 4) => Samples::Float32,
            (3, 8) => Samples::Float64,
            (6, 1) => Samples::ALaw,
            (7, 1) => Samples::MuLaw,
            (1 | 3 | 6 | 7, _) => return Err(malformed("its samples have an impossible size")),
            _ => return Ok(None),
        };
        if self.align != self.shape.channels * samples.width() {
            return Err(malformed("its block size does not fit its channels"));
        }
        Ok(Some(samples))
    }
}

impl Samples {
    fn width(self) -> usize {
        match self {
            Self::Unsigned8 | Self::ALaw | Self::MuLaw => 1,
            Self::Signed16 => 2,
            Self::Signed24 => 3,
            Self::Signed32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    fn convert(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::Unsigned8 => {
                out.extend(bytes.iter().map(|&byte| (f32::from(byte) - 128.0) / 128.0));
            }
            Self::ALaw => out.extend(bytes.iter().map(|&byte| f32::from(a_law(byte)) / 32_768.0)),
            Self::MuLaw => out.extend(bytes.iter().map(|&byte| f32::from(mu_law(byte)) / 32_768.0)),
            Self::Signed16 => extend(bytes, out, |two| {
                f32::from(i16::from_le_bytes(two)) / 32_768.0
            }),
            Self::Signed24 => extend(bytes, out, |[low, middle, high]| {
                (i32::from_le_bytes([0, low, middle, high]) >> 8) as f32 / 8_388_608.0
            }),
            Self::Signed32 => extend(bytes, out, |four| {
                (f64::from(i32::from_le_bytes(four)) / 2_147_483_648.0) as f32
            }),
            Self::Float32 => extend(bytes, out, f32::from_le_bytes),
            Self::Float64 => extend(bytes, out, |eight| f64::from_le_bytes(eight) as f32),
        }
    }
}

fn extend<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, convert: impl Fn([u8; N]) -> f32) {
    out.extend(
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|sample| convert(*sample)),
    );
}

/// ITU-T G.711 A-law to 16 bits.
fn a_law(byte: u8) -> i16 {
    let byte = byte ^ 0x55;
    let (segment, step) = (byte >> 4 & 7, i16::from(byte & 15));
    let magnitude = if segment == 0 {
        2 * step + 1
    } else {
        (2 * step + 33) << (segment - 1)
    } << 3;
    if byte & 0x80 == 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// ITU-T G.711 mu-law to 16 bits.
fn mu_law(byte: u8) -> i16 {
    let byte = !byte;
    let (segment, step) = (byte >> 4 & 7, i16::from(byte & 15));
    let magnitude = (((2 * step + 33) << segment) - 33) << 2;
    if byte & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

fn read_header(stream: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    stream
        .read_exact(bytes)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => malformed("the file ends within its header"),
            _ => AudioError::Io {
                what: "reading WAV data".into(),
                source: error,
            },
        })
}

fn malformed(reason: &str) -> AudioError {
    AudioError::Malformed {
        format: "WAV",
        reason: reason.into(),
    }
}

fn no_samples() -> AudioError {
    AudioError::NoAudio {
        format: "WAV",
        reason: "it has no samples",
    }
}
