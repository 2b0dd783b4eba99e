//! What must not depend on company, chunks or caches.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use aha_engine::{
    Engine, EngineError, EngineOptions, FinishReason, GenerationRequest, LoadedModel,
    SamplingParams, StopParams, TextModel,
};
use aha_models::LoadOptions;
use support::copies::{as_bf16, copy_of};
use support::{Answer, collect, engine, fixture, greedy, run, wait_until_idle};

const VARIANTS: [&str; 8] = [
    "qwen3/sharded",
    "qwen3/untied-yarn",
    "llama/llama3",
    "minicpm4/untied-long",
    "lfm2/lfm2",
    "lfm2/lfm2_5-gen",
    "qwen3_5/untied-think",
    "deepseek_ocr/small",
];

/// One variant of each kind of cache: keys and values alone, or with recurrent state beside them.
const CACHES: [&str; 3] = [VARIANTS[0], VARIANTS[4], VARIANTS[6]];

fn requests(engine: &Engine, count: usize) -> Vec<GenerationRequest> {
    (0..count)
        .map(|i| {
            let text = "river stone 音乐 🙂 lantern ".repeat(1 + i % 5) + &format!("number {i}");
            greedy(engine.processor().prepare_text(&text).unwrap(), 6 + i % 7)
        })
        .collect()
}

fn fingerprints(answers: &[Answer]) -> Vec<Vec<(u32, u32)>> {
    answers.iter().map(Answer::fingerprint).collect()
}

#[test]
fn chunks_of_any_size_give_the_same_bits() {
    for variant in VARIANTS {
        let mut expected = None;
        for max_batch_tokens in [1, 3, 16, 1000] {
            let options = EngineOptions {
                max_batch_tokens,
                prefix_cache: false,
                ..EngineOptions::default()
            };
            let engine = engine(&fixture(variant), options);
            let answers: Vec<Answer> = requests(&engine, 3)
                .into_iter()
                .map(|request| run(&engine, request))
                .collect();
            let found = fingerprints(&answers);
            assert_eq!(
                *expected.get_or_insert_with(|| found.clone()),
                found,
                "{variant}, {max_batch_tokens} a step"
            );
        }
    }
}

#[test]
fn company_does_not_change_an_answer() {
    for variant in VARIANTS {
        let engine = engine(
            &fixture(variant),
            EngineOptions {
                max_batch_tokens: 40,
                ..EngineOptions::default()
            },
        );
        let alone: Vec<Answer> = requests(&engine, 16)
            .into_iter()
            .map(|request| run(&engine, request))
            .collect();
        let together: Vec<_> = requests(&engine, 16)
            .into_iter()
            .map(|request| engine.submit(request).unwrap())
            .collect();
        let together: Vec<Answer> = together.into_iter().map(collect).collect();
        assert_eq!(fingerprints(&alone), fingerprints(&together), "{variant}");
    }
}

#[test]
fn a_crowded_cache_delays_but_does_not_change_answers() {
    for variant in CACHES {
        let path = fixture(variant);
        let roomy = engine(&path, EngineOptions::default());
        let expected: Vec<Answer> = requests(&roomy, 24)
            .into_iter()
            .map(|request| run(&roomy, request))
            .collect();
        let crowded = engine(
            &path,
            EngineOptions {
                cache_tokens: Some(192),
                ..EngineOptions::default()
            },
        );
        let generations: Vec<_> = requests(&crowded, 24)
            .into_iter()
            .map(|request| crowded.submit(request).unwrap())
            .collect();
        let answers: Vec<Answer> = generations.into_iter().map(collect).collect();
        assert_eq!(fingerprints(&expected), fingerprints(&answers), "{variant}");
        assert!(
            crowded.status().preemptions > 0,
            "{variant}: the cache was meant to be too small for all"
        );
        wait_until_idle(&crowded);
        assert_nothing_held(&crowded, variant);
    }
}

/// Every block can be given out again, and so can every slot of a recurrent state.
fn assert_nothing_held(engine: &Engine, what: &str) {
    let status = engine.status();
    assert_eq!(status.free_blocks, status.total_blocks, "{what}");
    assert_eq!(status.free_states, status.total_states, "{what}");
}

