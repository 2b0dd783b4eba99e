//! Token ids to text, one token at a time.

use crate::tokenizer::Tokenizer;
use std::sync::Arc;

/// Turns a stream of tokens into text. Characters whose bytes are spread over several tokens come out whole; bytes
/// that can no longer become UTF-8 come out as U+FFFD. All pieces and [`Self::flush`] together are exactly
/// [`Tokenizer::decode`] of the whole sequence.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    kept: Vec<u32>,
    /// Still at the first byte of a text whose first space is the vocabulary's own.
    strip_space: bool,
    utf8: Utf8Stream,
}

impl Detokenizer {
    /// A detokenizer at the beginning of a text. With `skip_special` control tokens give no text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let strip_space = tokenizer.strips_leading_space();
        Self {
            tokenizer,
            skip_special,
            kept: Vec::new(),
            strip_space,
            utf8: Utf8Stream::default(),
        }
    }

    /// Keeps the first space, for an answer that goes on where a text stopped.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.strip_space = false;
        self
    }

    /// Keeps these control tokens in the text even with `skip_special`, for a parser that looks for them.
    #[must_use]
    pub fn keeping(mut self, tokens: Vec<u32>) -> Self {
        self.kept = tokens;
        self
    }

    /// Takes the next token and gives the text that became final with it, possibly none.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        if self.skip_special && self.tokenizer.is_special(id) && !self.kept.contains(&id) {
            return text;
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        if self.strip_space && !bytes.is_empty() {
            self.strip_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.utf8.push(bytes, &mut text);
        text
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn flush(&mut self) -> String {
        self.utf8.finish()
    }
}

/// `String::from_utf8_lossy` for bytes that arrive in pieces.
#[derive(Debug, Default)]
struct Utf8Stream {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, bytes: &[u8], text: &mut String) {
        if bytes.is_empty() {
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match error.error_len() {
                        // The end of the input may be the beginning of a character.
                        None => break,
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = after.get(length..).unwrap_or_default();
                        }
                    }
                }
            }
        }
        let held = rest.len();
        self.pending.drain(..self.pending.len() - held);
    }

    fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng, SeedableRng};
    use std::path::Path;

    fn random(seed: u64) -> impl FnMut(usize) -> usize {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        move |bound| (rng.next_u64() % bound as u64) as usize
    }

    #[test]
    fn stream_equals_lossy_conversion_of_random_bytes() {
        let mut below = random(1);
        // Bytes that begin, continue and break characters of every length.
        let alphabet = [
            0x41, 0xC3, 0xA9, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x99, 0x82, 0xED, 0xA0, 0x80, 0xFF,
            0xF4, 0x90,
        ];
        for _ in 0..3000 {
            let bytes: Vec<u8> = (0..below(12))
                .map(|_| alphabet[below(alphabet.len())])
                .collect();
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(1 + below(rest.len()));
                stream.push(piece, &mut text);
                assert!(stream.pending.len() <= 3);
                rest = after;
            }
            text.push_str(&stream.finish());
            assert_eq!(text, String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn pieces_equal_the_whole_on_random_tokens() {
        let folder = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/qwen3/sharded"
        ));
        let tokenizer = Arc::new(Tokenizer::from_folder(folder).unwrap());
        let mut below = random(2);
        for round in 0..300 {
            let ids: Vec<u32> = (0..below(40))
                .map(|_| below(tokenizer.vocab_size() + 4) as u32)
                .collect();
            let skip = round % 2 == 0;
            let mut stream = Detokenizer::new(tokenizer.clone(), skip);
            let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
            text.push_str(&stream.flush());
            assert_eq!(text, tokenizer.decode(&ids, skip));
            assert_eq!(
                text,
                tokenizer.inner_decode(&ids, skip),
                "the library decodes otherwise"
            );
        }
    }

    #[test]
    fn pieces_of_a_sentencepiece_vocabulary_equal_the_whole() {
        let folder = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/minicpm4/tied-short"
        ));
        let tokenizer = Arc::new(Tokenizer::from_folder(folder).unwrap());
        let stream_of = |ids: &[u32], skip| {
            let mut stream = Detokenizer::new(tokenizer.clone(), skip);
            let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
            text.push_str(&stream.flush());
            text
        };
        let mut below = random(3);
        for round in 0..300 {
            // Byte tokens, spaces at the beginning, control tokens, ids without a token.
            let ids: Vec<u32> = (0..below(40))
                .map(|_| below(tokenizer.vocab_size() + 4) as u32)
                .collect();
            let skip = round % 2 == 0;
            assert_eq!(stream_of(&ids, skip), tokenizer.decode(&ids, skip));
        }
        for text in ["naïve 你好 🙂👩‍🚀 river", "  two  spaces ", "\n\tx", " ", ""] {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(stream_of(&ids, true), text);
            assert_eq!(tokenizer.inner_decode(&ids, true), text);
        }
    }

    #[test]
    fn characters_over_several_tokens_come_out_whole() {
        let folder = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/llama/smol"
        ));
        let tokenizer = Arc::new(Tokenizer::from_folder(folder).unwrap());
        let text = "naïve 你好 🙂👩‍🚀";
        let ids = tokenizer.encode(text, false).unwrap();
        let mut stream = Detokenizer::new(tokenizer.clone(), true);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        assert!(
            pieces.iter().all(|piece| !piece.contains('\u{FFFD}')),
            "{pieces:?}"
        );
        assert!(pieces.iter().any(String::is_empty));
        assert_eq!(pieces.concat(), text);
        assert_eq!(stream.flush(), "");
    }

    #[test]
    fn special_tokens_are_skipped_unless_kept() {
        let folder = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/qwen3/sharded"
        ));
        let tokenizer = Arc::new(Tokenizer::from_folder(folder).unwrap());
        let end = tokenizer.token_id("<|im_end|>").unwrap();
        let think = tokenizer.token_id("<think>").unwrap();
        assert_eq!(Detokenizer::new(tokenizer.clone(), true).push(end), "");
        assert_eq!(
            Detokenizer::new(tokenizer.clone(), false).push(end),
            "<|im_end|>"
        );
        assert_eq!(
            Detokenizer::new(tokenizer.clone(), true)
                .keeping(vec![end])
                .push(end),
            "<|im_end|>"
        );
        assert_eq!(Detokenizer::new(tokenizer, true).push(think), "<think>");
    }
}
