//! VoxCPM against its reference: prompts, stages, whole waves, and what must not change them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{
    EngineError, EngineOptions, FinishReason, LoadedModel, PatchInput, SoundState, Speaker, Speech,
    SpeechEngine, SpeechEvent, SpeechFinished, SpeechModel, SpeechParams, SpeechRequest, Voice,
    VoiceError, VoiceStore,
};
use aha_media::audio::{DecodeOptions, ResampleMethod, decode_mono};
use aha_models::Checkpoint;
use aha_models::voxcpm::VoxCpmSpeaker;
use aha_nn::batch::{Batch, EncodedRows, SequenceSlice};
use aha_nn::cache::Cache;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::check::{Stages, close};
use support::{f32_options, fixture, fixtures, golden};

const FAMILIES: [&str; 2] = ["voxcpm", "voxcpm1_5"];

fn model(path: &Path) -> SpeechModel {
    match aha_models::load(path, &f32_options()).unwrap() {
        LoadedModel::Speak(model) => model,
        other => panic!("{other:?}"),
    }
}

fn engine_with(path: &Path, options: EngineOptions) -> SpeechEngine {
    SpeechEngine::start(model(path), &options).unwrap()
}

fn engine(path: &Path) -> SpeechEngine {
    engine_with(path, EngineOptions::default())
}

fn base() -> PathBuf {
    fixture("voxcpm/base")
}

fn speaker(path: &Path) -> VoxCpmSpeaker {
    VoxCpmSpeaker::load(&Checkpoint::open(path).unwrap(), &f32_options()).unwrap()
}

/// The request of a golden case, as the HTTP face would build it.
fn request(engine: &SpeechEngine, folder: &Path, case: &Value) -> SpeechRequest {
    let asked = &case["request"];
    let count = |name: &str| asked[name].as_u64().map(|value| value as usize);
    let default = SpeechParams::default();
    let voice = asked["ref_audio"].as_str().map(|file| {
        let audio = std::fs::read(folder.join(file)).unwrap();
        let text = asked["ref_text"].as_str().unwrap();
        engine
            .reference(text, &audio, &DecodeOptions::default())
            .unwrap()
    });
    SpeechRequest {
        voice,
        params: SpeechParams {
            temperature: 0.0,
            guidance: asked["cfg_value"].as_f64().unwrap() as f32,
            steps: count("inference_timesteps").unwrap(),
            min_patches: count("min_len").unwrap_or(default.min_patches),
            max_patches: count("max_tokens"),
            ..default
        },
        ..SpeechRequest::new(asked["input"].as_str().unwrap())
    }
}

struct Spoken {
    samples: Vec<f32>,
    pieces: usize,
    finished: SpeechFinished,
}

fn collect(mut speech: Speech) -> Result<Spoken, EngineError> {
    let (mut samples, mut pieces) = (Vec::new(), 0);
    loop {
        match speech.blocking_next().expect("an end") {
            SpeechEvent::Audio(more) => {
                samples.extend(more);
                pieces += 1;
            }
            SpeechEvent::Finished(finished) => {
                assert!(speech.blocking_next().is_none());
                assert_eq!(finished.samples, samples.len());
                return Ok(Spoken {
                    samples,
                    pieces,
                    finished,
                });
            }
            SpeechEvent::Failed(error) => return Err(error),
        }
    }
}

fn speak(engine: &SpeechEngine, request: SpeechRequest) -> Spoken {
    collect(engine.submit(request).unwrap()).unwrap()
}

fn wave(path: &Path, rate: u32) -> Vec<f32> {
    let method = ResampleMethod::TorchaudioFunctional;
    decode_mono(path, rate, method, &DecodeOptions::default()).unwrap()
}

/// Power of `want` over that of the difference, in dB.
fn snr(got: &[f32], want: &[f32]) -> f64 {
    let power = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let signal = power(&mut want.iter().map(|x| f64::from(*x)));
    let noise = power(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
    10.0 * (signal / noise.max(1e-30)).log10()
}

#[test]
fn prompts_equal_the_reference_token_by_token() {
    for folder in fixtures(&FAMILIES) {
        let model = model(&folder);
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let asked = &case["request"];
            let prompt = model
                .processor
                .prompt(asked["ref_text"].as_str(), asked["input"].as_str().unwrap())
                .unwrap();
            let expected: Vec<u32> =
                serde_json::from_value(case["expect"]["text_ids"].clone()).unwrap();
            assert_eq!(
                prompt.token_ids,
                expected,
                "{} {}",
                folder.display(),
                case["name"]
            );
        }
    }
}

