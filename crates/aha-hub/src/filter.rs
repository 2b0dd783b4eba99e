//! Which files of a repository are wanted.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::HubError;
use crate::hubs::{Listing, RemoteFile};

/// What the usual model needs: weights, configuration, tokenizer, templates, licence.
const DEFAULT_INCLUDE: &[&str] = &[
    "*config*.json",
    "configuration.json",
    "tokenizer*",
    "*.safetensors",
    "*.safetensors.index.json",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "modules.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
];

/// What weights are kept in.
const WEIGHTS: &[&str] = &["safetensors", "gguf", "bin", "pt", "pth"];

/// Other runtimes' copies of the same weights.
const DEFAULT_EXCLUDE: &[&str] = &[
    "onnx/**",
    "openvino/**",
    "original/**",
    "consolidated*.safetensors",
    "README*",
    ".*",
    ".*/**",
];

/// Glob patterns that pick files of a repository.
///
/// A pattern without a slash is held against the file's name in any directory, one with a slash
/// against the whole path; `*` stops at a slash, `**` does not. A file is wanted when an include
/// matches and no exclude does.
#[derive(Clone, Debug)]
pub struct FileFilter {
    include: GlobSet,
    exclude: Vec<GlobSet>,
    /// The files are to make a model that loads: without weights they are none.
    whole_model: bool,
}

impl FileFilter {
    /// Compiles patterns; without includes every file is included.
    ///
    /// # Errors
    /// [`HubError::InvalidPattern`] for a glob that does not parse.
    pub fn new<I, E>(include: I, exclude: E) -> Result<Self, HubError>
    where
        I: IntoIterator<Item: AsRef<str>>,
        E: IntoIterator<Item: AsRef<str>>,
    {
        let mut include = compile(include)?;
        if include.is_empty() {
            include = compile(["**"])?;
        }
        Ok(Self {
            include,
            exclude: vec![compile(exclude)?],
            whole_model: false,
        })
    }

    /// The files that most models need: configurations, safetensors with their index, tokenizer
    /// files, chat templates, pre-processor settings and the licence. Where a repository has no
    /// safetensors but one GGUF file, that file is the model.
    ///
    /// # Errors
    /// None in practice: the patterns are constants.
    pub fn common() -> Result<Self, HubError> {
        Self::common_and(&[])
    }

    /// The common files and those that match `extra`, such as `*.pth` or `am.mvn`: for families
    /// whose releases keep a part of the model in files of another kind. Torch files are never
    /// common, since most repositories hold the same weights as safetensors.
    ///
    /// # Errors
    /// [`HubError::InvalidPattern`] for a glob that does not parse.
    pub fn common_and(extra: &[&str]) -> Result<Self, HubError> {
        let filter = Self::new(DEFAULT_INCLUDE.iter().chain(extra), DEFAULT_EXCLUDE)?;
        Ok(Self {
            whole_model: true,
            ..filter
        })
    }

    /// Whether the file at `path` (with `/` between directories) is wanted.
    pub fn matches(&self, path: &str) -> bool {
        self.include.is_match(path) && !self.exclude.iter().any(|set| set.is_match(path))
    }

    /// The files of `listing` to download.
    ///
    /// # Errors
    /// [`HubError::NoFiles`] when none match, [`HubError::NoWeights`] when those that match cannot
    /// make a model.
    pub(crate) fn select<'a>(&self, listing: &'a Listing) -> Result<Vec<&'a RemoteFile>, HubError> {
        let files = listing.files.iter();
        let mut wanted: Vec<&RemoteFile> = files.filter(|file| self.matches(&file.path)).collect();
        if wanted.is_empty() && !self.whole_model {
            return Err(HubError::NoFiles {
                source_hub: listing.source,
                id: listing.repo.clone(),
                listed: listing.files.len(),
            });
        }
        if self.whole_model && !wanted.iter().any(|file| has_ending(&file.path, WEIGHTS)) {
            wanted.push(self.only_gguf(listing)?);
        }
        Ok(wanted)
    }

    /// The GGUF file of a repository that has nothing else to load.
    fn only_gguf<'a>(&self, listing: &'a Listing) -> Result<&'a RemoteFile, HubError> {
        let excluded = |path: &str| self.exclude.iter().any(|set| set.is_match(path));
        let others: Vec<&RemoteFile> = listing
            .files
            .iter()
            .filter(|file| has_ending(&file.path, WEIGHTS) && !excluded(&file.path))
            .collect();
        let mut models = others.iter().filter(|file| {
            let name = file.path.rsplit('/').next().unwrap_or_default();
            // The vision part of a model, which is no model by itself.
            has_ending(name, &["gguf"]) && !name.contains("mmproj")
        });
        match (models.next(), models.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(HubError::NoWeights {
                source_hub: listing.source,
                id: listing.repo.clone(),
                choices: others.iter().map(|file| file.path.clone()).collect(),
            }),
        }
    }

    /// This filter without the files that `patterns` match.
    ///
    /// # Errors
    /// [`HubError::InvalidPattern`] for a glob that does not parse.
    pub fn without(mut self, patterns: &[impl AsRef<str>]) -> Result<Self, HubError> {
        self.exclude.push(compile(patterns)?);
        Ok(self)
    }
}

fn has_ending(path: &str, endings: &[&str]) -> bool {
    path.rsplit_once('.').is_some_and(|(_, found)| {
        endings
            .iter()
            .any(|ending| found.eq_ignore_ascii_case(ending))
    })
}

