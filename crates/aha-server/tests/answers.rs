//! The routes over a real engine on a tiny checkpoint, held to the reference's golden answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::{Engine, EngineOptions};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use aha_server::{ServedModel, ServerOptions, Service, Shutdown};
use axum::Router;
use axum::body::Body;
use common::{Answer, get, idle, post, send};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MODEL: &str = "Qwen/Qwen3-4B";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn fixture() -> PathBuf {
    checkpoint("qwen3/sharded")
}

fn checkpoint(name: &str) -> PathBuf {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    fixtures.join(name)
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(fixture().join("golden.json")).unwrap()).unwrap()
}

fn engine(options: EngineOptions) -> Engine {
    engine_of(&fixture(), options)
}

fn engine_of(folder: &Path, options: EngineOptions) -> Engine {
    let load = LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    };
    let aha_engine::LoadedModel::Text(model) = aha_models::load(folder, &load).unwrap() else {
        panic!("not a text model")
    };
    Engine::start(
        model,
        EngineOptions {
            cache_tokens: Some(4096),
            ..options
        },
    )
    .unwrap()
}

fn ready(engine: &Engine) -> ServedModel {
    let model = ServedModel::new(MODEL, [], "chat");
    model.ready(Service::Text(engine.clone()));
    model
}

fn app_of(engine: &Engine, options: ServerOptions) -> Router {
    aha_server::router(options, vec![ready(engine)], Shutdown::default())
}

fn app() -> Router {
    app_of(&engine(EngineOptions::default()), ServerOptions::default())
}

/// A greedy chat of `max_tokens` tokens, with `extra` fields.
fn chat(max_tokens: usize, extra: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "What is the river of Paris?"}],
                      "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true});
    with(body, extra)
}

