//! Broken, oversized, foreign and unusual files.

use crate::common::{Answer, accepted, get, refused, send, serve};
use crate::support::{
    CHAT, TILES, URL_PARAM, app, ask, bitmap, data_url, engine, image_tokens, medium, picture,
    shows,
};
use aha_server::ServerOptions;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use std::time::{Duration, Instant};

async fn show(app: &Router, bytes: &[u8]) -> Answer {
    ask(app, &shows(&data_url(bytes))).await
}

/// The beginning of a PNG that claims to be so large.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    file.extend(width.to_be_bytes());
    file.extend(height.to_be_bytes());
    file.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    file
}

#[tokio::test]
async fn bombs_are_refused_by_their_headers() {
    let app = app(TILES);
    let mut bomb = png_header(50_000, 50_000);
    bomb.resize(1 << 20, 0);
    let began = Instant::now();
    for (file, said) in [
        (bomb, "50000x50000"),
        (png_header(20_000, 20_000), "20000x20000"),
        (png_header(u32::MAX, u32::MAX), "limit of"),
        (png_header(1, 70_000), "65535"),
    ] {
        let message = refused(&show(&app, &file).await, 400, URL_PARAM);
        assert!(message.contains(said), "{message}");
    }
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn sizes_at_the_edge_are_answered_or_refused_but_never_fail() {
    for model in [
        TILES,
        "qwen2_5vl/mixed",
        "qwen3vl/mixed",
        "qwen3_5_vl/mixed",
    ] {
        let app = app(model);
        for (width, height) in [(1, 1), (1, 2), (2, 1), (1, 20_000), (20_000, 1), (3, 600)] {
            let answer = show(&app, &bitmap(width, height)).await;
            let shown = format!("{model} {width}x{height}: {}", answer.text);
            match answer.status {
                200 => assert!(image_tokens(&answer.json()) > 0, "{shown}"),
                400 => {
                    let error = &answer.json()["error"];
                    let message = error["message"].as_str().unwrap();
                    let reason = ["too long and thin", "one side is more than", "no side may"];
                    assert!(reason.iter().any(|part| message.contains(part)), "{shown}");
                }
                _ => panic!("{shown}"),
            }
        }
        assert_eq!(show(&app, &bitmap(1, 1)).await.status, 200, "{model}");
        assert_eq!(send(&app, get("/health")).await.status, 200);
    }
}

#[tokio::test]
async fn nothing_and_half_a_file_are_said_to_be_so() {
    let app = app(TILES);
    let whole = picture("rgb.png");
    for (file, said) in [
        (Vec::new(), "empty"),
        (png_header(20, 20), "broken or cut short"),
        (whole[..whole.len() / 2].to_vec(), "broken or cut short"),
        (picture("gray.jpg")[..40].to_vec(), "broken or cut short"),
        (b"GIF89a".to_vec(), "broken or cut short"),
        (vec![0; 64], "no known format"),
        (b"MZ\x90\0 a program".to_vec(), "a program"),
        (b"<!DOCTYPE html><html></html>".to_vec(), "HTML"),
    ] {
        let message = refused(&show(&app, &file).await, 400, URL_PARAM);
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[tokio::test]
async fn every_variant_of_a_format_is_converted() {
    let app = app(TILES);
    for name in [
        "cmyk.jpg",
        "progressive.jpg",
        "gray16.png",
        "rgb16.png",
        "palette.png",
        "palette_alpha.png",
        "rgba.png",
        "la.png",
        "bilevel.png",
        "animated.png",
        "plain.gif",
        "clip.gif",
        "clip.webp",
        "lossy_alpha.webp",
        "rgb.bmp",
        "cmyk.tif",
        "fax4.tif",
    ] {
        let answer = accepted(&show(&app, &picture(name)).await);
        assert!(image_tokens(&answer) > 0, "{name}");
    }
    // Of an animation the first frame is shown, and EXIF turns a picture upright.
    let answer = async |name: &str| accepted(&show(&app, &picture(name)).await)["choices"].clone();
    assert_eq!(answer("animated.png").await, answer("rgb.png").await);
    assert_eq!(answer("oriented.png").await, answer("oriented.webp").await);
    assert_ne!(answer("oriented.png").await, answer("rgb.png").await);
}

#[tokio::test]
async fn formats_that_are_not_decoded_are_named() {
    let app = app(TILES);
    for (file, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0", "WebM"),
    ] {
        let message = refused(&show(&app, file).await, 400, URL_PARAM);
        assert!(
            message.contains(name) && message.contains("PNG, JPEG"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn what_a_file_is_its_bytes_say() {
    let app = app(TILES);
    let jpeg = data_url(&picture("gray.jpg"));
    accepted(&ask(&app, &shows(&jpeg)).await);
    let html = data_url(b"<html>").replacen("image/png", "image/jpeg", 1);
    refused(&ask(&app, &shows(&html)).await, 400, URL_PARAM);
}

#[tokio::test]
async fn broken_data_urls_are_refused() {
    let app = app(TILES);
    for (url, said) in [
        ("data:image/png;base64,@@@@", "base64 is broken"),
        ("data:image/png;base64,iVBORw0KGgo=AAAA", "base64 is broken"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png,raw", "base64"),
        ("data:image/png;base64,", "empty"),
        ("", "empty"),
        ("not base64 at all!", "base64"),
    ] {
        let message = refused(&ask(&app, &shows(url)).await, 400, URL_PARAM);
        assert!(message.contains(said), "{url}: {message}");
    }
}

#[tokio::test]
async fn large_data_urls_are_413_and_not_decoded() {
    let options = ServerOptions {
        body_limit: 300 << 20,
        ..ServerOptions::default()
    };
    let roomy = serve(&engine(TILES), options);
    let url = format!("data:image/png;base64,{}", "A".repeat(200 << 20));
    let message = refused(&ask(&roomy, &shows(&url)).await, 413, URL_PARAM);
    assert!(message.contains("limit of 33554432"), "{message}");
    // With the usual limit the body itself is too large, whether it says its length or not.
    let app = app(TILES);
    let body = shows(&url).to_string();
    for declared in [true, false] {
        let mut request = Request::post(CHAT).header("content-type", "application/json");
        if declared {
            request = request.header("content-length", body.len());
        }
        let answer = send(&app, request.body(Body::from(body.clone())).unwrap()).await;
        assert_eq!(answer.status, 413, "{}", answer.text);
        assert_eq!(answer.json()["error"]["code"], "request_too_large");
    }
}

#[tokio::test]
async fn many_pictures_are_counted_before_they_are_read() {
    let app = app(TILES);
    let part = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,@"}});
    let answer = ask(&app, &crate::support::chat(json!(vec![part; 500]))).await;
    let message = refused(&answer, 400, "messages");
    assert!(
        message.contains("500") && message.contains("128"),
        "{message}"
    );
    // As many as allowed are shown, each in its place.
    let url = data_url(&medium(TILES, "b.png"));
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    let one = accepted(&ask(&app, &crate::support::chat(json!(vec![part.clone(); 1]))).await);
    let many = accepted(&ask(&app, &crate::support::chat(json!(vec![part; 12]))).await);
    assert_eq!(image_tokens(&many), 12 * image_tokens(&one));
}

#[tokio::test]
async fn pixels_of_a_request_are_counted_together() {
    let mut options = ServerOptions::default();
    options.media.max_total_pixels = 3 * 1000 * 1000;
    options.media.max_total_bytes = 1 << 20;
    let app = serve(&engine(TILES), options);
    let part = |side| {
        let url = data_url(&bitmap(side, side));
        json!({"type": "image_url", "image_url": {"url": url}})
    };
    let three = crate::support::chat(json!([part(1000), part(1000), part(1000)]));
    accepted(&ask(&app, &three).await);
    let more = crate::support::chat(json!([part(1000), part(1000), part(1001)]));
    let answer = ask(&app, &more).await;
    refused(&answer, 400, "messages[0].content[2].image_url");
    let bytes = crate::support::chat(json!(vec![part(1600); 4]));
    let answer = ask(&app, &bytes).await;
    refused(&answer, 413, "messages[0].content[3].image_url");
}
