//! Which tokens an answer may hold and show: bans of repetitions, stop strings and special tokens, by request and by
//! the model's own defaults.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::{Engine, EngineOptions, NgramWindow};
use aha_server::ServerOptions;
use axum::Router;
use common::{accepted, post, refused, send, serve, start, text_model};
use serde_json::{Value, json};

const MODEL: &str = "qwen3/sharded";
const CHAT: &str = "/v1/chat/completions";

/// A greedy chat with `extra` fields.
fn chat(extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "stone river stone river stone"}],
        "temperature": 0, "max_tokens": 60, "ignore_eos": true, "reasoning_format": "none"});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

async fn text(app: &Router, extra: Value) -> String {
    let answer = accepted(&send(app, post(CHAT, &chat(&extra))).await);
    let content = &answer["choices"][0]["message"]["content"];
    content.as_str().unwrap().to_owned()
}

/// The bytes of each token of the prompt that a chat becomes.
async fn prompt_tokens(app: &Router, engine: &Engine) -> Vec<Vec<u8>> {
    let answer = accepted(&send(app, post("/v1/tokenize", &chat(&json!({})))).await);
    let tokenizer = engine.processor().tokenizer();
    let tokens = answer["tokens"].as_array().unwrap().iter();
    tokens
        .map(|id| id.as_u64().unwrap() as u32)
        .map(|id| tokenizer.token_bytes(id).unwrap().to_vec())
        .collect()
}

fn bytes(entry: &Value) -> Vec<u8> {
    serde_json::from_value(entry["bytes"].clone()).unwrap()
}

/// Greedy decoding under a rule, replayed from the raw distributions: each token must be the most probable of those
/// that the rule leaves, and be reported with its raw log-probability. Returns how often the rule took the best one.
async fn replay(
    app: &Router,
    engine: &Engine,
    extra: Value,
    is_banned: impl Fn(&[Vec<u8>], &[u8]) -> bool,
) -> usize {
    let mut body = chat(&extra);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(20);
    let answer = accepted(&send(app, post(CHAT, &body)).await);
    let steps = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(steps.len(), 60);
    let mut history = prompt_tokens(app, engine).await;
    let mut changed = 0;
    for (index, step) in steps.iter().enumerate() {
        let chosen = bytes(step);
        assert!(!is_banned(&history, &chosen), "token {index}: {step}");
        let top = step["top_logprobs"].as_array().unwrap();
        let allowed = top.iter().find(|entry| !is_banned(&history, &bytes(entry)));
        if let Some(allowed) = allowed {
            assert_eq!(bytes(allowed), chosen, "token {index}");
            assert_eq!(allowed["logprob"], step["logprob"], "token {index}");
        }
        changed += usize::from(bytes(&top[0]) != chosen);
        history.push(chosen);
    }
    changed
}

/// Whether `next` would end an n-gram that `history` holds at or after `from`.
fn repeats(history: &[Vec<u8>], next: &[u8], size: usize, from: usize) -> bool {
    let ending = &history[history.len() - (size - 1)..];
    history[from..]
        .windows(size)
        .any(|ngram| ngram[..size - 1] == *ending && ngram[size - 1] == next)
}

#[tokio::test]
async fn no_ngram_occurs_twice_in_prompt_and_answer() {
    let engine = start(text_model(MODEL), EngineOptions::default());
    let app = serve(&engine, ServerOptions::default());
    for size in [1, 2, 3] {
        let extra = json!({"no_repeat_ngram_size": size});
        let rule = |history: &[Vec<u8>], next: &[u8]| repeats(history, next, size, 0);
        let changed = replay(&app, &engine, extra, rule).await;
        assert!(changed > 0, "the rule of {size} changed nothing");
    }
    assert_eq!(
        text(&app, json!({"no_repeat_ngram_size": 0})).await,
        text(&app, json!({})).await
    );
}

#[tokio::test]
async fn a_window_forgets_and_its_whitelist_is_never_banned() {
    let engine = start(text_model(MODEL), EngineOptions::default());
    let app = serve(&engine, ServerOptions::default());
    let plain = accepted(&send(&app, post(CHAT, &chat(&json!({"logprobs": true})))).await);
    let first = bytes(&plain["choices"][0]["logprobs"]["content"][0]);
    let tokenizer = engine.processor().tokenizer();
    let excepted = (0..tokenizer.vocab_size() as u32)
        .find(|id| tokenizer.token_bytes(*id) == Some(&first))
        .unwrap();
    for (size, window, whitelist) in [(1, 6, vec![]), (2, 9, vec![]), (1, 6, vec![excepted])] {
        let xargs = json!({"ngram_size": size, "window_size": window,
                           "whitelist_token_ids": whitelist});
        let rule = |history: &[Vec<u8>], next: &[u8]| {
            let from = history.len().saturating_sub(window);
            repeats(history, next, size, from) && !(whitelist.contains(&excepted) && next == first)
        };
        let changed = replay(&app, &engine, json!({"vllm_xargs": xargs}), rule).await;
        assert!(
            changed > 0,
            "the rule of {size} in {window} changed nothing"
        );
    }
}

