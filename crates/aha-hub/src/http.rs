//! The only place that opens connections: redirects, credentials, proxies, certificates, timeouts.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ureq::http::header::{self, HeaderMap, HeaderName};
use ureq::http::{StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

use crate::config::{HubConfig, Secret};
use crate::{HubError, Source};

const MAX_REDIRECTS: usize = 10;
/// How much of an error's body is read for its message.
const MAX_ERROR_BODY: u64 = 16 << 10;

/// Limits of patience. The defaults suit slow but working lines.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// From the request to the end of the answer's headers.
    pub response: Duration,
    /// Between two blocks of bytes.
    pub stall: Duration,
    /// Bytes per second that are still acceptable over `speed_window`; 0 turns the check off.
    pub min_speed: u64,
    /// How long a download may stay below `min_speed`.
    pub speed_window: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            response: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            min_speed: 1024,
            speed_window: Duration::from_secs(60),
        }
    }
}

/// A URL as messages may show it: no user info, no query (signed links hold secrets there).
pub(crate) struct SafeUrl<'a>(pub(crate) &'a Uri);

impl fmt::Display for SafeUrl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uri = self.0;
        write!(f, "{}://", uri.scheme_str().unwrap_or("?"))?;
        write!(f, "{}", uri.host().unwrap_or("?"))?;
        if let Some(port) = uri.port_u16() {
            write!(f, ":{port}")?;
        }
        f.write_str(uri.path())
    }
}

/// An answer, after redirects.
pub(crate) struct Reply {
    pub(crate) source: Source,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// For messages.
    pub(crate) url: String,
    /// `X-Linked-Etag` of any hop: Hugging Face names the stored object before it redirects.
    pub(crate) linked_etag: Option<String>,
    /// `X-Linked-Size` of any hop.
    pub(crate) linked_size: Option<u64>,
    pub(crate) body: Box<dyn Read + Send>,
}

impl Reply {
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The entity tag without quotes and weakness mark, of the stored object where it is named.
    pub(crate) fn etag(&self) -> Option<String> {
        let own = || self.header(header::ETAG).and_then(clean_etag);
        self.linked_etag.clone().or_else(own)
    }

    pub(crate) fn is_html(&self) -> bool {
        let content_type = self.header(header::CONTENT_TYPE).unwrap_or_default();
        content_type.to_ascii_lowercase().starts_with("text/html")
    }

    /// Passes a success on, turns every other status into its error.
    pub(crate) fn success(self) -> Result<Self, HubError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let retry_after = retry_after(&self.headers);
        let Self {
            source: source_hub,
            status,
            headers,
            url,
            body,
            ..
        } = self;
        let message = hub_message(&headers, body);
        let detail = message.map_or_else(String::new, |text| format!(": {text}"));
        // Hugging Face answers 401 for a repository that does not exist.
        let absent = headers
            .get("x-error-code")
            .is_some_and(|code| code == "RepoNotFound" || code == "RevisionNotFound");
        Err(match status.as_u16() {
            404 | 410 => HubError::NotFound {
                source_hub,
                url,
                detail,
            },
            401 if absent => HubError::NotFound {
                source_hub,
                url,
                detail,
            },
            401 => HubError::Unauthorized {
                source_hub,
                url,
                detail,
            },
            403 => HubError::Forbidden {
                source_hub,
                url,
                detail,
            },
            429 => HubError::RateLimited {
                source_hub,
                url,
                retry_after,
            },
            status => HubError::Status {
                source_hub,
                url,
                status,
                retry_after,
            },
        })
    }
}

fn clean_etag(raw: &str) -> Option<String> {
    let tag = raw.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
    (!tag.is_empty()).then(|| tag.to_owned())
}

/// What the hub says about a refusal, as one short line without control characters.
fn hub_message(headers: &HeaderMap, body: Box<dyn Read + Send>) -> Option<String> {
    let from_header = || {
        headers
            .get("x-error-message")?
            .to_str()
            .ok()
            .map(str::to_owned)
    };
    let from_body = || {
        let mut text = String::new();
        body.take(MAX_ERROR_BODY).read_to_string(&mut text).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        let message = ["Message", "message", "error"]
            .iter()
            .find_map(|key| json.get(key)?.as_str())?;
        Some(message.to_owned())
    };
    one_line(&from_header().or_else(from_body)?)
}

/// Text from the network made safe for a log line.
pub(crate) fn one_line(text: &str) -> Option<String> {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// `Retry-After` in seconds or as a date, held against the server's own clock where it tells it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let now = headers
        .get(header::DATE)
        .and_then(|value| date(value.to_str().ok()?))
        .unwrap_or_else(SystemTime::now);
    Some(date(text)?.duration_since(now).unwrap_or_default())
}

/// A blocking client for both hubs.
pub(crate) struct HttpClient {
    agent: Agent,
    https_proxy: Option<Proxy>,
    http_proxy: Option<Proxy>,
    no_proxy: Vec<String>,
    offline: bool,
    pub(crate) timeouts: Timeouts,
}

