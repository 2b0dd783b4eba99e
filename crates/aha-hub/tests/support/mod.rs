//! A model hub on loopback that speaks the interfaces of Hugging Face and ModelScope and fails on
//! demand. Plain threads over `TcpListener`; one thread a connection.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// The repository of a mock that is told no other.
pub const REPO: &str = "acme/tiny";

/// What goes wrong with one answer. `after` counts body bytes.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends in the middle of the body.
    Cut { after: usize },
    /// The connection is reset (RST) in the middle of the body: what is on its way is lost.
    Reset { after: usize },
    /// The body comes in pieces of so many bytes, one a millisecond.
    Slow { piece: usize },
    /// The body stops, the connection stays open.
    Hang { after: usize },
    /// The body goes on at one byte every few milliseconds.
    Drip { after: usize },
    /// No byte until the pause is over.
    Delay(Duration),
    /// The whole file with 200, whatever the range.
    IgnoreRange,
    /// 206 from another byte than asked for.
    WrongRange,
    /// `Content-Length` says this.
    Length(usize),
    /// The entity tag says this.
    Etag(String),
    /// Every byte is flipped.
    Corrupt,
    /// Any status, with extra header lines and a body.
    Status(u16, Vec<(String, String)>, String),
    /// 200 with a login page, sent with this content type.
    LoginPage(&'static str),
    /// 302 to this address.
    Redirect(String),
    /// An extra header line.
    Header(&'static str, &'static str),
    /// The client's next requests see this content instead (sent after `Cut { after }`).
    Replace { after: usize, bytes: Vec<u8> },
}

impl Fault {
    pub fn status(code: u16) -> Self {
        Self::Status(code, Vec::new(), String::new())
    }
}

#[derive(Clone, Debug)]
struct Stored {
    bytes: Vec<u8>,
    /// Large files carry a SHA-256 on Hugging Face; small ones a git object id only.
    large: bool,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub target: String,
    /// The repository file, or `list`, or the raw path.
    pub what: String,
    pub headers: HashMap<String, String>,
}

impl Seen {
    /// The first byte asked for.
    pub fn from(&self) -> u64 {
        let range = self
            .headers
            .get("range")
            .map(String::as_str)
            .unwrap_or("bytes=0-");
        let start = range.trim_start_matches("bytes=").trim_end_matches('-');
        start.parse().unwrap()
    }
}

struct State {
    repo: String,
    files: Mutex<BTreeMap<String, Stored>>,
    once: Mutex<HashMap<String, VecDeque<Fault>>>,
    always: Mutex<HashMap<String, Fault>>,
    seen: Mutex<Vec<Seen>>,
    token: Mutex<Option<String>>,
    /// Large files redirect here, as Hugging Face does.
    cdn: Mutex<Option<String>>,
    /// The information lists names only, as some mirrors do.
    names_only: AtomicBool,
    /// The tree has pages of two entries.
    no_tree: AtomicBool,
    no_checksums: AtomicBool,
    closed: AtomicBool,
}

impl State {
    fn new(repo: &str) -> Self {
        Self {
            repo: repo.to_owned(),
            files: Mutex::default(),
            once: Mutex::default(),
            always: Mutex::default(),
            seen: Mutex::default(),
            token: Mutex::default(),
            cdn: Mutex::default(),
            names_only: AtomicBool::default(),
            no_tree: AtomicBool::default(),
            no_checksums: AtomicBool::default(),
            closed: AtomicBool::default(),
        }
    }
}

/// The server; stops when dropped.
pub struct Mock {
    addr: SocketAddr,
    state: Arc<State>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Mock {
    pub fn start() -> Self {
        Self::of(REPO)
    }

    /// A hub with an empty repository of this id.
    pub fn of(repo: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::new(repo));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { addr, state }
    }

    /// A hub with a small model: two shards, configuration, tokenizer, and files nobody needs.
    pub fn with_model(seed: u64) -> Self {
        let mock = Self::start();
        mock.put_model(seed);
        mock
    }

