//! Calls in every syntax.

use super::tests::{ALL, PYTHON, call, content, parse, reasoning};

/// A call of `f` with these parameters.
fn function(parameters: &str) -> String {
    format!("<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>")
}

#[test]
fn function_blocks_take_their_types_from_the_schema() {
    let parameter = |key: &str, value: &str| format!("<parameter={key}>\n{value}\n</parameter>\n");
    for (key, value, json) in [
        ("text", "two\n\n lines\n", r#""two\n\n lines\n""#),
        ("text", "12", r#""12""#),
        (
            "text",
            "a </parameter> b </tool_call> c",
            r#""a </parameter> b </tool_call> c""#,
        ),
        ("text", "", r#""""#),
        ("k", "12", "12"),
        (
            "k",
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        ("k", "twelve", r#""twelve""#),
        ("ratio", "1.50", "1.50"),
        ("ratio", "None", "null"),
        ("flag", "True", "true"),
        ("flag", "false", "false"),
        ("tags", r#"["a","北京",1]"#, r#"["a", "北京", 1]"#),
        ("tags", "null", "null"),
        ("where", r#"{"b":{},"a":1}"#, r#"{"b": {}, "a": 1}"#),
        ("where", "[1]", r#""[1]""#),
        ("mode", "2", r#""2""#),
        ("free", "3", r#""3""#),
        ("unknown", "3", r#""3""#),
    ] {
        let text = function(&parameter(key, value));
        let expected = call(0, "f", &format!("{{\"{key}\": {json}}}"));
        assert_eq!(parse(ALL, &[&text]), vec![expected], "{text}");
    }
    let several = parameter("k", "1") + &parameter("text", "x") + &parameter("free", "{\"a\": 1}");
    let text = format!("Sure.\n\n{}\n{}", function(&several), function(""));
    let expected = vec![
        content("Sure."),
        call(0, "f", r#"{"k": 1, "text": "x", "free": "{\"a\": 1}"}"#),
        call(1, "f", "{}"),
    ];
    assert_eq!(parse(ALL, &[&text]), expected);
    // Tools that nobody offered have strings for arguments.
    let unknown = "<tool_call><function=g><parameter=k>1</parameter></function></tool_call>";
    assert_eq!(parse(ALL, &[unknown]), vec![call(0, "g", r#"{"k": "1"}"#)]);
}

#[test]
fn python_literals_become_json() {
    for (value, json) in [
        (r#"'it\'s "x"\n\\ \q'"#, r#""it's \"x\"\n\\ \\q""#),
        (
            r#""北京 🙂 \u5317 \U0001F642 \ud83d\ude42 \x41\101""#,
            r#""北京 🙂 北 🙂 🙂 AA""#,
        ),
        ("\"a\\\nb\nc\"", r#""ab\nc""#),
        ("'''a 'b'\n\"c\"'''", r#""a 'b'\n\"c\"""#),
        ("'<|tool_call_end|> )]'", r#""<|tool_call_end|> )]""#),
        ("''", r#""""#),
        ("-12", "-12"),
        ("+1_000", "1000"),
        (
            "123456789012345678901234567890",
            "123456789012345678901234567890",
        ),
        ("1.50", "1.50"),
        (".5", "0.5"),
        ("5.", "5.0"),
        ("1e-3", "1e-3"),
        ("True", "true"),
        ("False", "false"),
        ("None", "null"),
        ("null", "null"),
        ("[ 1, 'a' , [], ]", r#"[1, "a", []]"#),
        ("(1, 2)", "[1, 2]"),
        (
            "{'b': {\"c\": true}, 'a': None, 1: 2}",
            r#"{"b": {"c": true}, "a": null, "1": 2}"#,
        ),
        ("{}", "{}"),
    ] {
        let text = format!("<|tool_call_start|>[f(x={value}, y = 1)]<|tool_call_end|>");
        let expected = call(0, "f", &format!("{{\"x\": {json}, \"y\": 1}}"));
        assert_eq!(parse(PYTHON, &[&text]), vec![expected], "{text}");
    }
}

#[test]
fn python_calls_come_in_lists() {
    let tagged = |body: &str| format!("<|tool_call_start|>{body}<|tool_call_end|>");
    for body in [
        "[a.b-c(), g(n=1,),]",
        "\n[ a.b-c ( ) ,\n g(n=1) ]\n",
        r#"[{"name": "a.b-c"}, {"name": "g", "arguments": {"n": 1}}]"#,
    ] {
        let expected = vec![call(0, "a.b-c", "{}"), call(1, "g", r#"{"n": 1}"#)];
        assert_eq!(parse(PYTHON, &[&tagged(body)]), expected, "{body}");
    }
    let around = format!("<think>hm</think>Look: {} I look.", tagged("g(n=1)"));
    let expected = vec![
        reasoning("hm"),
        content("Look:"),
        call(0, "g", r#"{"n": 1}"#),
        content("I look."),
    ];
    assert_eq!(parse(PYTHON, &[&around]), expected);
    // The answer may end before the closing tag.
    assert_eq!(
        parse(PYTHON, &["<|tool_call_start|>[g(n=1)]"]),
        vec![call(0, "g", r#"{"n": 1}"#)]
    );
}

#[test]
fn malformed_calls_of_every_syntax_stay_text() {
    let deep = format!("[f(x={}1{})]", "[".repeat(5000), "]".repeat(5000));
    for body in [
        "",
        "[]",
        "hello",
        "[f]",
        "[f(]",
        "[f(1)]",
        "[f(x=)]",
        "[f(x=y)]",
        "[f(x=1)",
        "[f(x=1) g()]",
        "[f(x=1)] more",
        "[f(x=1, x=2)]",
        "[f(x='a)]",
        "[f(x=1.2.3)]",
        "[f(x=007)]",
        "[f(x=1e999)]",
        "[f(x=nan)]",
        r"[f(x='\ud83d')]",
        r"[f(x='\xzz')]",
        "[f(x={1})]",
        "[f(x=g())]",
        "[f(x=-)]",
        "[f(x=1e)]",
        &deep,
    ] {
        let text = format!("a <|tool_call_start|>{body}<|tool_call_end|> b");
        assert_eq!(parse(PYTHON, &[&text]), vec![content(&text)], "{text}");
    }
    for body in [
        "<function=>\n</function>",
        "<function=f\n</function>",
        "<function=f>\n<parameter=k>\n1\n</function>",
        "<function=f>\n<parameter=k>\n1\n</parameter>\n",
        "<function=f>\n<parameter=k>1</parameter><parameter=k>2</parameter></function>",
        "<function=f>\nwords\n</function>",
        "<function=f>\n</function>\nwords",
        "<parameter=k>1</parameter>",
    ] {
        let text = format!("a <tool_call>{body}</tool_call> b");
        assert_eq!(parse(ALL, &[&text]), vec![content(&text)], "{text}");
    }
}

#[test]
fn a_call_that_was_never_finished_does_not_swallow_the_next() {
    let broken = "<tool_call>\n<function=f>\n<parameter=k>\n1\n</tool_call>";
    assert_eq!(
        parse(ALL, &[&format!("{broken}\n{}", function(""))]),
        vec![content(broken), call(0, "f", "{}")]
    );
    let broken = "<|tool_call_start|>[f(x='a)]<|tool_call_end|>";
    let good = "<|tool_call_start|>[g(y='b')]<|tool_call_end|>";
    assert_eq!(
        parse(PYTHON, &[&format!("{broken} {good}")]),
        vec![content(broken), call(0, "g", r#"{"y": "b"}"#)]
    );
}
