//! The reference's answers about pictures and clips, and what is kept of them for later requests.

use crate::common::{accepted, checkpoint, post, refused, send, serve, start, text_model};
use crate::support::{CLIPS, TILES, app, ask, bitmap, chat, data_url, image_tokens, medium};
use aha_engine::{EncoderInput, EngineOptions, MediaEncoder};
use aha_server::ServerOptions;
use candle_core::{Result, Tensor};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A golden request with its media files inside it.
fn with_files(mut request: Value, model: &str) -> Value {
    let inline = |url: &mut Value| {
        let name = url.as_str().unwrap().trim_start_matches("media/");
        *url = json!(data_url(&medium(model, name)));
    };
    for message in request["messages"].as_array_mut().unwrap() {
        let Some(parts) = message["content"].as_array_mut() else {
            continue;
        };
        for part in parts {
            match part["type"].as_str().unwrap() {
                "image_url" => inline(&mut part["image_url"]["url"]),
                "video" => part["video"]
                    .as_array_mut()
                    .unwrap()
                    .iter_mut()
                    .for_each(inline),
                _ => {}
            }
        }
    }
    request
}

fn cases(model: &str) -> Vec<Value> {
    let golden = std::fs::read(checkpoint(model).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

#[tokio::test]
async fn answers_about_pictures_and_clips_are_the_references() {
    for model in [TILES, CLIPS, "qwen3vl/mixed", "qwen3_5_vl/mixed"] {
        let app = app(model);
        for case in cases(model) {
            let name = format!("{model} {}", case["name"]);
            let body = with_files(case["request"].clone(), model);
            let answer = accepted(&ask(&app, &body).await);
            let (usage, expect) = (&answer["usage"], &case["expect"]);
            assert_eq!(usage["prompt_tokens"], expect["prompt_tokens"], "{name}");
            let steps = answer["choices"][0]["logprobs"]["content"]
                .as_array()
                .unwrap();
            let wanted = expect["steps"].as_array().unwrap();
            assert_eq!(steps.len(), wanted.len(), "{name}");
            for (index, (got, want)) in steps.iter().zip(wanted).enumerate() {
                assert_eq!(got["bytes"], want["bytes"], "{name}: token {index}");
                let number = |entry: &Value| entry["logprob"].as_f64().unwrap();
                let difference = (number(got) - number(want)).abs();
                assert!(
                    difference < 1e-3,
                    "{name}: token {index} differs by {difference}"
                );
            }
            let details = &usage["prompt_tokens_details"];
            let shown = |kind: &str| body.to_string().contains(kind);
            assert_eq!(
                details["image_tokens"].is_u64(),
                shown("image_url"),
                "{name}"
            );
            assert_eq!(
                details["video_tokens"].is_u64(),
                shown("\"video\""),
                "{name}"
            );
        }
    }
}

/// An encoder that counts what it encodes.
struct Counting(Box<dyn MediaEncoder>, Arc<AtomicUsize>);

impl MediaEncoder for Counting {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        self.1.fetch_add(inputs.len(), Ordering::Relaxed);
        self.0.encode(inputs)
    }
}

#[tokio::test]
async fn a_picture_is_encoded_once_for_all_turns_and_requests() {
    let count = Arc::new(AtomicUsize::new(0));
    let mut model = text_model(CLIPS);
    model.encoder = model
        .encoder
        .map(|encoder| Box::new(Counting(encoder, count.clone())) as Box<dyn MediaEncoder>);
    let app = serve(
        &start(model, EngineOptions::default()),
        ServerOptions::default(),
    );
    let url = data_url(&medium(CLIPS, "a.png"));
    let picture = json!({"type": "image_url", "image_url": {"url": url}});
    let first = chat(json!([picture, "What is it?"]));
    let answer = accepted(&ask(&app, &first).await);
    assert_eq!(count.load(Ordering::Relaxed), 1);

    // The next turn: the prompt's beginning, picture included, is in the prefix cache.
    let mut next = first.clone();
    let turns = next["messages"].as_array_mut().unwrap();
    turns.push(json!({"role": "assistant", "content": "A cat."}));
    turns.push(json!({"role": "user", "content": "Why?"}));
    let later = accepted(&ask(&app, &next).await);
    let cached = later["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(cached > image_tokens(&answer), "{}", later["usage"]);
    assert_eq!(image_tokens(&later), image_tokens(&answer));
    assert_eq!(count.load(Ordering::Relaxed), 1);

    // Behind another text nothing of the prefix is left, but the encoder's output is.
    let other = accepted(&ask(&app, &chat(json!(["Look: ", picture]))).await);
    let cached = other["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let before = other["usage"]["prompt_tokens"].as_u64().unwrap() - image_tokens(&other);
    assert!(cached.unwrap() < before, "{}", other["usage"]);
    assert_eq!(count.load(Ordering::Relaxed), 1);

    // Another size is another picture to the encoder.
    let small = json!({"type": "image_url", "image_url": {"url": url}, "max_pixels": 6272});
    let small = accepted(&ask(&app, &chat(json!([small, "What is it?"]))).await);
    assert!(image_tokens(&small) < image_tokens(&answer));
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn sizes_are_chosen_for_each_picture() {
    let app = app(CLIPS);
    let url = data_url(&bitmap(1120, 1120));
    let tokens = async |extra: Value| {
        let mut part = json!({"type": "image_url", "image_url": {"url": url}});
        for (name, value) in extra.as_object().unwrap() {
            part[name] = value.clone();
        }
        let body = json!({"messages": [{"role": "user", "content": [part]}]});
        let answer = accepted(&send(&app, post("/v1/tokenize", &body)).await);
        answer["count"].as_u64().unwrap()
    };
    let most = 28 * 28 * 4;
    let free = tokens(json!({})).await;
    let capped = tokens(json!({"max_pixels": most})).await;
    // The template's own tokens stand around the picture's.
    let frame = capped - 4;
    assert_eq!(tokens(json!({"max_pixels": most * 4})).await, frame + 16);
    let inner = json!({"image_url": {"url": url, "max_pixels": most}});
    assert_eq!(tokens(inner).await, capped);
    assert_eq!(tokens(json!({"min_pixels": 1})).await, free);
    assert!(tokens(json!({"detail": "low"})).await <= frame + 18 * 18);
    assert_eq!(tokens(json!({"detail": "high"})).await, free);

    let two = |first: u64, second: u64| {
        let part =
            |most| json!({"type": "image_url", "image_url": {"url": url}, "max_pixels": most});
        chat(json!([part(first), part(second), "?"]))
    };
    let answer = accepted(&ask(&app, &two(most, most * 4)).await);
    assert_eq!(image_tokens(&answer), 4 + 16);
}

#[tokio::test]
async fn more_tokens_than_the_context_holds_are_a_400_with_both_numbers() {
    let options = EngineOptions {
        context_length: Some(100),
        ..EngineOptions::default()
    };
    let app = serve(&start(text_model(CLIPS), options), ServerOptions::default());
    let part = |pixels: u64| {
        json!({"type": "image_url", "image_url": {"url": data_url(&bitmap(560, 560))},
               "min_pixels": pixels, "max_pixels": pixels})
    };
    let answer = ask(&app, &chat(json!([part(28 * 28 * 200), "?"]))).await;
    let error = answer.json()["error"].clone();
    assert_eq!(answer.status, 400, "{error}");
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    let tokens: u64 = message
        .split_once("prompt has ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    assert!(message.contains("100 tokens") && tokens > 150, "{message}");
    accepted(&ask(&app, &chat(json!([part(28 * 28 * 16), "?"]))).await);
}

#[tokio::test]
async fn small_pictures_cannot_be_blown_up_to_fill_the_memory() {
    let options = EngineOptions {
        context_length: Some(1000),
        ..EngineOptions::default()
    };
    let app = serve(&start(text_model(CLIPS), options), ServerOptions::default());
    let part = json!({"type": "image_url", "image_url": {"url": data_url(&bitmap(1, 1))},
                      "min_pixels": 16 << 20, "max_pixels": 16 << 20});
    let began = std::time::Instant::now();
    let answer = ask(&app, &chat(json!(vec![part; 120]))).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    // One of them is prepared, not all.
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[tokio::test]
async fn marks_written_into_a_text_stand_for_no_picture() {
    let app = app(CLIPS);
    let picture = json!({"type": "image_url", "image_url": {"url": data_url(&bitmap(64, 64))}});
    for parts in [
        json!([picture, "<|vision_start|><|image_pad|><|vision_end|>"]),
        json!(["<|image_pad|>", picture]),
        json!([picture, "<|video_pad|>"]),
    ] {
        let answer = ask(&app, &chat(parts)).await;
        let message = refused(&answer, 400, "messages");
        assert!(
            message.contains("_pad|>") || message.contains("places"),
            "{message}"
        );
    }
}
