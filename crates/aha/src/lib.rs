//! Local inference in one library: load a model, ask it, read the answer as it is made.
//!
//! ```
//! # fn main() -> aha::Result<()> {
//! use aha::{GenerateModel, GenerationParams};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen3/sharded");
//! // `path`: a checkpoint's folder, a GGUF file, or the id of a model on this disk.
//! let model = aha::load(path).build()?;
//! let answer = model.generate(
//!     "Hello!",
//!     GenerationParams { max_tokens: Some(8), ..GenerationParams::greedy() },
//! )?;
//! # let again = model.generate("Hello!", GenerationParams { max_tokens: Some(8), ..GenerationParams::greedy() })?;
//! assert_eq!(answer, again);
//! # Ok(())
//! # }
//! ```
//!
//! [`load`] finds the checkpoint and opens it; [`Model`] is a cheap handle that any thread may
//! use. There are two faces: [`GenerateModel`] for plain text in and out, and [`Model::chat`] for
//! conversations, tools, reasoning and token counts, awaited or blocking. Below them,
//! [`Model::engine`] takes token ids and tells log-probabilities. Requests of all threads run in
//! one batch.

mod device;
mod error;
mod fetch;
mod generate;
mod loader;
mod matting;
mod model;
mod params;
mod pooled;
mod resolve;
mod speech;
mod stream;
mod transcribe;

pub use device::{DeviceChoice, UnknownDevice};
pub use error::{Error, Result};
pub use fetch::{downloader, files_of};
pub use generate::{GenerateModel, TextStream};
pub use loader::{Loader, load};
pub use model::Model;
pub use params::GenerationParams;
pub use pooled::Ranked;
pub use resolve::{Checkpoint, resolve, resolve_in};
pub use speech::Sound;
pub use stream::{ChatEvent, ChatStream, Ended};
pub use transcribe::{Transcribed, TranscriptionParams};

pub use aha_engine::parser::{Delta, OutputParser};
pub use aha_engine::subtitles;
pub use aha_engine::{
    Chat, EmbeddingEngine, EmbeddingInput, EmbeddingOptions, Engine, EngineError, EngineOptions,
    EngineStatus, Event, FinishReason, Finished, Generation, GenerationDefaults, GenerationRequest,
    MattingEngine, Media, MediaKind, MediaReader, MediaWishes, Message, NgramWindow, OutputParams,
    Part, PixelLimits, ProcessorError, Prompt, RerankEngine, SamplingParams, Service, StopParams,
    Task, TextProcessor, Timings, TokenEvent, TokenLogprob, ToolCall, Truncate, UnknownTask, Usage,
};
pub use aha_engine::{
    Cutting, RecordingError, RecordingEvent, RecordingStream, Segment, Transcript, Transcription,
    TranscriptionOptions,
};
pub use aha_engine::{
    DEFAULT_VOICE, Speech, SpeechEngine, SpeechEvent, SpeechFinished, SpeechFormat, SpeechParams,
    SpeechRequest, Voice, VoiceError, VoiceRecord, VoiceStore, normalize_text,
};
pub use aha_hub as hub;
pub use aha_media::MediaError;
pub use aha_media::audio::{
    AudioEncoder, AudioError, AudioFormat, AudioSource, DecodeOptions, EncodeOptions, VadMethod,
    VadOptions,
};
pub use aha_models::export::Export;
pub use aha_models::{FAMILIES, Family, LoadError, releases};
pub use aha_nn::weights::{DtypeRequest as Dtype, QuantRequest as Quant, Quantization};

/// Reading documents: their pages, and what an OCR model can be asked about them.
///
/// ```no_run
/// use aha::ocr::{Document, DocumentLimits, PageReader, ReadOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = aha::load("PaddlePaddle/PaddleOCR-VL").build()?;
/// let reader = PageReader::new(model.engine()?, None, None, None)?;
/// let document = Document::open(std::fs::read("scan.pdf")?, &DocumentLimits::default())?;
/// for page in 0..document.pages() {
///     let options = ReadOptions { dpi: 200.0, prefer_text: false };
///     println!("{}", reader.read(&document, page, options)?.markdown(None));
/// }
/// # Ok(())
/// # }
/// ```
pub mod ocr {
    pub use aha_engine::ocr::*;
    pub use aha_media::document::{
        DEFAULT_DPI, Document, DocumentError, DocumentLimits, ENDINGS, PageSelection, TextBlock,
        TextLayer, is_document,
    };
}

/// Pictures: decoding, encoding, and what stands behind a foreground.
pub mod image {
    pub use aha_media::image::{
        Background, Channels, DecodedImage, Image, ImageEncoding, ImageFormat, Limits,
        UnknownColor, decode, encode, encode_png, parse_color, sniff,
    };
}

/// Keeps the guide's examples compiling.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct Guide;
