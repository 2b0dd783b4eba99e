//! What an operator can set.

use crate::media::FetchLimits;
use aha_media::document::DocumentLimits;
use aha_media::image::Limits;
use aha_media::source::SourcePolicy;
use std::path::PathBuf;
use std::time::Duration;

/// The port of the server unless told otherwise.
pub const DEFAULT_PORT: u16 = 10100;

/// Settings of a server; [`ServerOptions::default`] is what `aha serv` starts without flags.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Address or host name to listen on (`127.0.0.1`, `::1`, `0.0.0.0`, `localhost`).
    pub address: String,
    /// Port; 0 takes a free one, which [`crate::BoundServer::local_addr`] tells.
    pub port: u16,
    /// Keys that open the API; none leaves it open, which only a loopback address allows.
    pub api_keys: Vec<String>,
    /// Listen beyond loopback without a key.
    pub insecure: bool,
    /// Let `POST /shutdown` come from other machines too, with the key that this needs.
    pub allow_remote_shutdown: bool,
    /// Origins whose pages may call the API; empty keeps CORS off, `*` allows every page.
    pub cors_origins: Vec<String>,
    /// Host names accepted in the `Host` header besides loopback ones; checked on loopback
    /// addresses, and elsewhere when not empty.
    pub allowed_hosts: Vec<String>,
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Bytes of all large request bodies (above 1 MiB) that are being read; further ones wait, as long as
    /// `body_timeout`.
    pub body_memory: usize,
    /// Largest form with files in bytes. Large files are kept on disk while their request runs.
    pub upload_limit: usize,
    /// Time for a request body to arrive.
    pub body_timeout: Duration,
    /// Longest time from a request to the end of its answer; `None` is without end.
    pub request_timeout: Option<Duration>,
    /// Time that running answers get once the server is told to stop.
    pub shutdown_grace: Duration,
    /// Connections held at once; further ones wait in the system's backlog.
    pub max_connections: usize,
    /// Header lines of a request; more is answered with 431.
    pub max_headers: usize,
    /// Bytes of a request's head (at least 8192); more is answered with 431.
    pub max_header_bytes: usize,
    /// Time for a request's head to arrive, which is also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Longest time that a client may leave a full socket unread.
    pub write_timeout: Duration,
    /// Silence of an event stream after which a comment is sent to keep it open.
    pub sse_keep_alive: Duration,
    /// Most answers of one request (`n` times the prompts).
    pub max_choices: usize,
    /// What pictures, clips and recordings of a request may be and cost.
    pub media: MediaOptions,
    /// Folder of the voices that are kept by name; `None` keeps none.
    pub voices: Option<PathBuf>,
}

/// What media a request may name, and how much they may cost.
#[derive(Debug, Clone)]
pub struct MediaOptions {
    /// Hosts and files that may be read on behalf of a request.
    pub policy: SourcePolicy,
    /// Limits of one file.
    pub limits: Limits,
    /// Limits of a document (a PDF, an image file of several pages) and of its pages.
    pub documents: DocumentLimits,
    /// Patience with the hosts that media are fetched from.
    pub fetch: FetchLimits,
    /// Most pictures, clips and recordings of one request.
    pub max_items: usize,
    /// Most frames of a clip that comes as pictures.
    pub max_frames: usize,
    /// Most bytes of all files of one request.
    pub max_total_bytes: u64,
    /// Most pixels of all pictures of one request, as they are stored.
    pub max_total_pixels: u64,
    /// Files fetched at the same time, for all requests together.
    pub max_fetches: usize,
}

impl Default for MediaOptions {
    fn default() -> Self {
        Self {
            policy: SourcePolicy::default(),
            limits: Limits::default(),
            documents: DocumentLimits {
                max_bytes: 64 << 20,
                max_pages: 256,
                image_pixels: 64 << 20,
                stream_bytes: 256 << 20,
                ..DocumentLimits::default()
            },
            fetch: FetchLimits::default(),
            max_items: 128,
            max_frames: 768,
            max_total_bytes: 256 << 20,
            max_total_pixels: 256 << 20,
            max_fetches: 32,
        }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: "127.0.0.1".to_owned(),
            port: DEFAULT_PORT,
            api_keys: Vec::new(),
            insecure: false,
            allow_remote_shutdown: false,
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            body_limit: 32 << 20,
            body_memory: 1 << 30,
            upload_limit: 512 << 20,
            body_timeout: Duration::from_secs(60),
            request_timeout: Some(Duration::from_secs(3600)),
            shutdown_grace: Duration::from_secs(30),
            max_connections: 1024,
            max_headers: 100,
            max_header_bytes: 64 << 10,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            sse_keep_alive: Duration::from_secs(15),
            max_choices: 128,
            media: MediaOptions::default(),
            voices: None,
        }
    }
}
