//! Single layers at the release's sizes, against the reference: weights and inputs follow from a formula.

use super::decoder::{Aspp, DecoderBlock};
use super::swin::parts;
use aha_nn::weights::{Placement, Weights};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/rmbg2/windows6")
}

/// Values of `real_dims.json`: the top 24 bits of splitmix64, between -1 and 1, scaled and moved.
fn by_formula(entry: &Value) -> Tensor {
    let shape: Vec<usize> = entry["shape"]
        .as_array()
        .unwrap()
        .iter()
        .map(|size| size.as_u64().unwrap() as usize)
        .collect();
    let seed = entry["seed"].as_u64().unwrap();
    let number = |key: &str| entry[key].as_f64().unwrap() as f32;
    let (scale, offset) = (number("scale"), number("offset"));
    let value = |index: u64| {
        let z = (seed << 32).wrapping_add(index + 1);
        let z = z.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        let unit = (z >> 40) as f32 / (1 << 23) as f32 - 1.0;
        offset + scale * unit
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(value)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The weights and the input of a part, and what the reference made of them.
struct Part {
    _folder: tempfile::TempDir,
    weights: Weights,
    input: Tensor,
    output: Tensor,
}

impl Part {
    fn read(name: &str) -> Self {
        let text = std::fs::read(fixture().join("real_dims.json")).unwrap();
        let table: Value = serde_json::from_slice(&text).unwrap();
        let part = &table["parts"][name];
        let tensors: HashMap<String, Tensor> = part["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                let name = entry["tensor"].as_str().unwrap().to_owned();
                (name, by_formula(entry))
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors, &file).unwrap();
        let stages = fixture().join("stages.safetensors");
        let stages = candle_core::safetensors::load(stages, &Device::Cpu).unwrap();
        Self {
            weights: Weights::open(&file, Placement::cpu()).unwrap(),
            input: by_formula(&part["input"]),
            output: stages[&format!("real.{name}.out")].clone(),
            _folder: folder,
        }
    }

    /// The input as tokens.
    fn tokens(&self) -> Tensor {
        self.input.squeeze(0).unwrap()
    }

    /// The input as a map whose channels come last.
    fn map(&self) -> Tensor {
        let map = self.input.permute((0, 2, 3, 1)).unwrap();
        map.contiguous().unwrap()
    }

    fn check_tokens(&self, got: &Tensor) {
        self.weights.finish(&["*.relative_position_index"]).unwrap();
        close(got, &self.output.squeeze(0).unwrap());
    }

    fn check_map(&self, got: &Tensor) {
        self.weights.finish(&[]).unwrap();
        close(&got.permute((0, 3, 1, 2)).unwrap(), &self.output);
    }
}

fn close(got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims());
    let worst = (got - want).unwrap().abs().unwrap().flatten_all().unwrap();
    let worst = worst.max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(worst < 2e-5, "differs by {worst}");
}

#[test]
fn a_shifted_swin_block_equals_the_reference() {
    let part = Part::read("swin_block_shifted");
    let weights = part.weights.pp("bb.layers.0.blocks.1");
    part.check_tokens(&parts::block(&weights, &part.tokens(), (13, 14), 12));
}

#[test]
fn patch_merging_of_an_odd_map_equals_the_reference() {
    let part = Part::read("patch_merging_odd");
    let weights = part.weights.pp("bb.layers.0.downsample");
    part.check_tokens(&parts::merging(&weights, &part.tokens(), (7, 6)));
}

#[test]
fn the_deformable_pyramid_equals_the_reference() {
    let part = Part::read("aspp_deformable");
    let weights = part.weights.pp("decoder.decoder_block1.dec_att");
    let aspp = Aspp::load(&weights, 64).unwrap();
    part.check_map(&aspp.forward(&part.map()).unwrap());
}

#[test]
fn a_decoder_block_equals_the_reference() {
    let part = Part::read("decoder_block1");
    let weights = part.weights.pp("decoder.decoder_block1");
    let block = DecoderBlock::load(&weights, 480, 192).unwrap();
    part.check_map(&block.forward(&part.map()).unwrap());
}