#[test]
fn waves_equal_the_reference_whole_and_streamed() {
    for folder in fixtures(&FAMILIES) {
        let engine = engine(&folder);
        for case in golden(&folder)["cases"].as_array().unwrap() {
            let name = format!("{} {}", folder.display(), case["name"]);
            let expect = &case["expect"];
            let rate = engine.format().sample_rate;
            assert_eq!(u64::from(rate), expect["sample_rate"].as_u64().unwrap());
            let want = wave(&folder.join(expect["wav"].as_str().unwrap()), rate);

            let whole = speak(&engine, request(&engine, &folder, case));
            assert_eq!(whole.samples.len(), want.len(), "{name}");
            let found = snr(&whole.samples, &want);
            assert!(
                found >= case["tolerance"]["snr_db"].as_f64().unwrap(),
                "{name}: {found} dB"
            );
            let most = case["tolerance"]["max_abs"].as_f64().unwrap() as f32;
            let worst = whole.samples.iter().zip(&want).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst <= most, "{name}: {worst}, {found} dB");
            let patches = expect["generated_patches"].as_u64().unwrap() as usize;
            // Where both come together, the reference does not tell which it was.
            if expect["effective_max_len"] != patches {
                assert_eq!(whole.finished.reason, FinishReason::Stop, "{name}");
            }
            assert_eq!(whole.finished.patches, patches, "{name}");

            let streamed = speak(
                &engine,
                SpeechRequest {
                    stream: true,
                    ..request(&engine, &folder, case)
                },
            );
            assert!(streamed.pieces > 1 && whole.pieces == 1);
            // Not only near: the same bits.
            assert_eq!(streamed.samples, whole.samples, "{name}");
        }
    }
}

/// Small whole numbers of the stages.
fn ids(stages: &Stages, name: &str) -> Vec<u32> {
    let values = stages.get(name).to_vec1::<i64>().unwrap();
    values.into_iter().map(|value| value as u32).collect()
}

/// A prompt of the stages as a batch of one sequence.
fn prompt_batch(stages: &Stages, logit_rows: &[u32]) -> Batch {
    let token_ids = ids(stages, "in.text_ids");
    let text = ids(stages, "in.text_mask").iter().sum::<u32>() as usize;
    let features = stages.get("in.audio_feat");
    let rows = token_ids.len();
    let patches = features
        .narrow(0, text, rows - text)
        .unwrap()
        .flatten_from(1)
        .unwrap();
    let slice = SequenceSlice {
        query_start: 0,
        query_len: rows,
        context_len: rows,
        prompt_len: rows,
        blocks: vec![1, 0, 2],
        state_slot: 0,
        axes: None,
    };
    let batch = Batch::new(&token_ids, vec![slice], logit_rows, 16, &Device::Cpu).unwrap();
    batch
        .with_encoded(vec![EncodedRows {
            start: text,
            values: patches,
        }])
        .unwrap()
}

