//! Size rules, against the references over a sweep of sizes.

use aha_media::MediaError;
use aha_media::image::{
    PatchSizing, ShortSides, TileRule, choose_tile_grid, round_half_even, smart_resize,
};
use serde_json::Value;

use crate::support::{hash_words, number, records};

fn sweep(first: usize, second: usize) -> impl Iterator<Item = u32> {
    let small = (1..200).step_by(first);
    small
        .chain((200..6000).step_by(second))
        .map(|side| side as u32)
}

fn size(width: u32, height: u32, sizing: &PatchSizing) -> (u32, u32) {
    match smart_resize(width, height, sizing) {
        Ok(size) => size,
        Err(MediaError::AspectRatio { .. }) => (0, 0),
        Err(other) => panic!("{width}x{height}: {other}"),
    }
}

fn rule(record: &Value) -> PatchSizing {
    let pixels = |key: &str| record[key].as_u64().unwrap();
    let short_sides = match record["short_sides"].as_str().unwrap() {
        "keep" => ShortSides::Keep,
        "round_up" => ShortSides::RoundUp,
        "scale_up" => ShortSides::ScaleUp,
        _ => ShortSides::AtLeastFactor,
    };
    PatchSizing::image(
        number(&record["factor"]),
        pixels("min_pixels"),
        pixels("max_pixels"),
    )
    .with_short_sides(short_sides)
    .with_frames(
        number(&record["frames"]),
        number(&record["temporal_factor"]),
    )
}

#[test]
fn sizes_are_those_of_the_references() {
    for record in records("sizes.json") {
        let name = &record["name"];
        let sizing = rule(&record);
        for example in record["examples"].as_array().unwrap() {
            let [width, height, new_width, new_height] =
                [0, 1, 2, 3].map(|at| number(&example[at]));
            let new = size(width, height, &sizing);
            assert_eq!(new, (new_width, new_height), "{name}: {width}x{height}");
        }
        let all = sweep(7, 173).flat_map(|width| {
            sweep(11, 211).flat_map(move |height| {
                let (width, height) = size(width, height, &sizing);
                [width, height]
            })
        });
        assert_eq!(hash_words(all), record["sweep"], "{name}");
    }
}

#[test]
fn grids_are_those_of_the_references() {
    for record in records("tiles.json") {
        let rule = TileRule {
            tile_size: number(&record["tile_size"]),
            min_tiles: number(&record["min_tiles"]),
            max_tiles: number(&record["max_tiles"]),
        };
        let widths = (100..6000).step_by(171).chain([1000, 1250, 800, 1280]);
        let all = widths.flat_map(|width| {
            let heights = (100..6000).step_by(193).chain([1000, 800, 1280, 1024]);
            heights.flat_map(move |height| {
                let grid = choose_tile_grid(width as u32, height as u32, &rule);
                [grid.columns, grid.rows]
            })
        });
        assert_eq!(hash_words(all), record["sweep"], "{record}");
    }
}

#[test]
fn impossible_rules_are_errors() {
    let usual = PatchSizing::image(28, 3136, 12_845_056);
    let error = smart_resize(4001, 20, &usual).unwrap_err();
    assert!(matches!(error, MediaError::AspectRatio { limit: 200, .. }));
    assert!(smart_resize(0, 20, &usual).is_err());
    let no_factor = PatchSizing::image(0, 3136, 12_845_056);
    assert!(matches!(
        smart_resize(100, 100, &no_factor).unwrap_err(),
        MediaError::InvalidSetting { .. }
    ));
    let no_least = PatchSizing::image(28, 0, 12_845_056);
    assert!(matches!(
        smart_resize(10, 10, &no_least).unwrap_err(),
        MediaError::InvalidSetting { .. }
    ));
    assert!(smart_resize(10, 10, &usual.with_frames(1, 2)).is_err());
}

#[test]
fn halves_go_to_the_even_neighbour() {
    let rounded = [0.5, 1.5, 2.5, -0.5, 3.2].map(round_half_even);
    assert_eq!(rounded, [0.0, 2.0, 2.0, -0.0, 3.0]);
}
