//! Reading the small text files beside a checkpoint, with a limit on their size.

use super::error::TokenizerError;
use serde_json::Value;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The text of a file, or `None` when there is no such file.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, TokenizerError> {
    let failed = |error: std::io::Error| TokenizerError::Read {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let size = file.metadata().map_err(failed)?.len();
    if size > limit {
        return Err(TokenizerError::TooLarge {
            path: path.to_owned(),
            size,
            limit,
        });
    }
    let mut text = String::new();
    // The limit holds for what is read, too: special files have no size.
    let read = file
        .take(limit + 1)
        .read_to_string(&mut text)
        .map_err(failed)? as u64;
    if read > limit {
        return Err(TokenizerError::TooLarge {
            path: path.to_owned(),
            size: read,
            limit,
        });
    }
    Ok(Some(text))
}

/// The content of a JSON file, or `None` when there is no such file.
pub(crate) fn read_json(path: &Path, limit: u64) -> Result<Option<Value>, TokenizerError> {
    read_text(path, limit)?
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| TokenizerError::malformed(path.display().to_string(), error))
}
