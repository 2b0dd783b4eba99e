//! `POST /tokenize` and `POST /detokenize`.

use super::chat::prepare;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::state::AppState;
use crate::types::tokenize::{
    DetokenizeRequest, DetokenizeResponse, TokenizeInput, TokenizeRequest, TokenizeResponse,
};
use axum::Json;
use axum::extract::State;

/// Text or messages to token ids.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let shared = state.clone();
    let work = move || {
        let request = TokenizeRequest::parse(&body)?;
        let model = shared.models.find(request.model.as_deref())?;
        let service = model.service()?;
        let tokens = match request.input {
            TokenizeInput::Chat(chat) => {
                prepare(model.text_engine()?.processor(), &chat)?.token_ids
            }
            TokenizeInput::Text {
                text,
                add_special_tokens,
            } => service
                .tokenizer()
                .encode(&text, add_special_tokens)
                .map_err(|error| ApiError::invalid("prompt", error.to_string()))?,
        };
        Ok(TokenizeResponse {
            count: tokens.len(),
            max_model_len: service.context_length(),
            tokens,
        })
    };
    state.prepare(work).await.map(Json)
}

/// Token ids to text.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let shared = state.clone();
    let work = move || {
        let request = DetokenizeRequest::parse(&body)?;
        let service = shared.models.find(request.model.as_deref())?.service()?;
        let tokenizer = service.tokenizer();
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
