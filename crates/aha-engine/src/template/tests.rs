use super::*;
use crate::chat::{Message, ToolCall};
use crate::tokenizer::tests::fixture;

fn template(text: &str) -> ChatTemplate {
    ChatTemplate::from_text(text, "a test").unwrap()
}

fn rendered(text: &str, chat: &Chat) -> Result<String, EngineError> {
    template(text).render(chat, &SpecialTokens::default())
}

/// The output of a template that needs no messages.
fn output(text: &str) -> String {
    rendered(text, &Chat::default()).unwrap()
}

fn refused(text: &str) -> String {
    match rendered(text, &Chat::user("hi")) {
        Err(EngineError::Template { message }) => message,
        other => panic!("not refused: {other:?}"),
    }
}

/// A chat from the body of a request, as far as the fixtures use it.
pub(crate) fn chat_from_request(request: &Value) -> Chat {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let messages = request["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            let tool_calls = message["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|call| ToolCall {
                    id: text(&call["id"]).unwrap(),
                    name: text(&call["function"]["name"]).unwrap(),
                    arguments: call["function"]["arguments"].clone(),
                });
            Message {
                tool_calls: tool_calls.collect(),
                tool_call_id: text(&message["tool_call_id"]),
                reasoning_content: text(&message["reasoning_content"]),
                name: text(&message["name"]),
                ..match &message["content"] {
                    Value::Null => Message {
                        role: text(&message["role"]).unwrap(),
                        ..Message::default()
                    },
                    content => {
                        Message::text(text(&message["role"]).unwrap(), text(content).unwrap())
                    }
                }
            }
        });
    Chat {
        messages: messages.collect(),
        tools: request["tools"].as_array().cloned().unwrap_or_default(),
        template_kwargs: request["chat_template_kwargs"]
            .as_object()
            .cloned()
            .unwrap_or_default(),
        ..Chat::default()
    }
}

#[test]
fn fixtures_render_to_the_reference_prompts() {
    for name in [
        "qwen3/sharded",
        "qwen3/untied-yarn",
        "llama/smol",
        "llama/llama3",
    ] {
        let folder = fixture(name);
        let template = ChatTemplate::from_folder(&folder).unwrap().unwrap();
        let tokenizer = crate::tokenizer::Tokenizer::from_folder(&folder).unwrap();
        let golden: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap())
                .unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let prompt = template
                .render(
                    &chat_from_request(&case["request"]),
                    tokenizer.special_tokens(),
                )
                .unwrap();
            assert_eq!(
                prompt, case["expect"]["prompt_text"],
                "{name} {}",
                case["name"]
            );
        }
    }
}

#[test]
fn python_methods_behave_as_in_python() {
    for (expression, expected) in [
        ("'a,b,c'.split(',')[-1]", "c"),
        ("'a,b,c'.split(',', 1)[1]", "b,c"),
        ("'a,b,c'.split(',', maxsplit=1)|length", "2"),
        ("'a,b,c'.rsplit(',', 1)[0]", "a,b"),
        ("' a  b '.split()|join('|')", "a|b"),
        ("' a  b c '.split(None, 1)|join('|')", "a|b c "),
        ("' a b  c '.rsplit(None, 1)|join('|')", " a b|c"),
        (
            "'xxhixx'.strip('x') ~ 'xxhi'.lstrip('x') ~ 'hixx'.rstrip('x')",
            "hihihi",
        ),
        ("' hi\n'.strip()", "hi"),
        ("'<tool_response>x'.startswith('<tool_response>')", "True"),
        ("'abc'.startswith(('x', 'a'))", "True"),
        ("'abc'.endswith('bc')", "True"),
        ("'hello world'.title()", "Hello World"),
        ("'aXbX'.replace('X', '-', 1)", "a-bX"),
        ("'abc'.removeprefix('a').removesuffix('c')", "b"),
        (
            "'k=v=w'.partition('=')[2] ~ 'k=v=w'.rpartition('=')[0]",
            "v=wk=v",
        ),
        ("{'a': 1, 'b': 2}.items()|list|length", "2"),
        ("{'a': 1}.get('b', 'none')", "none"),
        ("{'b': 1, 'a': 2}.keys()|join(',')", "b,a"),
        ("{'items': 3}.items()|list|tojson", "[[\"items\", 3]]"),
        ("[1, 2, 3][::-1]|tojson", "[3, 2, 1]"),
        ("'abc'[::-1] ~ 'abc'[-1] ~ 'abc'[:2]", "cbacab"),
        ("none", "None"),
        ("true ~ 1.0 ~ [1, 'a']", "True1.0[1, 'a']"),
    ] {
        assert_eq!(
            output(&format!("{{{{ {expression} }}}}")),
            expected,
            "{expression}"
        );
    }
}