#[test]
fn the_prefix_cache_saves_work_and_changes_nothing() {
    for variant in VARIANTS {
        let path = fixture(variant);
        let without = engine(
            &path,
            EngineOptions {
                prefix_cache: false,
                ..EngineOptions::default()
            },
        );
        let with = engine(&path, EngineOptions::default());
        let mut cached_tokens = Vec::new();
        let prompt = "the same long beginning of every prompt, many words long, 你好 🙂 ".repeat(4);
        for end in ["alpha", "beta", "alpha", "alpha and more"] {
            let request = |engine: &Engine| {
                greedy(
                    engine
                        .processor()
                        .prepare_text(&format!("{prompt}{end}"))
                        .unwrap(),
                    8,
                )
            };
            let plain = run(&without, request(&without));
            let cached = run(&with, request(&with));
            assert_eq!(plain.fingerprint(), cached.fingerprint(), "{variant} {end}");
            assert_eq!(plain.finished.usage.cached_tokens, 0);
            cached_tokens.push(cached.finished.usage.cached_tokens);
        }
        // A recurrent state cannot be cut back: where two prompts part is known with the second, and the third
        // gains.
        assert_eq!(cached_tokens[0], 0, "{variant}");
        assert!(
            cached_tokens[2..].iter().all(|cached| *cached >= 64),
            "{variant}: {cached_tokens:?}"
        );
        let again = run(
            &with,
            greedy(with.processor().prepare_text(&prompt).unwrap(), 2),
        );
        let usage = again.finished.usage;
        assert!(usage.cached_tokens + 32 > usage.prompt_tokens, "{usage:?}");
        assert!(usage.cached_tokens < usage.prompt_tokens, "{usage:?}");
    }
}

#[test]
fn a_cache_that_keeps_little_changes_nothing() {
    // One sequence at a time, so that few recurrent states are kept, and blocks for little more than one.
    let small = EngineOptions {
        max_sequences: 1,
        cache_tokens: Some(256),
        ..EngineOptions::default()
    };
    for variant in CACHES {
        let path = fixture(variant);
        let fresh = engine(
            &path,
            EngineOptions {
                prefix_cache: false,
                ..EngineOptions::default()
            },
        );
        let small = engine(&path, small.clone());
        let mut cached_tokens = 0;
        for index in [0, 5, 10, 15, 1, 6, 11, 16, 4, 9, 14, 19, 4, 9, 14, 19, 0, 5] {
            let request = |engine: &Engine| requests(engine, 20).remove(index);
            let found = run(&small, request(&small));
            cached_tokens += found.finished.usage.cached_tokens;
            let expected = run(&fresh, request(&fresh)).fingerprint();
            assert_eq!(found.fingerprint(), expected, "{variant}, request {index}");
        }
        assert!(cached_tokens > 0, "{variant}");
        wait_until_idle(&small);
        assert_nothing_held(&small, variant);
        let status = small.status();
        assert_eq!(
            status.kept_states > 0,
            status.total_states > 0,
            "{status:?}"
        );
    }
}

#[test]
fn the_next_turn_of_a_conversation_finds_what_the_turns_before_computed() {
    for variant in CACHES {
        let path = fixture(variant);
        let fresh = engine(
            &path,
            EngineOptions {
                prefix_cache: false,
                ..EngineOptions::default()
            },
        );
        let cached = engine(&path, EngineOptions::default());
        let ask = |engine: &Engine, ids: &[u32]| {
            let prompt = engine.processor().prepare_tokens(ids.to_vec());
            run(engine, greedy(prompt, 60))
        };
        let question: Vec<u32> = (300..345).collect();
        let answer = ask(&cached, &question).ids();
        // The client sends the answer back as it was, or another one in its place: without its reasoning, say.
        let kept = [&question[..], &answer, &[310, 320, 330]].concat();
        let replaced = [&question[..], &[350, 351, 352], &[310, 320, 330]].concat();
        for (turn, found) in [(kept, 96), (replaced, 32)] {
            let second = ask(&cached, &turn);
            let usage = second.finished.usage;
            assert_eq!(usage.cached_tokens, found, "{variant}: {usage:?}");
            assert_eq!(
                ask(&fresh, &turn).fingerprint(),
                second.fingerprint(),
                "{variant}"
            );
        }
    }
}

