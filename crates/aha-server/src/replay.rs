//! Recorded requests, without HTTP.

use crate::error::ApiError;
use crate::routes::chat::prepare;
use crate::types::chat::ChatRequest;
use aha_engine::{Engine, GenerationRequest};

/// What `POST /v1/chat/completions` asks of the engine for this body: the prompt, and every
/// parameter with the checkpoint's default where the body says nothing.
///
/// # Errors
/// The message that a client would get.
pub fn chat_generation(engine: &Engine, body: &[u8]) -> Result<GenerationRequest, String> {
    let read = || {
        let request = ChatRequest::parse(body, 1)?;
        Ok(GenerationRequest {
            prompt: prepare(engine.processor(), &request.chat)?,
            sampling: request.sampling.resolve(&engine.defaults().sampling, 0),
            stop: request.stop,
            output: request.output,
        })
    };
    read().map_err(|error: ApiError| error.body.message.clone())
}
