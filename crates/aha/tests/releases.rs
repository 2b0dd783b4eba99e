//! Of every family's release the files that it needs are downloaded, and no others; and what was
//! downloaded is known to be whole.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use aha::hub::{HubConfig, ModelId, Store};
use aha::releases::{RELEASES, Release};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What a repository of the family holds: `+` marks what is needed, `-` what is not.
struct Repository {
    family: &'static str,
    /// config.json, or what stands for it.
    config: &'static str,
    files: &'static [&'static str],
}

const TEXT: &[&str] = &[
    "+config.json",
    "+generation_config.json",
    "+model.safetensors",
    "+tokenizer.json",
    "+tokenizer_config.json",
    "+special_tokens_map.json",
    "+LICENSE",
    "-README.md",
    "-.gitattributes",
];

const QWEN: &[&str] = &[
    "+config.json",
    "+generation_config.json",
    "+model-00001-of-00002.safetensors",
    "+model-00002-of-00002.safetensors",
    "+model.safetensors.index.json",
    "+tokenizer.json",
    "+tokenizer_config.json",
    "+vocab.json",
    "+merges.txt",
    "+LICENSE",
    "-README.md",
    "-.gitattributes",
];

const DEEPSEEK_OCR: &[&str] = &[
    "+config.json",
    "+processor_config.json",
    "+tokenizer.json",
    "+tokenizer_config.json",
    "+special_tokens_map.json",
    "+model-00001-of-000001.safetensors",
    "+model.safetensors.index.json",
    "-modeling_deepseekocr.py",
    "-deepencoder.py",
    "-conversation.py",
    "-assets/show1.jpg",
    "-README.md",
];

const VISION: &[&str] = &[
    "+config.json",
    "+generation_config.json",
    "+preprocessor_config.json",
    "+video_preprocessor_config.json",
    "+processor_config.json",
    "+tokenizer.json",
    "+tokenizer_config.json",
    "+special_tokens_map.json",
    "+vocab.json",
    "+merges.txt",
    "+chat_template.json",
    "+chat_template.jinja",
    "+model.safetensors-00001-of-00001.safetensors",
    "+model.safetensors.index.json",
    "-README.md",
    "-onnx/model.onnx",
];

