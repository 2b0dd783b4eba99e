//! Requests of `POST /ocr`.

use crate::error::ApiError;
use crate::types::fields::{Fields, wrong_type};
use crate::types::media::Source;
use aha_engine::ocr::ReadOptions;
use aha_media::document::{DEFAULT_DPI, PageSelection};
use serde_json::Value;

/// What a whole answer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OcrAnswer {
    Json,
    Markdown,
}

/// A document to read, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OcrRequest {
    pub(crate) model: Option<String>,
    /// The field that names the document, and what it names; none where it comes as a part of a form.
    pub(crate) file: Option<(String, Source)>,
    pub(crate) task: Option<String>,
    pub(crate) prompt: Option<String>,
    pub(crate) pages: PageSelection,
    pub(crate) read: ReadOptions,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stream: bool,
    /// `None` leaves it to the `Accept` header.
    pub(crate) answer: Option<OcrAnswer>,
}

/// Fields that may name the document.
const NAMES: [&str; 4] = ["file", "document", "image", "url"];

impl OcrRequest {
    /// Reads the fields of a JSON body, or those of a form.
    ///
    /// # Errors
    /// For fields of wrong types and values, with their names.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let task = fields.string("task")?;
        let prompt = fields.string("prompt")?;
        if prompt
            .as_deref()
            .is_some_and(|prompt| prompt.trim().is_empty())
        {
            return Err(ApiError::invalid("prompt", "'prompt' must not be empty"));
        }
        let answer = match fields.string("response_format")?.as_deref() {
            None => None,
            Some("json") => Some(OcrAnswer::Json),
            Some("markdown") => Some(OcrAnswer::Markdown),
            Some(_) => {
                let message = "'response_format' must be \"json\" or \"markdown\"";
                return Err(ApiError::invalid("response_format", message));
            }
        };
        let stream = fields.boolean("stream")?.unwrap_or(false);
        if stream && answer == Some(OcrAnswer::Markdown) {
            let message = "a stream tells of pages as JSON: leave 'response_format' out";
            return Err(ApiError::invalid("response_format", message));
        }
        let dpi = fields.number("dpi", 18.0..=1200.0)?;
        Ok(Self {
            model: fields.string("model")?,
            file: file(&mut fields)?,
            task,
            prompt,
            pages: pages(&mut fields)?,
            read: ReadOptions {
                dpi: dpi.map_or(DEFAULT_DPI, |dpi| dpi as f32),
                prefer_text: fields.boolean("prefer_text")?.unwrap_or(false),
            },
            max_tokens: fields.count("max_tokens", 1..=usize::MAX)?,
            stream,
            answer,
        })
    }
}

/// `pages`: numbers and ranges from 1, or one number.
pub(crate) fn pages(fields: &mut Fields) -> Result<PageSelection, ApiError> {
    let path = fields.path("pages");
    let text = match fields.take("pages") {
        None => return Ok(PageSelection::default()),
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        Some(other) => return Err(wrong_type(&path, "a string such as \"3-9,12\"", &other)),
    };
    text.parse().map_err(|error| ApiError::media(error, &path))
}

/// The document: a URL (also one of data), base64, or an object that holds one.
fn file(fields: &mut Fields) -> Result<Option<(String, Source)>, ApiError> {
    let Some(name) = NAMES.into_iter().find(|name| fields.has(name)) else {
        return Ok(None);
    };
    let path = fields.path(name);
    let source = match fields.take(name) {
        Some(Value::String(text)) => Source::Named(text),
        Some(value @ Value::Object(_)) => {
            let mut inner = Fields::of(value, path.clone())?;
            document_source(&mut inner)?
        }
        other => {
            return Err(wrong_type(
                &path,
                "a URL or an object",
                &other.unwrap_or_default(),
            ));
        }
    };
    Ok(Some((path, source)))
}

/// What an object names, in the spellings of OpenAI, Anthropic and Mistral.
pub(crate) fn document_source(fields: &mut Fields) -> Result<Source, ApiError> {
    if fields.has("file_id") {
        let path = fields.path("file_id");
        let message = format!("'{path}' is not supported: files are not kept; send file_data");
        return Err(ApiError::unsupported(path, message));
    }
    for name in ["file_data", "file_url", "url", "document_url", "image_url"] {
        match fields.take(name) {
            None => {}
            Some(Value::String(text)) => return Ok(Source::Named(text)),
            Some(value @ Value::Object(_)) => {
                return document_source(&mut Fields::of(value, fields.path(name))?);
            }
            Some(other) => return Err(wrong_type(&fields.path(name), "a string", &other)),
        }
    }
    if let Some(data) = fields.string("data")? {
        return Ok(Source::Base64(data));
    }
    let path = fields.path("file_data");
    let message = format!("'{path}' is missing");
    Err(ApiError::missing(path, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<OcrRequest, ApiError> {
        OcrRequest::read(Fields::of(value, String::new())?)
    }

    fn param(value: Value) -> String {
        read(value).unwrap_err().body.param.unwrap()
    }

    #[test]
    fn documents_have_many_spellings() {
        let named = |text: &str| Source::Named(text.to_owned());
        for (value, path, source) in [
            (json!({"file": "data:x"}), "file", named("data:x")),
            (json!({"url": "https://a/b"}), "url", named("https://a/b")),
            (json!({"image": {"url": "u"}}), "image", named("u")),
            (
                json!({"file": {"file_data": "d", "filename": "a.pdf"}}),
                "file",
                named("d"),
            ),
            (
                json!({"document": {"type": "document_url", "document_url": "u"}}),
                "document",
                named("u"),
            ),
            (
                json!({"document": {"type": "image_url", "image_url": {"url": "u"}}}),
                "document",
                named("u"),
            ),
            (
                json!({"document": {"type": "base64", "data": "AA"}}),
                "document",
                Source::Base64("AA".to_owned()),
            ),
        ] {
            let read = read(value.clone()).unwrap();
            assert_eq!(read.file, Some((path.to_owned(), source)), "{value}");
        }
        assert_eq!(read(json!({})).unwrap().file, None);
    }

    #[test]
    fn options_have_defaults_and_limits() {
        let plain = read(json!({"file": "x"})).unwrap();
        assert_eq!(plain.read.dpi, DEFAULT_DPI);
        assert!(!plain.stream && !plain.read.prefer_text && plain.answer.is_none());
        let full = read(
            json!({"file": "x", "pages": "2-3", "dpi": 100, "prefer_text": true, "max_tokens": 7,
            "stream": true, "task": "table"}),
        )
        .unwrap();
        assert_eq!((full.read.dpi, full.max_tokens), (100.0, Some(7)));
        assert_eq!(full.pages, "2-3".parse().unwrap());
        assert_eq!(
            read(json!({"pages": 4})).unwrap().pages,
            "4".parse().unwrap()
        );
        for (value, name) in [
            (json!({"pages": "0"}), "pages"),
            (json!({"pages": [1]}), "pages"),
            (json!({"dpi": 5000}), "dpi"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"prompt": " "}), "prompt"),
            (json!({"response_format": "pdf"}), "response_format"),
            (
                json!({"response_format": "markdown", "stream": true}),
                "response_format",
            ),
            (json!({"file": 3}), "file"),
            (json!({"file": {}}), "file.file_data"),
            (json!({"file": {"file_id": "f"}}), "file.file_id"),
            (json!({"stream": "yes"}), "stream"),
        ] {
            assert_eq!(param(value.clone()), name, "{value}");
        }
    }
}
