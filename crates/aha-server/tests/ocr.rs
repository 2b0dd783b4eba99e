//! `POST /v1/ocr`, and documents as content parts of chats.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;
#[path = "../../aha-media/tests/support/pdf.rs"]
mod pdf;

use aha_engine::{Engine, EngineOptions};
use aha_server::{MediaOptions, ServerOptions};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, accepted, checkpoint, post, refused, send, serve, start, text_model};
use pdf::{Page, Pdf};
use serde_json::{Value, json};

const OCR: &str = "/v1/ocr";

fn engine() -> Engine {
    start(text_model("qwen2_5vl/mixed"), EngineOptions::default())
}

fn app() -> Router {
    serve(&engine(), ServerOptions::default())
}

fn pages(count: usize) -> Vec<u8> {
    let page = |number| Page::text(&["A page", &format!("with number {number}")]);
    Pdf::of(&(1..=count).map(page).collect::<Vec<_>>()).bytes()
}

fn data_url(bytes: &[u8]) -> String {
    format!("data:application/pdf;base64,{}", STANDARD.encode(bytes))
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(checkpoint("documents").join(name)).unwrap()
}

/// A request for small pages and short texts.
fn request(bytes: &[u8], extra: Value) -> Value {
    let mut body = json!({
        "file": data_url(bytes), "prompt": "Read this.", "dpi": 36, "max_tokens": 12});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Tokens of a request; how many came from the cache depends on what ran before.
fn counts(answer: &Value) -> [u64; 2] {
    ["prompt_tokens", "completion_tokens"].map(|name| answer["usage"][name].as_u64().unwrap())
}

async fn ocr(app: &Router, body: &Value) -> Answer {
    send(app, post(OCR, body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_pdf_have_blocks_and_counts() {
    let app = app();
    let answer = accepted(&ocr(&app, &request(&pages(3), json!({}))).await);
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("ocr"), &json!("model"))
    );
    assert_eq!(answer["task"], "prompt");
    assert!(answer["id"].as_str().unwrap().starts_with("ocr-"));
    let found = answer["pages"].as_array().unwrap();
    assert_eq!(found.len(), 3);
    for (index, page) in found.iter().enumerate() {
        assert_eq!(page["page"], index + 1);
        assert_eq!(
            (&page["width"], &page["height"]),
            (&json!(100), &json!(100))
        );
        assert_eq!(
            (&page["source"], &page["truncated"]),
            (&json!("model"), &json!(true))
        );
        let block = &page["blocks"][0];
        assert_eq!(
            (&block["page"], &block["kind"]),
            (&json!(index + 1), &json!("text"))
        );
        assert!(!block["text"].as_str().unwrap().is_empty());
    }
    assert_eq!(answer["usage"]["completion_tokens"], 36);
    assert!(
        answer["usage"]["prompt_tokens_details"]["image_tokens"]
            .as_u64()
            .unwrap()
            > 0
    );
    // Some of them, alone, read the same.
    let some = accepted(&ocr(&app, &request(&pages(3), json!({"pages": "2-"}))).await);
    assert_eq!(some["pages"].as_array().unwrap()[..], found[1..]);
    // Without `/v1`, and from other names of the field.
    let mut other = request(&pages(3), json!({"pages": 1}));
    other["document"] = json!({"type": "document_url", "document_url": other["file"].take()});
    let answer = accepted(&send(&app, post("/ocr", &other)).await);
    assert_eq!(answer["pages"][0], found[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_documents_of_one_page() {
    let app = app();
    let image = fixture("plain-1.png");
    let answer = accepted(&ocr(&app, &request(&image, json!({}))).await);
    let found = answer["pages"].as_array().unwrap();
    assert_eq!((found.len(), &found[0]["width"]), (1, &json!(420)));
    let bare = json!({"image": STANDARD.encode(&image), "prompt": "Read this.", "max_tokens": 12});
    assert_eq!(accepted(&ocr(&app, &bare).await)["pages"], answer["pages"]);
}

/// A form of text fields and one file.
fn form(fields: &[(&str, &str)], file: Option<&[u8]>) -> Request<Body> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let part =
            format!("--X\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        body.extend(part.into_bytes());
    }
    if let Some(file) = file {
        let head =
            "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.pdf\"\r\n\r\n";
        body.extend([head.as_bytes(), file, b"\r\n"].concat());
    }
    body.extend(b"--X--\r\n");
    let request = Request::post(OCR).header("content-type", "multipart/form-data; boundary=X");
    request.body(Body::from(body)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_say_the_same_as_json() {
    let app = app();
    let fields = [
        ("prompt", "Read this."),
        ("dpi", "36"),
        ("max_tokens", "12"),
        ("pages", "2"),
    ];
    let json = accepted(&ocr(&app, &request(&pages(3), json!({"pages": "2"}))).await);
    let answer = accepted(&send(&app, form(&fields, Some(&pages(3)))).await);
    assert_eq!(answer["pages"], json["pages"]);
    let stream = [&fields[..], &[("stream", "true")]].concat();
    let events = send(&app, form(&stream, Some(&pages(3)))).await.events();
    assert_eq!(events[0]["blocks"], json["pages"][0]["blocks"]);
    let mut asked = form(&fields, Some(&pages(3)));
    asked
        .headers_mut()
        .insert("accept", "text/markdown".parse().unwrap());
    assert!(
        send(&app, asked)
            .await
            .text
            .starts_with("<a id=\"page-2\"></a>")
    );

    refused(&send(&app, form(&fields, None)).await, 400, "file");
    let text = [&fields[..], &[("file", "x")]].concat();
    refused(&send(&app, form(&text, None)).await, 400, "file");
    refused(
        &send(&app, form(&fields, Some(b"<html>"))).await,
        400,
        "file",
    );
    refused(&send(&app, form(&fields, Some(b""))).await, 400, "file");
    let wrong = [&fields[1..], &[("task", "table")]].concat();
    refused(
        &send(&app, form(&wrong, Some(&pages(1)))).await,
        400,
        "task",
    );
    let wrong = [&fields[..1], &[("dpi", "many")]].concat();
    refused(&send(&app, form(&wrong, Some(&pages(1)))).await, 400, "dpi");
}

#[tokio::test(flavor = "multi_thread")]
async fn markdown_is_given_to_those_who_accept_it() {
    let app = app();
    let body = request(&pages(2), json!({}));
    let json = accepted(&ocr(&app, &body).await);
    let text = |page: usize| {
        json["pages"][page]["blocks"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let wanted = format!(
        "<a id=\"page-1\"></a>\n\n{}\n\n<a id=\"page-2\"></a>\n\n{}\n",
        text(0),
        text(1)
    );
    let mut asked = post(OCR, &body);
    asked
        .headers_mut()
        .insert("accept", "text/markdown".parse().unwrap());
    let answer = send(&app, asked).await;
    assert_eq!(
        answer.header("content-type"),
        "text/markdown; charset=utf-8"
    );
    assert_eq!(answer.text, wanted);
    let answer = ocr(
        &app,
        &request(&pages(2), json!({"response_format": "markdown"})),
    )
    .await;
    assert_eq!(answer.text, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_tell_of_each_page() {
    let app = app();
    let whole = accepted(&ocr(&app, &request(&pages(3), json!({}))).await);
    let events = ocr(&app, &request(&pages(3), json!({"stream": true})))
        .await
        .events();
    assert_eq!(events.len(), 4);
    for (index, event) in events[..3].iter().enumerate() {
        assert_eq!(
            (&event["object"], &event["page"]),
            (&json!("ocr.page"), &json!(index + 1))
        );
        let page = &whole["pages"][index];
        assert_eq!(event["blocks"], page["blocks"]);
        assert_eq!(event["markdown"], page["blocks"][0]["text"]);
        assert_eq!(event["id"], events[0]["id"]);
    }
    let end = &events[3];
    assert_eq!(
        (&end["object"], &end["num_pages"]),
        (&json!("ocr.done"), &json!(3))
    );
    assert_eq!(end["failed_pages"], 0);
    assert_eq!(counts(end), counts(&whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pdfs_own_text_needs_no_model() {
    let app = app();
    let body = request(&pages(1), json!({"prefer_text": true}));
    let answer = accepted(&ocr(&app, &body).await);
    assert_eq!(answer["pages"][0]["source"], "text_layer");
    assert_eq!(
        answer["pages"][0]["blocks"][0]["text"],
        "A page\nwith number 1"
    );
    assert_eq!(answer["usage"]["total_tokens"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_fails_does_not_take_the_others_with_it() {
    let app = app();
    let giant = Page {
        size: [28346.0, 28346.0],
        ..Page::text(&["giant"])
    };
    let bytes = Pdf::of(&[Page::text(&["one"]), giant, Page::text(&["three"])]).bytes();
    let answer = accepted(&ocr(&app, &request(&bytes, json!({}))).await);
    let found = answer["pages"].as_array().unwrap();
    assert_eq!(found.len(), 3);
    let error = found[1]["error"].as_str().unwrap();
    assert!(error.contains("page 2") && error.contains("DPI"), "{error}");
    assert!(found[0].get("error").is_none() && found[2].get("error").is_none());
    let events = ocr(&app, &request(&bytes, json!({"stream": true})))
        .await
        .events();
    assert_eq!(events[1]["error"], found[1]["error"]);
    assert_eq!(events[3]["failed_pages"], 1);
    // Alone it is a fault of the request.
    let alone = ocr(&app, &request(&bytes, json!({"pages": "2"}))).await;
    assert!(refused(&alone, 400, "file").contains("choose at most"));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_pages_than_the_queue_holds_are_read_in_turn() {
    let options = EngineOptions {
        max_sequences: 1,
        queue_limit: 1,
        ..EngineOptions::default()
    };
    let engine = start(text_model("qwen2_5vl/mixed"), options);
    let app = serve(&engine, ServerOptions::default());
    let answer = accepted(&ocr(&app, &request(&pages(6), json!({}))).await);
    let pages = answer["pages"].as_array().unwrap();
    assert!(
        pages.len() == 6 && pages.iter().all(|page| page.get("error").is_none()),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_with_their_fields() {
    let options = ServerOptions {
        media: MediaOptions {
            documents: aha_media::document::DocumentLimits {
                max_pages: 4,
                max_bytes: 1 << 20,
                ..MediaOptions::default().documents
            },
            ..MediaOptions::default()
        },
        ..ServerOptions::default()
    };
    let app = serve(&engine(), options);
    let with = |extra: Value| request(&pages(2), extra);
    let without = |name: &str| {
        let mut body = with(json!({}));
        body.as_object_mut().unwrap().remove(name);
        body
    };
    for (body, param, told) in [
        (without("file"), "file", "missing"),
        (without("prompt"), "prompt", "no OCR tasks"),
        (
            with(json!({"prompt": null, "task": "table"})),
            "task",
            "no OCR tasks",
        ),
        (with(json!({"task": "table"})), "prompt", "not both"),
        (with(json!({"pages": "3"})), "pages", "2 pages"),
        (with(json!({"pages": "x"})), "pages", "3-9,12,20-"),
        (with(json!({"dpi": 5})), "dpi", "18"),
        (
            with(json!({"file": "data:application/pdf;base64,AAAA"})),
            "file",
            "no known format",
        ),
        (with(json!({"file": "ftp://a/b"})), "file", "ftp"),
        (
            with(json!({"file": "http://127.0.0.1/x.pdf"})),
            "file",
            "refused",
        ),
        (
            with(json!({"file": data_url(&fixture("locked.pdf"))})),
            "file",
            "encrypted",
        ),
        (
            with(json!({"file": data_url(&Pdf::of(&[]).bytes())})),
            "file",
            "no pages",
        ),
        (
            with(json!({"file": data_url(b"%PDF-1.7 broken")})),
            "file",
            "",
        ),
        (
            with(json!({"file": data_url(&pages(5))})),
            "pages",
            "limit of 4",
        ),
    ] {
        let answer = ocr(&app, &body).await;
        let message = refused(&answer, 400, param);
        assert!(message.contains(told), "{message}");
    }
    let large = with(json!({"file": data_url(&vec![b' '; 2 << 20])}));
    refused(&ocr(&app, &large).await, 413, "file");
    let unknown = with(json!({"model": "other"}));
    refused(&ocr(&app, &unknown).await, 404, "model");
    let plain = Request::post(OCR).header("content-type", "text/plain");
    let answer = send(&app, plain.body(Body::from("x")).unwrap()).await;
    assert_eq!(answer.status, 415, "{}", answer.text);
    let blind = serve(
        &start(text_model("llama/smol"), EngineOptions::default()),
        ServerOptions::default(),
    );
    let message = refused(&ocr(&blind, &with(json!({}))).await, 400, "model");
    assert!(message.contains("does not take image input"), "{message}");
}

fn chat(part: Value) -> Value {
    let content =
        json!([{"type": "text", "text": "before"}, part, {"type": "text", "text": "after"}]);
    json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6})
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_in_chats_are_their_pages_as_pictures() {
    let app = app();
    let ask = async |body: &Value| send(&app, post("/v1/chat/completions", body)).await;
    let file = data_url(&pages(3));
    let part = |extra: Value| {
        let mut file = json!({"file_data": file, "filename": "a.pdf", "dpi": 36});
        file.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        json!({"type": "file", "file": file})
    };
    let all = accepted(&ask(&chat(part(json!({})))).await);
    let image_tokens = |answer: &Value| {
        let details = &answer["usage"]["prompt_tokens_details"];
        details["image_tokens"].as_u64().unwrap()
    };
    let one = accepted(&ask(&chat(part(json!({"pages": "2"})))).await);
    assert_eq!(image_tokens(&all), 3 * image_tokens(&one));
    // Other spellings say the same.
    for part in [
        json!({"type": "input_file", "file_data": file, "dpi": 36}),
        json!({"type": "document", "dpi": 36,
               "source": {"type": "base64", "media_type": "application/pdf", "data": STANDARD.encode(pages(3))}}),
    ] {
        let answer = accepted(&ask(&chat(part)).await);
        assert_eq!(answer["choices"], all["choices"]);
        assert_eq!(counts(&answer), counts(&all));
    }
    // A page is what a picture of it would be: the order of parts holds.
    let document = aha_media::document::Document::open(pages(3), &Default::default()).unwrap();
    let png = |page| {
        let image = document.render(page, 36.0).unwrap();
        let bytes = aha_media::image::encode_png(&image).unwrap();
        let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
        json!({"type": "image_url", "image_url": {"url": url}})
    };
    let content = json!([{"type": "text", "text": "before"}, png(0), png(1), png(2), {"type": "text", "text": "after"}]);
    let body = json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6});
    let pictures = accepted(&ask(&body).await);
    assert_eq!(pictures["choices"], all["choices"]);

    for (part, param, told) in [
        (
            json!({"type": "file"}),
            "messages[0].content[1].file",
            "missing",
        ),
        (
            json!({"type": "file", "file": {}}),
            "messages[0].content[1].file.file_data",
            "missing",
        ),
        (
            json!({"type": "file", "file": {"file_id": "f"}}),
            "messages[0].content[1].file.file_id",
            "not supported",
        ),
        (
            part(json!({"pages": "9"})),
            "messages[0].content[1].file.file_data",
            "3 pages",
        ),
        (
            part(json!({"dpi": 1})),
            "messages[0].content[1].file.dpi",
            "18",
        ),
        (
            part(json!({"file_data": data_url(&fixture("locked.pdf"))})),
            "messages[0].content[1].file.file_data",
            "encrypted",
        ),
    ] {
        let message = refused(&ask(&chat(part)).await, 400, param);
        assert!(message.contains(told), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_count_against_the_media_of_a_chat() {
    let options = ServerOptions {
        media: MediaOptions {
            max_items: 3,
            max_total_pixels: 25_000,
            ..MediaOptions::default()
        },
        ..ServerOptions::default()
    };
    let app = serve(&engine(), options);
    let part =
        |count| json!({"type": "file", "file": {"file_data": data_url(&pages(count)), "dpi": 36}});
    let ask = async |part: Value| send(&app, post("/v1/chat/completions", &chat(part))).await;
    let message = refused(
        &ask(part(4)).await,
        400,
        "messages[0].content[1].file.file_data",
    );
    assert!(message.contains("limit of 3"), "{message}");
    // Three pages of 10 000 pixels each.
    let message = refused(
        &ask(part(3)).await,
        400,
        "messages[0].content[1].file.file_data",
    );
    assert!(message.contains("page 3"), "{message}");
    accepted(&ask(part(2)).await);
}
