//! What the tests of loaded models share: fixtures and short ways to run them.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod check;
pub(crate) mod copies;
pub(crate) mod media;

use aha_engine::{
    Chat, Engine, EngineOptions, Event, Finished, Generation, GenerationRequest, LoadedModel,
    Message, OutputParams, Prompt, SamplingParams, StopParams, TextModel, TokenEvent,
};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every fixture folder of the given families.
pub(crate) fn fixtures(slugs: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut folders: Vec<PathBuf> = slugs
        .iter()
        .flat_map(|slug| std::fs::read_dir(root.join(slug)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("golden.json").is_file())
        .collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

pub(crate) fn f32_options() -> LoadOptions {
    LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    }
}

pub(crate) fn load_text(path: &Path) -> TextModel {
    match aha_models::load(path, &f32_options()).unwrap() {
        LoadedModel::Text(model) => model,
        other => panic!("{other:?}"),
    }
}

/// An engine with room for `cache_tokens`.
pub(crate) fn engine(path: &Path, options: EngineOptions) -> Engine {
    let cache_tokens = options.cache_tokens.or(Some(8192));
    Engine::start(
        load_text(path),
        EngineOptions {
            cache_tokens,
            ..options
        },
    )
    .unwrap()
}

pub(crate) fn golden(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path.join("golden.json")).unwrap()).unwrap()
}

/// The conversation of a golden chat request, as the HTTP face would build it.
pub(crate) fn chat(request: &Value) -> Chat {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let messages = request["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            let mut turn = Message::text(
                text(&message["role"]).unwrap(),
                text(&message["content"]).unwrap_or_default(),
            );
            turn.reasoning_content = text(&message["reasoning_content"]);
            turn.tool_call_id = text(&message["tool_call_id"]);
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                turn.tool_calls.push(aha_engine::ToolCall {
                    id: text(&call["id"]).unwrap_or_default(),
                    name: text(&call["function"]["name"]).unwrap(),
                    arguments: call["function"]["arguments"].clone(),
                });
            }
            turn
        })
        .collect();
    Chat {
        messages,
        tools: request["tools"].as_array().cloned().unwrap_or_default(),
        template_kwargs: request["chat_template_kwargs"]
            .as_object()
            .cloned()
            .unwrap_or_default(),
        ..Chat::default()
    }
}

/// A greedy request with log-probabilities.
pub(crate) fn greedy(prompt: Prompt, max_tokens: usize) -> GenerationRequest {
    GenerationRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        stop: StopParams {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..StopParams::default()
        },
        output: OutputParams {
            logprobs: Some(5),
            ..OutputParams::default()
        },
    }
}

/// Everything that one generation gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<TokenEvent>,
    pub(crate) text: String,
    pub(crate) finished: Finished,
}

impl Answer {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.token_id).collect()
    }

    /// Ids and exact log-probabilities: equal only when every bit of the logits that mattered was equal.
    pub(crate) fn fingerprint(&self) -> Vec<(u32, u32)> {
        self.tokens
            .iter()
            .map(|token| {
                (
                    token.token_id,
                    token
                        .logprob
                        .as_ref()
                        .map_or(0, |scored| scored.logprob.to_bits()),
                )
            })
            .collect()
    }
}

pub(crate) fn collect(mut generation: Generation) -> Answer {
    let mut tokens = Vec::new();
    let mut text = String::new();
    loop {
        match generation
            .blocking_next()
            .expect("the stream ended without an end")
        {
            Event::Token(token) => {
                text.push_str(&token.text);
                tokens.push(token);
            }
            Event::Finished(finished) => {
                text.push_str(&finished.text);
                assert!(
                    generation.blocking_next().is_none(),
                    "an event after the end"
                );
                return Answer {
                    tokens,
                    text,
                    finished,
                };
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn run(engine: &Engine, request: GenerationRequest) -> Answer {
    collect(engine.submit(request).unwrap())
}

/// Waits until the engine has nothing to do; panics when that takes more than ten seconds.
pub(crate) fn wait_until_idle(engine: &Engine) {
    for _ in 0..1000 {
        let status = engine.status();
        if status.running == 0 && status.waiting == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the engine is not idle: {:?}", engine.status());
}