const REPOSITORIES: &[Repository] = &[
    Repository {
        family: "qwen3",
        config: r#"{"architectures": ["Qwen3ForCausalLM"]}"#,
        files: QWEN,
    },
    Repository {
        family: "llama",
        config: r#"{"architectures": ["LlamaForCausalLM"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+model.safetensors",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "+vocab.json",
            "+merges.txt",
            "-onnx/model_q4.onnx",
            "-onnx/config.json",
            "-original/consolidated.00.pth",
            "-original/tokenizer.model",
            "-runs/events.out.tfevents",
            "-training_args.bin",
            "-README.md",
        ],
    },
    Repository {
        family: "lfm2",
        config: r#"{"architectures": ["Lfm2ForCausalLM"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+model.safetensors",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "+chat_template.jinja",
            "+LICENSE",
            "-README.md",
        ],
    },
    Repository {
        family: "minicpm4",
        config: r#"{"architectures": ["MiniCPMForCausalLM"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+model.safetensors",
            "+tokenizer.json",
            "+tokenizer.model",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "+added_tokens.json",
            "-configuration_minicpm.py",
            "-modeling_minicpm.py",
            "-README.md",
        ],
    },
    Repository {
        family: "qwen3_5",
        config: r#"{"architectures": ["Qwen3_5ForConditionalGeneration"]}"#,
        files: VISION,
    },
    Repository {
        family: "qwen3vl",
        config: r#"{"architectures": ["Qwen3VLForConditionalGeneration"]}"#,
        files: VISION,
    },
    Repository {
        family: "qwen2_5vl",
        config: r#"{"architectures": ["Qwen2_5_VLForConditionalGeneration"]}"#,
        files: VISION,
    },
    Repository {
        family: "lfm2vl",
        config: r#"{"architectures": ["Lfm2VlForConditionalGeneration"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+preprocessor_config.json",
            "+processor_config.json",
            "+model.safetensors",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "+chat_template.jinja",
            "-README.md",
        ],
    },
    Repository {
        family: "deepseek_ocr",
        config: r#"{"architectures": ["DeepseekOCRForCausalLM"]}"#,
        files: DEEPSEEK_OCR,
    },
    Repository {
        family: "deepseek_ocr2",
        config: r#"{"architectures": ["DeepseekOCR2ForCausalLM"]}"#,
        files: DEEPSEEK_OCR,
    },
    Repository {
        family: "glm_ocr",
        config: r#"{"architectures": ["GlmOcrForConditionalGeneration"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+preprocessor_config.json",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+chat_template.jinja",
            "+model.safetensors",
            "-README.md",
        ],
    },
    Repository {
        family: "hunyuan_ocr",
        config: r#"{"architectures": ["HunYuanVLForConditionalGeneration"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+preprocessor_config.json",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "+model-00001-of-00002.safetensors",
            "+model-00002-of-00002.safetensors",
            "+model.safetensors.index.json",
            "+LICENSE",
            "-assets/hyocr-head-img.png",
            "-README.md",
        ],
    },
    Repository {
        family: "paddleocr_vl",
        config: r#"{"architectures": ["PaddleOCRVLForConditionalGeneration"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+preprocessor_config.json",
            "+processor_config.json",
            "+tokenizer.json",
            "+tokenizer.model",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "+added_tokens.json",
            "+chat_template.jinja",
            "+model.safetensors",
            "-modeling_paddleocr_vl.py",
            "-inference.yml",
            "-PP-DocLayoutV2/config.json",
            "-PP-DocLayoutV2/inference.pdiparams",
            "-README.md",
        ],
    },
    Repository {
        family: "qwen3_asr",
        config: r#"{"architectures": ["Qwen3ASRForConditionalGeneration"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+preprocessor_config.json",
            "+chat_template.json",
            "+tokenizer_config.json",
            "+vocab.json",
            "+merges.txt",
            "+model.safetensors",
            "-README.md",
        ],
    },
    Repository {
        family: "glm_asr_nano",
        config: r#"{"architectures": ["GlmAsrForConditionalGeneration"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+processor_config.json",
            "+chat_template.jinja",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+model.safetensors",
            "-inference.py",
            "-README_zh.md",
        ],
    },
    Repository {
        family: "fun_asr_nano",
        config: "model: FunASRNano",
        files: &[
            "+config.yaml",
            "+configuration.json",
            "+model.pt",
            "+multilingual.tiktoken",
            "+Qwen3-0.6B/config.json",
            "+Qwen3-0.6B/generation_config.json",
            "+Qwen3-0.6B/tokenizer.json",
            "+Qwen3-0.6B/tokenizer_config.json",
            "+Qwen3-0.6B/vocab.json",
            "+Qwen3-0.6B/merges.txt",
            "-example/zh.mp3",
            "-images/funasr-v2.png",
            "-README.md",
        ],
    },
    Repository {
        family: "voxcpm",
        config: r#"{"architecture": "voxcpm", "residual_lm_num_layers": 6}"#,
        files: &[
            "+config.json",
            "+pytorch_model.bin",
            "+audiovae.pth",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "-assets/voxcpm_model.png",
            "-README.md",
        ],
    },
    Repository {
        family: "voxcpm1_5",
        config: r#"{"architecture": "voxcpm", "residual_lm_num_layers": 8}"#,
        files: &[
            "+config.json",
            "+model.safetensors",
            "+audiovae.pth",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+special_tokens_map.json",
            "-assets/voxcpm_logo.png",
            "-README.md",
        ],
    },
    Repository {
        family: "rmbg2",
        config: r#"{"architectures": ["BiRefNet"]}"#,
        files: &[
            "+config.json",
            "+preprocessor_config.json",
            "+model.safetensors",
            "-pytorch_model.bin",
            "-birefnet.py",
            "-BiRefNet_config.py",
            "-onnx/model.onnx",
            "-onnx/model_fp16.onnx",
            "-t4.png",
            "-README.md",
        ],
    },
    Repository {
        family: "qwen3_embedding",
        config: r#"{"architectures": ["Qwen3ForCausalLM"]}"#,
        files: &[
            "+config.json",
            "+generation_config.json",
            "+model.safetensors",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+vocab.json",
            "+merges.txt",
            "+modules.json",
            "+config_sentence_transformers.json",
            "+1_Pooling/config.json",
            "-README.md",
        ],
    },
    Repository {
        family: "minilm",
        config: r#"{"architectures": ["BertModel"]}"#,
        files: &[
            "+config.json",
            "+model.safetensors",
            "+tokenizer.json",
            "+tokenizer_config.json",
            "+vocab.txt",
            "+special_tokens_map.json",
            "+modules.json",
            "+sentence_bert_config.json",
            "+config_sentence_transformers.json",
            "+1_Pooling/config.json",
            "-pytorch_model.bin",
            "-rust_model.ot",
            "-tf_model.h5",
            "-onnx/model.onnx",
            "-openvino/openvino_model.bin",
            "-openvino/openvino_config.json",
            "-train_script.py",
            "-data_config.json",
            "-README.md",
        ],
    },
    Repository {
        family: "qwen3_reranker",
        config: r#"{"architectures": ["Qwen3ForCausalLM"]}"#,
        files: TEXT,
    },
];

