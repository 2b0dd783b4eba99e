//! Families that see, against their reference implementations: pixels, stages, prompts, sizes, answers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{EncoderInput, EngineError, EngineOptions, PixelLimits, Prompt};
use aha_models::vision::patch_places;
use aha_models::{Checkpoint, lfm2vl, qwen2_5vl, qwen3vl};
use aha_nn::weights::NameMap;
use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use support::check::{Stages, check_answer, close, prompt_ids};
use support::copies::{changed_copy, copy_of, edit, rename_tensors};
use support::media::{chat_with_media, plain_picture};
use support::{Answer, engine, f32_options, fixture, fixtures, golden, greedy, load_text, run};

const FAMILIES: [&str; 4] = ["qwen3vl", "qwen3_5_vl", "qwen2_5vl", "lfm2vl"];
const QWEN3: &str = "qwen3vl/mixed";
const QWEN3_5: &str = "qwen3_5_vl/mixed";
const QWEN: &str = "qwen2_5vl/mixed";
const LFM: &str = "lfm2vl/tiles";

fn cases(folder: &Path) -> Vec<Value> {
    golden(folder)["cases"].as_array().unwrap().clone()
}

#[test]
fn prompts_equal_the_reference_token_by_token() {
    for folder in fixtures(&FAMILIES) {
        let processor = load_text(&folder).processor;
        for case in cases(&folder) {
            let chat = chat_with_media(&case["request"], &folder);
            let prompt = processor.prepare(&chat).unwrap();
            let name = format!("{} {}", folder.display(), case["name"]);
            assert_eq!(prompt.token_ids, prompt_ids(&case["expect"]), "{name}");
        }
    }
}

#[test]
fn greedy_answers_equal_the_reference_with_their_log_probabilities() {
    for folder in fixtures(&FAMILIES) {
        let engine = engine(&folder, EngineOptions::default());
        for case in cases(&folder) {
            let name = format!("{} {}", folder.display(), case["name"]);
            let chat = chat_with_media(&case["request"], &folder);
            let prompt = engine.processor().prepare(&chat).unwrap();
            let most = case["request"]["max_tokens"].as_u64().unwrap() as usize;
            check_answer(&run(&engine, greedy(prompt, most)), &case, &name);
        }
    }
}

/// The first case of a fixture that shows a picture: the one whose stages were kept.
fn first_picture(folder: &Path) -> Prompt {
    let processor = load_text(folder).processor;
    cases(folder)
        .iter()
        .map(|case| processor.prepare(&chat_with_media(&case["request"], folder)))
        .map(Result::unwrap)
        .find(|prompt| !prompt.media.is_empty())
        .unwrap()
}

fn inputs(prompt: &Prompt) -> Vec<&EncoderInput> {
    prompt
        .media
        .iter()
        .map(|span| span.input.as_ref())
        .collect()
}

/// Holds the positions of a prompt to the reference's, and those of the tokens after it.
fn check_positions(prompt: &Prompt, stages: &Stages) {
    let axes = prompt.axes.as_ref().unwrap();
    let positions: Vec<Vec<Vec<i64>>> = stages.get("position_ids").to_vec3().unwrap();
    #[allow(
        clippy::needless_range_loop,
        reason = "positions are looked up, not owned"
    )]
    for index in 0..prompt.token_ids.len() {
        let want = [0, 1, 2].map(|axis: usize| positions[axis][0][index] as u32);
        assert_eq!(axes.at(index), want, "token {index}");
    }
    let delta = stages.get("rope_delta").to_vec2::<i64>().unwrap()[0][0];
    let next = (prompt.token_ids.len() as i64 + delta) as u32;
    assert_eq!(axes.at(prompt.token_ids.len()), [next; 3]);
}

