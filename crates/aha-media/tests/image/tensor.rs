//! Normalisation and patches, bit for bit what the references give.

use aha_media::MediaError;
use aha_media::image::{Channels, Normalization, PatchLayout, PatchOrder, patches, planar};
use serde_json::Value;

use crate::support::{bytes, hash_floats, number, pair, pattern};

fn fixture() -> Value {
    serde_json::from_slice(&bytes("tensors.json")).unwrap()
}

fn three(value: &Value) -> [f64; 3] {
    [0, 1, 2].map(|at| value[at].as_f64().unwrap())
}

fn clip() -> Normalization {
    let record = &fixture()["normalizations"][1];
    Normalization::fused(1.0 / 255.0, three(&record["mean"]), three(&record["std"])).unwrap()
}

#[test]
fn normalised_values_are_those_of_the_references() {
    for record in fixture()["normalizations"].as_array().unwrap() {
        let (mean, std) = (three(&record["mean"]), three(&record["std"]));
        for (key, table) in [
            (
                "fused",
                Normalization::fused(1.0 / 255.0, mean, std).unwrap(),
            ),
            (
                "stepwise",
                Normalization::stepwise(1.0 / 255.0, mean, std).unwrap(),
            ),
        ] {
            let values: Vec<f32> = (0..3)
                .flat_map(|channel| (0..=255).map(move |sample| (channel, sample)))
                .map(|(channel, sample)| table.value(channel, sample))
                .collect();
            assert_eq!(
                hash_floats(&values),
                record[key],
                "{key} of {}",
                record["name"]
            );
        }
    }
    assert!(Normalization::fused(1.0 / 255.0, [0.5; 3], [0.5, 0.0, 0.5]).is_err());
    assert!(Normalization::stepwise(0.0, [0.5; 3], [0.5; 3]).is_err());
}

#[test]
fn patches_have_the_order_of_the_references() {
    for record in fixture()["patches"].as_array().unwrap() {
        let (width, height) = pair(&record["size"]);
        let frames: Vec<_> = (0..number(&record["frames"]))
            .map(|index| pattern(width, height, Channels::Rgb, (index as u8).wrapping_mul(37)))
            .collect();
        let order = PatchOrder {
            patch_size: number(&record["patch"]),
            merge_size: number(&record["merge"]),
            temporal_patch_size: number(&record["temporal"]),
            layout: match record["layout"].as_str().unwrap() {
                "channel_first" => PatchLayout::ChannelFirst,
                _ => PatchLayout::ChannelLast,
            },
        };
        let (values, grid) = patches(&frames, &order, &clip()).unwrap();
        assert_eq!(Value::from(grid.to_vec()), record["grid"]);
        assert_eq!(hash_floats(&values), record["hash"], "{record}");
    }
}

#[test]
fn planes_have_the_order_of_the_references() {
    let record = &fixture()["planar"];
    let (width, height) = pair(&record["size"]);
    let image = pattern(width, height, Channels::Rgb, 0);
    let values = planar(&image, &clip()).unwrap();
    assert_eq!(hash_floats(&values), record["hash"]);
    let gray = pattern(width, height, Channels::Gray, 0);
    assert!(planar(&gray, &clip()).is_err());
}

#[test]
fn what_cannot_be_cut_is_said() {
    let order = PatchOrder {
        patch_size: 4,
        merge_size: 2,
        temporal_patch_size: 2,
        layout: PatchLayout::ChannelFirst,
    };
    let image = |width, height| pattern(width, height, Channels::Rgb, 0);
    let error = patches(&[image(12, 8)], &order, &clip()).unwrap_err();
    assert!(matches!(error, MediaError::InvalidSize { .. }));
    let error = patches(&[image(8, 8), image(16, 8)], &order, &clip()).unwrap_err();
    assert!(matches!(error, MediaError::FrameSize { index: 1, .. }));
    assert!(patches(&[], &order, &clip()).is_err());
    let no_merge = PatchOrder {
        merge_size: 0,
        ..order
    };
    assert!(patches(&[image(8, 8)], &no_merge, &clip()).is_err());
}