impl HttpClient {
    pub(crate) fn new(config: &HubConfig, timeouts: Timeouts) -> Result<Self, HubError> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("aha/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .proxy(None)
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.response))
            .timeout_per_read(Some(timeouts.stall))
            .tls_config(
                TlsConfig::builder()
                    .root_certs(root_certificates(config.ca_file.as_deref())?)
                    .build(),
            )
            .build()
            .new_agent();
        Ok(Self {
            agent,
            https_proxy: parse_proxy("HTTPS_PROXY", config.proxies.https.as_deref())?,
            http_proxy: parse_proxy("HTTP_PROXY", config.proxies.http.as_deref())?,
            no_proxy: config.proxies.no_proxy.clone(),
            offline: config.offline,
            timeouts,
        })
    }

    /// Asks for `url`, from byte `from` on if it is not 0. The token goes to the origin of `url`
    /// only: a redirect elsewhere is followed without it.
    pub(crate) fn get(
        &self,
        source: Source,
        url: &str,
        token: Option<&Secret>,
        from: u64,
    ) -> Result<Reply, HubError> {
        if self.offline {
            return Err(HubError::Offline {
                what: format!("asking {source}"),
            });
        }
        let mut uri: Uri = url.parse().map_err(|_| HubError::InvalidSetting {
            name: "the hub's address",
            reason: format!(
                "{:?} is not a URL",
                url.split('?').next().unwrap_or_default()
            ),
        })?;
        let mut token = token;
        let (mut linked_etag, mut linked_size) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(source, &uri, token, from)?;
            let (parts, body) = response.into_parts();
            let text = |name: &str| parts.headers.get(name)?.to_str().ok();
            linked_etag = linked_etag.or_else(|| text("x-linked-etag").and_then(clean_etag));
            linked_size = linked_size.or_else(|| text("x-linked-size")?.parse().ok());
            if !parts.status.is_redirection() || parts.status == StatusCode::NOT_MODIFIED {
                return Ok(Reply {
                    source,
                    status: parts.status,
                    headers: parts.headers,
                    url: SafeUrl(&uri).to_string(),
                    linked_etag,
                    linked_size,
                    body: Box::new(body.into_reader()),
                });
            }
            let next = redirect_target(&uri, text("location"))?;
            if origin(&next) != origin(&uri) {
                token = None;
            }
            tracing::debug!(from = %SafeUrl(&uri), to = %SafeUrl(&next), "redirect");
            uri = next;
        }
        Err(HubError::BadRedirect {
            url: url.split('?').next().unwrap_or_default().to_owned(),
            target: SafeUrl(&uri).to_string(),
            reason: "there are more than 10 redirects",
        })
    }

    fn send(
        &self,
        source: Source,
        uri: &Uri,
        token: Option<&Secret>,
        from: u64,
    ) -> Result<ureq::http::Response<ureq::Body>, HubError> {
        // A compressed body would break sizes, ranges and checksums.
        let mut request = self
            .agent
            .get(uri.clone())
            .header(header::ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = token {
            let token = token.expose();
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            if source == Source::ModelScope {
                request = request.header(header::COOKIE, format!("m_session_id={token}"));
            }
        }
        request
            .config()
            .proxy(self.proxy_for(uri).cloned())
            .build()
            .call()
            .map_err(|error| HubError::Network {
                url: SafeUrl(uri).to_string(),
                reason: error.to_string(),
            })
    }

    fn proxy_for(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = match uri.scheme_str() {
            Some("https") => self.https_proxy.as_ref(),
            _ => self.http_proxy.as_ref(),
        }?;
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        (!self.no_proxy.iter().any(|entry| covers(entry, &host))).then_some(proxy)
    }
}

/// Whether an entry of `NO_PROXY` means `host`: the host itself, a domain above it, or `*`.
fn covers(entry: &str, host: &str) -> bool {
    let entry = entry.trim_start_matches('*').trim_start_matches('.');
    let entry = entry.to_ascii_lowercase();
    if entry.is_empty() {
        return true;
    }
    host.strip_suffix(&entry)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn parse_proxy(name: &'static str, text: Option<&str>) -> Result<Option<Proxy>, HubError> {
    // The value may hold a password and stays out of the message.
    text.map(Proxy::new)
        .transpose()
        .map_err(|_| HubError::InvalidSetting {
            name,
            reason: "it is not a proxy URL such as http://host:port".to_owned(),
        })
}

/// The certificates that a client of this machine trusts: the system's, or the built-in Mozilla set where there are
/// none.
pub fn trusted_certificates() -> RootCerts {
    // Only an extra file can fail.
    root_certificates(None).unwrap_or(RootCerts::WebPki)
}

/// The system's certificates and those of `extra`; the built-in Mozilla set where there are none.
fn root_certificates(extra: Option<&Path>) -> Result<RootCerts, HubError> {
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a system certificate could not be read");
    }
    let mut certificates: Vec<Certificate<'static>> = native
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    if let Some(path) = extra {
        let invalid = |reason: String| HubError::InvalidSetting {
            name: "the CA file",
            reason,
        };
        let pem =
            std::fs::read(path).map_err(|error| HubError::io("read the CA file", path, error))?;
        let before = certificates.len();
        for item in ureq::tls::parse_pem(&pem) {
            match item.map_err(|error| invalid(error.to_string()))? {
                PemItem::Certificate(certificate) => certificates.push(certificate),
                _ => tracing::debug!("the CA file holds something else than certificates"),
            }
        }
        if certificates.len() == before {
            return Err(invalid(format!(
                "{} holds no PEM certificate",
                path.display()
            )));
        }
    }
    Ok(if certificates.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::from(certificates)
    })
}

