//! The files that a job works on: those that were named, and those of a kind in the folders that were.

use crate::cli::failure::{Failure, Outcome};
use std::fs::{self, FileType};
use std::path::{Path, PathBuf};

/// A file to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Input {
    /// Where it is.
    pub(in crate::cli) path: PathBuf,
    /// What it is called: its name, behind its folders where a folder was named.
    pub(in crate::cli) name: PathBuf,
}

/// Files as they were named, and in each folder (and the folders in it) those that `wanted` takes, by name.
///
/// Files that were named are taken whatever they are: what is wrong with them is told when their turn comes. Hidden files
/// and `output`, which may lie among the inputs, are left out of folders; links to folders are not followed.
///
/// # Errors
/// When a path does not exist, a folder cannot be read, or nothing is found; `kinds` names what was looked for.
pub(in crate::cli) fn find_inputs(
    paths: &[PathBuf],
    output: &Path,
    kinds: &str,
    wanted: impl Fn(&Path) -> bool,
) -> Outcome<Vec<Input>> {
    let output = output.canonicalize().ok();
    let mut found = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| cannot_read(path, &error))?;
        if !metadata.is_dir() {
            let name = path.file_name().unwrap_or(path.as_os_str()).into();
            found.push(Input {
                path: path.clone(),
                name,
            });
            continue;
        }
        let before = found.len();
        let mut walk = Walk {
            output: output.as_deref(),
            wanted: &wanted,
            found: &mut found,
        };
        walk.folder(path, Path::new(""))?;
        if found.len() == before {
            return Err(Failure::message(format!(
                "nothing to do in {}: it holds no {kinds}",
                path.display()
            )));
        }
    }
    Ok(found)
}

struct Walk<'a> {
    output: Option<&'a Path>,
    wanted: &'a dyn Fn(&Path) -> bool,
    found: &'a mut Vec<Input>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, name: &Path) -> Outcome {
        let mut entries: Vec<(PathBuf, FileType)> = fs::read_dir(folder)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))))
                    .collect()
            })
            .map_err(|error| cannot_read(folder, &error))?;
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (path, kind) in entries {
            let Some(last) = path.file_name() else {
                continue;
            };
            if last.as_encoded_bytes().starts_with(b".") || self.is_output(&path) {
                continue;
            }
            let name = name.join(last);
            if kind.is_dir() {
                self.folder(&path, &name)?;
            } else if path.is_file() && (self.wanted)(&path) {
                self.found.push(Input { path, name });
            }
        }
        Ok(())
    }

    fn is_output(&self, path: &Path) -> bool {
        self.output
            .is_some_and(|output| path.canonicalize().is_ok_and(|path| path == output))
    }
}

/// Whether the file's name ends in one of these, in any case.
pub(in crate::cli) fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|ending| {
        let ending = ending.to_string_lossy();
        endings
            .iter()
            .any(|known| ending.eq_ignore_ascii_case(known))
    })
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::message(format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inputs: &[Input]) -> Vec<String> {
        let name = |input: &Input| input.name.to_string_lossy().replace('\\', "/");
        inputs.iter().map(name).collect()
    }

    #[test]
    fn folders_give_their_files_of_a_kind_in_order() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        for name in [
            "in/b.PNG",
            "in/a/z.png",
            "in/a/.x.png",
            "in/c.txt",
            "in/out/d.png",
            "e.txt",
        ] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), "x").unwrap();
        }
        let find = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(|name| path(name)).collect();
            find_inputs(&paths, &path("in/out"), "images", |path| {
                has_ending(path, &["png"])
            })
        };
        let found = find(&["e.txt", "in"]).unwrap();
        assert_eq!(names(&found), ["e.txt", "a/z.png", "b.PNG"]);
        assert_eq!(found[1].path, path("in/a/z.png"));
        assert!(
            matches!(find(&["nowhere"]), Err(Failure::Message(text)) if text.contains("nowhere"))
        );
        fs::create_dir(path("empty")).unwrap();
        assert!(
            matches!(find(&["empty"]), Err(Failure::Message(text)) if text.ends_with("it holds no images"))
        );
    }
}
