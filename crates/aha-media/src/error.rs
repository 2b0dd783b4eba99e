//! What can go wrong with images, video and the addresses they come from.

use crate::audio::AudioError;
use crate::document::DocumentError;
use std::path::PathBuf;
use std::time::Duration;

/// The error of a decoder. It is for the log: its text may quote file contents or addresses, so a
/// client sees the message of the [`MediaError`] around it and not this.
pub type DecoderError = Box<dyn std::error::Error + Send + Sync>;

/// Every error of the image, video and source modules. The messages are safe to show to a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// More bytes than allowed.
    #[error("the {what} has {bytes} bytes, more than the limit of {limit}; send a smaller file")]
    TooManyBytes {
        /// What was measured: `image`, `video`, `data URL`.
        what: &'static str,
        /// The size, or what is known of it.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More pixels than allowed, read from the header before anything was allocated.
    #[error(
        "the image is {width}x{height}, more than the limit of {limit} pixels; send a smaller one"
    )]
    TooManyPixels {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// The limit of width times height.
        limit: u64,
    },
    /// A side longer than allowed.
    #[error(
        "the image is {width}x{height}, and no side may have more than {limit} pixels; crop it"
    )]
    SideTooLong {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// The limit of a side.
        limit: u32,
    },
    /// More frames or pages than allowed.
    #[error("the {what} has more than {limit} {unit}; send fewer")]
    TooManyFrames {
        /// What was counted in: `animation`, `document`, `video`.
        what: &'static str,
        /// `frames` or `pages`.
        unit: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The kept frames of a video are too many pixels together.
    #[error(
        "{frames} frames of {width}x{height} are more than the limit of {limit} pixels a video; \
         ask for fewer frames or send a smaller video"
    )]
    TooManyVideoPixels {
        /// Frames to keep.
        frames: usize,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit of their pixels together.
        limit: u64,
    },
    /// Something about a document that images do not have.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Nothing was sent.
    #[error("the {what} is empty")]
    Empty {
        /// What was empty.
        what: &'static str,
    },
    /// The bytes begin like no format that is known.
    #[error("the {what} is in no known format; send {supported}")]
    UnknownFormat {
        /// `image` or `video`.
        what: &'static str,
        /// The formats that work.
        supported: &'static str,
    },
    /// The bytes are of a format that is known but not decoded.
    #[error("{format} is not supported as {what}; send {supported}")]
    UnsupportedFormat {
        /// The name of the format found.
        format: &'static str,
        /// `an image` or `a video`.
        what: &'static str,
        /// The formats that work.
        supported: &'static str,
    },
    /// A feature of a known format that is not decoded.
    #[error("the {format} image uses {feature}, which is not supported; save it as plain RGB")]
    UnsupportedFeature {
        /// The format.
        format: &'static str,
        /// The feature, in words.
        feature: String,
    },
    /// The decoder gave up.
    #[error("the {format} data cannot be decoded; it is broken or cut short")]
    Malformed {
        /// The format.
        format: &'static str,
        /// What the decoder said, for the log.
        #[source]
        source: DecoderError,
    },
    /// A size of zero, or one that does not fit the samples.
    #[error("an image of {width}x{height} is not possible here: {reason}")]
    InvalidSize {
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// Why not.
        reason: &'static str,
    },
    /// An image too long and thin for a model's size rule.
    #[error(
        "the image is {width}x{height}: one side is more than {limit} times the other, which the \
         model does not take; crop it"
    )]
    AspectRatio {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The greatest ratio.
        limit: u32,
    },
    /// A setting of a model's preprocessing that cannot be used.
    #[error("the image setting {name} cannot be used: {reason}")]
    InvalidSetting {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Frames of one video that differ in size.
    #[error(
        "frame {index} of the video is {width}x{height} and the first is \
         {first_width}x{first_height}; all frames must have one size"
    )]
    FrameSize {
        /// The frame, from zero.
        index: usize,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// The width of the first frame.
        first_width: u32,
        /// The height of the first frame.
        first_height: u32,
    },
    /// A way of choosing frames that the video cannot serve.
    #[error("the frames of the video cannot be chosen: {reason}")]
    InvalidSampling {
        /// What is wrong.
        reason: String,
    },
    /// A container that only ffmpeg reads, and there is none.
    #[error(
        "{format} video needs the program ffmpeg, which was not found on PATH; install ffmpeg \
         (for example `apt install ffmpeg` or `brew install ffmpeg`), or send the frames as images"
    )]
    FfmpegMissing {
        /// The container found.
        format: &'static str,
    },
    /// The ffmpeg program could not be run.
    #[error("the program {} could not be started; check the installation of ffmpeg", program.display())]
    FfmpegNotRunnable {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Reading a video took too long.
    #[error("decoding the video took more than {} s; send a shorter or smaller one", limit.as_secs_f32())]
    VideoTimeout {
        /// The limit.
        limit: Duration,
    },
    /// A file without pictures, such as a sound recording.
    #[error("the {format} file has no video track")]
    NoVideoTrack {
        /// The container found.
        format: &'static str,
    },
    /// A recording.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// Reading or writing a file failed on this side.
    #[error("{what} failed")]
    Io {
        /// What was done.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A data URL or base64 text that does not parse.
    #[error("the {what} is not valid: {reason}")]
    InvalidData {
        /// `data URL` or `base64 text`.
        what: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// A URL that is not written plainly enough to be trusted.
    #[error("the media URL is not valid: {reason}")]
    InvalidUrl {
        /// What is wrong.
        reason: &'static str,
    },
    /// A URL scheme that is never fetched.
    #[error("media cannot be read from {scheme:?} URLs; use http, https, a data URL or base64")]
    UnsupportedScheme {
        /// The scheme as written.
        scheme: String,
    },
    /// A host that is not on the list.
    #[error(
        "media from host {host:?} is not allowed on this server; the operator can allow it with \
         --allow-media-host"
    )]
    HostNotAllowed {
        /// The host.
        host: String,
    },
    /// An address inside this machine or network.
    #[error(
        "media from host {host:?} is refused because its address is {kind}; the operator can allow \
         the host with --allow-media-host"
    )]
    AddressRefused {
        /// The host as named in the URL.
        host: String,
        /// What kind of address it is.
        kind: &'static str,
    },
    /// Local files are switched off.
    #[error(
        "media cannot be read from files of this server; the operator can open one folder with \
         --media-root, or send the file as a data URL"
    )]
    FilesNotAllowed,
    /// A file outside the folder that is open. It says nothing about whether the file exists.
    #[error("the media file was not found below the folder of --media-root")]
    FileNotFound,
}
