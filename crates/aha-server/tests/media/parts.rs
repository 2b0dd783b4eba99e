//! Every spelling of a picture or clip in a message.

use crate::common::{accepted, refused};
use crate::support::{CLIPS, TILES, app, ask, chat, data_url, medium};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

fn said(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_picture_is_the_same_in_every_spelling() {
    let app = app(TILES);
    let bytes = medium(TILES, "a.png");
    let (url, base64) = (data_url(&bytes), STANDARD.encode(&bytes));
    let wrapped: String = base64
        .as_bytes()
        .chunks(76)
        .map(|line| format!("{}\r\n", std::str::from_utf8(line).unwrap()))
        .collect();
    let unsafe_url = format!("data:;base64,{}", URL_SAFE_NO_PAD.encode(&bytes));
    let mut expected = None;
    for part in [
        json!({"type": "image_url", "image_url": {"url": url}}),
        json!({"type": "image_url", "image_url": url}),
        json!({"type": "input_image", "image_url": url}),
        json!({"type": "input_image", "image_url": {"url": url, "detail": "auto"}}),
        json!({"type": "image", "image": url}),
        json!({"type": "image", "url": url}),
        json!({"type": "image", "source":
            {"type": "base64", "media_type": "image/png", "data": base64}}),
        json!({"type": "image", "source": {"type": "url", "url": url}}),
        json!({"type": "image_url", "image_url": base64}),
        json!({"type": "image_url", "image_url": wrapped}),
        json!({"type": "image_url", "image_url": unsafe_url}),
        json!({"type": "image_url", "image_url": url.replacen("image/png", "text/html", 1)}),
    ] {
        let answer = ask(
            &app,
            &chat(json!([part, {"type": "text", "text": "What?"}])),
        )
        .await;
        let text = said(&accepted(&answer));
        let expected = expected.get_or_insert_with(|| text.clone());
        assert_eq!(text, *expected, "{}", part["type"]);
    }
    let without = said(&accepted(&ask(&app, &chat(json!(["What?"]))).await));
    assert_ne!(expected, Some(without));
}

#[tokio::test]
async fn a_clip_is_an_animation_or_a_list_of_frames() {
    let app = app(CLIPS);
    let frame = |name: &str| data_url(&medium(CLIPS, name));
    let frames = [
        frame("f0.png"),
        frame("f1.png"),
        frame("f2.png"),
        frame("f3.png"),
    ];
    let listed: Vec<_> = frames.iter().map(|url| json!({"url": url})).collect();
    let parts: Vec<_> = frames
        .iter()
        .map(|url| json!({"type": "image_url", "image_url": {"url": url}}))
        .collect();
    let mut expected = None;
    for video in [json!(frames), json!(listed), json!(parts)] {
        let part = json!({"type": "video", "video": video, "fps": 2.0});
        let answer = accepted(&ask(&app, &chat(json!([part, "What?"]))).await);
        let details = &answer["usage"]["prompt_tokens_details"];
        assert!(details["video_tokens"].as_u64() > Some(0), "{details}");
        assert!(details["image_tokens"].is_null(), "{details}");
        let expected = expected.get_or_insert_with(|| answer["choices"].clone());
        assert_eq!(answer["choices"], *expected);
    }
    let clip = data_url(&crate::support::picture("clip.gif"));
    let tokens = async |part: Value| {
        let answer = accepted(&ask(&app, &chat(json!([part, "What?"]))).await);
        let details = &answer["usage"]["prompt_tokens_details"];
        details["video_tokens"].as_u64().unwrap()
    };
    let two =
        tokens(json!({"type": "video_url", "video_url": {"url": clip}, "num_frames": 2})).await;
    let four = tokens(json!({"type": "video_url", "video_url": clip, "num_frames": 4})).await;
    assert_eq!(four, 2 * two);
}

#[tokio::test]
async fn media_that_the_model_does_not_take_are_refused_before_they_are_read() {
    let text_only = app("qwen3/sharded");
    let pictures_only = app(TILES);
    for (app, part, kind) in [
        (
            &text_only,
            json!({"type": "image_url", "image_url": "no url"}),
            "image",
        ),
        (
            &pictures_only,
            json!({"type": "video_url", "video_url": "no url"}),
            "video",
        ),
        (
            &pictures_only,
            json!({"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}),
            "audio",
        ),
    ] {
        let name = part["type"].as_str().unwrap();
        let param = format!("messages[0].content[0].{name}");
        let message = refused(&ask(app, &chat(json!([part]))).await, 400, &param);
        assert!(
            message.contains(&format!("does not take {kind}")),
            "{message}"
        );
    }
}
