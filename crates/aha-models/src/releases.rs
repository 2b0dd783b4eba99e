//! The releases that are known by name. A table for people: loading goes by the checkpoint's own configuration.

/// One released checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// The id that commands and answers use: the Hugging Face id.
    pub id: &'static str,
    /// Short name for the command line.
    pub alias: &'static str,
    /// Family that loads it ([`crate::Family::slug`]).
    pub family: &'static str,
    /// Id on ModelScope.
    pub modelscope: &'static str,
    /// Licence of the weights (SPDX where there is one).
    pub license: &'static str,
}

macro_rules! releases {
    ($($family:literal $license:literal { $($id:literal $alias:literal $($modelscope:literal)?),* $(,)? })*) => {
        &[$($(Release {
            id: $id,
            alias: $alias,
            family: $family,
            modelscope: releases!(@modelscope $id $($modelscope)?),
            license: $license,
        }),*),*]
    };
    (@modelscope $id:literal) => { $id };
    (@modelscope $id:literal $modelscope:literal) => { $modelscope };
}

/// Known releases by family; ids that differ on ModelScope are given after the alias.
pub static RELEASES: &[Release] = releases! {
    "qwen3" "Apache-2.0" {
        "Qwen/Qwen3-0.6B" "qwen3-0.6b",
        "Qwen/Qwen3-1.7B" "qwen3-1.7b",
        "Qwen/Qwen3-4B" "qwen3-4b",
        "Qwen/Qwen3-4B-Instruct-2507" "qwen3-4b-instruct-2507",
        "Qwen/Qwen3-4B-Thinking-2507" "qwen3-4b-thinking-2507",
        "Qwen/Qwen3-8B" "qwen3-8b",
        "Qwen/Qwen3-14B" "qwen3-14b",
        "Qwen/Qwen3-32B" "qwen3-32b",
    }
    "llama" "Apache-2.0" {
        "HuggingFaceTB/SmolLM2-135M-Instruct" "smollm2-135m",
        "HuggingFaceTB/SmolLM2-360M-Instruct" "smollm2-360m",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct" "smollm2-1.7b",
    }
    "minicpm4" "Apache-2.0" {
        "openbmb/MiniCPM4-0.5B" "minicpm4-0.5b" "OpenBMB/MiniCPM4-0.5B",
        "openbmb/MiniCPM4-8B" "minicpm4-8b" "OpenBMB/MiniCPM4-8B",
    }
    "qwen3_embedding" "Apache-2.0" {
        "Qwen/Qwen3-Embedding-0.6B" "qwen3-embedding-0.6b",
        "Qwen/Qwen3-Embedding-4B" "qwen3-embedding-4b",
        "Qwen/Qwen3-Embedding-8B" "qwen3-embedding-8b",
    }
    "qwen3_reranker" "Apache-2.0" {
        "Qwen/Qwen3-Reranker-0.6B" "qwen3-reranker-0.6b",
        "Qwen/Qwen3-Reranker-4B" "qwen3-reranker-4b",
        "Qwen/Qwen3-Reranker-8B" "qwen3-reranker-8b",
    }
    "minilm" "Apache-2.0" {
        "sentence-transformers/all-MiniLM-L6-v2" "all-minilm-l6-v2",
    }
    "lfm2" "LFM1.0" {
        "LiquidAI/LFM2-350M" "lfm2-350m",
        "LiquidAI/LFM2-700M" "lfm2-700m",
        "LiquidAI/LFM2-1.2B" "lfm2-1.2b",
        "LiquidAI/LFM2-2.6B" "lfm2-2.6b",
        "LiquidAI/LFM2.5-230M" "lfm2.5-230m",
        "LiquidAI/LFM2.5-350M" "lfm2.5-350m",
        "LiquidAI/LFM2.5-1.2B-Base" "lfm2.5-1.2b-base",
        "LiquidAI/LFM2.5-1.2B-Instruct" "lfm2.5-1.2b",
        "LiquidAI/LFM2.5-1.2B-Thinking" "lfm2.5-1.2b-thinking",
        "LiquidAI/LFM2.5-1.2B-JP" "lfm2.5-1.2b-jp",
    }
    "qwen3_5" "Apache-2.0" {
        "Qwen/Qwen3.5-0.8B" "qwen3.5-0.8b",
        "Qwen/Qwen3.5-2B" "qwen3.5-2b",
        "Qwen/Qwen3.5-4B" "qwen3.5-4b",
        "Qwen/Qwen3.5-9B" "qwen3.5-9b",
        "Qwen/Qwen3.5-27B" "qwen3.5-27b",
    }
};

/// The release that `name` means: its id or alias, whatever the case.
pub fn find(name: &str) -> Option<&'static Release> {
    RELEASES.iter().find(|release| {
        release.id.eq_ignore_ascii_case(name)
            || release.alias.eq_ignore_ascii_case(name)
            || release.modelscope.eq_ignore_ascii_case(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FAMILIES;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_every_family_exists() {
        let mut names = HashSet::new();
        for release in RELEASES {
            assert!(names.insert(release.id.to_lowercase()), "{}", release.id);
            assert!(
                names.insert(release.alias.to_lowercase()),
                "{}",
                release.alias
            );
            assert!(
                FAMILIES.iter().any(|family| family.slug == release.family),
                "{}",
                release.family
            );
        }
    }

    #[test]
    fn ids_and_aliases_are_found_in_any_case() {
        assert_eq!(find("qwen/qwen3-8b"), find("Qwen3-8B"));
        assert!(find("Qwen/Qwen3-8B").is_some());
        assert!(find("nobody/nothing").is_none());
    }
}
