//! `<function=name>`, with a `<parameter=key>` for each argument: tags, but not XML, for nothing is escaped.

use super::json::{object, string};
use super::{Call, Fault};
use crate::parser::schema::ParameterTypes;

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
/// What no argument holds: it belongs to a call that was never finished.
const NEXT_CALL: &str = "<tool_call>";

pub(super) fn parse(body: &str, types: &ParameterTypes) -> Result<Vec<Call>, Fault> {
    let mut rest = body;
    let mut calls = Vec::new();
    while !rest.trim_start().is_empty() {
        let call;
        (call, rest) = function(rest, types)?;
        calls.push(call);
    }
    Ok(calls)
}

fn function<'a>(text: &'a str, types: &ParameterTypes) -> Result<(Call, &'a str), Fault> {
    let (name, mut rest) = opening(text, FUNCTION)?;
    let mut arguments: Vec<(&str, String)> = Vec::new();
    while !begins(rest, FUNCTION_END)? {
        let (key, after) = opening(rest, PARAMETER)?;
        let value;
        (value, rest) = parameter(after)?;
        let value = match types.json(name, key, value) {
            Some(json) => json,
            None => string(value)?,
        };
        if arguments.iter().any(|(known, _)| *known == key) {
            return Err(Fault::Malformed);
        }
        arguments.push((key, value));
    }
    let call = Call {
        name: name.to_owned(),
        arguments: object(arguments.iter().map(|(key, value)| (*key, value.as_str())))?,
    };
    Ok((call, &rest.trim_start()[FUNCTION_END.len()..]))
}

/// The name in a tag that opens with `tag`, and what follows.
fn opening<'a>(text: &'a str, tag: &str) -> Result<(&'a str, &'a str), Fault> {
    if !begins(text, tag)? {
        return Err(Fault::Malformed);
    }
    let rest = &text.trim_start()[tag.len()..];
    let end = rest.find(['>', '<', '\n']).ok_or(Fault::Unfinished)?;
    let name = rest[..end].trim();
    if name.is_empty() || !rest[end..].starts_with('>') {
        return Err(Fault::Malformed);
    }
    Ok((name, &rest[end + 1..]))
}

/// The value up to its closing tag, without the line breaks that belong to the tags.
///
/// A closing tag inside the value is told from its own by what follows.
fn parameter(text: &str) -> Result<(&str, &str), Fault> {
    for (end, _) in text.match_indices(PARAMETER_END) {
        let rest = &text[end + PARAMETER_END.len()..];
        if begins(rest, PARAMETER)? || begins(rest, FUNCTION_END)? {
            let value = &text[..end];
            if value.contains(NEXT_CALL) {
                return Err(Fault::Malformed);
            }
            let value = value.strip_prefix('\n').unwrap_or(value);
            return Ok((value.strip_suffix('\n').unwrap_or(value), rest));
        }
    }
    Err(if text.contains(NEXT_CALL) {
        Fault::Malformed
    } else {
        Fault::Unfinished
    })
}

/// Whether `tag` follows after white space; unfinished when the text ends before that is known.
fn begins(text: &str, tag: &str) -> Result<bool, Fault> {
    let begun = text.trim_start();
    if begun.len() < tag.len() && tag.starts_with(begun) {
        return Err(Fault::Unfinished);
    }
    Ok(begun.starts_with(tag))
}
