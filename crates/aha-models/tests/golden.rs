//! Every family against its reference implementation: prompts, stages, tokens and log-probabilities.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{EngineOptions, FinishReason};
use aha_models::decoder::Decoder;
use aha_models::{Checkpoint, LoadError, LoadOptions, lfm2, llama, minicpm4, qwen3, qwen3_5};
use aha_nn::batch::{Batch, SequenceSlice};
use aha_nn::cache::Cache;
use aha_nn::weights::{Placement, Weights};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
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
            let ids: Vec<u32> = expect["prompt_ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            assert_eq!(prompt.token_ids, ids, "{name}");
        }
    }
}

#[test]
fn greedy_answers_equal_the_reference_with_their_log_probabilities() {
    for folder in fixtures(&TEXT_FAMILIES) {
        let engine = engine(&folder, EngineOptions::default());
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let name = format!("{} {}", folder.display(), case["name"]);
            let (request, expect) = (&case["request"], &case["expect"]);
            let prompt = engine.processor().prepare(&chat(request)).unwrap();
            let mut greedy = greedy(prompt, request["max_tokens"].as_u64().unwrap() as usize);
            greedy.stop.ignore_eos = request["ignore_eos"].as_bool().unwrap_or(false);
            let answer = collect(engine.submit(greedy).unwrap());

            let steps = expect["steps"].as_array().unwrap();
            assert_eq!(answer.tokens.len(), steps.len(), "{name}");
            let tolerance = case["tolerance"]["logprob"].as_f64().unwrap();
            for (token, step) in answer.tokens.iter().zip(steps) {
                assert_eq!(
                    u64::from(token.token_id),
                    step["id"].as_u64().unwrap(),
                    "{name}"
                );
                let logprob = token.logprob.as_ref().unwrap();
                let bytes: Vec<u8> = step["bytes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|byte| byte.as_u64().unwrap() as u8)
                    .collect();
                assert_eq!(logprob.bytes, bytes, "{name}");
                let gap = (f64::from(logprob.logprob) - step["logprob"].as_f64().unwrap()).abs();
                assert!(gap <= tolerance, "{name}: log-probability differs by {gap}");
                for (top, want) in token
                    .top_logprobs
                    .iter()
                    .zip(step["top"].as_array().unwrap())
                {
                    let gap = (f64::from(top.logprob) - want[1].as_f64().unwrap()).abs();
                    assert!(
                        gap <= tolerance,
                        "{name}: a top log-probability differs by {gap}"
                    );
                }
            }
            let stopped = expect["finish_reason"] == "stop";
            assert_eq!(
                answer.finished.reason == FinishReason::Stop,
                stopped,
                "{name}"
            );
            assert_eq!(
                answer.finished.usage.completion_tokens,
                steps.len() + usize::from(stopped),
                "{name}"
            );
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
    let stages = Weights::open(path, Placement::cpu()).unwrap();
    let stage = |name: &str| {
        let stored = stages
            .catalog()
            .load(name)
            .unwrap_or_else(|| panic!("no stage {name}"));
        stored
            .to_tensor(stored.stored().dtype().unwrap(), &Device::Cpu)
            .unwrap()
    };
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

/// Compares relative to a value's own size or the usual one, whichever is larger.
fn close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    // Sums cancel: the error of a small value is that of the large ones around it.
    let size = (want.iter().map(|value| value * value).sum::<f32>() / want.len() as f32).sqrt();
    let worst = got
        .iter()
        .zip(&want)
        .map(|(a, b)| (a - b).abs() / b.abs().max(size).max(1.0))
        .fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: differs by {worst}");
}
