//! Fetching a file from the web without being led astray.
//!
//! A name is looked up once, all its addresses are checked, and the connection goes to exactly those: a second look-up
//! could answer differently. Every redirect is a new URL with its own check. There is no cookie jar, no credential, no
//! shared connection and no proxy: a proxy would look the name up itself, out of reach of the check.

use aha_media::MediaError;
use aha_media::source::{Host, RemoteUrl, SourcePolicy};
use std::fmt;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::{StatusCode, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

/// How long a host may take, and how often it may send elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// From the look-up of the name to the open connection, TLS included.
    pub connect: Duration,
    /// From the first look-up to the last byte, redirects included.
    pub total: Duration,
    /// Redirects that are followed.
    pub redirects: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            total: Duration::from_secs(30),
            redirects: 3,
        }
    }
}

/// Why a file could not be fetched. The messages are safe to show to a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The URL, its address, or the size of what it gives.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The name could not be looked up.
    #[error("the host {host:?} of the media URL was not found")]
    UnknownHost {
        /// The host.
        host: String,
    },
    /// The time ran out.
    #[error("{host:?} did not send the media within {} s", limit.as_secs_f32())]
    Timeout {
        /// The host.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// Another answer than the file.
    #[error("{host:?} answered the request for the media with status {status}")]
    Status {
        /// The host.
        host: String,
        /// The status of its answer.
        status: u16,
    },
    /// A redirect too many, or one that leads nowhere.
    #[error("{host:?} redirects the media URL more than {limit} times or nowhere")]
    Redirects {
        /// The last host.
        host: String,
        /// The limit.
        limit: usize,
    },
    /// The connection failed. The cause is for the log: it can tell about the network around this machine.
    #[error("the media could not be fetched from {host:?}: the connection failed")]
    Connection {
        /// The host.
        host: String,
        /// What failed.
        #[source]
        source: Box<ureq::Error>,
    },
}

/// Looks a name up.
type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Fetches files as a policy allows. Calls block.
#[derive(Clone)]
pub struct Fetcher {
    policy: SourcePolicy,
    limits: FetchLimits,
    lookup: Arc<Lookup>,
    certificates: Arc<OnceLock<RootCerts>>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("policy", &self.policy)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A fetcher that asks the system for addresses.
    pub fn new(policy: SourcePolicy, limits: FetchLimits) -> Self {
        Self {
            policy,
            limits,
            lookup: Arc::new(|name, port| Ok((name, port).to_socket_addrs()?.collect())),
            certificates: Arc::default(),
        }
    }

    /// The file at `url`, of at most `max_bytes`.
    ///
    /// # Errors
    /// [`FetchError::Media`] for what the policy refuses and for too many bytes, else what went wrong on the way.
    pub fn fetch(&self, url: &RemoteUrl, max_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let deadline = Instant::now() + self.limits.total;
        let mut url = url.clone();
        for _ in 0..=self.limits.redirects {
            let answer = self.request(&url, deadline)?;
            let status = answer.status();
            if is_redirect(status) {
                let location = answer.headers().get(header::LOCATION);
                let Some(location) = location.and_then(|value| value.to_str().ok()) else {
                    return Err(self.redirects(&url));
                };
                url = url.redirected(location)?;
                continue;
            }
            if status != StatusCode::OK {
                return Err(FetchError::Status {
                    host: url.host().to_string(),
                    status: status.as_u16(),
                });
            }
            return self.read(&url, answer.into_body(), max_bytes);
        }
        Err(self.redirects(&url))
    }

    fn redirects(&self, url: &RemoteUrl) -> FetchError {
        FetchError::Redirects {
            host: url.host().to_string(),
            limit: self.limits.redirects,
        }
    }