fn with(mut body: Value, extra: Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn streamed(body: &Value) -> Value {
    with(
        body.clone(),
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    )
}

/// What a chat's message says, in the order of a stream.
fn said(message: &Value) -> String {
    let text = |name: &str| message[name].as_str().unwrap_or_default();
    format!("{}{}", text("reasoning_content"), text("content"))
}

/// The text of answer `index` in a stream of chunks, after checks that hold for every stream.
fn told(events: &[Value], index: usize) -> String {
    let choices: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"].get(0))
        .filter(|choice| choice["index"] == index)
        .collect();
    let (last, before) = choices.split_last().unwrap();
    assert!(last["finish_reason"].is_string(), "{last}");
    assert!(
        before
            .iter()
            .all(|choice| choice["finish_reason"].is_null())
    );
    choices
        .iter()
        .map(|choice| match choice.get("delta") {
            Some(delta) => said(delta),
            None => choice["text"].as_str().unwrap().to_owned(),
        })
        .collect()
}

async fn ok(app: &Router, path: &str, body: &Value) -> Value {
    let answer = send(app, post(path, body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn events(app: &Router, path: &str, body: &Value) -> Vec<Value> {
    let answer = send(app, post(path, &streamed(body))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.events()
}

fn assert_steps(content: &Value, steps: &Value, case: &str) {
    let (content, steps) = (content.as_array().unwrap(), steps.as_array().unwrap());
    assert_eq!(content.len(), steps.len(), "{case}");
    for (index, (got, want)) in content.iter().zip(steps).enumerate() {
        assert_eq!(got["bytes"], want["bytes"], "{case}: token {index}");
        let difference = got["logprob"].as_f64().unwrap() - want["logprob"].as_f64().unwrap();
        assert!(
            difference.abs() < 1e-3,
            "{case}: token {index} differs by {difference}"
        );
        let top = got["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 5);
        assert_eq!(
            top[0]["logprob"], got["logprob"],
            "{case}: greedy takes the best"
        );
    }
}

#[tokio::test]
async fn golden_chats_hold_plain_and_streamed() {
    let app = app();
    let golden = golden();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let expect = &case["expect"];
        let body = with(case["request"].clone(), json!({"model": MODEL}));
        let answer = ok(&app, CHAT, &body).await;
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["model"], MODEL);
        let choice = &answer["choices"][0];
        assert_steps(&choice["logprobs"]["content"], &expect["steps"], name);
        let stopped = expect["finish_reason"].is_string();
        assert_eq!(
            choice["finish_reason"],
            if stopped { "stop" } else { "length" },
            "{name}"
        );
        assert_eq!(choice["message"]["role"], "assistant");
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], expect["prompt_tokens"], "{name}");
        // The end-of-sequence token counts as generated, though it has no text.
        let tokens = expect["steps"].as_array().unwrap().len() + usize::from(stopped);
        assert_eq!(usage["completion_tokens"], tokens, "{name}");

        let events = events(&app, CHAT, &body).await;
        assert_eq!(events[0]["object"], "chat.completion.chunk");
        assert_eq!(
            events[0]["choices"][0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        assert_eq!(told(&events, 0), said(&choice["message"]), "{name}");
        let listed: Vec<_> = events
            .iter()
            .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_steps(&Value::Array(listed), &expect["steps"], name);
        let last = events.last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], tokens);
        assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    }
}

#[tokio::test]
async fn every_family_answers_alike_plain_and_streamed() {
    for name in [
        "minicpm4/tied-short",
        "lfm2/lfm2",
        "lfm2/lfm2_5-gen",
        "qwen3_5/tied-nothink",
        "qwen3_5/untied-think",
    ] {
        let folder = checkpoint(name);
        let golden: Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let app = app_of(
            &engine_of(&folder, EngineOptions::default()),
            ServerOptions::default(),
        );
        for case in golden["cases"].as_array().unwrap() {
            let (request, expect) = (&case["request"], &case["expect"]);
            let answer = ok(&app, CHAT, request).await;
            // The token that begins a text counts, although not every template writes it.
            assert_eq!(answer["usage"]["prompt_tokens"], expect["prompt_tokens"]);
            let case = format!("{name} {}", case["name"]);
            let content = &answer["choices"][0]["logprobs"]["content"];
            assert_steps(content, &expect["steps"], &case);
            let told = told(&events(&app, CHAT, request).await, 0);
            assert_eq!(told, said(&answer["choices"][0]["message"]), "{case}");
        }
    }
}

#[tokio::test]
async fn completions_continue_text_and_tokens_alike() {
    let app = app();
    let golden = golden();
    let case = &golden["cases"][0];
    let expect = &case["expect"];
    let body = |prompt: &Value| {
        json!({"prompt": prompt, "temperature": 0, "ignore_eos": true, "logprobs": 5,
               "max_tokens": 16})
    };
    for prompt in [&expect["prompt_text"], &expect["prompt_ids"]] {
        let answer = ok(&app, COMPLETIONS, &body(prompt)).await;
        assert_eq!(answer["object"], "text_completion");
        let choice = &answer["choices"][0];
        assert_steps(
            &choice["logprobs"]["content"],
            &expect["steps"],
            "completion",
        );
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(
                choice["logprobs"][list].as_array().unwrap().len(),
                16,
                "{list}"
            );
        }
        let events = events(&app, COMPLETIONS, &body(prompt)).await;
        assert_eq!(told(&events, 0), choice["text"].as_str().unwrap());
    }
    // Two prompts, echoed.
    let body = json!({"prompt": ["one", "two"], "temperature": 0, "max_tokens": 4,
                      "ignore_eos": true, "echo": true});
    let answer = ok(&app, COMPLETIONS, &body).await;
    let told_events = events(&app, COMPLETIONS, &body).await;
    for (index, prompt) in ["one", "two"].into_iter().enumerate() {
        let text = answer["choices"][index]["text"].as_str().unwrap();
        assert!(text.starts_with(prompt), "{text}");
        assert_eq!(told(&told_events, index), text);
    }
    // Without a length OpenAI's sixteen tokens come.
    let body = json!({"prompt": "x", "ignore_eos": true});
    assert_eq!(
        ok(&app, COMPLETIONS, &body).await["usage"]["completion_tokens"],
        16
    );
}

#[tokio::test]
async fn several_answers_differ_and_repeat_with_their_seed() {
    let app = app();
    let body = chat(12, json!({"n": 3, "temperature": 1, "seed": 7}));
    let first = ok(&app, CHAT, &body).await;
    let texts: Vec<_> = (0..3)
        .map(|i| said(&first["choices"][i]["message"]))
        .collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert_eq!(first["usage"]["completion_tokens"], 36);
    let events = events(&app, CHAT, &body).await;
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(told(&events, index), *text);
    }
    assert_eq!(
        events.last().unwrap()["usage"]["prompt_tokens"],
        first["usage"]["prompt_tokens"]
    );
}

