//! Requests to a router, and their answers.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests may"
)]

use aha_engine::{Engine, EngineOptions, LoadedModel, TextModel};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use aha_server::{ServedModel, ServerOptions, Service, Shutdown};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tower::ServiceExt;

/// An answer, read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// A header that must be there.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}"))
            .to_str()
            .unwrap()
    }

    pub fn has_header(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    /// The JSON values of an event stream's `data:` lines; the stream must end with `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert!(
            self.header("content-type").starts_with("text/event-stream"),
            "{}",
            self.text
        );
        let mut lines: Vec<_> = self
            .text
            .split("\n\n")
            .filter(|line| !line.is_empty() && !line.starts_with(':'))
            .map(|line| {
                line.strip_prefix("data: ")
                    .unwrap_or_else(|| panic!("{line:?}"))
            })
            .collect();
        assert_eq!(lines.pop(), Some("[DONE]"));
        lines
            .into_iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

pub fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

pub async fn send(app: &Router, request: Request<Body>) -> Answer {
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

/// A checkpoint of the fixtures.
pub fn checkpoint(name: &str) -> PathBuf {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    fixtures.join(name)
}

/// A fixture's model, in f32.
pub fn text_model(name: &str) -> TextModel {
    let load = LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    };
    let LoadedModel::Text(model) = aha_models::load(&checkpoint(name), &load).unwrap() else {
        panic!("{name} is no text model")
    };
    model
}

/// An engine with a small cache.
pub fn start(model: TextModel, options: EngineOptions) -> Engine {
    let options = EngineOptions {
        cache_tokens: Some(options.cache_tokens.unwrap_or(4096)),
        ..options
    };
    Engine::start(model, options).unwrap()
}

/// Waits until the engine has nothing left to do: answers are sent before the step that ends them is counted.
pub async fn idle(engine: &Engine) {
    let began = Instant::now();
    loop {
        let status = engine.status();
        if status.running + status.waiting == 0 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The router of a server with one model.
pub fn serve(engine: &Engine, options: ServerOptions) -> Router {
    let model = ServedModel::new("model", [], "chat");
    model.ready(Service::Text(engine.clone()));
    aha_server::router(options, vec![model], Shutdown::default())
}

/// The JSON of an answer with status 200.
#[track_caller]
pub fn accepted(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The message of a refusal with that status and `param`.
#[track_caller]
pub fn refused(answer: &Answer, status: u16, param: &str) -> String {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = answer.json()["error"].clone();
    assert_eq!(error["param"], param, "{error}");
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    error["message"].as_str().unwrap().to_owned()
}
