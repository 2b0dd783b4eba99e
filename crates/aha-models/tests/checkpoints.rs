//! Checkpoints that cannot be loaded say why; those that are a little unusual load.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{EngineError, EngineOptions};
use aha_models::{Checkpoint, load};
use serde_json::{Value, json};
use std::path::Path;
use support::copies::changed_copy;
use support::{engine, f32_options, fixture, greedy, load_text, run};

/// A copy of the usual fixture whose JSON file `name` was changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    changed_copy("llama/smol", name, change)
}

fn refused(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let home = changed(name, change);
    load(home.path(), &f32_options()).unwrap_err().to_string()
}

#[test]
fn configurations_that_no_model_has_are_refused_by_key() {
    for (key, value) in [
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(2)),
        ("head_dim", json!(0)),
        ("head_dim", json!(7)),
        ("rope_theta", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("vocab_size", json!(10)),
        ("vocab_size", json!("many")),
        ("hidden_act", json!("xielu")),
        ("rope_scaling", json!({"rope_type": "yarn"})),
        ("quantization_config", json!({"quant_method": "fp8"})),
    ] {
        let message = refused("config.json", |config| config[key] = value.clone());
        let known = [
            key,
            "hidden_act",
            "head_dim",
            "factor",
            "vocab_size",
            "[10, ",
        ];
        assert!(
            known.iter().any(|word| message.contains(word)),
            "{key} = {value}: {message}"
        );
    }
}

#[test]
fn factors_that_no_minicpm_has_are_refused_by_key() {
    for (key, value) in [
        ("scale_emb", json!(0)),
        ("scale_depth", json!(-1.4)),
        ("dim_model_base", json!(0)),
        ("num_experts", json!(8)),
        ("sparse_config", json!({"dense_len": -1})),
        (
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0]}),
        ),
    ] {
        let home = changed_copy("minicpm4/untied-long", "config.json", |config| {
            config[key] = value.clone();
        });
        let message = load(home.path(), &f32_options()).unwrap_err().to_string();
        assert!(
            message.contains(key) || message.contains("short_factor"),
            "{key} = {value}: {message}"
        );
    }
}

#[test]
fn sizes_that_no_recurrent_layer_has_are_refused_by_key() {
    let refused = |source: &str, change: &dyn Fn(&mut Value)| {
        let home = changed_copy(source, "config.json", change);
        load(home.path(), &f32_options()).unwrap_err().to_string()
    };
    for (key, value) in [
        ("conv_L_cache", json!(0)),
        ("conv_L_cache", json!(1_000_000)),
        ("full_attn_idxs", json!("all")),
        ("layer_types", json!(["conv"])),
        ("layer_types", json!(["conv", "mamba"])),
        ("block_multiple_of", json!(0)),
        ("block_ff_dim", json!(u64::MAX)),
        ("block_ffn_dim_multiplier", json!(1e30)),
        ("num_attention_heads", json!(0)),
    ] {
        let message = refused("lfm2/lfm2", &|config| config[key] = value.clone());
        let known = [key, "intermediate_size", "block_multiple_of"];
        assert!(
            known.iter().any(|word| message.contains(word)),
            "{key} = {value}: {message}"
        );
    }
    for (key, value) in [
        ("linear_num_value_heads", json!(5)),
        ("linear_num_value_heads", json!(0)),
        ("linear_num_key_heads", json!(0)),
        ("linear_key_head_dim", json!(u64::MAX)),
        ("linear_value_head_dim", json!(0)),
        ("linear_conv_kernel_dim", json!(0)),
        ("layer_types", json!([])),
        ("head_dim", json!(0)),
    ] {
        let message = refused("qwen3_5/untied-think", &|config| {
            config["text_config"][key] = value.clone();
        });
        assert!(message.contains(key), "{key} = {value}: {message}");
    }
}

/// What the model in a folder answers.
fn answer(folder: &Path) -> Vec<(u32, u32)> {
    let engine = engine(folder, EngineOptions::default());
    let prompt = engine.processor().prepare_text("the river 北京").unwrap();
    run(&engine, greedy(prompt, 8)).fingerprint()
}

#[test]
fn every_spelling_of_lfm2s_configuration_means_the_same() {
    let expected = answer(&fixture("lfm2/lfm2"));
    let home = changed_copy("lfm2/lfm2", "config.json", |config| {
        let keys = config.as_object_mut().unwrap();
        let attending = keys.remove("full_attn_idxs").unwrap();
        let theta = keys.remove("rope_theta").unwrap();
        let types: Vec<&str> = (0..5)
            .map(|layer| {
                if attending.as_array().unwrap().contains(&json!(layer)) {
                    "full_attention"
                } else {
                    "conv"
                }
            })
            .collect();
        config["layer_types"] = json!(types);
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": theta});
        config["tie_embedding"] = json!(true);
        // Repackaged configurations name the adjusted width beside the one that counts.
        config["intermediate_size"] = json!(144);
    });
    assert_eq!(answer(home.path()), expected);
    let home = changed_copy("lfm2/lfm2", "config.json", |config| {
        config["block_ff_dim"] = Value::Null;
        config["intermediate_size"] = json!(144);
        config["block_auto_adjust_ff_dim"] = json!(false);
    });
    assert_eq!(answer(home.path()), expected);
}

