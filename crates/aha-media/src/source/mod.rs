//! Where media comes from: data URLs, base64, web addresses and files, and who may read what.
//!
//! Fetching is the server's work; here is what must hold before and after it looks a name up.

mod address;
mod data;
mod policy;
mod url;

pub use address::refused_kind;
pub use data::{decode_base64, decode_data_url};
pub use policy::{HostPattern, SourcePolicy};
pub use url::{Host, RemoteUrl, Scheme};

use std::path::PathBuf;

use crate::MediaError;

/// Media as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediaSource {
    /// The bytes themselves, from a data URL or base64.
    Bytes(Vec<u8>),
    /// An address to fetch, after [`SourcePolicy::check_url`] and [`SourcePolicy::check_address`].
    Remote(RemoteUrl),
    /// A file to open, after [`SourcePolicy::resolve_file`].
    File(PathBuf),
}

impl MediaSource {
    /// Reads what a request names: a data URL, an `http(s)` or `file` URL, or bare base64.
    ///
    /// # Errors
    /// [`MediaError::TooManyBytes`] before anything is decoded, [`MediaError::InvalidData`],
    /// [`MediaError::InvalidUrl`], [`MediaError::UnsupportedScheme`] for any other scheme.
    pub fn parse(text: &str, max_bytes: u64) -> Result<Self, MediaError> {
        let text = text.trim();
        let Some((scheme, _)) = text.split_once(':') else {
            return decode_base64(text, max_bytes).map(Self::Bytes);
        };
        match scheme.to_ascii_lowercase().as_str() {
            "data" => decode_data_url(text, max_bytes).map(Self::Bytes),
            "http" | "https" => RemoteUrl::parse(text).map(Self::Remote),
            "file" => url::file_path(text).map(Self::File),
            other => Err(MediaError::UnsupportedScheme {
                scheme: other.chars().take(32).collect(),
            }),
        }
    }
}
