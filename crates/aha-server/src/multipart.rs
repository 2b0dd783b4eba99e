//! Forms with files (`multipart/form-data`).
//!
//! Files go to disk beyond a few megabytes, text fields stay small, and what is buffered between them is bounded, so a
//! request costs little memory whatever it claims to be.

use crate::error::ApiError;
use crate::state::AppState;
use crate::types::fields::Fields;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header;
use futures_util::Stream;
use serde_json::{Map, Value};
use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tempfile::NamedTempFile;
use tokio::time::{Instant, timeout_at};

/// Fields and files of a form.
const MOST_PARTS: usize = 256;
/// Bytes of one text field.
const LONGEST_TEXT: usize = 1 << 20;
/// Bytes of the head of a part, and of what stands between parts.
const LONGEST_HEAD: usize = 1 << 20;
/// Files up to this size are kept in memory.
const IN_MEMORY: usize = 8 << 20;

/// A form that was received whole.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) texts: FormTexts,
    files: Vec<(String, Upload)>,
}

impl Form {
    /// Takes the file in the field `name`, the only one that a request may send.
    pub(crate) fn take_file(&mut self, name: &str) -> Result<Upload, ApiError> {
        if let Some((other, _)) = self.files.iter().find(|(field, _)| field != name) {
            let shown: String = other.chars().take(100).collect();
            return Err(ApiError::invalid(
                shown.clone(),
                format!("the file in '{shown}' is not expected: send one file, in '{name}'"),
            ));
        }
        if self.files.len() > 1 {
            let found = self.files.len();
            return Err(ApiError::invalid(
                name,
                format!("{found} files were sent in '{name}': send one a request"),
            ));
        }
        match self.files.pop() {
            Some((_, upload)) => Ok(upload),
            None if self.texts.has(name) => Err(ApiError::wrong_type(
                name,
                format!("'{name}' must be sent as a file, with a file name"),
            )),
            None => Err(ApiError::missing(
                name,
                format!("'{name}' is missing: send it as a file"),
            )),
        }
    }
}

impl Form {
    /// Takes all files with the fields that they came in.
    pub(crate) fn take_files(&mut self) -> Vec<(String, Upload)> {
        std::mem::take(&mut self.files)
    }
}

/// The text fields of a form, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct FormTexts(Vec<(String, String)>);

impl FormTexts {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    /// The fields as those of a JSON request, with the same names and types.
    ///
    /// Forms know text only: fields in `texts` are taken as they are, others as the JSON that they hold (`0.2`, `true`,
    /// `["a"]`), or as text where they hold none. `name[]`, and a name that comes more than once, is an array. An empty
    /// field that is no text is none.
    pub(crate) fn into_fields(self, texts: &[&str]) -> Result<Fields, ApiError> {
        let mut lists = Map::new();
        let mut repeated = Vec::new();
        for (name, text) in self.0 {
            let (name, is_list) = match name.strip_suffix("[]") {
                Some(name) => (name.to_owned(), true),
                None => (name, false),
            };
            let list = lists
                .entry(name.clone())
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(values) = list {
                values.push(Value::String(text));
                if is_list || values.len() > 1 {
                    repeated.push(name);
                }
            }
        }
        for (name, value) in &mut lists {
            if repeated.contains(name) {
                continue;
            }
            if let Value::Array(values) = value
                && let Some(Value::String(text)) = values.pop()
            {
                *value = match text {
                    text if texts.contains(&name.as_str()) => Value::String(text),
                    text if text.trim().is_empty() => Value::Null,
                    text => serde_json::from_str(&text).unwrap_or(Value::String(text)),
                };
            }
        }
        Fields::of(Value::Object(lists), String::new())
    }
}

/// A file that came with a form; a temporary one goes with this value.
#[derive(Debug)]
pub(crate) struct Upload {
    content: Content,
    length: u64,
}

/// Where the bytes of an upload are.
#[derive(Debug)]
pub(crate) enum Content {
    Memory(Vec<u8>),
    File(NamedTempFile),
}

impl Upload {
    fn empty() -> Self {
        Self {
            content: Content::Memory(Vec::new()),
            length: 0,
        }
    }

    /// Where the bytes are.
    pub(crate) fn into_content(self) -> Content {
        self.content
    }

    /// All bytes, at most `limit`, read on this thread. `param` is the field in errors.
    pub(crate) fn into_bytes(self, limit: u64, param: &str) -> Result<Vec<u8>, ApiError> {
        if self.length > limit {
            let mut error = ApiError::body_too_large(usize::try_from(limit).unwrap_or(usize::MAX));
            error.body.param = Some(param.to_owned());
            return Err(error);
        }
        match self.content {
            Content::Memory(bytes) => Ok(bytes),
            Content::File(file) => read(file.path()),
        }
    }

