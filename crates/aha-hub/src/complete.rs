//! Whether a directory without a manifest holds a whole model.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One of these comes with every release in safetensors.
const TOKENIZERS: &[&str] = &["tokenizer.json", "tokenizer.model", "vocab.json"];
/// What other tools call files on their way.
const UNFINISHED: &[&str] = &["incomplete", "part", "partial", "aria2", "crdownload"];
/// A weight map larger than this is none.
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

/// Whether `dir` can be loaded: it holds a GGUF file, which has everything, or a configuration,
/// safetensors and a tokenizer; every shard is there and nothing is on its way. Torch files do not
/// count: they are copies of safetensors, or parts beside them. Looks at one directory;
/// subdirectories hold parts of some models but never all weights.
pub(crate) fn looks_complete(dir: &Path) -> bool {
    let Some(files) = list(dir) else {
        return false;
    };
    let has = |name: &str| files.contains(&dir.join(name));
    let any = |ending: &str| files.iter().any(|path| has_extension(path, &[ending]));
    let folder =
        || has("config.json") && any("safetensors") && TOKENIZERS.iter().any(|name| has(name));
    (any("gguf") || folder())
        && !files.iter().any(|path| has_extension(path, UNFINISHED))
        && files
            .iter()
            .filter(|path| has_extension(path, &["gguf", "safetensors"]))
            .all(|path| is_content(path))
        && shards_are_all_there(&files)
        && files
            .iter()
            .filter(|path| path.to_string_lossy().ends_with(".safetensors.index.json"))
            .all(|path| index_is_satisfied(dir, path))
}

fn has_extension(path: &Path, known: &[&str]) -> bool {
    path.extension().is_some_and(|found| {
        known
            .iter()
            .any(|ending| found.eq_ignore_ascii_case(ending))
    })
}

/// The files of `dir`; `None` where it cannot be read or holds a link to nothing.
fn list(dir: &Path) -> Option<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        if fs::metadata(&path).ok()?.is_file() {
            files.insert(path);
        }
    }
    Some(files)
}

/// Not empty, and not the pointer that git leaves in place of a large file.
fn is_content(path: &Path) -> bool {
    let mut head = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(64).read_to_end(&mut head))
        .is_ok_and(|count| count > 0 && !head.starts_with(b"version https://git-lfs"))
}

fn index_is_satisfied(dir: &Path, index: &Path) -> bool {
    let read = || {
        let mut text = Vec::new();
        let file = fs::File::open(index).ok()?;
        file.take(MAX_INDEX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice::<Index>(&text).ok()
    };
    read().is_some_and(|index| {
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        shards
            .into_iter()
            .all(|shard| crate::hubs::is_safe_path(shard) && dir.join(shard).is_file())
    })
}

/// Names such as `model-00001-of-00003.safetensors` tell how many there must be.
fn shards_are_all_there(files: &BTreeSet<PathBuf>) -> bool {
    let names: BTreeSet<String> = files
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names
        .iter()
        .filter_map(|name| numbering(name))
        .all(|shard| {
            (1..=shard.count).all(|number| {
                let width = shard.width;
                let wanted = format!("{}{number:0width$}{}", shard.before, shard.after);
                names.contains(&wanted)
            })
        })
}

struct Numbering<'a> {
    before: &'a str,
    width: usize,
    count: u32,
    /// From `-of-` on.
    after: &'a str,
}

fn numbering(name: &str) -> Option<Numbering<'_>> {
    let (head, tail) = name.split_once("-of-")?;
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let width = head.bytes().rev().take_while(u8::is_ascii_digit).count();
    let count = &tail[..digits(tail)];
    // 99999 shards bound the work on a hostile name.
    if !(1..=5).contains(&width) || !(1..=5).contains(&count.len()) {
        return None;
    }
    Some(Numbering {
        before: &head[..head.len() - width],
        width,
        count: count.parse().ok()?,
        after: &name[head.len()..],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(files: &[(&str, &str)]) -> bool {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        looks_complete(dir.path())
    }

    const CONFIG: (&str, &str) = ("config.json", "{}");
    const TOKENIZER: (&str, &str) = ("tokenizer.json", "{}");

    #[test]
    fn whole_models_are_seen() {
        for tokenizer in ["tokenizer.json", "tokenizer.model", "vocab.json"] {
            assert!(model(&[
                CONFIG,
                ("model.safetensors", "x"),
                (tokenizer, "x")
            ]));
        }
        assert!(model(&[("qwen3.Q4_K_M.gguf", "x")]));
        assert!(model(&[CONFIG, ("README.md", "x"), ("model.GGUF", "x")]));
        let index = r#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}"#;
        assert!(model(&[
            CONFIG,
            TOKENIZER,
            // Torch's copy of the weights was left out.
            ("pytorch_model.bin.index.json", index),
            ("model.safetensors.index.json", index),
            ("s1.safetensors", "x"),
            ("s2.safetensors", "x"),
        ]));
    }

    #[test]
    fn parts_of_a_model_are_not() {
        assert!(!model(&[]));
        assert!(!model(&[CONFIG, TOKENIZER]), "no weights");
        assert!(
            !model(&[TOKENIZER, ("model.safetensors", "x")]),
            "no configuration"
        );
        assert!(
            !model(&[CONFIG, ("model.safetensors", "x")]),
            "no tokenizer"
        );
        for torch in ["pytorch_model.bin", "model.pt", "model.pth"] {
            assert!(!model(&[CONFIG, TOKENIZER, (torch, "x")]), "{torch}");
        }
        assert!(!model(&[("model.gguf", "")]), "an empty GGUF file");
        assert!(
            !model(&[CONFIG, TOKENIZER, ("model.safetensors", "")]),
            "an empty file"
        );
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
        assert!(
            !model(&[CONFIG, TOKENIZER, ("model.safetensors", pointer)]),
            "a git pointer"
        );
        assert!(
            !model(&[
                CONFIG,
                TOKENIZER,
                ("a.safetensors", "x"),
                ("b.safetensors.incomplete", "x")
            ]),
            "a file on its way"
        );
        assert!(
            !model(&[CONFIG, TOKENIZER, ("model-00002-of-00002.safetensors", "x")]),
            "a missing shard by its number"
        );
        let index = r#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}"#;
        assert!(
            !model(&[
                CONFIG,
                TOKENIZER,
                ("model.safetensors.index.json", index),
                ("s1.safetensors", "x")
            ]),
            "a missing shard by the index"
        );
        assert!(
            !model(&[
                CONFIG,
                TOKENIZER,
                ("model.safetensors.index.json", "{"),
                ("s1.safetensors", "x")
            ]),
            "a broken index"
        );
        assert!(!looks_complete(Path::new("/nonexistent")));
    }
}
