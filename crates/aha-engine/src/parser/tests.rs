use super::*;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::fixture;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::json;

pub(super) const ALL: ParserOptions = ParserOptions {
    reasoning: true,
    tools: Some(ToolSyntax::Tags),
    starts_in_reasoning: false,
};

pub(super) const PYTHON: ParserOptions = ParserOptions {
    tools: Some(ToolSyntax::PythonCalls),
    ..ALL
};

/// A tool with a parameter of each type.
fn offered() -> Vec<Value> {
    vec![
        json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {
            "text": {"type": "string"},
            "k": {"type": "integer"},
            "ratio": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "flag": {"type": "boolean"},
            "tags": {"type": ["array", "null"]},
            "where": {"type": "object"},
            "mode": {"enum": ["1", 2]},
            "free": {"description": "no type"},
        }}}}),
    ]
}

/// The parts of an answer, neighbours joined and identifiers left out.
pub(super) fn parse(options: ParserOptions, pieces: &[&str]) -> Vec<Delta> {
    let mut parser = OutputParser::new(options, &offered());
    let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    let mut joined: Vec<Delta> = Vec::new();
    for mut delta in deltas {
        match (joined.last_mut(), &mut delta) {
            (Some(Delta::Content(text)), Delta::Content(more))
            | (Some(Delta::Reasoning(text)), Delta::Reasoning(more)) => {
                text.push_str(more);
                continue;
            }
            (_, Delta::ToolCall { id, .. }) => {
                assert!(id.starts_with("call_") && id.len() == 29, "{id}");
                id.clear();
            }
            (_, Delta::Content(text) | Delta::Reasoning(text)) => assert!(!text.is_empty()),
        }
        joined.push(delta);
    }
    joined
}

pub(super) fn content(text: &str) -> Delta {
    Delta::Content(text.to_owned())
}

pub(super) fn reasoning(text: &str) -> Delta {
    Delta::Reasoning(text.to_owned())
}

pub(super) fn call(index: usize, name: &str, arguments: &str) -> Delta {
    Delta::ToolCall {
        index,
        id: String::new(),
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    }
}

#[test]
fn reasoning_is_divided_from_the_answer() {
    let inside = ParserOptions {
        starts_in_reasoning: true,
        ..ALL
    };
    for (options, text, expected) in [
        (
            ALL,
            "<think>\nhm\n</think>\n\nyes",
            vec![reasoning("hm"), content("yes")],
        ),
        (
            ALL,
            "\n <think>a\nb</think>c\n",
            vec![reasoning("a\nb"), content("c\n")],
        ),
        (ALL, "<think>\n\n</think>\n\nyes", vec![content("yes")]),
        (
            ALL,
            "<think>\nnever closed",
            vec![reasoning("never closed")],
        ),
        (
            ALL,
            "plain <think>text</think>",
            vec![content("plain <think>text</think>")],
        ),
        (ALL, "  plain", vec![content("  plain")]),
        (ALL, "<thin", vec![content("<thin")]),
        (ALL, "", vec![]),
        (
            inside,
            "hm\n</think>\n\nyes",
            vec![reasoning("hm"), content("yes")],
        ),
        (inside, "hm", vec![reasoning("hm")]),
        (
            inside,
            "a</think>b</think>c",
            vec![reasoning("a"), content("b</think>c")],
        ),
        (
            ParserOptions::default(),
            "<think>a</think>b",
            vec![content("<think>a</think>b")],
        ),
    ] {
        assert_eq!(parse(options, &[text]), expected, "{text:?}");
    }
}

