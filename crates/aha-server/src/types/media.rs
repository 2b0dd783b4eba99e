//! Content parts that are pictures, clips and recordings, in the spellings of OpenAI, Anthropic and Qwen.

use crate::error::ApiError;
use crate::types::fields::{Fields, wrong_type};
use crate::types::ocr::{document_source, pages};
use aha_engine::{MediaKind, MediaWishes, PixelLimits};
use aha_media::document::PageSelection;
use serde_json::{Map, Value};

/// Most pixels of a picture with `"detail": "low"`: OpenAI's square of 512.
const LOW_DETAIL_PIXELS: u64 = 512 * 512;
/// Most pixels that a request may ask a picture or clip to have.
const PIXELS_LIMIT: i128 = 64 << 20;
/// Most frames that a request may choose of a clip.
const FRAMES_LIMIT: usize = 10_000;
/// Most frames a second, likewise.
const FPS_LIMIT: f64 = 1000.0;

/// Where the bytes of a medium come from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// A URL (also one of data), or bare base64.
    Named(String),
    /// Base64 only.
    Base64(String),
}

/// What is to be read of the sources.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// One file of the kind.
    File,
    /// Pictures that are the frames of a clip.
    Frames,
    /// A document whose pages are pictures.
    Document,
}

/// A medium that stands in a message and is still to be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MediaPart {
    /// The message.
    pub(crate) message: usize,
    /// Its place among the message's parts.
    pub(crate) place: usize,
    /// The field that names it, for errors.
    pub(crate) path: String,
    pub(crate) kind: MediaKind,
    pub(crate) form: Form,
    pub(crate) sources: Vec<Source>,
    pub(crate) wishes: MediaWishes,
    /// Pages of a document.
    pub(crate) pages: PageSelection,
}

/// The media of a request, and what it sets for all of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct RequestMedia {
    /// In the order of their places.
    pub(crate) parts: Vec<MediaPart>,
    /// Those `mm_processor_kwargs` that only some families know.
    pub(crate) settings: Map<String, Value>,
}

/// `mm_processor_kwargs` of a request: the wishes that hold for every part which says nothing else, and the settings
/// that are a family's own.
pub(crate) fn wishes_of_request(
    fields: &mut Fields,
) -> Result<(MediaWishes, Map<String, Value>), ApiError> {
    let Some(map) = fields.object("mm_processor_kwargs")? else {
        return Ok(Default::default());
    };
    let mut fields = Fields::of(Value::Object(map), "mm_processor_kwargs".to_owned())?;
    let wishes = overridden(MediaWishes::default(), &mut fields)?;
    Ok((wishes, fields.rest()))
}

/// Wishes with the fields of a part over them.
fn overridden(outer: MediaWishes, fields: &mut Fields) -> Result<MediaWishes, ApiError> {
    let num_frames = match fields.count("num_frames", 1..=FRAMES_LIMIT)? {
        Some(count) => Some(count),
        None => fields.count("nframes", 1..=FRAMES_LIMIT)?,
    };
    let wishes = MediaWishes {
        pixels: PixelLimits {
            min_pixels: pixels(fields, "min_pixels")?.or(outer.pixels.min_pixels),
            max_pixels: pixels(fields, "max_pixels")?.or(outer.pixels.max_pixels),
        },
        fps: fields.number("fps", 0.001..=FPS_LIMIT)?.or(outer.fps),
        num_frames: num_frames.or(outer.num_frames),
        max_frames: fields
            .count("max_frames", 1..=FRAMES_LIMIT)?
            .or(outer.max_frames),
        dpi: outer.dpi,
    };
    let PixelLimits {
        min_pixels,
        max_pixels,
    } = wishes.pixels;
    if let (Some(least), Some(most)) = (min_pixels, max_pixels)
        && least > most
    {
        return Err(ApiError::invalid(
            fields.path("min_pixels"),
            format!("min_pixels is {least}, more than the {most} of max_pixels"),
        ));
    }
    Ok(wishes)
}

