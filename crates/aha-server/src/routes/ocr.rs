//! `POST /ocr`: a document in, its text page by page out.

use crate::context::Deadline;
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::media::read_source;
use crate::multipart::Form;
use crate::sse::{self, StreamLimits};
use crate::state::AppState;
use crate::types::fields::Fields;
use crate::types::ocr::{OcrAnswer, OcrRequest};
use crate::types::response::{Envelope, Usage};
use aha_engine::ocr::{OcrDocument, OcrPage, PageError, PageReader, ReadOptions};
use aha_engine::{EngineError, Usage as PageUsage};
use aha_media::document::Document;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use std::time::Duration;

/// Pages of a request that are read at the same time.
const PAGES_AT_ONCE: usize = 8;

/// Between two looks for a place in the queue for further pages of a request.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(100);

/// A document whose pages can be read.
#[derive(Clone)]
struct Job {
    state: AppState,
    model: String,
    reader: PageReader,
    document: Document,
    read: ReadOptions,
    pages: Vec<usize>,
}

/// A page, or why it did not come.
type Outcome = (usize, Result<(OcrPage, PageUsage), ApiError>);

/// A request as it comes: a form with the document in it, or JSON that names the document.
pub(crate) enum OcrBody {
    Form(Form),
    Json(Bytes),
}

impl FromRequest<AppState> for OcrBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let essence = content_type.as_deref().unwrap_or_default();
        let essence = essence.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("multipart/form-data") {
            return Form::from_request(request, state).await.map(Self::Form);
        }
        let JsonBody(body) = JsonBody::from_request(request, state).await?;
        Ok(Self::Json(body))
    }
}

/// Fields of a form that are text, whatever they look like.
const TEXTS: [&str; 5] = ["model", "task", "prompt", "pages", "response_format"];

/// Answers a document page by page.
pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(deadline): Extension<Deadline>,
    headers: HeaderMap,
    body: OcrBody,
) -> Result<Response, ApiError> {
    let limit = state.options.media.documents.max_bytes;
    let (request, reader, file) = match body {
        OcrBody::Form(mut form) => {
            let upload = form.take_file("file")?;
            let request = OcrRequest::read(form.texts.into_fields(&TEXTS)?)?;
            let reader = reader(&state, &request)?;
            let bytes = state.prepare(move || upload.into_bytes(limit, "file"));
            (request, reader, ("file".to_owned(), bytes.await?))
        }
        OcrBody::Json(body) => {
            // A body that holds its document is large.
            let read = state.prepare(move || OcrRequest::read(Fields::parse(&body)?));
            let mut request = read.await?;
            let Some((path, source)) = request.file.take() else {
                let message = "'file' is missing: send a URL, a data URL or base64";
                return Err(ApiError::missing("file", message));
            };
            let reader = reader(&state, &request)?;
            let bytes = read_source(&state, source, limit, &path).await?;
            (request, reader, (path, bytes))
        }
    };
    answer(state, deadline, &headers, request, reader, file).await
}

/// What a request asks of its model. Nothing of the document is read for a model that would refuse it, or has no room.
fn reader(state: &AppState, request: &OcrRequest) -> Result<(String, PageReader), ApiError> {
    let model = state.models.find(request.model.as_deref())?;
    let engine = model.text_engine()?;
    engine.check_room()?;
    let (task, prompt) = (request.task.as_deref(), request.prompt.as_deref());
    let reader = PageReader::new(&engine, task, prompt, request.max_tokens)?;
    Ok((model.id().to_owned(), reader))
}

/// Opens the document and answers as the request wishes.
async fn answer(
    state: AppState,
    deadline: Deadline,
    headers: &HeaderMap,
    request: OcrRequest,
    (model, reader): (String, PageReader),
    (path, bytes): (String, Vec<u8>),
) -> Result<Response, ApiError> {
    let limits = state.options.media.documents;
    let selection = request.pages.clone();
    let (document, pages) = state
        .prepare(move || {
            let document = Document::open(bytes, &limits);
            let document = document.map_err(|error| ApiError::media(error, &path))?;
            let pages = document.select(&selection);
            let pages = pages.map_err(|error| ApiError::media(error, "pages"))?;
            Ok((document, pages))
        })
        .await?;
    let job = Job {
        state: state.clone(),
        model,
        reader,
        document,
        read: request.read,
        pages,
    };
    if request.stream {
        let limits = StreamLimits {
            deadline,
            shutdown: state.shutdown.clone(),
            keep_alive: state.options.sse_keep_alive,
        };
        return Ok(sse::respond_with(job.events(), limits));
    }
    let wanted = request.answer.unwrap_or_else(|| accepted(headers));
    job.whole(wanted).await
}

/// What the `Accept` header prefers: Markdown only where it is named.
fn accepted(headers: &HeaderMap) -> OcrAnswer {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let names = |kind: &str| {
        let mut kinds = accept.unwrap_or_default().split(',');
        kinds.position(|found| {
            let essence = found.split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case(kind)
        })
    };
    match (names("text/markdown"), names("application/json")) {
        (Some(markdown), Some(json)) if json < markdown => OcrAnswer::Json,
        (Some(_), _) => OcrAnswer::Markdown,
        _ => OcrAnswer::Json,
    }
}

