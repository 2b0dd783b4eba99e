//! Background removal against the reference: stages, masks, faults of checkpoints.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{LoadedModel, Matter, Task};
use aha_media::image::{Channels, Image, Limits, decode};
use aha_models::{Checkpoint, LoadError, rmbg2};
use candle_core::Tensor;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::check::{Stages, close};
use support::copies::{copy_of, edit};
use support::{f32_options, fixture, golden};

const FIXTURE: &str = "rmbg2/windows6";

fn network(folder: &Path) -> rmbg2::Rmbg2 {
    rmbg2::network(&Checkpoint::open(folder).unwrap(), &f32_options()).unwrap()
}

fn picture(path: &Path) -> Image {
    let bytes = std::fs::read(path).unwrap();
    decode(&bytes, &Limits::default()).unwrap().as_stored()
}

/// Channels last to channels first.
fn channels_first(map: &Tensor) -> Tensor {
    map.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

#[test]
fn the_network_equals_the_reference_stage_by_stage() {
    let folder = fixture(FIXTURE);
    let stages = Stages::open(&folder.join("stages.safetensors"));
    let model = network(&folder);
    let image = stages.get("tiny.in").permute((0, 2, 3, 1)).unwrap();
    let (mut blocks, mut visited) = (0, Vec::new());
    let logits = model
        .network()
        .forward(&image.contiguous().unwrap(), |name, got| {
            match name {
                "block" if blocks == 0 => {
                    let want = stages.get("tiny.stage0_block0").squeeze(0)?;
                    close(got, &want, 1e-4, name);
                }
                "block" | "half_block" | "p1" | "logits" => {}
                name => {
                    let want = stages.get(&format!("tiny.{name}"));
                    close(&channels_first(got), &want, 1e-4, name);
                    visited.push(name.to_owned());
                }
            }
            blocks += usize::from(name == "block");
            Ok(())
        })
        .unwrap();
    close(
        &channels_first(&logits),
        &stages.get("tiny.out3"),
        1e-4,
        "logits",
    );
    // Both runs of the backbone give four maps each.
    assert_eq!(
        visited.len(),
        8 + "x4_context squeeze p4 p3 p2".split(' ').count()
    );
    assert_eq!(blocks, 5);
}

#[test]
fn masks_equal_the_reference_for_every_kind_of_picture() {
    let folder = fixture(FIXTURE);
    let model = network(&folder);
    let cases = golden(&folder)["cases"].as_array().unwrap().clone();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let name = &case["name"];
        let own = picture(&folder.join(case["request"]["image"].as_str().unwrap()));
        let want = picture(&folder.join(case["expect"]["alpha"].as_str().unwrap()));
        let alpha = model
            .alpha(&model.prepare(&own).unwrap(), &|| false)
            .unwrap();
        let got = model.mask(&alpha, own.width(), own.height()).unwrap();
        assert_eq!(got.channels(), Channels::Gray, "{name}");
        assert_eq!((got.width(), got.height()), (want.width(), want.height()));
        let gaps = got.samples().iter().zip(want.samples());
        let gaps: Vec<u8> = gaps.map(|(got, want)| got.abs_diff(*want)).collect();
        let mean = gaps.iter().map(|gap| f64::from(*gap)).sum::<f64>() / gaps.len() as f64;
        // The resizes are the reference's own, so only the rounding of the network's sums is left.
        assert!(mean <= 0.02, "{name}: {mean}");
        assert!(
            gaps.iter().max() <= Some(&2),
            "{name}: {:?}",
            gaps.iter().max()
        );
        // A mask of one level would pass for many mistakes.
        let (low, high) = (want.samples().iter().min(), want.samples().iter().max());
        assert!(low < Some(&60) && high > Some(&200), "{name}");
    }
}

#[test]
fn a_picture_gives_the_same_bits_every_time_and_stops_when_told() {
    let folder = fixture(FIXTURE);
    let model = network(&folder);
    let own = picture(&folder.join("media/small.png"));
    let prepared = model.prepare(&own).unwrap();
    let alpha = || model.alpha(&prepared, &|| false).unwrap();
    let bits = |alpha: Tensor| -> Vec<u32> {
        let values: Vec<f32> = alpha.flatten_all().unwrap().to_vec1().unwrap();
        values.iter().map(|value| value.to_bits()).collect()
    };
    assert_eq!(bits(alpha()), bits(alpha()));
    let asked = AtomicUsize::new(0);
    let stopped = model.alpha(&prepared, &|| asked.fetch_add(1, Ordering::Relaxed) == 3);
    assert!(stopped.is_err());
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[test]
fn it_is_loaded_as_what_it_is() {
    let loaded = aha_models::load(&fixture(FIXTURE), &f32_options()).unwrap();
    assert!(matches!(loaded, LoadedModel::Matte(_)));
    assert_eq!(loaded.task(), Task::Matte);
}

#[test]
fn masks_of_numbers_that_are_none_are_refused() {
    let model = network(&fixture(FIXTURE));
    let nan = Tensor::new(&[[0.5_f32, f32::NAN]], &candle_core::Device::Cpu).unwrap();
    let error = model.mask(&nan, 4, 4).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

/// The error of a changed copy of the fixture.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let copy = copy_of(FIXTURE);
    change(copy.path());
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let error: LoadError = rmbg2::network(&checkpoint, &f32_options()).unwrap_err();
    error.to_string()
}

/// Rewrites the weights of a copy.
fn with_tensors(folder: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let file = folder.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    change(&mut tensors);
    std::fs::remove_file(&file).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
}

#[test]
fn checkpoints_that_lack_or_misshape_tensors_name_them() {
    let error = refusal(|folder| {
        with_tensors(folder, |tensors| {
            tensors
                .remove("decoder.decoder_block3.conv_out.bias")
                .unwrap();
            tensors
                .remove("bb.layers.2.blocks.0.mlp.fc2.weight")
                .unwrap();
        });
    });
    assert!(
        error.contains("decoder.decoder_block3.conv_out.bias"),
        "{error}"
    );
    assert!(
        error.contains("bb.layers.2.blocks.0.mlp.fc2.weight"),
        "{error}"
    );
    let error = refusal(|folder| {
        with_tensors(folder, |tensors| {
            tensors.remove("decoder.ipt_blk4.conv_out.weight").unwrap();
        });
    });
    assert!(
        error.contains("decoder.ipt_blk4.conv_out.weight"),
        "{error}"
    );
    let error = refusal(|folder| {
        with_tensors(folder, |tensors| {
            let table = "bb.layers.0.blocks.0.attn.relative_position_bias_table";
            let other = Tensor::zeros((100, 1), candle_core::DType::F32, &candle_core::Device::Cpu);
            tensors.insert(table.to_owned(), other.unwrap()).unwrap();
        });
    });
    assert!(error.contains("100 relative positions"), "{error}");
}

#[test]
fn input_sizes_that_the_network_cannot_have_are_refused() {
    for side in [0, 1000, 1 << 20] {
        let error = refusal(|folder| {
            edit(folder, "preprocessor_config.json", |config| {
                config["size"] = json!({"width": 1024, "height": side});
            });
        });
        assert!(error.contains("size.height"), "{error}");
    }
}
