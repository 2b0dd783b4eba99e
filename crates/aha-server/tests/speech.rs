//! Speech over HTTP, on real engines with tiny checkpoints: held to the reference's waves, streamed and whole.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::{EngineOptions, LoadedModel, SpeechEngine};
use aha_media::audio::{AudioSource, DecodeOptions, ResampleMethod, decode_mono};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use aha_server::{ServedModel, ServerOptions, Service, Shutdown};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::{accepted, checkpoint, get, post, refused, send};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

const SPEECH: &str = "/v1/audio/speech";
const VOICES: &str = "/v1/audio/voices";

fn engine_with(options: EngineOptions) -> SpeechEngine {
    let load = LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    };
    match aha_models::load(&checkpoint("voxcpm/base"), &load).unwrap() {
        LoadedModel::Speak(model) => SpeechEngine::start(model, &options).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn engine() -> SpeechEngine {
    engine_with(EngineOptions::default())
}

fn serve(engine: &SpeechEngine, options: ServerOptions) -> Router {
    let model = ServedModel::new("voice", [], "speak");
    model.ready(Service::Speak(engine.clone()));
    aha_server::router(options, vec![model], Shutdown::default())
}

fn app() -> Router {
    serve(&engine(), ServerOptions::default())
}

/// An answer whose body is no text.
struct Sound {
    status: u16,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Sound {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    #[track_caller]
    fn samples(&self, rate: u32) -> Vec<f32> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.bytes));
        decode(&self.bytes, rate)
    }
}

fn decode(bytes: &[u8], rate: u32) -> Vec<f32> {
    let source = AudioSource::from(bytes);
    let method = ResampleMethod::TorchaudioFunctional;
    decode_mono(source, rate, method, &DecodeOptions::default()).unwrap()
}

async fn ask(app: &Router, body: &Value) -> Sound {
    let response = app.clone().oneshot(post(SPEECH, body)).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Sound {
        status: parts.status.as_u16(),
        headers: parts.headers,
        bytes: bytes.to_vec(),
    }
}

fn data_url(file: &str) -> String {
    let bytes = std::fs::read(checkpoint("voxcpm/base").join(file)).unwrap();
    format!("data:audio/wav;base64,{}", BASE64_STANDARD.encode(bytes))
}

fn golden() -> Vec<Value> {
    let text = std::fs::read(checkpoint("voxcpm/base").join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&text).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

/// Power of `want` over that of the difference, in dB.
fn snr(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let signal: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
    let noise: f64 = got
        .iter()
        .zip(want)
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum();
    10.0 * (signal / noise.max(1e-30)).log10()
}

#[tokio::test]
async fn waves_equal_the_reference_in_every_delivery() {
    let app = app();
    for case in golden() {
        let mut body = case["request"].clone();
        if let Some(file) = body["ref_audio"].as_str() {
            body["ref_audio"] = data_url(file).into();
        }
        let file = checkpoint("voxcpm/base").join(case["expect"]["wav"].as_str().unwrap());
        let want = decode(&std::fs::read(file).unwrap(), 16_000);
        let whole = ask(&app, &body).await;
        assert_eq!(whole.header("content-type"), "audio/wav");
        let reason = if case["expect"]["stopped_by_head"] == true {
            "stop"
        } else {
            "length"
        };
        assert_eq!(whole.header("x-finish-reason"), reason);
        let whole = whole.samples(16_000);
        assert!(snr(&whole, &want) >= 45.0, "{}", case["name"]);

        body["stream"] = true.into();
        let chunks = ask(&app, &body).await;
        assert!(
            snr(&chunks.samples(16_000), &whole) >= 60.0,
            "{}",
            case["name"]
        );

        body["stream_format"] = "sse".into();
        let events = send(&app, post(SPEECH, &body)).await.events();
        let mut bytes = Vec::new();
        let (done, deltas) = events.split_last().unwrap();
        for delta in deltas {
            assert_eq!(delta["type"], "speech.audio.delta");
            bytes.extend(
                BASE64_STANDARD
                    .decode(delta["audio"].as_str().unwrap())
                    .unwrap(),
            );
        }
        assert!(deltas.len() > 2);
        assert_eq!(done["type"], "speech.audio.done");
        assert_eq!(done["finish_reason"], reason);
        let patches = case["expect"]["generated_patches"].clone();
        assert_eq!(done["usage"]["output_tokens"], patches);
        assert!(snr(&decode(&bytes, 16_000), &whole) >= 60.0);
    }
}

#[tokio::test]
async fn every_format_holds_the_same_sound() {
    let app = app();
    let body = |format: &str| {
        json!({"model": "voice", "input": "Hello world", "voice": "default", "seed": 3, "max_tokens": 8,
               "inference_timesteps": 3, "retry_badcase": false, "response_format": format})
    };
    let whole = ask(&app, &body("wav")).await.samples(16_000);
    for (format, kind, lossless) in [
        ("flac", "audio/flac", true),
        ("mp3", "audio/mpeg", false),
        ("opus", "audio/ogg; codecs=opus", false),
    ] {
        let answer = ask(&app, &body(format)).await;
        assert_eq!(answer.header("content-type"), kind);
        let samples = answer.samples(16_000);
        if lossless {
            assert_eq!(samples, whole);
        }
        let length = samples.len() as f64 / whole.len() as f64;
        assert!((0.95..1.3).contains(&length), "{format} {length}");
    }
    let pcm = ask(&app, &body("pcm")).await;
    assert_eq!(pcm.header("content-type"), "audio/pcm");
    let samples: Vec<f32> = pcm
        .bytes
        .chunks_exact(2)
        .map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0)
        .collect();
    assert_eq!(samples, whole);
    // Without a format it is what OpenAI's is.
    let answer = ask(
        &app,
        &json!({"input": "Hello", "max_tokens": 4, "inference_timesteps": 2}),
    )
    .await;
    assert_eq!(answer.header("content-type"), "audio/mpeg");
}

