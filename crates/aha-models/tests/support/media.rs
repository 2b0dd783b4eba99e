//! Requests with pictures and clips.

use super::chat;
use aha_engine::{Chat, Media, MediaContent, Part, PixelLimits};
use aha_media::image::{DecodedImage, Limits, decode};
use aha_media::video::Video;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// The conversation of a golden request whose content parts name media files in `folder`.
pub(crate) fn chat_with_media(request: &Value, folder: &Path) -> Chat {
    let mut chat = chat(request);
    let settings = request["mm_processor_kwargs"].as_object();
    let settings = settings.cloned().unwrap_or_default();
    let messages = request["messages"].as_array().unwrap();
    for (turn, message) in chat.messages.iter_mut().zip(messages) {
        if let Value::Array(parts) = &message["content"] {
            let parts = parts.iter().map(|content| part(content, folder));
            turn.content = parts
                .map(|part| match part {
                    Part::Media(media) if !settings.is_empty() => Part::Media(Arc::new(
                        Media::clone(&media).with_settings(settings.clone()),
                    )),
                    part => part,
                })
                .collect();
        }
    }
    chat
}

fn part(content: &Value, folder: &Path) -> Part {
    match content["type"].as_str().unwrap() {
        "text" => Part::Text(content["text"].as_str().unwrap().to_owned()),
        "image_url" => Part::Media(picture_file(
            &folder.join(content["image_url"]["url"].as_str().unwrap()),
        )),
        "video" => {
            let paths = content["video"].as_array().unwrap().iter();
            let paths: Vec<_> = paths
                .map(|path| folder.join(path.as_str().unwrap()))
                .collect();
            let frames = paths.iter().map(|path| read(path).upright()).collect();
            let fps = content["fps"].as_f64();
            let video = Video::from_images(frames, fps, &Limits::default()).unwrap();
            let content = MediaContent::Video {
                timestamps: video.metadata.timestamps(2.0),
                fps: video.metadata.sampled_fps(2.0),
                frames: video.frames,
                limits: PixelLimits::default(),
            };
            Part::Media(Arc::new(Media::new(content, paths)))
        }
        other => panic!("{other}"),
    }
}

fn read(path: &Path) -> DecodedImage {
    decode(&std::fs::read(path).unwrap(), &Limits::default()).unwrap()
}

fn picture_file(path: &Path) -> Arc<Media> {
    let content = MediaContent::Image {
        image: read(path),
        limits: PixelLimits::default(),
    };
    Arc::new(Media::new(content, std::fs::read(path).unwrap()))
}

/// A picture of plain colour.
pub(crate) fn plain_picture(width: u32, height: u32, limits: PixelLimits) -> Media {
    let image = decode(&bmp(width, height), &Limits::default()).unwrap();
    Media::new(MediaContent::Image { image, limits }, (width, height))
}

/// A BMP file of one bit a pixel, all of them black.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let pixels = width.div_ceil(32) * 4 * height;
    let mut file = b"BM".to_vec();
    for word in [
        62 + pixels,
        0,
        62,
        40,
        width,
        height,
        1 | (1 << 16),
        0,
        pixels,
        0,
        0,
        2,
        0,
    ] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 255, 255, 255, 0]);
    file.resize(file.len() + pixels as usize, 0);
    file
}

/// A page of coarse noise, another for each `seed`.
pub(crate) fn page(width: u32, height: u32, seed: u32) -> Media {
    let stride = (width * 3).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    let size = stride * height;
    for word in [
        54 + size,
        0,
        54,
        40,
        width,
        height,
        1 | (24 << 16),
        0,
        size,
        0,
        0,
        0,
        0,
    ] {
        file.extend(word.to_le_bytes());
    }
    for y in 0..height {
        let row = (0..stride).map(|x| {
            let cell = (x / 24) * 31 + (y / 8) * 17 + seed * 101;
            (cell.wrapping_mul(2_654_435_761) >> 24) as u8
        });
        file.extend(row);
    }
    let image = decode(&file, &Limits::default()).unwrap();
    let limits = PixelLimits::default();
    Media::new(MediaContent::Image { image, limits }, file)
}