#[test]
fn the_tower_of_qwen3_vl_equals_the_reference_stage_by_stage() {
    for (name, deepstack) in [(QWEN3, 2), (QWEN3_5, 0)] {
        let folder = fixture(name);
        let stages = Stages::open(&folder.join("stages.safetensors"));
        let prompt = first_picture(&folder);
        check_positions(&prompt, &stages);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let weights = checkpoint
            .weights(NameMap::identity(), &f32_options())
            .unwrap();
        let tower = qwen3vl::vision_tower(&checkpoint, &weights).unwrap();
        let (pixels, grids) = tower.pixels(&inputs(&prompt)).unwrap();
        close(&pixels, &stages.get("pixel_values"), 1e-6, "pixels");
        let mut visited = 0;
        let features = tower.forward(&pixels, &grids, |name, got| {
            if let Some(want) = stages.find(&format!("vision.{name}")) {
                close(got, &want, 1e-4, name);
                visited += 1;
            }
        });
        // Behind the merged patches stand those of the deepstack layers.
        let features = features.unwrap();
        let width = features.dim(1).unwrap() / (1 + deepstack);
        for layer in 0..deepstack {
            let found = features.narrow(1, (1 + layer) * width, width).unwrap();
            let stage = format!("vision.deepstack{layer}");
            close(&found, &stages.get(&stage), 1e-4, &stage);
        }
        assert_eq!(visited, 3 + usize::from(deepstack > 0), "{name}");
    }
}

#[test]
fn the_tower_of_qwen2_5_vl_equals_the_reference_stage_by_stage() {
    let folder = fixture(QWEN);
    let stages = Stages::open(&folder.join("stages.safetensors"));
    let prompt = first_picture(&folder);
    check_positions(&prompt, &stages);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let weights = checkpoint
        .weights(NameMap::identity(), &f32_options())
        .unwrap();
    let tower = qwen2_5vl::vision_tower(&checkpoint, &weights).unwrap();
    let (pixels, grids) = tower.pixels(&inputs(&prompt)).unwrap();
    close(&pixels, &stages.get("pixel_values"), 1e-6, "pixels");
    let mut visited = 0;
    let features = tower.forward(&pixels, &grids, |name, got| {
        close(got, &stages.get(&format!("vision.{name}")), 1e-4, name);
        visited += 1;
    });
    close(
        &features.unwrap(),
        &stages.get("vision.features"),
        1e-4,
        "features",
    );
    assert_eq!(visited, 5);
}

#[test]
fn the_tower_of_lfm2_vl_equals_the_reference_stage_by_stage() {
    let folder = fixture(LFM);
    let stages = Stages::open(&folder.join("stages.safetensors"));
    let prompt = first_picture(&folder);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let weights = lfm2vl::open_weights(&checkpoint, &f32_options()).unwrap();
    let hidden_size = lfm2vl::decoder(&checkpoint, &weights)
        .unwrap()
        .hidden_size();
    let tower = lfm2vl::vision_tower(&checkpoint, &weights, hidden_size).unwrap();
    let (pixels, grids) = tower.pixels(&inputs(&prompt)).unwrap();
    // The reference's patches lie row by row, ours in the blocks that become a token.
    let (_, rows) = patch_places(&grids, 2);
    let rows = Tensor::new(rows, pixels.device()).unwrap();
    let stage = |name: &str| stages.get(name).index_select(&rows, 0).unwrap();
    close(&pixels, &stage("pixel_values"), 1e-6, "pixels");
    let mut visited = 0;
    let features = tower.forward(&pixels, &grids, |name, got| {
        close(got, &stage(&format!("vision.{name}")), 1e-4, name);
        visited += 1;
    });
    let want = stages.get("projector.out");
    close(&features.unwrap(), &want, 1e-4, "projector");
    assert_eq!(visited, 3);
}

#[test]
fn pictures_of_a_batch_are_encoded_as_if_alone() {
    for name in [QWEN3, QWEN3_5, QWEN, LFM] {
        let folder = fixture(name);
        let encoder = load_text(&folder).encoder.unwrap();
        let processor = load_text(&folder).processor;
        let prompts: Vec<Prompt> = cases(&folder)
            .iter()
            .map(|case| processor.prepare(&chat_with_media(&case["request"], &folder)))
            .map(Result::unwrap)
            .collect();
        let inputs: Vec<&EncoderInput> = prompts.iter().flat_map(inputs).collect();
        assert!(inputs.len() > 5);
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let together = encoder.encode(&inputs).unwrap();
        for (input, shared) in inputs.iter().zip(&together) {
            let alone = encoder.encode(&[*input]).unwrap().remove(0);
            assert_eq!(alone.dtype(), DType::F32);
            assert_eq!(values(&alone), values(shared), "{name}");
        }
    }
}

