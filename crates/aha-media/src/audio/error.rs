//! What can go wrong with sound, and what to do about it.

use std::io;
use std::time::Duration;

/// Every error of the audio half. Messages carry no bytes of the input and no text of a decoder that
/// was not written for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// Reading or writing failed.
    #[error("{what} failed: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The content is no audio format known here.
    #[error(
        "the content is no known audio format; send WAV, MP3, FLAC, Ogg (Vorbis, Opus), M4A, MP4, \
         WebM or Matroska"
    )]
    UnknownFormat,
    /// The format is known, a decoder for it is not built in, and there is no ffmpeg to ask.
    #[error(
        "{format} needs the ffmpeg program, which was not found{detail}; install ffmpeg and put it \
         on the PATH, or convert the file to WAV, FLAC or MP3"
    )]
    NeedsFfmpeg {
        /// The container or codec.
        format: String,
        /// Where it was looked for, or that its use is switched off.
        detail: String,
    },
    /// ffmpeg ran and could not decode the input.
    #[error("ffmpeg could not decode {format}: {reason}")]
    Ffmpeg {
        /// The container or codec.
        format: String,
        /// What happened.
        reason: String,
    },
    /// ffmpeg gave nothing for too long and was ended.
    #[error("ffmpeg gave no sound for {} s while decoding {format} and was ended", .waited.as_secs())]
    FfmpegTimedOut {
        /// The container or codec.
        format: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The bytes do not hold what their format says.
    #[error("the {format} data is damaged: {reason}")]
    Malformed {
        /// The container or codec.
        format: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file without sound: a video without an audio track, a header without samples.
    #[error("the {format} file has no sound in it: {reason}")]
    NoAudio {
        /// The container.
        format: &'static str,
        /// Why there is none.
        reason: &'static str,
    },
    /// Rate or channel count change within the stream.
    #[error(
        "the {format} stream changes from {from} to {to} in the middle; convert it to one rate and \
         channel count first"
    )]
    StreamChanges {
        /// The container.
        format: &'static str,
        /// Rate and channels before.
        from: String,
        /// Rate and channels after.
        to: String,
    },
    /// More bytes than allowed.
    #[error("the audio file has {bytes} bytes, more than the limit of {limit}")]
    TooManyBytes {
        /// The size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More decoded sound than allowed.
    #[error("the audio is longer than the limit of {limit_seconds} s; split it or raise the limit")]
    TooLong {
        /// The limit.
        limit_seconds: f64,
    },
    /// More channels than allowed.
    #[error("the audio has {channels} channels, more than the limit of {limit}")]
    TooManyChannels {
        /// Channels of the stream.
        channels: usize,
        /// The limit.
        limit: usize,
    },
    /// A sample rate outside the allowed range.
    #[error("the sample rate of {rate} Hz is not between {minimum} and {maximum} Hz")]
    RateOutOfRange {
        /// Rate of the stream.
        rate: u32,
        /// The lowest allowed.
        minimum: u32,
        /// The highest allowed.
        maximum: u32,
    },
    /// Too little sound for one frame of a front end.
    #[error("the audio has {samples} samples at {rate} Hz; at least {needed} are needed")]
    TooShort {
        /// Samples given.
        samples: usize,
        /// Their rate.
        rate: u32,
        /// The smallest number that works.
        needed: usize,
    },
    /// A setting that cannot be used.
    #[error("{name} is not usable: {reason}")]
    InvalidOption {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An output format that cannot be written with these properties.
    #[error("{format} output is not available: {reason}")]
    EncoderUnavailable {
        /// The format.
        format: &'static str,
        /// Why, and what to choose instead.
        reason: String,
    },
    /// An encoder failed on valid input.
    #[error("encoding {format} failed: {reason}")]
    Encode {
        /// The format.
        format: &'static str,
        /// What the encoder said.
        reason: String,
    },
}

/// The result of everything in this module.
pub(crate) type Result<T> = std::result::Result<T, AudioError>;

impl AudioError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