    /// Adds bytes; large ones go to disk, beside the runtime's own threads.
    async fn push(&mut self, chunk: Bytes) -> Result<(), ApiError> {
        self.length += chunk.len() as u64;
        if let Content::Memory(bytes) = &mut self.content {
            bytes.extend_from_slice(&chunk);
            if bytes.len() <= IN_MEMORY {
                return Ok(());
            }
            let bytes = std::mem::take(bytes);
            let file = on_disk(move || {
                let mut file = NamedTempFile::new()?;
                file.write_all(&bytes)?;
                Ok(file)
            });
            self.content = Content::File(file.await?);
            return Ok(());
        }
        let content = std::mem::replace(&mut self.content, Content::Memory(Vec::new()));
        if let Content::File(mut file) = content {
            let file = on_disk(move || {
                file.write_all(&chunk)?;
                Ok(file)
            });
            self.content = Content::File(file.await?);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ApiError> {
    std::fs::read(path)
        .map_err(|error| ApiError::internal(format!("an uploaded file cannot be read: {error}")))
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |why: String| ApiError::internal(format!("an upload cannot be kept: {why}"));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

impl FromRequest<AppState> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let content_type = content_type.unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("multipart/form-data") {
            return Err(ApiError::not_multipart(&content_type));
        }
        let boundary = multer::parse_boundary(&content_type).map_err(|_| {
            ApiError::invalid_multipart("the content type multipart/form-data has no boundary")
        })?;
        let limit = state.options.upload_limit;
        let declared = request.headers().get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > limit as u64) {
            return Err(ApiError::body_too_large(limit));
        }
        Receiver::new(request.into_body(), boundary, state)
            .receive()
            .await
    }
}

/// Reads a form part by part.
struct Receiver {
    parts: multer::Multipart<'static>,
    progress: Arc<Progress>,
    patience: Patience,
    limit: usize,
}

impl Receiver {
    fn new(body: Body, boundary: String, state: &AppState) -> Self {
        let progress = Arc::new(Progress::default());
        let stream = Paced {
            body: body.into_data_stream(),
            rests: false,
            progress: Arc::clone(&progress),
            limit: state.options.upload_limit,
        };
        Self {
            parts: multer::Multipart::new(stream, boundary),
            progress,
            patience: Patience {
                started: Instant::now(),
                per_body: state.options.body_timeout,
                body_bytes: state.options.body_limit,
            },
            limit: state.options.upload_limit,
        }
    }

    async fn receive(mut self) -> Result<Form, ApiError> {
        let mut form = Form {
            texts: FormTexts::default(),
            files: Vec::new(),
        };
        let mut count = 0;
        loop {
            let deadline = self.patience.deadline(&self.progress);
            let field = timeout_at(deadline, self.parts.next_field()).await;
            let field = field.map_err(|_| ApiError::body_timeout())?;
            let Some(mut field) = field.map_err(|error| refusal(&error, self.limit))? else {
                return Ok(form);
            };
            self.progress.advance();
            count += 1;
            if count > MOST_PARTS {
                return Err(ApiError::invalid_multipart(format!(
                    "the form has more than {MOST_PARTS} parts"
                )));
            }
            let name = field.name().unwrap_or_default().to_owned();
            if name.is_empty() || name.len() > 100 {
                return Err(ApiError::invalid_multipart(
                    "a part has no name, or one of more than 100 bytes",
                ));
            }
            let is_file = field.file_name().is_some();
            let mut upload = Upload::empty();
            loop {
                let deadline = self.patience.deadline(&self.progress);
                let chunk = timeout_at(deadline, field.chunk()).await;
                let chunk = chunk.map_err(|_| ApiError::body_timeout())?;
                let Some(chunk) = chunk.map_err(|error| refusal(&error, self.limit))? else {
                    break;
                };
                self.progress.advance();
                if !is_file && upload.length + chunk.len() as u64 > LONGEST_TEXT as u64 {
                    let mut error = ApiError::body_too_large(LONGEST_TEXT);
                    error.body.message = format!(
                        "the field '{name}' is longer than the limit of {LONGEST_TEXT} bytes"
                    );
                    error.body.param = Some(name);
                    return Err(error);
                }
                upload.push(chunk).await?;
            }
            if is_file {
                form.files.push((name, upload));
                continue;
            }
            let text = match upload.content {
                Content::Memory(bytes) => String::from_utf8(bytes).ok(),
                Content::File(_) => None,
            };
            let text = text.ok_or_else(|| {
                ApiError::wrong_type(name.clone(), format!("'{name}' is not UTF-8 text"))
            })?;
            form.texts.0.push((name, text));
        }
    }
}

/// How long a form may take: as long for each piece of the size of a JSON body as a JSON body may.
struct Patience {
    started: Instant,
    per_body: Duration,
    body_bytes: usize,
}

impl Patience {
    fn deadline(&self, progress: &Progress) -> Instant {
        let received = progress.received.load(Ordering::Relaxed) as f64;
        let bodies = 1.0 + received / self.body_bytes.max(1) as f64;
        self.started + self.per_body.mul_f64(bodies.min(1e6))
    }
}

/// What has come, and how much of it the reader has not made anything of.
#[derive(Debug, Default)]
struct Progress {
    received: AtomicUsize,
    unread: AtomicUsize,
}

impl Progress {
    fn advance(&self) {
        self.unread.store(0, Ordering::Relaxed);
    }
}

/// A body that is handed on block by block: a parser that takes all it can get would hold the whole file in memory.
struct Paced {
    body: axum::body::BodyDataStream,
    /// A block was given just now: the next poll comes later.
    rests: bool,
    progress: Arc<Progress>,
    limit: usize,
}

/// Why a body is not read on.
#[derive(Debug, thiserror::Error)]
enum BodyFault {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error("a part has no end of its head")]
    EndlessHead,
    #[error("the body broke off")]
    Broken,
}

