//! Quantised models: while they load, and as GGUF files that are written of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{Engine, EngineOptions, LoadedModel};
use aha_models::export::Export;
use aha_models::{Checkpoint, LoadError, LoadOptions};
use aha_nn::weights::gguf::{GgufFile, Value as GgufValue};
use aha_nn::weights::{DtypeRequest, Quantization, StoredType};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use support::{chat, fixture, golden, greedy, run};

fn options(quant: Option<Quantization>) -> LoadOptions {
    LoadOptions {
        quant,
        ..LoadOptions::default()
    }
}

fn engine(path: &Path, quant: Option<Quantization>) -> Engine {
    let LoadedModel::Text(model) = aha_models::load(path, &options(quant)).unwrap() else {
        panic!("not a text model");
    };
    let options = EngineOptions {
        cache_tokens: Some(8192),
        ..EngineOptions::default()
    };
    Engine::start(model, options).unwrap()
}

fn export(source: &Path, recipe: Quantization, path: &Path) -> Export {
    let checkpoint = Checkpoint::open(source).unwrap();
    let export = Export::plan(&checkpoint, recipe, &LoadOptions::default()).unwrap();
    assert!(export.write(path, |done, total| done <= total).unwrap());
    export
}

/// A checkpoint with rows that all block types fit, with random weights and the tokenizer of a fixture.
fn wide_checkpoint(home: &Path) -> PathBuf {
    let (hidden, inner, kv, layers) = (256, 512, 128, 4);
    let folder = home.join("wide");
    std::fs::create_dir(&folder).unwrap();
    let source = fixture("llama/smol");
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        if source.join(file).is_file() {
            std::fs::copy(source.join(file), folder.join(file)).unwrap();
        }
    }
    let text = std::fs::read(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", inner),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("num_hidden_layers", layers),
    ] {
        config[key] = json!(value);
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let mut state = 7_u64;
    let mut random = |shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.2
            })
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let vocab_size = config["vocab_size"].as_u64().unwrap() as usize;
    let mut tensors = HashMap::from([
        (
            "model.embed_tokens.weight".to_owned(),
            random(&[vocab_size, hidden]),
        ),
        ("model.norm.weight".to_owned(), random(&[hidden])),
    ]);
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.insert(
                format!("model.layers.{layer}.{name}.weight"),
                random(&shape),
            );
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    folder
}

/// Both must make the same prompts and the same answers.
fn assert_same(one: &Engine, other: &Engine, cases: &Value, name: &str) {
    for text in ["the river 12345", "नमस्ते 北京 🙂", "  two\r\n\n lines"] {
        let ids = |engine: &Engine| engine.processor().prepare_text(text).unwrap();
        assert_eq!(ids(one), ids(other), "{name}: {text:?}");
    }
    for case in cases.as_array().unwrap() {
        let request = |engine: &Engine| {
            greedy(
                engine.processor().prepare(&chat(&case["request"])).unwrap(),
                12,
            )
        };
        let (first, second) = (request(one), request(other));
        assert_eq!(first.prompt, second.prompt, "{name}: {}", case["name"]);
        let (first, second) = (run(one, first), run(other, second));
        assert_eq!(first.ids(), second.ids(), "{name}: {}", case["name"]);
        for (a, b) in first.tokens.iter().zip(&second.tokens) {
            let gap = a.logprob.as_ref().unwrap().logprob - b.logprob.as_ref().unwrap().logprob;
            assert!(gap.abs() < 1e-4, "{name}: {}: {gap}", case["name"]);
        }
    }
}

#[test]
fn a_written_file_answers_like_the_checkpoint_that_is_quantised_while_it_loads() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.gguf");
    for (name, recipe) in [
        // Biases, a head size of its own, Llama 3's rope, permuted rows.
        ("llama/llama3", Quantization::Q8_0),
        ("llama/smol", Quantization::Q4KM),
        ("qwen3/sharded", Quantization::Q4_0),
        ("qwen3/tied-dup", Quantization::Q8_0),
        ("qwen3/untied-yarn", Quantization::Q8_0),
        ("lfm2/lfm2", Quantization::Q8_0),
        ("lfm2/lfm2_5-gen", Quantization::Q6K),
    ] {
        let folder = fixture(name);
        export(&folder, recipe, &path);
        let (written, loaded) = (engine(&path, None), engine(&folder, Some(recipe)));
        assert_same(&written, &loaded, &golden(&folder)["cases"], name);
        let mut ends = [&written, &loaded].map(|engine| engine.defaults().eos_token_ids.clone());
        ends.iter_mut().for_each(|ends| ends.sort_unstable());
        assert!(
            ends[1].iter().all(|end| ends[0].contains(end)),
            "{name}: {ends:?}"
        );
        assert_eq!(
            written.defaults().sampling,
            loaded.defaults().sampling,
            "{name}"
        );
    }
}