#[tokio::test]
async fn stop_strings_end_the_answer_and_are_not_part_of_it() {
    let app = app();
    let whole = said(&ok(&app, CHAT, &chat(16, json!({}))).await["choices"][0]["message"]);
    let end = whole.char_indices().rev().nth(2).unwrap().0;
    let stop = &whole[end..];
    let body = chat(16, json!({"stop": [stop]}));
    let answer = ok(&app, CHAT, &body).await;
    let kept = &whole[..whole.find(stop).unwrap()];
    assert_eq!(said(&answer["choices"][0]["message"]).trim(), kept.trim());
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        told(&events(&app, CHAT, &body).await, 0).trim(),
        kept.trim()
    );
}

#[tokio::test]
async fn a_prompt_seen_before_is_counted_as_cached() {
    let app = app();
    let long = "river stone ".repeat(40);
    let body = json!({"messages": [{"role": "user", "content": long}], "max_tokens": 2});
    let cached = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(cached(&ok(&app, CHAT, &body).await), 0);
    assert!(cached(&ok(&app, CHAT, &body).await) > 0);
}

#[tokio::test]
async fn impossible_requests_are_refused_by_name() {
    let app = app();
    for (path, body, code, param) in [
        (
            CHAT,
            chat(1_000_000_000, json!({})),
            "context_length_exceeded",
            Value::Null,
        ),
        (
            CHAT,
            chat(4, json!({"logit_bias": {"1000000000": 1}})),
            "invalid_value",
            json!("logit_bias"),
        ),
        (
            CHAT,
            chat(4, json!({"stop_token_ids": [1_000_000_000]})),
            "invalid_value",
            json!("stop_token_ids"),
        ),
        (
            COMPLETIONS,
            json!({"prompt": [1_000_000_000]}),
            "invalid_value",
            json!("prompt"),
        ),
        (
            "/v1/detokenize",
            json!({"tokens": [1_000_000_000]}),
            "invalid_value",
            json!("tokens[0]"),
        ),
    ] {
        let answer = send(&app, post(path, &body)).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.json()["error"]["code"], code, "{}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_429_with_a_time_to_come_back() {
    let engine = engine(EngineOptions {
        max_sequences: 1,
        queue_limit: 1,
        ..EngineOptions::default()
    });
    let app = app_of(&engine, ServerOptions::default());
    // One request runs for long, and one waits for it.
    let request = || aha_engine::GenerationRequest {
        prompt: engine.processor().prepare_text("stone").unwrap(),
        stop: aha_engine::StopParams {
            ignore_eos: true,
            ..aha_engine::StopParams::default()
        },
        ..aha_engine::GenerationRequest::default()
    };
    let running = engine.submit(request()).unwrap();
    while engine.status().waiting > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = engine.submit(request()).unwrap();
    for body in [chat(4, json!({})), streamed(&chat(4, json!({})))] {
        let answer: Answer = send(&app, post(CHAT, &body)).await;
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    // What the queue can never hold is no matter of waiting.
    for (path, body, param) in [
        (CHAT, chat(4, json!({"n": 2})), "n"),
        (COMPLETIONS, json!({"prompt": "a", "n": 2}), "n"),
        (COMPLETIONS, json!({"prompt": ["a", "b"]}), "prompt"),
    ] {
        let answer = send(&app, post(path, &body)).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text);
    }
    drop((running, waiting));
}

#[tokio::test]
async fn tools_need_a_template_that_shows_them() {
    let tools = json!([{"type": "function", "function": {"name": "clock"}}]);
    let body = chat(1, json!({"tools": tools}));
    ok(&app(), CHAT, &body).await;
    let folder = checkpoint("llama/smol");
    let app = app_of(
        &engine_of(&folder, EngineOptions::default()),
        ServerOptions::default(),
    );
    for path in [CHAT, "/v1/tokenize"] {
        let answer = send(&app, post(path, &body)).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!("tools"), &json!("unsupported_value"))
        );
        let hidden = with(body.clone(), json!({"tool_choice": "none"}));
        ok(&app, path, &hidden).await;
    }
}

#[tokio::test]
async fn the_default_length_of_completions_ends_with_the_context() {
    let engine = engine(EngineOptions {
        context_length: Some(20),
        ..EngineOptions::default()
    });
    let app = app_of(&engine, ServerOptions::default());
    let body = |prompt: usize, extra: Value| {
        let body = json!({"prompt": vec![70; prompt], "ignore_eos": true});
        with(body, extra)
    };
    let answer = ok(&app, COMPLETIONS, &body(17, json!({}))).await;
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    for (prompt, extra) in [
        (17, json!({"max_tokens": 4})),
        (17, json!({"min_tokens": 4})),
        (20, json!({})),
    ] {
        let answer = send(&app, post(COMPLETIONS, &body(prompt, extra))).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    }
}

