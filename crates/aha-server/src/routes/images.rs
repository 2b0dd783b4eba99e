//! `POST /images/remove_background`.

use crate::archive::{Member, multipart_mixed, zip};
use crate::context::server_timing;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::media::pictures::{Pictures, decode_picture};
use crate::multipart::Form;
use crate::options::MediaOptions;
use crate::routes::json_response;
use crate::state::AppState;
use crate::types::matting::{BackgroundField, MattingRequest, Output};
use aha_engine::{MattingEngine, Timings};
use aha_media::image::{Background, Image, ImageEncoding, encode};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Removes the backgrounds of the pictures of a form, of JSON, or of a chat.
pub(crate) async fn remove_background(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let accepted = Accepted::of(request.headers());
    let read = if is_form(request.headers()) {
        MattingRequest::from_form(Form::from_request(request, &state).await?)
    } else {
        let JsonBody(body) = JsonBody::from_request(request, &state).await?;
        state.prepare(move || MattingRequest::parse(&body)).await
    }?;
    let shared = state.clone();
    let mut work = state
        .prepare(move || Work::open(&shared, read, accepted))
        .await?;
    work.pictures = work.pictures.fetch(&state).await?;
    work.answer(&state).await
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("multipart/form-data")
}

/// What an answer is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepted {
    /// The file itself; several in an archive.
    Files,
    /// Several files as parts of one body.
    Parts,
    /// Base64 in JSON.
    Json,
}

impl Accepted {
    /// The first kind that the client names and there is; a picture where it names none.
    fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get_all(header::ACCEPT).into_iter();
        accept
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .find_map(
                |range| match range.split(';').next().unwrap_or_default().trim() {
                    "application/json" => Some(Self::Json),
                    "multipart/mixed" => Some(Self::Parts),
                    "*/*" | "image/*" | "image/png" | "image/webp" | "application/zip" => {
                        Some(Self::Files)
                    }
                    _ => None,
                },
            )
            .unwrap_or(Self::Files)
    }
}

/// A picture of the answer.
struct Made {
    file: Vec<u8>,
    width: u32,
    height: u32,
}

/// What is made of masks. Pictures wait as files: decoded, those of a long queue would fill the memory.
#[derive(Clone)]
struct Finish {
    behind: Option<Behind>,
    output: Output,
    encoding: ImageEncoding,
    upright: bool,
}

/// What stands behind a foreground.
#[derive(Clone)]
enum Behind {
    Color([u8; 3]),
    File(PictureFile),
}

/// A picture's file, and the field that named it.
#[derive(Clone)]
struct PictureFile {
    path: String,
    bytes: Arc<[u8]>,
}

impl PictureFile {
    /// Decodes it; the pixels are taken out of those that are left.
    fn decode(
        &self,
        options: &MediaOptions,
        upright: bool,
        left: &mut u64,
    ) -> Result<Image, ApiError> {
        let decoded = decode_picture(&self.path, &self.bytes, options, left)?;
        Ok(if upright {
            decoded.upright()
        } else {
            decoded.as_stored()
        })
    }
}

impl Finish {
    /// The file of a picture's answer.
    fn make(
        &self,
        picture: &PictureFile,
        mask: &Image,
        options: &MediaOptions,
    ) -> Result<Made, ApiError> {
        let fault = |error| ApiError::media(error, &picture.path);
        // These were decoded, and counted, before.
        let decode = |file: &PictureFile| {
            file.decode(options, self.upright, &mut options.max_total_pixels.clone())
        };
        let image = match (self.output, &self.behind) {
            (Output::Mask, _) => mask.clone(),
            (Output::Cutout, None) => decode(picture)?.with_alpha(mask).map_err(fault)?,
            (Output::Cutout, Some(behind)) => {
                let background = match behind {
                    Behind::Color(color) => Background::Color(*color),
                    Behind::File(file) => Background::Picture(decode(file)?),
                };
                background.behind(decode(picture)?, mask).map_err(fault)?
            }
        };
        Ok(Made {
            file: encode(&image, self.encoding).map_err(fault)?,
            width: image.width(),
            height: image.height(),
        })
    }
}

/// A request whose model takes it.
struct Work {
    model: String,
    engine: MattingEngine,
    pictures: Pictures,
    /// Whether the first of the pictures is the one that comes behind the others.
    behind_first: bool,
    finish: Finish,
    accepted: Accepted,
    pixels_left: u64,
}

