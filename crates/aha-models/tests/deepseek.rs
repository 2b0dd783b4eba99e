//! DeepSeek-OCR and DeepSeek-OCR-2 against their reference implementations: views, stages, prompts, sizes, answers; and
//! what must not depend on chunks, company or caches, with experts and pages of many views.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{
    EncoderInput, Engine, EngineError, EngineOptions, GenerationRequest, Generator, Media,
    NgramWindow, OcrKind, PageSize, PixelLimits, Prompt,
};
use aha_models::decoder::Decoder;
use aha_models::deepseek_ocr::LanguageConfig;
use aha_models::{Checkpoint, deepseek_ocr, deepseek_ocr2};
use aha_nn::batch::{Batch, EncodedRows, SequenceSlice};
use aha_nn::cache::Cache;
use aha_nn::weights::NameMap;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use support::check::{Stages, check_answer, close, prompt_ids};
use support::copies::changed_copy;
use support::media::{chat_with_media, plain_picture};
use support::{collect, engine, f32_options, fixture, fixtures, golden, greedy, load_text, run};

const FAMILIES: [&str; 2] = ["deepseek_ocr", "deepseek_ocr2"];
const FIRST: &str = "deepseek_ocr/small";
const SECOND: &str = "deepseek_ocr2/small";

fn cases(folder: &Path) -> Vec<Value> {
    golden(folder)["cases"].as_array().unwrap().clone()
}

/// The golden request of a case.
fn request(engine: &Engine, case: &Value, folder: &Path) -> GenerationRequest {
    let asked = &case["request"];
    let chat = chat_with_media(asked, folder);
    let prompt = engine.processor().prepare(&chat).unwrap();
    let mut request = greedy(prompt, number(&asked["max_tokens"]));
    if let Some(size) = asked["no_repeat_ngram_size"].as_u64() {
        request.sampling.no_repeat_ngram_size = size as usize;
    }
    if let Some(window) = asked["vllm_xargs"].as_object() {
        let listed = window["whitelist_token_ids"].as_array().unwrap().iter();
        request.sampling.ngram_window = Some(NgramWindow {
            ngram_size: number(&window["ngram_size"]),
            window_size: number(&window["window_size"]),
            whitelist_token_ids: listed.map(|id| number(id) as u32).collect(),
        });
    }
    request
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
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
            let answer = run(&engine, request(&engine, &case, &folder));
            check_answer(&answer, &case, &name);
            // Places and tags of tables are special tokens, which the family keeps.
            let ids = answer.ids();
            let written = engine.processor().tokenizer().decode(&ids, false);
            assert_eq!(answer.text, written, "{name}");
        }
    }
}

/// A view's patches and their grid through a tower.
enum Tower {
    First(deepseek_ocr::DeepEncoder),
    Second(deepseek_ocr2::DeepEncoderV2),
}

impl Tower {
    fn run(&self, input: &EncoderInput, visit: &mut dyn FnMut(&str, &Tensor)) -> (Tensor, Tensor) {
        match self {
            Self::First(tower) => {
                let (pixels, side) = tower.pixels(input).unwrap();
                (tower.forward(&pixels, side, visit).unwrap(), pixels)
            }
            Self::Second(tower) => {
                let (pixels, side) = tower.pixels(input).unwrap();
                (tower.forward(&pixels, side, visit).unwrap(), pixels)
            }
        }
    }
}

fn parts(name: &str) -> (Decoder, Tower) {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    let weights = checkpoint.weights(NameMap::identity(), &f32_options());
    let weights = weights.unwrap();
    let decoder = LanguageConfig::read(&checkpoint).unwrap().load(&weights);
    let decoder = decoder.unwrap();
    let hidden = decoder.hidden_size();
    let tower = if name == FIRST {
        Tower::First(deepseek_ocr::vision_tower(&checkpoint, &weights, hidden).unwrap())
    } else {
        Tower::Second(deepseek_ocr2::vision_tower(&checkpoint, &weights, hidden).unwrap())
    };
    (decoder, tower)
}

/// Every eighth place along both sides of a square map of any shape, as the large stages were kept.
fn thinned(map: &Tensor) -> Tensor {
    let width = map.dims().last().copied().unwrap();
    let side = (map.elem_count() / width).isqrt();
    let kept: Vec<u32> = (0..side as u32).step_by(8).collect();
    let kept = Tensor::new(kept, &Device::Cpu).unwrap();
    let map = map.reshape((side, side, width)).unwrap();
    map.index_select(&kept, 0)
        .unwrap()
        .index_select(&kept, 1)
        .unwrap()
}

