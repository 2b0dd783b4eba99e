//! Families that read documents, against their reference implementations: pixels, stages, prompts, sizes, answers; and
//! what they can be asked by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{
    EncoderInput, EngineOptions, GenerationRequest, Generator, OcrKind, PageSize, PixelLimits,
    Prompt,
};
use aha_models::decoder::Decoder;
use aha_models::vision::patch_places;
use aha_models::{Checkpoint, glm_ocr, hunyuan_ocr, paddleocr_vl};
use aha_nn::batch::{Batch, EncodedRows, SequenceSlice};
use aha_nn::cache::Cache;
use aha_nn::weights::NameMap;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use support::check::{Stages, check_answer, close, prompt_ids};
use support::copies::{changed_copy, copy_of, edit, rename_tensors};
use support::media::{chat_with_media, page, plain_picture};
use support::{collect, engine, f32_options, fixture, fixtures, golden, greedy, load_text, run};

const FAMILIES: [&str; 3] = ["paddleocr_vl", "glm_ocr", "hunyuan_ocr"];
const PADDLE: &str = "paddleocr_vl/spotting";
const GLM: &str = "glm_ocr/mtp";
const HUNYUAN: &str = "hunyuan_ocr/flat";

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

/// The golden request of a case.
fn request(engine: &aha_engine::Engine, case: &Value, folder: &Path) -> GenerationRequest {
    let asked = &case["request"];
    let prompt = engine
        .processor()
        .prepare(&chat_with_media(asked, folder))
        .unwrap();
    let mut request = greedy(prompt, asked["max_tokens"].as_u64().unwrap() as usize);
    if let Some(penalty) = asked["repetition_penalty"].as_f64() {
        request.sampling.repetition_penalty = penalty as f32;
    }
    request
}

#[test]
fn greedy_answers_equal_the_reference_with_their_log_probabilities() {
    for folder in fixtures(&FAMILIES) {
        let engine = engine(&folder, EngineOptions::default());
        for case in cases(&folder) {
            let name = format!("{} {}", folder.display(), case["name"]);
            check_answer(
                &run(&engine, request(&engine, &case, &folder)),
                &case,
                &name,
            );
        }
    }
}

/// A tower as the tests see it.
trait Tower {
    fn pixels(&self, inputs: &[&EncoderInput]) -> (Tensor, Vec<[usize; 3]>);
    fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        visit: &mut dyn FnMut(&str, &Tensor),
    ) -> Tensor;
}

macro_rules! towers {
    ($($tower:ty),*) => {$(
        impl Tower for $tower {
            fn pixels(&self, inputs: &[&EncoderInput]) -> (Tensor, Vec<[usize; 3]>) {
                self.pixels(inputs).unwrap()
            }

            fn forward(
                &self,
                pixels: &Tensor,
                grids: &[[usize; 3]],
                visit: &mut dyn FnMut(&str, &Tensor),
            ) -> Tensor {
                self.forward(pixels, grids, visit).unwrap()
            }
        }
    )*};
}
towers!(
    paddleocr_vl::VisionTower,
    glm_ocr::VisionTower,
    hunyuan_ocr::VisionTower
);

/// Decoder and tower of a checkpoint.
fn parts(name: &str) -> (Decoder, Box<dyn Tower>) {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    let options = f32_options();
    let plain = || checkpoint.weights(NameMap::identity(), &options).unwrap();
    match name {
        PADDLE => {
            let weights = plain();
            let decoder = paddleocr_vl::decoder(&checkpoint, &weights).unwrap();
            let hidden = decoder.hidden_size();
            let tower = paddleocr_vl::vision_tower(&checkpoint, &weights, hidden).unwrap();
            (decoder, Box::new(tower))
        }
        GLM => {
            let weights = plain();
            let decoder = glm_ocr::decoder(&checkpoint, &weights).unwrap();
            let tower = glm_ocr::vision_tower(&checkpoint, &weights).unwrap();
            (decoder, Box::new(tower))
        }
        _ => {
            let weights = hunyuan_ocr::open_weights(&checkpoint, &options).unwrap();
            let decoder = hunyuan_ocr::decoder(&checkpoint, &weights).unwrap();
            let hidden = decoder.hidden_size();
            let tower = hunyuan_ocr::vision_tower(&checkpoint, &weights, hidden).unwrap();
            (decoder, Box::new(tower))
        }
    }
}