#[test]
fn qwen3_5_loads_without_layer_types_and_without_its_vision_part() {
    let home = changed_copy("qwen3_5/untied-think", "config.json", |config| {
        let text = config["text_config"].as_object_mut().unwrap();
        text.remove("layer_types");
        text.insert("full_attention_interval".to_owned(), json!(3));
    });
    assert_eq!(
        answer(home.path()),
        answer(&fixture("qwen3_5/untied-think"))
    );

    // A conversion to the language model alone: other names, and its configuration at the top.
    let home = changed_copy("qwen3_5/tied-nothink", "config.json", |config| {
        let mut text = config["text_config"].take();
        text["architectures"] = json!(["Qwen3_5ForCausalLM"]);
        *config = text;
    });
    let weights = home.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(length);
    let names = std::str::from_utf8(header).unwrap();
    let renamed = names.replace("model.language_model.", "model.");
    let length = (renamed.len() as u64).to_le_bytes();
    std::fs::write(&weights, [&length, renamed.as_bytes(), data].concat()).unwrap();
    assert_eq!(
        answer(home.path()),
        answer(&fixture("qwen3_5/tied-nothink"))
    );
}

/// An engine of a MiniCPM whose config.json was changed.
fn minicpm(change: impl FnOnce(&mut Value)) -> aha_engine::Engine {
    let home = changed_copy("minicpm4/untied-long", "config.json", change);
    engine(home.path(), EngineOptions::default())
}

#[test]
fn a_sequence_ends_before_attention_would_have_to_be_sparse() {
    let dense = minicpm(|_| ());
    let sparse = minicpm(|config| config["sparse_config"] = json!({"dense_len": 40, "topk": 64}));
    let prompt = |engine: &aha_engine::Engine, tokens: u32| {
        engine
            .processor()
            .prepare_tokens((300..300 + tokens).collect())
    };
    // Below the threshold attention is dense, and the answer is the same to the last bit.
    let short = |engine| run(engine, greedy(prompt(engine, 30), 10)).fingerprint();
    assert_eq!(short(&sparse), short(&dense));
    // An answer of open length stops at the threshold; longer ones are refused when they are asked for.
    let mut open_ended = greedy(prompt(&sparse, 30), 1);
    open_ended.stop.max_tokens = None;
    assert_eq!(run(&sparse, open_ended).ids().len(), 10);
    for (tokens, answer) in [(30, 11), (40, 1), (90, 1)] {
        let error = sparse
            .submit(greedy(prompt(&sparse, tokens), answer))
            .unwrap_err();
        assert!(
            matches!(
                error,
                EngineError::ContextLengthExceeded {
                    context_length: 40,
                    ..
                }
            ),
            "{error}"
        );
    }
    assert!(dense.submit(greedy(prompt(&dense, 90), 1)).is_ok());
    // The released threshold, and one beyond what the model holds.
    let released = minicpm(|config| {
        config["sparse_config"] = json!({"kernel_size": 32});
        config["max_position_embeddings"] = json!(32_768);
    });
    let far = minicpm(|config| {
        config["sparse_config"] = json!({"dense_len": 9000});
        config["max_position_embeddings"] = json!(4096);
    });
    assert_eq!(
        (released.context_length(), far.context_length()),
        (8192, 4096)
    );
}

#[test]
fn the_factors_of_a_minicpm_can_be_switched_off() {
    let answer = |change: fn(&mut Value)| {
        let engine = minicpm(change);
        let prompt = engine.processor().prepare_text("the river").unwrap();
        run(&engine, greedy(prompt, 6)).fingerprint()
    };
    let neutral = answer(|config| {
        config["scale_emb"] = json!(1.0);
        config["scale_depth"] = json!(3f64.sqrt());
        config["dim_model_base"] = config["hidden_size"].clone();
    });
    let off = answer(|config| config["use_mup"] = json!(false));
    assert_eq!(off, neutral);
    assert_ne!(off, answer(|_| ()));
}

