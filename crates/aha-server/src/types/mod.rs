//! Requests and answers as they travel: OpenAI's shapes, read field by field and written whole.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod embedding;
pub(crate) mod fields;
pub(crate) mod generation;
pub(crate) mod matting;
pub(crate) mod media;
pub(crate) mod message;
pub(crate) mod ocr;
pub(crate) mod rerank;
pub(crate) mod response;
pub(crate) mod speech;
pub(crate) mod tokenize;
pub(crate) mod transcription;
