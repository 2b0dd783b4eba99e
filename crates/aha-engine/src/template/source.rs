//! Where checkpoints keep their templates.

use super::TemplateError;
use crate::tokenizer::{TokenizerError, read_json, read_text};
use serde_json::Value;
use std::path::Path;

/// The largest known template has 20 kB; those of this size are not templates.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
const MAX_CONFIG_BYTES: u64 = 32 << 20;

/// The name of the template that is used when nothing asks for another.
pub(super) const DEFAULT: &str = "default";
/// The name of the template for requests with tools, where a checkpoint has one of its own.
pub(super) const TOOL_USE: &str = "tool_use";

/// A template's text with its name and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) origin: String,
}

/// All templates of a checkpoint's folder. The reference's order of precedence: chat_template.jinja, then
/// chat_template.json (of a processor, which knows media), then tokenizer_config.json.
pub(super) fn find(folder: &Path) -> Result<Vec<Source>, TemplateError> {
    let mut sources = Vec::new();
    let path = folder.join("chat_template.jinja");
    if let Some(text) = read_text(&path, MAX_TEMPLATE_BYTES)? {
        sources.push(Source {
            name: DEFAULT.to_owned(),
            text,
            origin: path.display().to_string(),
        });
        sources.extend(additional(folder)?);
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        if sources.iter().any(|source| source.name == DEFAULT) {
            break;
        }
        let path = folder.join(file);
        if let Some(config) = read_json(&path, MAX_CONFIG_BYTES)? {
            sources.extend(from_config(&config, &path.display().to_string())?);
        }
    }
    Ok(sources)
}

/// `additional_chat_templates/<name>.jinja`.
fn additional(folder: &Path) -> Result<Vec<Source>, TemplateError> {
    let folder = folder.join("additional_chat_templates");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(TokenizerError::Read {
                path: folder,
                message: error.to_string(),
            }
            .into());
        }
    };
    let mut sources = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "jinja")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
            && name != DEFAULT
            && let Some(text) = read_text(&path, MAX_TEMPLATE_BYTES)?
        {
            sources.push(Source {
                name: name.to_owned(),
                text,
                origin: path.display().to_string(),
            });
        }
    }
    sources.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(sources)
}

/// The field `chat_template`: a text, or a list of named texts.
fn from_config(config: &Value, origin: &str) -> Result<Vec<Source>, TemplateError> {
    let source = |name: &str, text: &str| Source {
        name: name.to_owned(),
        text: text.to_owned(),
        origin: origin.to_owned(),
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![source(DEFAULT, text)]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| {
                match (
                    entry.get("name").and_then(Value::as_str),
                    entry.get("template").and_then(Value::as_str),
                ) {
                    (Some(name), Some(text)) => Ok(source(name, text)),
                    _ => Err(wrong_shape(
                        origin,
                        "each entry of chat_template needs a name and a template",
                    )),
                }
            })
            .collect(),
        Some(_) => Err(wrong_shape(
            origin,
            "chat_template must be a text or a list",
        )),
    }
}

fn wrong_shape(origin: &str, message: &str) -> TemplateError {
    TemplateError::Syntax {
        origin: origin.to_owned(),
        message: message.to_owned(),
    }
}

/// Replaces the tags `{% generation %}` and `{% endgeneration %}`, with which training code marks the assistant's
/// text, by a scope that does nothing. Their whitespace marks stay.
pub(super) fn without_generation_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = (&tag[2..end], &tag[end..]);
        let name = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match name {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                out.push_str("{%");
                out.push_str(&inside.replacen(name, replacement, 1));
            }
            None => {
                out.push_str("{%");
                out.push_str(inside);
            }
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
