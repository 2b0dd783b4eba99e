//! Recordings on their way into GLM-ASR, as windows of 30 s.

use super::config::{GlmAsrConfig, MERGED, ProcessorConfig, positions};
use crate::audio::{fault, language_name, samples, transcription_prompt};
use crate::error::LoadError;
use crate::text::token_text;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    AudioInput, Chat, ContentHash, EncoderContent, EncoderInput, EngineError, Media, MediaKind,
    MediaProcessor, Message, ProcessedMedia, Prompt, TextProcessor, Transcriber, Transcript,
    TranscriptionOptions,
};
use aha_media::audio::{LogMelExtractor, MelPadding, ResampleMethod};
use std::sync::Arc;

const BEGIN: &str = "<|begin_of_audio|>";
const END: &str = "<|end_of_audio|>";
/// What the release asks where a request does not.
const DEFAULT_PROMPT: &str = "Please transcribe this audio into text";
/// Longest recording of one prompt where no file names it, in seconds.
const MAX_SECONDS: u32 = 655;
/// Pieces of longer recordings: the answer to a full prompt would not fit into the model's context.
const PIECE_SECONDS: f64 = 60.0;
/// Most tokens of an answer, as the model card has it.
const MAX_TOKENS: usize = 500;

/// Front end and marks.
#[derive(Debug)]
pub struct GlmAsrMedia {
    extractor: LogMelExtractor,
    /// Samples of a window.
    window: usize,
    max_seconds: f64,
    /// What the template writes for a recording.
    mark: String,
    pad: String,
    pad_id: u32,
}

impl GlmAsrMedia {
    /// The front end of `processor`, for the encoder of `config`.
    pub(super) fn new(
        config: &GlmAsrConfig,
        processor: &ProcessorConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Self, LoadError> {
        let features = &processor.feature_extractor;
        let window = features.window();
        let bins = config.audio_config.num_mel_bins;
        let extractor = features.extractor(bins, MelPadding::To(window))?;
        let pad = token_text(tokenizer, config.audio_token_id, "audio_token_id")?;
        // Whole windows alone; the reference cuts off what is beyond, which is refused here.
        let most = processor.max_audio_len.unwrap_or(MAX_SECONDS) as usize;
        let rate = features.sample_rate() as usize;
        let windows = (most * rate / window).max(1);
        Ok(Self {
            extractor,
            window,
            max_seconds: (windows * window) as f64 / rate as f64,
            mark: format!("{BEGIN}{pad}{END}"),
            pad,
            pad_id: config.audio_token_id,
        })
    }

    /// Tokens for the samples of a window.
    fn tokens(&self, samples: usize) -> usize {
        positions(samples.div_ceil(self.extractor.config().hop)) / MERGED
    }
}

impl MediaProcessor for GlmAsrMedia {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Audio).then_some(self.mark.as_str())
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.pad_id)
    }

    fn audio_input(&self) -> AudioInput {
        AudioInput {
            sample_rate: self.extractor.config().sample_rate,
            resampling: ResampleMethod::SoxrHq,
            max_seconds: self.max_seconds,
        }
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let heard = samples(media, &self.audio_input())?;
        let mut inputs = Vec::with_capacity(heard.len().div_ceil(self.window));
        for (index, window) in heard.chunks(self.window).enumerate() {
            let num_tokens = self.tokens(window.len());
            if num_tokens == 0 {
                // Behind full windows a rest of milliseconds is nothing; alone it is no recording.
                continue;
            }
            let mel = self.extractor.extract(window).map_err(fault)?;
            inputs.push(EncoderInput {
                grid: [1, 1, mel.frames],
                content: EncoderContent::Features {
                    values: mel.data,
                    shape: vec![mel.bins, mel.frames],
                },
                step_seconds: 0.0,
                num_tokens,
                hash: ContentHash::of((media.hash(), index)),
            });
        }
        let num_tokens = inputs.iter().map(|input| input.num_tokens).sum();
        if num_tokens == 0 {
            return Err(fault(aha_media::audio::AudioError::TooShort {
                samples: heard.len(),
                rate: self.extractor.config().sample_rate,
                needed: (2 * MERGED - 2) * self.extractor.config().hop + 1,
            }));
        }
        Ok(ProcessedMedia {
            text: format!("{BEGIN}{}{END}", self.pad.repeat(num_tokens)),
            inputs,
        })
    }
}

/// Prompts with an instruction, answers that are the text.
#[derive(Debug)]
pub struct GlmAsrTranscriber {
    prompt: String,
}

impl GlmAsrTranscriber {
    /// With the release's own instruction.
    pub(super) fn new(processor: &ProcessorConfig) -> Self {
        let prompt = processor.default_transcription_prompt.as_deref();
        Self {
            prompt: prompt.unwrap_or(DEFAULT_PROMPT).to_owned(),
        }
    }
}

impl Transcriber for GlmAsrTranscriber {
    /// The model finds the language by itself: `language` changes nothing.
    fn prepare(
        &self,
        processor: &TextProcessor,
        audio: Arc<Media>,
        options: &TranscriptionOptions,
    ) -> Result<Prompt, EngineError> {
        options.without_hotwords()?;
        options.without_itn()?;
        let prompt = options.context.as_deref().filter(|text| !text.is_empty());
        let turn = Message::new("user")
            .with_media(audio.clone())
            .with_text(prompt.unwrap_or(&self.prompt));
        transcription_prompt(processor, &Chat::of(turn), audio, "")
    }

    fn transcript(&self, raw: &str, options: &TranscriptionOptions) -> Transcript {
        let asked = options.language.as_deref();
        Transcript {
            text: raw.trim().to_owned(),
            language: asked.and_then(language_name).map(str::to_owned),
        }
    }

    fn default_max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn piece_seconds(&self) -> f64 {
        PIECE_SECONDS
    }
}
