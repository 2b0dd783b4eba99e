//! The two hubs: how to list a repository's files and where each file lies.

mod huggingface;
mod modelscope;

use std::io::Read;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use crate::config::{HubConfig, Secret};
use crate::http::{HttpClient, one_line};
use crate::{HubError, ModelId, Revision, Source};

/// Characters of a URL's path segment or query value that need no escape.
const UNRESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// No list of files is larger than this; a hub that sends more is not one.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// A file of a repository, as the hub lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Relative, with `/` between directories.
    pub(crate) path: String,
    pub(crate) size: Option<u64>,
    /// Lower-case hexadecimal.
    pub(crate) sha256: Option<String>,
    /// The hub's name for this content (a git object id).
    pub(crate) object_id: Option<String>,
}

/// The files of a repository at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) source: Source,
    pub(crate) repo: ModelId,
    /// What to ask for: the commit where the hub names it, else the branch or tag.
    pub(crate) revision: String,
    /// The commit, where the hub names it.
    pub(crate) commit: Option<String>,
    pub(crate) files: Vec<RemoteFile>,
}

/// One hub with its address and token.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    pub(crate) source: Source,
    endpoint: String,
    token: Option<Secret>,
}

impl Hub {
    /// `source` is one of the two hubs; `token` replaces the environment's.
    pub(crate) fn new(source: Source, config: &HubConfig, token: Option<&Secret>) -> Self {
        Self {
            source,
            endpoint: config.endpoint(source).to_owned(),
            token: token.or(config.token(source)).cloned(),
        }
    }

    pub(crate) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Lists all files of the repository.
    pub(crate) fn list(
        &self,
        http: &HttpClient,
        repo: &ModelId,
        revision: &Revision,
    ) -> Result<Listing, HubError> {
        let revision = revision.name_on(self.source);
        let mut listing = match self.source {
            Source::ModelScope => modelscope::list(self, http, repo, revision)?,
            _ => huggingface::list(self, http, repo, revision)?,
        };
        for file in &mut listing.files {
            if !is_safe_path(&file.path) {
                return Err(HubError::UnsafePath {
                    source_hub: self.source,
                    path: file.path.clone(),
                });
            }
            file.sha256 = file.sha256.take().and_then(|text| clean_sha256(&text));
        }
        Ok(listing)
    }

    /// The address of a file of `listing`.
    pub(crate) fn file_url(&self, listing: &Listing, path: &str) -> String {
        match self.source {
            Source::ModelScope => modelscope::file_url(self, listing, path),
            _ => huggingface::file_url(self, listing, path),
        }
    }

    /// Asks for a JSON document below the hub's address; also returns the next page's address.
    fn json<T: DeserializeOwned>(
        &self,
        http: &HttpClient,
        url: &str,
    ) -> Result<(T, Option<String>), HubError> {
        let reply = http.get(self.source, url, self.token(), 0)?.success()?;
        let next = reply
            .headers
            .get("link")
            .and_then(|value| next_link(value.to_str().ok()?));
        let not_a_hub = |reason: String| HubError::NotAHub {
            url: reply.url.clone(),
            reason: one_line(&reason).unwrap_or_default(),
        };
        if reply.is_html() {
            return Err(not_a_hub(
                "an HTML page came instead of a file list".to_owned(),
            ));
        }
        let mut text = Vec::new();
        reply
            .body
            .take(MAX_LIST_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|error| HubError::Network {
                url: reply.url.clone(),
                reason: error.to_string(),
            })?;
        if text.len() as u64 > MAX_LIST_BYTES {
            return Err(not_a_hub("the file list is larger than 64 MiB".to_owned()));
        }
        let value = serde_json::from_slice(&text).map_err(|error| not_a_hub(error.to_string()))?;
        Ok((value, next))
    }
}

/// Escapes everything that has a meaning in a URL.
fn escape(text: &str) -> String {
    utf8_percent_encode(text, &UNRESERVED).to_string()
}

/// Escapes a path, keeping its slashes.
fn escape_path(path: &str) -> String {
    let parts: Vec<String> = path.split('/').map(escape).collect();
    parts.join("/")
}

/// The target of `rel="next"` in a `Link` header.
fn next_link(header: &str) -> Option<String> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.split_once(';')?;
        let target = target.trim().strip_prefix('<')?.strip_suffix('>')?;
        parameters
            .contains("rel=\"next\"")
            .then(|| target.to_owned())
    })
}

/// Whether a listed path stays inside the model's directory on every platform.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let safe_part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.len() <= 255
            // The store keeps its own records under this name.
            && !part.eq_ignore_ascii_case(crate::manifest::RECORDS)
    };
    path.len() <= 1024
        && !path
            .chars()
            .any(|c| c.is_control() || c == '\\' || c == ':')
        && path.split('/').all(safe_part)
}

/// A SHA-256 in lower-case hexadecimal, if it is one.
pub(crate) fn clean_sha256(text: &str) -> Option<String> {
    let is_hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_paths_cannot_leave_the_directory() {
        for good in [
            "a",
            "a/b.c",
            "1_Pooling/config.json",
            "a b/ü.json",
            "..a/b..",
        ] {
            assert!(is_safe_path(good), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "/a",
            "a//b",
            "../a",
            "a/../b",
            "a/..",
            ".",
            "a/./b",
            "C:/a",
            "a\\b",
            "a\0",
            "a\nb",
            ".aha/manifest.json",
            "a/.AHA/x",
            &long,
        ] {
            assert!(!is_safe_path(bad), "{bad}");
        }
    }

    #[test]
    fn next_pages_come_from_the_link_header() {
        let link = "<https://h/a?cursor=1>; rel=\"prev\", <https://h/a?cursor=2>; rel=\"next\"";
        assert_eq!(next_link(link).as_deref(), Some("https://h/a?cursor=2"));
        assert_eq!(next_link("<https://h/a>; rel=\"last\""), None);
        assert_eq!(next_link("nonsense"), None);
    }

    #[test]
    fn urls_are_escaped() {
        assert_eq!(escape_path("a b/c#d?.json"), "a%20b/c%23d%3F.json");
        assert_eq!(escape("a/b&c"), "a%2Fb%26c");
    }
}
