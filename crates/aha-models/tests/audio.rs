//! Families that hear, against their reference implementations: features, stages, prompts, answers, transcripts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{
    AudioInput, Chat, EncoderContent, EncoderInput, Engine, EngineError, EngineOptions, Media,
    MediaContent, MediaReader, Message, Prompt, TextModel, TextProcessor, Transcriber,
    TranscriptionOptions,
};
use aha_models::{Checkpoint, LoadError, fun_asr_nano, glm_asr_nano, qwen3_asr};
use aha_nn::weights::{NameMap, Weights};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use support::check::{Stages, check_answer, close, prompt_ids};
use support::copies::{changed_copy, copy_of, rename_tensors};
use support::{
    Answer, chat, collect, engine, f32_options, fixture, fixtures, golden, greedy, load_text, run,
};

const FAMILIES: [&str; 3] = ["qwen3_asr", "glm_asr_nano", "fun_asr_nano"];
const QWEN: &str = "qwen3_asr/windows";
const GLM: &str = "glm_asr_nano/small";
const FUN: &str = "fun_asr_nano/small";

fn cases(folder: &Path) -> Vec<Value> {
    golden(folder)["cases"].as_array().unwrap().clone()
}

fn recording(path: &Path, input: &AudioInput) -> Arc<Media> {
    let bytes = std::fs::read(path).unwrap();
    Arc::new(MediaReader::default().audio(&bytes, input).unwrap())
}

fn input(processor: &TextProcessor) -> AudioInput {
    processor.media().unwrap().audio_input()
}

fn options(request: &Value) -> TranscriptionOptions {
    let text = |key: &str| request[key].as_str().map(str::to_owned);
    let words = request["hotwords"].as_array().into_iter().flatten();
    TranscriptionOptions {
        language: text("language"),
        context: text("prompt"),
        hotwords: words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect(),
        itn: request["itn"].as_bool(),
    }
}

/// The prompt of a golden case, as the HTTP faces would make it.
fn prompt(
    processor: &TextProcessor,
    transcriber: &dyn Transcriber,
    case: &Value,
    folder: &Path,
) -> Prompt {
    let request = &case["request"];
    let hear = |path: &Value| recording(&folder.join(path.as_str().unwrap()), &input(processor));
    if case["endpoint"] == "/v1/audio/transcriptions" {
        let audio = hear(&request["file"]);
        return transcriber
            .prepare(processor, audio, &options(request))
            .unwrap();
    }
    let mut conversation = chat(request);
    let messages = request["messages"].as_array().unwrap();
    for (turn, message) in conversation.messages.iter_mut().zip(messages) {
        let Value::Array(parts) = &message["content"] else {
            continue;
        };
        let mut filled = Message::new(turn.role.clone());
        for part in parts {
            filled = match part["type"].as_str().unwrap() {
                "text" => filled.with_text(part["text"].as_str().unwrap()),
                _ => filled.with_media(hear(&part["input_audio"]["data"])),
            };
        }
        *turn = filled;
    }
    processor.prepare(&conversation).unwrap()
}

fn first_prompt(folder: &Path) -> Prompt {
    let model = load_text(folder);
    prompt(
        &model.processor,
        model.transcriber.as_deref().unwrap(),
        &cases(folder)[0],
        folder,
    )
}

/// Ids of a golden prompt; Fun-ASR's reference has no token for sound and writes 0 there.
fn expected_ids(expect: &Value, placeholder: u32) -> Vec<u32> {
    let mut ids = prompt_ids(expect);
    if let (Some(begin), Some(count)) = (
        expect["audio_begin"].as_u64(),
        expect["audio_tokens"].as_u64(),
    ) {
        ids[begin as usize..(begin + count) as usize].fill(placeholder);
    }
    ids
}

#[test]
fn prompts_equal_the_reference_token_by_token() {
    for folder in fixtures(&FAMILIES) {
        let TextModel {
            processor,
            transcriber,
            ..
        } = load_text(&folder);
        let placeholder = processor.media().unwrap().placeholder_tokens()[0];
        for case in cases(&folder) {
            let made = prompt(&processor, transcriber.as_deref().unwrap(), &case, &folder);
            let name = format!("{} {}", folder.display(), case["name"]);
            let want = expected_ids(&case["expect"], placeholder);
            assert_eq!(made.token_ids, want, "{name}");
            let tokens: usize = made.media.iter().map(|span| span.input.num_tokens).sum();
            let want = case["expect"]["audio_tokens"].as_u64().unwrap();
            assert_eq!(tokens as u64, want, "{name}");
        }
    }
}