#[test]
fn hidden_states_equal_the_reference_from_prefill_to_stop() {
    let stages = Stages::open(&base().join("stages.safetensors"));
    let speaker = speaker(&base());
    let rows = ids(&stages, "in.text_ids").len();
    let text = ids(&stages, "in.text_mask").iter().sum::<u32>() as usize;
    let all: Vec<u32> = (0..rows as u32).collect();
    let batch = prompt_batch(&stages, &all);
    let mut cache = Cache::new(&speaker.cache_spec(), 4, 16, 0, &Device::Cpu).unwrap();
    let hidden = speaker.forward(&batch, &mut cache).unwrap();
    let width = hidden.dim(1).unwrap() / 2;
    let meaning = hidden.narrow(1, 0, width).unwrap();
    let base_out = stages.get("prefill.base_lm.out");
    close(
        &meaning.narrow(0, 0, text).unwrap(),
        &base_out.narrow(0, 0, text).unwrap(),
        2e-5,
        "base LM on text",
    );
    let sound = base_out.narrow(0, text, rows - text).unwrap();
    let quantized = speaker.model().quantizer().forward(&sound).unwrap();
    close(
        &meaning.narrow(0, text, rows - text).unwrap(),
        &quantized,
        2e-5,
        "base LM on patches, quantised",
    );
    close(
        &hidden.narrow(1, width, width).unwrap(),
        &stages.get("prefill.residual_lm.out"),
        5e-5,
        "residual LM",
    );

    // The patches that the reference made, one step after the other.
    let patches = stages.get("gen.pred_feat");
    let stops = stages.get("gen.stop_logits").to_vec2::<f32>().unwrap();
    let mut condition = hidden.narrow(0, rows - 1, 1).unwrap();
    let features = stages.get("in.audio_feat");
    let mut previous = features.get(rows - 1).unwrap();
    assert_eq!(stops.len(), patches.dim(0).unwrap());
    for (step, stops) in stops.iter().enumerate() {
        let made = speaker
            .sample(&[PatchInput {
                condition: condition.clone(),
                noise: previous.zeros_like().unwrap(),
                previous: previous.clone(),
                steps: 6,
                guidance: 2.0,
            }])
            .unwrap();
        let want = patches.get(step).unwrap();
        close(&made[0], &want, 2e-4, &format!("patch {step}"));
        let stop = speaker.stops(&condition).unwrap();
        assert_eq!(stop, [stops[1] > stops[0]]);
        let context_len = rows + step + 1;
        let slice = SequenceSlice {
            query_start: 0,
            query_len: 1,
            context_len,
            prompt_len: rows,
            blocks: vec![1, 0, 2],
            state_slot: 0,
            axes: None,
        };
        let batch = Batch::new(&[0], vec![slice], &[0], 16, &Device::Cpu).unwrap();
        let values = want.flatten_all().unwrap().unsqueeze(0).unwrap();
        let batch = batch
            .with_encoded(vec![EncodedRows { start: 0, values }])
            .unwrap();
        condition = speaker.forward(&batch, &mut cache).unwrap();
        let residual = stages.get("gen.residual_step");
        if step < residual.dim(0).unwrap() {
            close(
                &condition
                    .narrow(1, width, width)
                    .unwrap()
                    .squeeze(0)
                    .unwrap(),
                &residual.get(step).unwrap(),
                5e-5,
                &format!("residual LM after patch {step}"),
            );
        }
        previous = want;
    }
}

#[test]
fn parts_equal_the_reference() {
    let stages = Stages::open(&base().join("stages.safetensors"));
    let speaker = speaker(&base());
    let model = speaker.model();

    let patches = stages.get("part.locenc.in").squeeze(0).unwrap();
    let encoded = model
        .encoder()
        .forward(&patches.flatten_from(1).unwrap())
        .unwrap();
    let want = stages.get("part.locenc.out").squeeze(0).unwrap();
    close(&encoded, &want, 1e-5, "local encoder");

    let quantized = model
        .quantizer()
        .forward(&stages.get("part.fsq.in"))
        .unwrap();
    close(&quantized, &stages.get("part.fsq.out"), 1e-5, "FSQ");

    // Channels last here, [1, feat_dim, patch_size] there.
    let rows = |name: &str| {
        stages
            .get(name)
            .squeeze(0)
            .unwrap()
            .t()
            .unwrap()
            .contiguous()
            .unwrap()
    };
    let asked = stages
        .get("part.cfm.n_timesteps_and_cfg")
        .to_vec1::<f32>()
        .unwrap();
    let input = PatchInput {
        condition: Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap(),
        previous: rows("part.cfm.cond"),
        noise: rows("part.cfm.noise"),
        steps: asked[0] as usize,
        guidance: asked[1],
    };
    let mu = stages.get("part.cfm.mu");
    let solved = model
        .dit()
        .solve(&mu, std::slice::from_ref(&input))
        .unwrap();
    close(&solved[0], &rows("part.cfm.out"), 5e-5, "flow");
    // Beside others, of which one has other steps, the bits are the same.
    let other = PatchInput {
        steps: 3,
        guidance: 1.0,
        ..input.clone()
    };
    let company = Tensor::cat(&[&mu, &mu, &mu], 0).unwrap();
    let together = model
        .dit()
        .solve(&company, &[other, input.clone(), input])
        .unwrap();
    for patch in &together[1..] {
        assert_eq!(
            patch.to_vec2::<f32>().unwrap(),
            solved[0].to_vec2::<f32>().unwrap()
        );
    }

    let latents = rows("part.vae_decode.in");
    let samples = speaker
        .decode(&latents, &mut SoundState::default())
        .unwrap();
    let want = stages.get("part.vae_decode.out").flatten_all().unwrap();
    close(
        &Tensor::new(samples.as_slice(), &Device::Cpu).unwrap(),
        &want,
        2e-5,
        "decoder",
    );
    let mut state = SoundState::default();
    let pieces: Vec<f32> = [(0, 1), (1, 3), (4, 2)]
        .into_iter()
        .flat_map(|(start, count)| {
            let piece = latents.narrow(0, start, count).unwrap();
            speaker.decode(&piece, &mut state).unwrap()
        })
        .collect();
    assert_eq!(pieces, samples);

    // The reference pads on the right here, so whole latents are given.
    let sound = stages.get("part.vae_encode.in").flatten_all().unwrap();
    let want = stages
        .get("part.vae_encode.out")
        .squeeze(0)
        .unwrap()
        .t()
        .unwrap();
    let hop = 640;
    let whole = sound.dim(0).unwrap() / hop;
    let latents = speaker
        .autoencoder()
        .encode(
            &sound
                .narrow(0, 0, whole * hop)
                .unwrap()
                .unsqueeze(1)
                .unwrap(),
        )
        .unwrap();
    close(
        &latents,
        &want.narrow(0, 0, whole).unwrap().contiguous().unwrap(),
        2e-5,
        "encoder",
    );
}

