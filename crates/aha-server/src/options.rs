//! What an operator can set.

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
        }
    }
}
