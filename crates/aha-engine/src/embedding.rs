//! Texts to vectors: the contract with the model, and everything between a text and its token ids.

use crate::engine::{EngineOptions, EngineStatus};
use crate::error::EngineError;
use crate::pooled::{PendingRows, Pooled, PooledBatch, PooledEngine, PooledOutput};
use crate::tokenizer::Tokenizer;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A model that gives one vector a sequence.
pub trait Embedder: Send + Sync {
    /// Numbers in a vector.
    fn embedding_size(&self) -> usize;

    /// Rows of the token embedding; ids at or above it have none.
    fn vocab_size(&self) -> usize;

    /// Longest sequence that the positions allow.
    fn context_length(&self) -> usize;

    /// Pooled vectors `[sequences, embedding_size]`, not normalised. A sequence gives the same bits alone and in any
    /// batch.
    fn embed(&self, batch: &PooledBatch<'_>) -> Result<Tensor>;
}

/// An embedder with everything between it and text.
pub struct EmbeddingModel {
    /// The tensors.
    pub embedder: Box<dyn Embedder>,
    /// Tokenizer, prompts and limits.
    pub processor: EmbeddingProcessor,
}

impl fmt::Debug for EmbeddingModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddingModel").finish_non_exhaustive()
    }
}

/// One thing to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// A text, which gets the prompt and the tokenizer's own special tokens.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// What becomes of an input that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    /// As the release says: some cut silently, others do not say.
    #[default]
    Release,
    /// It is an error.
    Never,
    /// Its end is cut off, special tokens excepted.
    ToLimit,
    /// Its end is cut off behind this many tokens, special tokens included.
    To(usize),
}

/// Wishes for a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EmbeddingOptions {
    /// A prompt by its name in the release (`query`, `document`).
    pub prompt_name: Option<String>,
    /// The task in words, for models that take one before queries.
    pub instruct: Option<String>,
    /// What becomes of inputs that are too long.
    pub truncate: Truncate,
    /// Numbers to keep of each vector, from the front (Matryoshka representations, arXiv 2205.13147).
    pub dimensions: Option<usize>,
}

/// A tokenised input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedInput {
    /// Token ids, special tokens included.
    pub token_ids: Vec<u32>,
    /// Whether its end was cut off.
    pub truncated: bool,
}

/// How the task in words stands before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructForm {
    /// Before the task.
    pub before: &'static str,
    /// Between task and text.
    pub between: &'static str,
}

/// What the release says about inputs and vectors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EmbeddingSettings {
    /// Most tokens of an input, special tokens included.
    pub max_length: usize,
    /// Longer inputs are cut unless the request says otherwise, as the reference does.
    pub truncates: bool,
    /// Texts become lower case before the tokenizer sees them.
    pub lower_case: bool,
    /// Vectors have the length 1.
    pub normalize: bool,
    /// Shorter vectors are meaningful.
    pub matryoshka: bool,
    /// Prompts by name; they stand directly before the text.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of requests that name none.
    pub default_prompt: Option<String>,
    /// Form of `instruct`, where the model knows one.
    pub instruct: Option<InstructForm>,
}

/// Tokenizer, prompts and limits of one embedder; cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbeddingProcessor {
    tokenizer: Arc<Tokenizer>,
    settings: Arc<EmbeddingSettings>,
    /// Special tokens that the tokenizer puts behind every text.
    after: Arc<[u32]>,
}

