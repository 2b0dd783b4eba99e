//! Containers and codecs that are decoded in this process: demuxing and most codecs by symphonia,
//! Opus packets by [`super::opus`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::units::TimeBase;
use symphonia::default::formats;

use super::super::error::{AudioError, Result};
use super::limits::AudioLimits;
use super::opus::{OpusPackets, RATE};
use super::sniff::Sniffed;
use super::source::TaglessStream;

/// Damaged packets in a row after which a stream is given up.
const MAX_DAMAGED_RUN: u32 = 256;

/// A demuxer and the decoder of its audio track.
pub(super) struct Container {
    name: &'static str,
    reader: Box<dyn FormatReader>,
    track: u32,
    time_base: Option<TimeBase>,
    decoder: Decoder,
    damaged_run: u32,
    damaged_packets: u64,
    ended_early: bool,
}

enum Decoder {
    Native(Box<dyn AudioDecoder>),
    Opus(Box<OpusPackets>),
}

/// What opening a container came to.
pub(super) enum Opened {
    Container(Box<Container>, Option<u64>),
    /// The container is fine, its codec is not built in.
    Foreign(&'static str),
}

/// Rate and channels of a decoded packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) rate: u32,
    pub(super) channels: usize,
}

impl Container {
    /// Opens a stream whose format was recognised. The second part of [`Opened::Container`] is the
    /// number of frames that the header claims.
    pub(super) fn open(
        sniffed: Sniffed,
        stream: TaglessStream,
        limits: &AudioLimits,
    ) -> Result<Opened> {
        let (name, open) = reader_for(sniffed).ok_or(AudioError::UnknownFormat)?;
        let stream = MediaSourceStream::new(Box::new(stream), Default::default());
        let reader = match contained(name, || open(stream))? {
            Ok(reader) => reader,
            // A container that its reader does not get on with may still be ffmpeg's.
            Err(Error::Unsupported(_)) => return Ok(Opened::Foreign(name)),
            Err(error) => return Err(open_error(name, &error)),
        };
        let Some(track) = reader.default_track(TrackType::Audio) else {
            return Err(AudioError::NoAudio {
                format: name,
                reason: "it has no audio track",
            });
        };
        let Some(params) = track
            .codec_params
            .as_ref()
            .and_then(|params| params.audio())
        else {
            return Ok(Opened::Foreign(name));
        };
        // Held against the limits before a decoder sizes its buffers by these claims.
        let channels = params
            .channels
            .as_ref()
            .map_or(0, |channels| channels.count());
        limits.check_stream(
            params.sample_rate.unwrap_or(limits.min_sample_rate),
            channels,
        )?;
        if let (Some(frames), Some(rate)) = (track.num_frames, params.sample_rate) {
            limits.check_frames(frames, rate)?;
        }
        let frames = track.num_frames;
        let decoder = if params.codec == CODEC_ID_OPUS {
            match OpusPackets::new(params.extra_data.as_deref(), channels)? {
                Some(packets) => Decoder::Opus(Box::new(packets)),
                None => return Ok(Opened::Foreign("Opus with a channel mapping of its own")),
            }
        } else {
            let options = AudioDecoderOptions::default();
            let codecs = symphonia::default::get_codecs();
            match contained(name, || codecs.make_audio_decoder(params, &options))? {
                Ok(decoder) => Decoder::Native(decoder),
                Err(Error::Unsupported(_)) => return Ok(Opened::Foreign(name)),
                Err(error) => return Err(open_error(name, &error)),
            }
        };
        let (track, time_base) = (track.id, track.time_base);
        let container = Self {
            name,
            reader,
            track,
            time_base,
            decoder,
            damaged_run: 0,
            damaged_packets: 0,
            ended_early: false,
        };
        Ok(Opened::Container(Box::new(container), frames))
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Packets that could not be decoded and were left out, and whether the stream broke off.
    pub(super) fn damage(&self) -> (u64, bool) {
        (self.damaged_packets, self.ended_early)
    }

    /// Decodes the next packet with samples into `out`, interleaved. `None` at the end.
    pub(super) fn next(
        &mut self,
        limits: &AudioLimits,
        out: &mut Vec<f32>,
    ) -> Result<Option<Shape>> {
        let name = self.name;
        loop {
            let packet = match contained(name, || self.reader.next_packet())? {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(None),
                Err(Error::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    self.ended_early = true;
                    return Ok(None);
                }
                Err(Error::IoError(error)) => {
                    return Err(AudioError::Io {
                        what: format!("reading {name} data"),
                        source: error,
                    });
                }
                Err(Error::ResetRequired) => {
                    return Err(AudioError::StreamChanges {
                        format: name,
                        from: "one stream".into(),
                        to: "another that is chained to it".into(),
                    });
                }
                Err(Error::DecodeError(reason)) => {
                    self.note_damage(reason)?;
                    continue;
                }
                Err(error) => return Err(open_error(name, &error)),
            };
            if packet.track_id != self.track {
                continue;
            }
            let decoded = match &mut self.decoder {
                Decoder::Opus(opus) => {
                    let cut = self
                        .time_base
                        .and_then(|base| base.calc_duration(packet.trim_end))
                        .map_or(0, |time| {
                            (time.as_secs_f64() * f64::from(RATE)).round() as usize
                        });
                    contained(name, || opus.decode(&packet.data, cut, out))?
                }
                Decoder::Native(decoder) => {
                    contained(name, || match decoder.decode(&packet) {
                        Ok(buffer) => {
                            let spec = buffer.spec();
                            let shape = Shape {
                                rate: spec.rate(),
                                channels: spec.channels().count(),
                            };
                            // The claim of the header was checked; a frame may say otherwise.
                            limits.check_stream(shape.rate, shape.channels)?;
                            buffer.copy_to_vec_interleaved(out);
                            Ok(Ok(shape))
                        }
                        Err(Error::DecodeError(reason)) => Ok(Err(reason)),
                        Err(Error::IoError(_)) => Ok(Err("a packet is cut off")),
                        Err(error) => Err(open_error(name, &error)),
                    })?
                }
            };
            match decoded? {
                Ok(shape) => {
                    self.damaged_run = 0;
                    if !out.is_empty() {
                        return Ok(Some(shape));
                    }
                }
                Err(reason) => self.note_damage(reason)?,
            }
        }
    }

    fn note_damage(&mut self, reason: &'static str) -> Result<()> {
        self.damaged_packets += 1;
        self.damaged_run += 1;
        if self.damaged_run > MAX_DAMAGED_RUN {
            return Err(AudioError::Malformed {
                format: self.name,
                reason: reason.into(),
            });
        }
        Ok(())
    }
}

type OpenReader =
    fn(MediaSourceStream<'static>) -> symphonia::core::errors::Result<Box<dyn FormatReader>>;

macro_rules! open_with {
    ($name:literal, $reader:ty) => {
        (
            $name,
            (|stream| Ok(Box::new(<$reader>::try_new(stream, Default::default())?))) as OpenReader,
        )
    };
}

fn reader_for(sniffed: Sniffed) -> Option<(&'static str, OpenReader)> {
    Some(match sniffed {
        Sniffed::Wav => open_with!("WAV", formats::WavReader<'static>),
        Sniffed::Aiff => open_with!("AIFF", formats::AiffReader<'static>),
        Sniffed::Caf => open_with!("CAF", formats::CafReader<'static>),
        Sniffed::Flac => open_with!("FLAC", formats::FlacReader<'static>),
        Sniffed::Ogg => open_with!("Ogg", formats::OggReader<'static>),
        Sniffed::Mpeg => open_with!("MP3", formats::MpaReader<'static>),
        Sniffed::Adts => open_with!("AAC", formats::AdtsReader<'static>),
        Sniffed::Mp4 => open_with!("MP4", formats::IsoMp4Reader<'static>),
        Sniffed::Matroska => open_with!("Matroska", formats::MkvReader<'static>),
        Sniffed::Foreign(_) | Sniffed::Unknown => return None,
    })
}

/// Runs a call into a parser of untrusted bytes. Its authors warn that some streams make it panic;
/// that must cost the request, not the thread.
fn contained<T>(format: &'static str, call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| AudioError::Malformed {
        format,
        reason: "the decoder gave up on it".into(),
    })
}

fn open_error(format: &'static str, error: &Error) -> AudioError {
    let reason = match error {
        Error::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file ends within its header".to_owned()
        }
        Error::IoError(error) => error.kind().to_string(),
        Error::DecodeError(reason) | Error::Unsupported(reason) | Error::LimitError(reason) => {
            (*reason).to_owned()
        }
        Error::SeekError(_) => "a position in it cannot be reached".to_owned(),
        _ => "its structure changes".to_owned(),
    };
    AudioError::Malformed { format, reason }
}
