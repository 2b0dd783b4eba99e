//! Embeddings, reranking and scores over real engines on tiny checkpoints, held to the reference's golden answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::{EngineOptions, Task};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use aha_server::{ServedModel, ServerOptions, Service, Shutdown};
use axum::Router;
use common::{Answer, get, post, send};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const EMBEDDINGS: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";
const SCORE: &str = "/v1/score";

fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

fn golden(name: &str) -> Value {
    let path = checkpoint(name).join("golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn service(name: &str, options: EngineOptions) -> Service {
    let load = LoadOptions {
        dtype: DtypeRequest::F32,
        task: name.contains("reranker").then_some(Task::Rerank),
        ..LoadOptions::default()
    };
    Service::start(aha_models::load(&checkpoint(name), &load).unwrap(), options).unwrap()
}

fn app_of(services: &[(&str, Service)], options: ServerOptions) -> Router {
    let models = services
        .iter()
        .map(|(name, service)| {
            let model = ServedModel::new(*name, [], service.task().name());
            model.ready(service.clone());
            model
        })
        .collect();
    aha_server::router(options, models, Shutdown::default())
}

fn app(name: &str) -> Router {
    let service = service(name, EngineOptions::default());
    app_of(&[("m", service)], ServerOptions::default())
}

async fn ask(app: &Router, path: &str, body: &Value) -> Answer {
    send(app, post(path, body)).await
}

#[track_caller]
fn refused(answer: &Answer, param: &str) -> String {
    assert_eq!(answer.status, 400, "{}", answer.text);
    let error = answer.json()["error"].clone();
    assert_eq!(error["param"], param, "{error}");
    assert_eq!(error["type"], "invalid_request_error");
    error["message"].as_str().unwrap().to_owned()
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    for (index, entry) in data.iter().enumerate() {
        assert_eq!(entry["index"], index);
        assert_eq!(entry["object"], "embedding");
    }
    let row = |entry: &Value| serde_json::from_value(entry["embedding"].clone()).unwrap();
    data.iter().map(row).collect()
}

#[tokio::test]
async fn embeddings_equal_the_reference() {
    for name in [
        "minilm/base",
        "minilm/prefixed",
        "qwen3_embedding/single",
        "qwen3_embedding/sharded",
    ] {
        let app = app(name);
        let mut cut = 0;
        for case in golden(name)["cases"].as_array().unwrap() {
            let answer = ask(&app, EMBEDDINGS, &case["request"]).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert!(answer.header("server-timing").contains("prefill"));
            let body = answer.json();
            assert_eq!(body["model"], "m");
            assert_eq!(
                body["usage"]["prompt_tokens"],
                case["expect"]["prompt_tokens"]
            );
            assert_eq!(
                body["usage"]["total_tokens"],
                case["expect"]["prompt_tokens"]
            );
            let wanted: Vec<Vec<f32>> =
                serde_json::from_value(case["expect"]["embeddings"].clone()).unwrap();
            for (found, wanted) in vectors(&body).concat().iter().zip(wanted.concat()) {
                assert!((found - wanted).abs() < 1e-5, "{name} {}", case["name"]);
            }
            // The reference cuts what is longer than the limit: only vectors of that many tokens may be of a part.
            let limit = if name == "minilm/base" { 32 } else { 24 };
            let data = body["data"].as_array().unwrap().iter();
            for (entry, ids) in data.zip(case["expect"]["prompt_ids"].as_array().unwrap()) {
                if entry["truncated"] == true {
                    cut += 1;
                    assert!(name.starts_with("minilm"), "{name} {}", case["name"]);
                    assert_eq!(
                        ids.as_array().unwrap().len(),
                        limit,
                        "{name} {}",
                        case["name"]
                    );
                }
            }
        }
        assert_eq!(cut > 0, name.starts_with("minilm"), "{name}");
    }
}

#[tokio::test]
async fn all_shapes_and_formats_give_the_same_numbers() {
    let app = app("qwen3_embedding/single");
    let tokens = |text: &'static str| {
        let app = &app;
        async move {
            let body = json!({"prompt": text});
            let ids = ask(app, "/tokenize", &body).await.json()["tokens"].clone();
            assert!(!ids.as_array().unwrap().is_empty());
            ids
        }
    };
    let (a, b) = (tokens("What is gravity?").await, tokens("A force.").await);
    let texts = json!({"input": ["What is gravity?", "A force."], "user": "somebody"});
    let both = vectors(&ask(&app, EMBEDDINGS, &texts).await.json());
    let ids = vectors(
        &ask(&app, EMBEDDINGS, &json!({"input": [a, b]}))
            .await
            .json(),
    );
    assert_eq!(both, ids);
    let one = vectors(&ask(&app, EMBEDDINGS, &json!({"input": a})).await.json());
    assert_eq!(one, both[..1]);
    let text = json!({"input": "What is gravity?", "encoding_format": "base64"});
    let answer = ask(&app, EMBEDDINGS, &text).await.json();
    use base64::Engine as _;
    let bytes = base64::prelude::BASE64_STANDARD
        .decode(answer["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let values: Vec<f32> = bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(values, both[0]);
    let short = json!({"input": "A force.", "dimensions": 7});
    let short = vectors(&ask(&app, EMBEDDINGS, &short).await.json()).remove(0);
    let norm: f32 = short.iter().map(|x| x * x).sum();
    assert_eq!(short.len(), 7);
    assert!((norm - 1.0).abs() < 1e-5);
}

#[tokio::test]
async fn impossible_embeddings_are_refused() {
    let qwen = app("qwen3_embedding/single");
    for (body, param, says) in [
        (json!({}), "input", "missing"),
        (json!({"input": []}), "input", "at least one"),
        (json!({"input": ["a", []]}), "input[1]", "at least one"),
        (json!({"input": ["a", [9_999_999]]}), "input[1]", "9999999"),
        (json!({"input": vec![3; 32_769]}), "input", "32768"),
        (
            json!({"input": "a", "dimensions": 1000}),
            "dimensions",
            "48",
        ),
        (
            json!({"input": "a", "prompt_name": "no"}),
            "prompt_name",
            "query",
        ),
        (
            json!({"input": "a", "prompt_name": "query", "instruct": "x"}),
            "instruct",
            "exclude",
        ),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            "encoding_format",
            "base64",
        ),
    ] {
        let message = refused(&ask(&qwen, EMBEDDINGS, &body).await, param);
        assert!(message.contains(says), "{message}");
    }
    let answer = ask(
        &qwen,
        EMBEDDINGS,
        &json!({"input": "gravity is a force", "truncate_prompt_tokens": 3}),
    )
    .await;
    assert_eq!(answer.json()["usage"]["prompt_tokens"], 3);
    assert_eq!(answer.json()["data"][0]["truncated"], true);
    let minilm = app("minilm/base");
    let long = json!({"input": "word ".repeat(100), "truncate": false});
    assert!(refused(&ask(&minilm, EMBEDDINGS, &long).await, "input").contains("32"));
    let empty = ask(&minilm, EMBEDDINGS, &json!({"input": ""})).await;
    assert_eq!(empty.json()["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn scores_equal_the_reference_in_both_shapes() {
    for name in ["qwen3_reranker/single", "qwen3_reranker/sharded"] {
        let app = app(name);
        for case in golden(name)["cases"].as_array().unwrap() {
            let wanted: Vec<f32> =
                serde_json::from_value(case["expect"]["scores"].clone()).unwrap();
            let answer = ask(&app, RERANK, &case["request"]).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let body = answer.json();
            assert_eq!(
                body["usage"]["total_tokens"],
                case["expect"]["prompt_tokens"]
            );
            let results = body["results"].as_array().unwrap();
            assert_eq!(results.len(), wanted.len());
            let mut before = f64::INFINITY;
            for result in results {
                let score = result["relevance_score"].as_f64().unwrap();
                assert!(score <= before);
                before = score;
                let index = result["index"].as_u64().unwrap() as usize;
                assert!((score as f32 - wanted[index]).abs() < 1e-5, "{name}");
                assert_eq!(
                    result["document"]["text"],
                    case["request"]["documents"][index]
                );
            }
            let request = &case["request"];
            let mut pairs = json!({"text_1": request["query"], "text_2": request["documents"]});
            pairs["instruct"] = request["instruct"].clone();
            let body = ask(&app, SCORE, &pairs).await.json();
            assert_eq!(body["object"], "list");
            for (entry, wanted) in body["data"].as_array().unwrap().iter().zip(&wanted) {
                assert!((entry["score"].as_f64().unwrap() as f32 - wanted).abs() < 1e-5);
            }
        }
        let body = json!({"query": "q", "documents": [{"text": "a"}, "b", "c"], "top_n": 2, "return_documents": false});
        let results = ask(&app, "/rerank", &body).await.json()["results"].clone();
        assert_eq!(results.as_array().unwrap().len(), 2);
        assert!(results[0].get("document").is_none());
        let long =
            json!({"query": "q", "documents": ["a", "word ".repeat(9000)], "truncate": false});
        assert!(refused(&ask(&app, RERANK, &long).await, "documents[1]").contains("8192"));
        let query = json!({"query": "word ".repeat(9000), "documents": ["a"]});
        refused(&ask(&app, RERANK, &query).await, "query");
    }
}

#[tokio::test]
async fn a_route_of_another_task_names_both() {
    let services = ["llama/smol", "minilm/base", "qwen3_reranker/single"].map(|name| {
        (
            name,
            service(
                name,
                EngineOptions {
                    cache_tokens: Some(1024),
                    ..EngineOptions::default()
                },
            ),
        )
    });
    let app = app_of(&services, ServerOptions::default());
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    let bodies = [
        ("chat", "/v1/chat/completions", chat),
        (
            "chat",
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": 1}),
        ),
        ("embed", EMBEDDINGS, json!({"input": "a"})),
        ("rerank", RERANK, json!({"query": "a", "documents": ["b"]})),
        ("rerank", SCORE, json!({"text_1": "a", "text_2": "b"})),
    ];
    for (name, service) in &services {
        let own = service.task().name();
        for (task, path, body) in &bodies {
            let mut body = body.clone();
            body["model"] = json!(name);
            let answer = ask(&app, path, &body).await;
            if own == *task {
                assert_eq!(answer.status, 200, "{}", answer.text);
            } else {
                let message = refused(&answer, "model");
                assert!(message.contains(&format!("'{own}'")), "{message}");
                assert!(message.contains(&format!("'{task}'")), "{message}");
            }
        }
        let entry = send(&app, get(&format!("/v1/models/{name}"))).await.json();
        assert_eq!(entry["task"], own);
        assert!(entry["max_model_len"].as_u64().unwrap() > 0);
    }
    let health = send(&app, get("/health")).await.json();
    assert_eq!(
        health["models"][1],
        json!({"id": "minilm/base", "task": "embed", "status": "ok"})
    );
    let page = send(&app, get("/metrics")).await.text;
    assert!(
        page.contains("aha_prompt_tokens_total{model=\"minilm/base\"} 3"),
        "{page}"
    );
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_nothing() {
    let service = service(
        "minilm/base",
        EngineOptions {
            max_batch_tokens: 1,
            ..EngineOptions::default()
        },
    );
    let options = ServerOptions {
        request_timeout: Some(Duration::from_millis(100)),
        ..ServerOptions::default()
    };
    let app = app_of(&[("m", service.clone())], options);
    let texts = vec!["many words that take their time to compute"; 2048];
    let answer = ask(&app, EMBEDDINGS, &json!({"input": texts})).await;
    if answer.status != 200 {
        assert_eq!(answer.status, 504, "{}", answer.text);
    }
    for _ in 0..1000 {
        let status = service.status();
        if (status.running, status.waiting) == (0, 0) {
            let answer = ask(&app, EMBEDDINGS, &json!({"input": "a"})).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{:?}", service.status());
}
