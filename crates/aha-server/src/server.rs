//! Binding, accepting, stopping.

use crate::connection::Connections;
use crate::limits::HostRule;
use crate::model::{ModelState, ServedModel};
use crate::options::ServerOptions;
use crate::router;
use crate::shutdown::{Phase, Shutdown};
use crate::state::AppState;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Time for the last words of answers that the end of the grace time cuts.
const CUT_TIME: Duration = Duration::from_secs(2);
/// Time for the engines' threads to end.
const ENGINE_TIME: Duration = Duration::from_secs(5);
/// Pause after a failed accept: what is short then (file descriptors) takes a moment to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server could not start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Somebody else listens there.
    #[error(
        "cannot listen on {address}: the port is in use; stop the other program or choose another with --port"
    )]
    AddressInUse {
        /// Where the server was to listen.
        address: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where the server was to listen.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The address is reachable from elsewhere and nothing protects the API.
    #[error(
        "refusing to listen on {address} without an API key: set one with --api-key, listen on 127.0.0.1, or accept the risk with --insecure"
    )]
    Unprotected {
        /// Where the server was to listen.
        address: String,
    },
    /// A setting makes no sense.
    #[error("{option}: {message}")]
    InvalidOption {
        /// The setting's name.
        option: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// A server that listens and does not answer yet.
pub struct BoundServer {
    listener: TcpListener,
    address: SocketAddr,
    state: AppState,
}

impl std::fmt::Debug for BoundServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoundServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Checks the options and takes the port.
///
/// # Errors
/// [`ServerError`] says what is wrong with the options or the address.
pub async fn bind(
    options: ServerOptions,
    models: Vec<ServedModel>,
    shutdown: Shutdown,
) -> Result<BoundServer, ServerError> {
    check(&options, &models)?;
    let host = options.address.trim_matches(['[', ']']);
    let shown = if host.contains(':') {
        format!("[{host}]:{}", options.port)
    } else {
        format!("{host}:{}", options.port)
    };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ServerError::AddressInUse {
            address: shown.clone(),
        },
        _ => ServerError::Bind {
            address: shown.clone(),
            source,
        },
    };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, options.port))
        .await
        .map_err(failed)?
        .collect();
    let loopback = addresses
        .iter()
        .all(|address| address.ip().to_canonical().is_loopback());
    if !loopback && options.api_keys.is_empty() {
        if !options.insecure {
            return Err(ServerError::Unprotected { address: shown });
        }
        tracing::warn!(
            "listening on {shown} without an API key: everybody who reaches it may use it"
        );
    }
    let listener = TcpListener::bind(&addresses[..]).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let hosts = HostRule::new(loopback, host, &options.allowed_hosts);
    let state = AppState::new(options, models, hosts, shutdown);
    Ok(BoundServer {
        listener,
        address,
        state,
    })
}

/// Refuses settings that would leave the server open, unable to answer, or different from what
/// was meant.
fn check(options: &ServerOptions, models: &[ServedModel]) -> Result<(), ServerError> {
    let invalid = |option, message: &str| {
        Err(ServerError::InvalidOption {
            option,
            message: message.to_owned(),
        })
    };
    if models.is_empty() {
        return invalid("models", "a server needs at least one model");
    }
    if options.api_keys.iter().any(|key| key.trim().is_empty()) {
        return invalid("api_keys", "an API key must not be empty");
    }
    if options.api_keys.iter().any(|key| key.trim() != key) {
        return invalid("api_keys", "an API key must not begin or end with a space");
    }
    if let Some(origin) = options
        .cors_origins
        .iter()
        .find(|origin| !is_origin(origin))
    {
        return Err(ServerError::InvalidOption {
            option: "cors_origins",
            message: format!(
                "'{origin}' is no origin: it must read like https://example.com, or *"
            ),
        });
    }
    if options.allow_remote_shutdown && options.api_keys.is_empty() {
        return invalid(
            "allow_remote_shutdown",
            "stopping the server from other machines needs an API key: set one with --api-key",
        );
    }
    if options.max_connections == 0 || options.max_connections > Semaphore::MAX_PERMITS {
        return invalid("max_connections", "it must be at least 1");
    }
    if options.max_choices == 0 {
        return invalid("max_choices", "it must be at least 1");
    }
    if options.sse_keep_alive.is_zero() {
        return invalid("sse_keep_alive", "it must be longer than 0");
    }
    Ok(())
}

/// `scheme://host[:port]` without a path, as browsers send it.
fn is_origin(text: &str) -> bool {
    let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    text == "*"
        || text.split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty() && !host.is_empty() && !host.contains('/') && visible(text)
        })
}

