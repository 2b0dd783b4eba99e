//! The library's face, on tiny checkpoints.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use aha::{
    Chat, ChatEvent, ChatStream, Delta, Error, Event, GenerateModel, Generation, GenerationParams,
    GenerationRequest, Loader, Message, Model, OutputParams, OutputParser, Prompt, SamplingParams,
    StopParams, TokenLogprob,
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn path(fixture: &str) -> String {
    format!(
        "{}/../../tests/fixtures/{fixture}",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn loader(fixture: &str) -> Loader {
    aha::load(path(fixture)).cache_tokens(8192)
}

fn greedy(max_tokens: usize) -> GenerationParams {
    GenerationParams {
        max_tokens: Some(max_tokens),
        ..GenerationParams::greedy()
    }
}

fn endless() -> GenerationParams {
    GenerationParams {
        ignore_eos: true,
        ..GenerationParams::greedy()
    }
}

fn until_idle(model: &Model) {
    let started = Instant::now();
    while model.engine().unwrap().status().running > 0
        || model.engine().unwrap().status().waiting > 0
    {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the request goes on"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn handles_cross_threads() {
    fn check<T: Send + Sync + 'static>() {}
    fn check_send<T: Send + 'static>() {}
    check::<Model>();
    check::<Error>();
    check::<Loader>();
    check_send::<ChatStream>();
    check_send::<aha::TextStream>();
}

#[test]
fn the_stream_is_the_text_and_threads_do_not_disturb_each_other() {
    let model = loader("qwen3/sharded").build().unwrap();
    let prompts = [
        "Hello!",
        "What is a river?",
        "你好",
        "velvet ocean island lantern",
    ];
    let alone: Vec<String> = prompts
        .iter()
        .map(|prompt| model.generate(prompt, greedy(24)).unwrap())
        .collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let ask = |prompt: &&'static str| {
            let (model, prompt) = (model.clone(), *prompt);
            scope.spawn(move || {
                let pieces = model.generate_stream(prompt, greedy(24)).unwrap();
                pieces.collect::<aha::Result<String>>().unwrap()
            })
        };
        let handles: Vec<_> = prompts.iter().map(ask).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .collect()
    });
    assert_eq!(together, alone);
}

#[tokio::test]
async fn a_chat_tells_its_end_once() {
    let model = loader("llama/smol").build().unwrap();
    let mut stream = model.chat(Chat::user("Hello!"), &greedy(6)).unwrap();
    let (mut text, mut ends) = (String::new(), 0);
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            ChatEvent::Content(piece) => text.push_str(&piece),
            ChatEvent::Finished(end) => {
                ends += 1;
                assert_eq!(end.usage.prompt_tokens, stream.prompt_tokens());
                assert_eq!(end.usage.completion_tokens, 6);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ends, 1);
    assert!(!text.is_empty());
    assert!(stream.next().await.is_none());
}

#[test]
fn the_engine_below_gives_what_the_chat_is_made_of() {
    let model = loader("qwen3/sharded").build().unwrap();
    let engine = model.engine().unwrap();
    let chat = Chat::user("Hello!");
    let prompt: Prompt = engine.processor().prepare(&chat).unwrap();
    let mut parser: OutputParser = engine.processor().output_parser(&chat, &prompt, false);
    let request = GenerationRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        stop: StopParams {
            max_tokens: Some(12),
            ..StopParams::default()
        },
        output: OutputParams {
            logprobs: Some(1),
            ..OutputParams::default()
        },
    };
    let mut generation: Generation = engine.submit(request).unwrap();
    let mut deltas: Vec<Delta> = Vec::new();
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Token(token) => {
                let best: &TokenLogprob = &token.top_logprobs[0];
                assert_eq!(best.token_id, token.token_id, "greedy takes the best");
                deltas.extend(parser.push(&token.text));
            }
            Event::Finished(end) => {
                deltas.extend(parser.push(&end.text));
                deltas.extend(parser.finish());
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    let content = deltas.into_iter().map(|delta| match delta {
        Delta::Content(text) => text,
        _ => String::new(),
    });
    let text: String = content.collect();
    assert_eq!(text, model.generate("Hello!", greedy(12)).unwrap());
}