fn pixels(fields: &mut Fields, name: &str) -> Result<Option<u64>, ApiError> {
    let found = fields.integer(name, 1..=PIXELS_LIMIT)?;
    Ok(found.and_then(|pixels| u64::try_from(pixels).ok()))
}

/// What a content part is, once its type is known.
pub(crate) struct Read {
    pub(crate) kind: MediaKind,
    pub(crate) path: String,
    pub(crate) form: Form,
    pub(crate) sources: Vec<Source>,
    pub(crate) wishes: MediaWishes,
    pub(crate) pages: PageSelection,
}

/// Reads a content part of type `kind`; `None` for a type that is no medium.
pub(crate) fn read_part(
    kind: &str,
    fields: &mut Fields,
    of_request: MediaWishes,
) -> Result<Option<Read>, ApiError> {
    let part = match kind {
        "image_url" => named(fields, MediaKind::Image, &["image_url"], of_request)?,
        "input_image" => named(fields, MediaKind::Image, &["image_url"], of_request)?,
        "image" => named(
            fields,
            MediaKind::Image,
            &["source", "image", "url"],
            of_request,
        )?,
        "video_url" => named(fields, MediaKind::Video, &["video_url"], of_request)?,
        "video" => named(
            fields,
            MediaKind::Video,
            &["video", "source", "url"],
            of_request,
        )?,
        "input_audio" => named(fields, MediaKind::Audio, &["input_audio"], of_request)?,
        "audio_url" => named(fields, MediaKind::Audio, &["audio_url"], of_request)?,
        "audio" => named(fields, MediaKind::Audio, &["audio", "source"], of_request)?,
        "file" => document(fields, Some("file"), of_request)?,
        "document" => document(fields, Some("source"), of_request)?,
        "input_file" => document(fields, None, of_request)?,
        _ => return Ok(None),
    };
    Ok(Some(part))
}

/// A part that is a document; `name` is the field of the object that names it, where it is not the part itself.
fn document(
    fields: &mut Fields,
    name: Option<&str>,
    of_request: MediaWishes,
) -> Result<Read, ApiError> {
    let wishes = overridden(of_request, fields)?;
    let outer = pages(fields)?;
    let dpi = dpi(fields)?;
    let mut inner = match name {
        None => fields.part(),
        Some(name) => {
            let path = fields.path(name);
            let object = fields.object(name)?;
            let missing = || ApiError::missing(&path, format!("'{path}' is missing"));
            Fields::of(Value::Object(object.ok_or_else(missing)?), path.clone())?
        }
    };
    let path = inner.path("file_data");
    let own = pages(&mut inner)?;
    let dpi = self::dpi(&mut inner)?.or(dpi);
    Ok(Read {
        kind: MediaKind::Image,
        form: Form::Document,
        sources: vec![document_source(&mut inner)?],
        wishes: MediaWishes { dpi, ..wishes },
        pages: if own == PageSelection::default() {
            outer
        } else {
            own
        },
        path,
    })
}

fn dpi(fields: &mut Fields) -> Result<Option<f32>, ApiError> {
    let dpi = fields.number("dpi", 18.0..=1200.0)?;
    Ok(dpi.map(|dpi| dpi as f32))
}