#[test]
fn cancelled_requests_leave_everything_free() {
    for variant in CACHES {
        let engine = engine(
            &fixture(variant),
            EngineOptions {
                max_batch_tokens: 32,
                ..EngineOptions::default()
            },
        );
        let expected = run(&engine, requests(&engine, 1).remove(0));
        wait_until_idle(&engine);
        assert_nothing_held(&engine, variant);
        for round in 0..5 {
            let mut generations: Vec<_> = requests(&engine, 20)
                .into_iter()
                .map(|mut request| {
                    request.stop.max_tokens = Some(300);
                    engine.submit(request).unwrap()
                })
                .collect();
            for (index, generation) in generations.iter_mut().enumerate() {
                // Some are dropped in the queue, some while their prompt runs, some in mid-answer.
                for _ in 0..(index * round) % 4 {
                    generation.blocking_next();
                }
            }
            if round % 4 > 0 {
                let held = engine.status();
                assert!(held.free_blocks < held.total_blocks, "{variant}: {held:?}");
                let recurrent = held.total_states > 0;
                assert_eq!(
                    held.free_states < held.total_states,
                    recurrent,
                    "{variant}: {held:?}"
                );
            }
            drop(generations);
            wait_until_idle(&engine);
            assert_nothing_held(&engine, &format!("{variant}, round {round}"));
        }
        let after = run(&engine, requests(&engine, 1).remove(0));
        assert_eq!(expected.fingerprint(), after.fingerprint(), "{variant}");
    }
}

#[test]
fn a_seed_gives_the_same_text_in_any_company() {
    for variant in CACHES {
        let engine = engine(&fixture(variant), EngineOptions::default());
        let sampled = |seed| {
            let mut request = requests(&engine, 1).remove(0);
            request.sampling = SamplingParams {
                seed: Some(seed),
                temperature: 1.3,
                top_p: 0.95,
                ..Default::default()
            };
            request.stop.max_tokens = Some(20);
            request
        };
        let alone = run(&engine, sampled(11));
        let company: Vec<_> = (0..12)
            .map(|seed| engine.submit(sampled(seed)).unwrap())
            .collect();
        let company: Vec<Answer> = company.into_iter().map(collect).collect();
        assert_eq!(alone.fingerprint(), company[11].fingerprint(), "{variant}");
        assert_ne!(company[3].ids(), company[4].ids(), "{variant}");
    }
}

#[test]
fn the_stream_is_the_whole_text() {
    for variant in VARIANTS {
        let engine = engine(&fixture(variant), EngineOptions::default());
        for mut request in requests(&engine, 6) {
            request.stop.max_tokens = Some(40);
            request.output.skip_special_tokens = Some(true);
            let answer = run(&engine, request);
            assert_eq!(
                answer.text,
                engine.processor().tokenizer().decode(&answer.ids(), true)
            );
        }
    }
}

#[test]
fn a_stop_string_across_tokens_is_found_and_not_emitted() {
    let engine = engine(&fixture(VARIANTS[0]), EngineOptions::default());
    let mut request = requests(&engine, 1).remove(0);
    request.stop.max_tokens = Some(40);
    let whole = run(&engine, request.clone()).text;
    let characters: Vec<char> = whole.chars().collect();
    let stop: String = characters[7..12].iter().collect();
    request.stop.stop = vec!["never in there".to_owned(), stop.clone()];
    let stopped = run(&engine, request);
    assert_eq!(stopped.text, whole[..whole.find(&stop).unwrap()]);
    assert_eq!(stopped.finished.reason, FinishReason::Stop);
    assert_eq!(stopped.finished.stop, Some(stop));
}

#[test]
fn stop_tokens_end_and_min_tokens_delays_them() {
    let engine = engine(&fixture(VARIANTS[0]), EngineOptions::default());
    let mut request = requests(&engine, 1).remove(0);
    request.stop.max_tokens = Some(12);
    let free = run(&engine, request.clone());
    let stop = free.ids()[4];
    let first = free.ids().iter().position(|id| *id == stop).unwrap();
    request.stop = StopParams {
        stop_token_ids: vec![stop],
        ..request.stop
    };
    let stopped = run(&engine, request.clone());
    assert_eq!(stopped.ids(), free.ids()[..first]);
    assert_eq!(stopped.finished.reason, FinishReason::Stop);
    request.stop.min_tokens = 9;
    let delayed = run(&engine, request);
    assert!(delayed.finished.usage.completion_tokens >= 9);
    assert!(!delayed.ids()[..8].contains(&stop));
}