/// What a picture of a size becomes: patches of each input, and tokens of the prompt.
fn sized(model: &Path, size: (u32, u32), limits: PixelLimits) -> (Vec<[usize; 3]>, usize) {
    let processor = load_text(model).processor;
    let media = plain_picture(size.0, size.1, limits);
    let processed = processor.media().unwrap().process(&media).unwrap();
    let tokens = processor
        .tokenizer()
        .encode(&processed.text, false)
        .unwrap();
    let grids = processed.inputs.iter().map(|input| input.grid).collect();
    (grids, tokens.len())
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn sizes(family: &str) -> Value {
    let path = fixture(family).join("media_sizes.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn qwens_size_pictures_as_the_reference() {
    for (family, fixture, nested) in [
        ("qwen3vl", QWEN3, true),
        ("qwen3_5_vl", QWEN3_5, true),
        ("qwen2_5vl", QWEN, false),
    ] {
        check_qwen_sizes(&sizes(family), fixture, nested);
    }
}

/// Holds sizes and token counts to a record of the reference's; newer releases have their areas in `size`.
fn check_qwen_sizes(sizes: &Value, fixture: &str, nested: bool) {
    let model = changed_copy(fixture, "preprocessor_config.json", |config| {
        if nested {
            config["size"] = sizes["size"].clone();
        } else {
            config["min_pixels"] = sizes["size"]["min_pixels"].clone();
            config["max_pixels"] = sizes["size"]["max_pixels"].clone();
        }
    });
    for record in sizes["sizes"].as_array().unwrap() {
        let size = (
            number(&record["width"]) as u32,
            number(&record["height"]) as u32,
        );
        let (grids, tokens) = sized(model.path(), size, PixelLimits::default());
        let grid = [0, 1, 2].map(|axis| number(&record["grid_thw"][axis]));
        assert_eq!(grids, [grid], "{record}");
        assert_eq!(tokens, number(&record["image_tokens"]), "{record}");
    }
}

/// The fixture with the picture settings of the release.
fn released_tiles(thumbnail: bool) -> tempfile::TempDir {
    changed_copy(LFM, "preprocessor_config.json", |config| {
        for (key, value) in [
            ("tile_size", 512),
            ("min_image_tokens", 64),
            ("max_image_tokens", 256),
            ("min_tiles", 2),
            ("max_tiles", 10),
        ] {
            config[key] = json!(value);
        }
        config["max_pixels_tolerance"] = json!(2.0);
        config["use_thumbnail"] = json!(thumbnail);
    })
}

#[test]
fn lfm2_vl_sizes_and_cuts_pictures_as_the_reference() {
    let sizes = sizes("lfm2vl");
    for (thumbnail, key) in [(true, "with_thumbnail"), (false, "without_thumbnail")] {
        let model = released_tiles(thumbnail);
        for record in sizes[key].as_array().unwrap() {
            let size = (
                number(&record["width"]) as u32,
                number(&record["height"]) as u32,
            );
            let (grids, tokens) = sized(model.path(), size, PixelLimits::default());
            let shapes = record["spatial_shapes"].as_array().unwrap().iter();
            let shapes: Vec<_> = shapes
                .map(|shape| [1, number(&shape[0]), number(&shape[1])])
                .collect();
            assert_eq!(grids, shapes, "{record}");
            let want = number(&record["prompt_tokens_with_markers"]);
            assert_eq!(tokens, want, "{record}");
        }
    }
}

#[test]
fn lfm2_vl_keeps_to_the_pixels_that_a_request_allows() {
    let model = released_tiles(true);
    let limits = |least: Option<u64>, most: Option<u64>| PixelLimits {
        min_pixels: least,
        max_pixels: most,
    };
    let grids = |size, limits| sized(model.path(), size, limits).0;
    // Six tiles of 512 pixels do not fit a million: four do.
    let few = grids((1000, 1333), limits(None, Some(1_100_000)));
    assert!(few.len() > 1 && few.len() <= 5, "{few:?}");
    let whole = grids((1000, 1333), limits(None, Some(100_000)));
    assert_eq!(whole.len(), 1);
    assert!(whole[0][1] * whole[0][2] * 256 <= 100_000, "{whole:?}");
    let larger = grids((40, 40), limits(Some(200_000), None));
    assert!(larger[0][1] * larger[0][2] * 256 >= 200_000, "{larger:?}");
    // Pictures that no size rule can bring near the limits are refused.
    let processor = load_text(model.path()).processor;
    let line = plain_picture(3, 60_000, PixelLimits::default());
    let error = processor.media().unwrap().process(&line).unwrap_err();
    assert!(
        matches!(error, EngineError::InvalidRequest { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("3x60000"), "{error}");
}

/// The answer to the last case of a fixture, by a changed copy of it.
fn answer(model: &Path, source: &str) -> Answer {
    let case = cases(&fixture(source)).pop().unwrap();
    let engine = engine(model, EngineOptions::default());
    let chat = chat_with_media(&case["request"], &fixture(source));
    run(
        &engine,
        greedy(engine.processor().prepare(&chat).unwrap(), 8),
    )
}

#[test]
fn later_copies_of_qwen2_5_vl_are_the_same_model() {
    let later = copy_of(QWEN);
    rename_tensors(later.path(), |name| match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None if name.starts_with("visual.") => format!("model.{name}"),
        None => name.to_owned(),
    });
    edit(later.path(), "config.json", |config| {
        let text_keys = [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
        ]
        .into_iter()
        .chain(["num_attention_heads", "num_key_value_heads", "hidden_act"])
        .chain([
            "rms_norm_eps",
            "max_position_embeddings",
            "rope_scaling",
            "rope_theta",
        ]);
        let keys = config.as_object_mut().unwrap();
        let text = text_keys
            .map(|key| (key.to_owned(), keys.remove(key).unwrap()))
            .collect();
        keys.insert("text_config".to_owned(), Value::Object(text));
        let text = &mut config["text_config"];
        text["rope_parameters"] = text["rope_scaling"].take();
        text["rope_parameters"]["rope_theta"] = text["rope_theta"].take();
        // Both names side by side.
        config["vision_config"]["in_channels"] = json!(3);
    });
    assert_eq!(
        answer(later.path(), QWEN).fingerprint(),
        answer(&fixture(QWEN), QWEN).fingerprint()
    );
}

#[test]
fn settings_and_names_of_lfm2_vl_are_found_in_every_layout() {
    let expected = answer(&fixture(LFM), LFM).fingerprint();
    let read = |home: &Path, name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(home.join(name)).unwrap()).unwrap()
    };
    // The first releases: settings that know no tiles, which stand flat beside them.
    let first = copy_of(LFM);
    let settings = read(first.path(), "preprocessor_config.json");
    edit(first.path(), "preprocessor_config.json", |config| {
        *config = json!({
            "image_processor_type": "Siglip2ImageProcessor", "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "max_num_patches": 256, "patch_size": 16, "resample": 2,
        });
    });
    edit(first.path(), "processor_config.json", |config| {
        for key in [
            "tile_size",
            "max_pixels_tolerance",
            "use_thumbnail",
            "encoder_patch_size",
        ] {
            config[key] = settings[key].clone();
        }
        config["min_tiles"] = Value::Null;
    });
    edit(first.path(), "config.json", |config| {
        for key in ["tile_size", "use_thumbnail"] {
            config[key] = Value::Null;
        }
        config["image_token_index"] = config["image_token_id"].take();
    });
    rename_tensors(first.path(), |name| name.replace(".vision_model.", "."));
    assert_eq!(answer(first.path(), LFM).fingerprint(), expected);
    // The latest ones: one object in one file, which counts before all others.
    let latest = copy_of(LFM);
    edit(latest.path(), "processor_config.json", |config| {
        config["image_processor"] = settings.clone();
    });
    edit(latest.path(), "preprocessor_config.json", |config| {
        config["tile_size"] = json!(64);
    });
    edit(latest.path(), "config.json", |config| {
        config["max_tiles"] = json!(2);
    });
    assert_eq!(answer(latest.path(), LFM).fingerprint(), expected);
    // And the settings matter.
    let whole = changed_copy(LFM, "preprocessor_config.json", |config| {
        config["do_image_splitting"] = json!(false);
    });
    assert_ne!(answer(whole.path(), LFM).fingerprint(), expected);
}

#[test]
fn settings_that_no_picture_fits_are_refused_by_key() {
    for (source, file, key, value) in [
        (LFM, "preprocessor_config.json", "tile_size", json!(100)),
        (LFM, "preprocessor_config.json", "tile_size", json!(0)),
        (LFM, "preprocessor_config.json", "min_tiles", json!(9)),
        (
            LFM,
            "preprocessor_config.json",
            "max_image_tokens",
            json!(-1),
        ),
        (
            LFM,
            "preprocessor_config.json",
            "encoder_patch_size",
            json!(14),
        ),
        (LFM, "preprocessor_config.json", "resample", json!(77)),
        (LFM, "config.json", "image_token_id", json!(60_000)),
        (LFM, "config.json", "projector_hidden_size", json!(0)),
        (QWEN, "preprocessor_config.json", "patch_size", json!(16)),
        (
            QWEN,
            "preprocessor_config.json",
            "image_std",
            json!([0, 1, 1]),
        ),
        (QWEN, "config.json", "video_token_id", json!(60_000)),
        (QWEN, "config.json", "use_sliding_window", json!(true)),
    ] {
        let home = changed_copy(source, file, |config| config[key] = value.clone());
        let error = aha_models::load(home.path(), &f32_options()).unwrap_err();
        let key = key.trim_start_matches("encoder_");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    for (source, key, value) in [
        (QWEN, "window_size", json!(7)),
        (QWEN, "num_heads", json!(3)),
        (QWEN, "depth", json!(0)),
        (LFM, "num_patches", json!(65)),
        (LFM, "num_attention_heads", json!(0)),
    ] {
        let home = changed_copy(source, "config.json", |config| {
            config["vision_config"][key] = value.clone();
        });
        let error = aha_models::load(home.path(), &f32_options()).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
}

#[test]
fn chunks_and_caches_change_no_answer_about_pictures() {
    for folder in fixtures(&FAMILIES) {
        let answers = |options: EngineOptions| -> Vec<Vec<(u32, u32)>> {
            let engine = engine(&folder, options);
            cases(&folder)
                .iter()
                .map(|case| {
                    let chat = chat_with_media(&case["request"], &folder);
                    let prompt = engine.processor().prepare(&chat).unwrap();
                    run(&engine, greedy(prompt, 6)).fingerprint()
                })
                .collect()
        };
        let options = |max_batch_tokens, prefix_cache| EngineOptions {
            max_batch_tokens,
            prefix_cache,
            ..EngineOptions::default()
        };
        let expected = answers(options(4096, false));
        for (tokens, cached) in [(1, false), (7, false), (4096, true), (16, true)] {
            let found = answers(options(tokens, cached));
            assert_eq!(found, expected, "{}: {tokens} {cached}", folder.display());
        }
    }
}

#[test]
fn a_second_turn_finds_the_pictures_of_the_first_in_the_cache() {
    for name in [QWEN3, QWEN3_5, QWEN, LFM] {
        let folder = fixture(name);
        let with = engine(&folder, EngineOptions::default());
        let without = engine(
            &folder,
            EngineOptions {
                prefix_cache: false,
                ..EngineOptions::default()
            },
        );
        let case = cases(&folder).into_iter().find(|case| {
            case["name"]
                .as_str()
                .is_some_and(|name| name.contains("exact"))
        });
        let mut request = case.unwrap()["request"].clone();
        let mut first = 0;
        for turn in ["and then?", "really?"] {
            let chat = chat_with_media(&request, &folder);
            let prompt = |engine: &aha_engine::Engine| engine.processor().prepare(&chat).unwrap();
            let plain = run(&without, greedy(prompt(&without), 6));
            let cached = run(&with, greedy(prompt(&with), 6));
            assert_eq!(plain.fingerprint(), cached.fingerprint(), "{name}");
            if first > 0 {
                let usage = cached.finished.usage;
                assert!(usage.cached_tokens + 16 > first, "{name}: {usage:?}");
            }
            first = cached.finished.usage.prompt_tokens;
            let messages = request["messages"].as_array_mut().unwrap();
            messages.push(json!({"role": "assistant", "content": "yes"}));
            messages.push(json!({"role": "user", "content": turn}));
        }
    }
}

#[test]
fn company_changes_no_answer_about_pictures() {
    for folder in fixtures(&FAMILIES) {
        let engine = engine(
            &folder,
            EngineOptions {
                max_batch_tokens: 64,
                ..EngineOptions::default()
            },
        );
        let requests = || {
            cases(&folder).into_iter().map(|case| {
                let chat = chat_with_media(&case["request"], &folder);
                greedy(engine.processor().prepare(&chat).unwrap(), 6)
            })
        };
        let alone: Vec<_> = requests()
            .map(|request| run(&engine, request).fingerprint())
            .collect();
        let together: Vec<_> = requests()
            .map(|request| engine.submit(request).unwrap())
            .collect();
        let together: Vec<_> = together
            .into_iter()
            .map(|generation| support::collect(generation).fingerprint())
            .collect();
        assert_eq!(alone, together, "{}", folder.display());
    }
}