#[test]
fn tojson_takes_pythons_options() {
    let value = "{'b': 'é<>', 'a': [1, 2.5, 1e-05, none]}";
    assert_eq!(
        output(&format!("{{{{ {value}|tojson }}}}")),
        r#"{"b": "é<>", "a": [1, 2.5, 1e-05, null]}"#
    );
    assert_eq!(
        output(&format!(
            "{{{{ {value}|tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}}}"
        )),
        r#"{"a":[1,2.5,1e-05,null],"b":"\u00e9<>"}"#
    );
    assert_eq!(
        output("{{ {'a': [1]}|tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1\n  ]\n}"
    );
    assert_eq!(output("{{ {'a': 1}|tojson(indent=none) }}"), "{\"a\": 1}");
    assert!(refused("{{ {'a': 1}|tojson(indnet=2) }}").contains("indnet"));
}

#[test]
fn jinja_as_the_reference_configures_it() {
    // trim_blocks and lstrip_blocks; one trailing newline is dropped.
    assert_eq!(output("{% if true %}\n  a\n  {% endif %}\nb\n"), "  a\nb");
    assert_eq!(
        output(
            "{% for i in [1,2,3,4] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "13"
    );
    assert_eq!(
        output(
            "{% set ns = namespace(x=1) %}{% for i in [1,2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}"
        ),
        "4"
    );
    assert_eq!(
        output(
            "{{ 'a' is string }}{{ 1 is string }}{{ x is defined }}{{ none is none }}{{ {} is mapping }}{{ false is false }}"
        ),
        "TrueFalseFalseTrueTrueTrue"
    );
    assert_eq!(
        output(
            "{% for x in [1,2] %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.previtem is defined }}{% endfor %}"
        ),
        "0TrueFalseFalse1FalseTrueTrue"
    );
    assert_eq!(
        output("a{%- generation -%} b {%- endgeneration %} c"),
        "ab c"
    );
    assert_eq!(
        output("{% generation %}\n{{ 'x' }}\n{% endgeneration %}\n{{ 'y' }}"),
        "x\ny"
    );
    assert_eq!(output("{{ '<b>&' }}"), "<b>&");
    assert_eq!(
        output("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}"),
        "[1]"
    );
    let year: u32 = output("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year >= 2024);
    assert!(refused("{{ strftime_now('%!') }}").contains("%!"));
}

#[test]
fn raised_exceptions_are_reported_word_by_word() {
    assert_eq!(
        refused("{{ raise_exception('Roles must alternate') }}"),
        "Roles must alternate"
    );
    assert!(refused("{{ messages.a.b }}").contains("undefined"));
    let error = ChatTemplate::from_text("{% if %}", "here.jinja")
        .unwrap_err()
        .to_string();
    assert!(error.contains("here.jinja"), "{error}");
}

#[test]
fn endless_templates_are_stopped() {
    assert!(
        refused(
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}"
        )
        .contains("steps")
    );
    assert!(refused("{% set ns = namespace(x='0123456789') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}").contains("steps"));
    assert!(
        refused("{% set x = 'ab' * 1000000 %}{% for i in range(40) %}{{ x }}{% endfor %}")
            .contains("bytes")
    );
    assert!(refused("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}").contains("recursion"));
}

#[test]
fn content_parts_go_to_templates_that_read_them() {
    let parts = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}<{{ part.text }}>{% endif %}{% endfor %}{% endfor %}";
    let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}{% endfor %}";
    assert_eq!(rendered(parts, &Chat::user("hi")).unwrap(), "<hi>");
    assert_eq!(rendered(both, &Chat::user("hi")).unwrap(), "hi");
    let mut chat = Chat::user("a");
    chat.messages[0]
        .content
        .push(crate::chat::Part::Text("b".to_owned()));
    assert_eq!(rendered(both, &chat).unwrap(), "ab");
    assert_eq!(rendered(parts, &chat).unwrap(), "<a><b>");
}

fn chat_with_call(arguments: Value) -> Chat {
    let call = ToolCall {
        id: "call_1".to_owned(),
        name: "f".to_owned(),
        arguments,
    };
    Chat {
        messages: vec![
            Message::text("user", "hi"),
            Message {
                role: "assistant".to_owned(),
                tool_calls: vec![call],
                ..Message::default()
            },
        ],
        ..Chat::default()
    }
}

