//! The routes without a loaded model: what is refused, and how.

#![allow(clippy::unwrap_used, reason = "tests may")]

mod common;

use aha_server::{ServedModel, ServerOptions, Shutdown};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use common::{Answer, get, post, send};
use serde_json::{Value, json};

/// A router whose models load forever.
fn app(options: ServerOptions) -> axum::Router {
    let models = vec![
        ServedModel::new("Qwen/Qwen3-0.6B", ["qwen3".to_owned()], "chat"),
        ServedModel::new("other", [], "chat"),
    ];
    aha_server::router(options, models, Shutdown::default())
}

async fn ask(request: Request<Body>) -> Answer {
    send(&app(ServerOptions::default()), request).await
}

#[track_caller]
fn assert_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{error}");
    assert!(
        error["message"].is_string() && error["type"].is_string(),
        "{error}"
    );
    assert!(error.as_object().unwrap().contains_key("param"), "{error}");
}

#[tokio::test]
async fn routes_answer_with_and_without_the_prefix() {
    for prefix in ["", "/v1"] {
        assert_eq!(ask(get(&format!("{prefix}/live"))).await.status, 200);
        assert_eq!(ask(get(&format!("{prefix}/health"))).await.status, 503);
        assert_eq!(ask(get(&format!("{prefix}/models"))).await.status, 200);
        assert_eq!(ask(get(&format!("{prefix}/metrics"))).await.status, 200);
        for route in ["chat/completions", "completions", "tokenize", "detokenize"] {
            let answer = ask(post(&format!("{prefix}/{route}"), &json!({}))).await;
            assert_error(&answer, 400, "missing_required_parameter");
        }
    }
    assert_eq!(ask(get("/")).await.json()["name"], "aha");
}

#[tokio::test]
async fn unknown_routes_and_methods_are_told_in_openais_shape() {
    assert_error(&ask(get("/v1/nothing")).await, 404, "unknown_url");
    assert_error(&ask(get("/v2/models")).await, 404, "unknown_url");
    let answer = ask(get("/v1/chat/completions")).await;
    assert_error(&answer, 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
}

#[tokio::test]
async fn models_are_listed_and_found_by_ids_with_slashes() {
    let list = ask(get("/v1/models")).await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "Qwen/Qwen3-0.6B");
    for path in [
        "/v1/models/Qwen/Qwen3-0.6B",
        "/models/qwen%2Fqwen3-0.6b",
        "/v1/models/QWEN3",
    ] {
        let model = ask(get(path)).await.json();
        assert_eq!(model["id"], "Qwen/Qwen3-0.6B", "{path}");
        assert_eq!(model["object"], "model");
        assert_eq!(model["status"], "loading");
        assert!(model["created"].is_u64() && model["owned_by"].is_string());
    }
    assert_error(&ask(get("/v1/models/gpt-4")).await, 404, "model_not_found");
}

#[tokio::test]
async fn a_loading_model_answers_503_and_an_unknown_one_404() {
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let answer = ask(post("/v1/chat/completions", &body)).await;
    assert_error(&answer, 503, "model_loading");
    assert_eq!(answer.header("retry-after"), "2");
    let mut named = body.clone();
    named["model"] = json!("gpt-4");
    let answer = ask(post("/v1/chat/completions", &named)).await;
    assert_error(&answer, 404, "model_not_found");
    assert_eq!(answer.json()["error"]["param"], "model");
    let answer = ask(get("/health")).await;
    assert_eq!(
        (answer.status, answer.json()["status"].clone()),
        (503, json!("loading"))
    );
}

