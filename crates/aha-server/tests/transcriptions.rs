//! Recordings over HTTP: the references' golden transcripts, formats, streams, long recordings, and what is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::EngineOptions;
use aha_media::audio::{AudioFormat, EncodeOptions, encode};
use aha_server::ServerOptions;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use common::{Answer, accepted, checkpoint, refused, send, serve, start, text_model};
use serde_json::{Value, json};

const ROUTE: &str = "/v1/audio/transcriptions";
const QWEN: &str = "qwen3_asr/windows";
const GLM: &str = "glm_asr_nano/small";
const FUN: &str = "fun_asr_nano/small";
const RATE: usize = 16_000;

fn app(name: &str) -> Router {
    let engine = start(text_model(name), EngineOptions::default());
    serve(&engine, ServerOptions::default())
}

/// A form with fields and files, as clients write it.
struct Form(Vec<u8>);

impl Form {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn of(file: &[u8]) -> Self {
        Self::new().file("file", "sound.wav", file)
    }

    fn field(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let part =
            format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        self.0.extend(part.as_bytes());
        self
    }

    fn file(mut self, name: &str, file_name: &str, bytes: &[u8]) -> Self {
        let head = format!(
            "--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        self.0.extend(head.as_bytes());
        self.0.extend(bytes);
        self.0.extend(b"\r\n");
        self
    }

    fn request(mut self, route: &str) -> Request<Body> {
        self.0.extend(b"--B--\r\n");
        Request::post(route)
            .header("content-type", "multipart/form-data; boundary=B")
            .body(Body::from(self.0))
            .unwrap()
    }

    async fn send(self, app: &Router) -> Answer {
        send(app, self.request(ROUTE)).await
    }
}

/// Four tokens are enough to see that answers differ.
fn short(form: Form) -> Form {
    form.field("temperature", 0)
        .field("max_tokens", 4)
        .field("ignore_eos", true)
}

fn wav(samples: &[f32]) -> Vec<u8> {
    let options = EncodeOptions {
        format: AudioFormat::WavPcm16,
        sample_rate: RATE as u32,
        channels: 1,
        bitrate: None,
    };
    encode(samples, options).unwrap()
}

/// Seconds of a changing tone (a level above 0) and of silence.
fn sound(parts: &[(f64, f32)]) -> Vec<f32> {
    let mut samples = Vec::new();
    for &(seconds, level) in parts {
        for _ in 0..(seconds * RATE as f64) as usize {
            let time = samples.len() as f32 / RATE as f32;
            samples.push(level * (time * 2800.0).sin() * (time * 9.0).sin());
        }
    }
    samples
}

fn joined(events: &[Value]) -> String {
    let deltas = events
        .iter()
        .filter(|event| event["type"] == "transcript.text.delta");
    deltas
        .map(|event| event["delta"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn transcripts_equal_the_references() {
    for name in [QWEN, GLM, FUN] {
        let app = app(name);
        let read = |file: &str| std::fs::read(checkpoint(name).join(file)).unwrap();
        let golden: Value = serde_json::from_slice(&read("golden.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        let mut seen = 0;
        for case in cases.iter().filter(|case| case["endpoint"] == ROUTE) {
            let fields = case["request"].as_object().unwrap();
            let form = || {
                let file = read(fields["file"].as_str().unwrap());
                let others = fields.iter().filter(|(name, _)| *name != "file");
                others.fold(Form::of(&file), |form, (name, value)| match value {
                    Value::String(text) => form.field(name, text),
                    other => form.field(name, other),
                })
            };
            let what = format!("{name} {}", case["name"]);
            let answer = accepted(&form().send(&app).await);
            let steps = case["expect"]["steps"].as_array().unwrap();
            let tokens = answer["logprobs"].as_array().unwrap();
            assert_eq!(tokens.len(), steps.len(), "{what}");
            let tolerance = case["tolerance"]["logprob"].as_f64().unwrap();
            for (token, step) in tokens.iter().zip(steps) {
                assert_eq!(token["bytes"], step["bytes"], "{what}");
                let difference =
                    token["logprob"].as_f64().unwrap() - step["logprob"].as_f64().unwrap();
                assert!(difference.abs() <= tolerance, "{what}: {difference}");
            }
            let expected = case["expect"]["text"].as_str().unwrap();
            let text = answer["text"].as_str().unwrap();
            assert_eq!(text.trim(), expected.trim(), "{what}");
            assert!(
                answer["usage"]["input_token_details"]["audio_tokens"]
                    .as_u64()
                    .unwrap()
                    > 0
            );

            let events = form().field("stream", true).send(&app).await.events();
            let done = events.last().unwrap();
            assert_eq!(done["type"], "transcript.text.done");
            assert_eq!(done["text"], answer["text"], "{what}");
            assert_eq!(done["logprobs"], answer["logprobs"], "{what}");
            assert_eq!(done["usage"], answer["usage"], "{what}");
            assert!(
                text.starts_with(joined(&events).trim_end()),
                "{what}: {events:?}"
            );
            seen += 1;
        }
        assert!(seen >= 2, "{name}: {seen} transcriptions in its golden set");
    }
}

/// Cues of a SubRip file, held to its grammar.
fn parse_srt(file: &str) -> Vec<(f64, f64, String)> {
    let mut cues = Vec::new();
    for (index, block) in file
        .split("\n\n")
        .filter(|block| !block.is_empty())
        .enumerate()
    {
        let lines: Vec<&str> = block.lines().collect();
        assert_eq!(lines.len(), 3, "{block:?}");
        assert_eq!(lines[0], (index + 1).to_string());
        cues.push(cue(lines[1], ',', lines[2]));
    }
    cues
}

/// Cues of a WebVTT file, held to its grammar.
fn parse_vtt(file: &str) -> Vec<(f64, f64, String)> {
    let mut blocks = file.split("\n\n").filter(|block| !block.is_empty());
    assert_eq!(blocks.next(), Some("WEBVTT"));
    blocks
        .map(|block| {
            let lines: Vec<&str> = block.lines().collect();
            assert_eq!(lines.len(), 2, "{block:?}");
            assert!(!lines[1].contains("-->") && !lines[1].contains('<'));
            cue(lines[0], '.', lines[1])
        })
        .collect()
}

fn cue(times: &str, point: char, text: &str) -> (f64, f64, String) {
    let (start, end) = times.split_once(" --> ").unwrap();
    let seconds = |time: &str| {
        let (whole, milliseconds) = time.split_once(point).unwrap();
        assert_eq!(milliseconds.len(), 3);
        let parts: Vec<f64> = whole.split(':').map(|part| part.parse().unwrap()).collect();
        assert_eq!(parts.len(), 3);
        assert!(parts[1] < 60.0 && parts[2] < 60.0);
        parts[0] * 3600.0 + parts[1] * 60.0 + parts[2] + milliseconds.parse::<f64>().unwrap() / 1e3
    };
    assert!(!text.is_empty());
    (seconds(start), seconds(end), text.to_owned())
}

#[tokio::test]
async fn every_format_tells_the_same_utterances() {
    let app = app(GLM);
    let file = wav(&sound(&[
        (0.6, 0.0),
        (1.5, 0.5),
        (1.5, 0.0),
        (2.0, 0.5),
        (0.7, 0.0),
    ]));
    let ask = |format: &str| {
        short(Form::of(&file))
            .field("response_format", format)
            .field("chunking_strategy", json!({"type": "energy_vad"}))
            .request(ROUTE)
    };
    let verbose = accepted(&send(&app, ask("verbose_json")).await);
    assert_eq!(verbose["task"], "transcribe");
    assert!((verbose["duration"].as_f64().unwrap() - 6.3).abs() < 0.01);
    let segments = verbose["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2, "{verbose}");
    for (segment, (start, end)) in segments.iter().zip([(0.6, 2.1), (3.6, 5.6)]) {
        assert!(
            (segment["start"].as_f64().unwrap() - start).abs() < 0.2,
            "{segment}"
        );
        assert!(
            (segment["end"].as_f64().unwrap() - end).abs() < 0.2,
            "{segment}"
        );
        assert!(segment["avg_logprob"].as_f64().unwrap() < 0.0);
        assert_eq!(segment["tokens"].as_array().unwrap().len(), 4);
    }
    let text_of = |segment: &Value| {
        let text = segment["text"].as_str().unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let texts: Vec<String> = segments
        .iter()
        .map(text_of)
        .filter(|text| !text.is_empty())
        .collect();

    let srt = send(&app, ask("srt")).await;
    assert!(
        srt.header("content-type")
            .starts_with("application/x-subrip")
    );
    let cues = parse_srt(&srt.text);
    assert_eq!(
        cues.iter().map(|(_, _, text)| text).collect::<Vec<_>>(),
        texts.iter().collect::<Vec<_>>()
    );
    let vtt = send(&app, ask("vtt")).await;
    assert!(vtt.header("content-type").starts_with("text/vtt"));
    let times = |cues: Vec<(f64, f64, String)>| -> Vec<(f64, f64)> {
        cues.into_iter()
            .map(|(start, end, _)| (start, end))
            .collect()
    };
    assert_eq!(times(parse_vtt(&vtt.text)), times(cues));
    let text = send(&app, ask("text")).await;
    assert!(text.header("content-type").starts_with("text/plain"));
    let json = accepted(&send(&app, ask("json")).await);
    assert_eq!(text.text, format!("{}\n", json["text"].as_str().unwrap()));
    assert_eq!(json["text"], verbose["text"]);
}

#[tokio::test]
async fn a_piece_of_a_long_recording_reads_as_it_does_alone() {
    let app = app(GLM);
    // GLM-ASR hears a minute at once: this is cut twice, in its pauses.
    let samples = sound(&[
        (57.5, 0.5),
        (0.5, 0.0),
        (58.0, 0.4),
        (0.5, 0.0),
        (20.0, 0.5),
    ]);
    let whole = accepted(&short(Form::of(&wav(&samples))).send(&app).await);
    let pause = |second: f64| (second * RATE as f64) as usize;
    let mut alone = Vec::new();
    let mut tokens = 0;
    for piece in [
        &samples[..pause(57.75)],
        &samples[pause(57.75)..pause(116.25)],
        &samples[pause(116.25)..],
    ] {
        let answer = accepted(&short(Form::of(&wav(piece))).send(&app).await);
        tokens += answer["usage"]["output_tokens"].as_u64().unwrap();
        alone.push(answer["text"].as_str().unwrap().to_owned());
    }
    assert_eq!(whole["usage"]["output_tokens"], tokens);
    // Where exactly it is cut within a pause changes a few frames of silence, so tokens may differ, but not their number;
    // utterances that voice activity finds are cut at the same samples and read the same.
    let events = short(Form::of(&wav(&samples)))
        .field("stream", true)
        .send(&app)
        .await
        .events();
    assert_eq!(joined(&events), whole["text"].as_str().unwrap());

    let file = wav(&sound(&[
        (1.5, 0.5),
        (1.5, 0.0),
        (2.0, 0.5),
        (1.5, 0.0),
        (1.0, 0.5),
    ]));
    let verbose = short(Form::of(&file))
        .field("response_format", "verbose_json")
        .field("chunking_strategy", json!({"type": "energy_vad"}));
    let verbose = accepted(&verbose.send(&app).await);
    let heard = sound(&[(1.5, 0.5), (1.5, 0.0), (2.0, 0.5), (1.5, 0.0), (1.0, 0.5)]);
    assert_eq!(verbose["segments"].as_array().unwrap().len(), 3);
    for segment in verbose["segments"].as_array().unwrap() {
        let at = |name: &str| (segment[name].as_f64().unwrap() * RATE as f64).round() as usize;
        let piece = wav(&heard[at("start")..at("end")]);
        let answer = accepted(&short(Form::of(&piece)).send(&app).await);
        assert_eq!(answer["text"], segment["text"], "{segment}");
    }
}

#[tokio::test]
async fn silence_and_broken_samples_give_no_text() {
    let app = app(QWEN);
    let float = |sample: f32| {
        let mut file =
            b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x03\0\x01\0\x80\x3e\0\0\0\xfa\0\0\x04\0\x20\0data"
                .to_vec();
        file.extend((4 * RATE as u32).to_le_bytes());
        file.extend(sample.to_le_bytes().repeat(RATE));
        file
    };
    for (case, file) in [
        ("zeros", wav(&vec![0.0; RATE])),
        ("constant", wav(&vec![0.5; RATE])),
        ("no numbers", float(f32::NAN)),
        ("infinite", float(f32::INFINITY)),
        ("denormal", float(1e-40)),
    ] {
        for format in ["json", "verbose_json"] {
            let form = Form::of(&file).field("response_format", format);
            let answer = accepted(&form.send(&app).await);
            assert_eq!(answer["text"], "", "{case}");
            assert_eq!(answer["usage"]["output_tokens"], 0, "{case}");
        }
        let srt = Form::of(&file)
            .field("response_format", "srt")
            .send(&app)
            .await;
        assert_eq!((srt.status, srt.text.as_str()), (200, ""), "{case}");
    }
    // Clipped at full scale is loud, not broken.
    let clipped: Vec<f32> = sound(&[(1.0, 8.0)])
        .iter()
        .map(|x| x.clamp(-1.0, 1.0))
        .collect();
    let answer = accepted(&short(Form::of(&wav(&clipped))).send(&app).await);
    assert_eq!(answer["usage"]["output_tokens"], 4);
}

#[tokio::test]
async fn recordings_that_cannot_be_heard_are_told() {
    let app = app(QWEN);
    let fixture = |name: &str| std::fs::read(checkpoint("audio").join(name)).unwrap();
    let good = wav(&sound(&[(1.0, 0.5)]));
    let header = |rate: u32, channels: u16, data: u32| {
        let mut file = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0".to_vec();
        file.extend(channels.to_le_bytes());
        file.extend(rate.to_le_bytes());
        file.extend((rate.wrapping_mul(2 * u32::from(channels))).to_le_bytes());
        file.extend((2 * channels).to_le_bytes());
        file.extend(16u16.to_le_bytes());
        file.extend(b"data");
        file.extend(data.to_le_bytes());
        file
    };
    let mut odd_align = good.clone();
    odd_align[32] = 3;
    for (case, file) in [
        ("nothing", Vec::new()),
        ("text", b"hello, this is no sound".to_vec()),
        ("a page", b"<!DOCTYPE html><html></html>".to_vec()),
        ("header only", header(16_000, 1, 0)),
        ("half a header", good[..20].to_vec()),
        (
            "655,350 Hz and 8 channels",
            [header(655_350, 8, 1 << 20), vec![1; 1 << 20]].concat(),
        ),
        ("odd block align", odd_align),
        ("a film without sound", fixture("silent_video.mp4")),
        ("one sample", wav(&[0.5])),
        ("10 ms", wav(&sound(&[(0.01, 0.5)]))[..44 + 160].to_vec()),
    ] {
        let answer = Form::of(&file).send(&app).await;
        if answer.status == 200 && case == "10 ms" {
            // Shorter than a frame for some models, one frame for others.
            continue;
        }
        let message = refused(&answer, 400, "file");
        assert!(
            message.len() < 400 && !message.contains("/tmp"),
            "{case}: {message}"
        );
    }
    // Sizes that lie are as long as the file is.
    for (case, file) in [
        (
            "data size 0xFFFFFFFF",
            [header(16_000, 1, u32::MAX), good[44..].to_vec()].concat(),
        ),
        (
            "ten hours claimed",
            [header(16_000, 1, 1_152_000_000), good[44..].to_vec()].concat(),
        ),
        ("film", fixture("video.mp4")),
        ("MP3", fixture("lame.mp3")),
        ("Opus", fixture("opus.ogg")),
    ] {
        let answer = short(Form::of(&file)).send(&app).await;
        assert_eq!(accepted(&answer)["usage"]["output_tokens"], 4, "{case}");
    }
}

#[tokio::test]
async fn forms_at_fault_are_told_with_their_field() {
    let app = app(QWEN);
    let good = wav(&sound(&[(1.0, 0.5)]));
    for (form, param) in [
        (Form::new(), "file"),
        (Form::new().field("file", "text"), "file"),
        (Form::of(&good).file("file", "b.wav", &good), "file"),
        (Form::of(&good).file("other", "b.wav", &good), "other"),
        (
            Form::of(&good).field("response_format", "xml"),
            "response_format",
        ),
        (
            Form::of(&good).field("timestamp_granularities[]", "word"),
            "timestamp_granularities",
        ),
        (Form::of(&good).field("temperature", "warm"), "temperature"),
        (Form::of(&good).field("itn", true), "itn"),
        (Form::of(&good).field("language", "Klingon"), "language"),
        (
            Form::of(&good).field("model", "m").field("model", "n"),
            "model",
        ),
        (
            Form::of(&good).field("max_tokens", 1_000_000_000),
            "max_tokens",
        ),
    ] {
        let answer = form.send(&app).await;
        assert_eq!(answer.status, 400, "{param}: {}", answer.text);
        if param != "max_tokens" {
            refused(&answer, 400, param);
        }
    }
    let path = Form::new().file("file", "../../../etc/passwd", &good);
    accepted(&short(path).send(&app).await);
    let unknown = Form::of(&good).field("model", "whisper-1").send(&app).await;
    refused(&unknown, 404, "model");
    let plain = Request::post(ROUTE)
        .header("content-type", "application/json")
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(send(&app, plain).await.status, 415);
    // A fault of the recording has its status in a stream too.
    let stream = Form::of(b"no sound").field("stream", true).send(&app).await;
    refused(&stream, 400, "file");
}

#[tokio::test]
async fn other_tasks_are_refused() {
    let good = wav(&sound(&[(1.0, 0.5)]));
    let chat = app("qwen3/sharded");
    refused(&Form::of(&good).send(&chat).await, 400, "model");
    let app = app(QWEN);
    let translation = send(&app, Form::of(&good).request("/v1/audio/translations")).await;
    let message = refused(&translation, 400, "model");
    assert!(message.contains("/v1/audio/transcriptions"), "{message}");
}

#[tokio::test]
async fn a_recording_longer_than_the_limit_is_413() {
    let engine = start(text_model(QWEN), EngineOptions::default());
    let options = ServerOptions {
        upload_limit: 40_000,
        ..ServerOptions::default()
    };
    let app = serve(&engine, options);
    let answer = Form::of(&wav(&sound(&[(2.0, 0.5)]))).send(&app).await;
    assert_eq!(answer.status, 413, "{}", answer.text);
    accepted(
        &short(Form::of(&wav(&sound(&[(1.0, 0.5)]))))
            .send(&app)
            .await,
    );
}