#[test]
fn arguments_take_the_form_that_the_template_reads() {
    let calls = |body: &str| {
        format!(
            "{{% for m in messages %}}{{{{ m.content or '' }}}}{{% for c in m.tool_calls %}}{body}{{% endfor %}}{{% endfor %}}"
        )
    };
    let pasting = calls(
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments|tojson }}{% endif %}",
    );
    let encoding = calls("{{ c.function.arguments|tojson }}");
    let iterating =
        calls("{% for k, v in c.function.arguments|items %}{{ k }}={{ v }};{% endfor %}");
    let text = json!("{\"b\":1, \"a\":\"x\"}");
    let object = json!({"b": 1, "a": "x"});
    assert_eq!(
        rendered(&pasting, &chat_with_call(text.clone())).unwrap(),
        "hi{\"b\":1, \"a\":\"x\"}"
    );
    assert_eq!(
        rendered(&pasting, &chat_with_call(object.clone())).unwrap(),
        "hi{\"b\": 1, \"a\": \"x\"}"
    );
    assert_eq!(
        rendered(&encoding, &chat_with_call(text.clone())).unwrap(),
        "hi{\"b\": 1, \"a\": \"x\"}"
    );
    assert_eq!(
        rendered(&iterating, &chat_with_call(text)).unwrap(),
        "hib=1;a=x;"
    );
    assert_eq!(
        rendered(&iterating, &chat_with_call(object)).unwrap(),
        "hib=1;a=x;"
    );
    match rendered(&iterating, &chat_with_call(json!("not json"))) {
        Err(EngineError::InvalidRequest { param, .. }) => {
            assert_eq!(
                param.unwrap(),
                "messages[1].tool_calls[0].function.arguments"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn missing_content_is_null_only_where_it_can_be() {
    let tests_null = "{% for m in messages %}{% if m.content is none %}null{% else %}{{ m.content }}{% endif %}{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}{% endfor %}";
    let concatenates = "{% for m in messages %}{{ m.role + ':' + m.content }}{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}{% endfor %}";
    assert_eq!(
        rendered(tests_null, &chat_with_call(json!("{}"))).unwrap(),
        "hinull{}"
    );
    assert_eq!(
        rendered(concatenates, &chat_with_call(json!("{}"))).unwrap(),
        "user:hiassistant:{}"
    );
}

#[test]
fn developer_is_system_for_templates_that_do_not_know_it() {
    let chat = Chat {
        messages: vec![Message::text("developer", "x")],
        ..Chat::default()
    };
    assert_eq!(rendered("{{ messages[0].role }}", &chat).unwrap(), "system");
    assert_eq!(
        rendered("{{ messages[0].role }}{# developer #}", &chat).unwrap(),
        "developer"
    );
}

#[test]
fn variables_reach_the_template_and_reserved_ones_are_refused() {
    let text = "{{ bos_token }}{{ thinking }}{{ tools is none }}{{ add_generation_prompt }}";
    let mut special = SpecialTokens::default();
    special.set("bos_token", "<s>");
    let mut chat = Chat::user("hi");
    chat.template_kwargs
        .insert("thinking".to_owned(), json!(false));
    assert_eq!(
        template(text).render(&chat, &special).unwrap(),
        "<s>FalseTrueTrue"
    );
    chat.template_kwargs
        .insert("messages".to_owned(), json!([]));
    match template(text).render(&chat, &special) {
        Err(EngineError::InvalidRequest { param, .. }) => {
            assert_eq!(param.unwrap(), "chat_template_kwargs.messages");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_final_message_is_continued_in_place() {
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let trimming = "{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}<end>{% endfor %}";
    let mut chat = Chat::user("hi");
    chat.messages.push(Message::text("assistant", "Once upon "));
    chat.continue_final_message = true;
    assert_eq!(
        rendered(plain, &chat).unwrap(),
        "<user>hi<end><assistant>Once upon "
    );
    assert_eq!(
        rendered(trimming, &chat).unwrap(),
        "<user>hi<end><assistant>Once upon"
    );
    let folder = fixture("qwen3/sharded");
    let qwen = ChatTemplate::from_folder(&folder).unwrap().unwrap();
    let text = qwen.render(&chat, &SpecialTokens::default()).unwrap();
    assert!(
        text.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\nOnce upon "),
        "{text}"
    );
    match rendered("{{ messages[0].content }}", &chat) {
        Err(EngineError::InvalidRequest { param, .. }) => {
            assert_eq!(param.unwrap(), "continue_final_message");
        }
        other => panic!("{other:?}"),
    }
}

fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

#[test]
fn templates_are_found_in_every_place_and_in_order() {
    let render = |files: &[(&str, &str)], tools: bool| {
        let folder = folder_with(files);
        let template = ChatTemplate::from_folder(folder.path()).unwrap()?;
        let tools = if tools { vec![json!({})] } else { Vec::new() };
        Some(
            template
                .render(
                    &Chat {
                        tools,
                        ..Chat::default()
                    },
                    &SpecialTokens::default(),
                )
                .unwrap(),
        )
    };
    let config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    let json = ("chat_template.json", r#"{"chat_template": "json"}"#);
    let jinja = ("chat_template.jinja", "jinja");
    let list = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}"#,
    );
    assert_eq!(render(&[], false), None);
    assert_eq!(render(&[("tokenizer_config.json", "{}")], false), None);
    assert_eq!(render(&[config], true).unwrap(), "config");
    assert_eq!(render(&[config, json], false).unwrap(), "json");
    assert_eq!(render(&[config, json, jinja], false).unwrap(), "jinja");
    assert_eq!(render(&[list], false).unwrap(), "plain");
    assert_eq!(render(&[list], true).unwrap(), "tools");
    let more = ("additional_chat_templates/tool_use.jinja", "more");
    assert_eq!(render(&[jinja, more], true).unwrap(), "more");
    assert_eq!(render(&[jinja, more], false).unwrap(), "jinja");
    for wrong in [
        r#"{"chat_template": 3}"#,
        r#"{"chat_template": [1]}"#,
        r#"{"chat_template": "{% if %}"}"#,
        "{",
    ] {
        let folder = folder_with(&[("tokenizer_config.json", wrong)]);
        let error = ChatTemplate::from_folder(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("tokenizer_config.json"), "{error}");
    }
}