#[tokio::test]
async fn wrong_fields_are_named() {
    for (path, body, param) in [
        (
            "/v1/chat/completions",
            json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": 3}]}),
            "messages[2].content",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [], "model": 7}),
            "model",
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "temperature": -1}),
            "temperature",
        ),
        (
            "/v1/completions",
            json!({"prompt": "a", "response_format": {"type": "json_object"}}),
            "response_format",
        ),
        ("/v1/detokenize", json!({"tokens": [1, "x"]}), "tokens[1]"),
    ] {
        let answer = ask(post(path, &body)).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn bodies_must_be_json_of_bounded_size() {
    let app = app(ServerOptions {
        body_limit: 1000,
        ..ServerOptions::default()
    });
    let request = |kind: Option<&str>, body: Vec<u8>| {
        let mut builder = Request::post("/v1/chat/completions");
        if let Some(kind) = kind {
            builder = builder.header("content-type", kind);
        }
        builder.body(Body::from(body)).unwrap()
    };
    for kind in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let answer = send(&app, request(kind, b"{}".to_vec())).await;
        assert_error(&answer, 415, "unsupported_media_type");
    }
    for body in [
        &b""[..],
        b"{",
        b"\"\xff\"",
        b"[1]",
        b"{\"messages\": \"\\ud800\"}",
    ] {
        let answer = send(&app, request(Some("application/json"), body.to_vec())).await;
        assert_error(&answer, 400, "invalid_json");
    }
    let large = request(Some("application/json"), vec![b' '; 1001]);
    assert_error(&send(&app, large).await, 413, "request_too_large");
    // Without a declared length the limit shows while reading.
    let pieces = futures_util::stream::iter((0..20).map(|_| Ok::<_, String>(vec![b' '; 100])));
    let mut chunked = request(Some("application/json"), Vec::new());
    *chunked.body_mut() = Body::from_stream(pieces);
    assert_error(&send(&app, chunked).await, 413, "request_too_large");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let never = futures_util::stream::pending::<Result<Vec<u8>, String>>();
    let request = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .body(Body::from_stream(never))
        .unwrap();
    assert_error(&ask(request).await, 408, "body_timeout");
}

#[tokio::test]
async fn keys_open_everything_but_the_probes() {
    let options = ServerOptions {
        api_keys: vec!["one".into(), "two".into()],
        ..ServerOptions::default()
    };
    let app = app(options);
    let with = |path: &str, name: &str, value: &str| {
        Request::get(path)
            .header(name, value)
            .body(Body::empty())
            .unwrap()
    };
    for path in ["/", "/health", "/live", "/v1/health", "/v1/live"] {
        assert_ne!(send(&app, get(path)).await.status, 401, "{path}");
    }
    for path in [
        "/v1/models",
        "/metrics",
        "/nothing",
        "/v1/models?api_key=one",
    ] {
        let answer = send(&app, get(path)).await;
        assert_error(&answer, 401, "invalid_api_key");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    for (name, value) in [("authorization", "Bearer two"), ("x-api-key", "one")] {
        assert_eq!(
            send(&app, with("/v1/models", name, value)).await.status,
            200
        );
    }
    let long = "x".repeat(64 << 10);
    for value in ["", "three", "One", long.as_str()] {
        assert_error(
            &send(&app, with("/v1/models", "x-api-key", value)).await,
            401,
            "invalid_api_key",
        );
    }
}

#[tokio::test]
async fn other_hosts_are_refused_on_loopback() {
    let with = |host: &str| {
        Request::get("/live")
            .header("host", host)
            .body(Body::empty())
            .unwrap()
    };
    assert_eq!(ask(with("localhost:10100")).await.status, 200);
    assert_error(&ask(with("evil.example")).await, 403, "host_not_allowed");
    let absolute = Request::get("http://evil.example/live")
        .body(Body::empty())
        .unwrap();
    assert_error(&ask(absolute).await, 403, "host_not_allowed");
}

#[tokio::test]
async fn cors_is_off_unless_asked_for() {
    let preflight = || {
        Request::options("/v1/chat/completions")
            .header("origin", "https://app.example")
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization, content-type",
            )
            .body(Body::empty())
            .unwrap()
    };
    let answer = ask(preflight()).await;
    assert_error(&answer, 405, "method_not_allowed");
    assert!(!answer.has_header("access-control-allow-origin"));

    let keyed = |origin: &str| ServerOptions {
        cors_origins: vec![origin.to_owned()],
        api_keys: vec!["k".into()],
        ..ServerOptions::default()
    };
    let answer = send(&app(keyed("https://app.example")), preflight()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "https://app.example"
    );
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "authorization, content-type"
    );
    let answer = send(&app(keyed("https://other.example")), preflight()).await;
    assert!(!answer.has_header("access-control-allow-origin"));
    let answer = send(&app(keyed("*")), preflight()).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}

