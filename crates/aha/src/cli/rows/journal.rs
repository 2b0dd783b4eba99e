//! Rows that are computed already, beside the output that they will become: a job that was stopped goes on.

use super::Source;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::jobs::JournalFile;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What the rows belong to. Rows of another job must not be taken for this one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Job {
    /// Path of the checkpoint and of the texts, with size and time of the latter.
    model: PathBuf,
    input: PathBuf,
    bytes: u64,
    modified: u64,
    /// Everything else that the rows depend on.
    options: String,
    /// Numbers in a row.
    width: usize,
}

impl Job {
    pub(in crate::cli) fn new(
        model: &Path,
        input: &Path,
        options: String,
        width: usize,
    ) -> Outcome<Self> {
        let failed = |path: &Path, error: std::io::Error| {
            Failure::message(format!("cannot read {}: {error}", path.display()))
        };
        let whole = |path: &Path| path.canonicalize().map_err(|error| failed(path, error));
        let metadata = input.metadata().map_err(|error| failed(input, error))?;
        let modified = metadata.modified().ok();
        Ok(Self {
            model: whole(model)?,
            input: whole(input)?,
            bytes: metadata.len(),
            modified: modified
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
                .map_or(0, |time| time.as_nanos() as u64),
            options,
            width,
        })
    }
}

/// A journal whose body is rows of little-endian f32.
#[derive(Debug)]
pub(in crate::cli) struct Journal {
    file: JournalFile,
    width: usize,
    rows: usize,
}

impl Journal {
    /// Opens the journal of `output`, or begins one.
    ///
    /// # Errors
    /// As [`JournalFile::open`].
    pub(in crate::cli) fn open(output: &Path, job: &Job, restart: bool) -> Outcome<Self> {
        let mut file = JournalFile::open(output, job, restart)?;
        let row = 4 * job.width as u64;
        let rows = file.body_length() / row;
        // A row that was cut off is computed again.
        file.cut(rows * row)?;
        Ok(Self {
            file,
            width: job.width,
            rows: rows as usize,
        })
    }

    /// Adds rows behind the others.
    pub(super) fn append(&mut self, rows: &[Vec<f32>]) -> Outcome {
        let mut bytes = Vec::with_capacity(rows.len() * self.width * 4);
        for row in rows {
            if row.len() != self.width {
                let problem = format!("a row has {} numbers, not {}", row.len(), self.width);
                return Err(self.file.failed(problem));
            }
            bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
        }
        self.file.append(&bytes)?;
        self.rows += rows.len();
        Ok(())
    }

    /// Forgets the rows: the output holds them now.
    pub(in crate::cli) fn remove(self) -> Outcome {
        self.file.remove()
    }
}

impl Source for Journal {
    fn width(&self) -> usize {
        self.width
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn read(&self, mut take: impl FnMut(&[f32]) -> Outcome) -> Outcome {
        let mut reader = self.file.body()?;
        let mut bytes = vec![0; self.width * 4];
        let mut row = vec![0.0; self.width];
        for _ in 0..self.rows {
            reader
                .read_exact(&mut bytes)
                .map_err(|error| self.file.failed(error))?;
            let (values, _) = bytes.as_chunks::<4>();
            for (value, bytes) in row.iter_mut().zip(values) {
                *value = f32::from_le_bytes(*bytes);
            }
            take(&row)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(folder: &Path, options: &str) -> Job {
        let input = folder.join("in.txt");
        if !input.exists() {
            std::fs::write(&input, "a\nb\n").unwrap();
        }
        Job::new(folder, &input, options.to_owned(), 2).unwrap()
    }

    fn rows(journal: &Journal) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        journal
            .read(|row| {
                rows.push(row.to_vec());
                Ok(())
            })
            .unwrap();
        rows
    }

    #[test]
    fn whole_rows_survive_and_cut_ones_do_not() {
        let home = tempfile::tempdir().unwrap();
        let (output, job) = (home.path().join("o.npy"), job(home.path(), ""));
        let mut journal = Journal::open(&output, &job, false).unwrap();
        journal.append(&[vec![1.0, 2.0], vec![3.0, 4.0]]).unwrap();
        assert!(journal.append(&[vec![1.0]]).is_err());
        drop(journal);
        let path = home.path().join("o.npy.journal");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([1, 2, 3, 4, 5]);
        std::fs::write(&path, bytes).unwrap();
        let mut journal = Journal::open(&output, &job, false).unwrap();
        assert_eq!(rows(&journal), [[1.0, 2.0], [3.0, 4.0]]);
        journal.append(&[vec![5.0, 6.0]]).unwrap();
        assert_eq!(rows(&journal)[2], [5.0, 6.0]);
        journal.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn rows_of_another_job_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let output = home.path().join("o.npy");
        let first = job(home.path(), "query");
        drop(Journal::open(&output, &first, false).unwrap());
        let other = job(home.path(), "document");
        assert!(Journal::open(&output, &other, false).is_err());
        assert_eq!(Journal::open(&output, &other, true).unwrap().rows(), 0);
        std::fs::write(home.path().join("in.txt"), "changed").unwrap();
        let changed = job(home.path(), "document");
        assert!(Journal::open(&output, &changed, false).is_err());
        let nowhere = home.path().join("no/o.npy");
        assert!(Journal::open(&nowhere, &changed, false).is_err());
        // A header that was cut off holds nothing.
        std::fs::write(home.path().join("p.npy.journal"), "{\"mod").unwrap();
        let fresh = Journal::open(&home.path().join("p.npy"), &changed, false).unwrap();
        assert_eq!(fresh.rows(), 0);
    }
}
