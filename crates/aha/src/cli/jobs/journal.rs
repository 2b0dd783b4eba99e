//! What became of each item of a job, a line each: done with its result, or failed with its reason.

use super::journal_file::JournalFile;
use crate::cli::failure::Outcome;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum State<V> {
    /// It came.
    Done {
        /// Its files, below the root of the output.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        outputs: Vec<PathBuf>,
        /// What it came to, for what is made of many items.
        value: V,
    },
    /// It did not.
    Failed {
        /// Why, as the user reads it.
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Entry<V> {
    key: String,
    id: String,
    #[serde(flatten)]
    state: State<V>,
}

/// The states of all items that ever came up, by their keys.
#[derive(Debug)]
pub(super) struct Journal<V> {
    file: JournalFile,
    states: HashMap<String, State<V>>,
}

#[derive(Serialize)]
struct Header<'a> {
    job: &'a str,
    version: u32,
}

/// Changes with the layout of the lines.
const VERSION: u32 = 1;

impl<V: Serialize + DeserializeOwned + Clone> Journal<V> {
    /// Opens the journal of `output`, or begins one for the command.
    ///
    /// # Errors
    /// As [`JournalFile::open`], and when a line is not a journal's.
    pub(super) fn open(output: &Path, command: &str, restart: bool) -> Outcome<Self> {
        let header = Header {
            job: command,
            version: VERSION,
        };
        let mut file = JournalFile::open(output, &header, restart)?;
        let mut reader = file.body()?;
        let (mut states, mut whole, mut line) = (HashMap::new(), 0, Vec::new());
        // The header is line 1.
        for number in 2.. {
            line.clear();
            let length = reader
                .read_until(b'\n', &mut line)
                .map_err(|error| file.failed(error))?;
            // The last line of a process that was killed may be cut off.
            if !line.ends_with(b"\n") {
                break;
            }
            let entry: Entry<V> = serde_json::from_slice(&line).map_err(|error| {
                file.failed(format!(
                    "line {number} is broken ({error}): give --restart to begin anew"
                ))
            })?;
            states.insert(entry.key, entry.state);
            whole += length as u64;
        }
        drop(reader);
        file.cut(whole)?;
        Ok(Self { file, states })
    }

    /// What became of the item with this key.
    pub(super) fn state(&self, key: &str) -> Option<&State<V>> {
        self.states.get(key)
    }

    /// Keeps what became of an item.
    pub(super) fn append(&mut self, key: String, id: &str, state: State<V>) -> Outcome {
        let entry = Entry {
            key,
            id: id.to_owned(),
            state,
        };
        let mut line = serde_json::to_vec(&entry).map_err(|error| self.file.failed(error))?;
        line.push(b'\n');
        self.file.append(&line)?;
        self.states.insert(entry.key, entry.state);
        Ok(())
    }

    /// Deletes the journal.
    pub(super) fn remove(self) -> Outcome {
        self.file.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(value: u32) -> State<u32> {
        State::Done {
            outputs: vec!["a.txt".into()],
            value,
        }
    }

    #[test]
    fn states_survive_and_a_torn_line_does_not() {
        let home = tempfile::tempdir().unwrap();
        let output = home.path().join("out");
        let mut journal = Journal::<u32>::open(&output, "test", false).unwrap();
        journal.append("k1".into(), "a", done(1)).unwrap();
        let failed = State::Failed {
            message: "no\n\"way\"".to_owned(),
        };
        journal.append("k2".into(), "b", failed.clone()).unwrap();
        drop(journal);
        let path = home.path().join("out.journal");
        let mut bytes = std::fs::read(&path).unwrap();
        let whole = bytes.len() as u64;
        bytes.extend(br#"{"key":"k3","id":"c","state":"do"#);
        std::fs::write(&path, bytes).unwrap();

        let mut journal = Journal::<u32>::open(&output, "test", false).unwrap();
        assert_eq!(path.metadata().unwrap().len(), whole);
        assert_eq!(journal.state("k1"), Some(&done(1)));
        assert_eq!(journal.state("k2"), Some(&failed));
        assert_eq!(journal.state("k3"), None);
        // The last word counts.
        journal.append("k2".into(), "b", done(2)).unwrap();
        drop(journal);
        let journal = Journal::<u32>::open(&output, "test", false).unwrap();
        assert_eq!(journal.state("k2"), Some(&done(2)));
        drop(journal);
        assert!(Journal::<u32>::open(&output, "other", false).is_err());
        std::fs::write(&path, "{\"job\":\"test\",\"version\":1}\nnonsense\n").unwrap();
        assert!(Journal::<u32>::open(&output, "test", false).is_err());
        let fresh = Journal::<u32>::open(&output, "test", true).unwrap();
        assert_eq!(fresh.state("k1"), None);
        fresh.remove().unwrap();
    }
}