#[test]
fn greedy_answers_and_transcripts_equal_the_reference() {
    for folder in fixtures(&FAMILIES) {
        let engine = engine(&folder, EngineOptions::default());
        let transcriber = engine.transcriber().unwrap();
        for case in cases(&folder) {
            let name = format!("{} {}", folder.display(), case["name"]);
            let made = prompt(engine.processor(), transcriber, &case, &folder);
            let most = case["request"]["max_tokens"].as_u64().unwrap() as usize;
            let answer = run(&engine, greedy(made, most));
            check_answer(&answer, &case, &name);
            if case["endpoint"] == "/v1/audio/transcriptions" {
                let options = options(&case["request"]);
                let transcript = transcriber.transcript(&answer.text, &options);
                let want = case["expect"]["text"].as_str().unwrap().trim();
                assert_eq!(transcript.text.trim(), want, "{name}");
                if let Some(language) = case["expect"]["language"].as_str() {
                    assert_eq!(transcript.language.unwrap_or_default(), language, "{name}");
                }
            }
        }
    }
}

fn inputs(prompt: &Prompt) -> Vec<&EncoderInput> {
    prompt
        .media
        .iter()
        .map(|span| span.input.as_ref())
        .collect()
}

/// An input's features.
fn features(input: &EncoderInput) -> Tensor {
    let EncoderContent::Features { values, shape } = &input.content else {
        panic!("no features")
    };
    Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap()
}

fn weights(folder: &Path) -> (Checkpoint, Weights) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let weights = checkpoint.weights(NameMap::identity(), &f32_options());
    (checkpoint, weights.unwrap())
}

#[test]
fn the_encoder_of_qwen3_asr_equals_the_reference_stage_by_stage() {
    let folder = fixture(QWEN);
    let stages = Stages::open(&folder.join("stages.safetensors"));
    let prompt = first_prompt(&folder);
    let mel = features(inputs(&prompt)[0]).narrow(1, 0, 40).unwrap();
    close(&mel, &stages.get("input_features"), 1e-4, "features");
    let (checkpoint, weights) = weights(&folder);
    let config = checkpoint.config_keys().unwrap();
    let encoder = qwen3_asr::audio_encoder(&config, &weights).unwrap();
    let mut visited = 0;
    let projected = encoder.forward(&inputs(&prompt), |name, got| {
        close(got, &stages.get(&format!("audio.{name}")), 2e-4, name);
        visited += 1;
    });
    let want = stages.get("audio.projected");
    close(&projected.unwrap(), &want, 2e-4, "projected");
    assert_eq!(visited, 3);
}

#[test]
fn the_encoder_of_glm_asr_equals_the_reference_stage_by_stage() {
    let folder = fixture(GLM);
    let stages = Stages::open(&folder.join("stages.safetensors"));
    let prompt = first_prompt(&folder);
    let mel = features(inputs(&prompt)[0]).narrow(1, 0, 40).unwrap();
    let want = stages.get("input_features_valid_plus_8");
    close(&mel, &want, 1e-4, "features");
    let (checkpoint, weights) = weights(&folder);
    let hidden_size = glm_asr_nano::decoder(&checkpoint, &weights)
        .unwrap()
        .hidden_size();
    let encoder = glm_asr_nano::audio_encoder(&checkpoint, &weights, hidden_size).unwrap();
    let mut visited = 0;
    let projected = encoder.forward(&inputs(&prompt), |name, got| {
        let want = stages.get(&format!("audio.{name}_first_160"));
        close(&got.narrow(0, 0, 160).unwrap(), &want, 2e-4, name);
        visited += 1;
    });
    let projected = projected.unwrap().remove(0);
    let want = stages.get("audio.projected_first_40");
    let rows = projected.dim(0).unwrap();
    assert!(rows <= 40, "{rows}");
    let want = want.squeeze(0).unwrap().narrow(0, 0, rows).unwrap();
    close(&projected, &want, 2e-4, "projected");
    assert_eq!(visited, 2);
}

