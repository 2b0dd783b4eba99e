//! URLs, read strictly: what two parsers could read differently is refused, because the address
//! that is checked must be the address that is fetched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::MediaError;

/// Longest URL that is read.
const MAX_LENGTH: usize = 8192;

/// The two ways of fetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// The host of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to look up, in lower case and without a final dot.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl std::fmt::Display for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// An `http` or `https` URL whose host no parser can misread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteUrl {
    scheme: Scheme,
    host: Host,
    port: u16,
    /// Path and query, beginning with `/`.
    target: String,
}

impl std::fmt::Display for RemoteUrl {
    /// The URL to fetch, written anew from its parts.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(formatter, "{scheme}://[{address}]")?,
            host => write!(formatter, "{scheme}://{host}")?,
        }
        if self.port != default_port(self.scheme) {
            write!(formatter, ":{}", self.port)?;
        }
        formatter.write_str(&self.target)
    }
}

impl RemoteUrl {
    /// Reads a URL. The fragment is dropped.
    ///
    /// # Errors
    /// [`MediaError::UnsupportedScheme`] and [`MediaError::InvalidUrl`]: for user info, a backslash,
    /// white space, control or non-ASCII characters, an escaped or empty host, and numeric hosts
    /// that are not plain dotted addresses.
    pub fn parse(text: &str) -> Result<Self, MediaError> {
        let invalid = |reason| MediaError::InvalidUrl { reason };
        if text.len() > MAX_LENGTH {
            return Err(invalid("it is too long"));
        }
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        {
            return Err(invalid(
                "it has a space, a backslash or a character that must be percent-encoded",
            ));
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| invalid("it does not begin with http:// or https://"))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => {
                return Err(MediaError::UnsupportedScheme {
                    scheme: other.chars().take(32).collect(),
                });
            }
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (host, port) = read_authority(authority)?;
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self {
            scheme,
            host,
            port: port.unwrap_or(default_port(scheme)),
            target: format!("{slash}{target}"),
        })
    }

    /// Where a redirect from here leads, for the value of its `Location` header.
    ///
    /// # Errors
    /// As [`parse`](Self::parse). The result must be checked like any other URL.
    pub fn redirected(&self, location: &str) -> Result<Self, MediaError> {
        let location = location.trim();
        let has_scheme = location
            .split(['/', '?', '#'])
            .next()
            .is_some_and(|head| head.contains(':'));
        if has_scheme {
            return Self::parse(location);
        }
        let mut base = self.clone();
        base.target.clear();
        let base = base.to_string();
        if location.starts_with("//") {
            let (scheme, _) = base.split_once("//").unwrap_or_default();
            return Self::parse(&format!("{scheme}{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{base}{location}"));
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let folder = if location.starts_with('?') {
            path
        } else {
            path.rsplit_once('/')
                .map_or("/", |(before, _)| &path[..=before.len()])
        };
        Self::parse(&format!("{base}{folder}{location}"))
    }

    /// How to fetch it.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The port, also where the URL does not name it.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

const fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

/// Host and port of the part between `//` and the path.
pub(super) fn read_authority(authority: &str) -> Result<(Host, Option<u16>), MediaError> {
    let invalid = |reason| MediaError::InvalidUrl { reason };
    if authority.contains('@') {
        return Err(invalid("it has a user name or password"));
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (inside, after) = rest
            .split_once(']')
            .ok_or_else(|| invalid("the bracket of its address is not closed"))?;
        let address: Ipv6Addr = inside
            .parse()
            .map_err(|_| invalid("the address in brackets is not IPv6"))?;
        (Host::Address(IpAddr::V6(address)), after)
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        let (name, port) = authority.split_at(end);
        (read_host(name)?, port)
    };
    if port.is_empty() {
        return Ok((host, None));
    }
    let port = port
        .strip_prefix(':')
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .filter(|&port: &u16| port != 0)
        .ok_or_else(|| invalid("its port is not a number from 1 to 65535"))?;
    Ok((host, Some(port)))
}

fn read_host(name: &str) -> Result<Host, MediaError> {
    let invalid = |reason| MediaError::InvalidUrl { reason };
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(invalid("its host is not a plain name or address"));
    }
    // `2130706433`, `0x7f.1` and `127.1` are addresses to some clients and names to others.
    let last = name.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid(
            "its host is a number that is no plain IPv4 address",
        ));
    }
    Ok(Host::Name(name))
}

/// The path of a `file` URL.
pub(super) fn file_path(text: &str) -> Result<PathBuf, MediaError> {
    let invalid = |reason| MediaError::InvalidUrl { reason };
    let rest = text
        .get(..7)
        .filter(|head| head.eq_ignore_ascii_case("file://"))
        .and_then(|_| text.get(7..))
        .ok_or_else(|| invalid("a file URL begins with file://"))?;
    let slash = rest
        .find('/')
        .ok_or_else(|| invalid("a file URL needs an absolute path"))?;
    let (host, path) = rest.split_at(slash);
    if !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
        return Err(invalid("a file URL cannot name another machine"));
    }
    let path = percent_encoding::percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| invalid("its path is not UTF-8"))?;
    if path.contains(['\0', '\\']) || path.starts_with("//") {
        return Err(invalid(
            "its path has a character or prefix that paths here cannot have",
        ));
    }
    Ok(PathBuf::from(path.as_ref()))
}