#[tokio::test]
async fn tokens_are_the_templates_and_come_back_as_text() {
    let app = app();
    let golden = golden();
    let case = &golden["cases"][0];
    let body = json!({"messages": case["request"]["messages"]});
    let tokens = ok(&app, "/v1/tokenize", &body).await;
    assert_eq!(tokens["tokens"], case["expect"]["prompt_ids"]);
    assert_eq!(tokens["count"], case["expect"]["prompt_tokens"]);
    let text = ok(&app, "/tokenize", &json!({"content": "stone 天 🙂"})).await;
    let back = ok(&app, "/detokenize", &json!({"tokens": text["tokens"]})).await;
    assert_eq!(
        back,
        json!({"prompt": "stone 天 🙂", "content": "stone 天 🙂"})
    );
}

#[tokio::test]
async fn a_ready_model_is_healthy() {
    let app = app();
    let health = send(&app, get("/health")).await;
    assert_eq!(
        (health.status, health.json()["status"].clone()),
        (200, json!("ok"))
    );
    let model = send(&app, get("/v1/models/Qwen/Qwen3-4B")).await.json();
    assert_eq!(model["status"], "ready");
    assert!(model["max_model_len"].as_u64().unwrap() > 0);
    ok(&app, CHAT, &chat(3, json!({}))).await;
    let page = send(&app, get("/metrics")).await.text;
    assert!(
        page.contains("aha_generated_tokens_total{model=\"Qwen/Qwen3-4B\"} 3"),
        "{page}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_cancel_their_work() {
    let engine = engine(EngineOptions::default());
    let app = app_of(&engine, ServerOptions::default());
    let before = ok(&app, CHAT, &chat(24, json!({}))).await["choices"].clone();
    let free = {
        idle(&engine).await;
        engine.status().free_blocks
    };
    let clients = (0..24).map(|client| {
        let app = app.clone();
        tokio::spawn(async move {
            let leaves = client % 3 == 0;
            let length = if leaves { 3000 } else { 20 };
            let body = chat(
                length,
                json!({"stream": true, "temperature": 1, "seed": client}),
            );
            let response = tower::ServiceExt::oneshot(app, post(CHAT, &body))
                .await
                .unwrap();
            let mut body: axum::body::BodyDataStream = Body::into_data_stream(response.into_body());
            let mut frames = 0;
            while let Some(frame) = body.next().await {
                frame.unwrap();
                frames += 1;
                if leaves && frames == 3 {
                    return;
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    idle(&engine).await;
    assert_eq!(engine.status().free_blocks, free);
    assert_eq!(
        ok(&app, CHAT, &chat(24, json!({}))).await["choices"],
        before
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_their_time_end_and_are_cancelled() {
    let engine = engine(EngineOptions::default());
    let limited = ServerOptions {
        request_timeout: Some(Duration::from_millis(100)),
        ..ServerOptions::default()
    };
    let app = app_of(&engine, limited);
    let answer = send(&app, post(CHAT, &chat(3900, json!({})))).await;
    assert_eq!(answer.status, 504, "{}", answer.text);
    idle(&engine).await;
    let answer = send(&app, post(CHAT, &streamed(&chat(3900, json!({}))))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.events().last().unwrap()["error"]["code"], "timeout");
    idle(&engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_finish_within_the_grace_time_or_are_cut() {
    for (length, grace, cut) in [(20, 20_000, false), (3900, 200, true)] {
        let engine = engine(EngineOptions::default());
        let shutdown = Shutdown::default();
        let options = ServerOptions {
            port: 0,
            shutdown_grace: Duration::from_millis(grace),
            ..ServerOptions::default()
        };
        let server = aha_server::bind(options, vec![ready(&engine)], shutdown.clone())
            .await
            .unwrap();
        let address = server.local_addr();
        let serving = tokio::spawn(server.serve());
        let body = streamed(&chat(length, json!({}))).to_string();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = vec![0; 12];
        stream.read_exact(&mut text).await.unwrap();
        shutdown.request();
        stream.read_to_end(&mut text).await.unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]"),
            "{text}"
        );
        assert_eq!(text.contains("shutting_down"), cut, "{text}");
        assert_eq!(
            text.contains("\"finish_reason\":\"length\""),
            !cut,
            "{text}"
        );
        serving.await.unwrap().unwrap();
        assert!(engine.status().stuck, "the engine's thread has ended");
    }
}