#[test]
fn the_encoder_of_fun_asr_equals_the_reference_stage_by_stage() {
    let folder = fixture(FUN);
    let stages = Stages::open(&folder.join("stages.safetensors"));
    let prompt = first_prompt(&folder);
    let banks = features(inputs(&prompt)[0]);
    close(&banks, &stages.get("lfr_features"), 1e-4, "features");
    let (checkpoint, weights) = weights(&folder);
    let config = checkpoint.config_keys().unwrap();
    let encoder = fun_asr_nano::audio_encoder(&config, &weights).unwrap();
    let mut visited = 0;
    let rows = encoder.forward(&inputs(&prompt), |name, got| {
        let stage = match name {
            "linear2" => "adaptor.linear2".to_owned(),
            "adaptor" => "adaptor".to_owned(),
            name => format!("encoder.{name}"),
        };
        close(got, &stages.get(&stage), 2e-4, name);
        visited += 1;
    });
    assert_eq!(visited, 5);
    let rows = rows.unwrap().remove(0);
    let want = stages.get("adaptor").squeeze(0).unwrap();
    let kept = want.narrow(0, 0, rows.dim(0).unwrap()).unwrap();
    close(&rows, &kept, 2e-4, "kept rows");
}

/// A tone with a beat: something to hear, of any length.
fn tone(samples: usize, period: f32) -> Arc<Media> {
    let values: Vec<f32> = (0..samples)
        .map(|at| {
            let at = at as f32;
            0.4 * (at / period).sin() * (at / 2100.0).cos()
        })
        .collect();
    let content = MediaContent::Audio {
        samples: values,
        sample_rate: 16_000,
    };
    Arc::new(Media::new(content, (samples, period.to_bits())))
}

/// Pieces of one recording, no two of one length.
fn pieces(count: usize) -> Vec<Arc<Media>> {
    (0..count)
        .map(|index| tone(7000 + 2311 * index, 3.0 + index as f32))
        .collect()
}

#[test]
fn recordings_of_a_batch_are_encoded_as_if_alone() {
    for name in [QWEN, GLM, FUN] {
        let model = load_text(&fixture(name));
        let (encoder, processor) = (model.encoder.unwrap(), model.processor);
        let count = if name == GLM { 3 } else { 16 };
        let processed: Vec<_> = pieces(count)
            .iter()
            .map(|piece| processor.media().unwrap().process(piece).unwrap())
            .collect();
        let inputs: Vec<&EncoderInput> = processed.iter().flat_map(|one| &one.inputs).collect();
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let together = encoder.encode(&inputs).unwrap();
        for (input, shared) in inputs.iter().zip(&together) {
            let alone = encoder.encode(&[*input]).unwrap().remove(0);
            assert_eq!(alone.dtype(), DType::F32);
            assert_eq!(alone.dim(0).unwrap(), input.num_tokens);
            assert_eq!(values(&alone), values(shared), "{name}");
        }
    }
}

fn transcription(engine: &Engine, piece: &Arc<Media>, options: &TranscriptionOptions) -> Prompt {
    engine
        .transcriber()
        .unwrap()
        .prepare(engine.processor(), piece.clone(), options)
        .unwrap()
}

#[test]
fn sixteen_pieces_together_give_the_bits_of_each_alone() {
    for name in [QWEN, GLM, FUN] {
        let pieces = pieces(if name == GLM { 6 } else { 16 });
        let plain = TranscriptionOptions::default();
        let alone: Vec<Answer> = {
            let engine = engine(&fixture(name), EngineOptions::default());
            let one = |piece| run(&engine, greedy(transcription(&engine, piece, &plain), 12));
            pieces.iter().map(one).collect()
        };
        let engine = engine(&fixture(name), EngineOptions::default());
        let submitted: Vec<_> = pieces
            .iter()
            .map(|piece| engine.submit(greedy(transcription(&engine, piece, &plain), 12)))
            .map(Result::unwrap)
            .collect();
        for (generation, alone) in submitted.into_iter().zip(&alone) {
            assert_eq!(
                collect(generation).fingerprint(),
                alone.fingerprint(),
                "{name}"
            );
        }
    }
}