/// The first case of a fixture: the one whose stages were kept.
fn first_prompt(name: &str) -> Prompt {
    let folder = fixture(name);
    let processor = load_text(&folder).processor;
    let chat = chat_with_media(&cases(&folder)[0]["request"], &folder);
    processor.prepare(&chat).unwrap()
}

fn inputs(prompt: &Prompt) -> Vec<&EncoderInput> {
    let spans = prompt.media.iter();
    spans.map(|span| span.input.as_ref()).collect()
}

#[test]
fn towers_and_decoders_equal_the_reference_stage_by_stage() {
    for (name, prefix, output, row_by_row) in [
        (PADDLE, "vision.", "projector", true),
        (GLM, "vision.", "vision.merger", false),
        (HUNYUAN, "vit.", "vit.perceive", true),
    ] {
        let stages = Stages::open(&fixture(name).join("stages.safetensors"));
        let prompt = first_prompt(name);
        check_positions(&prompt, &stages, name);

        let (decoder, tower) = parts(name);
        let (pixels, grids) = tower.pixels(&inputs(&prompt));
        // Patches of some references lie row by row, ours in the cells that become a token.
        let (_, rows) = patch_places(&grids, if row_by_row { 2 } else { 1 });
        let ours = |stage: Tensor, rows: &[u32]| {
            let width = stage.dims().iter().skip_while(|size| **size == 1).skip(1);
            let width: usize = width.product();
            let rows = Tensor::new(rows, &Device::Cpu).unwrap();
            stage
                .reshape(((), width))
                .unwrap()
                .index_select(&rows, 0)
                .unwrap()
        };
        // Two rows of patches were kept.
        let kept = 2 * grids[0][2];
        let first = pixels.narrow(0, 0, kept).unwrap();
        close(
            &first,
            &ours(stages.get("pixel_values"), &rows[..kept]),
            1e-6,
            "pixels",
        );
        let mut visited = 0;
        let features = tower.forward(&pixels, &grids, &mut |stage, got| {
            let want = stages.get(&format!("{prefix}{stage}"));
            let whole = got.dims2().unwrap().0 == rows.len();
            let want = if whole { ours(want, &rows) } else { want };
            close(got, &want, 1e-4, &format!("{name} {stage}"));
            visited += 1;
        });
        assert!(visited >= 3, "{name}");
        close(&features, &stages.get(output), 1e-4, output);
        check_decoder(&decoder, &prompt, features, &stages, name);
    }
}

fn check_positions(prompt: &Prompt, stages: &Stages, name: &str) {
    let axes = prompt.axes.as_ref().unwrap();
    let positions: Vec<Vec<Vec<i64>>> = stages.get("position_ids").to_vec3().unwrap();
    for (axis, positions) in positions.iter().enumerate() {
        let found: Vec<i64> = (0..positions[0].len())
            .map(|index| i64::from(axes.on(axis, index)))
            .collect();
        assert_eq!(found, positions[0], "{name}, axis {axis}");
        let delta = stages.get("rope_delta").to_vec2::<i64>().unwrap()[0][0];
        let end = prompt.token_ids.len();
        assert_eq!(i64::from(axes.on(axis, end)), end as i64 + delta, "{name}");
        assert_eq!(axes.on(axis, end + 7), axes.on(axis, end) + 7, "{name}");
    }
}