impl Job {
    /// The pages as they are read, in their order.
    fn outcomes(self) -> BoxStream<'static, Outcome> {
        let pages = stream::iter(self.pages.clone());
        let page = move |index: usize| {
            let job = self.clone();
            async move { (index + 1, job.page(index).await) }
        };
        pages.map(page).buffered(PAGES_AT_ONCE).boxed()
    }

    async fn page(self, index: usize) -> Result<(OcrPage, PageUsage), ApiError> {
        loop {
            // The request was let in: its further pages wait for room as long as the request may take.
            if self.reader.engine().check_room().is_ok() {
                let (reader, document, read) =
                    (self.reader.clone(), self.document.clone(), self.read);
                let begun = self
                    .state
                    .prepare(move || match reader.begin(&document, index, read) {
                        Ok(reading) => Ok(Some(reading)),
                        Err(PageError::Engine(EngineError::Overloaded { .. })) => Ok(None),
                        Err(PageError::Engine(error)) => Err(error.into()),
                        Err(PageError::Media(error)) => Err(ApiError::media(error, "file")),
                    })
                    .await?;
                if let Some(reading) = begun {
                    return Ok(reading.finish().await?);
                }
            }
            tokio::time::sleep(WAIT_FOR_ROOM).await;
        }
    }

    /// Waits for all pages. Those that failed are told in their places, unless none came.
    async fn whole(self, wanted: OcrAnswer) -> Result<Response, ApiError> {
        let envelope = Envelope::new("ocr", "ocr", &self.model);
        let (model, task) = (self.model.clone(), self.reader.task().name);
        let mut usage = Usage::default();
        let (mut pages, mut failures) = (Vec::new(), Vec::new());
        let mut outcomes = self.outcomes();
        while let Some((number, outcome)) = outcomes.next().await {
            match outcome {
                Ok((page, used)) => {
                    usage.add(&used, true);
                    pages.push((number, Ok(page)));
                }
                Err(error) => {
                    pages.push((number, Err(error.body.message.clone())));
                    failures.push(error);
                }
            }
        }
        if failures.len() == pages.len()
            && let Some(first) = failures.into_iter().next()
        {
            return Err(first);
        }
        let document = OcrDocument {
            name: "",
            model: &model,
            task,
            assets: None,
            pages: pages
                .iter()
                .map(|(number, page)| (*number, page.as_ref().map_err(String::as_str)))
                .collect(),
        };
        if wanted == OcrAnswer::Markdown {
            let kind = HeaderValue::from_static("text/markdown; charset=utf-8");
            return Ok(([(header::CONTENT_TYPE, kind)], document.markdown()).into_response());
        }
        let mut body = json!(envelope);
        body["task"] = task.into();
        body["pages"] = document.json()["pages"].take();
        body["usage"] = json!(usage);
        Ok(Json(body).into_response())
    }

    /// An event a page, and one at the end.
    fn events(self) -> BoxStream<'static, Result<Vec<String>, ApiError>> {
        let envelope = Envelope::new("ocr", "ocr.page", &self.model);
        let total = self.pages.len();
        let state = (self.outcomes(), Usage::default(), 0, false);
        let events = stream::unfold(
            state,
            move |(mut outcomes, mut usage, mut failed, ended)| {
                let envelope = envelope.clone();
                async move {
                    if ended {
                        return None;
                    }
                    let Some((number, outcome)) = outcomes.next().await else {
                        let mut last = json!(Envelope {
                            object: "ocr.done",
                            ..envelope
                        });
                        last["num_pages"] = total.into();
                        last["failed_pages"] = failed.into();
                        last["usage"] = json!(usage);
                        return Some((Ok(vec![last.to_string()]), (outcomes, usage, failed, true)));
                    };
                    let mut event = json!(envelope);
                    let page = match outcome {
                        Ok((page, used)) => {
                            usage.add(&used, true);
                            event["markdown"] = page.markdown(None).into();
                            page.json(None)
                        }
                        Err(error) => {
                            failed += 1;
                            json!({"page": number, "error": error.body.message})
                        }
                    };
                    if let (Value::Object(event), Value::Object(page)) = (&mut event, page) {
                        event.extend(page);
                    }
                    Some((
                        Ok(vec![event.to_string()]),
                        (outcomes, usage, failed, false),
                    ))
                }
            },
        );
        events.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_given_where_it_is_named_first() {
        let of = |accept: &str| {
            let value = HeaderValue::from_str(accept).unwrap();
            accepted(&HeaderMap::from_iter([(header::ACCEPT, value)]))
        };
        assert_eq!(of("text/markdown"), OcrAnswer::Markdown);
        assert_eq!(
            of("text/markdown; q=0.9, application/json"),
            OcrAnswer::Markdown
        );
        assert_eq!(of("application/json, text/markdown"), OcrAnswer::Json);
        assert_eq!(of("*/*"), OcrAnswer::Json);
        assert_eq!(accepted(&HeaderMap::new()), OcrAnswer::Json);
    }
}
