//! Hugging Face: the model information with file metadata, the tree where that lacks sizes.

use serde::Deserialize;

use super::{Hub, Listing, RemoteFile, escape, escape_path};
use crate::http::HttpClient;
use crate::{HubError, ModelId, Source};

/// More pages than any repository has; ends a list that links to itself.
const MAX_PAGES: usize = 1000;

#[derive(Deserialize)]
struct ModelInfo {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: Option<u64>,
    oid: Option<String>,
    lfs: Option<Lfs>,
}

/// A large file: stored outside git, named by its SHA-256 (`sha256` in the information, `oid` in
/// the tree).
#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    oid: Option<String>,
    size: Option<u64>,
}

fn remote_file(
    path: String,
    size: Option<u64>,
    object_id: Option<String>,
    lfs: Option<Lfs>,
) -> RemoteFile {
    let (sha256, lfs_size) = lfs.map_or((None, None), |lfs| (lfs.sha256.or(lfs.oid), lfs.size));
    RemoteFile {
        path,
        size: lfs_size.or(size),
        sha256,
        object_id,
    }
}

pub(super) fn list(
    hub: &Hub,
    http: &HttpClient,
    repo: &ModelId,
    revision: &str,
) -> Result<Listing, HubError> {
    let endpoint = &hub.endpoint;
    let name = escape(revision);
    let url = format!("{endpoint}/api/models/{repo}/revision/{name}?blobs=true");
    let (info, _): (ModelInfo, _) = hub.json(http, &url)?;
    let commit = info
        .sha
        .filter(|sha| (7..=64).contains(&sha.len()) && sha.bytes().all(|b| b.is_ascii_hexdigit()));
    // The commit pins every request that follows to one state of the repository.
    let revision = commit.clone().unwrap_or_else(|| revision.to_owned());
    let mut files: Vec<RemoteFile> = info
        .siblings
        .into_iter()
        .map(|file| remote_file(file.path, file.size, file.blob_id, file.lfs))
        .collect();
    if files.iter().any(|file| file.size.is_none()) || files.is_empty() {
        match tree(hub, http, repo, &revision) {
            Ok(listed) if !listed.is_empty() => files = listed,
            // A mirror without this route still serves the files; their sizes come with them.
            Ok(_) | Err(HubError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Listing {
        source: Source::HuggingFace,
        repo: repo.clone(),
        revision,
        commit,
        files,
    })
}

fn tree(
    hub: &Hub,
    http: &HttpClient,
    repo: &ModelId,
    revision: &str,
) -> Result<Vec<RemoteFile>, HubError> {
    let endpoint = &hub.endpoint;
    let revision = escape(revision);
    let mut url = format!("{endpoint}/api/models/{repo}/tree/{revision}?recursive=true");
    let mut files = Vec::new();
    for _ in 0..MAX_PAGES {
        let (entries, next): (Vec<TreeEntry>, _) = hub.json(http, &url)?;
        files.extend(
            entries
                .into_iter()
                .filter(|entry| entry.kind == "file")
                .map(|entry| remote_file(entry.path, entry.size, entry.oid, entry.lfs)),
        );
        match next {
            // The token goes with the request, so another host's page is not asked.
            Some(next) if next.starts_with(&format!("{endpoint}/")) => url = next,
            Some(next) => {
                return Err(HubError::NotAHub {
                    url: url.split('?').next().unwrap_or_default().to_owned(),
                    reason: format!(
                        "its next page is on another host: {}",
                        next.split('?').next().unwrap_or_default()
                    ),
                });
            }
            None => return Ok(files),
        }
    }
    Err(HubError::NotAHub {
        url: url.split('?').next().unwrap_or_default().to_owned(),
        reason: "the file list has no end".to_owned(),
    })
}

pub(super) fn file_url(hub: &Hub, listing: &Listing, path: &str) -> String {
    let Listing { repo, revision, .. } = listing;
    format!(
        "{}/{repo}/resolve/{}/{}",
        hub.endpoint,
        escape(revision),
        escape_path(path)
    )
}