/// A part whose medium is named by the first of `names` that is there.
fn named(
    fields: &mut Fields,
    kind: MediaKind,
    names: &[&str],
    of_request: MediaWishes,
) -> Result<Read, ApiError> {
    let Some(name) = names.iter().find(|name| fields.has(name)) else {
        let path = fields.path(names[0]);
        let message = format!("'{path}' is missing");
        return Err(ApiError::missing(path, message));
    };
    let path = fields.path(name);
    let mut wishes = overridden(of_request, fields)?;
    let mut detail = detail(fields)?;
    let mut form = Form::File;
    let sources = match fields.take(name) {
        Some(Value::String(text)) => vec![Source::Named(text)],
        Some(Value::Object(map)) => {
            let mut inner = Fields::of(Value::Object(map), path.clone())?;
            wishes = overridden(wishes, &mut inner)?;
            detail = self::detail(&mut inner)?.or(detail);
            vec![source(&mut inner)?]
        }
        Some(Value::Array(frames)) if kind == MediaKind::Video => {
            form = Form::Frames;
            frames_of(frames, &path)?
        }
        other => {
            let expected = match kind {
                MediaKind::Video => "a URL, an object or an array of frames",
                _ => "a URL or an object",
            };
            return Err(wrong_type(&path, expected, &other.unwrap_or_default()));
        }
    };
    if detail == Some(Detail::Low) && wishes.pixels.max_pixels.is_none() {
        let most = LOW_DETAIL_PIXELS.max(wishes.pixels.min_pixels.unwrap_or(0));
        wishes.pixels.max_pixels = Some(most);
    }
    Ok(Read {
        kind,
        path,
        form,
        sources,
        wishes,
        pages: PageSelection::default(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Detail {
    Low,
    Full,
}

fn detail(fields: &mut Fields) -> Result<Option<Detail>, ApiError> {
    match fields.string("detail")?.as_deref() {
        None => Ok(None),
        Some("low") => Ok(Some(Detail::Low)),
        Some("auto" | "high" | "original") => Ok(Some(Detail::Full)),
        Some(_) => {
            let path = fields.path("detail");
            let message = format!("'{path}' must be \"low\", \"high\" or \"auto\"");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// The URL or data of an object that names a medium.
fn source(fields: &mut Fields) -> Result<Source, ApiError> {
    // Anthropic's blocks say which it is; OpenAI's recordings are data without a word.
    if let Some(url) = fields.string("url")? {
        return Ok(Source::Named(url));
    }
    if let Some(data) = fields.string("data")? {
        return Ok(Source::Base64(data));
    }
    let path = fields.path("url");
    let message = format!("'{path}' is missing");
    Err(ApiError::missing(path, message))
}

fn frames_of(values: Vec<Value>, path: &str) -> Result<Vec<Source>, ApiError> {
    if values.is_empty() {
        return Err(ApiError::invalid(
            path,
            format!("'{path}' must hold at least one frame"),
        ));
    }
    let frame = |(index, value): (usize, Value)| {
        let path = format!("{path}[{index}]");
        match value {
            Value::String(text) => Ok(Source::Named(text)),
            Value::Object(map) => frame_object(map, path),
            other => Err(wrong_type(&path, "a URL or an object", &other)),
        }
    };
    values.into_iter().enumerate().map(frame).collect()
}

/// A frame as an object: `{"url": …}`, or a picture's content part.
fn frame_object(map: Map<String, Value>, path: String) -> Result<Source, ApiError> {
    let mut fields = Fields::of(Value::Object(map), path)?;
    for name in ["image_url", "image", "source"] {
        match fields.take(name) {
            None => {}
            Some(Value::String(text)) => return Ok(Source::Named(text)),
            Some(value) => return source(&mut Fields::of(value, fields.path(name))?),
        }
    }
    source(&mut fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Read, ApiError> {
        let kind = value["type"].as_str().unwrap().to_owned();
        let mut fields = Fields::of(value, "p".to_owned()).unwrap();
        Ok(read_part(&kind, &mut fields, MediaWishes::default())?.unwrap())
    }

    fn param(value: Value) -> String {
        read(value).err().unwrap().body.param.unwrap()
    }

    #[test]
    fn pictures_have_many_spellings() {
        let url = || vec![Source::Named("https://a/b.png".to_owned())];
        let data = || vec![Source::Base64("AAAA".to_owned())];
        for (part, sources, path) in [
            (
                json!({"type": "image_url", "image_url": "https://a/b.png"}),
                url(),
                "p.image_url",
            ),
            (
                json!({"type": "image_url", "image_url": {"url": "https://a/b.png"}}),
                url(),
                "p.image_url",
            ),
            (
                json!({"type": "input_image", "image_url": "https://a/b.png"}),
                url(),
                "p.image_url",
            ),
            (
                json!({"type": "image", "image": "https://a/b.png"}),
                url(),
                "p.image",
            ),
            (
                json!({"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}),
                url(),
                "p.source",
            ),
            (
                json!({"type": "image", "source":
                {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
                data(),
                "p.source",
            ),
        ] {
            let read = read(part.clone()).unwrap();
            assert_eq!(
                (read.kind, read.form),
                (MediaKind::Image, Form::File),
                "{part}"
            );
            assert_eq!(
                (read.sources, read.path.as_str()),
                (sources, path),
                "{part}"
            );
        }
    }

    #[test]
    fn clips_are_files_or_frames() {
        let file = read(json!({"type": "video_url", "video_url": {"url": "u"}, "fps": 1})).unwrap();
        assert_eq!((file.form, file.wishes.fps), (Form::File, Some(1.0)));
        let frames = read(json!({"type": "video", "fps": 2.0, "video": [
            "a", {"url": "b"}, {"type": "image_url", "image_url": {"url": "c"}}]}))
        .unwrap();
        let named = ["a", "b", "c"].map(|name| Source::Named(name.to_owned()));
        assert_eq!(
            (frames.form, frames.sources),
            (Form::Frames, named.to_vec())
        );
    }

    #[test]
    fn recordings_are_known() {
        let audio =
            read(json!({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}));
        assert_eq!(audio.unwrap().kind, MediaKind::Audio);
    }

    #[test]
    fn sizes_are_asked_for_by_part_request_and_detail() {
        let limits = |part: Value, request: Value| {
            let mut fields =
                Fields::of(json!({"mm_processor_kwargs": request}), String::new()).unwrap();
            let (request, _) = wishes_of_request(&mut fields).unwrap();
            let mut fields = Fields::of(part, "p".to_owned()).unwrap();
            let read = read_part("image_url", &mut fields, request)
                .unwrap()
                .unwrap();
            (read.wishes.pixels.min_pixels, read.wishes.pixels.max_pixels)
        };
        let part = |extra: Value| {
            let mut part = json!({"image_url": {"url": "u"}});
            part.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            part
        };
        assert_eq!(
            limits(part(json!({})), json!({"max_pixels": 9})),
            (None, Some(9))
        );
        assert_eq!(
            limits(
                part(json!({"max_pixels": 8, "min_pixels": 2})),
                json!({"max_pixels": 9})
            ),
            (Some(2), Some(8))
        );
        assert_eq!(
            limits(part(json!({"detail": "low"})), json!({})),
            (None, Some(262_144))
        );
        assert_eq!(
            limits(part(json!({"detail": "high"})), json!({})),
            (None, None)
        );
        let inner = json!({"image_url": {"url": "u", "detail": "low", "max_pixels": 7}});
        assert_eq!(limits(inner, json!({})), (None, Some(7)));
    }

    #[test]
    fn faults_name_their_field() {
        let image = |extra: Value| {
            let mut part = json!({"type": "image_url", "image_url": {"url": "u"}});
            part.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            part
        };
        assert_eq!(param(json!({"type": "image_url"})), "p.image_url");
        assert_eq!(
            param(json!({"type": "image_url", "image_url": 3})),
            "p.image_url"
        );
        assert_eq!(
            param(json!({"type": "image_url", "image_url": {}})),
            "p.image_url.url"
        );
        assert_eq!(
            param(json!({"type": "image_url", "image_url": ["u"]})),
            "p.image_url"
        );
        assert_eq!(param(json!({"type": "video", "video": []})), "p.video");
        assert_eq!(param(json!({"type": "video", "video": [1]})), "p.video[0]");
        assert_eq!(param(image(json!({"detail": "much"}))), "p.detail");
        assert_eq!(param(image(json!({"max_pixels": 0}))), "p.max_pixels");
        assert_eq!(param(image(json!({"max_pixels": 1e12}))), "p.max_pixels");
        assert_eq!(
            param(image(json!({"min_pixels": 9, "max_pixels": 3}))),
            "p.min_pixels"
        );
        assert_eq!(
            param(json!({"type": "video", "video": "u", "fps": 0})),
            "p.fps"
        );
    }
}