fn check_decoder(decoder: &Decoder, prompt: &Prompt, values: Tensor, stages: &Stages, name: &str) {
    let length = prompt.token_ids.len();
    let sequence = SequenceSlice {
        query_start: 0,
        query_len: length,
        context_len: length,
        prompt_len: length,
        blocks: (0..length.div_ceil(16) as u32).collect(),
        state_slot: 0,
        axes: prompt.axes.clone(),
    };
    let blocks = sequence.blocks.len();
    let last = length as u32 - 1;
    let start = prompt.media[0].start;
    let batch = Batch::new(&prompt.token_ids, vec![sequence], &[last], 16, &Device::Cpu)
        .unwrap()
        .with_encoded(vec![EncodedRows { start, values }])
        .unwrap();
    let cache = || Cache::new(&decoder.cache_spec(), blocks, 16, 1, &Device::Cpu).unwrap();
    let rotation = decoder.rotation(&batch).unwrap();
    let mut hidden = decoder.embed(&batch).unwrap();
    let mut layers = cache();
    for (index, (layer, cache)) in decoder.layers().iter().zip(layers.layers_mut()).enumerate() {
        hidden = layer.forward(&hidden, &rotation, &batch, cache).unwrap();
        let stage = format!("text.layer_{index}");
        close(
            &hidden,
            &stages.get(&stage),
            1e-4,
            &format!("{name} {stage}"),
        );
    }
    let normed = decoder.final_norm(&hidden).unwrap();
    close(&normed, &stages.get("text.norm"), 1e-4, name);
    let logits = decoder.forward(&batch, &mut cache()).unwrap();
    close(&logits, &stages.get("logits_last"), 1e-3, name);
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Records of a family's sizes file, each with the settings that it was made with.
fn sizes(family: &str) -> Vec<(Value, Value)> {
    let path = fixture(family).join("media_sizes.json");
    let sizes: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let releases = sizes["by_release"].as_object().unwrap().clone();
    releases
        .into_iter()
        .flat_map(|(_, release)| {
            let records = release["sizes"].as_array().unwrap().clone();
            records
                .into_iter()
                .map(move |record| (release.clone(), record))
        })
        .collect()
}

#[test]
fn pictures_are_sized_as_by_the_reference() {
    for (name, side) in [(PADDLE, 14), (GLM, 14), (HUNYUAN, 16)] {
        let records = sizes(name.split_once('/').unwrap().0);
        assert!(records.len() >= 5, "{name}");
        for (release, record) in records {
            let model = changed_copy(name, "preprocessor_config.json", |config| {
                for key in ["min_pixels", "max_pixels", "size"] {
                    if !release[key].is_null() {
                        config[key] = release[key].clone();
                    }
                }
            });
            let processor = load_text(model.path()).processor;
            let (width, height) = (number(&record["width"]), number(&record["height"]));
            let picture = plain_picture(width as u32, height as u32, PixelLimits::default());
            let processed = processor.media().unwrap().process(&picture).unwrap();
            let input = &processed.inputs[0];
            assert_eq!(
                input.grid,
                [0, 1, 2].map(|axis| number(&record["grid_thw"][axis]))
            );
            assert_eq!(
                input.grid[2] * side,
                number(&record["resized"][0]),
                "{record}"
            );
            assert_eq!(
                input.grid[1] * side,
                number(&record["resized"][1]),
                "{record}"
            );
            assert_eq!(
                input.num_tokens,
                number(&record["image_tokens"]),
                "{name} {record}"
            );
        }
    }
}

#[test]
fn extreme_pictures_are_refused_and_limits_of_a_request_kept() {
    for name in [PADDLE, GLM, HUNYUAN] {
        let processor = load_text(&fixture(name)).processor;
        let media = processor.media().unwrap();
        let line = plain_picture(6000, 20, PixelLimits::default());
        let error = media.process(&line).unwrap_err().to_string();
        assert!(error.contains("6000x20"), "{name}: {error}");
        let limits = PixelLimits {
            min_pixels: None,
            max_pixels: Some(20_000),
        };
        let small = media.process(&plain_picture(400, 300, limits)).unwrap();
        let [_, rows, columns] = small.inputs[0].grid;
        assert!(rows * columns * 256 <= 26_000, "{name}: {rows} x {columns}");
    }
}

#[test]
fn eight_pages_at_once_are_read_as_one_by_one() {
    for name in [PADDLE, GLM, HUNYUAN] {
        let engine = engine(&fixture(name), EngineOptions::default());
        let ocr = engine.processor().ocr().unwrap().clone();
        let task = &ocr.tasks()[0];
        let pages = || {
            (0..8).map(|seed| {
                let picture = page(90 + 20 * (seed % 3), 70 + 30 * (seed % 4), seed);
                let prompt = engine.processor().prepare(&task.chat(picture)).unwrap();
                let mut request = greedy(prompt, 10);
                request.sampling = task.sampling.clone();
                request
            })
        };
        let alone: Vec<_> = pages()
            .map(|request| run(&engine, request).fingerprint())
            .collect();
        assert!(alone.iter().any(|answer| *answer != alone[0]), "{name}");
        let together: Vec<_> = pages()
            .map(|request| engine.submit(request).unwrap())
            .collect();
        let together: Vec<_> = together
            .into_iter()
            .map(|generation| collect(generation).fingerprint())
            .collect();
        assert_eq!(alone, together, "{name}");
    }
}

#[test]
fn chunks_and_caches_change_no_answer_about_pages() {
    for folder in fixtures(&FAMILIES) {
        let answers = |max_batch_tokens, prefix_cache| -> Vec<Vec<(u32, u32)>> {
            let options = EngineOptions {
                max_batch_tokens,
                prefix_cache,
                ..EngineOptions::default()
            };
            let engine = engine(&folder, options);
            let cases = cases(&folder);
            let twice = cases.iter().chain(&cases);
            twice
                .map(|case| run(&engine, request(&engine, case, &folder)).fingerprint())
                .collect()
        };
        let expected = answers(4096, false);
        for (tokens, cached) in [(1, false), (7, false), (4096, true), (16, true)] {
            let found = answers(tokens, cached);
            assert_eq!(found, expected, "{}: {tokens} {cached}", folder.display());
        }
    }
}

#[test]
fn every_family_can_be_asked_by_name() {
    let size = PageSize {
        width: 220,
        height: 160,
    };
    for (name, tasks) in [
        (PADDLE, "ocr table formula chart seal spotting"),
        (GLM, "ocr table formula"),
        (HUNYUAN, "markdown ocr table formula chart spotting"),
    ] {
        let processor = load_text(&fixture(name)).processor;
        let ocr = processor.ocr().unwrap();
        let names: Vec<&str> = ocr.tasks().iter().map(|task| task.name).collect();
        assert_eq!(names.join(" "), tasks);
        let picture = Arc::new(page(220, 160, 1));
        for task in ocr.tasks() {
            let prompt = processor.prepare(&task.chat(picture.clone())).unwrap();
            assert_eq!(prompt.media.len(), 1, "{name} {}", task.name);
            assert!(prompt.text.contains(&task.prompt), "{name} {}", task.name);
            let blocks = ocr.parse(task, "12", size);
            assert_eq!(blocks.len(), 1, "{name} {}", task.name);
            assert!(blocks[0].text.contains("12"), "{name} {}", task.name);
        }
        let table = ocr.parse(ocr.task("table").unwrap(), "<table></table>", size);
        assert_eq!(table[0].kind, OcrKind::Table, "{name}");
    }
}

/// The answer to the first case by a changed copy of a fixture.
fn answer(model: &Path, source: &str) -> Vec<(u32, u32)> {
    let folder = fixture(source);
    let engine = engine(model, EngineOptions::default());
    let case = &cases(&folder)[0];
    run(&engine, request(&engine, case, &folder)).fingerprint()
}

#[test]
fn later_copies_of_paddleocr_vl_are_the_same_model() {
    let later = copy_of(PADDLE);
    rename_tensors(later.path(), |name| {
        for (from, to) in [
            ("visual.", "model.visual."),
            ("mlp_AR.", "model.projector."),
            ("model.", "model.language_model."),
        ] {
            if let Some(rest) = name.strip_prefix(from) {
                return format!("{to}{rest}");
            }
        }
        name.to_owned()
    });
    edit(later.path(), "config.json", |config| {
        let keys = config.as_object_mut().unwrap();
        let whole = [
            "architectures",
            "image_token_id",
            "vision_config",
            "model_type",
        ];
        let (kept, text) = keys
            .clone()
            .into_iter()
            .partition(|(key, _)| whole.contains(&key.as_str()));
        *keys = kept;
        keys.insert("text_config".to_owned(), Value::Object(text));
        let text = &mut config["text_config"];
        text["rope_parameters"] = text["rope_scaling"].take();
        text["rope_parameters"]["rope_theta"] = text["rope_theta"].take();
        // Nothing says that the head is tied, and there is one.
        text["tie_word_embeddings"] = Value::Null;
    });
    edit(later.path(), "preprocessor_config.json", |config| {
        for key in ["min_pixels", "max_pixels"] {
            config["size"][key] = config[key].take();
        }
    });
    assert_eq!(
        answer(later.path(), PADDLE),
        answer(&fixture(PADDLE), PADDLE)
    );
}

#[test]
fn both_layouts_of_hunyuan_ocr_are_the_same_model() {
    let expected = answer(&fixture(HUNYUAN), HUNYUAN);
    let later = copy_of(HUNYUAN);
    rename_tensors(later.path(), |name| match name.strip_prefix("vit.") {
        Some(rest) => format!("model.vit.{rest}"),
        None => name.to_owned(),
    });
    edit(later.path(), "config.json", |config| {
        let keys = config.as_object_mut().unwrap();
        let (kept, text) = keys.clone().into_iter().partition(|(key, _)| {
            key.starts_with("image_") || ["architectures", "vision_config"].contains(&key.as_str())
        });
        *keys = kept;
        keys.insert("text_config".to_owned(), Value::Object(text));
        let text = &mut config["text_config"];
        let mut rope = text["rope_scaling"].take();
        rope["mrope_section"] = rope["xdrope_section"].take();
        rope["rope_type"] = json!("dynamic");
        rope["rope_theta"] = text["rope_theta"].take();
        text["rope_parameters"] = rope;
        text["attention_head_dim"] = text["head_dim"].take();
    });
    assert_eq!(answer(later.path(), HUNYUAN), expected);

    // A template that writes the image token alone: what stands around it is added.
    let bare = changed_copy(HUNYUAN, "tokenizer_config.json", |config| {
        let template = config["chat_template"].as_str().unwrap();
        let around = [100, 101].map(|number| format!("<｜hy_place▁holder▁no▁{number}｜>"));
        let bare = around.iter().fold(template.to_owned(), |template, mark| {
            template.replace(mark, "")
        });
        assert_ne!(bare, template);
        config["chat_template"] = json!(bare);
    });
    assert_eq!(answer(bare.path(), HUNYUAN), expected);
}

#[test]
fn configurations_that_no_release_has_are_refused_with_their_key() {
    let text = |key: &'static str, value: Value| ("/", key, value);
    let vision = |key: &'static str, value: Value| ("/vision_config", key, value);
    for (source, (place, key, value)) in [
        (PADDLE, vision("image_size", json!(0))),
        (PADDLE, vision("num_attention_heads", json!(5))),
        (PADDLE, text("head_dim", json!(7))),
        (GLM, vision("depth", json!(100_000))),
        (GLM, vision("temporal_patch_size", json!(0))),
        (HUNYUAN, vision("interpolate_mode", json!("bicubic"))),
        (HUNYUAN, vision("max_image_size", json!(1 << 20))),
        (HUNYUAN, ("/rope_scaling", "alpha", Value::Null)),
        (
            HUNYUAN,
            ("/rope_scaling", "xdrope_section", json!([1, 1, 1, 1])),
        ),
    ] {
        let home = changed_copy(source, "config.json", |config| {
            let object = match place {
                "/" => config,
                place => config.pointer_mut(place).unwrap(),
            };
            object[key] = value.clone();
        });
        let error = aha_models::load(home.path(), &f32_options()).unwrap_err();
        let shown = if key == "num_attention_heads" {
            "heads"
        } else {
            key
        };
        assert!(error.to_string().contains(shown), "{key}: {error}");
    }
}