impl Stream for Paced {
    type Item = Result<Bytes, BodyFault>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rests) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let block = match ready!(Pin::new(&mut self.body).poll_next(context)) {
            None => return Poll::Ready(None),
            Some(Err(_)) => return Poll::Ready(Some(Err(BodyFault::Broken))),
            Some(Ok(block)) => block,
        };
        self.rests = true;
        let length = block.len();
        let received = self.progress.received.fetch_add(length, Ordering::Relaxed) + length;
        let unread = self.progress.unread.fetch_add(length, Ordering::Relaxed);
        Poll::Ready(Some(if received > self.limit {
            Err(BodyFault::TooLarge)
        } else if unread > LONGEST_HEAD {
            Err(BodyFault::EndlessHead)
        } else {
            Ok(block)
        }))
    }
}

fn refusal(error: &multer::Error, limit: usize) -> ApiError {
    use multer::Error;
    let reason = match error {
        Error::StreamReadFailed(cause) => match cause.downcast_ref() {
            Some(BodyFault::TooLarge) => return ApiError::body_too_large(limit),
            Some(BodyFault::EndlessHead) => "the head of a part does not end",
            _ => "the request body could not be read",
        },
        Error::IncompleteFieldData { .. } | Error::IncompleteHeaders | Error::IncompleteStream => {
            "the form ends before its closing boundary"
        }
        _ => "the body is not a form with this boundary",
    };
    ApiError::invalid_multipart(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HostRule;
    use crate::options::ServerOptions;
    use crate::shutdown::Shutdown;

    fn state() -> AppState {
        let options = ServerOptions {
            upload_limit: 20 << 20,
            ..ServerOptions::default()
        };
        let hosts = HostRule::new(false, "0.0.0.0", &[]);
        AppState::new(options, Vec::new(), hosts, Shutdown::default())
    }

    async fn receive_as(content_type: &str, body: impl Into<Body>) -> Result<Form, ApiError> {
        let request = Request::builder()
            .header(header::CONTENT_TYPE, content_type)
            .body(body.into())
            .unwrap();
        Form::from_request(request, &state()).await
    }

    async fn receive(body: impl Into<Body>) -> Result<Form, ApiError> {
        receive_as("multipart/form-data; boundary=X", body).await
    }

    fn part(head: &str, content: &[u8]) -> Vec<u8> {
        let head = format!("--X\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    }

    fn form(parts: &[Vec<u8>]) -> Vec<u8> {
        [parts.concat(), b"--X--\r\n".to_vec()].concat()
    }

    fn file(content: &[u8]) -> Vec<u8> {
        part("name=\"file\"; filename=\"../../evil.wav\"", content)
    }

    #[tokio::test]
    async fn texts_and_a_file_arrive() {
        let mut received = receive(form(&[
            part("name=\"model\"", b"123"),
            part("name=\"temperature\"", b"0.5"),
            part("name=\"itn\"", b"true"),
            part("name=\"hotwords\"", b"[\"a\", \"b\"]"),
            part("name=\"include[]\"", b"logprobs"),
            part("name=\"language\"", b""),
            part("name=\"max_tokens\"", b""),
            file(b"sound"),
        ]))
        .await
        .unwrap();
        let upload = received.take_file("file").unwrap();
        assert_eq!(upload.length, 5);
        assert_eq!(upload.into_bytes(5, "file").unwrap(), b"sound");
        let mut fields = received.texts.into_fields(&["model", "language"]).unwrap();
        assert_eq!(fields.string("model").unwrap().unwrap(), "123");
        assert_eq!(fields.number("temperature", 0.0..=1.0).unwrap(), Some(0.5));
        assert_eq!(fields.boolean("itn").unwrap(), Some(true));
        assert_eq!(fields.array("hotwords").unwrap().unwrap().len(), 2);
        assert_eq!(fields.array("include").unwrap().unwrap()[0], "logprobs");
        assert_eq!(fields.string("language").unwrap().unwrap(), "");
        assert_eq!(fields.count("max_tokens", 1..=9).unwrap(), None);
    }

    #[tokio::test]
    async fn large_files_go_to_disk_and_vanish_with_the_form() {
        let content = vec![7u8; IN_MEMORY + 100_000];
        let mut received = receive(form(&[file(&content)])).await.unwrap();
        let upload = received.take_file("file").unwrap();
        let Content::File(kept) = &upload.content else {
            panic!("kept in memory");
        };
        let path = kept.path().to_owned();
        assert!(!path.to_string_lossy().contains("evil"));
        assert_eq!(upload.into_bytes(u64::MAX, "file").unwrap(), content);
        assert!(!path.exists());
        let mut received = receive(form(&[file(b"12")])).await.unwrap();
        let error = received
            .take_file("file")
            .unwrap()
            .into_bytes(1, "file")
            .unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.body.param.as_deref()),
            (413, Some("file"))
        );
    }

    #[tokio::test]
    async fn forms_that_lack_or_repeat_files_name_the_field() {
        for (parts, param) in [
            (vec![], "file"),
            (vec![part("name=\"file\"", b"text")], "file"),
            (vec![file(b"a"), file(b"b")], "file"),
            (
                vec![file(b"a"), part("name=\"other\"; filename=\"x\"", b"")],
                "other",
            ),
        ] {
            let error = receive(form(&parts))
                .await
                .unwrap()
                .take_file("file")
                .unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert_eq!(error.body.param.as_deref(), Some(param));
        }
    }

    #[tokio::test]
    async fn broken_and_hostile_forms_are_refused() {
        let whole = form(&[file(b"sound")]);
        let many: Vec<_> = (0..100_000)
            .map(|i| part(&format!("name=\"f{i}\""), b""))
            .collect();
        let long_text = form(&[part("name=\"prompt\"", &vec![b'a'; 100 << 20])]);
        let long_head = [
            b"--X\r\nContent-Disposition: ".to_vec(),
            vec![b'a'; 3 << 20],
        ]
        .concat();
        for (case, body, status, code) in [
            (
                "cut off",
                whole[..whole.len() - 4].to_vec(),
                400,
                "invalid_multipart",
            ),
            ("empty", Vec::new(), 400, "invalid_multipart"),
            (
                "other boundary",
                b"--Y\r\n\r\n--Y--".to_vec(),
                400,
                "invalid_multipart",
            ),
            (
                "no name",
                form(&[part("filename=\"a\"", b"")]),
                400,
                "invalid_multipart",
            ),
            ("10^5 parts", form(&many), 400, "invalid_multipart"),
            (
                "not UTF-8",
                form(&[part("name=\"prompt\"", b"\xff")]),
                400,
                "invalid_type",
            ),
            ("100 MB of text", long_text, 413, "request_too_large"),
            ("endless head", long_head, 400, "invalid_multipart"),
            (
                "large file",
                form(&[file(&vec![0; 21 << 20])]),
                413,
                "request_too_large",
            ),
        ] {
            // In blocks, as a connection delivers it.
            let blocks: Vec<_> = body.chunks(64 << 10).map(<[u8]>::to_vec).collect();
            let blocks = futures_util::stream::iter(blocks.into_iter().map(Ok::<_, io::Error>));
            let error = receive(Body::from_stream(blocks)).await.unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.body.code),
                (status, Some(code)),
                "{case}"
            );
        }
        for (content_type, status) in [
            ("application/json", 415),
            ("", 415),
            ("multipart/form-data", 400),
            ("multipart/mixed; boundary=X", 415),
        ] {
            let error = receive_as(content_type, whole.clone()).await.unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{content_type}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_form_that_stops_coming_is_given_up() {
        let start = futures_util::stream::iter([Ok::<_, io::Error>(file(b"sou"))]);
        let body = futures_util::StreamExt::chain(start, futures_util::stream::pending());
        let error = receive(Body::from_stream(body)).await.unwrap_err();
        assert_eq!(error.status.as_u16(), 408);
    }
}
