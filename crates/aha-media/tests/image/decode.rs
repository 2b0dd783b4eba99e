//! Decoding and conversions, byte for byte what Pillow gives.

use aha_media::MediaError;
use aha_media::image::{Channels, Image, Limits, decode, decode_pages};
use serde_json::Value;

use crate::support::{bytes, channels, hash, number, pattern, records};

/// Compares an image with a fixture: exactly, or within its tolerance for lossy formats.
fn check(image: &Image, record: &Value, key: &str) -> Result<(), String> {
    let size = (number(&record["width"]), number(&record["height"]));
    if key == "upright" && (image.width(), image.height()) != size {
        return Err(format!("{}x{}", image.width(), image.height()));
    }
    let tolerance = record["tolerance"].as_u64().unwrap();
    if tolerance == 0 {
        return (hash(image.samples()) == record[key])
            .then_some(())
            .ok_or_else(|| "differs".to_owned());
    }
    let hex = record["rgb"].as_str().unwrap();
    let expected = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16));
    let worst = image
        .samples()
        .iter()
        .zip(expected)
        .map(|(&own, expected)| own.abs_diff(expected.unwrap()))
        .max()
        .unwrap();
    (u64::from(worst) <= tolerance)
        .then_some(())
        .ok_or_else(|| format!("differs by {worst}"))
}

#[test]
fn every_mode_becomes_the_rgb_of_pillow() {
    let mut wrong = Vec::new();
    for record in records("media.json") {
        let name = record["file"].as_str().unwrap();
        let bytes = bytes(&format!("media/{name}"));
        let decoded = match decode(&bytes, &Limits::default()) {
            Ok(decoded) => decoded,
            Err(error) => {
                wrong.push(format!("{name}: {error:?}"));
                continue;
            }
        };
        let upright = decoded.clone().upright().into_rgb_dropping_alpha();
        if let Err(difference) = check(&upright, &record, "upright") {
            wrong.push(format!("{name} upright: {difference}"));
        }
        if record["tolerance"] == 0 {
            let stored = decoded.clone().as_stored().into_rgb_dropping_alpha();
            if let Err(difference) = check(&stored, &record, "stored") {
                wrong.push(format!("{name} stored: {difference}"));
            }
            if let Some(over) = record["over"].as_str() {
                let over_color = decoded.as_stored().composited_over([255, 250, 10]);
                if hash(over_color.samples()) != over {
                    wrong.push(format!("{name} over a colour"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn alpha_is_kept_until_it_is_dropped() {
    for (name, expected) in [
        ("rgba.png", Channels::Rgba),
        ("la.png", Channels::GrayAlpha),
        ("palette_transparent.png", Channels::Rgba),
        ("lossless_alpha.webp", Channels::Rgba),
        ("transparent.gif", Channels::Rgba),
        ("rgba.tif", Channels::Rgba),
        ("plain.gif", Channels::Rgb),
        ("gray.png", Channels::Gray),
    ] {
        let decoded = decode(&bytes(&format!("media/{name}")), &Limits::default()).unwrap();
        assert_eq!(decoded.as_stored().channels(), expected, "{name}");
    }
}

#[test]
fn pages_of_a_document_come_in_order() {
    let record = records("animations.json")
        .into_iter()
        .find(|record| record["file"] == "pages.tif")
        .unwrap();
    let bytes = bytes("media/pages.tif");
    let mut pages = Vec::new();
    decode_pages(&bytes, &Limits::default(), |index, page| {
        assert_eq!(index, pages.len());
        pages.push(hash(page.upright().into_rgb_dropping_alpha().samples()));
        Ok(true)
    })
    .unwrap();
    assert_eq!(Value::from(pages), record["frames"]);

    let mut seen = 0;
    decode_pages(&bytes, &Limits::default(), |_, _| {
        seen += 1;
        Ok(seen < 2)
    })
    .unwrap();
    assert_eq!(seen, 2, "the visitor can stop");

    let few = Limits {
        max_frames: 3,
        ..Limits::default()
    };
    let error = decode_pages(&bytes, &few, |_, _| Ok(true)).unwrap_err();
    assert!(matches!(error, MediaError::TooManyFrames { limit: 3, .. }));
}

#[test]
fn a_new_alpha_channel_replaces_the_old_one() {
    let image = pattern(5, 4, channels(4), 0);
    let alpha = pattern(5, 4, Channels::Gray, 99);
    let result = image.clone().with_alpha(&alpha).unwrap();
    let pairs = result.samples().chunks(4).zip(image.samples().chunks(4));
    for ((new, old), alpha) in pairs.zip(alpha.samples()) {
        assert_eq!((&new[..3], new[3]), (&old[..3], *alpha));
    }
    assert!(image.with_alpha(&pattern(4, 5, Channels::Gray, 0)).is_err());
}
