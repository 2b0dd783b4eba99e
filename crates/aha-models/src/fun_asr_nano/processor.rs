//! Recordings on their way into Fun-ASR, and its prompts.

use super::config::{AdaptorConfig, FunAsrConfig};
use crate::audio::{fault, language_name, samples, transcription_prompt};
use crate::error::LoadError;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    AudioInput, Chat, EncoderContent, EncoderInput, EngineError, Media, MediaKind, MediaProcessor,
    Message, ProcessedMedia, Prompt, TextProcessor, Transcriber, Transcript, TranscriptionOptions,
};
use aha_media::audio::{Cmvn, FbankExtractor, ResampleMethod};
use std::sync::Arc;

/// Stands for sound in prompts. The reference has no such token; this one of Qwen3's is never in a transcript.
pub(super) const PLACEHOLDER: &str = "<|object_ref_start|>";
/// Longest recording of one prompt in seconds, whose frames all see each other. The reference has no limit, and hears
/// pieces of 30 s best.
const MAX_SECONDS: f64 = 300.0;
const PIECE_SECONDS: f64 = 60.0;
/// Most tokens of an answer in the reference.
const MAX_TOKENS: usize = 512;

/// The prompts that the model was trained with. A system turn that no message gives says what the reference says; a
/// turn's text stands before its recordings, and the plain instruction where it has none.
pub(super) const CHAT_TEMPLATE: &str = r#"{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- else -%}{{- '语音转写：' -}}{%- endfor -%}
{%- for part in message.content if part.type == 'audio' -%}{{- '<|object_ref_start|>' -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"#;

/// Front end and mark.
#[derive(Debug)]
pub struct FunAsrMedia {
    extractor: FbankExtractor,
    stack: usize,
    step: usize,
    cmvn: Option<Cmvn>,
    adaptor: AdaptorConfig,
    placeholder_id: u32,
}

impl FunAsrMedia {
    /// The front end of `config`, normalised by `cmvn`.
    pub(super) fn new(
        config: &FunAsrConfig,
        cmvn: Option<Cmvn>,
        tokenizer: &Tokenizer,
    ) -> Result<Self, LoadError> {
        let front = &config.frontend_conf;
        let placeholder_id = tokenizer.token_id(PLACEHOLDER).ok_or_else(|| {
            let reason = format!("the tokenizer has no {PLACEHOLDER}, so it is not Qwen3's");
            LoadError::config("llm_conf.init_param_path", reason)
        })?;
        Ok(Self {
            extractor: front.extractor()?,
            stack: front.lfr_m,
            step: front.lfr_n,
            cmvn,
            adaptor: config.audio_adaptor_conf.clone(),
            placeholder_id,
        })
    }
}

impl MediaProcessor for FunAsrMedia {
    fn mark(&self, kind: MediaKind) -> Option<&str> {
        (kind == MediaKind::Audio).then_some(PLACEHOLDER)
    }

    fn placeholder_tokens(&self) -> &[u32] {
        std::slice::from_ref(&self.placeholder_id)
    }

    fn audio_input(&self) -> AudioInput {
        AudioInput {
            sample_rate: self.extractor.config().sample_rate,
            resampling: ResampleMethod::Torchaudio,
            max_seconds: MAX_SECONDS,
        }
    }

    fn process(&self, media: &Media) -> Result<ProcessedMedia, EngineError> {
        let heard = samples(media, &self.audio_input())?;
        let banks = self.extractor.extract(&heard).map_err(fault)?;
        let mut features = banks.low_frame_rate(self.stack, self.step);
        if let Some(cmvn) = &self.cmvn {
            cmvn.apply(&mut features).map_err(fault)?;
        }
        let num_tokens = self.adaptor.tokens(features.frames);
        Ok(ProcessedMedia {
            text: PLACEHOLDER.repeat(num_tokens),
            inputs: vec![EncoderInput {
                grid: [1, 1, features.frames],
                content: EncoderContent::Features {
                    shape: vec![features.frames, features.width],
                    values: features.data,
                },
                step_seconds: 0.0,
                num_tokens,
                hash: media.hash(),
            }],
        })
    }
}

/// Prompts with hotwords, language and the writing of numbers.
#[derive(Debug)]
pub struct FunAsrTranscriber;

/// The Chinese name of a language that a request names, or what it says as it is.
fn chinese_name(asked: &str) -> &str {
    match language_name(asked) {
        Some("Chinese") => "中文",
        Some("English") => "英文",
        Some("Japanese") => "日文",
        Some("Korean") => "韩文",
        Some("Cantonese") => "粤语",
        _ => asked,
    }
}

/// The instruction of a request, as the model was trained with it.
fn instruction(options: &TranscriptionOptions) -> String {
    let mut text = String::new();
    // Any text that helps goes where the hotwords do: the model knows no other place.
    let context = options.context.as_deref().filter(|text| !text.is_empty());
    let words: Vec<&str> = context
        .into_iter()
        .chain(options.hotwords.iter().map(String::as_str))
        .collect();
    if !words.is_empty() {
        text += "请结合上下文信息，更加准确地完成语音转写任务。如果没有相关信息，我们会留空。\n\n\n**上下文信息：**\n\n\n";
        text += &format!("热词列表：[{}]\n", words.join(", "));
    }
    text += "语音转写";
    if let Some(language) = &options.language {
        text += &format!("成{}", chinese_name(language));
    }
    if options.itn == Some(false) {
        text += "，不进行文本规整";
    }
    text + "："
}

impl Transcriber for FunAsrTranscriber {
    fn prepare(
        &self,
        processor: &TextProcessor,
        audio: Arc<Media>,
        options: &TranscriptionOptions,
    ) -> Result<Prompt, EngineError> {
        let turn = Message::text("user", instruction(options)).with_media(audio.clone());
        transcription_prompt(processor, &Chat::of(turn), audio, "")
    }

    /// `/sil` is what the model writes for a pause.
    fn transcript(&self, raw: &str, options: &TranscriptionOptions) -> Transcript {
        let mut text = String::with_capacity(raw.len());
        for character in raw.replace("/sil", " ").chars() {
            if !character.is_whitespace() {
                text.push(character);
            } else if !text.ends_with(' ') {
                text.push(' ');
            }
        }
        let asked = options.language.as_deref();
        Transcript {
            text,
            language: asked.map(|asked| language_name(asked).unwrap_or(asked).to_owned()),
        }
    }

    fn default_max_tokens(&self) -> usize {
        MAX_TOKENS
    }

    fn piece_seconds(&self) -> f64 {
        PIECE_SECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_those_of_the_release() {
        let options = TranscriptionOptions::default();
        assert_eq!(instruction(&options), "语音转写：");
        let options = TranscriptionOptions {
            language: Some("English".to_owned()),
            hotwords: vec!["开放时间".to_owned(), "Qwen".to_owned()],
            itn: Some(false),
            ..TranscriptionOptions::default()
        };
        let text = instruction(&options);
        assert!(text.starts_with("请结合上下文信息"), "{text}");
        assert!(
            text.ends_with("热词列表：[开放时间, Qwen]\n语音转写成英文，不进行文本规整："),
            "{text}"
        );
        let other = TranscriptionOptions {
            language: Some("闽南语".to_owned()),
            itn: Some(true),
            ..TranscriptionOptions::default()
        };
        assert_eq!(instruction(&other), "语音转写成闽南语：");
    }

    #[test]
    fn pauses_and_white_space_become_one_space() {
        let transcript =
            FunAsrTranscriber.transcript("你好/sil 世界\n\n a", &TranscriptionOptions::default());
        assert_eq!(transcript.text, "你好 世界 a");
    }
}
