//! `POST /v1/images/remove_background`: faces, options and faults, mostly over a model that takes the red of a picture
//! for its mask.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::{EngineError, EngineOptions, LoadedModel, Matter, MattingEngine, MattingModel};
use aha_media::image::{Channels, Image, ImageEncoding, Limits, decode, encode, encode_png};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use aha_server::{FetchLimits, MediaOptions, ServedModel, ServerOptions, Service, Shutdown};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use candle_core::{Device, Tensor};
use common::{Answer, accepted, checkpoint, get, post, refused, send, start, text_model};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tower::ServiceExt;

const ROUTE: &str = "/v1/images/remove_background";

/// Pictures that may be computed; more wait, unless they are cancelled.
#[derive(Default)]
struct Gate {
    permits: Mutex<usize>,
    changed: Condvar,
    calls: AtomicUsize,
}

impl Gate {
    fn open(&self, pictures: usize) {
        *self.permits.lock().unwrap() += pictures;
        self.changed.notify_all();
    }
}

struct Reds(Arc<Gate>);

impl Matter for Reds {
    fn prepare(&self, picture: &Image) -> Result<Image, EngineError> {
        Ok(picture.clone().into_rgb_dropping_alpha())
    }

    fn alpha(
        &self,
        prepared: &Image,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> candle_core::Result<Tensor> {
        self.0.calls.fetch_add(1, Ordering::AcqRel);
        let mut permits = self.0.permits.lock().unwrap();
        while *permits == 0 {
            if cancelled() {
                candle_core::bail!("cancelled");
            }
            let waited = self
                .0
                .changed
                .wait_timeout(permits, Duration::from_millis(5));
            (permits, _) = waited.unwrap();
        }
        *permits -= 1;
        drop(permits);
        let reds: Vec<f32> = prepared
            .samples()
            .iter()
            .step_by(3)
            .map(|red| f32::from(*red))
            .collect();
        let shape = (prepared.height() as usize, prepared.width() as usize);
        Tensor::from_vec(reds, shape, &Device::Cpu)
    }

    fn mask(&self, alpha: &Tensor, width: u32, height: u32) -> Result<Image, EngineError> {
        let values: Vec<f32> = alpha.flatten_all()?.to_vec1()?;
        let samples = values.iter().map(|value| *value as u8).collect();
        Image::new(width, height, Channels::Gray, samples).map_err(EngineError::internal)
    }
}

struct Setup {
    app: Router,
    engine: MattingEngine,
    gate: Arc<Gate>,
}

fn setup(options: ServerOptions, queue_limit: usize) -> Setup {
    let gate = Arc::new(Gate::default());
    let model = MattingModel {
        matter: Arc::new(Reds(Arc::clone(&gate))),
    };
    let engine_options = EngineOptions {
        queue_limit,
        ..EngineOptions::default()
    };
    let engine = MattingEngine::start(model, &engine_options).unwrap();
    let served = ServedModel::new("model", [], "matte");
    served.ready(Service::Matte(engine.clone()));
    Setup {
        app: aha_server::router(options, vec![served], Shutdown::default()),
        engine,
        gate,
    }
}

/// A server whose model never waits.
fn open_app() -> Router {
    let setup = setup(ServerOptions::default(), 64);
    setup.gate.open(1_000_000);
    setup.app
}

/// A picture whose red grows from left to right.
fn picture() -> Image {
    let samples = (0..6 * 4).flat_map(|index| [(index % 6 * 50) as u8, 100, 200]);
    Image::new(6, 4, Channels::Rgb, samples.collect()).unwrap()
}

fn reds(picture: &Image) -> Vec<u8> {
    picture
        .samples()
        .iter()
        .step_by(picture.channels().count())
        .copied()
        .collect()
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

fn with_image(text: impl Into<String>) -> Value {
    json!({"model": "model", "image": text.into()})
}

/// A part of a form: field, file name, content.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(parts: &[Part<'_>]) -> Request<Body> {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
        let head = format!("--X\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend(head.as_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--X--\r\n");
    Request::post(ROUTE)
        .header("content-type", "multipart/form-data; boundary=X")
        .body(Body::from(body))
        .unwrap()
}

fn accepting(mut request: Request<Body>, kind: &str) -> Request<Body> {
    request
        .headers_mut()
        .insert("accept", kind.parse().unwrap());
    request
}

/// The bytes of an answer with status 200, and its headers.
async fn file(app: &Router, request: Request<Body>) -> (HeaderMap, Vec<u8>) {
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
    assert_eq!(parts.status.as_u16(), 200, "{text}");
    (parts.headers, bytes.to_vec())
}

async fn image(app: &Router, request: Request<Body>) -> Image {
    let (headers, bytes) = file(app, request).await;
    let decoded = decode(&bytes, &Limits::default()).unwrap();
    let kind = format!("image/{}", decoded.format().name().to_lowercase());
    assert_eq!(headers["content-type"], kind.as_str());
    assert!(headers.contains_key("server-timing"));
    decoded.as_stored()
}

async fn refusal(app: &Router, body: &Value) -> Answer {
    send(app, post(ROUTE, body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutout_equals_the_reference_over_http() {
    let folder = checkpoint("rmbg2/windows6");
    let options = LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    };
    let LoadedModel::Matte(model) = aha_models::load(&folder, &options).unwrap() else {
        panic!("no model for background removal");
    };
    let engine = MattingEngine::start(model, &EngineOptions::default()).unwrap();
    let served = ServedModel::new("model", [], "matte");
    served.ready(Service::Matte(engine));
    let app = aha_server::router(ServerOptions::default(), vec![served], Shutdown::default());
    for name in ["small", "alpha", "palette"] {
        let read = |file: String| std::fs::read(folder.join("media").join(file)).unwrap();
        let own = read(format!("{name}.png"));
        let cutout = image(&app, form(&[("image", Some("a.png"), &own)])).await;
        assert_eq!(cutout.channels(), Channels::Rgba);
        let decoded = |bytes: &[u8]| decode(bytes, &Limits::default()).unwrap().as_stored();
        let (own, want) = (
            decoded(&own).into_rgb_dropping_alpha(),
            decoded(&read(format!("alpha_{name}.png"))),
        );
        assert_eq!(
            (cutout.width(), cutout.height()),
            (own.width(), own.height())
        );
        let alphas = cutout.samples().iter().skip(3).step_by(4);
        let worst = alphas
            .zip(want.samples())
            .map(|(got, want)| got.abs_diff(*want))
            .max();
        assert!(worst <= Some(2), "{name}: {worst:?}");
        // The colours stay as they were, also where an old alpha hid them.
        assert_eq!(cutout.into_rgb_dropping_alpha(), own, "{name}");
    }
}

#[tokio::test]
async fn pictures_come_as_forms_as_json_and_as_chats() {
    let app = open_app();
    let png = encode_png(&picture()).unwrap();
    let want = picture().with_alpha(&Image::new(6, 4, Channels::Gray, reds(&picture())).unwrap());
    let want = want.unwrap();
    let mut plain = form(&[("image", Some("a.png"), &png), ("model", None, b"model")]);
    assert_eq!(image(&app, plain).await, want);
    plain = form(&[("image", Some("a.png"), &png)]);
    *plain.uri_mut() = "/images/remove_background".parse().unwrap();
    assert_eq!(image(&app, plain).await, want);
    let url = data_url(&png);
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    for body in [
        with_image(url.as_str()),
        with_image(STANDARD.encode(&png)),
        json!({"image": {"url": url}}),
        json!({"images": [part]}),
        json!({"model": "model", "messages": [
            {"role": "user", "content": [{"type": "text", "text": "cut"}, part]}]}),
    ] {
        assert_eq!(image(&app, post(ROUTE, &body)).await, want, "{body}");
    }
}

#[tokio::test]
async fn masks_formats_and_backgrounds() {
    let app = open_app();
    let png = encode_png(&picture()).unwrap();
    let with = |extra: Value| {
        let mut body = with_image(data_url(&png));
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        post(ROUTE, &body)
    };
    let mask = image(&app, with(json!({"output": "mask"}))).await;
    assert_eq!(
        (mask.channels(), mask.samples()),
        (Channels::Gray, reds(&picture()).as_slice())
    );
    let webp = image(&app, with(json!({"format": "webp"}))).await;
    assert_eq!(webp, image(&app, with(json!({}))).await);
    let on_blue = image(&app, with(json!({"background": "blue"}))).await;
    assert_eq!(on_blue.channels(), Channels::Rgb);
    // Nothing of the first column is foreground, nearly all of the last is.
    assert_eq!(on_blue.samples()[..3], [0, 0, 255]);
    assert!(on_blue.samples()[17].abs_diff(201) <= 1);
    let green = encode_png(&Image::filled_rgb(9, 3, [0, 255, 0]).unwrap()).unwrap();
    let on_green = image(&app, with(json!({"background": data_url(&green)}))).await;
    assert_eq!(on_green.samples()[..3], [0, 255, 0]);
    let parts: [Part<'_>; 2] = [
        ("image", Some("a"), &png),
        ("background", Some("b"), &green),
    ];
    assert_eq!(image(&app, form(&parts)).await, on_green);
    let parts: [Part<'_>; 2] = [("image", Some("a"), &png), ("background", None, b"#00f")];
    assert_eq!(image(&app, form(&parts)).await, on_blue);
    let parts: [Part<'_>; 2] = [("image", Some("a"), &png), ("mask", Some("b"), &green)];
    let message = refused(&send(&app, form(&parts)).await, 400, "mask");
    assert!(message.contains("'background'"), "{message}");
}

#[tokio::test]
async fn json_holds_the_files_as_base64() {
    let app = open_app();
    let png = encode_png(&picture()).unwrap();
    let plain = file(&app, post(ROUTE, &with_image(data_url(&png)))).await.1;
    let mut asked = with_image(data_url(&png));
    asked["response_format"] = json!("b64_json");
    for request in [
        accepting(post(ROUTE, &with_image(data_url(&png))), "application/json"),
        post(ROUTE, &asked),
    ] {
        let answer = accepted(&send(&app, request).await);
        assert_eq!(
            (&answer["model"], &answer["output_format"]),
            (&json!("model"), &json!("png"))
        );
        let data = &answer["data"][0];
        assert_eq!((&data["width"], &data["height"]), (&json!(6), &json!(4)));
        assert_eq!(
            STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap(),
            plain
        );
    }
}

#[tokio::test]
async fn several_pictures_come_in_one_answer_in_their_order() {
    let app = open_app();
    let shade = |red: u8| encode_png(&Image::filled_rgb(2, 2, [red, 0, 0]).unwrap()).unwrap();
    let (first, second) = (shade(10), shade(20));
    let parts: [Part<'_>; 3] = [
        ("image", Some("a"), &first),
        ("image", Some("b"), &second),
        ("output", None, b"mask"),
    ];
    let mask =
        |red: u8| encode_png(&Image::new(2, 2, Channels::Gray, vec![red; 4]).unwrap()).unwrap();
    let (headers, zip) = file(&app, form(&parts)).await;
    assert_eq!(headers["content-type"], "application/zip");
    let place = |body: &[u8], file: &[u8]| {
        let mut windows = body.windows(file.len());
        windows.position(|window| window == file).unwrap()
    };
    assert!(place(&zip, &mask(10)) < place(&zip, &mask(20)));
    assert!(place(&zip, b"000.png") < place(&zip, b"001.png"));
    let (headers, mixed) = file(&app, accepting(form(&parts), "multipart/mixed")).await;
    let kind = headers["content-type"].to_str().unwrap();
    let boundary = kind.strip_prefix("multipart/mixed; boundary=").unwrap();
    assert!(mixed.starts_with(format!("--{boundary}\r\n").as_bytes()));
    assert!(place(&mixed, &mask(10)) < place(&mixed, &mask(20)));
    let answer = accepted(&send(&app, accepting(form(&parts), "application/json")).await);
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
}

/// CRC-32 of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// A PNG with another chunk behind its head.
fn with_chunk(png: &[u8], kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut chunk = (content.len() as u32).to_be_bytes().to_vec();
    let named = [kind.as_slice(), content].concat();
    chunk.extend(&named);
    chunk.extend(crc32(&named).to_be_bytes());
    // Signature, then the head with its length, kind and checksum.
    [&png[..33], &chunk, &png[33..]].concat()
}

#[tokio::test]
async fn the_exif_orientation_counts_only_when_asked_for() {
    let app = open_app();
    // Little-endian TIFF with one entry: orientation 6, a quarter turn.
    let exif = [
        b"II*\0\x08\0\0\0\x01\0".as_slice(),
        b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
        b"\0\0\0\0",
    ];
    let png = with_chunk(&encode_png(&picture()).unwrap(), b"eXIf", &exif.concat());
    let mut body = with_image(data_url(&png));
    let stored = image(&app, post(ROUTE, &body)).await;
    assert_eq!((stored.width(), stored.height()), (6, 4));
    body["orientation"] = json!("exif");
    let upright = image(&app, post(ROUTE, &body)).await;
    assert_eq!((upright.width(), upright.height()), (4, 6));
}

#[tokio::test]
async fn the_list_of_models_and_other_routes_know_the_task() {
    let app = open_app();
    let entry = accepted(&send(&app, get("/v1/models/model")).await);
    assert_eq!(
        (&entry["task"], &entry["input_modalities"]),
        (&json!("matte"), &json!(["image"]))
    );
    assert_eq!(entry.get("max_model_len"), None);
    let chat = json!({"model": "model", "messages": [{"role": "user", "content": "hi"}]});
    let message = refused(
        &send(&app, post("/v1/chat/completions", &chat)).await,
        400,
        "model",
    );
    assert!(
        message.contains("/v1/images/remove_background"),
        "{message}"
    );
    let tokenize = json!({"model": "model", "prompt": "hi"});
    refused(
        &send(&app, post("/tokenize", &tokenize)).await,
        400,
        "model",
    );
    let engine = start(text_model("qwen3/sharded"), EngineOptions::default());
    let text = common::serve(&engine, ServerOptions::default());
    let message = refused(&refusal(&text, &with_image("AAAA")).await, 400, "model");
    assert!(message.contains("'matte'"), "{message}");
}

/// The head of a PNG of that size, and no pixels.
fn png_head(width: u32, height: u32) -> Vec<u8> {
    let head = [
        b"IHDR".as_slice(),
        &width.to_be_bytes(),
        &height.to_be_bytes(),
        &[8, 2, 0, 0, 0],
    ]
    .concat();
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&head);
    png.extend(crc32(&head).to_be_bytes());
    png
}

#[tokio::test]
async fn bombs_odd_sizes_and_empty_files_are_told_apart() {
    let app = open_app();
    // 13: refused by its head, before any pixel is allocated.
    for (width, height) in [(50_000, 50_000), (20_000, 20_000), (u32::MAX >> 1, 1)] {
        let started = Instant::now();
        let answer = refusal(&app, &with_image(data_url(&png_head(width, height)))).await;
        let message = refused(&answer, 400, "image");
        assert!(message.contains(&format!("{width}x{height}")), "{message}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    // 14.
    for (width, height) in [(1, 1), (1, 20_000), (20_000, 1)] {
        let png = encode_png(&Image::filled_rgb(width, height, [9, 9, 9]).unwrap()).unwrap();
        let cutout = image(&app, post(ROUTE, &with_image(data_url(&png)))).await;
        assert_eq!((cutout.width(), cutout.height()), (width, height));
    }
    for bytes in [
        vec![],
        png_head(4, 4),
        encode_png(&picture()).unwrap()[..60].to_vec(),
    ] {
        let answer = refusal(&app, &with_image(data_url(&bytes))).await;
        refused(&answer, 400, "image");
        let answer = send(&app, form(&[("image", Some("a.png"), &bytes)])).await;
        refused(&answer, 400, "image");
    }
}

#[tokio::test]
async fn files_are_what_their_bytes_say() {
    let app = open_app();
    // 15: what is not decoded is named.
    for (bytes, name) in [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice(), "HEIC"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
    ] {
        let message = refused(
            &refusal(&app, &with_image(data_url(bytes))).await,
            400,
            "image",
        );
        assert!(message.to_uppercase().contains(name), "{message}");
    }
    // 16: a WebP under the name of a PNG is a WebP; programs and pages are nothing.
    let webp = encode(&picture(), ImageEncoding::WebP).unwrap();
    let cutout = image(&app, post(ROUTE, &with_image(data_url(&webp)))).await;
    assert_eq!((cutout.width(), cutout.height()), (6, 4));
    for bytes in [
        b"MZ\x90\0\x03\0\0\0".as_slice(),
        b"<!doctype html><html></html>",
    ] {
        refused(
            &refusal(&app, &with_image(data_url(bytes))).await,
            400,
            "image",
        );
        let answer = send(&app, form(&[("image", Some("a.png"), bytes)])).await;
        refused(&answer, 400, "image");
    }
}

#[tokio::test]
async fn base64_is_read_in_its_spellings_and_bounded() {
    let app = open_app();
    // 17.
    let png = encode_png(&picture()).unwrap();
    let spaced: Vec<String> = STANDARD
        .encode(&png)
        .as_bytes()
        .chunks(60)
        .map(|line| String::from_utf8(line.to_vec()).unwrap())
        .collect();
    for text in [URL_SAFE.encode(&png), spaced.join("\r\n")] {
        let cutout = image(
            &app,
            post(ROUTE, &with_image(format!("data:image/png;base64,{text}"))),
        )
        .await;
        assert_eq!(cutout.width(), 6);
    }
    for text in [
        "data:image/png;base64,AAA*",
        "data:image/png;base64",
        "data:,",
        "%%%",
    ] {
        refused(&refusal(&app, &with_image(text)).await, 400, "image");
    }
    let large = with_image(format!("data:image/png;base64,{}", "A".repeat(200 << 20)));
    assert_eq!(refusal(&app, &large).await.status, 413);
}

#[tokio::test]
async fn addresses_inside_and_files_of_the_server_are_refused() {
    let app = open_app();
    // 18 and 20.
    for address in [
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://localhost./",
        "http://[::ffff:127.0.0.1]/",
        "http://user@127.0.0.1/",
        "http:\\\\evil",
        "gopher://example.com/",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "file://../x",
        "file:////host/share",
        "file:///%2e%2e/etc/passwd",
    ] {
        refused(&refusal(&app, &with_image(address)).await, 400, "image");
        let mut behind = with_image(data_url(&encode_png(&picture()).unwrap()));
        behind["background"] = json!(address);
        refused(&refusal(&app, &behind).await, 400, "background");
    }
}

/// A host on this machine that writes a head, then a byte now and then.
fn dripping_host() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: image/png\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_drips_is_given_up_in_time() {
    // 19.
    let host = dripping_host();
    let mut media = MediaOptions {
        fetch: FetchLimits {
            total: Duration::from_millis(600),
            ..FetchLimits::default()
        },
        ..MediaOptions::default()
    };
    media.policy.allowed_hosts = vec![host.parse().unwrap()];
    let options = ServerOptions {
        media,
        ..ServerOptions::default()
    };
    let setup = setup(options, 8);
    let started = Instant::now();
    let answer = refusal(&setup.app, &with_image(format!("http://{host}/a.png"))).await;
    assert!(
        (400..=504).contains(&answer.status) && answer.status != 500,
        "{}",
        answer.text
    );
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(setup.gate.calls.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn too_many_pictures_are_counted_before_any_is_read() {
    let app = open_app();
    // 21: the reads of these addresses would each be refused by themselves.
    let body = json!({"images": vec!["http://127.0.0.1/a.png"; 500]});
    let message = refused(&refusal(&app, &body).await, 400, "image");
    assert!(
        message.contains("500") && message.contains("128"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_wait_or_are_told_to_come_again() {
    // 23: one runs, four wait; the rest is refused at once with a time to come again.
    let setup = setup(ServerOptions::default(), 4);
    let body = with_image(data_url(&encode_png(&picture()).unwrap()));
    let requests: Vec<_> = (0..60)
        .map(|_| {
            let (app, request) = (setup.app.clone(), post(ROUTE, &body));
            tokio::spawn(async move { app.oneshot(request).await.unwrap() })
        })
        .collect();
    while requests
        .iter()
        .filter(|request| request.is_finished())
        .count()
        < 55
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    setup.gate.open(60);
    let mut counts = [0, 0];
    for request in requests {
        let response = request.await.unwrap();
        match response.status().as_u16() {
            200 => counts[0] += 1,
            429 => {
                assert!(response.headers().contains_key("retry-after"));
                counts[1] += 1;
            }
            other => panic!("{other}"),
        }
    }
    // The thread takes the first out of the queue in its own time.
    assert!((4..=5).contains(&counts[0]), "{counts:?}");
    assert_eq!(counts[0] + counts[1], 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_its_picture() {
    let setup = setup(ServerOptions::default(), 4);
    let body = with_image(data_url(&encode_png(&picture()).unwrap()));
    let request = tokio::spawn(setup.app.clone().oneshot(post(ROUTE, &body)));
    while setup.gate.calls.load(Ordering::Acquire) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    request.abort();
    let started = Instant::now();
    while setup.engine.status().running > 0 {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            setup.engine
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    setup.gate.open(1);
    assert_eq!(image(&setup.app, post(ROUTE, &body)).await.width(), 6);
}
