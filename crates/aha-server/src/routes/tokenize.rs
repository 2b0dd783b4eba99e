//! `POST /tokenize` and `POST /detokenize`.

use super::chat::prepare;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::media::Gathering;
use crate::model::ServedModel;
use crate::state::AppState;
use crate::types::tokenize::{
    DetokenizeRequest, DetokenizeResponse, TokenizeInput, TokenizeRequest, TokenizeResponse,
};
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{Chat, Engine, Service};
use axum::Json;
use axum::extract::State;

/// Text or messages to token ids.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let shared = state.clone();
    let open = move || {
        let request = TokenizeRequest::parse(&body)?;
        let model = shared.models.find(request.model.as_deref())?;
        let service = model.service()?;
        let input = match request.input {
            TokenizeInput::Chat(chat, parts) => {
                let engine = model.text_engine()?;
                let media = Gathering::open(parts, engine.processor(), &shared.options.media)?;
                Input::Chat(Box::new((engine, chat, media)))
            }
            TokenizeInput::Text {
                text,
                add_special_tokens,
            } => Input::Tokens(
                tokenizer_of(&service, model)?
                    .encode(&text, add_special_tokens)
                    .map_err(|error| ApiError::invalid("prompt", error.to_string()))?,
            ),
        };
        Ok((service.context_length().unwrap_or_default(), input))
    };
    let (max_model_len, input) = state.prepare(open).await?;
    let tokens = match input {
        Input::Tokens(tokens) => tokens,
        Input::Chat(parts) => {
            let (engine, mut chat, media) = *parts;
            let media = media.fetch(&state).await?;
            let shared = state.clone();
            let tokenise = move || {
                let processor = engine.processor();
                media.insert(&mut chat, processor, &shared.options.media, &shared.reader)?;
                Ok(prepare(processor, &chat)?.token_ids)
            };
            state.prepare(tokenise).await?
        }
    };
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        max_model_len,
        tokens,
    }))
}

fn tokenizer_of<'a>(service: &'a Service, model: &ServedModel) -> Result<&'a Tokenizer, ApiError> {
    service.tokenizer().ok_or_else(|| {
        let message = format!("'{}' works on pictures and has no tokens", model.id());
        ApiError::unsupported("model", message)
    })
}

/// What is left to do once the media are there.
enum Input {
    Tokens(Vec<u32>),
    Chat(Box<(Engine, Chat, Gathering)>),
}

/// Token ids to text.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let shared = state.clone();
    let work = move || {
        let request = DetokenizeRequest::parse(&body)?;
        let model = shared.models.find(request.model.as_deref())?;
        let service = model.service()?;
        let tokenizer = tokenizer_of(&service, model)?;
        // A vocabulary may have holes, and the model rows beyond it: only ids past both are wrong.
        let known = |id: &u32| tokenizer.token_bytes(*id).is_some();
        if let Some(index) = request.tokens.iter().position(|id| !known(id)) {
            let path = format!("tokens[{index}]");
            let message = format!("'{path}' is {}, which is no token", request.tokens[index]);
            return Err(ApiError::invalid(path, message));
        }
        let text = tokenizer.decode(&request.tokens, request.skip_special_tokens);
        Ok(DetokenizeResponse {
            prompt: text.clone(),
            content: text,
        })
    };
    state.prepare(work).await.map(Json)
}
