//! Speech to text: what stands between a recording and its transcript.
//!
//! A recogniser is a text generator that takes recordings. Its [`Transcriber`] writes the prompt of one recording (or
//! of one piece of a long one) and reads the transcript out of the answer; the pieces of one recording are requests
//! like any others, so the engine decodes them together.

use crate::error::EngineError;
use crate::media::Media;
use crate::processor::TextProcessor;
use crate::request::Prompt;
use aha_media::audio::ResampleMethod;
use std::fmt;
use std::sync::Arc;

/// How a model hears.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AudioInput {
    /// Samples a second, of one channel.
    pub sample_rate: u32,
    /// How other rates become this one.
    pub resampling: ResampleMethod,
    /// Longest recording of one prompt, in seconds.
    pub max_seconds: f64,
}

impl AudioInput {
    /// Speech models' usual 16 kHz, up to half an hour.
    pub const SPEECH: Self = Self {
        sample_rate: 16_000,
        resampling: ResampleMethod::SoxrHq,
        max_seconds: 1800.0,
    };
}

/// What a request says about a recording. Models know different ones of these; a [`Transcriber`] refuses those that
/// its model does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TranscriptionOptions {
    /// Name or code of the spoken language (`language`).
    pub language: Option<String>,
    /// Text that helps: names, terms, what was said before, or an instruction (`prompt`).
    pub context: Option<String>,
    /// Words that are likely to be said (`hotwords`).
    pub hotwords: Vec<String>,
    /// Whether numbers, dates and the like are written as in print (`itn`).
    pub itn: Option<bool>,
}

impl TranscriptionOptions {
    /// Refuses `hotwords`, for models that were not trained for them.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] naming the field.
    pub fn without_hotwords(&self) -> Result<(), EngineError> {
        if self.hotwords.is_empty() {
            return Ok(());
        }
        Err(EngineError::invalid(
            "hotwords",
            "this model takes no hotwords: write them into `prompt`",
        ))
    }

    /// Refuses `itn`, for models that have no such switch.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] naming the field.
    pub fn without_itn(&self) -> Result<(), EngineError> {
        if self.itn.is_none() {
            return Ok(());
        }
        Err(EngineError::invalid(
            "itn",
            "this model cannot switch the writing of numbers: leave `itn` out",
        ))
    }
}

/// What was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transcript {
    /// The words.
    pub text: String,
    /// Name of the language, where the request or the model names it; of several they are joined by commas.
    pub language: Option<String>,
}

impl Transcript {
    /// The transcript of a whole recording from those of its pieces, in order.
    pub fn join<'a>(pieces: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut text = String::new();
        let mut languages: Vec<&str> = Vec::new();
        for piece in pieces {
            if needs_space(&text, &piece.text) {
                text.push(' ');
            }
            text.push_str(&piece.text);
            let language = piece.language.as_deref().filter(|name| !name.is_empty());
            // Only repeats side by side are dropped: a change and a change back are two changes.
            if let Some(language) = language
                && languages.last() != Some(&language)
            {
                languages.push(language);
            }
        }
        Self {
            text,
            language: (!languages.is_empty()).then(|| languages.join(",")),
        }
    }
}

/// Whether the end of one piece and the beginning of the next would run together.
pub(crate) fn needs_space(before: &str, after: &str) -> bool {
    match (before.chars().next_back(), after.chars().next()) {
        (Some(last), Some(first)) => {
            !(last.is_whitespace()
                || first.is_whitespace()
                || is_written_without_spaces(last)
                || is_written_without_spaces(first))
        }
        _ => false,
    }
}

/// Characters of scripts that put no spaces between words, with their punctuation.
fn is_written_without_spaces(c: char) -> bool {
    matches!(c,
        '\u{0E00}'..='\u{0EFF}' // Thai, Lao
        | '\u{1000}'..='\u{109F}' // Burmese
        | '\u{1780}'..='\u{17FF}' // Khmer
        | '\u{2E80}'..='\u{31FF}' // radicals, punctuation, kana
        | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}'
        | '\u{FF00}'..='\u{FFEF}' // full width
        | '\u{20000}'..='\u{3FFFF}')
}

/// A recogniser's way from recordings to prompts and from answers to transcripts. Works without a device or a lock.
pub trait Transcriber: fmt::Debug + Send + Sync {
    /// The prompt of one recording, or of one piece of a long one.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] naming the option that the model does not take (an unknown language, hotwords),
    /// or what is wrong with the recording.
    fn prepare(
        &self,
        processor: &TextProcessor,
        audio: Arc<Media>,
        options: &TranscriptionOptions,
    ) -> Result<Prompt, EngineError>;

    /// What a whole answer, decoded without special tokens, says.
    fn transcript(&self, raw: &str, options: &TranscriptionOptions) -> Transcript;

    /// The part of an unfinished answer that is text already, for streaming: it only grows while the answer does.
    /// The final [`transcript`](Self::transcript) may differ in details (trimmed, repetitions mended).
    fn text_so_far<'a>(&self, raw: &'a str, options: &TranscriptionOptions) -> &'a str {
        let _ = options;
        raw
    }

    /// Tokens that an answer may have where the request does not say.
    fn default_max_tokens(&self) -> usize;

    /// Longest piece of a long recording, in seconds: what the model hears well in one prompt, at most
    /// [`AudioInput::max_seconds`].
    fn piece_seconds(&self) -> f64;

    /// Names of the languages that a request may choose; empty where any text or none will do.
    fn languages(&self) -> &[&str] {
        &[]
    }

    /// Whether the model can write English for speech in other languages.
    fn can_translate(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, language: &str) -> Transcript {
        Transcript {
            text: text.to_owned(),
            language: Some(language.to_owned()),
        }
    }

    #[test]
    fn pieces_join_as_their_script_is_written() {
        let joined = |texts: [&str; 2]| Transcript::join(&texts.map(|text| piece(text, ""))).text;
        assert_eq!(joined(["Hello there.", "General"]), "Hello there. General");
        assert_eq!(joined(["你好", "世界"]), "你好世界");
        assert_eq!(joined(["你好。", "World"]), "你好。World");
        assert_eq!(joined(["", "World"]), "World");
        assert_eq!(joined(["a ", "b"]), "a b");
        assert_eq!(joined(["안녕", "하세요"]), "안녕 하세요");
    }

    #[test]
    fn languages_are_joined_without_repeats_side_by_side() {
        let merged = |names: &[&str]| {
            let pieces: Vec<Transcript> = names.iter().map(|name| piece("x", name)).collect();
            Transcript::join(&pieces).language
        };
        // Qwen3-ASR's package gives the same.
        for (names, expected) in [
            (
                &["Chinese", "English", "English"][..],
                Some("Chinese,English"),
            ),
            (&["", "Chinese", "", "Chinese"], Some("Chinese")),
            (&[], None),
            (&["A", "B", "A"], Some("A,B,A")),
        ] {
            assert_eq!(merged(names).as_deref(), expected);
        }
    }
}
