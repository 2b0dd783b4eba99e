//! Calls of tools over HTTP, written by a model that says what it is told to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod common;

use aha_engine::{Engine, EngineOptions, GenerationDefaults, Generator, TextModel, TextProcessor};
use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, CacheSpec};
use aha_server::{ServedModel, ServerOptions, Service, Shutdown};
use axum::Router;
use candle_core::{Device, Result};
use common::{post, send};
use serde_json::{Value, json};
use std::path::Path;

const CHAT: &str = "/v1/chat/completions";

/// Writes its script, a token after the other, whatever the prompt.
struct Parrot {
    script: Vec<u32>,
    vocab_size: usize,
}

impl Generator for Parrot {
    fn cache_spec(&self) -> CacheSpec {
        CacheSpec {
            layers: Vec::new(),
            shareable_prompt_len: None,
        }
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        4096
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn forward_into(&self, batch: &Batch, _cache: &mut Cache, logits: &mut Vec<f32>) -> Result<()> {
        let finished = batch
            .sequences()
            .iter()
            .filter(|sequence| sequence.context_len >= sequence.prompt_len);
        logits.clear();
        for sequence in finished {
            let mut row = vec![0.0_f32; self.vocab_size];
            let said = sequence.context_len - sequence.prompt_len;
            row[self.script[said.min(self.script.len() - 1)] as usize] = 50.0;
            logits.extend(row);
        }
        Ok(())
    }
}

/// A server of the fixture's tokenizer and template, which answers everything with `answer`.
fn app(fixture: &str, answer: &str) -> Router {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(fixture);
    let processor = TextProcessor::from_folder(&folder).unwrap();
    let tokenizer = processor.tokenizer();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let mut script = tokenizer.encode(answer, false).unwrap();
    script.push(end);
    let engine = Engine::start(
        TextModel {
            encoder: None,
            generator: Box::new(Parrot {
                script,
                vocab_size: tokenizer.vocab_size(),
            }),
            defaults: GenerationDefaults {
                eos_token_ids: vec![end],
                ..GenerationDefaults::default()
            },
            processor,
            transcriber: None,
            unpacked: Default::default(),
        },
        EngineOptions {
            cache_tokens: Some(4096),
            ..EngineOptions::default()
        },
    )
    .unwrap();
    let model = ServedModel::new("parrot", [], "chat");
    model.ready(Service::Text(engine));
    aha_server::router(ServerOptions::default(), vec![model], Shutdown::default())
}

/// A message's reasoning, content and calls, and why it ended.
#[derive(Debug, Default, PartialEq)]
struct Said {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
    finish: String,
}

impl Said {
    /// Adds a message or a chunk's part of it.
    fn add(&mut self, choice: &Value, key: &str) {
        let message = &choice[key];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.reasoning += &text(&message["reasoning_content"]);
        self.content += &text(&message["content"]);
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
            let function = &call["function"];
            self.calls
                .push((text(&function["name"]), text(&function["arguments"])));
        }
        self.finish += &text(&choice["finish_reason"]);
    }
}

/// What the model is heard to say, plain and streamed alike.
async fn heard(app: &Router, extra: &Value) -> Said {
    let mut body = json!({
        "messages": [{"role": "user", "content": "What is the weather?"}],
        "temperature": 0,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "units": {"type": "array"},
            },
        }}}],
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    let answer = send(app, post(CHAT, &body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let mut plain = Said::default();
    plain.add(&answer.json()["choices"][0], "message");
    body["stream"] = json!(true);
    let mut streamed = Said::default();
    for event in send(app, post(CHAT, &body)).await.events() {
        streamed.add(&event["choices"][0], "delta");
    }
    assert_eq!(plain, streamed);
    plain
}

fn calls(calls: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, arguments): &(&str, &str)| ((*name).to_owned(), (*arguments).to_owned());
    calls.iter().map(owned).collect()
}

#[tokio::test]
async fn calls_between_control_tokens_are_found() {
    let answer = "Let me look.<|tool_call_start|>[get_weather(city='Paris, \"北京\"', days=3, \
                  units=['C', None, True]), stop()]<|tool_call_end|>I am looking.";
    for fixture in ["lfm2/lfm2", "lfm2/lfm2_5-gen"] {
        let app = app(fixture, answer);
        let expected = Said {
            content: "Let me look.I am looking.".to_owned(),
            calls: calls(&[
                (
                    "get_weather",
                    r#"{"city": "Paris, \"北京\"", "days": 3, "units": ["C", null, true]}"#,
                ),
                ("stop", "{}"),
            ]),
            finish: "tool_calls".to_owned(),
            ..Said::default()
        };
        assert_eq!(heard(&app, &json!({})).await, expected, "{fixture}");
        // Who offers no tools, or forbids them, gets text without control tokens.
        for extra in [json!({"tools": []}), json!({"tool_choice": "none"})] {
            let said = heard(&app, &extra).await;
            assert_eq!(
                said.content,
                answer
                    .replace("<|tool_call_start|>", "")
                    .replace("<|tool_call_end|>", "")
            );
            assert_eq!((said.calls, said.finish.as_str()), (Vec::new(), "stop"));
        }
    }
    let broken = "<|tool_call_start|>[get_weather(city=Paris)]<|tool_call_end|>";
    let said = heard(&app("lfm2/lfm2", broken), &json!({})).await;
    assert_eq!(
        (said.content.as_str(), said.finish.as_str()),
        (broken, "stop")
    );
}

#[tokio::test]
async fn calls_after_reasoning_that_the_prompt_opened_are_found() {
    let call = "<tool_call>\n<function=get_weather>\n<parameter=city>\n12 rue\nde Paris\n</parameter>\n\
                <parameter=days>\n3\n</parameter>\n<parameter=units>\n[\"C\",\"F\"]\n</parameter>\n\
                </function>\n</tool_call>";
    let expected = calls(&[(
        "get_weather",
        r#"{"city": "12 rue\nde Paris", "days": 3, "units": ["C", "F"]}"#,
    )]);
    let thinking = |on: bool| json!({"chat_template_kwargs": {"enable_thinking": on}});
    let thought = format!("The user asks.\n</think>\n\nI look.\n\n{call}");
    let direct = format!("I look.\n\n{call}");
    // The small releases think only when asked, the large ones unless asked not to.
    for (fixture, extra, answer, reasoning) in [
        (
            "qwen3_5/untied-think",
            json!({}),
            &thought,
            "The user asks.",
        ),
        (
            "qwen3_5/untied-think",
            thinking(true),
            &thought,
            "The user asks.",
        ),
        ("qwen3_5/untied-think", thinking(false), &direct, ""),
        ("qwen3_5/tied-nothink", json!({}), &direct, ""),
        ("qwen3_5/tied-nothink", thinking(false), &direct, ""),
        (
            "qwen3_5/tied-nothink",
            thinking(true),
            &thought,
            "The user asks.",
        ),
    ] {
        let said = heard(&app(fixture, answer), &extra).await;
        let expected = Said {
            reasoning: reasoning.to_owned(),
            content: "I look.".to_owned(),
            calls: expected.clone(),
            finish: "tool_calls".to_owned(),
        };
        assert_eq!(said, expected, "{fixture} {extra}");
    }
    // Cut off inside the reasoning, all of it is reasoning.
    let said = heard(
        &app("qwen3_5/untied-think", "Hm, well, let me see"),
        &json!({"max_tokens": 3}),
    )
    .await;
    assert_eq!(
        (said.content.as_str(), said.finish.as_str()),
        ("", "length")
    );
    assert!(said.reasoning.starts_with("H"), "{said:?}");
}