#[test]
fn missing_keys_and_unknown_architectures_are_named() {
    let message = refused("config.json", |config| {
        config.as_object_mut().unwrap().remove("hidden_size");
    });
    assert!(
        message.contains("config.json") && message.contains("hidden_size"),
        "{message}"
    );
    let message = refused("config.json", |config| {
        config["architectures"] = json!(["MambaForCausalLM"]);
    });
    assert!(
        message.contains("MambaForCausalLM") && message.contains("LlamaForCausalLM"),
        "{message}"
    );
}

#[test]
fn code_of_a_checkpoint_is_never_run() {
    let home = changed("config.json", |config| {
        config["auto_map"] = json!({"AutoModel": "evil.Model"});
    });
    std::fs::write(home.path().join("evil.py"), "raise SystemExit").unwrap();
    load_text(home.path());
}

#[test]
fn misshapen_and_missing_tensors_are_listed_with_both_shapes() {
    let message = refused("config.json", |config| {
        config["intermediate_size"] = json!(999);
    });
    assert!(message.contains("mlp.gate_proj.weight"), "{message}");
    assert!(
        message.contains("999") && message.contains("144"),
        "{message}"
    );
    let message = refused("config.json", |config| {
        config["num_hidden_layers"] = json!(40);
    });
    assert!(message.contains("model.layers.3."), "{message}");
    assert!(
        message.lines().count() < 20 && message.len() < 4000,
        "{message}"
    );
}

#[test]
fn an_end_token_is_found_where_the_configurations_name_none() {
    let home = changed("config.json", |config| {
        config.as_object_mut().unwrap().remove("eos_token_id");
    });
    std::fs::remove_file(home.path().join("generation_config.json")).unwrap();
    assert_eq!(load_text(home.path()).defaults.eos_token_ids, [2]);
}

#[test]
fn generation_defaults_are_read_and_checked() {
    let home = changed("generation_config.json", |config| {
        config["temperature"] = json!(0.5);
        config["top_k"] = json!(-1);
        config["eos_token_id"] = json!([2, 5]);
    });
    let defaults = load_text(home.path()).defaults;
    assert_eq!(
        (defaults.sampling.temperature, defaults.sampling.top_k),
        (0.5, 0)
    );
    assert_eq!(defaults.eos_token_ids, [2, 5]);
    let message = refused("generation_config.json", |config| {
        config["top_p"] = json!(7.0);
    });
    assert!(
        message.contains("generation_config.json") && message.contains("top_p"),
        "{message}"
    );
}

#[test]
fn new_style_rope_keys_mean_the_same_as_old_ones() {
    let old = engine(&fixture("llama/smol"), EngineOptions::default());
    let home = changed("config.json", |config| {
        let theta = config["rope_theta"].take();
        config.as_object_mut().unwrap().remove("rope_theta");
        config.as_object_mut().unwrap().remove("rope_scaling");
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": theta});
    });
    let new = engine(home.path(), EngineOptions::default());
    let request = |engine: &aha_engine::Engine| {
        greedy(
            engine
                .processor()
                .prepare_text("the same words for both")
                .unwrap(),
            8,
        )
    };
    assert_eq!(
        run(&old, request(&old)).fingerprint(),
        run(&new, request(&new)).fingerprint()
    );
}

#[test]
fn paths_that_hold_no_checkpoint_say_what_was_looked_for() {
    let home = tempfile::tempdir().unwrap();
    let open = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(open(home.path()).contains("config.json"));
    assert!(open(&home.path().join("nothing")).contains("no such file"));
    let text = home.path().join("notes.txt");
    std::fs::write(&text, "hello").unwrap();
    assert!(open(&text).contains(".gguf"));
    let fake = home.path().join("fake.gguf");
    std::fs::write(&fake, "hello").unwrap();
    assert!(open(&fake).contains("fake.gguf"));
}

#[test]
fn engines_of_impossible_sizes_are_refused_by_name() {
    let refused = |options: EngineOptions| match aha_engine::Engine::start(
        load_text(&fixture("llama/smol")),
        options,
    ) {
        Err(EngineError::InvalidRequest { param, .. }) => param.unwrap(),
        other => panic!("{other:?}"),
    };
    let base = EngineOptions::default;
    assert_eq!(
        refused(EngineOptions {
            max_sequences: 0,
            ..base()
        }),
        "max_sequences"
    );
    assert_eq!(
        refused(EngineOptions {
            queue_limit: 0,
            ..base()
        }),
        "queue_limit"
    );
    assert_eq!(
        refused(EngineOptions {
            context_length: Some(0),
            ..base()
        }),
        "context_length"
    );
    assert_eq!(
        refused(EngineOptions {
            cache_tokens: Some(3),
            ..base()
        }),
        "cache_tokens"
    );
    let huge = EngineOptions {
        cache_tokens: Some(usize::MAX),
        max_sequences: usize::MAX,
        ..base()
    };
    assert_eq!(refused(huge), "cache_tokens");
}
