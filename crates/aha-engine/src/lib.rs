//! The engine: text in and out of token ids, sampling, scheduling, caches of running sequences.
//!
//! The crate knows models only through the [`Generator`] trait, and HTTP not at all.

mod active;
pub mod chat;
pub mod detokenizer;
mod encoders;
pub mod engine;
pub mod error;
pub mod event;
pub mod generator;
pub mod media;
mod memory;
pub mod model;
pub mod parser;
pub mod processor;
pub mod request;
mod sampler;
mod scheduler;
pub mod stop;
pub mod template;
pub mod tokenizer;
mod worker;

pub use chat::{Chat, Message, Part, ToolCall};
pub use engine::{Engine, EngineOptions, EngineStatus, Generation};
pub use error::EngineError;
pub use event::{Event, FinishReason, Finished, Timings, TokenEvent, TokenLogprob, Usage};
pub use generator::Generator;
pub use media::{
    ContentHash, EncoderContent, EncoderInput, Media, MediaContent, MediaEncoder, MediaKind,
    MediaProcessor, MediaSpan, PixelLimits, ProcessedMedia,
};
pub use model::{GenerationDefaults, LoadedModel, Task, TextModel};
pub use processor::{ProcessorError, TextProcessor};
pub use request::{GenerationRequest, OutputParams, Prompt, SamplingParams, StopParams};
