//! Which path goes where, and through which layers.

use crate::auth::require_key;
use crate::context::{bound, observe};
use crate::error::ApiError;
use crate::limits::{HostRule, check_host};
use crate::model::ServedModel;
use crate::options::ServerOptions;
use crate::routes::{
    admin, chat, completions, embeddings, health, images, models, ocr, rerank, speech, tokenize,
    transcriptions, voices,
};
use crate::shutdown::Shutdown;
use crate::state::AppState;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use std::any::Any;
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// The routes with all their layers and without a listener: for tests, and for serving them by
/// other means. [`crate::bind`] is what a server uses.
///
/// Callers that do not come through [`crate::BoundServer`] have no known address, so
/// `POST /shutdown` treats them as remote.
pub fn router(options: ServerOptions, models: Vec<ServedModel>, shutdown: Shutdown) -> Router {
    let hosts = HostRule::new(true, &options.address, &options.allowed_hosts);
    build(AppState::new(options, models, hosts, shutdown))
}

/// Every route, with and without the `/v1` prefix.
pub(crate) fn build(state: AppState) -> Router {
    let api = Router::new()
        .route("/chat/completions", post(chat::create))
        .route("/completions", post(completions::create))
        .route("/embeddings", post(embeddings::create))
        .route("/rerank", post(rerank::rerank))
        .route("/score", post(rerank::score))
        .route("/audio/speech", post(speech::create))
        .route("/audio/voices", get(voices::list).post(voices::create))
        .route("/audio/voices/{name}", delete(voices::delete))
        .route("/ocr", post(ocr::create))
        .route("/audio/transcriptions", post(transcriptions::transcribe))
        .route("/audio/translations", post(transcriptions::translate))
        .route("/images/remove_background", post(images::remove_background))
        .route("/models", get(models::list))
        .route("/models/{*id}", get(models::get))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::health))
        .route("/live", get(health::live))
        .route("/metrics", get(health::metrics))
        .route("/shutdown", post(admin::shutdown));
    let cors = cors(&state.options.cors_origins);
    let panics = CatchPanicLayer::custom(PanicResponder(state.clone()));
    // The last layer is the outermost: a request meets them from the bottom up.
    let app = Router::new()
        .route("/", get(health::root))
        .merge(api.clone())
        .nest("/v1", api)
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(state.options.body_limit))
        .layer(from_fn_with_state(state.clone(), bound))
        .layer(from_fn_with_state(state.clone(), require_key))
        .layer(from_fn_with_state(state.clone(), check_host));
    let app = match cors {
        Some(cors) => app.layer(cors),
        None => app,
    };
    app.layer(panics)
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_route(method.as_str(), &shortened(&uri))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(method.as_str(), &shortened(&uri))
}

fn shortened(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}

/// Pages that may call the API; `None` leaves CORS off.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        )
    };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([
                header::HeaderName::from_static("x-request-id"),
                header::RETRY_AFTER,
            ]),
    )
}

/// Turns a handler's panic into a 500 of that request alone.
#[derive(Clone)]
struct PanicResponder(AppState);

impl ResponseForPanic for PanicResponder {
    type ResponseBody = axum::body::Body;

    fn response_for_panic(&mut self, panic: Box<dyn Any + Send + 'static>) -> Response {
        self.0.metrics.count_panic();
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        ApiError::internal(format!("a panic: {message}")).into_response()
    }
}