/// The field that a request is refused for, and why.
fn refusal(name: &str, audio: Arc<Media>, options: &TranscriptionOptions) -> (String, String) {
    let model = load_text(&fixture(name));
    let transcriber = model.transcriber.unwrap();
    match transcriber.prepare(&model.processor, audio, options) {
        Err(EngineError::InvalidRequest {
            param: Some(param),
            message,
        }) => (param, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn options_that_a_model_does_not_take_are_refused_by_name() {
    let audio = || tone(16_000, 4.0);
    let base = TranscriptionOptions::default();
    let klingon = TranscriptionOptions {
        language: Some("tlh".to_owned()),
        ..base.clone()
    };
    let (param, message) = refusal(QWEN, audio(), &klingon);
    assert_eq!(param, "language");
    assert!(message.contains("\"tlh\"") && message.contains("Cantonese"));
    let itn = TranscriptionOptions {
        itn: Some(false),
        ..base.clone()
    };
    assert_eq!(refusal(QWEN, audio(), &itn).0, "itn");
    assert_eq!(refusal(GLM, audio(), &itn).0, "itn");
    let words = TranscriptionOptions {
        hotwords: vec!["Ada".to_owned()],
        ..base.clone()
    };
    assert_eq!(refusal(GLM, audio(), &words).0, "hotwords");
    for (name, placeholder) in [
        (QWEN, "<|audio_pad|>"),
        (GLM, "<|pad|>"),
        (FUN, "<|object_ref_start|>"),
    ] {
        let options = TranscriptionOptions {
            context: Some(format!("a {placeholder} b")),
            ..base.clone()
        };
        let (param, message) = refusal(name, audio(), &options);
        assert_eq!(param, "prompt");
        assert!(message.contains(placeholder), "{message}");
    }
}

#[test]
fn recordings_of_no_length_or_too_much_are_refused() {
    let plain = TranscriptionOptions::default();
    for name in [QWEN, GLM, FUN] {
        for samples in [0, 1, 120] {
            let (param, message) = refusal(name, tone(samples, 4.0), &plain);
            assert_eq!(param, "file", "{name}: {message}");
        }
        let most = input(&load_text(&fixture(name)).processor).max_seconds as usize;
        let (param, message) = refusal(name, tone((most + 1) * 16_000, 4.0), &plain);
        assert_eq!(param, "file");
        assert!(message.contains(&most.to_string()), "{message}");
    }
}

#[test]
fn other_rates_are_converted() {
    let model = load_text(&fixture(QWEN));
    let media = model.processor.media().unwrap();
    let content = MediaContent::Audio {
        samples: vec![0.1; 48_000],
        sample_rate: 48_000,
    };
    let processed = media.process(&Media::new(content, 1)).unwrap();
    assert_eq!(processed.inputs[0].grid, [1, 1, 100]);
    assert_eq!(processed.inputs[0].num_tokens, 13);
}

#[test]
fn hotwords_and_context_are_the_system_turn_of_qwen3_asr() {
    let model = load_text(&fixture(QWEN));
    let options = TranscriptionOptions {
        context: Some("A talk on engines.".to_owned()),
        hotwords: vec!["Ada".to_owned(), "Babbage".to_owned()],
        ..TranscriptionOptions::default()
    };
    let prompt = model
        .transcriber
        .unwrap()
        .prepare(&model.processor, tone(16_000, 4.0), &options)
        .unwrap();
    let system = "<|im_start|>system\nA talk on engines.\nAda, Babbage<|im_end|>\n";
    assert!(prompt.text.starts_with(system), "{}", prompt.text);
}

#[test]
fn what_is_being_written_of_the_language_is_no_text_yet() {
    let model = load_text(&fixture(QWEN));
    let transcriber = model.transcriber.unwrap();
    let free = TranscriptionOptions::default();
    let forced = TranscriptionOptions {
        language: Some("en".to_owned()),
        ..TranscriptionOptions::default()
    };
    assert_eq!(transcriber.text_so_far("language Eng", &free), "");
    let whole = "language English<asr_text>Hi";
    assert_eq!(transcriber.text_so_far(whole, &free), "Hi");
    assert_eq!(transcriber.text_so_far("Hi", &forced), "Hi");
    let named = transcriber.transcript("Hi ", &forced);
    assert_eq!(named.text, "Hi");
    assert_eq!(named.language.as_deref(), Some("English"));
}

/// The answer to the first case of a fixture by a changed copy of it.
fn answer(model: &Path, source: &str) -> Answer {
    let engine = engine(model, EngineOptions::default());
    let case = &cases(&fixture(source))[0];
    let transcriber = engine.transcriber().unwrap();
    let made = prompt(engine.processor(), transcriber, case, &fixture(source));
    run(&engine, greedy(made, 8))
}

#[test]
fn a_tied_head_may_be_left_out() {
    let expected = answer(&fixture(QWEN), QWEN).fingerprint();
    let without = copy_of(QWEN);
    // A name that nobody asks for is as good as none.
    rename_tensors(without.path(), |name| {
        name.replace("thinker.lm_head.weight", "unused")
    });
    assert_eq!(answer(without.path(), QWEN).fingerprint(), expected);
}

#[test]
fn what_is_no_recogniser_is_told_apart() {
    let reason = |folder: &Path| match aha_models::load(folder, &f32_options()) {
        Err(error @ LoadError::Config { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let aligner = changed_copy(QWEN, "config.json", |config| {
        config["thinker_config"]["model_type"] = json!("qwen3_forced_aligner");
    });
    assert!(reason(aligner.path()).contains("aligner"));
    let early = changed_copy(GLM, "config.json", |config| {
        config["whisper_config"] = json!({});
    });
    assert!(reason(early.path()).contains("download the release"));
    let windows = changed_copy(QWEN, "config.json", |config| {
        config["thinker_config"]["audio_config"]["n_window_infer"] = json!(7);
    });
    assert!(reason(windows.path()).contains("n_window_infer"));
    let outside = copy_of(FUN);
    let yaml = outside.path().join("config.yaml");
    let text = std::fs::read_to_string(&yaml).unwrap();
    let text = text.replace(
        "init_param_path: Qwen3-0.6B",
        "init_param_path: ../elsewhere",
    );
    std::fs::write(&yaml, text).unwrap();
    assert!(reason(outside.path()).contains("../elsewhere"));
}

#[test]
fn conversations_without_sound_are_answered_too() {
    for name in [QWEN, GLM, FUN] {
        let processor = load_text(&fixture(name)).processor;
        let prompt = processor.prepare(&Chat::user("hello")).unwrap();
        assert!(prompt.media.is_empty() && !prompt.token_ids.is_empty());
    }
}

#[test]
fn chunks_and_caches_change_no_answer_about_recordings() {
    for folder in fixtures(&FAMILIES) {
        let answers = |options: EngineOptions| -> Vec<Vec<(u32, u32)>> {
            let engine = engine(&folder, options);
            let transcriber = engine.transcriber().unwrap();
            // Twice: the second time the prefix cache knows the recording, where it is on.
            let both = [cases(&folder), cases(&folder)].concat();
            both.iter()
                .map(|case| {
                    let made = prompt(engine.processor(), transcriber, case, &folder);
                    run(&engine, greedy(made, 6)).fingerprint()
                })
                .collect()
        };
        let options = |max_batch_tokens, prefix_cache| EngineOptions {
            max_batch_tokens,
            prefix_cache,
            ..EngineOptions::default()
        };
        let expected = answers(options(4096, false));
        for (tokens, cached) in [(7, false), (4096, true), (16, true)] {
            let found = answers(options(tokens, cached));
            assert_eq!(found, expected, "{}: {tokens} {cached}", folder.display());
        }
    }
}

#[test]
fn a_transcription_that_nobody_waits_for_gives_everything_back() {
    let engine = engine(
        &fixture(QWEN),
        EngineOptions {
            max_batch_tokens: 16,
            ..EngineOptions::default()
        },
    );
    let plain = TranscriptionOptions::default();
    for piece in pieces(8) {
        let request = greedy(transcription(&engine, &piece, &plain), 400);
        drop(engine.submit(request).unwrap());
    }
    support::wait_until_idle(&engine);
    let status = engine.status();
    assert_eq!(status.free_blocks, status.total_blocks);
    let last = run(
        &engine,
        greedy(transcription(&engine, &pieces(1)[0], &plain), 5),
    );
    assert_eq!(last.tokens.len(), 5);
}
