//! The request for removing backgrounds: as a form, as JSON, or as a chat.

use crate::error::ApiError;
use crate::multipart::{Form, Upload};
use crate::types::fields::{Fields, wrong_type};
use crate::types::media::{Form as MediaForm, Source, read_part};
use aha_engine::{MediaKind, MediaWishes};
use aha_media::image::{ImageEncoding, parse_color};
use serde_json::{Map, Value};
use std::str::FromStr;

/// What comes of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Its colours with the mask as alpha, or on a background.
    Cutout,
    /// The mask alone.
    Mask,
}

/// A picture that is still to be read.
#[derive(Debug)]
pub(crate) enum Picture {
    /// Named by a request.
    Named(Source),
    /// Sent as a file.
    Sent(Upload),
}

/// A picture, and the field that holds it.
#[derive(Debug)]
pub(crate) struct PictureField {
    pub(crate) path: String,
    pub(crate) picture: Picture,
}

/// What stands behind a foreground.
#[derive(Debug)]
pub(crate) enum BackgroundField {
    Color([u8; 3]),
    Picture(PictureField),
}

/// A request that was read.
#[derive(Debug)]
pub(crate) struct MattingRequest {
    pub(crate) model: Option<String>,
    /// At least one.
    pub(crate) pictures: Vec<PictureField>,
    pub(crate) output: Output,
    pub(crate) encoding: ImageEncoding,
    pub(crate) background: Option<BackgroundField>,
    /// Whether pictures are turned upright by their EXIF orientation first.
    pub(crate) upright: bool,
    /// Whether the answer is asked for as base64 in JSON, whatever the client accepts.
    pub(crate) base64: bool,
}

/// Fields of a form that are text whatever they look like.
const TEXTS: [&str; 6] = [
    "model",
    "output",
    "format",
    "background",
    "orientation",
    "response_format",
];

impl MattingRequest {
    /// Reads a JSON body: `image` or `images`, or `messages` whose parts are pictures.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut pictures = Vec::new();
        if let Some(value) = fields.take("image") {
            push(value, "image", &mut pictures)?;
        }
        if let Some(value) = fields.take("images") {
            push(value, "images", &mut pictures)?;
        }
        for (index, message) in fields.array("messages")?.into_iter().flatten().enumerate() {
            of_message(message, format!("messages[{index}]"), &mut pictures)?;
        }
        Self::with_pictures(pictures, None, &mut fields)
    }

    /// Reads a form: files in `image` (any number of them), or their addresses as text.
    pub(crate) fn from_form(mut form: Form) -> Result<Self, ApiError> {
        let (mut pictures, mut background) = (Vec::new(), None);
        for (name, upload) in form.take_files() {
            let sent = |path: String| PictureField {
                path,
                picture: Picture::Sent(upload),
            };
            match name.trim_end_matches("[]") {
                "image" | "images" => pictures.push(sent(name)),
                "background" if background.is_none() => background = Some(sent(name)),
                "background" => {
                    return Err(ApiError::invalid(
                        name,
                        "two files were sent in 'background': send one",
                    ));
                }
                _ => {
                    let shown: String = name.chars().take(100).collect();
                    let message = format!(
                        "the file in '{shown}' is not expected: send pictures in 'image', and one behind them in 'background'"
                    );
                    return Err(ApiError::invalid(shown, message));
                }
            }
        }
        let mut fields = form.texts.into_fields(&TEXTS)?;
        for name in ["image", "images"] {
            if let Some(value) = fields.take(name) {
                push(value, name, &mut pictures)?;
            }
        }
        Self::with_pictures(pictures, background, &mut fields)
    }

    fn with_pictures(
        pictures: Vec<PictureField>,
        background: Option<PictureField>,
        fields: &mut Fields,
    ) -> Result<Self, ApiError> {
        if pictures.is_empty() {
            return Err(ApiError::missing(
                "image",
                "'image' is missing: send a file in a form, or a URL, data URL or base64 in JSON",
            ));
        }
        let output = match fields.string("output")?.as_deref() {
            None | Some("cutout" | "rgba") => Output::Cutout,
            Some("mask") => Output::Mask,
            Some(_) => {
                return Err(ApiError::invalid(
                    "output",
                    "'output' must be \"cutout\" or \"mask\"",
                ));
            }
        };
        let encoding = match fields.string("format")? {
            None => ImageEncoding::default(),
            Some(name) => ImageEncoding::from_str(&name)
                .map_err(|_| ApiError::invalid("format", "'format' must be \"png\" or \"webp\""))?,
        };
        let base64 = match fields.string("response_format")?.as_deref() {
            None | Some("file") => false,
            Some("b64_json") => true,
            Some(_) => {
                return Err(ApiError::invalid(
                    "response_format",
                    "'response_format' must be \"file\" or \"b64_json\"",
                ));
            }
        };
        let upright = match fields.string("orientation")?.as_deref() {
            None | Some("stored") => false,
            Some("exif") => true,
            Some(_) => {
                return Err(ApiError::invalid(
                    "orientation",
                    "'orientation' must be \"stored\" or \"exif\"",
                ));
            }
        };
        let background = match (background, fields.take("background")) {
            (None, None) => None,
            (Some(picture), None) => Some(BackgroundField::Picture(picture)),
            (None, Some(value)) => Some(of_background(value)?),
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "background",
                    "'background' was sent as a file and as text: send one of them",
                ));
            }
        };
        if background.is_some() && output == Output::Mask {
            return Err(ApiError::invalid(
                "background",
                "a mask has no background: leave out 'background', or ask for \"cutout\"",
            ));
        }
        Ok(Self {
            model: fields.string("model")?,
            pictures,
            output,
            encoding,
            background,
            upright,
            base64,
        })
    }
}