#[test]
fn towers_and_decoders_equal_the_reference_stage_by_stage() {
    for name in [FIRST, SECOND] {
        let folder = fixture(name);
        let stages = Stages::open(&folder.join("stages.safetensors"));
        let processor = load_text(&folder).processor;
        let case = &cases(&folder)[0];
        let prompt = processor
            .prepare(&chat_with_media(&case["request"], &folder))
            .unwrap();
        let (decoder, tower) = parts(name);
        let input = prompt.media[0].input.clone();
        let mut visited = 0;
        let (features, pixels) = tower.run(&input, &mut |stage, got| {
            let Some(want) = stages.find(stage) else {
                return;
            };
            let what = format!("{name} {stage}");
            match stage {
                "sam.out" => close(got, &want, 1e-4, &what),
                _ if stage.starts_with("sam.") => close(&thinned(got), &want, 1e-4, &what),
                _ => close(got, &want, 1e-4, &what),
            }
            visited += 1;
        });
        assert!(visited >= 6, "{visited} stages");
        // Patches are planes of 16 by 16: the first sample of each.
        let want = stages.get("pixel_values").squeeze(0).unwrap();
        let corners = pixels
            .reshape(((), 3, 256))
            .unwrap()
            .narrow(2, 0, 1)
            .unwrap();
        let corners = corners.squeeze(2).unwrap().t().unwrap().contiguous();
        close(&corners.unwrap(), &want, 1e-6, "pixels");
        close(&features, &stages.get("projector"), 1e-4, "projector");
        check_decoder(&decoder, &prompt, &folder, &stages);
    }
}

fn check_decoder(decoder: &Decoder, prompt: &Prompt, folder: &Path, stages: &Stages) {
    let encoder = load_text(folder).encoder.unwrap();
    let values = encoder.encode(&[&prompt.media[0].input]).unwrap().remove(0);
    let length = prompt.token_ids.len();
    let sequence = SequenceSlice {
        query_start: 0,
        query_len: length,
        context_len: length,
        prompt_len: length,
        blocks: (0..length.div_ceil(16) as u32).collect(),
        state_slot: 0,
        axes: None,
    };
    let blocks = sequence.blocks.len();
    let start = prompt.media[0].start;
    let last = [length as u32 - 1];
    let batch = Batch::new(&prompt.token_ids, vec![sequence], &last, 16, &Device::Cpu)
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
        close(&hidden, &stages.get(&stage), 1e-4, &stage);
    }
    let normed = decoder.final_norm(&hidden).unwrap();
    close(&normed, &stages.get("text.norm"), 1e-4, "text.norm");
    let logits = decoder.forward(&batch, &mut cache()).unwrap();
    close(&logits, &stages.get("logits_last"), 1e-3, "logits");
}

/// Views and tokens of a picture under settings.
fn processed(model: &Path, size: (u32, u32), settings: &Value, limits: PixelLimits) -> Sized {
    let processor = load_text(model).processor;
    let media = plain_picture(size.0, size.1, limits)
        .with_settings(settings.as_object().cloned().unwrap_or_default());
    let processed = processor.media().unwrap().process(&media).unwrap();
    let tokens = processor
        .tokenizer()
        .encode(&processed.text, false)
        .unwrap();
    assert_eq!(tokens.len(), processed.inputs[0].num_tokens);
    Sized {
        grid: processed.inputs[0].grid,
        tokens: tokens.len(),
    }
}

#[derive(Debug, PartialEq)]
struct Sized {
    /// Views, and rows and columns of tiles.
    grid: [usize; 3],
    tokens: usize,
}

#[test]
fn pages_are_cut_and_counted_as_by_the_reference() {
    for name in [FIRST, SECOND] {
        let folder = fixture(name);
        let sizes = std::fs::read(folder.join("media_sizes.json")).unwrap();
        let sizes: Value = serde_json::from_slice(&sizes).unwrap();
        let mut checked = 0;
        for (mode, records) in sizes["by_mode"].as_object().unwrap() {
            if mode.contains("at most 6") {
                continue;
            }
            let crop = &records["crop_mode"];
            let settings = json!({
                "base_size": records["base_size"], "image_size": records["image_size"], "crop_mode": crop,
            });
            for record in records["sizes"].as_array().unwrap() {
                let size = (
                    number(&record["width"]) as u32,
                    number(&record["height"]) as u32,
                );
                let found = processed(&folder, size, &settings, PixelLimits::default());
                let tiles = number(&record["tiles"]);
                let grid = &record["tiles_columns_rows"];
                let grid = match tiles {
                    0 => [1, 0, 0],
                    _ => [1 + tiles, number(&grid[1]), number(&grid[0])],
                };
                let tokens = number(&record["image_tokens"]);
                assert_eq!(found, Sized { grid, tokens }, "{mode} {record}");
                checked += 1;
            }
        }
        assert!(checked >= 15, "{checked}");
    }
}

