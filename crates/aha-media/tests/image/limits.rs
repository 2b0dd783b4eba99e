//! Hostile and broken files: clear errors, before memory is taken, and never a panic.

use aha_media::MediaError;
use aha_media::image::{ImageFormat, Limits, decode, sniff};

use crate::support::{bytes, records};

fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    file.extend(width.to_be_bytes());
    file.extend(height.to_be_bytes());
    file.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    file
}

#[test]
fn a_pixel_bomb_is_refused_by_its_header() {
    let limits = Limits::default();
    for (width, height) in [(50_000, 50_000), (20_000, 20_000), (u32::MAX, u32::MAX)] {
        let error = decode(&png_header(width, height), &limits).unwrap_err();
        assert!(
            matches!(error, MediaError::TooManyPixels { .. }),
            "{error:?}"
        );
    }
    let error = decode(&png_header(70_000, 1), &limits).unwrap_err();
    assert!(matches!(error, MediaError::SideTooLong { .. }), "{error:?}");
    let error = decode(&png_header(0, 5), &limits).unwrap_err();
    assert!(matches!(error, MediaError::InvalidSize { .. }), "{error:?}");
}

#[test]
fn every_format_checks_pixels_and_bytes() {
    let small = Limits {
        max_pixels: 13 * 9 - 1,
        ..Limits::default()
    };
    let short = Limits {
        max_bytes: 20,
        ..Limits::default()
    };
    for name in [
        "rgb.png",
        "gray.jpg",
        "lossless.webp",
        "lossy.webp",
        "plain.gif",
        "rgb.bmp",
        "gray.tif",
    ] {
        let bytes = bytes(&format!("media/{name}"));
        let error = decode(&bytes, &small).unwrap_err();
        assert!(
            matches!(error, MediaError::TooManyPixels { .. }),
            "{name}: {error:?}"
        );
        let error = decode(&bytes, &short).unwrap_err();
        assert!(
            matches!(error, MediaError::TooManyBytes { .. }),
            "{name}: {error:?}"
        );
    }
}

#[test]
fn an_inner_frame_larger_than_its_canvas_is_refused() {
    let mut file = bytes("media/lossless_alpha.webp");
    // Width and height of the VP8L frame, 14 bits each, become 16384 x 16384.
    let at = file.windows(4).position(|word| word == b"VP8L").unwrap() + 9;
    file[at..at + 3].copy_from_slice(&[0xff; 3]);
    file[at + 3] |= 0x0f;
    let error = decode(&file, &Limits::default()).unwrap_err();
    assert!(
        matches!(error, MediaError::TooManyPixels { .. }),
        "{error:?}"
    );
}

#[test]
fn other_formats_are_named() {
    let cases: [(&[u8], &str); 10] = [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"%PDF-1.7", "PDF"),
        (b"  <svg xmlns='x'/>", "SVG"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"MZ\x90\0", "program"),
        (b"\x7fELF\x02", "program"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
    ];
    for (bytes, name) in cases {
        let error = decode(bytes, &Limits::default()).unwrap_err();
        assert!(
            matches!(error, MediaError::UnsupportedFormat { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = decode(b"", &Limits::default()).unwrap_err();
    assert!(matches!(error, MediaError::Empty { .. }), "{error:?}");
    let error = decode(b"no picture at all", &Limits::default()).unwrap_err();
    assert!(
        matches!(error, MediaError::UnknownFormat { .. }),
        "{error:?}"
    );
}

#[test]
fn content_decides_and_not_a_name() {
    assert_eq!(sniff(&bytes("media/gray.jpg")).unwrap(), ImageFormat::Jpeg);
    assert_eq!(sniff(&bytes("media/clip.webp")).unwrap(), ImageFormat::WebP);
    assert_eq!(sniff(&bytes("media/pages.tif")).unwrap(), ImageFormat::Tiff);
}

#[test]
fn a_decoder_speaks_only_in_the_source_of_the_error() {
    let whole = bytes("media/rgb.png");
    let error = decode(&whole[..whole.len() / 2], &Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the PNG data cannot be decoded; it is broken or cut short"
    );
    assert!(std::error::Error::source(&error).is_some());
}

/// Every truncation and many flipped bits of every fixture: an image or an error, no panic, and no
/// image from a file whose second half is missing.
#[test]
fn damaged_files_never_panic() {
    let limits = Limits {
        max_pixels: 1 << 20,
        ..Limits::default()
    };
    let names = records("media.json")
        .into_iter()
        .chain(records("animations.json"));
    for record in names {
        let name = record["file"].as_str().unwrap();
        let whole = bytes(&format!("media/{name}"));
        let step = (whole.len() / 60).max(1);
        for end in (0..whole.len()).step_by(step) {
            let result = decode(&whole[..end], &limits);
            let is_animation = record["mode"].is_null() || name.starts_with("animated");
            if end < whole.len() / 2 && !is_animation && !name.ends_with(".tif") {
                assert!(result.is_err(), "{name} cut at {end} of {}", whole.len());
            }
        }
        let mut state = 0x9e37_79b9_u32;
        for _ in 0..60 {
            let mut damaged = whole.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                let at = state as usize % damaged.len();
                damaged[at] ^= 1 << (state >> 29);
            }
            let _ = decode(&damaged, &limits);
        }
    }
}