#[test]
fn long_references_are_encoded_in_pieces_that_change_no_bit() {
    let speaker = speaker(&base());
    let samples: Vec<f32> = (0..640 * 60)
        .map(|index| (index as f32 * 0.05).sin() * 0.3)
        .collect();
    let encode = |samples: &[f32]| {
        let samples = Tensor::from_slice(samples, (samples.len(), 1), &Device::Cpu).unwrap();
        speaker
            .autoencoder()
            .encode(&samples)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
    };
    let whole = encode(&samples);
    assert_eq!(whole.len(), 60);
    // The first part alone: what comes later cannot change it, wherever pieces end.
    assert_eq!(encode(&samples[..640 * 31]), whole[..31]);
}

fn noisy(text: &str, seed: u64) -> SpeechRequest {
    SpeechRequest {
        params: SpeechParams {
            seed: Some(seed),
            steps: 3,
            max_patches: Some(9),
            retry: false,
            ..SpeechParams::default()
        },
        ..SpeechRequest::new(text)
    }
}

#[test]
fn company_chunks_and_seeds_change_what_they_should() {
    let folder = base();
    let small = engine_with(
        &folder,
        EngineOptions {
            max_batch_tokens: 5,
            ..EngineOptions::default()
        },
    );
    let engine = engine(&folder);
    let texts = [
        "Hello world",
        "今天天气很好",
        "the quick brown fox",
        "a test 1 2 3",
    ];
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| speak(&engine, noisy(text, 7)).samples)
        .collect();
    // All at once, some streamed, with prompts in chunks.
    let running: Vec<Speech> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let request = SpeechRequest {
                stream: index % 2 == 0,
                ..noisy(text, 7)
            };
            small.submit(request).unwrap()
        })
        .collect();
    for (speech, alone) in running.into_iter().zip(&alone) {
        assert_eq!(&collect(speech).unwrap().samples, alone);
    }
    assert_ne!(speak(&engine, noisy(texts[0], 8)).samples, alone[0]);
}

#[test]
fn streams_advance_together() {
    let engine = engine(&base());
    let mut speeches: Vec<Speech> = ["one two three", "four five six"]
        .iter()
        .map(|text| {
            let mut request = noisy(text, 1);
            request.params.max_patches = Some(40);
            request.params.steps = 50;
            request.params.min_patches = 40;
            request.stream = true;
            engine.submit(request).unwrap()
        })
        .collect();
    // Before the first ends, the second has begun.
    for speech in &mut speeches {
        assert!(matches!(
            speech.blocking_next(),
            Some(SpeechEvent::Audio(_))
        ));
    }
    assert_eq!(engine.status().running, 2);
}

#[test]
fn a_dropped_speech_frees_the_engine_within_a_patch() {
    let engine = engine_with(
        &base(),
        EngineOptions {
            max_sequences: 1,
            ..EngineOptions::default()
        },
    );
    let fresh = speak(&engine, noisy("Hello world", 3)).samples;
    let total = engine.status().free_blocks;
    for stream in [true, false] {
        let mut request = noisy("the lazy dog and the quick brown fox", 2);
        request.stream = stream;
        request.params.min_patches = 200;
        request.params.max_patches = Some(200);
        let mut speech = engine.submit(request.clone()).unwrap();
        let waiting = engine.submit(request).unwrap();
        if stream {
            assert!(matches!(
                speech.blocking_next(),
                Some(SpeechEvent::Audio(_))
            ));
        }
        drop(speech);
        drop(waiting);
        wait_until_idle(&engine);
        assert_eq!(engine.status().free_blocks, total);
        assert!(engine.status().generated_tokens < 150);
    }
    assert_eq!(speak(&engine, noisy("Hello world", 3)).samples, fresh);
}

