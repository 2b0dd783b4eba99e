//! Where the results of a job go: one file, or a folder that mirrors the inputs.

use super::inputs::Input;
use crate::cli::failure::{Failure, Outcome};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The place of the results.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Outputs {
    /// What the user named, beside which the journal lies.
    pub(in crate::cli) named: PathBuf,
    /// The folder that names of files are below.
    pub(in crate::cli) root: PathBuf,
    /// The file of each input below the root, in the order of the inputs.
    pub(in crate::cli) names: Vec<PathBuf>,
}

impl Outputs {
    /// A single input that is no folder makes the file `output`, unless that is a folder or is written with a slash behind
    /// it; all else goes into the folder `output`, which is made, under the inputs' names with `ending`.
    ///
    /// Inputs whose names differ only in their endings keep them: `a.png` and `a.jpg` become `a.png.md` and `a.jpg.md`.
    ///
    /// # Errors
    /// When two inputs have one name, or the folder cannot be made.
    pub(in crate::cli) fn plan(
        output: &Path,
        given: &[PathBuf],
        inputs: &[Input],
        ending: &str,
    ) -> Outcome<Self> {
        let is_folder = output.is_dir()
            || output.as_os_str().as_encoded_bytes().ends_with(b"/")
            || inputs.len() != 1
            || given.iter().any(|path| path.is_dir());
        if !is_folder && let Some(name) = output.file_name() {
            let parent = output.parent().unwrap_or(Path::new(""));
            if !parent.as_os_str().is_empty() && !parent.is_dir() {
                return Err(Failure::message(format!(
                    "cannot write {}: its folder does not exist",
                    output.display()
                )));
            }
            return Ok(Self {
                named: output.to_owned(),
                root: parent.to_owned(),
                names: vec![name.into()],
            });
        }
        fs::create_dir_all(output).map_err(|error| {
            Failure::message(format!("cannot make {}: {error}", output.display()))
        })?;
        Ok(Self {
            named: output.to_owned(),
            root: output.to_owned(),
            names: names(inputs, ending)?,
        })
    }

    /// Whether the results are one file.
    pub(in crate::cli) fn is_file(&self) -> bool {
        self.named != self.root
    }
}

fn names(inputs: &[Input], ending: &str) -> Outcome<Vec<PathBuf>> {
    let short = |input: &Input| input.name.with_extension(ending);
    let mut uses: HashMap<PathBuf, usize> = HashMap::new();
    for input in inputs {
        *uses.entry(short(input)).or_default() += 1;
    }
    let mut owners: HashMap<PathBuf, &Path> = HashMap::new();
    inputs
        .iter()
        .map(|input| {
            let mut name = short(input);
            if uses[&name] > 1 {
                let mut whole = input.name.clone().into_os_string();
                whole.push(".");
                whole.push(ending);
                name = whole.into();
            }
            match owners.insert(name.clone(), &input.path) {
                Some(other) => Err(Failure::message(format!(
                    "{} and {} would both become {}: give them in commands of their own",
                    other.display(),
                    input.path.display(),
                    name.display()
                ))),
                None => Ok(name),
            }
        })
        .collect()
}

/// Writes a file so that its name has all of it or nothing, after a crash too. Makes its folders.
pub(in crate::cli) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = part_of(path);
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

/// Where a file is written before it is complete: beside it, so that a renaming brings it in its place.
pub(in crate::cli) fn part_of(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(names: &[&str]) -> Vec<Input> {
        let input = |name: &&str| Input {
            path: Path::new("/in").join(name),
            name: name.into(),
        };
        names.iter().map(input).collect()
    }

    #[test]
    fn one_file_becomes_a_file_and_many_a_folder() {
        let home = tempfile::tempdir().unwrap();
        let output = home.path().join("out.md");
        let one = inputs(&["a.pdf"]);
        let plan = Outputs::plan(&output, &["/in/a.pdf".into()], &one, "md").unwrap();
        assert!(plan.is_file() && !output.exists());
        assert_eq!(
            (plan.root.as_path(), plan.names),
            (home.path(), vec!["out.md".into()])
        );
        let missing = home.path().join("no/out.md");
        assert!(Outputs::plan(&missing, &["/in/a.pdf".into()], &one, "md").is_err());

        let folder = home.path().join("out");
        let many = inputs(&["x/a.png", "x/a.jpg", "b.png"]);
        let plan = Outputs::plan(&folder, &[home.path().into()], &many, "md").unwrap();
        assert!(!plan.is_file() && folder.is_dir());
        let wanted: Vec<PathBuf> = ["x/a.png.md", "x/a.jpg.md", "b.md"].map(Into::into).into();
        assert_eq!(plan.names, wanted);
        // The same name in two folders that were both named.
        assert!(Outputs::plan(&folder, &[], &inputs(&["a.png", "a.png"]), "md").is_err());
        // One input into a folder that is there.
        let plan = Outputs::plan(&folder, &["/in/a.pdf".into()], &one, "md").unwrap();
        assert_eq!((plan.root, plan.names), (folder, vec!["a.md".into()]));
    }

    #[test]
    fn files_are_written_whole_with_their_folders() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/c.txt");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(!part_of(&path).exists());
    }
}
