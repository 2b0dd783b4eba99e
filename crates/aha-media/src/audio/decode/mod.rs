//! Encoded audio to blocks of `f32` samples, in constant memory.
//!
//! Integer samples are divided by 2^(bits-1), 8-bit ones being unsigned: what libsndfile, and with
//! it the references, gives. Float samples pass as they are, also above 1.

mod container;
mod ffmpeg;
mod limits;
mod opus;
mod sniff;
mod source;
mod wav;

pub use ffmpeg::FfmpegOptions;
pub use limits::AudioLimits;
pub use source::AudioSource;

use super::error::{AudioError, Result};
use container::{Container, Opened, Shape};
use ffmpeg::Ffmpeg;
use sniff::Sniffed;
use source::TaglessStream;
use wav::Wav;

/// Whether a file that begins with these bytes (512 are enough) may hold sound, by its format.
pub fn is_audio(head: &[u8]) -> bool {
    head.starts_with(b"ID3") || sniff::sniff(head) != Sniffed::Unknown
}

/// How to decode.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecodeOptions {
    /// What a stream may ask for.
    pub limits: AudioLimits,
    /// The fall-back for formats that are not decoded here.
    pub ffmpeg: FfmpegOptions,
}

/// A decoder of one audio stream. Blocks are small (a packet), so memory does not grow with length.
pub struct AudioReader {
    backend: Backend,
    format: &'static str,
    shape: Shape,
    limits: AudioLimits,
    claimed_frames: Option<u64>,
    frames: u64,
    block: Vec<f32>,
    /// The block was decoded while opening and still has to be handed out.
    pending: bool,
    finished: bool,
}

enum Backend {
    Wav(Box<Wav>),
    Container(Box<Container>),
    Ffmpeg(Box<Ffmpeg>),
}

impl std::fmt::Debug for AudioReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AudioReader")
            .field("format", &self.format)
            .field("rate", &self.shape.rate)
            .field("channels", &self.shape.channels)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl AudioReader {
    /// Opens a stream: recognises its format, checks its claims and decodes its first block, so
    /// that a stream without sound is told here.
    ///
    /// # Errors
    ///
    /// [`AudioError::UnknownFormat`], a limit, [`AudioError::NoAudio`], [`AudioError::Malformed`],
    /// or one about ffmpeg for formats that need it.
    pub fn open(source: impl Into<AudioSource>, options: &DecodeOptions) -> Result<Self> {
        let source = source.into();
        let (mut stream, head) = TaglessStream::open(&source, &options.limits)?;
        let sniffed = sniff::sniff(&head);
        let mut plain = None;
        if sniffed == Sniffed::Wav {
            plain = Wav::open(stream, &options.limits)?;
            (stream, _) = TaglessStream::open(&source, &options.limits)?;
        }
        let (backend, claimed_frames, format) = match (sniffed, plain) {
            (_, Some((wav, frames))) => (Backend::Wav(Box::new(wav)), Some(frames), "WAV"),
            (Sniffed::Unknown, _) => return Err(AudioError::UnknownFormat),
            (Sniffed::Foreign(name), _) => (Self::foreign(&source, name, options)?, None, name),
            (sniffed, None) => match Container::open(sniffed, stream, &options.limits)? {
                Opened::Container(container, frames) => {
                    let name = container.name();
                    (Backend::Container(container), frames, name)
                }
                Opened::Foreign(name) => (Self::foreign(&source, name, options)?, None, name),
            },
        };
        let mut reader = Self {
            backend,
            format,
            shape: Shape {
                rate: 0,
                channels: 0,
            },
            limits: options.limits,
            claimed_frames,
            frames: 0,
            block: Vec::new(),
            pending: false,
            finished: false,
        };
        reader.pending = reader.fill()?;
        if !reader.pending {
            return Err(AudioError::NoAudio {
                format,
                reason: "it has no samples",
            });
        }
        Ok(reader)
    }

    fn foreign(source: &AudioSource, name: &str, options: &DecodeOptions) -> Result<Backend> {
        let ffmpeg = Ffmpeg::start(source, name, &options.ffmpeg, &options.limits)?;
        Ok(Backend::Ffmpeg(Box::new(ffmpeg)))
    }

    /// The container, for people: "WAV", "MP3", "Ogg" …
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// Samples a second and channel.
    pub fn sample_rate(&self) -> u32 {
        self.shape.rate
    }

    /// Channels, at least 1.
    pub fn channels(&self) -> usize {
        self.shape.channels
    }

    /// Samples a channel as the header claims: for progress only, it may be wrong.
    pub fn claimed_frames(&self) -> Option<u64> {
        self.claimed_frames
    }

    /// Samples a channel that were handed out.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Damaged packets that were left out so far, and whether the stream broke off before the end
    /// that its header announced. What could be decoded is given all the same, as the references
    /// do.
    pub fn damage(&self) -> (u64, bool) {
        match &self.backend {
            Backend::Wav(wav) => (0, wav.ended_early()),
            Backend::Container(container) => container.damage(),
            Backend::Ffmpeg(_) => (0, false),
        }
    }

    /// The next samples, channels interleaved (a multiple of [`Self::channels`]); `None` at the
    /// end.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; after an error the stream is at its end.
    pub fn next_block(&mut self) -> Result<Option<&[f32]>> {
        if !self.pending && !self.fill()? {
            return Ok(None);
        }
        self.pending = false;
        Ok(Some(&self.block))
    }

    fn fill(&mut self) -> Result<bool> {
        if self.finished {
            return Ok(false);
        }
        // Only a block that passed every check clears this.
        self.finished = true;
        let next = match &mut self.backend {
            Backend::Wav(wav) => wav.next(&mut self.block)?,
            Backend::Container(container) => container.next(&self.limits, &mut self.block)?,
            Backend::Ffmpeg(ffmpeg) => ffmpeg.next(&mut self.block)?,
        };
        let Some(shape) = next else {
            let (packets, early) = self.damage();
            if packets > 0 || early {
                tracing::warn!(
                    format = self.format,
                    packets,
                    early,
                    "the audio is damaged; what could be decoded is used"
                );
            }
            return Ok(false);
        };
        if self.shape.rate == 0 {
            self.limits.check_stream(shape.rate, shape.channels)?;
            self.shape = shape;
        } else if self.shape != shape {
            let words = |shape: Shape| format!("{} Hz, {} channels", shape.rate, shape.channels);
            return Err(AudioError::StreamChanges {
                format: self.format,
                from: words(self.shape),
                to: words(shape),
            });
        }
        self.frames += (self.block.len() / shape.channels.max(1)) as u64;
        self.limits.check_frames(self.frames, shape.rate)?;
        self.finished = false;
        Ok(true)
    }
}