#[tokio::test]
async fn what_cannot_be_said_is_400_with_the_field() {
    let app = app();
    let refuse = |body: Value, status: u16, param: &'static str| {
        let app = app.clone();
        async move {
            let message = refused(&send(&app, post(SPEECH, &body)).await, status, param);
            assert!(
                !message.contains("panic") && !message.contains("passwd"),
                "{message}"
            );
        }
    };
    for input in ["", " \n ", "?!", "🍵🎵", "\u{200F}\u{0007}"] {
        refuse(json!({"input": input}), 400, "input").await;
    }
    // A megabyte of text: refused by its length, not spoken for days.
    refuse(json!({"input": "word ".repeat(200_000)}), 400, "input").await;
    refuse(
        json!({"input": "a", "response_format": "aac"}),
        400,
        "response_format",
    )
    .await;
    refuse(json!({"input": "a", "speed": 2.0}), 400, "speed").await;
    refuse(json!({"input": "a", "voice": "nobody"}), 400, "voice").await;
    let reference =
        |audio: String, text: &str| json!({"input": "Hello", "ref_audio": audio, "ref_text": text});
    let empty_wav =
        "data:audio/wav;base64,UklGRiQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQAAAAA=";
    refuse(reference(empty_wav.into(), "a"), 400, "ref_audio").await;
    refuse(
        reference("data:audio/wav;base64,AAAA".into(), "a"),
        400,
        "ref_audio",
    )
    .await;
    refuse(
        reference("data:audio/wav;base64,!!".into(), "a"),
        400,
        "ref_audio",
    )
    .await;
    refuse(
        reference("file:///etc/passwd".into(), "a"),
        400,
        "ref_audio",
    )
    .await;
    refuse(
        reference("http://127.0.0.1/a.wav".into(), "a"),
        400,
        "ref_audio",
    )
    .await;
    refuse(
        reference(data_url("media/ref_16k.wav"), " "),
        400,
        "ref_text",
    )
    .await;
    // An hour: more than the model's context, whatever the header says.
    let hour = long_wav(3600);
    refuse(reference(hour, "a"), 413, "ref_audio").await;
    let unknown = send(&app, post(SPEECH, &json!({"model": "x", "input": "a"}))).await;
    assert_eq!(
        (
            unknown.status,
            unknown.json()["error"]["code"].as_str().unwrap()
        ),
        (404, "model_not_found")
    );
    // Other tasks say where this model answers, and the server lives.
    let chat = json!({"model": "voice", "messages": [{"role": "user", "content": "Hi"}]});
    let wrong = send(&app, post("/v1/chat/completions", &chat)).await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text.contains("/v1/audio/speech"), "{}", wrong.text);
    assert_eq!(send(&app, get("/health")).await.status, 200);
    let answer = ask(
        &app,
        &json!({"input": "Hello", "max_tokens": 4, "inference_timesteps": 2}),
    )
    .await;
    assert_eq!(answer.status, 200);
}

