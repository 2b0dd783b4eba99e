//! What a server lets strangers make it read.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::refused_kind;
use super::url::{Host, RemoteUrl, read_authority};
use crate::MediaError;

/// A host that an operator allows: `host`, `host:port`, `*.domain` (not the domain itself),
/// `[address]:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    host: Host,
    subdomains: bool,
    port: Option<u16>,
}

impl FromStr for HostPattern {
    type Err = MediaError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (subdomains, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (host, port) = match rest.parse::<IpAddr>() {
            Ok(address) => (Host::Address(address), None),
            Err(_) => read_authority(rest)?,
        };
        Ok(Self {
            host,
            subdomains,
            port,
        })
    }
}

impl HostPattern {
    fn matches(&self, url: &RemoteUrl) -> bool {
        if self.port.is_some_and(|port| port != url.port()) {
            return false;
        }
        match (&self.host, url.host()) {
            (Host::Name(domain), Host::Name(name)) if self.subdomains => name
                .strip_suffix(domain.as_str())
                .is_some_and(|before| before.ends_with('.') && before.len() > 1),
            (own, other) => !self.subdomains && own == other,
        }
    }
}

/// What may be read on behalf of a request. The default is the public internet and no files.
#[derive(Clone, Debug, Default)]
pub struct SourcePolicy {
    /// The folder whose files may be read, if any.
    pub media_root: Option<PathBuf>,
    /// Hosts that may be fetched from even when their address is private.
    pub allowed_hosts: Vec<HostPattern>,
    /// Whether only `allowed_hosts` may be fetched from.
    pub only_allowed_hosts: bool,
}

impl SourcePolicy {
    /// Checks a URL before its host is looked up, and again for every redirect.
    ///
    /// # Errors
    /// [`MediaError::HostNotAllowed`], and [`MediaError::AddressRefused`] where the host is an
    /// address already.
    pub fn check_url(&self, url: &RemoteUrl) -> Result<(), MediaError> {
        if self.is_listed(url) {
            return Ok(());
        }
        if self.only_allowed_hosts {
            return Err(MediaError::HostNotAllowed {
                host: url.host().to_string(),
            });
        }
        match url.host() {
            Host::Address(address) => self.check_address(url, *address),
            Host::Name(_) => Ok(()),
        }
    }

    /// Checks one address that the host of `url` was found at. The connection must then go to
    /// exactly this address, or a second look-up could answer differently.
    ///
    /// # Errors
    /// [`MediaError::AddressRefused`].
    pub fn check_address(&self, url: &RemoteUrl, address: IpAddr) -> Result<(), MediaError> {
        match refused_kind(address) {
            Some(kind) if !self.is_listed(url) => Err(MediaError::AddressRefused {
                host: url.host().to_string(),
                kind,
            }),
            _ => Ok(()),
        }
    }

    /// The real path of a file below the media root, links followed. A relative path is taken from
    /// the root.
    ///
    /// # Errors
    /// [`MediaError::FilesNotAllowed`] without a root, [`MediaError::FileNotFound`] for everything
    /// that is not a file below it, whether it exists or not.
    pub fn resolve_file(&self, path: &Path) -> Result<PathBuf, MediaError> {
        let root = self
            .media_root
            .as_ref()
            .ok_or(MediaError::FilesNotAllowed)?;
        let real = |path: &Path| path.canonicalize().map_err(|_| MediaError::FileNotFound);
        let root = real(root)?;
        let path = real(&root.join(path))?;
        if path.starts_with(&root) && path.is_file() {
            Ok(path)
        } else {
            Err(MediaError::FileNotFound)
        }
    }

    fn is_listed(&self, url: &RemoteUrl) -> bool {
        self.allowed_hosts.iter().any(|host| host.matches(url))
    }
}