#[tokio::test]
async fn rules_out_of_range_name_their_field() {
    let engine = start(text_model(MODEL), EngineOptions::default());
    let vocab = engine.processor().tokenizer().vocab_size();
    let app = serve(&engine, ServerOptions::default());
    for (extra, param) in [
        (
            json!({"no_repeat_ngram_size": 1000}),
            "no_repeat_ngram_size",
        ),
        (
            json!({"vllm_xargs": {"ngram_size": "3"}}),
            "vllm_xargs.ngram_size",
        ),
        (
            json!({"vllm_xargs": {"ngram_size": 3, "whitelist_token_ids": [vocab * 100]}}),
            "vllm_xargs.whitelist_token_ids",
        ),
        (json!({"vllm_xargs": {"other": 3}}), "vllm_xargs"),
        (json!({"mm_processor_kwargs": 3}), "mm_processor_kwargs"),
        (json!({"skip_special_tokens": "no"}), "skip_special_tokens"),
    ] {
        refused(&send(&app, post(CHAT, &chat(&extra))).await, 400, param);
    }
}

#[tokio::test]
async fn settings_that_a_model_does_not_know_are_refused() {
    for (model, knows) in [(MODEL, "no settings"), ("lfm2vl/tiles", "no settings")] {
        let app = serve(
            &start(text_model(model), EngineOptions::default()),
            ServerOptions::default(),
        );
        let extra = json!({"mm_processor_kwargs": {"max_pixels": 65536, "base_size": 640}});
        let answer = send(&app, post(CHAT, &chat(&extra))).await;
        let message = refused(&answer, 400, "mm_processor_kwargs");
        assert!(
            message.contains("base_size") && message.contains(knows),
            "{message}"
        );
        let known = json!({"max_tokens": 2, "mm_processor_kwargs": {"max_pixels": 65536}});
        accepted(&send(&app, post(CHAT, &chat(&known))).await);
    }
}

#[tokio::test]
async fn special_tokens_are_shown_where_request_or_model_say_so() {
    let mut model = text_model(MODEL);
    let special = model.defaults.eos_token_ids[0];
    let shown = |model| {
        serve(
            &start(model, EngineOptions::default()),
            ServerOptions::default(),
        )
    };
    let forced = |extra: Value| {
        let mut body = json!({"max_tokens": 2, "logit_bias": {special.to_string(): 100}});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let mark = String::from_utf8(
        model
            .processor
            .tokenizer()
            .token_bytes(special)
            .unwrap()
            .to_vec(),
    )
    .unwrap()
    .repeat(2);
    let show = json!({"skip_special_tokens": false});
    let skip = json!({"skip_special_tokens": true});
    let app = shown(text_model(MODEL));
    assert_eq!(text(&app, forced(json!({}))).await, "");
    assert_eq!(text(&app, forced(show)).await, mark);
    model.defaults.skip_special_tokens = false;
    let app = shown(model);
    assert_eq!(text(&app, forced(json!({}))).await, mark);
    assert_eq!(text(&app, forced(skip)).await, "");
}

#[tokio::test]
async fn the_models_own_rules_hold_where_a_request_says_nothing() {
    let plain = serve(
        &start(text_model(MODEL), EngineOptions::default()),
        ServerOptions::default(),
    );
    let whole = text(&plain, json!({"ignore_eos": false})).await;
    let middle: String = whole
        .chars()
        .skip(whole.chars().count() / 2)
        .take(4)
        .collect();
    let ngrams =
        json!({"no_repeat_ngram_size": 2, "vllm_xargs": {"ngram_size": 1, "window_size": 4}});
    let unrepeated = text(&plain, ngrams).await;

    let mut model = text_model(MODEL);
    model.defaults.stop = vec![middle.clone()];
    let app = serve(
        &start(model, EngineOptions::default()),
        ServerOptions::default(),
    );
    let cut = text(&app, json!({"ignore_eos": false})).await;
    assert_eq!(cut, whole[..whole.find(&middle).unwrap()]);
    let asked = json!({"ignore_eos": false, "stop": [whole.chars().next().unwrap()]});
    assert_eq!(text(&app, asked).await, "");
    assert!(text(&app, json!({})).await.contains(&middle));

    let mut model = text_model(MODEL);
    model.defaults.sampling.no_repeat_ngram_size = 2;
    model.defaults.sampling.ngram_window = Some(NgramWindow {
        ngram_size: 1,
        window_size: 4,
        whitelist_token_ids: Vec::new(),
    });
    let app = serve(
        &start(model, EngineOptions::default()),
        ServerOptions::default(),
    );
    assert_eq!(text(&app, json!({})).await, unrepeated);
    let off = json!({"no_repeat_ngram_size": 0, "vllm_xargs": {"ngram_size": 0}});
    assert_eq!(text(&app, off).await, text(&plain, json!({})).await);
}