impl EmbeddingProcessor {
    /// A processor around a tokenizer and what the release says.
    ///
    /// # Errors
    /// When the tokenizer fails on its own special tokens, or an input has no room for text beside them.
    pub fn new(
        tokenizer: Tokenizer,
        settings: EmbeddingSettings,
    ) -> std::result::Result<Self, EngineError> {
        let around = tokenizer.encode("", true)?;
        let (bare, whole) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
        let split = (0..=around.len()).find(|&split| {
            whole.len() == around.len() + bare.len()
                && whole[..split] == around[..split]
                && whole[split..split + bare.len()] == bare
                && whole[split + bare.len()..] == around[split..]
        });
        let Some(split) = split else {
            return Err(EngineError::internal(
                "the tokenizer's special tokens are not around the text",
            ));
        };
        if settings.max_length <= around.len() {
            return Err(EngineError::internal(format!(
                "a limit of {} tokens leaves no room beside {} special ones",
                settings.max_length,
                around.len()
            )));
        }
        if let Some(name) = &settings.default_prompt
            && !settings.prompts.contains_key(name)
        {
            return Err(EngineError::internal(format!(
                "the default prompt `{name}` is none of the prompts"
            )));
        }
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            settings: Arc::new(settings),
            after: around[split..].into(),
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the release says.
    pub fn settings(&self) -> &EmbeddingSettings {
        &self.settings
    }

    /// The text that stands before every text of a request.
    ///
    /// # Errors
    /// When the prompt's name is unknown, the model takes no `instruct`, or both are given.
    pub fn prefix(&self, options: &EmbeddingOptions) -> std::result::Result<String, EngineError> {
        let settings = &self.settings;
        let named = |name: &str| {
            settings.prompts.get(name).cloned().ok_or_else(|| {
                let names: Vec<&str> = settings.prompts.keys().map(String::as_str).collect();
                let known = if names.is_empty() {
                    "this model has none".to_owned()
                } else {
                    format!("this model has {}", names.join(", "))
                };
                // A name is the client's text: shortened.
                let shown: String = name.chars().take(100).collect();
                EngineError::invalid("prompt_name", format!("no prompt `{shown}`: {known}"))
            })
        };
        match (&options.prompt_name, &options.instruct) {
            (Some(_), Some(_)) => Err(EngineError::invalid(
                "instruct",
                "`instruct` and `prompt_name` exclude each other: both decide what stands before the text",
            )),
            (Some(name), None) => named(name),
            (None, Some(task)) => match settings.instruct {
                Some(form) => Ok(format!("{}{task}{}", form.before, form.between)),
                None => Err(EngineError::invalid(
                    "instruct",
                    "this model takes no `instruct`",
                )),
            },
            (None, None) => settings
                .default_prompt
                .as_deref()
                .map_or(Ok(String::new()), named),
        }
    }

    /// Tokenises one input; `prefix` is [`Self::prefix`] and `param` what errors call the input.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] when it is empty or too long.
    pub fn prepare(
        &self,
        input: &EmbeddingInput,
        prefix: &str,
        truncate: Truncate,
        limit: usize,
        param: &str,
    ) -> std::result::Result<PreparedInput, EngineError> {
        let most = limit.min(self.settings.max_length);
        let named = |error: EngineError| match error {
            EngineError::InvalidRequest { message, .. } => {
                EngineError::invalid(param, format!("`{param}`: {message}"))
            }
            other => other,
        };
        let (mut token_ids, after): (Vec<u32>, &[u32]) = match input {
            EmbeddingInput::Text(text) => {
                let mut text = format!("{prefix}{text}");
                if self.settings.lower_case {
                    text = text.to_lowercase();
                }
                let ids = self.tokenizer.encode(&text, true);
                (ids.map_err(|error| named(error.into()))?, &self.after)
            }
            EmbeddingInput::Tokens(ids) => (ids.clone(), &[]),
        };
        if token_ids.is_empty() {
            return Err(EngineError::invalid(
                param,
                format!("`{param}` has no tokens: give at least one"),
            ));
        }
        let keep = match truncate {
            Truncate::To(tokens) => Some(tokens.min(most)),
            Truncate::ToLimit => Some(most),
            Truncate::Release if self.settings.truncates => Some(most),
            Truncate::Release | Truncate::Never => None,
        };
        let longest = keep.unwrap_or(most);
        if token_ids.len() <= longest {
            return Ok(PreparedInput {
                token_ids,
                truncated: false,
            });
        }
        if keep.is_none() {
            return Err(EngineError::invalid(
                param,
                format!(
                    "`{param}` has {} tokens, but this model takes {most}: shorten it, or cut it with `truncate`",
                    token_ids.len()
                ),
            ));
        }
        let Some(content) = longest
            .checked_sub(after.len())
            .filter(|content| *content > 0)
        else {
            return Err(EngineError::invalid(
                param,
                format!("{longest} tokens leave no room for text: keep more of `{param}`"),
            ));
        };
        token_ids.truncate(content);
        token_ids.extend_from_slice(after);
        Ok(PreparedInput {
            token_ids,
            truncated: true,
        })
    }

    /// Refuses lengths of vectors that the model does not give.
    fn check_dimensions(
        &self,
        dimensions: usize,
        size: usize,
    ) -> std::result::Result<(), EngineError> {
        let message = if dimensions == size {
            return Ok(());
        } else if !self.settings.matryoshka {
            format!(
                "`dimensions` is {dimensions}, but this model's vectors have {size} numbers and were not trained to be cut"
            )
        } else if dimensions == 0 || dimensions > size {
            format!("`dimensions` is {dimensions}, but must be between 1 and {size}")
        } else {
            return Ok(());
        };
        Err(EngineError::invalid("dimensions", message))
    }
}

/// Handle to an embedder's thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct EmbeddingEngine {
    engine: PooledEngine,
    processor: EmbeddingProcessor,
    embedding_size: usize,
}

