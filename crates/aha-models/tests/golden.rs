//! Every family against its reference implementation: prompts, stages, tokens and log-probabilities.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::EngineOptions;
use aha_models::decoder::Decoder;
use aha_models::{Checkpoint, LoadError, LoadOptions, lfm2, llama, minicpm4, qwen3, qwen3_5};
use aha_nn::batch::{Batch, SequenceSlice};
use aha_nn::cache::Cache;
use candle_core::{DType, Device};
use std::path::Path;
use support::check::{Stages, check_answer, close, prompt_ids};
use support::{chat, collect, engine, fixture, fixtures, golden, greedy};

const TEXT_FAMILIES: [&str; 5] = ["qwen3", "llama", "minicpm4", "lfm2", "qwen3_5"];

#[test]
fn prompts_equal_the_reference_token_by_token() {
    for folder in fixtures(&TEXT_FAMILIES) {
        let processor = support::load_text(&folder).processor;
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let name = format!("{} {}", folder.display(), case["name"]);
            let prompt = processor.prepare(&chat(&case["request"])).unwrap();
            let expect = &case["expect"];
            assert_eq!(
                prompt.text,
                expect["prompt_text"].as_str().unwrap(),
                "{name}"
            );
            assert_eq!(prompt.token_ids, prompt_ids(expect), "{name}");
        }
    }
}

#[test]
fn greedy_answers_equal_the_reference_with_their_log_probabilities() {
    for folder in fixtures(&TEXT_FAMILIES) {
        let engine = engine(&folder, EngineOptions::default());
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let name = format!("{} {}", folder.display(), case["name"]);
            let request = &case["request"];
            let prompt = engine.processor().prepare(&chat(request)).unwrap();
            let mut greedy = greedy(prompt, request["max_tokens"].as_u64().unwrap() as usize);
            greedy.stop.ignore_eos = request["ignore_eos"].as_bool().unwrap_or(false);
            let answer = collect(engine.submit(greedy).unwrap());

            check_answer(&answer, case, &name);
        }
    }
}

type LoadDecoder = fn(&Checkpoint, &LoadOptions) -> Result<Decoder, LoadError>;

#[test]
fn hidden_states_equal_the_reference_layer_by_layer() {
    // The reference computes gated DeltaNet in another order than the kernel, and its own two forms differ as much.
    let variants: [(&str, LoadDecoder, f32); 6] = [
        ("qwen3/sharded", qwen3::decoder, 1e-5),
        ("llama/llama3", llama::decoder, 1e-5),
        ("minicpm4/tied-short", minicpm4::decoder, 1e-5),
        ("lfm2/lfm2", lfm2::decoder, 1e-5),
        ("qwen3_5/tied-nothink", qwen3_5::decoder, 5e-5),
        ("qwen3_5/untied-think", qwen3_5::decoder, 5e-5),
    ];
    for (name, load, tolerance) in variants {
        let folder = fixture(name);
        let decoder = load(&Checkpoint::open(&folder).unwrap(), &support::f32_options()).unwrap();
        check_stages(&decoder, &folder.join("stages.safetensors"), tolerance);
    }
}

/// `hidden.0` are the embeddings, `hidden.i` the stream after layer i - 1, the last one after the final norm.
fn check_stages(decoder: &Decoder, path: &Path, tolerance: f32) {
    use aha_engine::Generator;
    let stages = Stages::open(path);
    let stage = |name: &str| stages.get(name);
    let ids: Vec<u32> = stage("input_ids")
        .flatten_all()
        .unwrap()
        .to_dtype(DType::U32)
        .unwrap()
        .to_vec1()
        .unwrap();
    let sequence = SequenceSlice {
        query_start: 0,
        query_len: ids.len(),
        context_len: ids.len(),
        prompt_len: ids.len(),
        blocks: (0..ids.len().div_ceil(16) as u32).rev().collect(),
        state_slot: 0,
        axes: None,
    };
    let blocks = sequence.blocks.len();
    let last = ids.len() as u32 - 1;
    let batch = Batch::new(&ids, vec![sequence], &[last], 16, &Device::Cpu).unwrap();
    let mut cache = Cache::new(&decoder.cache_spec(), blocks, 16, 1, &Device::Cpu).unwrap();

    let rotation = decoder.rotation(&batch).unwrap();
    let mut hidden = decoder.embed(&batch).unwrap();
    close(&hidden, &stage("hidden.0"), 1e-6, "embeddings");
    let layers = decoder.layers();
    for (index, (layer, cache)) in layers.iter().zip(cache.layers_mut()).enumerate() {
        hidden = layer.forward(&hidden, &rotation, &batch, cache).unwrap();
        if index + 1 < layers.len() {
            close(
                &hidden,
                &stage(&format!("hidden.{}", index + 1)),
                tolerance,
                &format!("{}: layer {index}", path.display()),
            );
        }
    }
    let normed = decoder.final_norm(&hidden).unwrap();
    close(
        &normed,
        &stage(&format!("hidden.{}", layers.len())),
        1e-4,
        "final norm",
    );

    let mut fresh = Cache::new(&decoder.cache_spec(), blocks, 16, 1, &Device::Cpu).unwrap();
    let logits = decoder.forward(&batch, &mut fresh).unwrap();
    close(&logits, &stage("logits_last"), 1e-3, "logits");
}
