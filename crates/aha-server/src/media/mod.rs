//! From the media that a request names to media that a model takes: refused early, fetched beside the runtime,
//! decoded within limits.

mod fetch;
pub(crate) mod pictures;

use crate::error::ApiError;
use crate::options::MediaOptions;
use crate::state::AppState;
use crate::types::media::{Form, MediaPart, RequestMedia, Source};
use aha_engine::{
    AudioInput, Chat, Media, MediaContent, MediaKind, MediaReader, MediaWishes, Part, TextProcessor,
};
use aha_media::MediaError;
use aha_media::document::{DEFAULT_DPI, Document, DocumentLimits};
use aha_media::image::DecodedImage;
use aha_media::source::{MediaSource, RemoteUrl, SourcePolicy, decode_base64};
use futures_util::stream::{self, StreamExt};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

pub use fetch::{FetchError, FetchLimits, Fetcher};

/// Files of one request that are fetched at the same time.
const FETCHES_OF_A_REQUEST: usize = 4;

/// A file that a request names.
enum File {
    Here(Vec<u8>),
    Remote(RemoteUrl),
}

/// Media of a request whose model takes them, on the way into the chat.
#[derive(Default)]
pub(crate) struct Gathering {
    parts: Vec<MediaPart>,
    /// What the request sets of the family's own preparation.
    settings: Map<String, Value>,
    /// The files of each part.
    files: Vec<Vec<File>>,
    budget: Budget,
}

/// The bytes that a request may still bring.
#[derive(Default)]
struct Budget {
    left: u64,
    limit: u64,
}

impl Budget {
    fn spend(&mut self, bytes: usize) -> Result<(), MediaError> {
        let bytes = bytes as u64;
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => {
                return Err(MediaError::TooManyBytes {
                    what: "whole of the request's media",
                    bytes: self.limit - self.left + bytes,
                    limit: self.limit,
                });
            }
        }
        Ok(())
    }
}

/// Most bytes of a file of that part.
fn file_limit(options: &MediaOptions, part: &MediaPart) -> u64 {
    match (part.kind, part.form) {
        (_, Form::Document) => options.documents.max_bytes,
        (MediaKind::Image, _) | (_, Form::Frames) => options.limits.max_bytes,
        (MediaKind::Video | MediaKind::Audio, Form::File) => options.limits.max_video_bytes,
    }
}

impl Gathering {
    /// Checks that the model takes the media and that they are not too many, and reads what needs no network. Nothing
    /// is read for a model that would refuse it.
    pub(crate) fn open(
        media: RequestMedia,
        processor: &TextProcessor,
        options: &MediaOptions,
    ) -> Result<Self, ApiError> {
        let RequestMedia {
            mut parts,
            settings,
        } = media;
        processor.check_settings(&settings)?;
        for part in &parts {
            processor.check_takes(part.kind, &part.path)?;
            if part.form == Form::Frames && part.sources.len() > options.max_frames {
                let (found, limit) = (part.sources.len(), options.max_frames);
                return Err(ApiError::invalid(
                    &part.path,
                    format!(
                        "'{}' holds {found} frames, more than the limit of {limit}",
                        part.path
                    ),
                ));
            }
        }
        if parts.len() > options.max_items {
            let (found, limit) = (parts.len(), options.max_items);
            return Err(ApiError::invalid(
                "messages",
                format!("the messages hold {found} media, more than the limit of {limit}"),
            ));
        }
        let mut budget = Budget {
            left: options.max_total_bytes,
            limit: options.max_total_bytes,
        };
        let mut files = Vec::with_capacity(parts.len());
        for part in &mut parts {
            let limit = file_limit(options, part);
            let opened: Result<Vec<File>, MediaError> = std::mem::take(&mut part.sources)
                .into_iter()
                .map(|source| open(source, limit, &options.policy, &mut budget))
                .collect();
            files.push(opened.map_err(|error| ApiError::media(error, &part.path))?);
        }
        Ok(Self {
            parts,
            settings,
            files,
            budget,
        })
    }

