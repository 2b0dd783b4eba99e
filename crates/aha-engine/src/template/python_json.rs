//! Python's `json.dumps`, to the character: prompts were trained with what it writes.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Deepest nesting that is written; deeper values are refused instead of overflowing the stack.
const MAX_DEPTH: usize = 128;

/// The options of `json.dumps` that templates use.
#[derive(Debug, Clone)]
pub(crate) struct JsonStyle {
    pub(crate) ensure_ascii: bool,
    pub(crate) indent: Option<String>,
    pub(crate) item_separator: String,
    pub(crate) key_separator: String,
    pub(crate) sort_keys: bool,
}

impl Default for JsonStyle {
    /// `json.dumps(value, ensure_ascii=False)`.
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

/// Writes a template value as JSON.
///
/// # Errors
/// Undefined values, bytes and functions have no JSON form.
pub(crate) fn dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut text = String::new();
    write_value(&mut text, value, style, 0)?;
    Ok(text)
}

fn write_value(
    out: &mut String,
    value: &Value,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "the value is nested too deeply for JSON",
        ));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => {
            write_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.collect::<Vec<_>>();
            write_items(out, ['[', ']'], items.len(), style, depth, |out, index| {
                write_value(out, &items[index], style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                entries.push((key_text(&key)?, item));
            }
            if style.sort_keys {
                entries.sort_by(|left, right| left.0.cmp(&right.0));
            }
            write_items(
                out,
                ['{', '}'],
                entries.len(),
                style,
                depth,
                |out, index| {
                    let (key, item) = &entries[index];
                    write_string(out, key, style.ensure_ascii);
                    out.push_str(&style.key_separator);
                    write_value(out, item, style, depth + 1)
                },
            )?;
        }
        kind => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of kind {kind} cannot be written as JSON"),
            ));
        }
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    [open, close]: [char; 2],
    count: usize,
    style: &JsonStyle,
    depth: usize,
    mut write_item: impl FnMut(&mut String, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    for index in 0..count {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, depth + 1);
        write_item(out, index)?;
    }
    if count > 0 {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a key of kind {kind} cannot be written as JSON"),
        )),
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float_repr)
}

/// Python's `repr` of a float, with JSON's names for what is not finite.
pub(crate) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // Rust and Python both write the shortest digits that read back as the same number; only the layout differs.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let mut text = value.to_string();
        if !text.contains('.') {
            text.push_str(".0");
        }
        text
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    }
}

fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if control < ' ' => push_escape(out, control as u16),
            other if ensure_ascii && !(' '..='~').contains(&other) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    push_escape(out, *unit);
                }
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

fn push_escape(out: &mut String, unit: u16) {
    // Writing to a string cannot fail.
    let _ = write!(out, "\\u{unit:04x}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    fn dump(json: &str) -> String {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        dumps(&Value::from(Serde(value)), &JsonStyle::default()).unwrap()
    }

    #[test]
    fn matches_python_on_structure_and_order() {
        let text =
            r#"{"z": 1, "a": [true, false, null, []], "m": {}, "s": "<b>&'é🙂\u0001\"\\\n\u007f"}"#;
        assert_eq!(
            dump(text),
            "{\"z\": 1, \"a\": [true, false, null, []], \"m\": {}, \"s\": \"<b>&'é🙂\\u0001\\\"\\\\\\n\u{7f}\"}"
        );
    }

    #[test]
    fn floats_are_written_as_python_does() {
        for (value, expected) in [
            (2.5, "2.5"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1.5e-7, "1.5e-07"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::INFINITY, "Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float_repr(value), expected);
        }
        assert_eq!(
            dump("[1, 1.0, 18446744073709551615, -3, 1e-05]"),
            "[1, 1.0, 18446744073709551615, -3, 1e-05]"
        );
    }

    #[test]
    fn options_match_python() {
        let value = Value::from(Serde(
            serde_json::json!({"b": [1, {"é": "🙂"}], "a": {}, "c": []}),
        ));
        let style = JsonStyle {
            ensure_ascii: true,
            indent: Some("  ".to_owned()),
            item_separator: ",".to_owned(),
            sort_keys: true,
            ..JsonStyle::default()
        };
        assert_eq!(
            dumps(&value, &style).unwrap(),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    {\n      \"\\u00e9\": \"\\ud83d\\ude42\"\n    }\n  ],\n  \"c\": []\n}"
        );
    }

    #[test]
    fn what_has_no_json_form_is_an_error() {
        assert!(dumps(&Value::UNDEFINED, &JsonStyle::default()).is_err());
        let mut deep = Value::from(1);
        for _ in 0..200 {
            deep = Value::from(vec![deep]);
        }
        assert!(dumps(&deep, &JsonStyle::default()).is_err());
    }
}
