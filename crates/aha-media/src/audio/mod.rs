//! Sound: decoding, resampling, front ends, voice activity and encoding.
//!
//! Samples are `f32` around 0 with full scale at 1. Everything streams: a recording of hours takes
//! no more memory than one of seconds, until a caller collects it.

mod decode;
mod encode;
mod error;
mod fbank;
mod mel;
mod mono;
mod resample;
mod spectrum;
mod vad;

pub use decode::{AudioLimits, AudioReader, AudioSource, DecodeOptions, FfmpegOptions, is_audio};
pub use encode::{AudioEncoder, AudioFormat, EncodeOptions, HeaderPatch, encode};
pub use error::AudioError;
pub use fbank::{Cmvn, FbankConfig, FbankExtractor, FbankWindow, Features};
pub use mel::{LogMel, LogMelConfig, LogMelExtractor, MelPadding};
pub use mono::{MonoReader, decode_mono, downmix, normalize_peak};
pub use resample::{ResampleMethod, Resampler, resample};
pub use vad::{
    AudioSegment, QuietCuts, Segment, SegmentReader, SileroVad, VAD_FRAME, VAD_SAMPLE_RATE,
    VadMethod, VadOptions, VadStream, split, split_at_quiet,
};
