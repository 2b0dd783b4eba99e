//! Text to the ids that VoxCPM reads: pieces of the tokenizer, Chinese words taken apart into characters.

use aha_engine::tokenizer::Tokenizer;
use aha_engine::{EngineError, SpeechProcessor, SpeechPrompt};
use std::collections::HashMap;

use crate::error::LoadError;

/// What a space is in the vocabulary's writing.
const SPACE: char = '\u{2581}';
const UNKNOWN: &str = "<unk>";
/// Stands between the text and the sound.
const AUDIO_START: &str = "<|audio_start|>";

/// See the module.
#[derive(Debug)]
pub struct VoxCpmProcessor {
    tokenizer: Tokenizer,
    audio_start: u32,
    /// Ids of the characters of every piece that is a word of Chinese characters alone, with or without a space.
    characters: HashMap<u32, Vec<u32>>,
}

impl VoxCpmProcessor {
    /// For a tokenizer whose vocabulary knows the start of sound.
    pub fn new(tokenizer: Tokenizer) -> Result<Self, LoadError> {
        let missing = |token: &str| {
            LoadError::config(
                "tokenizer.json",
                format!("`{token}` is missing: these are not the files of a VoxCPM release"),
            )
        };
        let audio_start = tokenizer
            .token_id(AUDIO_START)
            .ok_or_else(|| missing(AUDIO_START))?;
        let unknown = tokenizer
            .token_id(UNKNOWN)
            .ok_or_else(|| missing(UNKNOWN))?;
        let mut characters = HashMap::new();
        for id in 0..tokenizer.vocab_size() as u32 {
            let Some(piece) = tokenizer.token_text(id) else {
                continue;
            };
            let word: String = piece
                .chars()
                .filter(|character| *character != SPACE)
                .collect();
            let is_word = word.chars().count() > 1
                && word.chars().all(|character| ('\u{4E00}'..='\u{9FFF}').contains(&character))
                // Only words that are pieces themselves are taken apart.
                && tokenizer.token_id(&word).is_some();
            if is_word {
                let ids = word.chars().map(|character| {
                    tokenizer
                        .token_id(character.encode_utf8(&mut [0; 4]))
                        .unwrap_or(unknown)
                });
                characters.insert(id, ids.collect());
            }
        }
        Ok(Self {
            tokenizer,
            audio_start,
            characters,
        })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let ids = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| EngineError::invalid("input", error.to_string()))?;
        let mut split = Vec::with_capacity(ids.len());
        for id in ids {
            match self.characters.get(&id) {
                Some(characters) => split.extend(characters),
                None => split.push(id),
            }
        }
        Ok(split)
    }
}

impl SpeechProcessor for VoxCpmProcessor {
    fn prompt(&self, reference: Option<&str>, text: &str) -> Result<SpeechPrompt, EngineError> {
        if !text.chars().any(char::is_alphanumeric) {
            return Err(EngineError::invalid(
                "input",
                "`input` has neither letters nor digits: there is nothing to say",
            ));
        }
        let text = single_spaces(text);
        let target_tokens = self.encode(&text)?.len();
        // One text: what comes after the reference's words goes on in their sentence.
        let mut token_ids = match reference {
            Some(reference) => self.encode(&format!("{reference}{text}"))?,
            None => self.encode(&text)?,
        };
        token_ids.push(self.audio_start);
        Ok(SpeechPrompt {
            token_ids,
            target_tokens,
        })
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

/// Every run of white space becomes one space, also at the ends.
fn single_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_space = false;
    for character in text.chars() {
        // Python's `\s` takes the separators of files and records for white space, too.
        let space = character.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&character);
        if !space {
            out.push(character);
        } else if !in_space {
            out.push(' ');
        }
        in_space = space;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_white_space_become_one_space() {
        assert_eq!(single_spaces("  a\n\n b\u{3000}\tc\u{1F}"), " a b c ");
    }
}
