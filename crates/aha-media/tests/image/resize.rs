//! Resizing, byte for byte what Pillow and torch give.

use aha_media::MediaError;
use aha_media::image::{
    Channels, Filter, PadOffset, Resampler, TileGrid, center_crop, contained_size, crop, pad_to,
    resize, tiles,
};

use crate::support::{channels, hash, pair, pattern, records};

#[test]
fn every_filter_gives_the_bytes_of_the_reference() {
    let mut wrong = Vec::new();
    for record in records("resize.json") {
        let filter = match record["filter"].as_str().unwrap() {
            "nearest" => Filter::Nearest,
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "hamming" => Filter::Hamming,
            "bicubic" => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let by = match record["by"].as_str().unwrap() {
            "torch" => Resampler::Torch,
            _ => Resampler::Pillow,
        };
        let (width, height) = pair(&record["old"]);
        let count = record["channels"].as_u64().unwrap();
        let image = pattern(width, height, channels(count), 0);
        let (width, height) = pair(&record["new"]);
        let resized = resize(&image, width, height, filter, by).unwrap();
        assert_eq!((resized.width(), resized.height()), (width, height));
        if hash(resized.samples()) != record["hash"] {
            wrong.push(record.to_string());
        }
    }
    assert!(wrong.is_empty(), "{} differ: {wrong:#?}", wrong.len());
}

#[test]
fn the_same_size_changes_nothing() {
    let image = pattern(7, 5, Channels::Rgba, 0);
    for by in [Resampler::Pillow, Resampler::Torch] {
        assert_eq!(resize(&image, 7, 5, Filter::Bicubic, by).unwrap(), image);
    }
}

#[test]
fn what_cannot_be_resized_is_said() {
    let image = pattern(7, 5, Channels::Rgb, 0);
    let error = resize(&image, 0, 5, Filter::Box, Resampler::Pillow).unwrap_err();
    assert!(matches!(error, MediaError::InvalidSize { .. }));
    let error = resize(&image, 3, 3, Filter::Nearest, Resampler::Torch).unwrap_err();
    assert!(matches!(error, MediaError::InvalidSetting { .. }));
    for (width, height) in [(u32::MAX, u32::MAX), (100_000, 100_000)] {
        let error = resize(&image, width, height, Filter::Box, Resampler::Pillow).unwrap_err();
        assert!(matches!(error, MediaError::TooManyPixels { .. }));
    }
    let error = resize(&image, 1, 200_000, Filter::Box, Resampler::Pillow).unwrap_err();
    assert!(matches!(error, MediaError::SideTooLong { .. }));
}

#[test]
fn numbers_of_filters_are_those_of_pillow() {
    assert_eq!(Filter::from_pillow_number(2), Some(Filter::Bilinear));
    assert_eq!(Filter::from_pillow_number(3), Some(Filter::Bicubic));
    assert_eq!(Filter::from_pillow_number(6), None);
}

#[test]
fn padding_is_that_of_pillow() {
    for record in records("pad.json") {
        let (width, height) = pair(&record["old"]);
        let image = pattern(width, height, Channels::Rgb, 0);
        let (width, height) = pair(&record["new"]);
        let contained = contained_size((image.width(), image.height()), (width, height));
        assert_eq!(contained, pair(&record["contained"]), "{record}");
        let padded = pad_to(&image, width, height, [127; 3], PadOffset::RoundHalfEven).unwrap();
        assert_eq!(hash(padded.samples()), record["hash"], "{record}");
    }
}

#[test]
fn half_a_pixel_of_padding_goes_down_or_to_even() {
    // 61 rows in 64: one and a half above, which is two to the even and one down.
    let image = pattern(64, 61, Channels::Rgb, 0);
    let first_row = |offset| {
        let padded = pad_to(&image, 64, 64, [9, 9, 9], offset).unwrap();
        (0..64).find(|&y| padded.row(y) == image.row(0))
    };
    assert_eq!(first_row(PadOffset::RoundHalfEven), Some(2));
    assert_eq!(first_row(PadOffset::Floor), Some(1));
}

#[test]
fn tiles_cover_the_image_row_by_row() {
    let image = pattern(12, 6, Channels::Rgb, 0);
    let grid = TileGrid {
        columns: 3,
        rows: 2,
    };
    let cut = tiles(&image, grid).unwrap();
    assert_eq!(cut.len(), 6);
    assert_eq!(cut[4], crop(&image, 4, 3, 4, 3).unwrap());
    assert_eq!(cut[4].row(1), &image.row(4)[12..24]);
    let uneven = TileGrid {
        columns: 5,
        rows: 2,
    };
    assert!(tiles(&image, uneven).is_err());
    let none = TileGrid {
        columns: 0,
        rows: 1,
    };
    assert!(tiles(&image, none).is_err());
}

#[test]
fn a_crop_stays_inside() {
    let image = pattern(12, 6, Channels::Gray, 0);
    assert!(crop(&image, 10, 0, 3, 3).is_err());
    assert!(crop(&image, u32::MAX, 0, 3, 3).is_err());
    assert!(crop(&image, 0, 0, 0, 3).is_err());
    let middle = center_crop(&image, 5, 3).unwrap();
    assert_eq!(middle, crop(&image, 4, 2, 5, 3).unwrap());
    assert!(center_crop(&image, 13, 3).is_err());
}