#[test]
fn the_context_is_used_to_its_last_token_and_not_beyond() {
    let options = EngineOptions {
        context_length: Some(64),
        ..EngineOptions::default()
    };
    let engine = engine(&fixture(VARIANTS[0]), options);
    let prompt = |len: usize| engine.processor().prepare_tokens((0..len as u32).collect());
    let mut open_ended = greedy(prompt(60), 1);
    open_ended.stop.max_tokens = None;
    let answer = run(&engine, open_ended);
    assert_eq!(answer.ids().len(), 4);
    assert_eq!(answer.finished.reason, FinishReason::Length);
    assert_eq!(run(&engine, greedy(prompt(63), 1)).ids().len(), 1);
    let error = engine.submit(greedy(prompt(64), 1)).unwrap_err();
    assert!(matches!(
        error,
        EngineError::ContextLengthExceeded {
            context_length: 64,
            prompt_tokens: 64,
            ..
        }
    ));
    assert!(engine.submit(greedy(prompt(60), 5)).is_err());
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let options = EngineOptions {
        queue_limit: 2,
        max_sequences: 1,
        ..EngineOptions::default()
    };
    let engine = engine(&fixture(VARIANTS[0]), options);
    let mut accepted = Vec::new();
    let mut refused = 0;
    for mut request in requests(&engine, 12) {
        request.stop.max_tokens = Some(200);
        match engine.submit(request) {
            Ok(generation) => accepted.push(generation),
            Err(EngineError::Overloaded {
                retry_after_seconds,
                ..
            }) => {
                assert!(retry_after_seconds >= 1);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused >= 9, "{refused} were refused");
    for generation in accepted {
        assert_eq!(collect(generation).ids().len(), 200);
    }
    run(&engine, requests(&engine, 1).remove(0));
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let engine = engine(&fixture(VARIANTS[0]), EngineOptions::default());
    let base = || requests(&engine, 1).remove(0);
    let refused = |change: fn(&mut GenerationRequest)| {
        let mut request = base();
        change(&mut request);
        match engine.submit(request) {
            Err(EngineError::InvalidRequest { param, .. }) => param.unwrap(),
            other => panic!("accepted: {other:?}"),
        }
    };
    assert_eq!(refused(|r| r.sampling.temperature = -1.0), "temperature");
    assert_eq!(
        refused(|r| r.sampling.temperature = f32::NAN),
        "temperature"
    );
    assert_eq!(refused(|r| r.sampling.top_p = 0.0), "top_p");
    assert_eq!(
        refused(|r| r.sampling.logit_bias = vec![(1_000_000_000, 1.0)]),
        "logit_bias"
    );
    assert_eq!(refused(|r| r.stop.max_tokens = Some(0)), "max_tokens");
    assert_eq!(refused(|r| r.stop.stop = vec![String::new()]), "stop");
    assert_eq!(refused(|r| r.prompt.token_ids.clear()), "prompt");
    assert_eq!(refused(|r| r.prompt.token_ids.push(u32::MAX)), "prompt");
}

#[test]
fn shutdown_tells_everybody() {
    for variant in CACHES {
        let engine = engine(&fixture(variant), EngineOptions::default());
        let mut request = requests(&engine, 1).remove(0);
        request.stop.max_tokens = Some(5000);
        let mut running = engine.submit(request).unwrap();
        running.blocking_next();
        engine.shutdown();
        let mut last = None;
        while let Some(event) = running.blocking_next() {
            last = Some(event);
        }
        assert!(
            matches!(
                last,
                Some(aha_engine::Event::Failed(EngineError::ShuttingDown))
            ),
            "{variant}: {last:?}"
        );
        assert_eq!(
            engine.submit(requests(&engine, 1).remove(0)).unwrap_err(),
            EngineError::ShuttingDown
        );
    }
}

#[test]
fn weights_in_their_file_and_packed_give_the_same_answers() {
    let home = copy_of("qwen3/untied-yarn");
    as_bf16(home.path());
    let load = || {
        let loaded = aha_models::load(home.path(), &LoadOptions::default()).unwrap();
        let LoadedModel::Text(model) = loaded else {
            panic!("{loaded:?}")
        };
        model
    };
    let start = |model: TextModel| {
        let options = EngineOptions {
            cache_tokens: Some(8192),
            ..EngineOptions::default()
        };
        Engine::start(model, options).unwrap()
    };
    let answers = |engine: &Engine| -> Vec<Answer> {
        let generations: Vec<_> = requests(engine, 12)
            .into_iter()
            .map(|request| engine.submit(request).unwrap())
            .collect();
        generations.into_iter().map(collect).collect()
    };

    let model = load();
    model.unpacked.pack_all().unwrap();
    let packed = start(model);
    assert_eq!(packed.status().unpacked, 0);
    let expected = answers(&packed);

    let model = load();
    assert!(!model.unpacked.is_empty());
    let engine = start(model);
    // The first of these meet weights in the file, and some are packed between their steps.
    assert_eq!(fingerprints(&answers(&engine)), fingerprints(&expected));
    for _ in 0..1000 {
        if engine.status().unpacked == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(
        engine.status().unpacked,
        0,
        "nothing is asked, and weights stay unpacked"
    );
    assert_eq!(fingerprints(&answers(&engine)), fingerprints(&expected));
}
