//! A file on its way: written beside the model, resumed after a crash, renamed when whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hubs::RemoteFile;
use crate::manifest::{RECORDS, create_parent, is_absent, sync_parent, write_json};
use crate::{CancelToken, HubError, Source};

const PARTS: &str = "parts";

/// Which content a partial file belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) source: Source,
    pub(crate) commit: Option<String>,
    pub(crate) sha256: Option<String>,
    pub(crate) etag: Option<String>,
}

impl Identity {
    /// Whether bytes of `self` may be continued with bytes of `other`: only what the hubs
    /// themselves call the same content.
    pub(crate) fn continues(&self, other: &Self) -> bool {
        if let (Some(mine), Some(theirs)) = (&self.sha256, &other.sha256) {
            return mine == theirs;
        }
        if self.source != other.source {
            return false;
        }
        match (&self.etag, &other.etag) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.commit.is_some() && self.commit == other.commit,
        }
    }
}

/// The bytes that have arrived, with their running checksum.
pub(crate) struct PartFile {
    path: PathBuf,
    record: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
    identity: Option<Identity>,
}

/// Where partial files of a model lie.
pub(crate) fn parts_dir(model_dir: &Path) -> PathBuf {
    model_dir.join(RECORDS).join(PARTS)
}

/// Bytes of `path` that an earlier run left behind.
pub(crate) fn part_len(model_dir: &Path, path: &str) -> u64 {
    fs::metadata(part_path(model_dir, path, "part")).map_or(0, |meta| meta.len())
}

fn part_path(model_dir: &Path, path: &str, extension: &str) -> PathBuf {
    parts_dir(model_dir).join(format!("{path}.{extension}"))
}

