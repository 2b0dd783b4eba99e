//! Chat templates: a conversation to the text that the model was trained to see.

mod capabilities;
mod error;
mod functions;
mod messages;
mod python_json;
mod source;

pub use error::TemplateError;

pub(crate) use python_json::{JsonStyle, dumps};

use crate::chat::Chat;
use crate::error::EngineError;
use crate::tokenizer::SpecialTokens;
use aha_nn::weights::gguf::{Metadata, Value as GgufValue};
use capabilities::Capabilities;
use functions::Raised;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value as TemplateValue};
use serde_json::{Map, Value, json};
use source::{DEFAULT, Source, TOOL_USE};
use std::error::Error;
use std::io::Write;
use std::path::Path;

/// Steps that one rendering may take. A conversation of a thousand turns takes some hundred thousand.
const FUEL: u64 = 10_000_000;
/// Bytes that one rendering may write.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Nesting of macros and blocks: enough for schemas in schemas, small enough for a thread's stack.
const MAX_RECURSION: usize = 200;
/// Where a GGUF file has its template.
const GGUF_KEY: &str = "tokenizer.chat_template";
/// Stands at the end of a message that is to be continued. The space tells whether the template trims contents.
const CONTINUATION_MARK: &str = "\u{E000}continue-here\u{E000} ";

/// A checkpoint's chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    variants: Vec<Variant>,
}

#[derive(Debug)]
struct Variant {
    name: String,
    text: String,
    capabilities: Capabilities,
}

impl ChatTemplate {
    /// Reads a checkpoint's template from `chat_template.jinja` (with `additional_chat_templates/`),
    /// `chat_template.json` or `tokenizer_config.json`; `None` when it has none, as base models do.
    ///
    /// # Errors
    /// [`TemplateError`] when a file cannot be read or a template is not valid.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, TemplateError> {
        let sources = source::find(folder)?;
        if sources.is_empty() {
            Ok(None)
        } else {
            Self::from_sources(sources).map(Some)
        }
    }

    /// The template in the metadata of a GGUF file (`tokenizer.chat_template`, with `tokenizer.chat_template.tool_use`
    /// for requests with tools); `None` when it has none.
    ///
    /// # Errors
    /// [`TemplateError`] when the metadata are of another type or the template is not valid.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>, TemplateError> {
        let mut sources = Vec::new();
        for (name, key) in [
            (DEFAULT, GGUF_KEY.to_owned()),
            (TOOL_USE, format!("{GGUF_KEY}.{TOOL_USE}")),
        ] {
            let text = metadata.text(&key).map_err(|error| TemplateError::Syntax {
                origin: key.clone(),
                message: error.to_string(),
            })?;
            if let Some(text) = text {
                sources.push(Source {
                    name: name.to_owned(),
                    text: text.to_owned(),
                    origin: key,
                });
            }
        }
        if sources.is_empty() {
            Ok(None)
        } else {
            Self::from_sources(sources).map(Some)
        }
    }

    /// The same templates as the metadata of a GGUF file. It has no room for others than these two.
    ///
    /// # Errors
    /// [`TemplateError`] when a file cannot be read.
    pub fn gguf_of_folder(folder: &Path) -> Result<Vec<(String, GgufValue)>, TemplateError> {
        let named = |Source { name, text, .. }| match name.as_str() {
            DEFAULT => Some((GGUF_KEY.to_owned(), GgufValue::Text(text))),
            TOOL_USE => Some((format!("{GGUF_KEY}.{TOOL_USE}"), GgufValue::Text(text))),
            _ => None,
        };
        Ok(source::find(folder)?
            .into_iter()
            .filter_map(named)
            .collect())
    }

    /// A template from its text. `origin` says in errors where it came from.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] when it is not valid.
    pub fn from_text(
        text: impl Into<String>,
        origin: impl Into<String>,
    ) -> Result<Self, TemplateError> {
        Self::from_sources(vec![Source {
            name: DEFAULT.to_owned(),
            text: text.into(),
            origin: origin.into(),
        }])
    }

    /// The error for a chat with a checkpoint that has no template.
    pub fn missing() -> EngineError {
        EngineError::invalid(
            "messages",
            "this model has no chat template: send a text to /completions, or start with a template of your own",
        )
    }

    fn from_sources(sources: Vec<Source>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax {
            origin: "the syntax settings".to_owned(),
            message: error.to_string(),
        })?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        functions::install(&mut environment);

        let mut variants = Vec::with_capacity(sources.len());
        for Source { name, text, origin } in sources {
            environment
                .add_template_owned(name.clone(), source::without_generation_tags(&text))
                .map_err(|error| TemplateError::Syntax {
                    origin,
                    message: error.to_string(),
                })?;
            let capabilities = Capabilities::probe(&text, |messages| {
                let context = json!({
                    "messages": messages, "tools": null, "documents": null, "add_generation_prompt": false,
                    "bos_token": "", "eos_token": "", "pad_token": "", "unk_token": "",
                });
                render(&environment, &name, TemplateValue::from(Serde(context))).ok()
            });
            variants.push(Variant {
                name,
                text,
                capabilities,
            });
        }
        Ok(Self {
            environment,
            variants,
        })
    }

    /// The text of the template that answers chats without tools, for finding out what the model knows.
    pub fn text(&self) -> &str {
        self.variant(false)
            .map_or("", |variant| variant.text.as_str())
    }

    /// Renders a conversation. The text holds the special tokens that the template writes: encode it without adding
    /// more.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the template refuses the messages or exceeds its limits;
    /// [`EngineError::InvalidRequest`] when the conversation cannot be put in the form that it needs.
    pub fn render(&self, chat: &Chat, special: &SpecialTokens) -> Result<String, EngineError> {
        let variant = self
            .variant(!chat.tools.is_empty())
            .ok_or_else(Self::missing)?;
        let mut context: Map<String, Value> = special.variables();
        let mut messages = messages::to_values(chat, &variant.capabilities)?;
        if chat.continue_final_message {
            mark_continuation(&mut messages)?;
        }
        context.insert("messages".to_owned(), Value::Array(messages));
        let tools = if chat.tools.is_empty() {
            Value::Null
        } else {
            Value::Array(chat.tools.clone())
        };
        context.insert("tools".to_owned(), tools);
        context.insert("documents".to_owned(), Value::Null);
        context.insert(
            "add_generation_prompt".to_owned(),
            Value::Bool(chat.add_generation_prompt && !chat.continue_final_message),
        );
        for (name, value) in &chat.template_kwargs {
            if matches!(
                name.as_str(),
                "messages" | "tools" | "add_generation_prompt" | "continue_final_message"
            ) {
                return Err(EngineError::invalid(
                    format!("chat_template_kwargs.{name}"),
                    "this variable is set by the request's own field of that name",
                ));
            }
            context.insert(name.clone(), value.clone());
        }
        let text = render(
            &self.environment,
            &variant.name,
            TemplateValue::from(Serde(context)),
        )
        .map_err(|error| EngineError::Template {
            message: describe(&error),
        })?;
        if chat.continue_final_message {
            cut_at_continuation(text)
        } else {
            Ok(text)
        }
    }

    fn variant(&self, with_tools: bool) -> Option<&Variant> {
        let named = |name: &str| self.variants.iter().find(|variant| variant.name == name);
        let tool_use = if with_tools { named(TOOL_USE) } else { None };
        tool_use
            .or_else(|| named(DEFAULT))
            .or(self.variants.first())
    }
}

