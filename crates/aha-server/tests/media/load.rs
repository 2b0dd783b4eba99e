//! Many requests with pictures at once.

use crate::common::{get, idle, send, serve, start, text_model};
use crate::support::{CHAT, TILES, ask, chat, data_url, engine, medium};
use aha_engine::{EncoderInput, EngineOptions, MediaEncoder};
use aha_server::ServerOptions;
use axum::body::Body;
use axum::http::Request;
use candle_core::{Result, Tensor};
use futures_util::future::join_all;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Counts what it encodes.
struct Counting(Box<dyn MediaEncoder>, Arc<AtomicUsize>);

impl MediaEncoder for Counting {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        self.1.fetch_add(inputs.len(), Ordering::Relaxed);
        self.0.encode(inputs)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_picture_a_thousand_times_is_encoded_once_and_all_are_answered() {
    let count = Arc::new(AtomicUsize::new(0));
    let mut model = text_model(TILES);
    model.encoder = model
        .encoder
        .map(|encoder| Box::new(Counting(encoder, count.clone())) as Box<dyn MediaEncoder>);
    let options = EngineOptions {
        queue_limit: 64,
        ..EngineOptions::default()
    };
    let engine = start(model, options);
    let app = serve(&engine, ServerOptions::default());
    let url = data_url(&medium(TILES, "a.png"));
    let body = chat(json!([{"type": "image_url", "image_url": {"url": url}}, "?"]));
    let answers = join_all((0..1000).map(|_| ask(&app, &body))).await;
    let mut whole = None;
    let mut busy = 0;
    for answer in &answers {
        match answer.status {
            200 => {
                let choices = answer.json()["choices"].clone();
                assert_eq!(*whole.get_or_insert_with(|| choices.clone()), choices);
            }
            429 => {
                assert!(answer.has_header("retry-after"));
                busy += 1;
            }
            status => panic!("{status}: {}", answer.text),
        }
    }
    assert!(busy < 1000, "{busy} of 1000 were refused");
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(send(&app, get("/health")).await.status, 200);
    idle(&engine).await;
    let status = engine.status();
    assert_eq!(status.free_blocks, status.total_blocks);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_take_turns() {
    let options = ServerOptions {
        body_limit: 4 << 20,
        body_memory: 4 << 20,
        ..ServerOptions::default()
    };
    let app = serve(&engine(TILES), options);
    // Three megabytes of white space around a small picture: one body at a time fits.
    let padding = " ".repeat(3 << 20);
    let url = data_url(&medium(TILES, "b.png")) + &padding;
    let body = chat(json!([{"type": "image_url", "image_url": {"url": url}}, "?"]));
    let answers = join_all((0..12).map(|_| ask(&app, &body))).await;
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()["choices"], answers[0].json()["choices"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_finds_no_room_in_time_is_429() {
    let options = ServerOptions {
        body_limit: 4 << 20,
        body_memory: 4 << 20,
        ..ServerOptions::default()
    };
    let app = serve(&engine(TILES), options);
    let request = |body: Body| {
        Request::post(CHAT)
            .header("content-type", "application/json")
            .header("content-length", 3 << 20)
            .body(body)
            .unwrap()
    };
    let stalled = || {
        let never = futures_util::stream::pending::<std::result::Result<&[u8], std::io::Error>>();
        request(Body::from_stream(never))
    };
    let ask = |request: Request<Body>| {
        let app = app.clone();
        tokio::spawn(async move { send(&app, request).await })
    };
    // The first holds the room for a minute, then the second does: the third waits in vain.
    let (first, second) = (ask(stalled()), ask(stalled()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = ask(request(Body::from("x".repeat(3 << 20)))).await.unwrap();
    assert_eq!(third.status, 429, "{}", third.text);
    assert_eq!(third.header("retry-after"), "1");
    assert_eq!(first.await.unwrap().status, 408);
    assert_eq!(second.await.unwrap().status, 408);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_picture_in_company_harms_no_one() {
    let engine = engine(TILES);
    let app = serve(&engine, ServerOptions::default());
    let good = data_url(&medium(TILES, "b.png"));
    let mut broken = medium(TILES, "b.png");
    let half = broken.len() / 2;
    broken.truncate(half);
    let body = |url: &str| chat(json!([{"type": "image_url", "image_url": {"url": url}}, "?"]));
    let alone = ask(&app, &body(&good)).await.json()["choices"].clone();
    let bodies: Vec<_> = (0..40)
        .map(|index| {
            if index % 2 == 0 {
                body(&good)
            } else {
                body(&data_url(&broken))
            }
        })
        .collect();
    let asked = bodies.iter().map(|body| ask(&app, body));
    let answers = tokio::time::timeout(Duration::from_secs(60), join_all(asked)).await;
    for (index, answer) in answers.unwrap().iter().enumerate() {
        if index % 2 == 0 {
            assert_eq!(answer.json()["choices"], alone, "{index}");
        } else {
            assert_eq!(answer.status, 400, "{index}");
        }
    }
}
