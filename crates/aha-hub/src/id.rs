//! Names of models, hubs and revisions, validated before they reach a path or a URL.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::HubError;

/// The longest owner or name that the hubs give out.
const MAX_PART: usize = 96;

/// A model id of the form `owner/name`.
///
/// Both parts are ASCII letters, digits, `-`, `_` and `.`, do not start with a dot and hold no
/// `..`, so an id is always safe as a relative path and as a part of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId {
    owner: String,
    name: String,
}

impl ModelId {
    /// Builds an id from its two parts.
    ///
    /// # Errors
    /// [`HubError::InvalidModelId`] when a part is empty, too long or holds other characters.
    pub fn new(owner: &str, name: &str) -> Result<Self, HubError> {
        for part in [owner, name] {
            check_part(part).map_err(|reason| HubError::InvalidModelId {
                id: format!("{owner}/{name}"),
                reason,
            })?;
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The part before the slash.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn check_part(part: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if part.is_empty() {
        Err("a part is empty")
    } else if part.len() > MAX_PART {
        Err("a part is longer than 96 characters")
    } else if !part.chars().all(allowed) {
        Err("only letters, digits, '-', '_' and '.' are allowed")
    } else if part.starts_with('.') || part.ends_with('.') || part.contains("..") {
        Err("a part starts or ends with a dot or holds \"..\"")
    } else {
        Ok(())
    }
}

impl FromStr for ModelId {
    type Err = HubError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        let (owner, name) = id.split_once('/').ok_or_else(|| HubError::InvalidModelId {
            id: id.to_owned(),
            reason: "there is no '/'",
        })?;
        Self::new(owner, name)
    }
}

impl TryFrom<String> for ModelId {
    type Error = HubError;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        id.parse()
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// Where to download from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Ask both hubs, take the faster, fall over to the other.
    #[default]
    Auto,
    /// ModelScope only.
    ModelScope,
    /// Hugging Face only.
    HuggingFace,
}

impl Source {
    /// The name used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ModelScope => "modelscope",
            Self::HuggingFace => "huggingface",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Source {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "modelscope" | "ms" => Ok(Self::ModelScope),
            "huggingface" | "hf" => Ok(Self::HuggingFace),
            _ => Err(HubError::InvalidSource {
                text: text.to_owned(),
            }),
        }
    }
}

/// A branch, tag or commit of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Revision {
    /// The hub's default branch: `main` on Hugging Face, `master` on ModelScope.
    #[default]
    Default,
    /// A branch, tag or commit by name.
    Named(String),
}

impl Revision {
    /// The name to ask a hub for.
    pub fn name_on(&self, source: Source) -> &str {
        match (self, source) {
            (Self::Named(name), _) => name,
            (Self::Default, Source::ModelScope) => "master",
            (Self::Default, _) => "main",
        }
    }
}

impl FromStr for Revision {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let bad_part = |part: &str| part.is_empty() || part.starts_with('.');
        if text.len() > 255 || !text.chars().all(allowed) || text.split('/').any(bad_part) {
            return Err(HubError::InvalidRevision {
                revision: text.to_owned(),
            });
        }
        Ok(Self::Named(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_safe_parts() {
        let id: ModelId = "Qwen/Qwen2.5-VL_3B".parse().unwrap();
        assert_eq!((id.owner(), id.name()), ("Qwen", "Qwen2.5-VL_3B"));
        assert_eq!(id.to_string(), "Qwen/Qwen2.5-VL_3B");
        let long = format!("a/{}", "b".repeat(97));
        for bad in [
            "", "a", "/", "a/", "/b", "a/b/c", "../b", "a/..", "a/.b", ".a/b", "a/b..c", "a\\b/c",
            "a/b c", "a/b\0", "a/b?x", "a/b%2e", "a/é", "C:/b", "a/b.", &long,
        ] {
            assert!(bad.parse::<ModelId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn revisions_hold_no_traversal() {
        assert_eq!(Revision::Default.name_on(Source::ModelScope), "master");
        assert_eq!(Revision::Default.name_on(Source::HuggingFace), "main");
        let named: Revision = "refs/pr/3".parse().unwrap();
        assert_eq!(named.name_on(Source::ModelScope), "refs/pr/3");
        for bad in ["", "..", "a/../b", "/a", "a//b", "a b", "a?b", "a\n"] {
            assert!(bad.parse::<Revision>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sources_parse_by_name() {
        assert_eq!("ModelScope".parse::<Source>().unwrap(), Source::ModelScope);
        assert_eq!("hf".parse::<Source>().unwrap(), Source::HuggingFace);
        assert!("ftp".parse::<Source>().is_err());
    }
}
