//! Whether a directory without a manifest holds a whole model.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What other tools call files on their way.
const UNFINISHED: &[&str] = &["incomplete", "part", "partial", "aria2", "crdownload"];
const WEIGHTS: &[&str] = &["gguf", "safetensors"];
/// Weights only where a family needs them.
const TORCH: &[&str] = &["bin", "pt", "pth"];
/// A configuration or weight map larger than this is none.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Files that must be there: one of several groups, each of names (`*` for any part) that belong
/// together.
type Need = &'static [&'static [&'static str]];

const SAFETENSORS: Need = &[&["*.safetensors"]];
const TOKENIZER: Need = &[
    &["tokenizer.json"],
    &["tokenizer.model"],
    &["vocab.json", "merges.txt"],
    &["vocab.txt"],
];

/// Most families. Torch files do not count: they are copies of safetensors, or parts beside them.
const USUAL: &[Need] = &[SAFETENSORS, TOKENIZER];
/// Families without text.
const BIREFNET: &[Need] = &[SAFETENSORS];
/// Speech: a language model and an autoencoder, each in one of two formats.
const VOXCPM: &[Need] = &[
    &[&["model*.safetensors"], &["pytorch_model.bin"]],
    &[&["audiovae.safetensors"], &["audiovae.pth"]],
    TOKENIZER,
];
/// Recognition in FunASR's layout: a configuration in YAML, the language model's tokenizer in a
/// folder of its own.
const FUNASR: &[Need] = &[
    &[&["model.pt"]],
    &[&["*.tiktoken"]],
    &[&["*/tokenizer.json"], &["*/vocab.json", "*/merges.txt"]],
];

/// The keys of config.json that tell one layout from another.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    architectures: Option<Vec<String>>,
    residual_lm_num_layers: Option<u64>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::HashMap<String, String>,
}

/// Whether `dir` can be loaded: it holds a GGUF file, which has everything, or a configuration and
/// what its family needs; every shard is there and nothing is on its way. Looks at one directory
/// and, for tokenizers, those in it.
pub(crate) fn looks_complete(dir: &Path) -> bool {
    let Some(files) = list(dir) else {
        return false;
    };
    let own = || files.iter().filter(|name| !name.contains('/'));
    let folder = || {
        layout(dir, &files).is_some_and(|needs| needs.iter().all(|need| is_met(need, dir, &files)))
    };
    (own().any(|name| has_extension(name, &["gguf"])) || folder())
        && !own().any(|name| has_extension(name, UNFINISHED))
        && own()
            .filter(|name| has_extension(name, WEIGHTS))
            .all(|name| is_content(&dir.join(name)))
        && shards_are_all_there(own(), &files)
        && own()
            .filter(|name| name.ends_with(".safetensors.index.json"))
            .all(|name| index_is_satisfied(dir, name))
}

/// What the family of `dir` needs beside its configuration; `None` without one.
fn layout(dir: &Path, files: &BTreeSet<String>) -> Option<&'static [Need]> {
    if !files.contains("config.json") {
        return files.contains("config.yaml").then_some(FUNASR);
    }
    // What cannot be read is the loader's to report, with its place.
    let config: Config = read_json(&dir.join("config.json")).unwrap_or_default();
    let is = |name: &str| {
        config
            .architectures
            .iter()
            .flatten()
            .any(|found| found == name)
    };
    Some(if is("BiRefNet") {
        BIREFNET
    } else if config.residual_lm_num_layers.is_some() {
        VOXCPM
    } else {
        USUAL
    })
}

fn is_met(need: Need, dir: &Path, files: &BTreeSet<String>) -> bool {
    let is_file = |name: &str| !has_extension(name, TORCH) || is_content(&dir.join(name));
    let present = |pattern: &str| {
        files
            .iter()
            .any(|name| fits(pattern, name) && is_file(name))
    };
    need.iter()
        .any(|group| group.iter().all(|pattern| present(pattern)))
}

/// `*` stands for any part of a name but a slash.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|between| !between.contains('/')),
    }
}

fn has_extension(name: &str, known: &[&str]) -> bool {
    Path::new(name).extension().is_some_and(|found| {
        known
            .iter()
            .any(|ending| found.eq_ignore_ascii_case(ending))
    })
}

