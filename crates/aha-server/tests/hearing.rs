//! Recordings in chats over real engines on tiny checkpoints, held to the references' golden answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::EngineOptions;
use aha_server::ServerOptions;
use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{accepted, checkpoint, get, post, refused, send, serve, start, text_model};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const MODELS: [&str; 3] = [
    "qwen3_asr/windows",
    "glm_asr_nano/small",
    "fun_asr_nano/small",
];

fn app(name: &str) -> Router {
    let engine = start(text_model(name), EngineOptions::default());
    serve(&engine, ServerOptions::default())
}

/// The golden chat of a fixture, with its recording in the request, and what the reference answers.
fn golden_chat(name: &str) -> (Value, Value) {
    let read = |file: &str| std::fs::read(checkpoint(name).join(file)).unwrap();
    let golden: Value = serde_json::from_slice(&read("golden.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["endpoint"] == CHAT).unwrap();
    let mut request = case["request"].clone();
    request["model"] = json!("model");
    for message in request["messages"].as_array_mut().unwrap() {
        let parts = message["content"].as_array_mut().into_iter().flatten();
        for part in parts.filter(|part| part["type"] == "input_audio") {
            let data = &mut part["input_audio"]["data"];
            *data = json!(STANDARD.encode(read(data.as_str().unwrap())));
        }
    }
    (request, case["expect"].clone())
}

/// The same request with the recording in another kind of part.
fn as_url(request: &Value) -> Value {
    let mut request = request.clone();
    for message in request["messages"].as_array_mut().unwrap() {
        let parts = message["content"].as_array_mut().into_iter().flatten();
        for part in parts.filter(|part| part["type"] == "input_audio") {
            let data = part["input_audio"]["data"].as_str().unwrap();
            *part = json!({
                "type": "audio_url",
                "audio_url": {"url": format!("data:audio/flac;base64,{data}")},
            });
        }
    }
    request
}

#[tokio::test]
async fn chats_about_recordings_equal_the_reference() {
    for name in MODELS {
        let app = app(name);
        let (request, expect) = golden_chat(name);
        for body in [request.clone(), as_url(&request)] {
            let answer = accepted(&send(&app, post(CHAT, &body)).await);
            let choice = &answer["choices"][0];
            let content = choice["logprobs"]["content"].as_array().unwrap();
            let steps = expect["steps"].as_array().unwrap();
            assert_eq!(content.len(), steps.len(), "{name}");
            for (token, step) in content.iter().zip(steps) {
                assert_eq!(token["bytes"], step["bytes"], "{name}");
            }
            let usage = &answer["usage"];
            assert_eq!(usage["prompt_tokens"], expect["prompt_tokens"], "{name}");
            let heard = &usage["prompt_tokens_details"]["audio_tokens"];
            assert_eq!(*heard, expect["audio_tokens"], "{name}");
        }
    }
}

#[tokio::test]
async fn the_list_says_what_the_model_hears() {
    let app = app(MODELS[0]);
    let list = accepted(&send(&app, get("/v1/models")).await);
    assert_eq!(
        list["data"][0]["input_modalities"],
        json!(["text", "audio"])
    );
}

fn with_recording(data: &[u8]) -> Value {
    let sound = json!({"data": STANDARD.encode(data), "format": "wav"});
    let part = json!({"type": "input_audio", "input_audio": sound});
    json!({"model": "model", "max_tokens": 3, "messages": [{"role": "user", "content": [part]}]})
}

/// A WAV file of 16-bit samples at a rate.
fn wav(rate: u32, samples: &[i16]) -> Vec<u8> {
    let bytes = 2 * samples.len() as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend([1, 0, 1, 0]);
    file.extend(rate.to_le_bytes());
    file.extend((2 * rate).to_le_bytes());
    file.extend([2, 0, 16, 0]);
    file.extend(b"data");
    file.extend(bytes.to_le_bytes());
    file.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    file
}

#[tokio::test]
async fn recordings_that_cannot_be_heard_are_refused() {
    let app = app(MODELS[0]);
    const FIELD: &str = "messages[0].content[0].input_audio";
    for (file, status, field) in [
        (b"<html>".to_vec(), 400, FIELD),
        (wav(16_000, &[]), 400, FIELD),
        (wav(655_350, &[0; 100]), 400, FIELD),
        (wav(16_000, &[0; 10]), 400, "messages"),
        // Twenty minutes, the five seconds in which a long recording may be cut, and one more, at the lowest rate there is.
        (wav(1_000, &vec![0; 1_206_000]), 413, FIELD),
    ] {
        let answer = send(&app, post(CHAT, &with_recording(&file))).await;
        refused(&answer, status, field);
    }
    // Each of them would do, but not both together.
    let long = wav(1_000, &vec![0; 700_000]);
    let mut both = with_recording(&long);
    let parts = both["messages"][0]["content"].as_array_mut().unwrap();
    parts.push(parts[0].clone());
    let answer = send(&app, post(CHAT, &both)).await;
    refused(&answer, 413, "messages[0].content[1].input_audio");
    // All of silence is a recording like any other.
    accepted(&send(&app, post(CHAT, &with_recording(&wav(16_000, &[0; 8000])))).await);
}