#[test]
fn tool_calls_are_taken_out_of_the_text() {
    let weather = "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\": \"北京\", \"n\":2.5}}\n</tool_call>";
    let weather_call = || call(0, "get", "{\"city\": \"北京\", \"n\": 2.5}");
    for (text, expected) in [
        (weather.to_owned(), vec![weather_call()]),
        (
            format!("Look:\n{weather}\n"),
            vec![content("Look:"), weather_call()],
        ),
        (
            format!(
                "<think>\nx\n</think>\n\n{weather}\n<tool_call>{{\"name\":\"b\"}}</tool_call>\n\nDone. "
            ),
            vec![
                reasoning("x"),
                weather_call(),
                call(1, "b", "{}"),
                content("Done. "),
            ],
        ),
        (
            "<tool_call>{\"name\": \"a\", \"arguments\": {}}".to_owned(),
            vec![call(0, "a", "{}")],
        ),
        (
            "<tool_call>{\"name\": \"a\", \"arguments\": \"{\\\"b\\\":1}\"}</tool_call>".to_owned(),
            vec![call(0, "a", "{\"b\":1}")],
        ),
        (
            "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"</tool_call>\"}}</tool_call>!"
                .to_owned(),
            vec![call(0, "a", "{\"x\": \"</tool_call>\"}"), content("!")],
        ),
    ] {
        assert_eq!(parse(ALL, &[&text]), expected, "{text:?}");
    }
}

#[test]
fn malformed_calls_stay_text() {
    for text in [
        "a <tool_call>not json</tool_call> b",
        "<tool_call>{\"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": 3}</tool_call>\n",
        "x\n<tool_call>{\"name\": \"a\", \"argum",
        "a <tool_call",
        "a  \n",
        "</tool_call>",
    ] {
        assert_eq!(parse(ALL, &[text]), vec![content(text)], "{text:?}");
    }
    assert_eq!(
        parse(
            ALL,
            &["<tool_call>{\"name\": </tool_call>\n<tool_call>{\"name\": \"b\"}</tool_call>"]
        ),
        vec![
            content("<tool_call>{\"name\": </tool_call>"),
            call(0, "b", "{}")
        ]
    );
}

#[test]
fn text_is_not_held_back_longer_than_needed() {
    let mut parser = OutputParser::new(ALL, &[]);
    assert_eq!(parser.push("Hel"), vec![content("Hel")]);
    assert_eq!(parser.push("lo <"), vec![content("lo")]);
    assert_eq!(parser.push("b>"), vec![content(" <b>")]);
    let mut parser = OutputParser::new(ALL, &[]);
    assert_eq!(parser.push("<thi"), vec![]);
    assert_eq!(parser.push("nk>a"), vec![reasoning("a")]);
    assert_eq!(parser.push("b</"), vec![reasoning("b")]);
    assert_eq!(parser.push("i>"), vec![reasoning("</i>")]);
}