fn wait_until_idle(engine: &SpeechEngine) {
    for _ in 0..1000 {
        let status = engine.status();
        if status.running == 0 && status.waiting == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the engine is not idle: {:?}", engine.status());
}

#[test]
fn a_speech_that_never_ends_is_cut_with_a_flag() {
    let engine = engine(&base());
    // With such a least length the stop head is never asked: the text's length is the limit.
    let mut request = noisy("Hello", 5);
    request.params.max_patches = None;
    request.params.min_patches = usize::MAX;
    let spoken = speak(&engine, request.clone());
    assert_eq!(spoken.finished.reason, FinishReason::Length);
    let prompt = engine.processor().prompt(None, "Hello").unwrap();
    assert_eq!(spoken.finished.patches, 6 * prompt.target_tokens + 10);
    // Tried again, as the reference does, and the last attempt is kept.
    request.params.retry = true;
    let again = speak(&engine, request.clone());
    assert_eq!(again.finished.patches, 3 * spoken.finished.patches);
    assert_eq!(again.samples.len(), spoken.samples.len());
    assert_ne!(again.samples, spoken.samples);
    // Not where sound has left already, nor where it would come out the same.
    request.stream = true;
    assert_eq!(speak(&engine, request.clone()).samples, spoken.samples);
    request.stream = false;
    request.params.temperature = 0.0;
    assert_eq!(
        speak(&engine, request).finished.patches,
        spoken.finished.patches
    );
}

#[test]
fn long_texts_are_spoken_in_stretches_of_one_voice() {
    let engine = engine(&fixture("voxcpm1_5/odd"));
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(7);
    let request = |stream, split| SpeechRequest {
        stream,
        split,
        ..noisy(&text, 11)
    };
    let whole = speak(&engine, request(false, true));
    let streamed = speak(&engine, request(true, true));
    assert_eq!(streamed.samples, whole.samples);
    // More than one stretch was spoken, with a pause between them.
    let pause = engine.format().sample_rate as usize / 10;
    assert!(whole.finished.patches > 9);
    let silent = whole
        .samples
        .windows(pause)
        .any(|piece| piece.iter().all(|x| *x == 0.0));
    assert!(silent);
}

#[test]
fn what_cannot_be_said_is_refused_with_the_field() {
    let engine = engine(&base());
    let param = |request: SpeechRequest| match engine.submit(request) {
        Err(EngineError::InvalidRequest { param, .. }) => param.unwrap(),
        other => panic!("{other:?}"),
    };
    for text in ["", "   \n", "?!...", "🍵🎵", "\u{200F}\u{0007}", "。，！"] {
        assert_eq!(param(SpeechRequest::new(text)), "input", "{text:?}");
    }
    let with = |change: fn(&mut SpeechParams)| {
        let mut request = SpeechRequest::new("Hello");
        change(&mut request.params);
        request
    };
    assert_eq!(param(with(|p| p.temperature = f32::NAN)), "temperature");
    assert_eq!(param(with(|p| p.guidance = -1.0)), "cfg_value");
    assert_eq!(param(with(|p| p.steps = 0)), "inference_timesteps");
    assert_eq!(param(with(|p| p.max_patches = Some(0))), "max_tokens");
    // Right to left, control characters and mixed scripts are read, not obeyed.
    for text in [
        "שלום עולם Hello",
        "مرحبا 你好",
        "a\u{0}b\u{7}c\u{202E}d",
        "مرحبا",
    ] {
        let spoken = speak(&engine, noisy(text, 1));
        assert!(!spoken.samples.is_empty() && spoken.finished.patches <= 9);
    }
}

#[test]
fn texts_and_references_that_do_not_fit_are_refused_with_numbers() {
    let engine = engine(&base());
    let mut request = SpeechRequest::new("word ".repeat(4000));
    request.split = false;
    assert!(matches!(
        engine.submit(request),
        Err(EngineError::ContextLengthExceeded { prompt_tokens, .. }) if prompt_tokens > 256
    ));
    let rate = engine.format().sample_rate as usize;
    let refused = |text: &str, samples: &[f32]| match engine.voice(text, samples) {
        Err(EngineError::InvalidRequest { param, .. }) => param.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("Hello", &[]), "ref_audio");
    assert_eq!(refused("Hello", &vec![0.0; 3600 * rate]), "ref_audio");
    assert_eq!(refused("Hello", &[f32::NAN; 4000]), "ref_audio");
    assert_eq!(refused("  ", &[0.1; 4000]), "ref_text");
    // The words of another recording are nothing that can be noticed: the speech stays within its bounds.
    let voice = engine
        .voice("completely other words", &[0.1; 4000])
        .unwrap();
    let spoken = speak(
        &engine,
        SpeechRequest {
            voice: Some(voice),
            ..noisy("Hello world", 1)
        },
    );
    assert!(spoken.finished.patches <= 9);
    let other = Voice {
        text: "a".into(),
        latents: Tensor::zeros((3, 1, 1), DType::F32, &Device::Cpu).unwrap(),
    };
    let request = SpeechRequest {
        voice: Some(other),
        ..noisy("Hello", 1)
    };
    assert!(matches!(
        engine.submit(request),
        Err(EngineError::InvalidRequest { param, .. }) if param.as_deref() == Some("voice")
    ));
}

#[test]
fn voices_are_kept_by_name_and_encoded_once() {
    let folder = base();
    let engine = engine(&folder);
    let place = tempfile::tempdir().unwrap();
    let store = VoiceStore::new(place.path().join("voices"));
    let options = DecodeOptions::default();
    let audio = std::fs::read(folder.join("media/ref_16k.wav")).unwrap();
    assert!(store.list().unwrap().is_empty());
    let added = store
        .add("anna", "Hello there, ", &audio, &engine, &options)
        .unwrap();
    assert_eq!(store.list().unwrap(), [added]);
    assert!(matches!(
        store.add("anna", "x", &audio, &engine, &options),
        Err(VoiceError::Exists { .. })
    ));
    assert!(matches!(
        store.add("bert", "x", b"no sound", &engine, &options),
        Err(VoiceError::Reference(_))
    ));
    assert!(matches!(
        store.load("bert", &engine, &options),
        Err(VoiceError::Unknown { .. })
    ));
    // What speaks by the stored voice is what speaks by its file.
    let case = &golden(&folder)["cases"][0];
    let by_file = speak(&engine, request(&engine, &folder, case));
    let by_name = |engine: &SpeechEngine| {
        let voice = store.load("anna", engine, &options).unwrap();
        let request = SpeechRequest {
            voice: Some(voice),
            ..request(engine, &folder, case)
        };
        speak(engine, request).samples
    };
    assert_eq!(by_name(&engine), by_file.samples);
    // The sound itself is not read again: without it, the latents suffice; without them, the sound does.
    let voice = place.path().join("voices/anna");
    let sound = std::fs::read(voice.join("reference.audio")).unwrap();
    std::fs::remove_file(voice.join("reference.audio")).unwrap();
    assert_eq!(by_name(&self::engine(&folder)), by_file.samples);
    std::fs::write(voice.join("reference.audio"), sound).unwrap();
    for entry in std::fs::read_dir(&voice).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "safetensors") {
            std::fs::write(path, b"damaged").unwrap();
        }
    }
    assert_eq!(by_name(&self::engine(&folder)), by_file.samples);
    store.remove("anna").unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(
        store.remove("anna"),
        Err(VoiceError::Unknown { .. })
    ));
}

#[test]
fn a_full_queue_and_a_stopped_engine_refuse() {
    let engine = engine_with(
        &base(),
        EngineOptions {
            max_sequences: 1,
            queue_limit: 1,
            ..EngineOptions::default()
        },
    );
    let mut long = noisy("Hello world", 1);
    long.params.steps = 200;
    long.params.min_patches = 200;
    long.params.max_patches = Some(200);
    let _running = engine.submit(long.clone()).unwrap();
    while engine.status().running == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waiting = engine.submit(long.clone()).unwrap();
    assert!(matches!(
        engine.submit(long.clone()),
        Err(EngineError::Overloaded { waiting: 1, .. })
    ));
    engine.shutdown();
    assert!(matches!(collect(waiting), Err(EngineError::ShuttingDown)));
    assert!(matches!(
        engine.submit(long),
        Err(EngineError::ShuttingDown)
    ));
}