    /// Whether nothing is left to fetch.
    pub(crate) fn is_here(&self) -> bool {
        let mut files = self.files.iter().flatten();
        files.all(|file| matches!(file, File::Here(_)))
    }

    /// Fetches what is on the web, a few files at a time.
    pub(crate) async fn fetch(mut self, state: &AppState) -> Result<Self, ApiError> {
        let options = &state.options.media;
        let mut wanted = Vec::new();
        for (part, files) in self.files.iter().enumerate() {
            let limit = file_limit(options, &self.parts[part]).min(self.budget.limit);
            for (file, found) in files.iter().enumerate() {
                if let File::Remote(url) = found {
                    wanted.push((part, file, url.clone(), limit));
                }
            }
        }
        let mut fetched =
            stream::iter(wanted)
                .map(|(part, file, url, limit)| async move {
                    (part, file, state.fetch(url, limit).await)
                })
                .buffered(FETCHES_OF_A_REQUEST);
        while let Some((part, file, bytes)) = fetched.next().await {
            let path = &self.parts[part].path;
            let bytes = bytes?.map_err(|error| ApiError::fetch(error, path))?;
            let spent = self.budget.spend(bytes.len());
            spent.map_err(|error| ApiError::media(error, path))?;
            self.files[part][file] = File::Here(bytes);
        }
        Ok(self)
    }

    /// Decodes all files and puts the media in their places.
    pub(crate) fn insert(
        self,
        chat: &mut Chat,
        processor: &TextProcessor,
        options: &MediaOptions,
        reader: &MediaReader,
    ) -> Result<(), ApiError> {
        let mut reader = reader.clone();
        let input = processor
            .media()
            .map_or(AudioInput::SPEECH, |media| media.audio_input());
        let single = |part: &&MediaPart| part.form != Form::Document;
        let mut room = Room {
            items: options
                .max_items
                .saturating_sub(self.parts.iter().filter(single).count()),
            pixels: options.max_total_pixels,
            seconds: reader.audio.limits.max_seconds.min(input.max_seconds),
        };
        // The message of the last part, and how many more media it got than parts.
        let (mut message, mut more) = (0, 0);
        for (part, files) in self.parts.into_iter().zip(self.files) {
            let fault = |error| ApiError::media(error, &part.path);
            let files = here(files).map_err(fault)?;
            reader.limits.max_pixels = options.limits.max_pixels.min(room.pixels);
            reader.limits.max_video_pixels = options.limits.max_video_pixels.min(room.pixels);
            reader.audio.limits.max_seconds = room.seconds;
            let media = match (part.form, &files[..]) {
                (Form::Document, [file]) => {
                    pages_of(&part, file, options, &mut room).map_err(fault)?
                }
                _ => vec![decode(&part, &files, processor, &reader).map_err(fault)?],
            };
            if part.message != message {
                (message, more) = (part.message, 0);
            }
            let Some(into) = chat.messages.get_mut(message) else {
                continue;
            };
            // Parts come in the order of their places, so all before this one are there.
            let place = (part.place + more).min(into.content.len());
            more += media.len().saturating_sub(1);
            let pixels: u64 = media.iter().map(Media::pixels).sum();
            room.pixels = room.pixels.saturating_sub(pixels);
            let seconds: f64 = media.iter().map(Media::seconds).sum();
            room.seconds = (room.seconds - seconds).max(0.0);
            let media = media
                .into_iter()
                .map(|media| Part::Media(Arc::new(media.with_settings(self.settings.clone()))));
            into.content.splice(place..place, media);
        }
        Ok(())
    }
}

/// What a request may still hold.
struct Room {
    items: usize,
    pixels: u64,
    /// Sound: all recordings together may have what one prompt takes.
    seconds: f64,
}

