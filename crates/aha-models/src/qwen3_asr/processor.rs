//! Recordings on their way into Qwen3-ASR, and transcripts out of its answers.

use super::answer;
use super::config::{Chunking, Qwen3AsrConfig};
use crate::audio::{
    FeatureExtractorConfig, fault, language_name, language_names, samples, transcription_prompt,
};
use crate::error::LoadError;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    AudioInput, Chat, ContentHash, EncoderContent, EncoderInput, EngineError, Media, MediaKind,
    MediaProcessor, Message, ProcessedMedia, Prompt, TextProcessor, Transcriber, Transcript,
    TranscriptionOptions,
};
use aha_media::audio::{LogMel, LogMelExtractor, MelPadding, ResampleMethod, normalize_peak};
use std::sync::Arc;

/// Longest recording that the release takes in one prompt.
const MAX_SECONDS: f64 = 1200.0;
/// How far behind that the cut of a longer one may lie.
const CUT_SEARCH_SECONDS: f64 = 5.0;
/// Most tokens of an answer in the release's serving backend.
const MAX_TOKENS: usize = 4096;

/// Front end and marks.
#[derive(Debug)]
pub struct Qwen3AsrMedia {
    extractor: LogMelExtractor,
    chunking: Chunking,
    pad: String,
    pad_id: u32,
}

impl Qwen3AsrMedia {
    /// The front end of `preprocessor`, for the encoder of `config`.
    pub(super) fn new(
        config: &Qwen3AsrConfig,
        preprocessor: &FeatureExtractorConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Self, LoadError> {
        let thinker = &config.thinker_config;
        let pad_id = thinker.audio_token_id;
        Ok(Self {
            extractor: preprocessor
                .extractor(thinker.audio_config.num_mel_bins, MelPadding::None)?,
            chunking: thinker.audio_config.chunking(),
            pad: crate::text::token_text(tokenizer, pad_id, "thinker_config.audio_token_id")?,
            pad_id,
        })
    }
}

impl MediaProcessor for Qwen3AsrMedia {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Audio).then_some(self.pad.as_str())
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.pad_id)
    }

    fn audio_input(&self) -> AudioInput {
        AudioInput {
            sample_rate: self.extractor.config().sample_rate,
            resampling: ResampleMethod::SoxrHq,
            max_seconds: MAX_SECONDS + CUT_SEARCH_SECONDS,
        }
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let mut heard = samples(media, &self.audio_input())?.into_owned();
        normalize_peak(&mut heard);
        let mel = self.extractor.extract(&heard).map_err(fault)?;
        // Windows do not see each other, so each is an input of its own: a step of the engine encodes no more of a long
        // recording than it computes.
        let inputs: Vec<EncoderInput> = (0..mel.frames)
            .step_by(self.chunking.window_frames())
            .enumerate()
            .map(|(index, start)| self.window(&mel, start, ContentHash::of((media.hash(), index))))
            .collect();
        let num_tokens = inputs.iter().map(|input| input.num_tokens).sum();
        Ok(ProcessedMedia {
            text: self.pad.repeat(num_tokens),
            inputs,
        })
    }
}

impl Qwen3AsrMedia {
    /// The frames of the window that begins at `start`.
    fn window(&self, mel: &LogMel, start: usize, hash: ContentHash) -> EncoderInput {
        let frames = self.chunking.window_frames().min(mel.frames - start);
        let rows = mel.data.chunks_exact(mel.frames);
        EncoderInput {
            content: EncoderContent::Features {
                values: rows
                    .flat_map(|row| &row[start..start + frames])
                    .copied()
                    .collect(),
                shape: vec![mel.bins, frames],
            },
            grid: [1, 1, frames],
            step_seconds: 0.0,
            num_tokens: self.chunking.tokens(frames),
            hash,
        }
    }
}

/// Prompts with context and language, answers that open with `language …<asr_text>`.
#[derive(Debug)]
pub struct Qwen3AsrTranscriber {
    languages: Vec<&'static str>,
}

impl Qwen3AsrTranscriber {
    /// For the languages of `support_languages`; all known ones where the key is missing.
    pub(super) fn new(config: &Qwen3AsrConfig) -> Self {
        let own = &config.support_languages;
        let languages = language_names()
            .filter(|name| own.is_empty() || own.iter().any(|own| own == name))
            .collect();
        Self { languages }
    }

    /// The name of the language that a request chooses.
    fn language(
        &self,
        options: &TranscriptionOptions,
    ) -> Result<Option<&'static str>, EngineError> {
        let Some(asked) = &options.language else {
            return Ok(None);
        };
        match language_name(asked).filter(|name| self.languages.contains(name)) {
            Some(name) => Ok(Some(name)),
            None => Err(EngineError::invalid(
                "language",
                format!(
                    "{asked:?} is no language of this model: leave it out, or use one of {} or its code",
                    self.languages.join(", ")
                ),
            )),
        }
    }
}

impl Transcriber for Qwen3AsrTranscriber {
    fn prepare(
        &self,
        processor: &TextProcessor,
        audio: Arc<Media>,
        options: &TranscriptionOptions,
    ) -> Result<Prompt, EngineError> {
        options.without_itn()?;
        let opening = match self.language(options)? {
            Some(name) => format!("language {name}{}", answer::TEXT_TAG),
            None => String::new(),
        };
        // The model was trained with names and terms as free text in the system turn.
        let hotwords = (!options.hotwords.is_empty()).then(|| options.hotwords.join(", "));
        let context: Vec<&str> = [options.context.as_deref(), hotwords.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        let chat = Chat {
            messages: vec![
                Message::text("system", context.join("\n")),
                Message::new("user").with_media(audio.clone()),
            ],
            ..Chat::default()
        };
        transcription_prompt(processor, &chat, audio, &opening)
    }

    fn transcript(&self, raw: &str, options: &TranscriptionOptions) -> Transcript {
        let forced = self.language(options).ok().flatten();
        answer::parse(raw, forced)
    }

    fn text_so_far<'a>(&self, raw: &'a str, options: &TranscriptionOptions) -> &'a str {
        match options.language {
            Some(_) => raw,
            // Until the tag comes it may be the language's name that is being written.
            None => raw
                .split_once(answer::TEXT_TAG)
                .map_or("", |(_, text)| text),
        }
    }

    fn default_max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn piece_seconds(&self) -> f64 {
        MAX_SECONDS
    }

    fn languages(&self) -> &[&str] {
        &self.languages
    }
}