impl fmt::Debug for EmbeddingEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddingEngine")
            .field("embedding_size", &self.embedding_size)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl EmbeddingEngine {
    /// Starts the thread. Of the options, those of the cache have no meaning here.
    ///
    /// # Errors
    /// When an option is zero or the thread cannot start.
    pub fn start(
        model: EmbeddingModel,
        options: &EngineOptions,
    ) -> std::result::Result<Self, EngineError> {
        let embedding_size = model.embedder.embedding_size();
        Ok(Self {
            engine: PooledEngine::start(Pooled::Embed(model.embedder), options)?,
            processor: model.processor,
            embedding_size,
        })
    }

    /// Tokenizer, prompts and limits.
    pub fn processor(&self) -> &EmbeddingProcessor {
        &self.processor
    }

    /// Numbers in a vector, unless a request asks for fewer.
    pub fn embedding_size(&self) -> usize {
        self.embedding_size
    }

    /// Tokens that one input may have.
    pub fn context_length(&self) -> usize {
        self.engine
            .context_length()
            .min(self.processor.settings.max_length)
    }

    /// Tokenises inputs, which errors call `param` and, when there are several, `param[index]`.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] naming the option or input at fault.
    pub fn prepare(
        &self,
        inputs: &[EmbeddingInput],
        options: &EmbeddingOptions,
        param: &str,
    ) -> std::result::Result<Vec<PreparedInput>, EngineError> {
        if let Some(dimensions) = options.dimensions {
            self.processor
                .check_dimensions(dimensions, self.embedding_size)?;
        }
        let prefix = self.processor.prefix(options)?;
        let limit = self.context_length();
        inputs
            .iter()
            .enumerate()
            .map(|(index, input)| {
                let param = if inputs.len() == 1 {
                    param.to_owned()
                } else {
                    format!("{param}[{index}]")
                };
                let prepared =
                    self.processor
                        .prepare(input, &prefix, options.truncate, limit, &param)?;
                let unknown = |token: &&u32| **token as usize >= self.engine.vocab_size();
                match prepared.token_ids.iter().find(unknown) {
                    None => Ok(prepared),
                    Some(token) => Err(EngineError::invalid(
                        &param,
                        format!(
                            "`{param}` holds token {token}, but the model has embeddings of {} only",
                            self.engine.vocab_size()
                        ),
                    )),
                }
            })
            .collect()
    }

    /// Queues token sequences. Never waits.
    ///
    /// # Errors
    /// When a sequence is empty, too long or holds unknown tokens, `dimensions` is none that the model gives, the
    /// queue is full or the engine is stopping.
    pub fn submit(
        &self,
        sequences: Vec<Vec<u32>>,
        dimensions: Option<usize>,
    ) -> std::result::Result<PendingEmbeddings, EngineError> {
        if let Some(dimensions) = dimensions {
            self.processor
                .check_dimensions(dimensions, self.embedding_size)?;
        }
        Ok(PendingEmbeddings {
            rows: self.engine.submit(sequences)?,
            dimensions,
            normalize: self.processor.settings.normalize,
        })
    }

    /// Whether a request would find a place in the queue now.
    ///
    /// # Errors
    /// When the queue is full or the engine is stopping.
    pub fn check_room(&self) -> std::result::Result<(), EngineError> {
        self.engine.check_room()
    }

    /// A look at the state.
    pub fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    /// Ends the thread: running and waiting requests fail with [`EngineError::ShuttingDown`].
    pub fn shutdown(&self) {
        self.engine.shutdown();
    }
}

/// Vectors that are being computed. Dropping it cancels the request.
#[derive(Debug)]
pub struct PendingEmbeddings {
    rows: PendingRows,
    dimensions: Option<usize>,
    normalize: bool,
}

impl PendingEmbeddings {
    /// The vectors, in the order of the request.
    ///
    /// # Errors
    /// When the computation failed or the engine is stopping.
    pub async fn wait(self) -> std::result::Result<PooledOutput, EngineError> {
        let (dimensions, normalize) = (self.dimensions, self.normalize);
        Ok(finished(self.rows.wait().await?, dimensions, normalize))
    }

    /// The same for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn blocking_wait(self) -> std::result::Result<PooledOutput, EngineError> {
        let (dimensions, normalize) = (self.dimensions, self.normalize);
        Ok(finished(self.rows.blocking_wait()?, dimensions, normalize))
    }
}

fn finished(mut output: PooledOutput, dimensions: Option<usize>, normalize: bool) -> PooledOutput {
    for row in &mut output.rows {
        if let Some(dimensions) = dimensions {
            row.truncate(dimensions);
        }
        if normalize {
            normalise(row);
        }
    }
    output
}

/// Scales a vector to the length 1; a zero vector stays.
fn normalise(row: &mut [f32]) {
    let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = squares.sqrt().max(1e-12);
    for value in row {
        *value = (f64::from(*value) / length) as f32;
    }
}