impl PartFile {
    /// Opens the partial file of `remote`, keeping what an earlier run left when it is known to
    /// be the beginning of the same content or may still prove to be.
    pub(crate) fn open(
        model_dir: &Path,
        remote: &RemoteFile,
        cancel: &CancelToken,
    ) -> Result<Self, HubError> {
        let path = part_path(model_dir, &remote.path, "part");
        let record = part_path(model_dir, &remote.path, "resume");
        create_parent(&path)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| HubError::io("open", &path, error))?;
        let mut part = Self {
            path,
            record,
            file,
            hasher: Sha256::new(),
            len: 0,
            identity: None,
        };
        part.identity = part.read_record();
        let differs = part.identity.as_ref().is_none_or(
            |identity| matches!((&identity.sha256, &remote.sha256), (Some(a), Some(b)) if a != b),
        );
        if differs {
            part.restart()?;
        } else {
            part.rehash(cancel)?;
        }
        if remote.size.is_some_and(|size| part.len > size) {
            part.restart()?;
        }
        Ok(part)
    }

    fn read_record(&self) -> Option<Identity> {
        let text = fs::read(&self.record).ok()?;
        // A damaged record proves nothing, so the file starts again.
        serde_json::from_slice(&text).ok()
    }

    /// Reads the whole file, which leaves the position at its end.
    fn rehash(&mut self, cancel: &CancelToken) -> Result<(), HubError> {
        let mut block = vec![0; 1 << 18];
        loop {
            cancel.check()?;
            match self.file.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.hasher.update(&block[..count]);
                    self.len += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HubError::io("read", &self.path, error)),
            }
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Drops all bytes.
    pub(crate) fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|error| HubError::io("truncate", &self.path, error))?;
        self.hasher = Sha256::new();
        self.len = 0;
        self.identity = None;
        Ok(())
    }

    /// Records which content the bytes belong to; must precede the first byte.
    pub(crate) fn identify(&mut self, identity: Identity) -> Result<(), HubError> {
        if self.identity.as_ref() != Some(&identity) {
            write_json(&self.record, &identity)?;
            self.identity = Some(identity);
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // Short writes count, so that the length stays true when the disk fills up.
            match self.file.write(rest) {
                Ok(0) => {
                    return Err(HubError::io(
                        "write",
                        &self.path,
                        io::ErrorKind::WriteZero.into(),
                    ));
                }
                Ok(count) => {
                    self.hasher.update(&rest[..count]);
                    self.len += count as u64;
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HubError::io("write", &self.path, error)),
            }
        }
        Ok(())
    }

    /// The checksum of all bytes so far, lower-case hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }

    /// Makes the bytes last and moves them to `target`.
    pub(crate) fn commit(self, target: &Path) -> Result<(), HubError> {
        self.file
            .sync_all()
            .map_err(|error| HubError::io("sync", &self.path, error))?;
        create_parent(target)?;
        // Windows renames no open file.
        drop(self.file);
        fs::rename(&self.path, target).map_err(|error| HubError::io("create", target, error))?;
        sync_parent(target);
        match fs::remove_file(&self.record) {
            Err(error) if !is_absent(&error) => Err(HubError::io("remove", &self.record, error)),
            _ => Ok(()),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// The SHA-256 and size of a file.
pub(crate) fn hash_file(path: &Path) -> io::Result<(String, u64)> {
    let mut reader = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok((hex(&hasher.finalize()), size)),
            Ok(count) => {
                hasher.update(&block[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(sha256: Option<&str>) -> RemoteFile {
        RemoteFile {
            path: "dir/model.bin".to_owned(),
            size: Some(6),
            sha256: sha256.map(str::to_owned),
            object_id: None,
        }
    }

    fn identity(sha256: Option<&str>) -> Identity {
        Identity {
            source: Source::HuggingFace,
            commit: None,
            sha256: sha256.map(str::to_owned),
            etag: Some("e1".to_owned()),
        }
    }

    #[test]
    fn a_part_is_resumed_with_its_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelToken::default();
        let mut part = PartFile::open(dir.path(), &remote(None), &cancel).unwrap();
        part.identify(identity(None)).unwrap();
        part.append(b"abc").unwrap();
        drop(part);
        assert_eq!(part_len(dir.path(), "dir/model.bin"), 3);

        let mut part = PartFile::open(dir.path(), &remote(None), &cancel).unwrap();
        assert_eq!((part.len(), part.identity()), (3, Some(&identity(None))));
        part.append(b"def").unwrap();
        assert_eq!(
            part.sha256(),
            "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"
        );
        let target = dir.path().join("dir/model.bin");
        part.commit(&target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abcdef");
        assert_eq!(hash_file(&target).unwrap().1, 6);
        assert_eq!(part_len(dir.path(), "dir/model.bin"), 0);
    }

    #[test]
    fn a_part_of_other_content_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelToken::default();
        let begin = |bytes: &[u8]| {
            let mut part = PartFile::open(dir.path(), &remote(Some("aa")), &cancel).unwrap();
            part.restart().unwrap();
            part.identify(identity(Some("aa"))).unwrap();
            part.append(bytes).unwrap();
        };
        begin(b"abc");
        let part = PartFile::open(dir.path(), &remote(Some("bb")), &cancel).unwrap();
        assert_eq!(part.len(), 0, "another checksum");
        begin(b"too long");
        let part = PartFile::open(dir.path(), &remote(Some("aa")), &cancel).unwrap();
        assert_eq!(part.len(), 0, "longer than the file");
        begin(b"abc");
        fs::write(part_path(dir.path(), "dir/model.bin", "resume"), "{").unwrap();
        let part = PartFile::open(dir.path(), &remote(Some("aa")), &cancel).unwrap();
        assert_eq!(part.len(), 0, "a damaged record");
    }

    #[test]
    fn content_is_the_same_only_when_the_hub_says_so() {
        let base = identity(Some("aa"));
        let with = |change: fn(&mut Identity)| {
            let mut identity = base.clone();
            change(&mut identity);
            identity
        };
        assert!(base.continues(&with(|i| i.source = Source::ModelScope)));
        assert!(base.continues(&with(|i| i.etag = Some("e2".to_owned()))));
        assert!(!base.continues(&with(|i| i.sha256 = Some("bb".to_owned()))));
        let plain = identity(None);
        let mut other = identity(None);
        assert!(plain.continues(&other));
        other.etag = Some("e2".to_owned());
        assert!(!plain.continues(&other));
        other.etag = None;
        assert!(!plain.continues(&other), "nothing proves it");
        other.etag = plain.etag.clone();
        other.source = Source::ModelScope;
        assert!(!plain.continues(&other), "another hub's tag");
    }
}