fn compile<P>(patterns: P) -> Result<GlobSet, HubError>
where
    P: IntoIterator<Item: AsRef<str>>,
{
    let invalid = |pattern: &str, reason: String| HubError::InvalidPattern {
        pattern: pattern.to_owned(),
        reason,
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let pattern = pattern.as_ref();
        if pattern.is_empty() {
            return Err(invalid(pattern, "it is empty".to_owned()));
        }
        let anchored = match (pattern.strip_suffix('/'), pattern.contains('/')) {
            (Some(directory), _) => format!("{directory}/**"),
            (None, true) => pattern.to_owned(),
            (None, false) => format!("**/{pattern}"),
        };
        let glob = GlobBuilder::new(&anchored)
            .literal_separator(true)
            .build()
            .map_err(|error| invalid(pattern, error.kind().to_string()))?;
        set.add(glob);
    }
    set.build()
        .map_err(|error| invalid("(all)", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_files_are_what_a_model_needs() {
        let filter = FileFilter::common().unwrap();
        for wanted in [
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            "video_preprocessor_config.json",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            "spiece.model",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "chat_template.jinja",
            "chat_template.json",
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "special_tokens_map.json",
            "1_Pooling/config.json",
            "modules.json",
            "config_sentence_transformers.json",
            "LICENSE",
        ] {
            assert!(filter.matches(wanted), "{wanted} is missing");
        }
        for unwanted in [
            "README.md",
            "README_zh.md",
            ".gitattributes",
            ".git/config.json",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "onnx/config.json",
            "original/tokenizer.model",
            "consolidated.safetensors",
            "figures/a.png",
            "model.gguf",
        ] {
            assert!(!filter.matches(unwanted), "{unwanted} is taken");
        }
    }

    #[test]
    fn families_add_their_own_files() {
        let filter = FileFilter::common_and(&["*.pth", "am.mvn"]).unwrap();
        assert!(filter.matches("audiovae.pth") && filter.matches("am.mvn"));
        assert!(filter.matches("config.json") && !filter.matches("x.pt"));
    }

    fn listing(paths: &[&str]) -> Listing {
        let file = |path: &&str| RemoteFile {
            path: (*path).to_owned(),
            size: None,
            sha256: None,
            object_id: None,
        };
        Listing {
            source: crate::Source::HuggingFace,
            repo: "a/b".parse().unwrap(),
            revision: "main".to_owned(),
            commit: None,
            files: paths.iter().map(file).collect(),
        }
    }

    fn selected(filter: &FileFilter, paths: &[&str]) -> Result<Vec<String>, HubError> {
        let listing = listing(paths);
        let files = filter.select(&listing)?;
        Ok(files.iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn the_only_gguf_file_is_the_model_where_there_are_no_safetensors() {
        let common = FileFilter::common().unwrap();
        let one = ["config.json", "m.Q8_0.gguf", "mmproj-m.gguf", "README.md"];
        assert_eq!(
            selected(&common, &one).unwrap(),
            ["config.json", "m.Q8_0.gguf"]
        );
        let both = ["config.json", "model.safetensors", "m.gguf"];
        assert_eq!(
            selected(&common, &both).unwrap(),
            ["config.json", "model.safetensors"]
        );
        assert_eq!(selected(&common, &["m.gguf"]).unwrap(), ["m.gguf"]);

        let several = ["config.json", "m.Q4_K_M.gguf", "m.Q8_0.gguf"];
        let error = selected(&common, &several).unwrap_err();
        assert_eq!(error.code(), "no_weights");
        let told = error.to_string();
        assert!(
            told.contains("m.Q4_K_M.gguf, m.Q8_0.gguf") && told.contains("--include"),
            "{told}"
        );
        // An exclude may leave one.
        let chosen = common.clone().without(&["*Q4*"]).unwrap();
        assert_eq!(
            selected(&chosen, &several).unwrap(),
            ["config.json", "m.Q8_0.gguf"]
        );
        let torch = ["config.json", "pytorch_model.bin"];
        let told = selected(&common, &torch).unwrap_err().to_string();
        assert!(told.contains("pytorch_model.bin"), "{told}");
        let nothing = selected(&common, &["data.csv"]).unwrap_err();
        assert_eq!(nothing.code(), "no_weights");
        // Who chooses files himself gets them.
        let own = FileFilter::new(["*.json"], [] as [&str; 0]).unwrap();
        assert_eq!(selected(&own, &several).unwrap(), ["config.json"]);
        assert_eq!(selected(&own, &["a.txt"]).unwrap_err().code(), "no_files");
    }

    #[test]
    fn patterns_with_a_slash_are_anchored() {
        let filter = FileFilter::new(["a/*.bin", "dir/"], ["*secret*"]).unwrap();
        assert!(filter.matches("a/x.bin") && filter.matches("dir/deep/y"));
        assert!(!filter.matches("b/a/x.bin") && !filter.matches("a/b/x.bin"));
        assert!(!filter.matches("dir/secret.txt"));
        let all = FileFilter::new([] as [&str; 0], ["*.md"]).unwrap();
        assert!(all.matches("any/thing") && !all.matches("docs/a.md"));
    }

    #[test]
    fn broken_patterns_are_named() {
        for bad in ["[", "a[z-a]", "{a", ""] {
            let error = FileFilter::new([bad], [] as [&str; 0]).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }
}