impl Work {
    /// Refuses what no time shall be spent on, and reads what needs no network.
    fn open(
        state: &AppState,
        request: MattingRequest,
        accepted: Accepted,
    ) -> Result<Self, ApiError> {
        let model = state.models.find(request.model.as_deref())?;
        let engine = model.matting_engine()?;
        engine.check_room()?;
        let mut fields = request.pictures;
        let (behind, behind_file) = match request.background {
            None => (None, None),
            Some(BackgroundField::Color(color)) => (Some(Behind::Color(color)), None),
            Some(BackgroundField::Picture(field)) => (None, Some(field)),
        };
        let behind_first = behind_file.is_some();
        fields.splice(0..0, behind_file);
        Ok(Self {
            model: model.id().to_owned(),
            engine,
            pictures: Pictures::open(fields, &state.options.media)?,
            behind_first,
            finish: Finish {
                behind,
                output: request.output,
                encoding: request.encoding,
                upright: request.upright,
            },
            accepted: if request.base64 {
                Accepted::Json
            } else {
                accepted
            },
            pixels_left: state.options.media.max_total_pixels,
        })
    }

    fn take_first(&mut self) -> Option<PictureFile> {
        let (path, bytes) = self.pictures.take_first()?;
        Some(PictureFile {
            path,
            bytes: bytes.into(),
        })
    }

    /// One picture after the other: what a request holds in memory at once is one of them.
    async fn answer(mut self, state: &AppState) -> Result<Response, ApiError> {
        if self.behind_first
            && let Some(file) = self.take_first()
        {
            // What cannot be used is told before anything is computed.
            self.decode(state, &file, |_| Ok(())).await?;
            self.finish.behind = Some(Behind::File(file));
        }
        let mut made = Vec::with_capacity(self.pictures.len());
        let mut timings = Timings::default();
        while let Some(file) = self.take_first() {
            let engine = self.engine.clone();
            let pending = self
                .decode(state, &file, move |picture| Ok(engine.submit(&picture)?))
                .await?;
            let matte = pending.wait().await?;
            timings.queued += matte.queued;
            timings.prefill += matte.computed;
            let (shared, finish) = (state.clone(), self.finish.clone());
            let work = move || finish.make(&file, &matte.mask, &shared.options.media);
            made.push(state.prepare(work).await?);
        }
        let response = self.respond(state, made).await?;
        Ok((server_timing(&timings), response).into_response())
    }

    /// Decodes a picture and does something with it, beside the runtime's own threads.
    async fn decode<T: Send + 'static>(
        &mut self,
        state: &AppState,
        file: &PictureFile,
        then: impl FnOnce(Image) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (shared, file) = (state.clone(), file.clone());
        let (mut left, upright) = (self.pixels_left, self.finish.upright);
        let (result, left) = state
            .prepare(move || {
                let picture = file.decode(&shared.options.media, upright, &mut left)?;
                Ok((then(picture)?, left))
            })
            .await?;
        self.pixels_left = left;
        Ok(result)
    }

    async fn respond(self, state: &AppState, made: Vec<Made>) -> Result<Response, ApiError> {
        let encoding = self.finish.encoding;
        let kind = encoding.media_type();
        if self.accepted == Accepted::Json {
            return json_response(state, JsonAnswer::of(self.model, encoding, &made)).await;
        }
        let several = made.len() > 1;
        let members = made.into_iter().enumerate().map(|(index, made)| Member {
            name: format!("{index:03}.{}", encoding.name()),
            bytes: made.file,
        });
        let mut members: Vec<Member> = members.collect();
        if !several && let Some(member) = members.pop() {
            return Ok(([(header::CONTENT_TYPE, kind)], member.bytes).into_response());
        }
        if self.accepted == Accepted::Parts {
            let (kind, body) = multipart_mixed(&members, kind);
            return Ok(([(header::CONTENT_TYPE, kind)], body).into_response());
        }
        let body = zip(&members).ok_or_else(|| {
            ApiError::internal("the pictures are too large together for one archive")
        })?;
        let named = "attachment; filename=\"pictures.zip\"";
        let headers = [
            (header::CONTENT_TYPE, "application/zip"),
            (header::CONTENT_DISPOSITION, named),
        ];
        Ok((headers, body).into_response())
    }
}

/// The answer as JSON, in the shape of OpenAI's pictures.
#[derive(Debug, Serialize)]
struct JsonAnswer {
    created: u64,
    model: String,
    output_format: &'static str,
    data: Vec<JsonPicture>,
}

#[derive(Debug, Serialize)]
struct JsonPicture {
    b64_json: String,
    width: u32,
    height: u32,
}

impl JsonAnswer {
    fn of(model: String, encoding: ImageEncoding, made: &[Made]) -> Self {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let data = made.iter().map(|made| JsonPicture {
            b64_json: STANDARD.encode(&made.file),
            width: made.width,
            height: made.height,
        });
        Self {
            created,
            model,
            output_format: encoding.name(),
            data: data.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_kind_that_there_is_counts() {
        let of = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            Accepted::of(&headers)
        };
        assert_eq!(Accepted::of(&HeaderMap::new()), Accepted::Files);
        assert_eq!(of("*/*"), Accepted::Files);
        assert_eq!(of("application/json"), Accepted::Json);
        assert_eq!(of("text/html, application/json;q=0.9"), Accepted::Json);
        assert_eq!(of("image/png, application/json"), Accepted::Files);
        assert_eq!(of("multipart/mixed"), Accepted::Parts);
    }
}