    pub fn put_model(&self, seed: u64) {
        for (path, bytes) in model_files(seed) {
            self.put(&path, &bytes);
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Adds or replaces a file; weights are large files, all others small ones.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let stored = Stored {
            bytes: bytes.to_vec(),
            large: path.ends_with(".safetensors"),
        };
        lock(&self.state.files).insert(path.to_owned(), stored);
    }

    pub fn remove(&self, path: &str) {
        lock(&self.state.files).remove(path);
    }

    pub fn bytes(&self, path: &str) -> Vec<u8> {
        lock(&self.state.files)[path].bytes.clone()
    }

    /// The next answer for `what` (a file, or `list`) has this fault.
    pub fn once(&self, what: &str, fault: Fault) -> &Self {
        lock(&self.state.once)
            .entry(what.to_owned())
            .or_default()
            .push_back(fault);
        self
    }

    /// Every further answer for `what` has this fault.
    pub fn always(&self, what: &str, fault: Fault) -> &Self {
        lock(&self.state.always).insert(what.to_owned(), fault);
        self
    }

    pub fn heal(&self) {
        lock(&self.state.once).clear();
        lock(&self.state.always).clear();
    }

    pub fn require_token(&self, token: &str) {
        *lock(&self.state.token) = Some(token.to_owned());
    }

    pub fn redirect_large_files_to(&self, base: &str) {
        *lock(&self.state.cdn) = Some(base.to_owned());
    }

    pub fn list_names_only(&self, tree_too: bool) {
        self.state.names_only.store(true, Ordering::Relaxed);
        self.state.no_tree.store(tree_too, Ordering::Relaxed);
    }

    pub fn hide_checksums(&self) {
        self.state.no_checksums.store(true, Ordering::Relaxed);
    }

    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    pub fn forget(&self) {
        lock(&self.state.seen).clear();
    }

    /// The requests for one file.
    pub fn seen_for(&self, what: &str) -> Vec<Seen> {
        self.seen()
            .into_iter()
            .filter(|seen| seen.what == what)
            .collect()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.addr);
    }
}

/// The model that every mock with the same seed serves.
pub fn model_files(seed: u64) -> Vec<(String, Vec<u8>)> {
    let index = r#"{"metadata": {}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let named = |name: &str, bytes: Vec<u8>| (name.to_owned(), bytes);
    vec![
        named("config.json", format!("{{\"seed\": {seed}}}").into_bytes()),
        named("tokenizer.json", noise(seed + 1, 20_000)),
        named("model.safetensors.index.json", index.into()),
        named("model-00001-of-00002.safetensors", noise(seed + 2, 300_000)),
        named("model-00002-of-00002.safetensors", noise(seed + 3, 150_001)),
        named("1_Pooling/config.json", b"{}".to_vec()),
        named("README.md", b"# not needed".to_vec()),
        named("pytorch_model.bin", noise(seed + 4, 1000)),
        named(".gitattributes", b"*.bin filter=lfs".to_vec()),
    ]
}

/// The files of [`model_files`] that a download brings by default.
pub const WANTED: &[&str] = &[
    "config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "1_Pooling/config.json",
];

/// Repeatable bytes without structure.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..len).map(|_| (random.next() >> 32) as u8).collect()
}

/// Xorshift, for repeatable tests.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn serve(stream: TcpStream, state: &State) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let Ok(clone) = stream.try_clone() else {
        return;
    };
    let mut reader = BufReader::new(clone);
    let mut writer = stream;
    while let Some((target, headers)) = read_request(&mut reader) {
        if !answer(&mut writer, state, &target, headers) {
            break;
        }
    }
    let lingers = socket2::SockRef::from(&writer).linger();
    if !matches!(lingers, Ok(Some(Duration::ZERO))) {
        let _ = writer.shutdown(Shutdown::Both);
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, HashMap<String, String>)> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|count| *count > 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            return Some((target, headers));
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
}

/// What a target asks for.
enum Route {
    Info,
    Tree(usize),
    ModelScopeList,
    File { path: String, redirects: bool },
    Absent,
}

