//! The engine: text in and out of token ids, sampling, scheduling, caches of running sequences.
//!
//! The crate knows models only through the [`Generator`] trait, and HTTP not at all.

mod active;
pub mod chat;
pub mod detokenizer;
pub mod embedding;
mod encoders;
pub mod engine;
pub mod error;
pub mod event;
pub mod generator;
pub mod matting;
pub mod media;
pub mod media_reader;
mod memory;
pub mod model;
pub mod ocr;
pub mod parser;
pub mod pooled;
pub mod processor;
pub mod recording;
pub mod request;
pub mod rerank;
mod sampler;
mod scheduler;
pub mod service;
pub mod speech;
pub mod stop;
pub mod subtitles;
pub mod template;
pub mod tokenizer;
pub mod transcription;
mod worker;

pub use chat::{Chat, Message, Part, ToolCall};
pub use embedding::{
    Embedder, EmbeddingEngine, EmbeddingInput, EmbeddingModel, EmbeddingOptions,
    EmbeddingProcessor, Truncate,
};
pub use engine::{Engine, EngineOptions, EngineStatus, Generation};
pub use error::EngineError;
pub use event::{
    Event, FinishReason, Finished, MediaTokens, Timings, TokenEvent, TokenLogprob, Usage,
};
pub use generator::Generator;
pub use matting::{Matte, Matter, MattingEngine, MattingModel, PendingMatte};
pub use media::{
    ContentHash, EncoderContent, EncoderInput, Media, MediaContent, MediaEncoder, MediaKind,
    MediaProcessor, MediaSpan, PixelLimits, ProcessedMedia,
};
pub use media_reader::{MediaReader, MediaWishes};
pub use memory::total_memory;
pub use model::{GenerationDefaults, LoadedModel, Task, TextModel, UnknownTask};
pub use ocr::{OcrBlock, OcrKind, OcrModel, OcrTask, PagePlace, PageSize};
pub use pooled::{PooledBatch, PooledOutput};
pub use processor::{ProcessorError, TextProcessor};
pub use recording::{
    Cutting, RecordingError, RecordingEvent, RecordingRequest, RecordingStream, Segment,
    Transcription,
};
pub use request::{
    GenerationRequest, NGRAM_LIMIT, NgramWindow, OutputParams, Prompt, SamplingParams, StopParams,
};
pub use rerank::{RerankEngine, RerankModel, RerankProcessor, Reranker};
pub use service::Service;
pub use speech::{
    DEFAULT_VOICE, PatchInput, ReferenceError, SoundState, Speaker, Speech, SpeechEngine,
    SpeechEvent, SpeechFinished, SpeechFormat, SpeechModel, SpeechParams, SpeechProcessor,
    SpeechPrompt, SpeechRequest, Voice, VoiceError, VoiceRecord, VoiceStore, normalize_text,
    split_text,
};
pub use transcription::{AudioInput, Transcriber, Transcript, TranscriptionOptions};
