//! Requests that show media, and files to show.

use crate::common::{Answer, checkpoint, post, send, serve, start, text_model};
use aha_engine::{Engine, EngineOptions};
use aha_server::ServerOptions;
use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(crate) const CHAT: &str = "/v1/chat/completions";
/// Takes pictures, in tiles.
pub(crate) const TILES: &str = "lfm2vl/tiles";
/// Takes pictures and clips.
pub(crate) const CLIPS: &str = "qwen2_5vl/mixed";

pub(crate) fn engine(model: &str) -> Engine {
    start(text_model(model), EngineOptions::default())
}

pub(crate) fn app(model: &str) -> Router {
    serve(&engine(model), ServerOptions::default())
}

pub(crate) fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

/// A file of a fixture's media.
pub(crate) fn medium(model: &str, name: &str) -> Vec<u8> {
    std::fs::read(checkpoint(model).join("media").join(name)).unwrap()
}

/// A file of the decoders' fixtures.
pub(crate) fn picture(name: &str) -> Vec<u8> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../aha-media/tests/fixtures/image/media"
    );
    std::fs::read(format!("{folder}/{name}")).unwrap()
}

/// A short greedy chat of one user turn with these parts.
pub(crate) fn chat(parts: Value) -> Value {
    json!({"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 4,
           "ignore_eos": true})
}

/// A chat that shows one picture by its URL.
pub(crate) fn shows(url: &str) -> Value {
    chat(json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]))
}

pub(crate) async fn ask(app: &Router, body: &Value) -> Answer {
    send(app, post(CHAT, body)).await
}

/// Where the URL of [`shows`] stands.
pub(crate) const URL_PARAM: &str = "messages[0].content[0].image_url";

/// Image tokens of an accepted answer.
pub(crate) fn image_tokens(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["image_tokens"]
        .as_u64()
        .unwrap()
}

/// A black picture of one bit a pixel: small in bytes, large in pixels.
pub(crate) fn bitmap(width: u32, height: u32) -> Vec<u8> {
    let pixels = width.div_ceil(32) * 4 * height;
    let mut file = b"BM".to_vec();
    let header = [
        62 + pixels,
        0,
        62,
        40,
        width,
        height,
        1 | (1 << 16),
        0,
        pixels,
        0,
        0,
        2,
        0,
    ];
    for word in header {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 255, 255, 255, 0]);
    file.resize(file.len() + pixels as usize, 0);
    file
}