#[test]
fn settings_that_no_view_has_are_refused_by_name() {
    for (name, settings, key) in [
        (
            FIRST,
            json!({"image_size": 700, "crop_mode": false}),
            "image_size",
        ),
        (
            FIRST,
            json!({"image_size": 4096, "crop_mode": false}),
            "image_size",
        ),
        (FIRST, json!({"image_size": 512}), "image_size"),
        (FIRST, json!({"base_size": 0}), "base_size"),
        (FIRST, json!({"base_size": "large"}), "base_size"),
        (FIRST, json!({"crop_mode": 1}), "crop_mode"),
        (
            SECOND,
            json!({"image_size": 640, "crop_mode": false}),
            "image_size",
        ),
        (SECOND, json!({"base_size": 1280}), "base_size"),
    ] {
        let processor = load_text(&fixture(name)).processor;
        let media = plain_picture(50, 40, PixelLimits::default());
        let media = media.with_settings(settings.as_object().unwrap().clone());
        let error = processor.media().unwrap().process(&media).unwrap_err();
        let EngineError::InvalidRequest { param, .. } = &error else {
            panic!("{error}");
        };
        let want = format!("mm_processor_kwargs.{key}");
        assert_eq!(param.as_deref(), Some(want.as_str()), "{settings}");
    }
    // A request may limit the tiles, but not enlarge the views.
    let limits = |least, most| PixelLimits {
        min_pixels: least,
        max_pixels: most,
    };
    let model = fixture(FIRST);
    let found = processed(
        &model,
        (1000, 1333),
        &json!({}),
        limits(None, Some(1_700_000)),
    );
    assert!(found.grid[0] <= 5 && found.grid[0] > 1, "{found:?}");
    let found = processed(
        &model,
        (1000, 1333),
        &json!({}),
        limits(None, Some(262_144)),
    );
    assert_eq!(found.tokens, 273);
    let media = plain_picture(50, 40, limits(Some(1 << 20), None));
    let processor = load_text(&model).processor;
    assert!(processor.media().unwrap().process(&media).is_err());
}

#[test]
fn pages_of_a_batch_are_encoded_as_if_alone() {
    for name in [FIRST, SECOND] {
        let folder = fixture(name);
        let text = load_text(&folder);
        let encoder = text.encoder.unwrap();
        let prompts: Vec<Prompt> = cases(&folder)
            .iter()
            .map(|case| {
                text.processor
                    .prepare(&chat_with_media(&case["request"], &folder))
            })
            .map(Result::unwrap)
            .collect();
        let inputs: Vec<&EncoderInput> = prompts
            .iter()
            .flat_map(|prompt| prompt.media.iter().map(|span| span.input.as_ref()))
            .collect();
        assert!(inputs.len() >= 3);
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let together = encoder.encode(&inputs).unwrap();
        for (input, shared) in inputs.iter().zip(&together) {
            let alone = encoder.encode(&[*input]).unwrap().remove(0);
            assert!(values(&alone) == values(shared), "{name}");
        }
    }
}

#[test]
fn chunks_company_and_caches_change_no_answer() {
    for folder in fixtures(&FAMILIES) {
        let engine_with = |max_batch_tokens, prefix_cache| {
            let options = EngineOptions {
                max_batch_tokens,
                prefix_cache,
                ..EngineOptions::default()
            };
            engine(&folder, options)
        };
        let requests = |engine: &Engine| -> Vec<GenerationRequest> {
            let cases = cases(&folder);
            cases
                .iter()
                .map(|case| request(engine, case, &folder))
                .collect()
        };
        let alone = |engine: &Engine| -> Vec<_> {
            let requests = requests(engine).into_iter();
            requests
                .map(|request| run(engine, request).fingerprint())
                .collect()
        };
        let expected = alone(&engine_with(4096, false));
        for (tokens, cached) in [(7, false), (200, true), (4096, true)] {
            let engine = engine_with(tokens, cached);
            assert_eq!(alone(&engine), expected, "{} {tokens}", folder.display());
            // Once more, from the cache or again.
            let together: Vec<_> = requests(&engine)
                .into_iter()
                .map(|request| engine.submit(request).unwrap())
                .collect();
            let together: Vec<_> = together
                .into_iter()
                .map(|generation| collect(generation).fingerprint())
                .collect();
            assert_eq!(together, expected, "{} {tokens}", folder.display());
        }
    }
}

