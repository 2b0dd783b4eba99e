//! Steps on the CPU: by rows in memory that is kept, or by tensors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::Generator;
use aha_models::decoder::Decoder;
use aha_models::deepseek_ocr::LanguageConfig;
use aha_models::{Checkpoint, LoadOptions, lfm2, minicpm4, qwen3, qwen3_5};
use aha_nn::batch::{Batch, SequenceSlice};
use aha_nn::cache::Cache;
use aha_nn::weights::{DtypeRequest, NameMap, Quantization};
use candle_core::{Device, Module};
use std::sync::{Mutex, PoisonError};
use support::copies::changed_copy;
use support::{f32_options, fixture};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Blocks are counted for all threads: tests take turns.
static ALONE: Mutex<()> = Mutex::new(());

const BLOCK: usize = 16;

/// A step of sequences that have one new token each, or `first` tokens in their first step. Sequence `index` has the
/// blocks from `16 * index` on and state slot `index`.
fn step(sequences: usize, first: usize, end: usize) -> Batch {
    let new = if end == first { first } else { 1 };
    let slices = (0..sequences).map(|index| SequenceSlice {
        query_start: index * new,
        query_len: new,
        context_len: end,
        prompt_len: first,
        blocks: (16 * index as u32..).take(end.div_ceil(BLOCK)).collect(),
        state_slot: index as u32,
        axes: None,
    });
    let tokens: Vec<u32> = (0..sequences * new)
        .map(|token| ((token * 7 + end * 3) % 90) as u32)
        .collect();
    let last: Vec<u32> = (1..=sequences)
        .map(|count| (count * new - 1) as u32)
        .collect();
    Batch::new(&tokens, slices.collect(), &last, BLOCK, &Device::Cpu).unwrap()
}

fn cache(decoder: &Decoder, sequences: usize) -> Cache {
    let blocks = 16 * sequences;
    Cache::new(
        &decoder.cache_spec(),
        blocks,
        BLOCK,
        sequences,
        &Device::Cpu,
    )
    .unwrap()
}

/// A decoder of which two layers have experts, whose head is its embedding.
fn with_experts(options: &LoadOptions) -> Decoder {
    let home = changed_copy("deepseek_ocr/small", "config.json", |config| {
        config["language_config"]["tie_word_embeddings"] = true.into();
    });
    let checkpoint = Checkpoint::open(home.path()).unwrap();
    let weights = checkpoint.weights(NameMap::identity(), options).unwrap();
    let config = LanguageConfig::read(&checkpoint).unwrap();
    config.load(&weights).unwrap()
}

/// The same by tensors, for a decoder whose head is its embedding.
fn forward_by_tensors(decoder: &Decoder, batch: &Batch, cache: &mut Cache) -> Vec<f32> {
    let rotation = decoder.rotation(batch).unwrap();
    let mut hidden = decoder.embed(batch).unwrap();
    for (layer, cache) in decoder.layers().iter().zip(cache.layers_mut()) {
        hidden = layer.forward(&hidden, &rotation, batch, cache).unwrap();
    }
    let rows = batch.select_logit_rows(&hidden).unwrap();
    let head = decoder.embedding().tied_head();
    let logits = head.forward(&decoder.final_norm(&rows).unwrap()).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn rows_and_tensors_give_the_same_bits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let open = |name: &str| Checkpoint::open(&fixture(name)).unwrap();
    let options = f32_options();
    let decoders = [
        qwen3::decoder(&open("qwen3/tied-dup"), &options).unwrap(),
        lfm2::decoder(&open("lfm2/lfm2"), &options).unwrap(),
        qwen3_5::decoder(&open("qwen3_5/tied-nothink"), &options).unwrap(),
        with_experts(&options),
    ];
    for (index, decoder) in decoders.iter().enumerate() {
        let (mut rows, mut tensors) = (cache(decoder, 3), cache(decoder, 3));
        let mut logits = Vec::new();
        for end in 21..25 {
            let batch = step(3, 21, end);
            decoder
                .forward_into(&batch, &mut rows, &mut logits)
                .unwrap();
            let want = forward_by_tensors(decoder, &batch, &mut tensors);
            assert_eq!(logits, want, "decoder {index}, {end} positions");
        }
    }
}

/// Heap blocks that some steps of generation take, computed by `forward`, once others like them have run.
fn blocks_of_steps(
    decoder: &Decoder,
    sequences: usize,
    mut forward: impl FnMut(&Batch, &mut Cache),
) -> u64 {
    let mut cache = cache(decoder, sequences);
    // Steps of one block of the cache: the first ones find the sizes of all memory that is kept.
    let batches: Vec<_> = (34..48).map(|end| step(sequences, 34, end)).collect();
    let (warm_up, measured) = batches.split_at(8);
    warm_up.iter().for_each(|batch| forward(batch, &mut cache));
    let profiler = dhat::Profiler::builder().testing().build();
    measured.iter().for_each(|batch| forward(batch, &mut cache));
    let taken = dhat::HeapStats::get().total_blocks;
    drop(profiler);
    taken
}

#[test]
fn steps_of_generation_take_no_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let open = |name: &str| Checkpoint::open(&fixture(name)).unwrap();
    let typed = |dtype| LoadOptions {
        dtype,
        ..LoadOptions::default()
    };
    let quantised = |quant| LoadOptions {
        quant: Some(quant),
        ..LoadOptions::default()
    };
    let qwen3 = |options: &LoadOptions| qwen3::decoder(&open("qwen3/sharded"), options).unwrap();
    let lfm2 = |options: &LoadOptions| lfm2::decoder(&open("lfm2/lfm2"), options).unwrap();
    let qwen3_5 =
        |options: &LoadOptions| qwen3_5::decoder(&open("qwen3_5/tied-nothink"), options).unwrap();
    let short = minicpm4::decoder(&open("minicpm4/tied-short"), &f32_options());
    let decoders = [
        ("f32", qwen3(&f32_options())),
        ("bf16", qwen3(&typed(DtypeRequest::Bf16))),
        ("f16", qwen3(&typed(DtypeRequest::F16))),
        ("q8_0", qwen3(&quantised(Quantization::Q8_0))),
        ("q4_0", qwen3(&quantised(Quantization::Q4_0))),
        ("scaled", short.unwrap()),
        ("convolutions, f32", lfm2(&f32_options())),
        ("convolutions, bf16", lfm2(&typed(DtypeRequest::Bf16))),
        ("delta rule, f32", qwen3_5(&f32_options())),
        ("delta rule, f16", qwen3_5(&typed(DtypeRequest::F16))),
        ("experts, f32", with_experts(&f32_options())),
        (
            "experts, q8_0",
            with_experts(&quantised(Quantization::Q8_0)),
        ),
    ];
    let (_, first) = &decoders[0];
    let by_tensors = blocks_of_steps(first, 1, |batch, cache| {
        forward_by_tensors(first, batch, cache);
    });
    assert!(by_tensors > 100, "blocks are not counted");
    for (name, decoder) in &decoders {
        for sequences in [1, 5] {
            let mut logits = Vec::new();
            let blocks = blocks_of_steps(decoder, sequences, |batch, cache| {
                decoder.forward_into(batch, cache, &mut logits).unwrap();
            });
            assert_eq!(blocks, 0, "{name}, {sequences} sequences");
        }
    }
}
