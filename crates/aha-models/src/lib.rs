//! The model families: one folder each, one line each in [`registry`].

pub mod audio;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod deepseek_ocr;
pub mod deepseek_ocr2;
pub mod encoder;
pub mod error;
pub mod fun_asr_nano;
pub mod glm_asr_nano;
pub mod lfm2;
pub mod lfm2vl;
pub mod llama;
pub mod minicpm4;
pub mod minilm;
pub mod pass;
pub mod pooling;
pub mod qwen2_5vl;
pub mod qwen3;
pub mod qwen3_5;
pub mod qwen3_asr;
pub mod qwen3_embedding;
pub mod qwen3_reranker;
pub mod qwen3vl;
pub mod registry;
pub mod releases;
pub mod sentence;
pub mod task;
pub mod text;
pub mod vision;
pub mod voxcpm;
mod yaml;

pub use checkpoint::{Checkpoint, LoadOptions};
pub use error::LoadError;
pub use registry::{FAMILIES, Family, load};