fn route(repo: &str, target: &str) -> Route {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let value = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .map(unescape)
    };
    let file = |path: &str, redirects| Route::File {
        path: unescape(path),
        redirects,
    };
    if path.starts_with(&format!("/api/models/{repo}/revision/")) {
        return Route::Info;
    }
    if path.starts_with(&format!("/api/models/{repo}/tree/")) {
        let page = value("cursor").and_then(|text| text.parse().ok());
        return Route::Tree(page.unwrap_or(0));
    }
    if path == format!("/api/v1/models/{repo}/repo/files") {
        return Route::ModelScopeList;
    }
    if path == format!("/api/v1/models/{repo}/repo") {
        return value("FilePath").map_or(Route::Absent, |path| file(&path, false));
    }
    if let Some(rest) = path.strip_prefix(&format!("/{repo}/resolve/"))
        && let Some((_, path)) = rest.split_once('/')
    {
        return file(path, true);
    }
    match path.strip_prefix("/cdn/") {
        Some(path) => file(path, false),
        None => Route::Absent,
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' && tail.len() >= 2 {
            let hex = std::str::from_utf8(&tail[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Answers one request; `false` ends the connection.
fn answer(
    writer: &mut TcpStream,
    state: &State,
    target: &str,
    headers: HashMap<String, String>,
) -> bool {
    let route = route(&state.repo, target);
    let what = match &route {
        Route::Info | Route::Tree(_) | Route::ModelScopeList => "list".to_owned(),
        Route::File { path, .. } => path.clone(),
        Route::Absent => target.to_owned(),
    };
    let from_cdn = target.starts_with("/cdn/");
    let authorization = headers.get("authorization").cloned();
    let range = headers.get("range").cloned();
    let seen = Seen {
        target: target.to_owned(),
        what: what.clone(),
        headers,
    };
    lock(&state.seen).push(seen);
    // The object store, not the redirect to it, sends the body and has its faults.
    let redirects = matches!(
        &route,
        Route::File {
            redirects: true,
            ..
        }
    ) && is_elsewhere(state, &what);
    let once = if redirects {
        None
    } else {
        next_fault(state, &what)
    };
    let fault = once.or_else(|| lock(&state.always).get(&what).cloned());
    let wanted_token = lock(&state.token).clone().filter(|_| !from_cdn);
    if let Some(token) = wanted_token
        && authorization != Some(format!("Bearer {token}"))
    {
        return simple(
            writer,
            401,
            &[],
            "{\"error\": \"Invalid username or password.\"}",
        );
    }
    match &fault {
        Some(Fault::Status(code, headers, body)) => return simple(writer, *code, headers, body),
        Some(Fault::Redirect(to)) => {
            let location = [("Location".to_owned(), to.clone())];
            return simple(writer, 302, &location, "");
        }
        Some(Fault::LoginPage(kind)) => {
            let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
            return body_answer(writer, &[("Content-Type", kind)], page.as_bytes());
        }
        Some(Fault::Delay(pause)) => thread::sleep(*pause),
        Some(Fault::Cut { .. }) if what == "list" => return false,
        Some(Fault::Reset { .. }) if what == "list" => return reset(writer),
        Some(Fault::Hang { .. }) if what == "list" => {
            let _ = writer.read(&mut [0; 1]);
            return false;
        }
        _ => {}
    }
    match route {
        Route::Info => body_answer(writer, &[], info(state).as_bytes()),
        Route::Tree(page) => tree(writer, state, page),
        Route::ModelScopeList => body_answer(writer, &[], modelscope_list(state).as_bytes()),
        Route::File { path, redirects } => {
            file_answer(writer, state, &path, redirects, range.as_deref(), fault)
        }
        Route::Absent => simple(writer, 404, &[], "{\"error\": \"Repository not found\"}"),
    }
}

fn next_fault(state: &State, what: &str) -> Option<Fault> {
    lock(&state.once)
        .get_mut(what)
        .and_then(VecDeque::pop_front)
}

/// Whether a file is served by the object store.
fn is_elsewhere(state: &State, path: &str) -> bool {
    lock(&state.cdn).is_some() && lock(&state.files).get(path).is_some_and(|file| file.large)
}

fn info(state: &State) -> String {
    let names_only = state.names_only.load(Ordering::Relaxed);
    let files = lock(&state.files);
    let mut all = Sha256::new();
    let siblings: Vec<String> = files
        .iter()
        .map(|(path, file)| {
            all.update(&file.bytes);
            all.update(path);
            if names_only {
                return format!("{{\"rfilename\": {path:?}}}");
            }
            let checksum = sha256(&file.bytes);
            let size = file.bytes.len();
            let lfs = if file.large && !state.no_checksums.load(Ordering::Relaxed) {
                format!(", \"lfs\": {{\"sha256\": \"{checksum}\", \"size\": {size}}}")
            } else {
                String::new()
            };
            let blob = &checksum[..40];
            format!("{{\"rfilename\": {path:?}, \"size\": {size}, \"blobId\": \"{blob}\"{lfs}}}")
        })
        .collect();
    let sha: String = all
        .finalize()
        .iter()
        .take(20)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "{{\"sha\": \"{sha}\", \"siblings\": [{}]}}",
        siblings.join(",")
    )
}

/// Two entries a page, with a `Link` to the next.
fn tree(writer: &mut TcpStream, state: &State, page: usize) -> bool {
    if state.no_tree.load(Ordering::Relaxed) {
        return simple(writer, 404, &[], "");
    }
    let files = lock(&state.files);
    let entries: Vec<String> = files
        .iter()
        .skip(page * 2)
        .take(2)
        .map(|(path, file)| {
            let checksum = sha256(&file.bytes);
            let size = file.bytes.len();
            let lfs = if file.large {
                format!(", \"lfs\": {{\"oid\": \"{checksum}\", \"size\": {size}}}")
            } else {
                String::new()
            };
            format!(
                "{{\"type\": \"file\", \"path\": {path:?}, \"size\": {size}, \"oid\": \"{}\"{lfs}}}",
                &checksum[..40]
            )
        })
        .chain([r#"{"type": "directory", "path": "1_Pooling", "size": 0}"#.to_owned()])
        .collect();
    let body = format!("[{}]", entries.join(","));
    let addr = writer.local_addr().unwrap();
    let (next, repo) = (page + 1, &state.repo);
    let link = format!("<http://{addr}/api/models/{repo}/tree/x?cursor={next}>; rel=\"next\"");
    let more = files.len() > next * 2;
    drop(files);
    let headers: &[(&str, &str)] = if more { &[("Link", &link)] } else { &[] };
    body_answer(writer, headers, body.as_bytes())
}

fn modelscope_list(state: &State) -> String {
    let files = lock(&state.files);
    let entries: Vec<String> = files
        .iter()
        .map(|(path, file)| {
            let name = path.rsplit('/').next().unwrap();
            let sha256 = if state.no_checksums.load(Ordering::Relaxed) {
                String::new()
            } else {
                sha256(&file.bytes)
            };
            format!(
                "{{\"Name\": {name:?}, \"Path\": {path:?}, \"Type\": \"blob\", \"Size\": {}, \
                 \"Sha256\": {sha256:?}, \"Revision\": \"{}\"}}",
                file.bytes.len(),
                &self::sha256(&file.bytes)[..40]
            )
        })
        .chain([r#"{"Name": "1_Pooling", "Path": "1_Pooling", "Type": "tree", "Size": 0}"#.into()])
        .collect();
    format!(
        "{{\"Code\": 200, \"Success\": true, \"Data\": {{\"Files\": [{}]}}}}",
        entries.join(",")
    )
}

fn file_answer(
    writer: &mut TcpStream,
    state: &State,
    path: &str,
    redirects: bool,
    range: Option<&str>,
    fault: Option<Fault>,
) -> bool {
    let Some(stored) = lock(&state.files).get(path).cloned() else {
        return simple(writer, 404, &[], "");
    };
    let checksum = sha256(&stored.bytes);
    let cdn = lock(&state.cdn).clone();
    if let (true, true, Some(base)) = (redirects, stored.large, cdn) {
        let headers = [
            (
                "Location".to_owned(),
                format!("{base}/cdn/{path}?X-Signature=secret"),
            ),
            ("X-Linked-Etag".to_owned(), format!("\"{checksum}\"")),
            ("X-Linked-Size".to_owned(), stored.bytes.len().to_string()),
        ];
        return simple(writer, 302, &headers, "");
    }
    let total = stored.bytes.len();
    let mut start: usize = range
        .and_then(|text| {
            text.trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .ok()
        })
        .unwrap_or(0);
    if matches!(fault, Some(Fault::IgnoreRange)) {
        start = 0;
    }
    if start > 0 && start >= total {
        return simple(
            writer,
            416,
            &[("Content-Range".into(), format!("bytes */{total}"))],
            "",
        );
    }
    let partial = start > 0 || matches!(fault, Some(Fault::WrongRange));
    if matches!(fault, Some(Fault::WrongRange)) {
        start = (start + 7).min(total);
    }
    let mut body = stored.bytes[start..].to_vec();
    if matches!(fault, Some(Fault::Corrupt)) {
        body.iter_mut().for_each(|byte| *byte ^= 0x55);
    }
    let etag = match &fault {
        Some(Fault::Etag(tag)) => tag.clone(),
        _ if stored.large => checksum.clone(),
        _ => checksum[..40].to_owned(),
    };
    let length = match &fault {
        Some(Fault::Length(length)) => *length,
        _ => body.len(),
    };
    let mut head = if partial {
        let last = total.saturating_sub(1);
        format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{last}/{total}\r\n")
    } else {
        "HTTP/1.1 200 OK\r\n".to_owned()
    };
    head += &format!(
        "Content-Length: {length}\r\nETag: \"{etag}\"\r\nAccept-Ranges: bytes\r\n\
         Content-Type: application/octet-stream\r\n"
    );
    if let Some(Fault::Header(name, value)) = fault {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    if writer.write_all(head.as_bytes()).is_err() {
        return false;
    }
    send_body(writer, state, path, &body, fault)
}

fn send_body(
    writer: &mut TcpStream,
    state: &State,
    path: &str,
    body: &[u8],
    fault: Option<Fault>,
) -> bool {
    let first = |after: usize| &body[..after.min(body.len())];
    match fault {
        Some(Fault::Cut { after }) => {
            let _ = writer.write_all(first(after));
            false
        }
        Some(Fault::Reset { after }) => {
            let _ = writer.write_all(first(after));
            reset(writer)
        }
        Some(Fault::Slow { piece }) => body.chunks(piece).all(|piece| {
            thread::sleep(Duration::from_millis(1));
            writer.write_all(piece).is_ok()
        }),
        Some(Fault::Replace { after, bytes }) => {
            let _ = writer.write_all(first(after));
            if let Some(stored) = lock(&state.files).get_mut(path) {
                stored.bytes = bytes;
            }
            false
        }
        Some(Fault::Hang { after }) => {
            let _ = writer.write_all(first(after));
            // Until the client gives up.
            let _ = writer.read(&mut [0; 1]);
            false
        }
        Some(Fault::Drip { after }) => {
            let mut sent = writer.write_all(first(after)).is_ok();
            let end = Instant::now() + Duration::from_secs(20);
            for byte in body.iter().skip(after) {
                if !sent || Instant::now() > end {
                    return false;
                }
                thread::sleep(Duration::from_millis(5));
                sent = writer.write_all(&[*byte]).is_ok();
            }
            sent
        }
        Some(Fault::Length(_)) => {
            let _ = writer.write_all(body);
            false
        }
        _ => writer.write_all(body).is_ok(),
    }
}

/// Ends the connection with RST instead of FIN.
fn reset(writer: &TcpStream) -> bool {
    // With nothing to linger for, closing resets. The reading half holds the socket open, so the
    // option stays set until `serve` drops both.
    let _ = socket2::SockRef::from(writer).set_linger(Some(Duration::ZERO));
    false
}

fn body_answer(writer: &mut TcpStream, headers: &[(&str, &str)], body: &[u8]) -> bool {
    let mut head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    writer
        .write_all(head.as_bytes())
        .and_then(|()| writer.write_all(body))
        .is_ok()
}

fn simple(writer: &mut TcpStream, code: u16, headers: &[(String, String)], body: &str) -> bool {
    let length = body.len();
    let mut head = format!("HTTP/1.1 {code} Status\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    write!(writer, "{head}\r\n{body}").is_ok()
}
