//! ModelScope: its public file interface.

use serde::Deserialize;

use super::{Hub, Listing, RemoteFile, escape};
use crate::http::{HttpClient, one_line};
use crate::{HubError, ModelId, Source};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    code: Option<i64>,
    success: Option<bool>,
    message: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    files: Option<Vec<File>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    name: Option<String>,
    path: Option<String>,
    #[serde(rename = "Type")]
    kind: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
    revision: Option<String>,
}

pub(super) fn list(
    hub: &Hub,
    http: &HttpClient,
    repo: &ModelId,
    revision: &str,
) -> Result<Listing, HubError> {
    let url = format!(
        "{}/api/v1/models/{repo}/repo/files?Revision={}&Recursive=true",
        hub.endpoint,
        escape(revision)
    );
    let (answer, _): (Answer, _) = hub.json(http, &url)?;
    let shown = || url.split('?').next().unwrap_or_default().to_owned();
    let refused = answer.success == Some(false) || answer.code.is_some_and(|code| code != 200);
    if refused {
        let message = answer.message.as_deref().and_then(one_line);
        return Err(HubError::NotFound {
            source_hub: Source::ModelScope,
            url: shown(),
            detail: message.map_or_else(String::new, |text| format!(": {text}")),
        });
    }
    let files = answer.data.and_then(|data| data.files);
    let files = files.ok_or_else(|| HubError::NotAHub {
        url: shown(),
        reason: "the answer holds no file list".to_owned(),
    })?;
    let files = files
        .into_iter()
        .filter(|file| file.kind.as_deref() != Some("tree"))
        .filter_map(|file| {
            Some(RemoteFile {
                path: file.path.or(file.name)?,
                size: file.size,
                sha256: file.sha256,
                object_id: file.revision,
            })
        })
        .collect();
    Ok(Listing {
        source: Source::ModelScope,
        repo: repo.clone(),
        revision: revision.to_owned(),
        commit: None,
        files,
    })
}

pub(super) fn file_url(hub: &Hub, listing: &Listing, path: &str) -> String {
    format!(
        "{}/api/v1/models/{}/repo?Revision={}&FilePath={}",
        hub.endpoint,
        listing.repo,
        escape(&listing.revision),
        escape(path)
    )
}
