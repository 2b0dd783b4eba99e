//! What released templates expect beside Jinja itself: the functions, filters and methods of the Hugging Face
//! renderer.

use super::python_json::{JsonStyle, dumps};
use chrono::Local;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::fmt::Write;

/// The message of `raise_exception`, kept apart from the engine's own errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(call_method);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The local time in C's format.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", Local::now().format(format)).map_err(|_| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: `{format}` is not a time format"),
        )
    })?;
    Ok(text)
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let indent = match indent {
        Some(indent) if indent.is_none() || indent.is_undefined() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(32)),
        }),
        None => None,
    };
    let mut style = JsonStyle {
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        indent,
        ..JsonStyle::default()
    };
    if let Some(separators) = options
        .get::<Option<Value>>("separators")?
        .filter(|pair| !pair.is_none())
    {
        let pair: Vec<String> = separators
            .try_iter()?
            .map(|text| text.to_string())
            .collect();
        let [item, key] = pair.as_slice() else {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators must be a pair",
            ));
        };
        style.item_separator.clone_from(item);
        style.key_separator.clone_from(key);
    }
    options.assert_all_used()?;
    let text = dumps(value, &style)?;
    state.consume_fuel((text.len() / 64) as u64)?;
    Ok(Value::from_safe_string(text))
}

/// Python's string methods: those that the compatibility package lacks, then those that it has.
fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if value.kind() == ValueKind::String
        && let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)?
    {
        return Ok(result);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "split" | "rsplit" => {
            let (separator, limit, options): (Option<Value>, Option<i64>, Kwargs) =
                from_args(args)?;
            let separator = match separator {
                Some(separator) => Some(separator),
                None => options.get("sep")?,
            };
            let limit = match limit {
                Some(limit) => limit,
                None => options.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
            };
            options.assert_all_used()?;
            // Fewer than none is no limit.
            let parts = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
            let separator = separator.filter(|separator| !separator.is_none());
            let pieces = match separator.as_ref().map(Value::as_str) {
                None => split_whitespace(text, parts, method == "rsplit"),
                Some(None | Some("")) => {
                    return Err(Error::new(
                        ErrorKind::InvalidOperation,
                        format!(
                            "{method}: the separator must be a string with at least one character"
                        ),
                    ));
                }
                Some(Some(separator)) if method == "split" => {
                    text.splitn(parts, separator).collect()
                }
                Some(Some(separator)) => {
                    let mut pieces: Vec<&str> = text.rsplitn(parts, separator).collect();
                    pieces.reverse();
                    pieces
                }
            };
            pieces.into_iter().map(Value::from).collect::<Value>()
        }
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let stripped = if method == "removeprefix" {
                text.strip_prefix(affix)
            } else {
                text.strip_suffix(affix)
            };
            Value::from(stripped.unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let last = method == "rpartition";
            let halves = if last {
                text.rsplit_once(separator)
            } else {
                text.split_once(separator)
            };
            match halves {
                Some((before, after)) => [before, separator, after],
                None if last => ["", "", text],
                None => [text, "", ""],
            }
            .into_iter()
            .map(Value::from)
            .collect::<Value>()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

/// `str.split()` without a separator: runs of whitespace divide, and there are no empty pieces.
fn split_whitespace(text: &str, parts: usize, from_end: bool) -> Vec<&str> {
    let mut pieces = Vec::new();
    // The side that is cut last keeps its own surrounding space, as in Python.
    let mut rest = if from_end {
        text.trim_end()
    } else {
        text.trim_start()
    };
    while !rest.is_empty() {
        let cut = if from_end {
            rest.rfind(char::is_whitespace)
        } else {
            rest.find(char::is_whitespace)
        };
        match cut {
            Some(cut) if pieces.len() + 1 < parts => {
                let (left, right) = rest.split_at(cut);
                if from_end {
                    pieces.push(right.trim_start());
                    rest = left.trim_end();
                } else {
                    pieces.push(left);
                    rest = right.trim_start();
                }
            }
            _ => {
                pieces.push(rest);
                break;
            }
        }
    }
    if from_end {
        pieces.reverse();
    }
    pieces
}