#[test]
fn any_split_gives_the_same_and_loses_nothing() {
    let parts = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "a",
        "你🙂",
        "<",
        "{\"name\": \"f\"}",
        "{\"name\": \"f\", \"arguments\": {\"k\": \"",
        "\"}}",
        "<tool",
        "</th",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"k\": 1}}\n</tool_call>",
        "<tool_call>\n<function=f>\n",
        "<parameter=k>\n1\n</parameter>\n",
        "<parameter=text>\n",
        "\n</parameter>\n",
        "</function>\n",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "[f(k=1, text=\"",
        "\")]",
        "<|tool_call_start|>[f(k=1), g.h(x=[True, {'a': None}])]<|tool_call_end|>",
    ];
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
    let mut below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
    let (mut calls, mut thoughts) = (0, 0);
    for _ in 0..60_000 {
        let text: String = (0..below(12)).map(|_| parts[below(parts.len())]).collect();
        let options = ParserOptions {
            starts_in_reasoning: below(3) == 0,
            tools: [None, Some(ToolSyntax::Tags), Some(ToolSyntax::PythonCalls)][below(3)],
            reasoning: below(4) > 0,
        };
        let whole = parse(options, &[&text]);
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let mut cut = 1 + below(rest.len().min(9));
            while !rest.is_char_boundary(cut) {
                cut += 1;
            }
            pieces.push(&rest[..cut]);
            rest = &rest[cut..];
        }
        assert_eq!(parse(options, &pieces), whole, "{options:?} {pieces:?}");
        if options.tools.is_none() && !options.reasoning {
            assert_eq!(
                whole,
                if text.is_empty() {
                    vec![]
                } else {
                    vec![content(&text)]
                }
            );
        }
        calls += whole
            .iter()
            .filter(|delta| matches!(delta, Delta::ToolCall { .. }))
            .count();
        thoughts += whole
            .iter()
            .filter(|delta| matches!(delta, Delta::Reasoning(_)))
            .count();
        if whole
            .iter()
            .all(|delta| !matches!(delta, Delta::ToolCall { .. }))
        {
            // Without calls nothing but one pair of tags and layout may be missing.
            let visible = |text: &str| text.replace(['\n', ' '], "");
            let out: String = whole
                .iter()
                .map(|delta| match delta {
                    Delta::Content(text) | Delta::Reasoning(text) => visible(text),
                    Delta::ToolCall { .. } => String::new(),
                })
                .collect();
            let all = visible(&text);
            let unopened = all.strip_prefix("<think>").unwrap_or(&all);
            let candidates = [
                all.clone(),
                all.replacen("</think>", "", 1),
                unopened.to_owned(),
                unopened.replacen("</think>", "", 1),
            ];
            assert!(candidates.contains(&out), "{text:?} became {whole:?}");
        }
    }
    assert!(
        calls > 500 && thoughts > 500,
        "{calls} calls, {thoughts} thoughts"
    );
}

#[test]
fn options_follow_the_model_the_prompt_and_the_request() {
    let qwen = Tokenizer::from_folder(&fixture("qwen3/sharded")).unwrap();
    let smol = Tokenizer::from_folder(&fixture("llama/smol")).unwrap();
    let wants = OutputSwitches {
        separate_reasoning: true,
        tools: true,
        continued: None,
    };
    let decide = |tokenizer, prompt| ParserOptions::decide(None, tokenizer, prompt, wants);
    let plain = ParserOptions::default();

    assert_eq!(decide(&qwen, "<think><|im_end|>assistant\n"), ALL);
    assert_eq!(decide(&smol, "assistant\n"), plain);
    let opened = decide(&qwen, "assistant\n<think>\n");
    assert_eq!(
        opened,
        ParserOptions {
            starts_in_reasoning: true,
            ..ALL
        }
    );
    let turned_off = decide(&qwen, "assistant\n<think>\n\n</think>\n\n");
    assert_eq!(
        turned_off,
        ParserOptions {
            reasoning: false,
            ..ALL
        }
    );
    // LFM2's control tokens, which its first templates do not write.
    let lfm2 = Tokenizer::from_folder(&fixture("lfm2/lfm2")).unwrap();
    let tools = decide(&lfm2, "assistant\n").tools;
    assert_eq!(tools, Some(ToolSyntax::PythonCalls));
    let by_template = ParserOptions::decide(Some("{{ '<think>' }}"), &smol, "x", wants);
    assert_eq!(by_template, ParserOptions { tools: None, ..ALL });
    let nothing = OutputSwitches {
        separate_reasoning: false,
        tools: false,
        continued: None,
    };
    assert_eq!(
        ParserOptions::decide(None, &qwen, "<think>", nothing),
        plain
    );

    let continuing = |begun: &str| {
        let switches = OutputSwitches {
            continued: Some(begun),
            ..wants
        };
        ParserOptions::decide(None, &qwen, begun, switches)
    };
    assert_eq!(
        continuing("<think>\nLet me"),
        ParserOptions {
            starts_in_reasoning: true,
            ..ALL
        }
    );
    assert_eq!(
        continuing("<think>a</think>The"),
        ParserOptions {
            reasoning: false,
            ..ALL
        }
    );
    assert_eq!(
        continuing("The"),
        ParserOptions {
            reasoning: false,
            ..ALL
        }
    );
    assert_eq!(continuing(""), ALL);
}