/// Scheme, host and port: where a token may go.
fn origin(uri: &Uri) -> (String, String, u16) {
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    let default_port = if scheme == "https" { 443 } else { 80 };
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(default_port);
    (scheme, host, port)
}

fn redirect_target(base: &Uri, location: Option<&str>) -> Result<Uri, HubError> {
    let refuse = |target: &str, reason| HubError::BadRedirect {
        url: SafeUrl(base).to_string(),
        target: target.split('?').next().unwrap_or_default().to_owned(),
        reason,
    };
    let location = location.ok_or_else(|| refuse("", "there is no Location header"))?;
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    let absolute = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(head, _)| head);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let target: Uri = absolute
        .parse()
        .map_err(|_| refuse("an unreadable address", "it is not a URL"))?;
    let safe = SafeUrl(&target).to_string();
    match (scheme, target.scheme_str()) {
        _ if target.host().is_none() => Err(refuse(&safe, "it names no host")),
        ("https", Some("http")) => Err(refuse(&safe, "it leaves the encrypted connection")),
        (_, Some("http" | "https")) => Ok(target),
        _ => Err(refuse(&safe, "it is not a web address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(base: &str, location: &str) -> Result<String, HubError> {
        let base: Uri = base.parse().unwrap();
        redirect_target(&base, Some(location)).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_resolve_like_a_browser_does() {
        let base = "https://hub.example/a/b?c=d";
        for (location, target) in [
            ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/api/x", "https://hub.example/api/x"),
            ("x#part", "https://hub.example/a/x"),
        ] {
            assert_eq!(resolve(base, location).unwrap(), target);
        }
        for refused in [
            "http://hub.example/a",
            "ftp://hub.example/a",
            "https:///x",
            "a b",
        ] {
            assert!(resolve(base, refused).is_err(), "{refused}");
        }
        assert!(resolve("http://hub.example/a", "https://hub.example/a").is_ok());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(same("https://Hub.example/x", "https://hub.example:443/y"));
        assert!(!same("https://hub.example/", "http://hub.example/"));
        assert!(!same("https://hub.example/", "https://hub.example:444/"));
        assert!(!same(
            "https://hub.example/",
            "https://hub.example.evil.org/"
        ));
        assert!(!same(
            "https://hub.example/",
            "https://hub.example@evil.org/"
        ));
    }

    #[test]
    fn messages_hold_no_secrets() {
        let uri: Uri = "https://user:pw@cdn.example:8443/file?X-Signature=abc"
            .parse()
            .unwrap();
        assert_eq!(SafeUrl(&uri).to_string(), "https://cdn.example:8443/file");
        assert_eq!(one_line("a\r\nb\x1b[31m").unwrap(), "a  b [31m");
        assert!(one_line(" \n").is_none());
        let error = parse_proxy("HTTPS_PROXY", Some("fake://user:pw@host")).unwrap_err();
        assert!(!error.to_string().contains("pw"));
    }

    #[test]
    fn no_proxy_covers_domains() {
        assert!(covers("example.org", "example.org") && covers("example.org", "a.example.org"));
        assert!(
            covers(".example.org", "a.example.org") && covers("*.example.org", "a.example.org")
        );
        assert!(covers("*", "anything") && covers("LOCALHOST", "localhost"));
        assert!(!covers("example.org", "badexample.org") && !covers("a.org", "b.org"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let parse = |pairs: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(name.clone(), value.parse().unwrap());
            }
            retry_after(&headers)
        };
        assert_eq!(
            parse(&[(header::RETRY_AFTER, "7")]),
            Some(Duration::from_secs(7))
        );
        // The server's clock counts, not the local one, which may be wrong.
        let dates = [
            (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (header::RETRY_AFTER, "Sun, 06 Nov 1994 08:49:47 GMT"),
        ];
        assert_eq!(parse(&dates), Some(Duration::from_secs(10)));
        assert_eq!(parse(&[(header::RETRY_AFTER, "soon")]), None);
        assert_eq!(parse(&[]), None);
    }
}