/// A colour, or the address or data of a picture.
fn of_background(value: Value) -> Result<BackgroundField, ApiError> {
    let text = match &value {
        Value::String(text) => text,
        _ => return Ok(BackgroundField::Picture(named(value, "background")?)),
    };
    match parse_color(text) {
        Ok(color) => Ok(BackgroundField::Color(color)),
        Err(error) if is_color_like(text) => {
            Err(ApiError::invalid("background", error.to_string()))
        }
        Err(_) => Ok(BackgroundField::Picture(named(value, "background")?)),
    }
}

/// Whether a text that is no colour is too short to be anything else.
fn is_color_like(text: &str) -> bool {
    text.len() <= 40 && !text.contains(':')
}

/// A picture, or an array of them.
fn push(value: Value, path: &str, pictures: &mut Vec<PictureField>) -> Result<(), ApiError> {
    match value {
        Value::Array(values) => {
            for (index, value) in values.into_iter().enumerate() {
                pictures.push(named(value, &format!("{path}[{index}]"))?);
            }
        }
        value => pictures.push(named(value, path)?),
    }
    Ok(())
}

/// A picture by its URL, data URL or base64, or by an object that has one of them as chats write it.
fn named(value: Value, path: &str) -> Result<PictureField, ApiError> {
    let source = match value {
        Value::String(text) => Source::Named(text),
        Value::Object(map) => return of_object(map, path),
        other => return Err(wrong_type(path, "a URL, base64 or an object", &other)),
    };
    Ok(PictureField {
        path: path.to_owned(),
        picture: Picture::Named(source),
    })
}

fn of_object(map: Map<String, Value>, path: &str) -> Result<PictureField, ApiError> {
    let mut fields = Fields::of(Value::Object(map), path.to_owned())?;
    if fields.has("type") {
        let text = || ApiError::invalid(path, format!("'{path}' is text, not a picture"));
        return of_part(&mut fields)?.ok_or_else(text);
    }
    // What stands inside a content part.
    let source = match (fields.string("url")?, fields.string("data")?) {
        (Some(url), _) => Source::Named(url),
        (None, Some(data)) => Source::Base64(data),
        (None, None) => {
            let path = fields.path("url");
            return Err(ApiError::missing(&path, format!("'{path}' is missing")));
        }
    };
    Ok(PictureField {
        path: path.to_owned(),
        picture: Picture::Named(source),
    })
}

/// The picture of a content part; `None` for text.
fn of_part(fields: &mut Fields) -> Result<Option<PictureField>, ApiError> {
    let kind = fields.string("type")?.unwrap_or_default();
    if matches!(kind.as_str(), "text" | "input_text") {
        return Ok(None);
    }
    let path = fields.path("type");
    let read = read_part(&kind, fields, MediaWishes::default())?;
    match read {
        Some(read) if read.kind == MediaKind::Image && read.form == MediaForm::File => {
            let source = read.sources.into_iter().next();
            let source = source.ok_or_else(|| {
                ApiError::missing(&read.path, format!("'{}' is empty", read.path))
            })?;
            Ok(Some(PictureField {
                path: read.path,
                picture: Picture::Named(source),
            }))
        }
        _ => Err(ApiError::unsupported(
            &path,
            "backgrounds are removed from pictures: send content parts of type 'image_url'",
        )),
    }
}