fn repository(family: &str) -> &'static Repository {
    let found = REPOSITORIES.iter().find(|known| known.family == family);
    found.unwrap_or_else(|| panic!("no files are known of {family}"))
}

/// The paths that stand behind a sign.
fn signed(files: &'static [&'static str], sign: char) -> BTreeSet<&'static str> {
    files
        .iter()
        .filter_map(|file| file.strip_prefix(sign))
        .collect()
}

fn all_paths(files: &'static [&'static str]) -> BTreeSet<&'static str> {
    files.iter().map(|file| &file[1..]).collect()
}

#[test]
fn every_release_gets_the_files_that_its_family_needs() {
    for release in RELEASES {
        let files = repository(release.family).files;
        let filter = aha::files_of(release).unwrap();
        let taken: BTreeSet<&str> = all_paths(files)
            .into_iter()
            .filter(|path| filter.matches(path))
            .collect();
        assert_eq!(taken, signed(files, '+'), "{}", release.id);
    }
}

/// Puts what a download would bring where it would put it.
fn place(root: &Path, release: &Release, paths: &BTreeSet<&str>, config: &str) {
    let folder = root.join(release.id);
    let shards: Vec<_> = paths
        .iter()
        .filter(|path| path.ends_with(".safetensors"))
        .collect();
    let map: Vec<String> = shards
        .iter()
        .enumerate()
        .map(|(number, shard)| format!("\"t{number}\": \"{shard}\""))
        .collect();
    let index = format!("{{\"weight_map\": {{{}}}}}", map.join(", "));
    for path in paths {
        let content = match *path {
            "config.json" | "config.yaml" => config,
            path if path.ends_with(".index.json") => &index,
            _ => "content",
        };
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[test]
fn what_was_downloaded_is_whole_and_without_its_weights_it_is_not() {
    let config = HubConfig::from_lookup(|_| None).unwrap();
    for release in RELEASES {
        let repository = repository(release.family);
        let id: ModelId = release.id.parse().unwrap();
        let wanted = signed(repository.files, '+');
        let located = |paths: &BTreeSet<&str>| {
            let root = tempfile::tempdir().unwrap();
            place(root.path(), release, paths, repository.config);
            let store = Store::open(Some(root.path()), &config).unwrap();
            store.locate(&id).is_some()
        };
        assert!(located(&wanted), "{}", release.id);
        let endings = [".safetensors", ".bin", ".pth", ".pt", "config.yaml"];
        for path in &wanted {
            if endings.iter().any(|ending| path.ends_with(ending)) {
                let mut rest = wanted.clone();
                rest.remove(path);
                assert!(!located(&rest), "{} without {path}", release.id);
            }
        }
    }
}

#[test]
fn every_family_of_the_table_has_releases() {
    for repository in REPOSITORIES {
        assert!(
            RELEASES
                .iter()
                .any(|release| release.family == repository.family),
            "{}",
            repository.family
        );
    }
}
