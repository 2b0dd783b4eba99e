//! Byte-pair encoding.
//!
//! It gives the ids that the library's model gives, which the tests compare. That one keeps its vocabulary three times, in hash
//! tables of strings: 27 MiB for Qwen3's 151 643 tokens, where the tables here take a fifth.

mod list;
mod merges;
#[cfg(test)]
mod tests;
mod word;

pub(super) use list::MergeList;
pub(super) use merges::Merge;

use super::coding::{ALPHABET_END, PieceCoding};
use super::pieces::Pieces;
use merges::Merges;

/// Where a character has no piece.
const NO_PIECE: u32 = u32::MAX;

/// What a vocabulary asks for besides merging.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BpeOptions {
    /// The text of the token for characters that have none.
    pub(super) unknown: Option<String>,
    /// Neighbouring unknown characters are one token.
    pub(super) fuse_unknown: bool,
    /// Characters without a token become the tokens `<0xNN>` of their bytes.
    pub(super) byte_fallback: bool,
    /// A word that is a token as a whole is taken without merging.
    pub(super) ignore_merges: bool,
    /// Written before every character but the first of a word.
    pub(super) prefix: String,
    /// Written after the last character of a word.
    pub(super) suffix: String,
}

/// Pieces and merges before it is known how pieces stand for bytes.
pub(super) struct BpeParts {
    pub(super) pieces: Pieces,
    pub(super) merges: Vec<Merge>,
    pub(super) options: BpeOptions,
}

/// A vocabulary whose pieces are made by joining neighbours.
pub(super) struct Bpe {
    pieces: Pieces,
    merges: Merges,
    options: BpeOptions,
    unknown: Option<u32>,
    /// Pieces of single characters, for those below [`ALPHABET_END`]: all that byte-level vocabularies need.
    characters: Vec<u32>,
    /// Pieces of bytes, where the vocabulary falls back to them.
    bytes: Option<Vec<Option<u32>>>,
}

impl Bpe {
    /// The vocabulary, whose pieces stand for bytes as `coding` says.
    pub(super) fn new(parts: BpeParts, coding: PieceCoding) -> Self {
        let pieces = parts.pieces.coded(coding);
        let options = parts.options;
        let characters = ('\0'..).take(ALPHABET_END).map(|character| {
            let id = pieces.id(character.encode_utf8(&mut [0; 4]));
            id.unwrap_or(NO_PIECE)
        });
        let byte = |byte| pieces.id(&format!("<0x{byte:02X}>"));
        Self {
            characters: characters.collect(),
            bytes: options
                .byte_fallback
                .then(|| (0..=u8::MAX).map(byte).collect()),
            unknown: options.unknown.as_ref().and_then(|text| pieces.id(text)),
            merges: Merges::new(parts.merges),
            pieces,
            options,
        }
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    pub(super) fn options(&self) -> &BpeOptions {
        &self.options
    }

    /// Pairs of pieces in the order in which they are joined.
    pub(super) fn merges(&self) -> impl Iterator<Item = Merge> {
        self.merges.iter()
    }

    /// Token ids of a word.
    pub(super) fn encode(&self, word: &str) -> Result<Vec<u32>, tokenizers::Error> {
        if self.options.ignore_merges
            && let Some(id) = self.pieces.id(word)
        {
            return Ok(vec![id]);
        }
        let mut ids = self.characters_of(word)?;
        word::merge(&mut ids, &self.merges);
        Ok(ids)
    }

    /// Token ids of the characters of a word.
    fn characters_of(&self, word: &str) -> Result<Vec<u32>, tokenizers::Error> {
        let mut ids = Vec::with_capacity(word.len());
        // Unknown characters wait for the next known one, as in the library: bytes come before them.
        let mut waiting = None;
        let affixed = !self.options.prefix.is_empty() || !self.options.suffix.is_empty();
        let mut written = String::new();
        for (at, character) in word.char_indices() {
            let end = at + character.len_utf8();
            let mut piece = &word[at..end];
            let id = if affixed {
                written.clear();
                if at > 0 {
                    written.push_str(&self.options.prefix);
                }
                written.push(character);
                if end == word.len() {
                    written.push_str(&self.options.suffix);
                }
                piece = &written;
                self.pieces.id(piece)
            } else {
                match self.characters.get(character as usize) {
                    Some(&id) => (id != NO_PIECE).then_some(id),
                    None => self.pieces.id(piece),
                }
            };
            if let Some(id) = id {
                ids.extend(waiting.take());
                ids.push(id);
            } else if !self.push_bytes(piece, &mut ids)
                && let Some(text) = &self.options.unknown
            {
                let unknown = self
                    .unknown
                    .ok_or_else(|| format!("the unknown token, `{text}`, is no token"))?;
                if !self.options.fuse_unknown {
                    ids.extend(waiting);
                }
                waiting = Some(unknown);
            }
        }
        ids.extend(waiting);
        Ok(ids)
    }

    /// Appends the tokens of the bytes of `piece`; false where one of them has none, or the vocabulary does not fall back to
    /// bytes.
    fn push_bytes(&self, piece: &str, ids: &mut Vec<u32>) -> bool {
        let Some(bytes) = &self.bytes else {
            return false;
        };
        let before = ids.len();
        ids.extend(piece.bytes().map_while(|byte| bytes[usize::from(byte)]));
        let complete = ids.len() - before == piece.len();
        if !complete {
            ids.truncate(before);
        }
        complete
    }
}
