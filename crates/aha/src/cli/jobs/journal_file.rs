//! The file beside an output that keeps what a job has done: one holder, one job, nothing behind a crash.

use crate::cli::failure::{Failure, Outcome};
use serde::Serialize;
use std::fmt::Display;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Longest first line; a longer one is no journal's.
const LONGEST_HEADER: u64 = 1 << 20;

/// A locked file whose first line names the job. What follows is its owner's.
#[derive(Debug)]
pub(in crate::cli) struct JournalFile {
    path: PathBuf,
    file: File,
    start: u64,
    length: u64,
}

impl JournalFile {
    /// Opens `OUTPUT.journal`, or begins it with `header`.
    ///
    /// # Errors
    /// When its folder is missing, another process holds it, or it begins with another header, which `restart` says to
    /// forget.
    pub(in crate::cli) fn open(
        output: &Path,
        header: &impl Serialize,
        restart: bool,
    ) -> Outcome<Self> {
        let path = journal_path(output)?;
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            && !folder.is_dir()
        {
            return Err(failed(&path, "its folder does not exist"));
        }
        let wanted = serde_json::to_string(header).map_err(|error| failed(&path, error))? + "\n";
        let mut file = open_locked(&path)?;
        if restart {
            file.set_len(0).map_err(|error| failed(&path, error))?;
        }
        let mut found = String::new();
        // A header that was cut off has no end of line; it says nothing, and nothing can follow it.
        BufReader::new((&mut file).take(LONGEST_HEADER))
            .read_line(&mut found)
            .map_err(|error| failed(&path, error))?;
        if found.ends_with('\n') && found != wanted {
            return Err(failed(
                &path,
                "it is of another job (model, input or options differ): finish that one, or give --restart to forget it",
            ));
        }
        if found != wanted {
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(wanted.as_bytes()))
                .map_err(|error| failed(&path, error))?;
        }
        let length = file.metadata().map_err(|error| failed(&path, error))?.len();
        Ok(Self {
            path,
            file,
            start: wanted.len() as u64,
            length,
        })
    }

    /// Bytes behind the header.
    pub(in crate::cli) fn body_length(&self) -> u64 {
        self.length - self.start
    }

    /// Cuts the body to `length` bytes: what follows was torn off by a crash.
    pub(in crate::cli) fn cut(&mut self, length: u64) -> Outcome {
        let end = self.start + length;
        self.file
            .set_len(end)
            .map_err(|error| failed(&self.path, error))?;
        self.length = end;
        Ok(())
    }

    /// Adds to the body, and waits until the disk has it.
    pub(in crate::cli) fn append(&mut self, bytes: &[u8]) -> Outcome {
        self.file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(bytes))
            .and_then(|()| self.file.sync_data())
            .map_err(|error| failed(&self.path, error))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The body from its beginning; to be read before the next [`JournalFile::append`].
    pub(in crate::cli) fn body(&self) -> Outcome<impl BufRead> {
        // Through the file that is locked: on Windows no other handle may read it.
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start))
            .map_err(|error| failed(&self.path, error))?;
        let body = file.take(self.body_length());
        Ok(BufReader::with_capacity(1 << 20, body))
    }

    /// Deletes the file: the output holds everything now.
    pub(in crate::cli) fn remove(self) -> Outcome {
        std::fs::remove_file(&self.path).map_err(|error| failed(&self.path, error))
    }

    /// A failure that names the file.
    pub(in crate::cli) fn failed(&self, problem: impl Display) -> Failure {
        failed(&self.path, problem)
    }
}

fn failed(path: &Path, problem: impl Display) -> Failure {
    Failure::message(format!("cannot use {}: {problem}", path.display()))
}

/// `OUTPUT.journal`, also where the output is written with a slash behind it or as `.`.
fn journal_path(output: &Path) -> Outcome<PathBuf> {
    let mut path = output.to_owned();
    if path.file_name().is_none() {
        path = path.canonicalize().map_err(|error| failed(output, error))?;
    }
    let Some(name) = path.file_name() else {
        return Err(failed(output, "it is no place to write to"));
    };
    let mut name = name.to_owned();
    name.push(".journal");
    Ok(path.with_file_name(name))
}

/// Opens the file and takes its lock, which the system drops with the process.
fn open_locked(path: &Path) -> Outcome<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| failed(path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(failed(
                    path,
                    "another aha works on this output: wait for it, or name another one",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(path, error)),
        }
        // Its last holder may have deleted it between the opening and the lock.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), path.metadata()) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Elsewhere a file that is open cannot be deleted.
#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(journal: &JournalFile) -> String {
        let mut text = String::new();
        journal.body().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_journal_has_one_job_and_one_holder() {
        let home = tempfile::tempdir().unwrap();
        let output = home.path().join("out");
        let mut journal = JournalFile::open(&output, &"first", false).unwrap();
        journal.append(b"abc").unwrap();
        journal.append(b"def").unwrap();
        assert_eq!(body(&journal), "abcdef");
        let second = JournalFile::open(&output, &"first", false);
        assert!(matches!(second, Err(Failure::Message(text)) if text.contains("another aha")));
        drop(journal);

        let mut journal = JournalFile::open(&output.join(""), &"first", false).unwrap();
        journal.cut(4).unwrap();
        journal.append(b"!").unwrap();
        assert_eq!(
            (body(&journal).as_str(), journal.body_length()),
            ("abcd!", 5)
        );
        drop(journal);
        let other = JournalFile::open(&output, &"second", false);
        assert!(matches!(other, Err(Failure::Message(text)) if text.contains("--restart")));
        let fresh = JournalFile::open(&output, &"second", true).unwrap();
        assert_eq!(fresh.body_length(), 0);
        fresh.remove().unwrap();
        assert!(!home.path().join("out.journal").exists());
    }

    #[test]
    fn every_way_to_write_a_folder_leads_to_one_journal() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("out");
        std::fs::create_dir(&folder).unwrap();
        let wanted = home.path().canonicalize().unwrap().join("out.journal");
        std::fs::create_dir(folder.join("a")).unwrap();
        let name = |path: &str| journal_path(&folder.join(path)).unwrap();
        for path in ["", ".", "./"] {
            assert_eq!(name(path).file_name(), wanted.file_name());
        }
        assert_eq!(name("a/.."), wanted);
        assert!(journal_path(Path::new("/")).is_err());
    }
}
