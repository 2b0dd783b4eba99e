//! Recorded requests, without HTTP.

use crate::error::ApiError;
use crate::media::Gathering;
use crate::options::MediaOptions;
use crate::routes::chat::prepare;
use crate::types::chat::ChatRequest;
use aha_engine::{Engine, GenerationRequest, MediaReader};

/// What `POST /v1/chat/completions` asks of the engine for this body: the prompt, and every
/// parameter with the checkpoint's default where the body says nothing. Media must be in the body:
/// nothing is fetched.
///
/// # Errors
/// The message that a client would get.
pub fn chat_generation(engine: &Engine, body: &[u8]) -> Result<GenerationRequest, String> {
    let read = || {
        let mut request = ChatRequest::parse(body, 1)?;
        let (processor, options) = (engine.processor(), MediaOptions::default());
        let media = Gathering::open(std::mem::take(&mut request.media), processor, &options)?;
        media.insert(
            &mut request.chat,
            processor,
            &options,
            &MediaReader::default(),
        )?;
        Ok(GenerationRequest {
            prompt: prepare(processor, &request.chat)?,
            sampling: request.sampling.resolve(&engine.defaults().sampling, 0),
            stop: request.stop,
            output: request.output,
        })
    };
    read().map_err(|error: ApiError| error.body.message.clone())
}
