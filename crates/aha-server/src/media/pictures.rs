//! Pictures of a request that has no chat: refused early, fetched beside the runtime, decoded within limits.

use super::{Budget, FETCHES_OF_A_REQUEST, File, open};
use crate::error::ApiError;
use crate::options::MediaOptions;
use crate::state::AppState;
use crate::types::matting::{Picture, PictureField};
use aha_media::MediaError;
use aha_media::image::{DecodedImage, decode};
use futures_util::stream::{self, StreamExt};

/// Files of pictures, and the fields that named them.
pub(crate) struct Pictures {
    files: Vec<(String, File)>,
    budget: Budget,
}

impl Pictures {
    /// Checks that there are not too many, and reads what needs no network.
    pub(crate) fn open(
        fields: Vec<PictureField>,
        options: &MediaOptions,
    ) -> Result<Self, ApiError> {
        if fields.len() > options.max_items {
            let (found, limit) = (fields.len(), options.max_items);
            return Err(ApiError::invalid(
                "image",
                format!("the request holds {found} pictures, more than the limit of {limit}"),
            ));
        }
        let mut budget = Budget {
            left: options.max_total_bytes,
            limit: options.max_total_bytes,
        };
        let limit = options.limits.max_bytes;
        let mut files = Vec::with_capacity(fields.len());
        for PictureField { path, picture } in fields {
            let fault = |error| ApiError::media(error, &path);
            let file = match picture {
                Picture::Named(source) => {
                    open(source, limit, &options.policy, &mut budget).map_err(fault)?
                }
                Picture::Sent(upload) => {
                    let bytes = upload.into_bytes(limit, &path)?;
                    budget.spend(bytes.len()).map_err(fault)?;
                    File::Here(bytes)
                }
            };
            files.push((path, file));
        }
        Ok(Self { files, budget })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Fetches what is on the web, a few files at a time.
    pub(crate) async fn fetch(mut self, state: &AppState) -> Result<Self, ApiError> {
        let limit = state.options.media.limits.max_bytes.min(self.budget.limit);
        let remote = self.files.iter().enumerate();
        let wanted: Vec<_> = remote
            .filter_map(|(index, (_, file))| match file {
                File::Remote(url) => Some((index, url.clone())),
                File::Here(_) => None,
            })
            .collect();
        let mut fetched = stream::iter(wanted)
            .map(|(index, url)| async move { (index, state.fetch(url, limit).await) })
            .buffered(FETCHES_OF_A_REQUEST);
        while let Some((index, bytes)) = fetched.next().await {
            let (path, file) = &mut self.files[index];
            let bytes = bytes?.map_err(|error| ApiError::fetch(error, path))?;
            let spent = self.budget.spend(bytes.len());
            spent.map_err(|error| ApiError::media(error, path))?;
            *file = File::Here(bytes);
        }
        Ok(self)
    }

    /// Takes the next one: its field and its bytes.
    pub(crate) fn take_first(&mut self) -> Option<(String, Vec<u8>)> {
        if self.files.is_empty() {
            return None;
        }
        let (path, file) = self.files.remove(0);
        match file {
            File::Here(bytes) => Some((path, bytes)),
            File::Remote(_) => Some((path, Vec::new())),
        }
    }
}

/// Decodes a picture, which takes its pixels out of those that the request may still have.
pub(crate) fn decode_picture(
    path: &str,
    bytes: &[u8],
    options: &MediaOptions,
    pixels_left: &mut u64,
) -> Result<DecodedImage, ApiError> {
    let fault = |error: MediaError| ApiError::media(error, path);
    let mut limits = options.limits;
    limits.max_pixels = limits.max_pixels.min(*pixels_left);
    let decoded = decode(bytes, &limits).map_err(fault)?;
    let stored = decoded.stored();
    let pixels = u64::from(stored.width()) * u64::from(stored.height());
    *pixels_left = pixels_left.saturating_sub(pixels);
    Ok(decoded)
}