#[test]
fn tasks_are_asked_as_the_releases_ask_and_read_back_in_pixels() {
    for name in [FIRST, SECOND] {
        let processor = load_text(&fixture(name)).processor;
        let ocr = processor.ocr().unwrap();
        let task = ocr.task("markdown").unwrap();
        assert_eq!(ocr.tasks()[0].name, "markdown");
        let page: Media = plain_picture(40, 30, PixelLimits::default());
        let prompt = processor.prepare(&task.chat(page)).unwrap();
        let end = "\n<|grounding|>Convert the document to markdown.";
        assert!(prompt.text.ends_with(end), "{}", prompt.text);
        let begin = processor.tokenizer().bos_token_id();
        assert_eq!(prompt.token_ids.first().copied(), begin);
        assert_eq!(prompt.media[0].start, 1);
        let ban = task.sampling.ngram_window.as_ref().unwrap();
        assert_eq!((ban.window_size, ban.whitelist_token_ids.len()), (90, 2));
        let size = PageSize {
            width: 999,
            height: 1998,
        };
        let answer = "<|ref|>title<|/ref|><|det|>[[9, 10, 20, 30]]<|/det|>\n# One\n";
        let blocks = ocr.parse(task, answer, size);
        assert_eq!(blocks.len(), 1);
        assert_eq!(blocks[0].kind, OcrKind::Title);
        assert_eq!(blocks[0].bbox, Some([9.0, 20.0, 20.0, 60.0]));
        assert!(
            ocr.task("seal")
                .unwrap_err()
                .to_string()
                .contains("spotting")
        );
    }
}

#[test]
fn pictures_stand_where_the_text_says_or_in_front() {
    let folder = fixture(FIRST);
    let processor = load_text(&folder).processor;
    let case = &cases(&folder)[0]["request"];
    let with_text = |text: &str| {
        let mut request = case.clone();
        let parts = request["messages"][0]["content"].as_array_mut().unwrap();
        for part in parts.iter_mut().filter(|part| part["type"] == "text") {
            part["text"] = json!(text);
        }
        processor.prepare(&chat_with_media(&request, &folder))
    };
    let start = |text: &str| with_text(text).unwrap().media[0].start;
    assert_eq!(start("Free OCR."), 1);
    assert_eq!(start("<image>Free OCR."), 1);
    assert!(start("Read <image> now.") > 1);
    assert!(with_text("<image> and <image>").is_err());
}

#[test]
fn configurations_that_no_release_has_are_refused_by_key() {
    for (name, key, value) in [
        (FIRST, "topk_method", json!("noaux_tc")),
        (FIRST, "use_mla", json!(true)),
        (FIRST, "num_experts_per_tok", json!(1000)),
        (FIRST, "n_routed_experts", json!(0)),
        (SECOND, "moe_layer_freq", json!(2)),
    ] {
        let home = changed_copy(name, "config.json", |config| {
            config["language_config"][key] = value.clone();
        });
        let error = aha_models::load(home.path(), &f32_options()).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    for (name, tower, key, value) in [
        (FIRST, "sam_vit_b", "heads", json!(3)),
        (FIRST, "sam_vit_b", "global_attn_indexes", json!([9])),
        (FIRST, "clip-l-14-224", "layers", json!(0)),
        (FIRST, "clip-l-14-224", "image_size", json!(7)),
        (SECOND, "qwen2-0-5b", "dim", json!(96)),
    ] {
        let home = changed_copy(name, "config.json", |config| {
            config["vision_config"]["width"][tower][key] = value.clone();
        });
        let error = aha_models::load(home.path(), &f32_options()).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    // More layers than there are tensors: one error names them.
    let home = changed_copy(FIRST, "config.json", |config| {
        config["vision_config"]["width"]["sam_vit_b"]["layers"] = json!(5);
    });
    let error = aha_models::load(home.path(), &f32_options()).unwrap_err();
    assert!(error.to_string().contains("blocks.3"), "{error}");
}