/// The pages of a document as pictures.
fn pages_of(
    part: &MediaPart,
    file: &[u8],
    options: &MediaOptions,
    room: &mut Room,
) -> Result<Vec<Media>, MediaError> {
    let mut limits = DocumentLimits {
        max_pages: options.documents.max_pages.min(room.items),
        ..options.documents
    };
    let dpi = part.wishes.dpi.unwrap_or(DEFAULT_DPI);
    let document = Document::open(file, &limits)?;
    let chosen = document.select(&part.pages)?;
    room.items -= chosen.len();
    let mut pages = Vec::with_capacity(chosen.len());
    let mut left = room.pixels;
    for page in chosen {
        limits.image.max_pixels = limits.image.max_pixels.min(left);
        let image = document.limited(&limits).render(page, dpi)?;
        left = left.saturating_sub(u64::from(image.width()) * u64::from(image.height()));
        let content = MediaContent::Image {
            image: DecodedImage::of(image),
            limits: part.wishes.pixels,
        };
        let source = (file, page, dpi.to_bits(), part.wishes.pixels);
        pages.push(Media::new(content, source));
    }
    Ok(pages)
}

/// The bytes that a request names at `param`: decoded, read or fetched, at most `limit` of them.
pub(crate) async fn read_source(
    state: &AppState,
    source: Source,
    limit: u64,
    param: &str,
) -> Result<Vec<u8>, ApiError> {
    let shared = state.clone();
    let path = param.to_owned();
    let file = state
        .prepare(move || {
            let mut budget = Budget { left: limit, limit };
            open(source, limit, &shared.options.media.policy, &mut budget)
                .map_err(|error| ApiError::media(error, &path))
        })
        .await?;
    match file {
        File::Here(bytes) => Ok(bytes),
        File::Remote(url) => {
            let fetched = state.fetch(url, limit).await?;
            fetched.map_err(|error| ApiError::fetch(error, param))
        }
    }
}

fn open(
    source: Source,
    limit: u64,
    policy: &SourcePolicy,
    budget: &mut Budget,
) -> Result<File, MediaError> {
    let bytes = match source {
        Source::Base64(data) => decode_base64(&data, limit)?,
        Source::Named(text) => match MediaSource::parse(&text, limit)? {
            MediaSource::Bytes(bytes) => bytes,
            MediaSource::Remote(url) => {
                policy.check_url(&url)?;
                return Ok(File::Remote(url));
            }
            MediaSource::File(path) => read_file(&policy.resolve_file(&path)?, limit)?,
        },
    };
    budget.spend(bytes.len())?;
    Ok(File::Here(bytes))
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, MediaError> {
    use std::io::Read;
    let failed = |source| MediaError::Io {
        what: "reading a media file",
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let too_many = |bytes| MediaError::TooManyBytes {
        what: "media file",
        bytes,
        limit,
    };
    if length > limit {
        return Err(too_many(length));
    }
    let mut bytes = Vec::new();
    // A file may grow while it is read.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_many(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The bytes of files that are all fetched.
fn here(files: Vec<File>) -> Result<Vec<Vec<u8>>, MediaError> {
    let bytes = |file| match file {
        File::Here(bytes) => Ok(bytes),
        File::Remote(_) => Err(MediaError::Empty { what: "media file" }),
    };
    files.into_iter().map(bytes).collect()
}

fn decode(
    part: &MediaPart,
    files: &[Vec<u8>],
    processor: &TextProcessor,
    reader: &MediaReader,
) -> Result<Media, MediaError> {
    let MediaWishes { pixels, fps, .. } = part.wishes;
    match (processor.media(), part.form, files) {
        (Some(_), Form::Frames, frames) => reader.frames(frames, fps, pixels),
        (Some(processor), Form::File, [file]) => {
            reader.read_for(processor, part.kind, file, &part.wishes)
        }
        _ => Err(MediaError::UnsupportedFormat {
            format: part.kind.name(),
            what: "input",
            supported: "text",
        }),
    }
}
