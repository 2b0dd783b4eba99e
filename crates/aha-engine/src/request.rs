//! What a generation is asked to do, after validation and defaults.

use crate::error::EngineError;
use crate::media::MediaSpan;
use aha_nn::batch::AxisPositions;
use std::sync::Arc;

/// Longest n-gram whose repetition can be banned. The search for repetitions costs at each token up to this many
/// comparisons for every token of the context.
pub const NGRAM_LIMIT: usize = 256;

/// How the next token is chosen.
///
/// Order of the steps: logit bias, repetition / presence / frequency penalties, bans of repeated n-grams, then for
/// greedy decoding (temperature 0) the maximum; otherwise temperature, `top_k`, `top_p`, `min_p`, and a draw. It is the
/// order of the Hugging Face reference (penalties before warpers, temperature before truncation).
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted for each occurrence in the output.
    pub frequency_penalty: f32,
    /// No n-gram of so many tokens occurs twice in prompt and output together; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// The same among the latest tokens only, with exceptions.
    pub ngram_window: Option<NgramWindow>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this request's own random stream; `None` draws one.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    /// OpenAI's defaults: temperature 1, everything else off.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            ngram_window: None,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Refuses values that no choice can follow, naming the field.
    pub fn validate(&self, vocab_size: usize) -> Result<(), EngineError> {
        let within = |name: &str, value: f32, least: f32, most: f32| {
            if value >= least && value <= most {
                return Ok(());
            }
            Err(EngineError::invalid(
                name,
                format!("`{name}` is {value}, but must be between {least} and {most}"),
            ))
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        for (token, bias) in &self.logit_bias {
            known_token("logit_bias", *token, vocab_size)?;
            within("logit_bias", *bias, -100.0, 100.0)?;
        }
        ngram_within("no_repeat_ngram_size", self.no_repeat_ngram_size)?;
        match &self.ngram_window {
            Some(window) => window.validate(vocab_size),
            None => Ok(()),
        }
    }

    /// Greedy decoding.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

/// A ban on n-grams that occur among the latest tokens already (`vllm_xargs` of DeepSeek-OCR's recipes): documents
/// repeat themselves at a distance, loops do at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NgramWindow {
    /// Tokens of an n-gram; 0 is off.
    pub ngram_size: usize,
    /// Tokens of prompt and output, counted from the end, among which n-grams are looked for.
    pub window_size: usize,
    /// Tokens that are never banned, for example the tags of table cells.
    pub whitelist_token_ids: Vec<u32>,
}

impl NgramWindow {
    fn validate(&self, vocab_size: usize) -> Result<(), EngineError> {
        ngram_within("vllm_xargs.ngram_size", self.ngram_size)?;
        if self.ngram_size > 0 && self.window_size == 0 {
            return Err(EngineError::invalid(
                "vllm_xargs.window_size",
                "`window_size` must be at least 1",
            ));
        }
        for token in &self.whitelist_token_ids {
            known_token("vllm_xargs.whitelist_token_ids", *token, vocab_size)?;
        }
        Ok(())
    }
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StopParams {
    /// Most tokens to generate; `None` means up to the context length.
    pub max_tokens: Option<usize>,
    /// End-of-sequence and stop tokens are suppressed until this many tokens were generated.
    pub min_tokens: usize,
    /// Texts that end the generation; they are not part of the answer.
    pub stop: Vec<String>,
    /// Tokens that end the generation besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Treat the model's end-of-sequence tokens as ordinary ones.
    pub ignore_eos: bool,
}

/// What is reported besides the text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutputParams {
    /// `None`: no log-probabilities. `Some(n)`: the chosen token's and those of the n most probable ones.
    pub logprobs: Option<usize>,
    /// Leave special tokens out of the text; `None` is the model's default.
    pub skip_special_tokens: Option<bool>,
    /// Special tokens that stay in the text all the same, because a parser looks for them
    /// ([`crate::TextProcessor::parsed_tokens`]).
    pub kept_tokens: Vec<u32>,
}

/// A tokenised input.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Prompt {
    /// Token ids in order; never empty when it reaches the scheduler.
    pub token_ids: Vec<u32>,
    /// The text that the ids were made of (after the chat template), for parsers and logs.
    pub text: String,
    /// What encoders give the embeddings of, in order.
    pub media: Vec<MediaSpan>,
    /// Positions on several axes, where they differ from the plain count.
    pub axes: Option<Arc<AxisPositions>>,
}

impl Prompt {
    /// A prompt of tokens alone.
    pub fn tokens(token_ids: Vec<u32>, text: String) -> Self {
        Self {
            token_ids,
            text,
            ..Self::default()
        }
    }
}

/// One generation, ready for the scheduler.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationRequest {
    /// The tokenised input.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When it ends.
    pub stop: StopParams,
    /// What is reported.
    pub output: OutputParams,
}

impl GenerationRequest {
    /// Refuses values that no generation can honour, naming the field.
    pub fn validate(&self, vocab_size: usize) -> Result<(), EngineError> {
        self.sampling.validate(vocab_size)?;
        for token in &self.stop.stop_token_ids {
            known_token("stop_token_ids", *token, vocab_size)?;
        }
        if self.stop.max_tokens == Some(0) {
            return Err(EngineError::invalid(
                "max_tokens",
                "`max_tokens` must be at least 1",
            ));
        }
        if let Some(most) = self.stop.max_tokens
            && self.stop.min_tokens > most
        {
            let message = format!(
                "`min_tokens` is {}, more than the {most} of `max_tokens`",
                self.stop.min_tokens
            );
            return Err(EngineError::invalid("min_tokens", message));
        }
        if self.stop.stop.iter().any(String::is_empty) {
            return Err(EngineError::invalid(
                "stop",
                "a stop string must not be empty",
            ));
        }
        if self.prompt.token_ids.is_empty() {
            return Err(EngineError::invalid("prompt", "the prompt has no tokens"));
        }
        for token in &self.prompt.token_ids {
            known_token("prompt", *token, vocab_size)?;
        }
        Ok(())
    }
}

fn ngram_within(param: &str, size: usize) -> Result<(), EngineError> {
    if size <= NGRAM_LIMIT {
        return Ok(());
    }
    Err(EngineError::invalid(
        param,
        format!("`{param}` is {size}, but must be at most {NGRAM_LIMIT}"),
    ))
}

fn known_token(param: &str, token: u32, vocab_size: usize) -> Result<(), EngineError> {
    if (token as usize) < vocab_size {
        return Ok(());
    }
    Err(EngineError::invalid(
        param,
        format!("token {token} is not one of the model's {vocab_size}"),
    ))
}