/// A WAV of silence, 1 kHz with 8 bits: small for its length.
fn long_wav(seconds: u32) -> String {
    let rate = 1000u32;
    let length = seconds * rate;
    let mut wav = Vec::new();
    wav.extend(b"RIFF");
    wav.extend((36 + length).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16u32.to_le_bytes());
    wav.extend([1, 0, 1, 0]);
    wav.extend(rate.to_le_bytes());
    wav.extend(rate.to_le_bytes());
    wav.extend([1, 0, 8, 0]);
    wav.extend(b"data");
    wav.extend(length.to_le_bytes());
    wav.resize(44 + length as usize, 128);
    format!("data:audio/wav;base64,{}", BASE64_STANDARD.encode(wav))
}

#[tokio::test]
async fn voices_are_stored_listed_spoken_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        voices: Some(folder.path().join("voices")),
        ..ServerOptions::default()
    };
    let app = serve(&engine(), options);
    let names = |list: Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap();
        data.iter()
            .map(|voice| voice["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(accepted(&send(&app, get(VOICES)).await)), ["default"]);
    let case = &golden()[0];
    let new = json!({"name": "anna", "ref_audio": data_url("media/ref_16k.wav"), "ref_text": case["request"]["ref_text"]});
    let stored = accepted(&send(&app, post(VOICES, &new)).await);
    assert_eq!(
        (
            stored["id"].as_str().unwrap(),
            stored["object"].as_str().unwrap()
        ),
        ("anna", "voice")
    );
    assert_eq!(
        names(accepted(&send(&app, get(VOICES)).await)),
        ["default", "anna"]
    );
    assert!(refused(&send(&app, post(VOICES, &new)).await, 400, "voice").contains("already"));

    // Speaking by the name is speaking by the file.
    let mut body = case["request"].clone();
    body["ref_audio"] = data_url("media/ref_16k.wav").into();
    let by_file = ask(&app, &body).await.bytes;
    for field in ["ref_audio", "ref_text"] {
        body.as_object_mut().unwrap().remove(field);
    }
    body["voice"] = "anna".into();
    assert_eq!(ask(&app, &body).await.bytes, by_file);

    for (change, param) in [
        (json!({"name": "../evil"}), "voice"),
        (json!({"name": "default"}), "voice"),
        (
            json!({"name": "b", "ref_audio": "data:audio/wav;base64,AAAA"}),
            "ref_audio",
        ),
        (json!({"name": "b", "ref_text": ""}), "ref_text"),
        (json!({"name": null}), "name"),
    ] {
        let mut wrong = new.clone();
        for (key, value) in change.as_object().unwrap() {
            wrong[key] = value.clone();
        }
        refused(&send(&app, post(VOICES, &wrong)).await, 400, param);
    }
    let delete = |name: &str| {
        let request = Request::delete(format!("{VOICES}/{name}"));
        request.body(Body::empty()).unwrap()
    };
    assert_eq!(accepted(&send(&app, delete("anna")).await)["deleted"], true);
    let gone = send(&app, delete("anna")).await;
    assert_eq!(
        (gone.status, gone.json()["error"]["code"].as_str().unwrap()),
        (404, "voice_not_found")
    );
    refused(&send(&app, post(SPEECH, &body)).await, 404, "voice");
    refused(&send(&app, delete("..%2Fx")).await, 400, "voice");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_engine() {
    let engine = engine_with(EngineOptions {
        max_sequences: 1,
        ..EngineOptions::default()
    });
    let app = serve(&engine, ServerOptions::default());
    let quick = json!({"input": "Hello", "seed": 1, "max_tokens": 6, "inference_timesteps": 3, "response_format": "wav",
        "retry_badcase": false});
    let fresh = ask(&app, &quick).await.bytes;
    let long = |stream: bool| {
        json!({"input": "the lazy dog and the quick brown fox", "min_len": 220, "max_tokens": 220, "inference_timesteps": 100, "stream": stream,
               "response_format": "pcm"})
    };
    for stream in [true, false] {
        let mut running = Box::pin(app.clone().oneshot(post(SPEECH, &long(stream))));
        if stream {
            let mut body = running.await.unwrap().into_body().into_data_stream();
            body.next().await.unwrap().unwrap();
            assert_eq!(engine.status().running, 1);
            drop(body);
        } else {
            let waited = tokio::time::timeout(Duration::from_millis(200), &mut running).await;
            assert!(waited.is_err(), "the answer came too soon to be cancelled");
            drop(running);
        }
        for _ in 0..500 {
            if engine.status().running == 0 && engine.status().waiting == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let status = engine.status();
        assert_eq!((status.running, status.waiting), (0, 0));
        assert_eq!(status.free_blocks, status.total_blocks);
    }
    // What comes next is what a fresh server says, bit for bit.
    assert_eq!(ask(&app, &quick).await.bytes, fresh);
}

#[tokio::test]
async fn numbers_are_read_as_words_only_when_asked() {
    let app = app();
    let ask = |input: &'static str, normalize: bool| {
        let body = json!({"input": input, "normalize": normalize, "seed": 1, "max_tokens": 6, "inference_timesteps": 2,
            "response_format": "pcm", "retry_badcase": false});
        let app = app.clone();
        async move { self::ask(&app, &body).await.bytes }
    };
    let words = ask("I have three cats", false).await;
    assert_eq!(ask("I have 3 cats", true).await, words);
    assert_ne!(ask("I have 3 cats", false).await, words);
}

#[tokio::test]
async fn long_texts_come_as_one_file_of_several_stretches() {
    let app = app();
    let text = "Hello there, how are you today? It is the best of times. ".repeat(8);
    let body = |stream: bool, split: bool| {
        json!({"input": text, "seed": 5, "max_tokens": 4, "inference_timesteps": 2, "stream": stream, "split_text": split,
            "response_format": "wav", "retry_badcase": false})
    };
    let whole = ask(&app, &body(false, true)).await.samples(16_000);
    let streamed = ask(&app, &body(true, true)).await.samples(16_000);
    assert!(snr(&streamed, &whole) >= 60.0);
    // Two stretches at least, with silence between them.
    assert!(whole.len() > 2 * 4 * 1280);
    assert!(
        whole
            .windows(1600)
            .any(|piece| piece.iter().all(|x| *x == 0.0))
    );
}

#[tokio::test]
async fn a_form_brings_the_recording_as_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = ServerOptions {
        voices: Some(folder.path().to_owned()),
        ..ServerOptions::default()
    };
    let app = serve(&engine(), options);
    let case = &golden()[0];
    let mut body = case["request"].clone();
    body["ref_audio"] = data_url("media/ref_16k.wav").into();
    let by_url = ask(&app, &body).await.bytes;
    let audio = std::fs::read(checkpoint("voxcpm/base").join("media/ref_16k.wav")).unwrap();
    let form = |path: &str, texts: &[(&str, String)], file: &str| {
        let mut form = Vec::new();
        for (name, text) in texts {
            form.extend(
                format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
                    .bytes(),
            );
        }
        let head = format!(
            "--b\r\ncontent-disposition: form-data; name=\"{file}\"; filename=\"a.wav\"\r\n\r\n"
        );
        form.extend(head.bytes());
        form.extend(&audio);
        form.extend(b"\r\n--b--\r\n");
        Request::post(path)
            .header("content-type", "multipart/form-data; boundary=b")
            .body(Body::from(form))
            .unwrap()
    };
    let texts: Vec<(&str, String)> = case["request"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "ref_audio")
        .map(|(name, value)| {
            let text = value.as_str().map(str::to_owned);
            (name.as_str(), text.unwrap_or_else(|| value.to_string()))
        })
        .collect();
    let response = app
        .clone()
        .oneshot(form(SPEECH, &texts, "ref_audio"))
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    assert_eq!(bytes, by_url);
    refused(&send(&app, form(SPEECH, &texts, "file")).await, 400, "file");
    let voice = [
        ("name", "7".to_owned()),
        ("ref_text", "Hello there, ".to_owned()),
    ];
    assert_eq!(
        accepted(&send(&app, form(VOICES, &voice, "ref_audio")).await)["id"],
        "7"
    );
    assert_eq!(
        accepted(&send(&app, get(VOICES)).await)["data"][1]["id"],
        "7"
    );
}