/// The pictures of a message; its texts say nothing here.
fn of_message(
    value: Value,
    path: String,
    pictures: &mut Vec<PictureField>,
) -> Result<(), ApiError> {
    let mut fields = Fields::of(value, path)?;
    let path = fields.path("content");
    let parts = match fields.take("content") {
        None | Some(Value::String(_)) => return Ok(()),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            return Err(wrong_type(
                &path,
                "a string or an array of content parts",
                &other,
            ));
        }
    };
    for (index, part) in parts.into_iter().enumerate() {
        let mut fields = Fields::of(part, format!("{path}[{index}]"))?;
        pictures.extend(of_part(&mut fields)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<MattingRequest, ApiError> {
        MattingRequest::parse(value.to_string().as_bytes())
    }

    fn sources(request: MattingRequest) -> Vec<(String, Source)> {
        let source = |field: PictureField| match field.picture {
            Picture::Named(source) => (field.path, source),
            Picture::Sent(_) => panic!("a file in JSON"),
        };
        request.pictures.into_iter().map(source).collect()
    }

    #[test]
    fn pictures_are_named_alone_in_lists_and_in_chats() {
        let named = |path: &str, text: &str| (path.to_owned(), Source::Named(text.to_owned()));
        for (body, want) in [
            (json!({"image": "u"}), vec![named("image", "u")]),
            (json!({"image": {"url": "u"}}), vec![named("image", "u")]),
            (
                json!({"images": ["a", {"type": "image_url", "image_url": {"url": "b"}}]}),
                vec![named("images[0]", "a"), named("images[1].image_url", "b")],
            ),
            (
                json!({"model": "m", "messages": [
                    {"role": "system", "content": "x"},
                    {"role": "user", "content": [
                        {"type": "text", "text": "please"},
                        {"type": "image", "image_url": {"url": "c"}, "image": "c"},
                        {"type": "image_url", "image_url": {"url": "d"}},
                    ]},
                ]}),
                vec![
                    named("messages[1].content[1].image", "c"),
                    named("messages[1].content[2].image_url", "d"),
                ],
            ),
        ] {
            assert_eq!(sources(parse(body.clone()).unwrap()), want, "{body}");
        }
    }

    #[test]
    fn options_have_defaults_and_say_what_they_can_be() {
        let plain = parse(json!({"image": "u"})).unwrap();
        assert_eq!(
            (plain.output, plain.encoding),
            (Output::Cutout, ImageEncoding::Png)
        );
        assert!(!plain.upright && !plain.base64 && plain.background.is_none());
        let all = parse(json!({"image": "u", "output": "mask", "format": "webp",
            "orientation": "exif", "response_format": "b64_json"}));
        let all = all.unwrap();
        assert_eq!(
            (all.output, all.encoding),
            (Output::Mask, ImageEncoding::WebP)
        );
        assert!(all.upright && all.base64);
        let red = parse(json!({"image": "u", "background": "#f00"})).unwrap();
        assert!(matches!(
            red.background,
            Some(BackgroundField::Color([255, 0, 0]))
        ));
        let behind = parse(json!({"image": "u", "background": "https://a/b.png"})).unwrap();
        assert!(matches!(
            behind.background,
            Some(BackgroundField::Picture(_))
        ));
        for (body, param) in [
            (json!({}), "image"),
            (json!({"image": []}), "image"),
            (json!({"image": 3}), "image"),
            (json!({"image": "u", "output": "alpha"}), "output"),
            (json!({"image": "u", "format": "jpeg"}), "format"),
            (json!({"image": "u", "orientation": true}), "orientation"),
            (json!({"image": "u", "orientation": "up"}), "orientation"),
            (
                json!({"image": "u", "response_format": "url"}),
                "response_format",
            ),
            (json!({"image": "u", "background": "reddish"}), "background"),
            (
                json!({"image": "u", "background": "red", "output": "mask"}),
                "background",
            ),
            (
                json!({"messages": [{"role": "user", "content": "hi"}]}),
                "image",
            ),
            (
                json!({"messages": [{"role": "user", "content": [
                    {"type": "input_audio", "input_audio": {"data": "AA"}}]}]}),
                "messages[0].content[0].type",
            ),
        ] {
            let error = parse(body.clone()).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{body}");
            assert_eq!(error.body.param.as_deref(), Some(param), "{body}");
        }
    }
}