#[test]
fn mixtures_are_the_same_in_files_and_while_loading() {
    let home = tempfile::tempdir().unwrap();
    let folder = wide_checkpoint(home.path());
    let path = home.path().join("model.gguf");
    let cases = &golden(&fixture("llama/smol"))["cases"];
    for (recipe, main, file_type) in [
        (Quantization::Q4KM, StoredType::Q4K, 15),
        (Quantization::Q5KM, StoredType::Q5K, 17),
        (Quantization::Q6K, StoredType::Q6K, 18),
    ] {
        let export = export(&folder, recipe, &path);
        assert_eq!(export.report().quantized(), 4 * 7 + 1);
        assert_eq!(export.report().exceptions(), None);
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(
            file.metadata.get("general.file_type"),
            Some(&GgufValue::Unsigned(file_type))
        );
        let stored = |name: &str| file.tensor(name).unwrap().stored;
        // Of four layers the third and the last get more bits.
        for (layer, more) in [(0, false), (1, false), (2, true), (3, true)] {
            let wanted = if more { StoredType::Q6K } else { main };
            for module in ["attn_v", "ffn_down"] {
                assert_eq!(stored(&format!("blk.{layer}.{module}.weight")), wanted);
            }
            assert_eq!(stored(&format!("blk.{layer}.attn_q.weight")), main);
            assert_eq!(
                stored(&format!("blk.{layer}.attn_norm.weight")),
                StoredType::F32
            );
        }
        assert_eq!(stored("token_embd.weight"), StoredType::Q6K);
        assert!(file.tensor("output.weight").is_none());
        let (written, loaded) = (engine(&path, None), engine(&folder, Some(recipe)));
        assert_same(&written, &loaded, cases, recipe.name());
    }
}

#[test]
fn a_file_in_plain_numbers_is_quantised_with_all_that_it_says() {
    let home = tempfile::tempdir().unwrap();
    let (plain, path) = (fixture("gguf/lfm2.gguf"), home.path().join("model.gguf"));
    export(&plain, Quantization::Q8_0, &path);
    let (from, to) = (
        GgufFile::open(&plain).unwrap(),
        GgufFile::open(&path).unwrap(),
    );
    for key in from
        .metadata
        .keys()
        .filter(|key| !key.starts_with("general."))
    {
        assert_eq!(from.metadata.get(key), to.metadata.get(key), "{key}");
    }
    assert!(from.catalog().names().eq(to.catalog().names()));
    let cases = &golden(&fixture("lfm2/lfm2"))["cases"];
    let loaded = engine(&plain, Some(Quantization::Q8_0));
    assert_same(&engine(&path, None), &loaded, cases, "lfm2.gguf");
}

#[test]
fn writing_stops_when_it_is_told_to() {
    let home = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&fixture("qwen3/sharded")).unwrap();
    let export = Export::plan(&checkpoint, Quantization::Q8_0, &LoadOptions::default()).unwrap();
    let mut calls = 0;
    let go_on = |_, _| {
        calls += 1;
        calls < 3
    };
    let path = home.path().join("model.gguf");
    assert!(!export.write(&path, go_on).unwrap());
    assert_eq!(calls, 3);
    assert!(GgufFile::open(&path).is_err());
}

#[test]
fn what_cannot_be_quantised_or_written_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.gguf");
    export(&fixture("qwen3/sharded"), Quantization::Q8_0, &path);
    let load = |path: &Path, options: &LoadOptions| aha_models::load(path, options).map(drop);
    let recipe = Some(Quantization::Q8_0);
    let twice = load(&path, &options(recipe)).unwrap_err();
    assert!(matches!(twice, LoadError::Quantize { .. }));
    assert!(twice.to_string().contains("already (Q8_0)"), "{twice}");
    let both = LoadOptions {
        dtype: DtypeRequest::Bf16,
        ..options(recipe)
    };
    let both = load(&fixture("qwen3/sharded"), &both).unwrap_err();
    assert!(both.to_string().contains("bf16"), "{both}");

    let plan = |path: &Path| {
        let checkpoint = Checkpoint::open(path).unwrap();
        Export::plan(&checkpoint, Quantization::Q8_0, &LoadOptions::default()).unwrap_err()
    };
    assert!(matches!(plan(&path), LoadError::Quantize { .. }));
    for name in [
        "minilm/base",
        "minicpm4/tied-short",
        "qwen3_embedding/single",
    ] {
        let error = plan(&fixture(name)).to_string();
        assert!(error.contains("llama, qwen3, lfm2"), "{name}: {error}");
    }
}