/// The files of `dir` and, with `folder/` before their names, of its folders; `None` where it
/// cannot be read or holds a link to nothing.
fn list(dir: &Path) -> Option<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        // Names that are no text belong to no model.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let meta = fs::metadata(entry.path()).ok()?;
        if meta.is_file() {
            files.insert(name);
        } else if meta.is_dir() && !name.starts_with('.') {
            for inner in fs::read_dir(entry.path()).ok()? {
                let inner = inner.ok()?;
                if let (Ok(file), true) = (inner.file_name().into_string(), inner.path().is_file())
                {
                    files.insert(format!("{name}/{file}"));
                }
            }
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

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_JSON_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn index_is_satisfied(dir: &Path, name: &str) -> bool {
    read_json::<Index>(&dir.join(name)).is_some_and(|index| {
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        shards
            .into_iter()
            .all(|shard| crate::hubs::is_safe_path(shard) && dir.join(shard).is_file())
    })
}

/// Names such as `model-00001-of-00003.safetensors` tell how many there must be.
fn shards_are_all_there<'a>(
    own: impl Iterator<Item = &'a String>,
    names: &BTreeSet<String>,
) -> bool {
    own.filter_map(|name| numbering(name)).all(|shard| {
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
    let numbers = 1..=6;
    if !numbers.contains(&width) || !numbers.contains(&count.len()) {
        return None;
    }
    Some(Numbering {
        before: &head[..head.len() - width],
        width,
        // More shards than any release has bound the work on a hostile name.
        count: count.parse().ok().filter(|count| *count < 100_000)?,
        after: &name[head.len()..],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(files: &[(&str, &str)]) -> bool {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        looks_complete(dir.path())
    }

    const CONFIG: (&str, &str) = ("config.json", "{}");
    const TOKENIZER: (&str, &str) = ("tokenizer.json", "{}");

    #[test]
    fn whole_models_are_seen() {
        let weights = ("model.safetensors", "x");
        for tokenizer in ["tokenizer.json", "tokenizer.model", "vocab.txt"] {
            assert!(model(&[CONFIG, weights, (tokenizer, "x")]), "{tokenizer}");
        }
        let (vocab, merges) = (("vocab.json", "x"), ("merges.txt", "x"));
        assert!(model(&[CONFIG, weights, vocab, merges]));
        assert!(!model(&[CONFIG, weights, vocab]), "half a tokenizer");
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

    /// The whole set is complete, and without any one file of it it is not.
    fn needs_each(files: &[(&str, &str)]) {
        assert!(model(files));
        for (left_out, _) in files {
            let rest: Vec<_> = files
                .iter()
                .filter(|file| file.0 != *left_out)
                .copied()
                .collect();
            assert!(!model(&rest), "{left_out} is needed");
        }
    }

    #[test]
    fn layouts_of_their_own_need_their_own_files() {
        needs_each(&[
            ("config.json", r#"{"architectures": ["BiRefNet"]}"#),
            ("model.safetensors", "x"),
        ]);
        let speech = ("config.json", r#"{"residual_lm_num_layers": 6}"#);
        needs_each(&[
            speech,
            TOKENIZER,
            ("pytorch_model.bin", "x"),
            ("audiovae.pth", "x"),
        ]);
        needs_each(&[
            speech,
            TOKENIZER,
            ("model.safetensors", "x"),
            ("audiovae.pth", "x"),
        ]);
        needs_each(&[
            speech,
            TOKENIZER,
            ("model.safetensors", "x"),
            ("audiovae.safetensors", "x"),
        ]);
        assert!(
            !model(&[speech, TOKENIZER, ("audiovae.safetensors", "x")]),
            "the autoencoder is not the language model"
        );
        needs_each(&[
            ("config.yaml", "model: FunASRNano"),
            ("model.pt", "x"),
            ("multilingual.tiktoken", "x"),
            ("Qwen3-0.6B/tokenizer.json", "{}"),
        ]);
        let empty = [
            speech,
            TOKENIZER,
            ("pytorch_model.bin", ""),
            ("audiovae.pth", "x"),
        ];
        assert!(!model(&empty), "an empty torch file");
    }

    #[test]
    fn shards_may_be_numbered_with_six_digits() {
        let shard = |name| (name, "x");
        let first = shard("model-00001-of-000002.safetensors");
        let second = shard("model-00002-of-000002.safetensors");
        assert!(model(&[CONFIG, TOKENIZER, first, second]));
        assert!(!model(&[CONFIG, TOKENIZER, first]));
        let only = shard("model-00001-of-000001.safetensors");
        assert!(model(&[CONFIG, TOKENIZER, only]));
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
