//! Which files of a repository are wanted.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::HubError;

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
        })
    }

    /// The files that most models need: configurations, safetensors with their index, tokenizer
    /// files, chat templates, pre-processor settings and the licence.
    ///
    /// # Errors
    /// None in practice: the patterns are constants.
    pub fn common() -> Result<Self, HubError> {
        Self::new(DEFAULT_INCLUDE, DEFAULT_EXCLUDE)
    }

    /// The common files and those that match `extra`, such as `*.pth` or `am.mvn`: for families
    /// whose releases keep a part of the model in files of another kind. Torch files are never
    /// common, since most repositories hold the same weights as safetensors; nor do they alone
    /// make a model complete ([`crate::Store::locate`]).
    ///
    /// # Errors
    /// [`HubError::InvalidPattern`] for a glob that does not parse.
    pub fn common_and(extra: &[&str]) -> Result<Self, HubError> {
        Self::new(DEFAULT_INCLUDE.iter().chain(extra), DEFAULT_EXCLUDE)
    }

    /// Whether the file at `path` (with `/` between directories) is wanted.
    pub fn matches(&self, path: &str) -> bool {
        self.include.is_match(path) && !self.exclude.iter().any(|set| set.is_match(path))
    }

    /// This filter without the files that `patterns` match.
    ///
    /// # Errors
    /// [`HubError::InvalidPattern`] for a glob that does not parse.
    pub fn without(mut self, patterns: &[String]) -> Result<Self, HubError> {
        self.exclude.push(compile(patterns)?);
        Ok(self)
    }
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