#[test]
fn a_dropped_stream_cancels_the_request() {
    let model = loader("llama/smol").build().unwrap();
    let mut stream = model.chat(Chat::user("Hello!"), &endless()).unwrap();
    stream.blocking_next().unwrap().unwrap();
    assert_eq!(model.engine().unwrap().status().running, 1);
    drop(stream);
    until_idle(&model);
    let mut pieces = model.generate_stream("Hello!", endless()).unwrap();
    pieces.next().unwrap().unwrap();
    drop(pieces);
    until_idle(&model);
}

#[test]
fn a_stream_outlives_the_handle_that_made_it() {
    let model = loader("llama/smol").build().unwrap();
    let expected = model.generate("Hello!", greedy(8)).unwrap();
    let pieces = model.generate_stream("Hello!", greedy(8)).unwrap();
    let text = std::thread::spawn(move || pieces.collect::<aha::Result<String>>());
    assert_eq!(text.join().unwrap().unwrap(), expected);
    drop(model);
}

#[test]
fn the_system_message_and_the_switch_of_thinking_reach_the_template() {
    let model = loader("qwen3/sharded").build().unwrap();
    let tokens = |params: &GenerationParams| {
        let chat = Chat::user("Hello!");
        model.chat(chat, params).unwrap().prompt_tokens()
    };
    let plain = tokens(&greedy(1));
    let quick = tokens(&GenerationParams {
        thinking: Some(false),
        ..greedy(1)
    });
    assert!(quick > plain, "the template writes an empty thought");
    let with_system = GenerationParams {
        system: Some("Be brief.".into()),
        ..greedy(12)
    };
    let by_hand = vec![
        Message::text("system", "Be brief."),
        Message::text("user", "Hello!"),
    ];
    let mut stream = model
        .chat(
            Chat {
                messages: by_hand,
                ..Chat::default()
            },
            &greedy(12),
        )
        .unwrap();
    let mut text = String::new();
    while let Some(event) = stream.blocking_next() {
        if let ChatEvent::Content(piece) = event.unwrap() {
            text.push_str(&piece);
        }
    }
    assert_eq!(model.generate("Hello!", with_system).unwrap(), text);
}

#[test]
fn refusals_name_the_field() {
    let model = loader("llama/smol").context_length(200).build().unwrap();
    let message =
        |params: GenerationParams| model.generate("Hello!", params).unwrap_err().to_string();
    let hot = GenerationParams {
        temperature: Some(-1.0),
        ..GenerationParams::default()
    };
    assert!(message(hot).contains("temperature"));
    assert!(message(greedy(500)).contains("context holds 200 tokens"));
    let nobody = Chat {
        messages: Vec::new(),
        ..Chat::default()
    };
    let refusal = model.chat(nobody, &greedy(1)).unwrap_err();
    assert!(refusal.to_string().contains("messages"), "{refusal}");
}

#[test]
fn loading_tells_its_progress_up_to_the_end() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let record = move |done, total| told.lock().unwrap().push((done, total));
    let model = loader("qwen3/sharded").on_progress(record).build().unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted(), "{seen:?}");
    let (done, total) = *seen.last().unwrap();
    assert!(done == total && total > 0, "{seen:?}");
    assert_eq!(model.name(), "sharded");
    assert_eq!(model.task(), aha::Task::Chat);
}

#[test]
fn a_name_is_only_a_name_when_the_weights_are_given() {
    let loader = aha::load("Any name (at all)")
        .weights(path("llama/smol"))
        .cache_tokens(1024);
    assert_eq!(loader.build().unwrap().name(), "Any name (at all)");
    let missing = aha::load("x")
        .weights("/no/such/folder")
        .build()
        .unwrap_err();
    assert!(matches!(missing, Error::NoSuchPath { .. }), "{missing}");
}
