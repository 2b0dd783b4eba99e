//! A loaded model: one enum over the tasks.

use crate::embedding::EmbeddingModel;
use crate::generator::Generator;
use crate::matting::MattingModel;
use crate::media::MediaEncoder;
use crate::processor::TextProcessor;
use crate::request::SamplingParams;
use crate::rerank::RerankModel;
use crate::speech::SpeechModel;
use crate::transcription::Transcriber;
use aha_nn::weights::Unpacked;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Chat and text completion.
    Chat,
    /// Texts to vectors.
    Embed,
    /// How well documents answer a query.
    Rerank,
    /// Speech to text.
    Transcribe,
    /// Pictures to masks of their foreground.
    Matte,
    /// Text to speech.
    Speak,
}

impl Task {
    /// All tasks.
    pub const ALL: &[Self] = &[
        Self::Chat,
        Self::Embed,
        Self::Rerank,
        Self::Transcribe,
        Self::Matte,
        Self::Speak,
    ];

    /// The task's name in lists and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Embed => "embed",
            Self::Rerank => "rerank",
            Self::Transcribe => "transcribe",
            Self::Matte => "matte",
            Self::Speak => "speak",
        }
    }
}

/// A word that names no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown task `{0}`; use one of {names}", names = task_names())]
pub struct UnknownTask(String);

fn task_names() -> String {
    let names: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
    names.join(", ")
}

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(text: &str) -> Result<Self, UnknownTask> {
        Self::ALL
            .iter()
            .copied()
            .find(|task| task.name() == text)
            .ok_or_else(|| UnknownTask(text.to_owned()))
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a checkpoint says about generation (`generation_config.json`), over OpenAI's defaults.
///
/// A family may add what its recipe needs: bans of repetitions, texts that end an answer, special tokens that are part
/// of it.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// Sampling where a request says nothing.
    pub sampling: SamplingParams,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Texts that end an answer besides those of the request; off with `ignore_eos`, as the tokens are.
    pub stop: Vec<String>,
    /// Whether special tokens are left out of texts where a request says nothing.
    pub skip_special_tokens: bool,
}

impl Default for GenerationDefaults {
    /// OpenAI's defaults: plain sampling, texts without special tokens.
    fn default() -> Self {
        Self {
            sampling: SamplingParams::default(),
            eos_token_ids: Vec::new(),
            stop: Vec::new(),
            skip_special_tokens: true,
        }
    }
}

/// A text generator with everything between it and text.
pub struct TextModel {
    /// The tensors.
    pub generator: Box<dyn Generator>,
    /// What gives the embeddings of media, for models that take them.
    pub encoder: Option<Box<dyn MediaEncoder>>,
    /// Tokenizer, chat template and output parsers.
    pub processor: TextProcessor,
    /// What the checkpoint says about generation.
    pub defaults: GenerationDefaults,
    /// The way from recordings to transcripts, for speech recognisers.
    pub transcriber: Option<Arc<dyn Transcriber>>,
    /// Matrices that are read from their files until the engine has time to pack them.
    pub unpacked: Unpacked,
}

impl TextModel {
    /// What the model is for.
    pub fn task(&self) -> Task {
        match self.transcriber {
            Some(_) => Task::Transcribe,
            None => Task::Chat,
        }
    }
}

impl fmt::Debug for TextModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextModel")
            .field("defaults", &self.defaults)
            .finish_non_exhaustive()
    }
}

/// A model of any task, ready to be served.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it for a while: a process loads few models"
)]
pub enum LoadedModel {
    /// Continues text.
    Text(TextModel),
    /// Makes vectors of texts.
    Embed(EmbeddingModel),
    /// Scores documents.
    Rerank(RerankModel),
    /// Finds the foreground of pictures.
    Matte(MattingModel),
    /// Speaks.
    Speak(SpeechModel),
}

impl LoadedModel {
    /// What the model is for.
    pub fn task(&self) -> Task {
        match self {
            Self::Text(model) => model.task(),
            Self::Embed(_) => Task::Embed,
            Self::Rerank(_) => Task::Rerank,
            Self::Matte(_) => Task::Matte,
            Self::Speak(_) => Task::Speak,
        }
    }
}
