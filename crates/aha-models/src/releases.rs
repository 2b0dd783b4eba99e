//! The releases that are known by name. A table for people and for downloads: loading goes by the
//! checkpoint's own configuration.

/// One released checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// The id that commands and answers use: the Hugging Face id.
    pub id: &'static str,
    /// Short name for the command line.
    pub alias: &'static str,
    /// Family that loads it ([`crate::Family::slug`]); a build may lack it ([`Release::is_supported`]).
    pub family: &'static str,
    /// What it is for: one of [`TASKS`].
    pub task: &'static str,
    /// Parameters as published, rounded.
    pub parameters: u64,
    /// Id on ModelScope.
    pub modelscope: &'static str,
    /// Licence of the weights (SPDX where there is one, else its name).
    pub license: &'static str,
    /// Patterns of files that the family needs beside the usual ones.
    pub files: &'static [&'static str],
    /// Patterns of usual files that the family does not need.
    pub unneeded: &'static [&'static str],
}

/// What releases are for.
pub const TASKS: [&str; 8] = [
    "chat", "vision", "ocr", "asr", "tts", "matting", "embed", "rerank",
];

impl Release {
    /// Whether this build has the family.
    pub fn is_supported(&self) -> bool {
        crate::FAMILIES
            .iter()
            .any(|family| family.slug == self.family)
    }
}

macro_rules! releases {
    ($($family:literal $task:literal $license:literal with $files:tt without $unneeded:tt {
        $($id:literal $alias:literal $millions:literal $($modelscope:literal)?),* $(,)?
    })*) => {
        &[$($(Release {
            id: $id,
            alias: $alias,
            family: $family,
            task: $task,
            parameters: $millions * 1_000_000,
            modelscope: releases!(@modelscope $id $($modelscope)?),
            license: $license,
            files: &$files,
            unneeded: &$unneeded,
        }),*),*]
    };
    (@modelscope $id:literal) => { $id };
    (@modelscope $id:literal $modelscope:literal) => { $modelscope };
}

