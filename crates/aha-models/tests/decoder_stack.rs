//! The layers of a decoder alone, between embedding and head.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_models::Checkpoint;
use aha_models::decoder::DecoderStack;
use aha_models::minicpm4::MiniCpm4Config;
use aha_nn::batch::{Batch, EncodedRows, SequenceSlice};
use aha_nn::cache::Cache;
use aha_nn::weights::NameMap;
use candle_core::{DType, Device, Tensor};
use support::{f32_options, fixture};

/// Patches stand in the places of tokens, as pictures do; but nothing of them is added to later layers, however wide
/// they are.
#[test]
fn layers_add_nothing_of_patches() {
    let checkpoint = Checkpoint::open(&fixture("minicpm4/tied-short")).unwrap();
    let config = checkpoint.config(MiniCpm4Config::from_gguf).unwrap();
    let config = config.decoder().unwrap();
    let weights = checkpoint
        .weights(NameMap::decoder(), &f32_options())
        .unwrap();
    let stack = DecoderStack::load_decoder(&weights.pp("model"), &config).unwrap();
    let width = config.attention.hidden_size;
    let hidden = Tensor::randn(0f32, 1.0, (5, width), &Device::Cpu).unwrap();
    let forward = |patches: Vec<EncodedRows>| {
        let slice = SequenceSlice {
            query_start: 0,
            query_len: 5,
            context_len: 5,
            prompt_len: 5,
            blocks: vec![0],
            state_slot: 0,
            axes: None,
        };
        let batch = Batch::new(&[0; 5], vec![slice], &[4], 16, &Device::Cpu).unwrap();
        let batch = batch.with_encoded(patches).unwrap();
        let mut cache = Cache::new(&stack.cache_spec(), 1, 16, 0, &Device::Cpu).unwrap();
        let hidden = stack
            .forward(hidden.clone(), &batch, cache.layers_mut())
            .unwrap();
        hidden.to_vec2::<f32>().unwrap()
    };
    let values = Tensor::ones((2, 4 * width), DType::F32, &Device::Cpu).unwrap();
    let with_patches = forward(vec![EncodedRows { start: 1, values }]);
    assert_eq!(with_patches, forward(Vec::new()));
}