impl BoundServer {
    /// Where the server listens, with the port that was really taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The server's address for a browser or client.
    pub fn url(&self) -> String {
        let mut address = self.address;
        // A wildcard is no destination: this machine reaches it by loopback.
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}")
    }

    /// Answers until a shutdown is asked for (with [`Shutdown::request`] or over HTTP) and carried
    /// out: running answers may finish within the grace time, then they are cut, then the engines
    /// are stopped.
    ///
    /// # Errors
    /// None at present: a server that was bound serves until it is told to stop.
    pub async fn serve(self) -> Result<(), ServerError> {
        let Self {
            listener, state, ..
        } = self;
        let shutdown = state.shutdown.clone();
        let router = router::build(state.clone());
        let connections = Connections::new(&state.options, router, shutdown.clone());
        let slots = Arc::new(Semaphore::new(state.options.max_connections));
        let mut running = JoinSet::new();
        loop {
            let (stream, peer, slot) = tokio::select! {
                biased;
                () = shutdown.reached(Phase::Draining) => break,
                accepted = accept(&listener, &slots) => match accepted {
                    Some(accepted) => accepted,
                    None => break,
                },
            };
            let connection = connections.clone().serve(stream, peer);
            running.spawn(async move {
                connection.await;
                drop(slot);
            });
            while running.try_join_next().is_some() {}
        }
        drop(listener);
        stop(&state, running).await;
        Ok(())
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(
    tokio::net::TcpStream,
    SocketAddr,
    tokio::sync::OwnedSemaphorePermit,
)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Some((stream, peer, slot)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Lets answers finish, then cuts them, then stops the engines.
async fn stop(state: &AppState, mut running: JoinSet<()>) {
    let shutdown = &state.shutdown;
    let grace = state.options.shutdown_grace;
    if !running.is_empty() {
        tracing::info!("stopping: running answers have {grace:?} to finish");
    }
    for (phase, time) in [(Phase::Draining, grace), (Phase::Cutting, CUT_TIME)] {
        shutdown.advance(phase);
        tokio::select! {
            biased;
            () = shutdown.reached(Phase::Closing) => {}
            () = async { while running.join_next().await.is_some() {} } => {}
            () = tokio::time::sleep(time) => {}
        }
    }
    let hurried = shutdown.phase() == Phase::Closing;
    shutdown.advance(Phase::Closing);
    running.shutdown().await;
    if !hurried {
        stop_engines(state).await;
    }
    tracing::info!("stopped");
}

/// Joins the engines' threads, but not for long: a step on a large model may take its time, and
/// the process ends anyway.
async fn stop_engines(state: &AppState) {
    let engines: Vec<_> = state
        .models
        .iter()
        .filter_map(|model| match model.state() {
            ModelState::Ready(service) => Some(service),
            _ => None,
        })
        .collect();
    let joined = tokio::task::spawn_blocking(move || {
        for engine in engines {
            engine.shutdown();
        }
    });
    if tokio::time::timeout(ENGINE_TIME, joined).await.is_err() {
        tracing::warn!("an engine did not stop within {ENGINE_TIME:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Vec<ServedModel> {
        vec![ServedModel::new("m", [], "chat")]
    }

    fn options(address: &str) -> ServerOptions {
        ServerOptions {
            address: address.to_owned(),
            port: 0,
            ..ServerOptions::default()
        }
    }

    async fn refusal(options: ServerOptions) -> String {
        bind(options, models(), Shutdown::default())
            .await
            .err()
            .unwrap()
            .to_string()
    }

    #[tokio::test]
    async fn port_zero_takes_a_free_port_and_a_taken_one_is_told() {
        let first = bind(options("127.0.0.1"), models(), Shutdown::default())
            .await
            .unwrap();
        let port = first.local_addr().port();
        assert_ne!(port, 0);
        assert_eq!(first.url(), format!("http://127.0.0.1:{port}"));
        let message = refusal(ServerOptions {
            port,
            ..options("127.0.0.1")
        })
        .await;
        assert!(message.contains("the port is in use"), "{message}");
    }

    #[tokio::test]
    async fn open_addresses_need_a_key_or_consent() {
        let message = refusal(options("0.0.0.0")).await;
        assert!(message.contains("--api-key"), "{message}");
        let keyed = ServerOptions {
            api_keys: vec!["k".into()],
            ..options("0.0.0.0")
        };
        assert!(bind(keyed, models(), Shutdown::default()).await.is_ok());
        let insecure = ServerOptions {
            insecure: true,
            ..options("0.0.0.0")
        };
        let server = bind(insecure, models(), Shutdown::default()).await.unwrap();
        assert!(server.url().starts_with("http://127.0.0.1:"));
    }

    #[tokio::test]
    async fn settings_are_checked() {
        let base = || options("127.0.0.1");
        for (options, name) in [
            (
                ServerOptions {
                    api_keys: vec![String::new()],
                    ..base()
                },
                "api_keys",
            ),
            (
                ServerOptions {
                    api_keys: vec!["k ".into()],
                    ..base()
                },
                "api_keys",
            ),
            (
                ServerOptions {
                    cors_origins: vec!["example.com".into()],
                    ..base()
                },
                "cors_origins",
            ),
            (
                ServerOptions {
                    cors_origins: vec!["https://a/b".into()],
                    ..base()
                },
                "cors_origins",
            ),
            (
                ServerOptions {
                    allow_remote_shutdown: true,
                    ..base()
                },
                "allow_remote_shutdown",
            ),
            (
                ServerOptions {
                    max_connections: 0,
                    ..base()
                },
                "max_connections",
            ),
            (
                ServerOptions {
                    sse_keep_alive: Duration::ZERO,
                    ..base()
                },
                "sse_keep_alive",
            ),
        ] {
            let message = refusal(options).await;
            assert!(message.starts_with(name), "{message}");
        }
        let keyed = ServerOptions {
            allow_remote_shutdown: true,
            api_keys: vec!["k".into()],
            ..base()
        };
        assert!(bind(keyed, models(), Shutdown::default()).await.is_ok());
        let none = bind(base(), Vec::new(), Shutdown::default())
            .await
            .err()
            .unwrap();
        assert!(none.to_string().starts_with("models"));
        let unknown = refusal(options("no-such-host.invalid")).await;
        assert!(
            unknown.starts_with("cannot listen on no-such-host.invalid:0"),
            "{unknown}"
        );
    }
}