/// Known releases by family; ids that differ on ModelScope stand last. Sizes are in millions.
pub static RELEASES: &[Release] = releases! {
    "qwen3" "chat" "Apache-2.0" with [] without [] {
        "Qwen/Qwen3-0.6B" "qwen3-0.6b" 600,
        "Qwen/Qwen3-1.7B" "qwen3-1.7b" 1700,
        "Qwen/Qwen3-4B" "qwen3-4b" 4000,
        "Qwen/Qwen3-4B-Instruct-2507" "qwen3-4b-instruct-2507" 4000,
        "Qwen/Qwen3-4B-Thinking-2507" "qwen3-4b-thinking-2507" 4000,
        "Qwen/Qwen3-8B" "qwen3-8b" 8200,
        "Qwen/Qwen3-14B" "qwen3-14b" 14800,
        "Qwen/Qwen3-32B" "qwen3-32b" 32800,
    }
    "llama" "chat" "Apache-2.0" with [] without [] {
        "HuggingFaceTB/SmolLM2-135M-Instruct" "smollm2-135m" 135,
        "HuggingFaceTB/SmolLM2-360M-Instruct" "smollm2-360m" 360,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct" "smollm2-1.7b" 1700,
    }
    "lfm2" "chat" "LFM-1.0" with [] without [] {
        "LiquidAI/LFM2-350M" "lfm2-350m" 350,
        "LiquidAI/LFM2-700M" "lfm2-700m" 700,
        "LiquidAI/LFM2-1.2B" "lfm2-1.2b" 1200,
        "LiquidAI/LFM2-2.6B" "lfm2-2.6b" 2600,
        "LiquidAI/LFM2.5-230M" "lfm2.5-230m" 230,
        "LiquidAI/LFM2.5-350M" "lfm2.5-350m" 350,
        "LiquidAI/LFM2.5-1.2B-Base" "lfm2.5-1.2b-base" 1200,
        "LiquidAI/LFM2.5-1.2B-Instruct" "lfm2.5-1.2b" 1200,
        "LiquidAI/LFM2.5-1.2B-Thinking" "lfm2.5-1.2b-thinking" 1200,
        "LiquidAI/LFM2.5-1.2B-JP" "lfm2.5-1.2b-jp" 1200,
    }
    "minicpm4" "chat" "Apache-2.0" with [] without [] {
        "openbmb/MiniCPM4-0.5B" "minicpm4-0.5b" 500 "OpenBMB/MiniCPM4-0.5B",
        "openbmb/MiniCPM4-8B" "minicpm4-8b" 8200 "OpenBMB/MiniCPM4-8B",
    }
    "qwen3_5" "vision" "Apache-2.0" with [] without [] {
        "Qwen/Qwen3.5-0.8B" "qwen3.5-0.8b" 800,
        "Qwen/Qwen3.5-2B" "qwen3.5-2b" 2000,
        "Qwen/Qwen3.5-4B" "qwen3.5-4b" 4000,
        "Qwen/Qwen3.5-9B" "qwen3.5-9b" 9000,
        "Qwen/Qwen3.5-27B" "qwen3.5-27b" 27000,
    }
    "qwen3vl" "vision" "Apache-2.0" with [] without [] {
        "Qwen/Qwen3-VL-2B-Instruct" "qwen3-vl-2b" 2000,
        "Qwen/Qwen3-VL-2B-Thinking" "qwen3-vl-2b-thinking" 2000,
        "Qwen/Qwen3-VL-4B-Instruct" "qwen3-vl-4b" 4000,
        "Qwen/Qwen3-VL-4B-Thinking" "qwen3-vl-4b-thinking" 4000,
        "Qwen/Qwen3-VL-8B-Instruct" "qwen3-vl-8b" 8000,
        "Qwen/Qwen3-VL-8B-Thinking" "qwen3-vl-8b-thinking" 8000,
        "Qwen/Qwen3-VL-32B-Instruct" "qwen3-vl-32b" 32000,
        "Qwen/Qwen3-VL-32B-Thinking" "qwen3-vl-32b-thinking" 32000,
    }
    "qwen2_5vl" "vision" "Qwen-Research" with [] without [] {
        "Qwen/Qwen2.5-VL-3B-Instruct" "qwen2.5-vl-3b" 3000,
    }
    "qwen2_5vl" "vision" "Apache-2.0" with [] without [] {
        "Qwen/Qwen2.5-VL-7B-Instruct" "qwen2.5-vl-7b" 7000,
    }
    "lfm2vl" "vision" "LFM-1.0" with [] without [] {
        "LiquidAI/LFM2-VL-450M" "lfm2-vl-450m" 450,
        "LiquidAI/LFM2-VL-1.6B" "lfm2-vl-1.6b" 1600,
        "LiquidAI/LFM2.5-VL-450M" "lfm2.5-vl-450m" 450,
        "LiquidAI/LFM2.5-VL-1.6B" "lfm2.5-vl-1.6b" 1600,
    }
    "deepseek_ocr" "ocr" "MIT" with [] without [] {
        "deepseek-ai/DeepSeek-OCR" "deepseek-ocr" 3300,
    }
    "deepseek_ocr2" "ocr" "Apache-2.0" with [] without [] {
        "deepseek-ai/DeepSeek-OCR-2" "deepseek-ocr-2" 3400,
    }
    "glm_ocr" "ocr" "MIT" with [] without [] {
        "zai-org/GLM-OCR" "glm-ocr" 900 "ZhipuAI/GLM-OCR",
    }
    "hunyuan_ocr" "ocr" "Tencent-Hunyuan" with [] without [] {
        "tencent/HunyuanOCR" "hunyuan-ocr" 1000 "Tencent-Hunyuan/HunyuanOCR",
    }
    "paddleocr_vl" "ocr" "Apache-2.0" with [] without ["PP-DocLayoutV2/**"] {
        "PaddlePaddle/PaddleOCR-VL" "paddleocr-vl" 900,
        "PaddlePaddle/PaddleOCR-VL-1.5" "paddleocr-vl-1.5" 900,
        "PaddlePaddle/PaddleOCR-VL-1.6" "paddleocr-vl-1.6" 900,
    }
    "qwen3_asr" "asr" "Apache-2.0" with [] without [] {
        "Qwen/Qwen3-ASR-0.6B" "qwen3-asr-0.6b" 600,
        "Qwen/Qwen3-ASR-1.7B" "qwen3-asr-1.7b" 1700,
    }
    "glm_asr_nano" "asr" "MIT" with [] without [] {
        "zai-org/GLM-ASR-Nano-2512" "glm-asr-nano" 1500 "ZhipuAI/GLM-ASR-Nano-2512",
    }
    "fun_asr_nano" "asr" "unknown" with ["config.yaml", "model.pt"] without ["example/**"] {
        "FunAudioLLM/Fun-ASR-Nano-2512" "fun-asr-nano" 800,
        "FunAudioLLM/Fun-ASR-MLT-Nano-2512" "fun-asr-nano-mlt" 800,
    }
    "voxcpm" "tts" "Apache-2.0" with ["pytorch_model.bin", "audiovae.pth"] without ["assets/**"] {
        "openbmb/VoxCPM-0.5B" "voxcpm-0.5b" 700 "OpenBMB/VoxCPM-0.5B",
    }
    "voxcpm1_5" "tts" "Apache-2.0" with ["audiovae.pth"] without ["assets/**"] {
        "openbmb/VoxCPM1.5" "voxcpm1.5" 900 "OpenBMB/VoxCPM1.5",
    }
    "rmbg2" "matting" "CC-BY-NC-4.0" with [] without [] {
        "briaai/RMBG-2.0" "rmbg2" 220 "AI-ModelScope/RMBG-2.0",
    }
    "qwen3_embedding" "embed" "Apache-2.0" with [] without [] {
        "Qwen/Qwen3-Embedding-0.6B" "qwen3-embedding-0.6b" 600,
        "Qwen/Qwen3-Embedding-4B" "qwen3-embedding-4b" 4000,
        "Qwen/Qwen3-Embedding-8B" "qwen3-embedding-8b" 8000,
    }
    "minilm" "embed" "Apache-2.0" with [] without ["data_config.json"] {
        "sentence-transformers/all-MiniLM-L6-v2" "all-minilm-l6-v2" 23,
    }
    "qwen3_reranker" "rerank" "Apache-2.0" with [] without [] {
        "Qwen/Qwen3-Reranker-0.6B" "qwen3-reranker-0.6b" 600,
        "Qwen/Qwen3-Reranker-4B" "qwen3-reranker-4b" 4000,
        "Qwen/Qwen3-Reranker-8B" "qwen3-reranker-8b" 8000,
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
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_tasks_are_known() {
        let mut names = HashSet::new();
        for release in RELEASES {
            assert!(names.insert(release.id.to_lowercase()), "{}", release.id);
            assert!(
                names.insert(release.alias.to_lowercase()),
                "{}",
                release.alias
            );
            assert!(TASKS.contains(&release.task), "{}", release.task);
        }
    }

    #[test]
    fn a_release_of_a_family_that_the_build_lacks_says_so() {
        assert!(find("Qwen/Qwen3-8B").unwrap().is_supported());
        let lacking = Release {
            family: "nobody's",
            ..RELEASES[0]
        };
        assert!(!lacking.is_supported());
    }

    #[test]
    fn ids_and_aliases_are_found_in_any_case() {
        assert_eq!(find("qwen/qwen3-8b"), find("Qwen3-8B"));
        assert!(find("Qwen/Qwen3-8B").is_some());
        assert!(find("nobody/nothing").is_none());
    }
}