#[tokio::test]
async fn request_ids_come_back_and_are_made_up_otherwise() {
    let with = |id: &str| {
        Request::get("/live")
            .header("x-request-id", id)
            .body(Body::empty())
    };
    assert_eq!(
        ask(with("trace-7").unwrap()).await.header("x-request-id"),
        "trace-7"
    );
    for request in [get("/live"), with("no spaces").unwrap(), get("/nothing")] {
        assert!(
            ask(request)
                .await
                .header("x-request-id")
                .starts_with("req-")
        );
    }
}

#[tokio::test]
async fn strangers_cannot_stop_the_server() {
    // Requests without a connection have no known peer: they count as remote.
    let shutdown = |options: ServerOptions, headers: &[(&str, &str)]| {
        let signal = Shutdown::default();
        let models = vec![ServedModel::new("m", [], "chat")];
        let app = aha_server::router(options, models, signal.clone());
        let mut request = Request::post("/shutdown");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        async move { (send(&app, request).await, signal.is_requested()) }
    };
    let (answer, stopped) = shutdown(ServerOptions::default(), &[]).await;
    assert_error(&answer, 403, "remote_shutdown_not_allowed");
    assert!(!stopped);
    let allowed = || ServerOptions {
        allow_remote_shutdown: true,
        ..ServerOptions::default()
    };
    let (answer, _) = shutdown(allowed(), &[]).await;
    assert_error(&answer, 403, "remote_shutdown_not_allowed");
    let keyed = || ServerOptions {
        api_keys: vec!["k".into()],
        ..allowed()
    };
    assert_error(&shutdown(keyed(), &[]).await.0, 401, "invalid_api_key");
    let (answer, stopped) = shutdown(
        keyed(),
        &[("x-api-key", "k"), ("origin", "https://evil.example")],
    )
    .await;
    assert_error(&answer, 403, "origin_not_allowed");
    assert!(!stopped);
    let (answer, stopped) = shutdown(keyed(), &[("x-api-key", "k")]).await;
    assert_eq!((answer.status, stopped), (200, true));
}

#[tokio::test]
async fn a_stopping_server_takes_no_requests_but_probes() {
    let signal = Shutdown::default();
    let models = vec![ServedModel::new("m", [], "chat")];
    let app = aha_server::router(ServerOptions::default(), models, signal.clone());
    signal.request();
    let answer = send(&app, get("/v1/models")).await;
    assert_error(&answer, 503, "shutting_down");
    assert_eq!(answer.header("connection"), "close");
    assert_eq!(
        send(&app, get("/live")).await.status,
        StatusCode::OK.as_u16()
    );
    let health = send(&app, get("/health")).await;
    assert_eq!(
        (health.status, health.json()["status"].clone()),
        (503, json!("shutting_down"))
    );
}

#[tokio::test]
async fn failed_models_tell_clients_nothing_about_the_machine() {
    let model = ServedModel::new("m", [], "chat");
    model.failed("/secret/path/model.safetensors is truncated");
    let app = aha_server::router(ServerOptions::default(), vec![model], Shutdown::default());
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for request in [
        get("/health"),
        get("/v1/models"),
        post("/v1/chat/completions", &body),
    ] {
        assert!(!send(&app, request).await.text.contains("secret"));
    }
    assert_eq!(send(&app, get("/health")).await.json()["status"], "failed");
    let answer: Value = send(&app, post("/v1/chat/completions", &body)).await.json();
    assert_eq!(answer["error"]["code"], "model_load_failed");
}

#[tokio::test]
async fn metrics_count_by_route() {
    let app = app(ServerOptions::default());
    send(&app, get("/v1/models/Qwen/Qwen3-0.6B")).await;
    send(&app, get("/v1/models/made-up-by-a-client")).await;
    send(&app, get("/made-up-by-a-client")).await;
    let page = send(&app, get("/metrics")).await.text;
    for line in [
        "aha_http_requests_total{route=\"/v1/models/{*id}\",status=\"200\"} 1",
        "aha_http_requests_total{route=\"/v1/models/{*id}\",status=\"404\"} 1",
        "aha_http_requests_total{route=\"unknown\",status=\"404\"} 1",
        "aha_model_ready{model=\"Qwen/Qwen3-0.6B\"} 0",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line} not in\n{page}"
        );
    }
    assert!(!page.contains("made-up"));
}