    fn request(
        &self,
        url: &RemoteUrl,
        deadline: Instant,
    ) -> Result<ureq::http::Response<Body>, FetchError> {
        self.policy.check_url(url)?;
        let addresses = self.addresses(url, deadline)?;
        let left = self.left(url, deadline)?;
        let certificates = self.certificates.get_or_init(aha_hub::trusted_certificates);
        let tls = TlsConfig::builder()
            .root_certs(certificates.clone())
            .build();
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("aha/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(left))
            .timeout_connect(Some(self.limits.connect))
            .build();
        // An agent of its own: connections that an earlier check opened are not used again.
        let agent = Agent::with_parts(config, DefaultConnector::default(), Pinned(addresses));
        agent
            .get(url.to_string())
            .call()
            .map_err(|error| self.failed(url, error))
    }

    /// The addresses of the URL's host, all of them allowed.
    fn addresses(&self, url: &RemoteUrl, deadline: Instant) -> Result<Vec<SocketAddr>, FetchError> {
        let addresses = match url.host() {
            Host::Address(address) => vec![SocketAddr::new(*address, url.port())],
            Host::Name(name) => self.look_up(name, url, deadline)?,
        };
        for address in &addresses {
            self.policy.check_address(url, address.ip())?;
        }
        Ok(addresses)
    }

    fn look_up(
        &self,
        name: &str,
        url: &RemoteUrl,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, FetchError> {
        let patience = self.left(url, deadline)?.min(self.limits.connect);
        let (sender, receiver) = mpsc::sync_channel(1);
        let (lookup, asked, port) = (self.lookup.clone(), name.to_owned(), url.port());
        // The system's look-up knows no time limit: it gets a thread, which may outlive the wait.
        std::thread::spawn(move || sender.send(lookup(&asked, port)));
        let unknown = || FetchError::UnknownHost {
            host: name.to_owned(),
        };
        let mut found = match receiver.recv_timeout(patience) {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(host = name, %error, "a media host was not found");
                return Err(unknown());
            }
            Err(_) => {
                return Err(FetchError::Timeout {
                    host: name.to_owned(),
                    limit: patience,
                });
            }
        };
        found.truncate(MAX_ADDRESSES);
        if found.is_empty() {
            return Err(unknown());
        }
        Ok(found)
    }

    fn left(&self, url: &RemoteUrl, deadline: Instant) -> Result<Duration, FetchError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.timeout(url));
        }
        Ok(left)
    }

    fn timeout(&self, url: &RemoteUrl) -> FetchError {
        FetchError::Timeout {
            host: url.host().to_string(),
            limit: self.limits.total,
        }
    }

    fn failed(&self, url: &RemoteUrl, error: ureq::Error) -> FetchError {
        match error {
            ureq::Error::Timeout(_) => self.timeout(url),
            error => FetchError::Connection {
                host: url.host().to_string(),
                source: Box::new(error),
            },
        }
    }

    /// The body, as long as it stays within the limit.
    fn read(&self, url: &RemoteUrl, body: Body, max_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let too_many = |bytes| MediaError::TooManyBytes {
            what: "media file",
            bytes,
            limit: max_bytes,
        };
        if let Some(length) = body.content_length().filter(|length| *length > max_bytes) {
            return Err(too_many(length).into());
        }
        let mut bytes = Vec::new();
        let read = body
            .into_reader()
            .take(max_bytes.saturating_add(1))
            .read_to_end(&mut bytes);
        read.map_err(|error| self.failed(url, error.into()))?;
        if bytes.len() as u64 > max_bytes {
            return Err(too_many(bytes.len() as u64).into());
        }
        Ok(bytes)
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Gives the addresses that were checked, whatever is asked.
#[derive(Debug)]
struct Pinned(Vec<SocketAddr>);

impl Resolver for Pinned {
    fn resolve(
        &self,
        _: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        for address in self.0.iter().take(MAX_ADDRESSES) {
            addresses.push(*address);
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A fetcher whose names are looked up by `lookup`; `listed` hosts may be private.
    fn fetcher(
        listed: &[&str],
        lookup: impl Fn(&str, u16) -> Vec<SocketAddr> + Send + Sync + 'static,
    ) -> Fetcher {
        let policy = SourcePolicy {
            allowed_hosts: listed.iter().map(|host| host.parse().unwrap()).collect(),
            ..SourcePolicy::default()
        };
        Fetcher {
            lookup: Arc::new(move |name, port| Ok(lookup(name, port))),
            ..Fetcher::new(policy, FetchLimits::default())
        }
    }

    /// A host on loopback that gives each connection the next answer.
    fn host(answers: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 4096];
                assert!(stream.read(&mut head).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn fetch(fetcher: &Fetcher, url: &str) -> Result<Vec<u8>, FetchError> {
        fetcher.fetch(&RemoteUrl::parse(url).unwrap(), 1000)
    }

    #[test]
    fn a_name_is_looked_up_once_and_the_connection_goes_there() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
        let address = host(vec![answer.to_owned()]);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        // A second look-up would lead to a place where nobody listens.
        let fetcher = fetcher(&["pictures.test"], move |_, port| {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            let ip = if first {
                [127, 0, 0, 1]
            } else {
                [127, 0, 0, 2]
            };
            vec![SocketAddr::from((ip, port))]
        });
        let url = format!("http://pictures.test:{}/a.png", address.port());
        assert_eq!(fetch(&fetcher, &url).unwrap(), b"hi");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn one_inner_address_among_outer_ones_is_enough_to_refuse() {
        for inner in ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"] {
            let fetcher = fetcher(&[], move |_, port| {
                ["8.8.8.8", inner]
                    .map(|ip| SocketAddr::new(ip.parse().unwrap(), port))
                    .to_vec()
            });
            let error = fetch(&fetcher, "http://rebinding.test/a.png").unwrap_err();
            assert!(
                matches!(error, FetchError::Media(MediaError::AddressRefused { .. })),
                "{inner}: {error:?}"
            );
        }
    }

    #[test]
    fn a_redirect_to_another_name_is_looked_up_and_checked_itself() {
        let secret = TcpListener::bind("127.0.0.1:0").unwrap();
        secret.set_nonblocking(true).unwrap();
        let target = format!("http://inner.test:{}/", secret.local_addr().unwrap().port());
        let address = host(vec![format!(
            "HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n"
        )]);
        let fetcher = fetcher(&["pictures.test"], |_, port| {
            vec![SocketAddr::from(([127, 0, 0, 1], port))]
        });
        let url = format!("http://pictures.test:{}/a.png", address.port());
        let error = fetch(&fetcher, &url).unwrap_err();
        assert!(matches!(
            error,
            FetchError::Media(MediaError::AddressRefused { host, .. }) if host == "inner.test"
        ));
        let connection = secret.accept().map_err(|error| error.kind());
        assert!(matches!(connection, Err(io::ErrorKind::WouldBlock)));
    }

    #[test]
    fn unknown_names_and_slow_look_ups_are_told_apart() {
        let nowhere = fetcher(&[], |_, _| Vec::new());
        let error = fetch(&nowhere, "http://nowhere.test/").unwrap_err();
        assert!(matches!(error, FetchError::UnknownHost { .. }), "{error:?}");
        let mut slow = fetcher(&[], |_, _| {
            std::thread::sleep(Duration::from_secs(2));
            Vec::new()
        });
        slow.limits.connect = Duration::from_millis(100);
        let error = fetch(&slow, "http://slow.test/").unwrap_err();
        assert!(matches!(error, FetchError::Timeout { .. }), "{error:?}");
    }
}