fn render(
    environment: &Environment<'static>,
    name: &str,
    context: TemplateValue,
) -> Result<String, minijinja::Error> {
    let mut output = LimitedOutput::default();
    environment
        .get_template(name)?
        .render_captured_to(context, &mut output)?;
    // The engine writes whole strings.
    String::from_utf8(output.bytes)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// The template's own message where it raised one, the engine's otherwise.
fn describe(error: &minijinja::Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it did not finish within its limit of steps".to_owned();
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return message.clone();
        }
        if let Some(limit) = current.downcast_ref::<std::io::Error>() {
            return limit.to_string();
        }
        cause = current.source();
    }
    error.to_string()
}

#[derive(Debug, Default)]
struct LimitedOutput {
    bytes: Vec<u8>,
}

impl Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other(format!(
                "it wrote more than {MAX_OUTPUT_BYTES} bytes"
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Puts the mark behind the last text of the last message.
fn mark_continuation(messages: &mut [Value]) -> Result<(), EngineError> {
    let content = messages
        .last_mut()
        .and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => other,
    };
    match text {
        Some(Value::String(text)) => {
            text.push_str(CONTINUATION_MARK);
            Ok(())
        }
        _ => Err(EngineError::invalid(
            "continue_final_message",
            "the last message has no text that could be continued",
        )),
    }
}

/// Everything before the mark. A template that trims the mark's space would have trimmed the text's, too.
fn cut_at_continuation(mut text: String) -> Result<String, EngineError> {
    let Some(position) = text.rfind(CONTINUATION_MARK.trim_end()) else {
        return Err(EngineError::invalid(
            "continue_final_message",
            "the chat template does not write the last message out, so it cannot be continued",
        ));
    };
    let trims = !text[position..].starts_with(CONTINUATION_MARK);
    text.truncate(position);
    if trims {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests;
