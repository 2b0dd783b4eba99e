//! Errors on the wire: OpenAI's shape, and the one place where an engine's error gets its status.

use crate::media::FetchError;
use aha_engine::{EngineError, ReferenceError, Task, VoiceError};
use aha_media::MediaError;
use aha_media::audio::AudioError;
use aha_media::document::DocumentError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// OpenAI's names of error kinds.
const INVALID_REQUEST: &str = "invalid_request_error";
const AUTHENTICATION: &str = "authentication_error";
const PERMISSION: &str = "permission_error";
const RATE_LIMIT: &str = "rate_limit_error";
const SERVER: &str = "server_error";

/// An answer that is an error: a status and OpenAI's error object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// Boxed, for results are as large as their larger half.
    pub(crate) body: Box<ErrorObject>,
    /// Seconds of the `Retry-After` header.
    pub(crate) retry_after: Option<u64>,
    /// What the log gets and the client does not.
    detail: Option<String>,
}

/// The object under `error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ErrorObject {
    pub(crate) message: String,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
}

/// The whole body: `{"error": {…}}`.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody<'a> {
    error: &'a ErrorObject,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            body: Box::new(ErrorObject {
                message: message.into(),
                kind,
                param: None,
                code,
            }),
            retry_after: None,
            detail: None,
        }
    }

    /// 400 with the field at fault.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request("invalid_value", message);
        error.body.param = Some(param.into());
        error
    }

    /// 400 for a field whose JSON type is wrong.
    pub(crate) fn wrong_type(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request("invalid_type", message);
        error.body.param = Some(param.into());
        error
    }

    /// 400 for a field that must be there and is not.
    pub(crate) fn missing(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request("missing_required_parameter", message);
        error.body.param = Some(param.into());
        error
    }

    /// 400 for what the API knows and this server cannot do.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::bad_request("unsupported_value", message);
        error.body.param = Some(param.into());
        error
    }

    /// 400: the route is that of another task than the model's.
    pub(crate) fn wrong_task(model: &str, found: Task, wanted: Task) -> Self {
        let routes = match found {
            Task::Chat => "/v1/chat/completions and /v1/completions",
            Task::Embed => "/v1/embeddings",
            Task::Rerank => "/v1/rerank and /v1/score",
            Task::Matte => "/v1/images/remove_background",
            Task::Transcribe => "/v1/audio/transcriptions and /v1/chat/completions",
            Task::Speak => "/v1/audio/speech",
        };
        let mut error = Self::bad_request(
            "wrong_task",
            format!(
                "the model {model} is for the task '{found}', and this route for '{wanted}': use {routes}, or another model"
            ),
        );
        error.body.param = Some("model".to_owned());
        error
    }

    fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            INVALID_REQUEST,
            Some(code),
            message,
        )
    }

    /// 400 for a body that is not JSON.
    pub(crate) fn invalid_json(message: impl Into<String>) -> Self {
        Self::bad_request("invalid_json", message)
    }

    /// 401: no key, or a wrong one.
    pub(crate) fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            AUTHENTICATION,
            Some("invalid_api_key"),
            "missing or wrong API key: send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'",
        )
    }

    /// 403: the caller may not do this.
    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, PERMISSION, Some(code), message)
    }

    /// 404: no such route.
    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            INVALID_REQUEST,
            Some("unknown_url"),
            format!("unknown request URL: {method} {path}"),
        )
    }

    /// 404: no such model.
    pub(crate) fn unknown_model(name: &str, served: &[&str]) -> Self {
        // A name is the client's text: shortened, so that an error cannot be made to carry megabytes.
        let shown: String = name.chars().take(200).collect();
        let mut error = Self::new(
            StatusCode::NOT_FOUND,
            INVALID_REQUEST,
            Some("model_not_found"),
            format!(
                "the model '{shown}' does not exist; served: {}",
                served.join(", ")
            ),
        );
        error.body.param = Some("model".to_owned());
        error
    }

    /// 405: the route exists, the method does not.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID_REQUEST,
            Some("method_not_allowed"),
            format!("{path} does not answer {method}"),
        )
    }

    /// 408: the body did not arrive in time.
    pub(crate) fn body_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID_REQUEST,
            Some("body_timeout"),
            "the request body did not arrive in time",
        )
    }

    /// 429: other bodies fill the memory for them.
    pub(crate) fn too_many_bodies() -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            RATE_LIMIT,
            Some("overloaded"),
            "too many large requests are being read; try again in a second",
        );
        error.retry_after = Some(1);
        error
    }

    /// 413: the body is larger than the server takes.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID_REQUEST,
            Some("request_too_large"),
            format!("the request body is larger than the limit of {limit} bytes"),
        )
    }

    /// What is wrong with a medium at `param`: its bytes, its name, or who may read it. The messages
    /// of these errors are made for clients; what caused them goes to the log.
    pub(crate) fn media(error: MediaError, param: &str) -> Self {
        if let Some(cause) = std::error::Error::source(&error) {
            tracing::debug!(param, cause, "{error}");
        }
        let message = error.to_string();
        let mut found = match error {
            MediaError::TooManyBytes { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID_REQUEST,
                Some("request_too_large"),
                message,
            ),
            MediaError::UnknownFormat { .. }
            | MediaError::UnsupportedFormat { .. }
            | MediaError::UnsupportedFeature { .. }
            | MediaError::UnsupportedScheme { .. } => {
                Self::bad_request("unsupported_value", message)
            }
            MediaError::FfmpegMissing { .. } => Self::new(
                StatusCode::NOT_IMPLEMENTED,
                SERVER,
                Some("ffmpeg_missing"),
                message,
            ),
            MediaError::Audio(error) => return Self::audio(error, param),
            MediaError::Document(DocumentError::Busy) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("documents_busy"),
                message,
            ),
            MediaError::FfmpegNotRunnable { .. } | MediaError::Io { .. } => Self::internal(message),
            _ => Self::bad_request("invalid_value", message),
        };
        found.body.param = Some(param.to_owned());
        found
    }

    /// The status of a recording that cannot be used.
    pub(crate) fn audio(error: AudioError, param: &str) -> Self {
        let message = error.to_string();
        let mut found = match error {
            AudioError::TooManyBytes { .. } | AudioError::TooLong { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID_REQUEST,
                Some("request_too_large"),
                message,
            ),
            AudioError::UnknownFormat => Self::bad_request("unsupported_value", message),
            AudioError::NeedsFfmpeg { .. } => Self::new(
                StatusCode::NOT_IMPLEMENTED,
                SERVER,
                Some("ffmpeg_missing"),
                message,
            ),
            AudioError::Io { .. } => {
                tracing::error!(param, "{message}");
                Self::internal("the recording could not be read")
            }
            _ => Self::bad_request("invalid_value", message),
        };
        found.body.param = Some(param.to_owned());
        found
    }

    /// What is wrong with a reference to speak like.
    pub(crate) fn reference(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Audio(error) => Self::audio(error, "ref_audio"),
            ReferenceError::Engine(error) => error.into(),
        }
    }

    /// What is wrong with a voice by name.
    pub(crate) fn voice(error: VoiceError) -> Self {
        let message = error.to_string();
        let mut found = match error {
            VoiceError::Reference(error) => return Self::reference(error),
            VoiceError::Io { .. } => return Self::internal(message),
            VoiceError::Unknown { .. } => Self::new(
                StatusCode::NOT_FOUND,
                INVALID_REQUEST,
                Some("voice_not_found"),
                message,
            ),
            VoiceError::Name { .. } | VoiceError::Exists { .. } | VoiceError::Full => {
                Self::bad_request("invalid_value", message)
            }
        };
        found.body.param = Some("voice".to_owned());
        found
    }

    /// 400 for a medium that could not be fetched.
    pub(crate) fn fetch(error: FetchError, param: &str) -> Self {
        if let FetchError::Media(error) = error {
            return Self::media(error, param);
        }
        if let Some(cause) = std::error::Error::source(&error) {
            tracing::debug!(param, cause, "{error}");
        }
        let mut found = Self::bad_request("media_fetch_failed", error.to_string());
        found.body.param = Some(param.to_owned());
        found
    }

    /// 415: the body is not declared to be JSON.
    pub(crate) fn not_json(content_type: Option<&str>) -> Self {
        let found = content_type.map_or_else(
            || "none was sent".to_owned(),
            |found| format!("found '{}'", found.chars().take(100).collect::<String>()),
        );
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            Some("unsupported_media_type"),
            format!("the content type must be application/json, {found}"),
        )
    }

    /// 415: the body is not declared to be a form with files.
    pub(crate) fn not_multipart(content_type: &str) -> Self {
        let found = match content_type {
            "" => "none was sent".to_owned(),
            found => format!("found '{}'", found.chars().take(100).collect::<String>()),
        };
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            Some("unsupported_media_type"),
            format!("the content type must be multipart/form-data, {found}"),
        )
    }

    /// 400 for a form that is not one, or has too many parts.
    pub(crate) fn invalid_multipart(message: impl Into<String>) -> Self {
        Self::bad_request("invalid_multipart", message)
    }

    /// 500 whose details go to the log only.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            Some("internal_error"),
            "the server failed to answer this request; its log says why (see the request id)",
        );
        error.detail = Some(detail.into());
        error
    }

    /// 503: the model is not loaded yet.
    pub(crate) fn loading(model: &str) -> Self {
        let mut error = Self::unavailable("model_loading", format!("the model {model} is loading"));
        error.retry_after = Some(2);
        error
    }

    /// 503: the model could not be loaded.
    pub(crate) fn load_failed(model: &str) -> Self {
        Self::unavailable(
            "model_load_failed",
            format!("the model {model} could not be loaded; the server's log says why"),
        )
    }

    /// 503: the server is stopping.
    pub(crate) fn shutting_down() -> Self {
        Self::unavailable("shutting_down", "the server is shutting down")
    }

    fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some(code), message)
    }

    /// 504: the request took longer than the server allows.
    pub(crate) fn timeout(seconds: f64) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            SERVER,
            Some("timeout"),
            format!("the request took longer than the limit of {seconds} s and was cancelled"),
        )
    }

    /// The body as JSON text, for an event stream.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(&ErrorBody { error: &self.body }).unwrap_or_default()
    }

    /// Writes what the client is not told to the log.
    pub(crate) fn log(&self) {
        if let Some(detail) = &self.detail {
            tracing::error!(status = self.status.as_u16(), detail, "request failed");
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::InvalidRequest { param, .. } => {
                let mut error = Self::bad_request("invalid_value", message);
                error.body.param = param;
                error
            }
            EngineError::ContextLengthExceeded { .. } => {
                Self::bad_request("context_length_exceeded", message)
            }
            EngineError::Template { .. } => {
                let mut error = Self::bad_request("chat_template_error", message);
                error.body.param = Some("messages".to_owned());
                error
            }
            EngineError::Overloaded {
                retry_after_seconds,
                ..
            } => {
                let mut error = Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    RATE_LIMIT,
                    Some("overloaded"),
                    message,
                );
                error.retry_after = Some(retry_after_seconds.max(1));
                error
            }
            EngineError::ShuttingDown => Self::shutting_down(),
            // Only a stream waits for its reader, and its status is long sent: the client finds
            // this as the last event, once it reads on.
            EngineError::SlowReader => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                SERVER,
                Some("slow_reader"),
                message,
            ),
            EngineError::Internal { message } => Self::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut response = (self.status, Json(ErrorBody { error: &self.body })).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parts(error: EngineError) -> (u16, serde_json::Value) {
        let error = ApiError::from(error);
        (
            error.status.as_u16(),
            serde_json::from_str(&error.to_json()).unwrap(),
        )
    }

    #[test]
    fn engine_errors_have_one_status_each() {
        let (status, body) = parts(EngineError::invalid("temperature", "too hot"));
        assert_eq!(status, 400);
        assert_eq!(
            body,
            json!({"error": {"message": "too hot", "type": "invalid_request_error",
                             "param": "temperature", "code": "invalid_value"}})
        );
        let (status, body) = parts(EngineError::ContextLengthExceeded {
            context_length: 8,
            prompt_tokens: 9,
            completion_tokens: 1,
        });
        assert_eq!(status, 400);
        assert_eq!(body["error"]["code"], "context_length_exceeded");
        let overloaded = ApiError::from(EngineError::Overloaded {
            waiting: 4,
            retry_after_seconds: 7,
        });
        assert_eq!(
            (overloaded.status.as_u16(), overloaded.retry_after),
            (429, Some(7))
        );
        assert_eq!(parts(EngineError::ShuttingDown).0, 503);
        assert_eq!(
            parts(EngineError::Template {
                message: "no".into()
            })
            .0,
            400
        );
    }

    #[test]
    fn internal_details_stay_in_the_log() {
        let (status, body) = parts(EngineError::internal("tensor 0x7f00 at /secret/path"));
        assert_eq!(status, 500);
        assert!(!body.to_string().contains("secret"));
    }

    #[test]
    fn retry_after_and_challenge_are_headers() {
        let response = ApiError::from(EngineError::Overloaded {
            waiting: 1,
            retry_after_seconds: 3,
        })
        .into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        assert_eq!(
            ApiError::unauthorized().into_response().headers()[header::WWW_AUTHENTICATE],
            "Bearer"
        );
    }
}
