//! The engine: text in and out of token ids, sampling, scheduling, caches of running sequences.
//!
//! The crate knows models only through the `Generator` trait and HTTP not at all.

pub mod chat;
pub mod error;
pub mod event;
pub mod request;

pub use chat::{Chat, Message, Part, ToolCall};
pub use error::EngineError;
pub use event::{Event, FinishReason, Finished, Timings, TokenEvent, TokenLogprob, Usage};
pub use request::{GenerationRequest, OutputParams, Prompt, SamplingParams, StopParams};
