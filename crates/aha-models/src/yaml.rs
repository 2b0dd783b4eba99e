//! YAML configurations as JSON values.

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Collections in collections: no configuration comes near.
const MAX_DEPTH: usize = 64;

/// A collection that is being read.
enum Open {
    List(Vec<Value>),
    /// Entries, and the key that waits for its value.
    Map(Map<String, Value>, Option<String>),
}

/// Reads the first document of `text`; an empty one is null. Plain scalars have the types of YAML's core schema.
///
/// # Errors
/// Says what is wrong and where. Aliases are refused: they let a small file stand for any amount of values, and no
/// configuration of a model has any.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let line = span.start.line();
        let value = match event {
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|closed| match closed {
                Open::List(list) => Value::Array(list),
                Open::Map(map, _) => Value::Object(map),
            }),
            Event::Scalar(text, ScalarStyle::Plain, ..) => Some(plain(&text)),
            Event::Scalar(text, ..) => Some(Value::String(text.into_owned())),
            Event::Alias(..) => return Err(format!("line {line}: aliases are not read")),
            _ => None,
        };
        if open.len() > MAX_DEPTH {
            return Err(format!("line {line}: more than {MAX_DEPTH} levels"));
        }
        let Some(value) = value else { continue };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, key)) => match key.take() {
                Some(key) => {
                    map.insert(key, value);
                }
                None => *key = Some(key_text(value, line)?),
            },
        }
    }
    Ok(Value::Null)
}

fn key_text(key: Value, line: usize) -> Result<String, String> {
    match key {
        Value::String(text) => Ok(text),
        Value::Array(_) | Value::Object(_) => Err(format!("line {line}: a key is no text")),
        other => Ok(other.to_string()),
    }
}

/// A scalar without quotes.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::from(number);
    }
    // Rust also reads words (`inf`, `nan`) as numbers, which plain text may be.
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E');
    text.chars()
        .all(numeric)
        .then(|| text.parse().ok().and_then(Number::from_f64))
        .flatten()
        .map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_become_json() {
        let text = "# a model\nmodel: FunASRNano\nconf:\n    size: 512\n    rate: 1e-3\n    shift: -0.5\n    freeze: true\n    \
                    file: null\n    none:\n    name: \"8\"\n    dash: Qwen3-0.6B\n    inf: inf\nlist:\n- a\n- [1, 2.5]\n- {b: c}\n";
        let want = json!({
            "model": "FunASRNano",
            "conf": {"size": 512, "rate": 0.001, "shift": -0.5, "freeze": true, "file": null, "none": null,
                     "name": "8", "dash": "Qwen3-0.6B", "inf": "inf"},
            "list": ["a", [1, 2.5], {"b": "c"}],
        });
        assert_eq!(parse(text), Ok(want));
        assert_eq!(parse(""), Ok(Value::Null));
    }

    #[test]
    fn what_could_grow_without_end_is_refused() {
        let error = parse("a: &x [1]\nb: *x\n").unwrap_err();
        assert!(error.contains("aliases"), "{error}");
        let deep = "[".repeat(1000);
        assert!(parse(&deep).is_err());
        assert!(parse("a: [1, 2\nb: 3").is_err());
        assert!(parse("? [a]\n: b").is_err());
    }
}
