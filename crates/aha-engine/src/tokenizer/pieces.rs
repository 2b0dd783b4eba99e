//! The pieces of a vocabulary, each kept once.

use super::coding::PieceCoding;
use super::slots::Slots;
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use thiserror::Error;

/// Why pieces and merges are no vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum VocabularyError {
    #[error("`{0}` is in the vocabulary twice")]
    RepeatedText(String),
    #[error("two tokens have the id {0}")]
    RepeatedId(u32),
    #[error("the largest token id is {largest}, but there are only {count} tokens")]
    SparseIds { largest: u32, count: usize },
    #[error("the texts of its tokens have more than 2 GiB")]
    TooLong,
    #[error("the merge of `{left}` and `{right}` needs `{missing}`, which is no token")]
    MergeOfNoTokens {
        left: String,
        right: String,
        missing: String,
    },
    #[error("merge {number}, `{merge}`, is not a pair")]
    NoPair { number: usize, merge: String },
}

/// No coding makes more than 4 GiB of this, so positions are numbers of 32 bits.
const MAX_TEXT_BYTES: usize = 1 << 31;

/// Ids and texts in the order of a file.
#[derive(Default)]
pub(super) struct PieceList {
    texts: String,
    entries: Vec<Entry>,
}

struct Entry {
    id: u32,
    start: u32,
    end: u32,
}

impl PieceList {
    pub(super) fn push(&mut self, id: u32, text: &str) -> Result<(), VocabularyError> {
        let start = self.texts.len() as u32;
        if self.texts.len() + text.len() > MAX_TEXT_BYTES {
            return Err(VocabularyError::TooLong);
        }
        self.texts.push_str(text);
        let end = self.texts.len() as u32;
        self.entries.push(Entry { id, start, end });
        Ok(())
    }
}

/// The pieces of a vocabulary: bytes and texts by id, ids by text.
pub(super) struct Pieces {
    arena: Arena,
    index: Slots,
    hasher: RandomState,
    count: usize,
}

impl Pieces {
    /// Pieces that stand for their own texts.
    pub(super) fn new(mut list: PieceList) -> Result<Self, VocabularyError> {
        list.entries.sort_unstable_by_key(|entry| entry.id);
        let count = list.entries.len();
        let largest = list.entries.last().map_or(0, |entry| entry.id);
        // Ids come from the file: a lone huge one must not size the table.
        if largest as usize > 4 * count + 65_536 {
            return Err(VocabularyError::SparseIds { largest, count });
        }
        let hasher = RandomState::new();
        let mut index = Slots::new(count, largest);
        let mut arena = Arena::new(PieceCoding::Plain, list.texts.len(), largest as usize + 1);
        for entry in &list.entries {
            let text = &list.texts[entry.start as usize..entry.end as usize];
            if arena.ends.len() > entry.id as usize {
                return Err(VocabularyError::RepeatedId(entry.id));
            }
            arena.push(entry.id, text);
            let same = |other| arena.is(other, text);
            if index
                .insert(hasher.hash_one(text), entry.id, same)
                .is_some()
            {
                return Err(VocabularyError::RepeatedText(text.to_owned()));
            }
        }
        Ok(Self {
            arena,
            index,
            hasher,
            count,
        })
    }

    /// The same pieces, standing for bytes in this way.
    pub(super) fn coded(mut self, coding: PieceCoding) -> Self {
        let plain = self.arena;
        let mut arena = Arena::new(coding, plain.bytes.len(), plain.ends.len());
        for id in 0..plain.ends.len() as u32 {
            if let Some(text) = plain.text(id) {
                arena.push(id, &text);
            }
        }
        arena.bytes.shrink_to_fit();
        self.arena = arena;
        self
    }

    /// The id of the piece with exactly this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.index.find(hash, |id| self.arena.is(id, text))
    }

    /// The text of a piece, as the vocabulary writes it.
    pub(super) fn text(&self, id: u32) -> Option<Cow<'_, str>> {
        self.arena.text(id)
    }

    /// The bytes that a piece stands for.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.arena.bytes(id)
    }

    /// How the pieces stand for bytes.
    pub(super) fn coding(&self) -> PieceCoding {
        self.arena.coding
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.arena.ends.len()
    }

    /// How many pieces there are, which is less than [`Self::len`] where ids have none.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// The bytes of all pieces, end to end. Texts are made of them, which can be done for all but a few pieces.
struct Arena {
    coding: PieceCoding,
    bytes: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they begin where those of `id - 1` end.
    ends: Vec<u32>,
    /// Texts that their bytes do not tell, and those of pieces without bytes, which no other id has.
    irregular: HashMap<u32, Box<str>>,
}

impl Arena {
    fn new(coding: PieceCoding, bytes: usize, ids: usize) -> Self {
        Self {
            coding,
            bytes: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(ids),
            irregular: HashMap::new(),
        }
    }

    /// Puts a piece behind those with smaller ids.
    fn push(&mut self, id: u32, text: &str) {
        let start = self.bytes.len();
        self.ends.resize(id as usize, start as u32);
        self.coding.push_bytes(text, &mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
        let bytes = &self.bytes[start..];
        if bytes.is_empty() || !self.coding.is_text(text, bytes) {
            self.irregular.insert(id, text.into());
        }
    }

    fn is(&self, id: u32, text: &str) -> bool {
        match self.irregular.get(&id) {
            Some(own) => **own == *text,
            None => self.coding.is_text(text, self.span(id)),
        }
    }

    fn text(&self, id: u32) -> Option<Cow<'_, str>> {
        match self.irregular.get(&id) {
            Some(text) => Some(Cow::Borrowed(text)),
            None => self.bytes(id).map(|bytes| self.coding.text(bytes)),
        }
    }

    fn bytes(&self, id: u32) -> Option<&[u8]> {
        let bytes = self.span(id);
        let present = !bytes.is_empty() || self.irregular.contains_key(&id);
        present.then_some(bytes)
    }

    fn span(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u32, &str)]) -> PieceList {
        let mut list = PieceList::default();
        for (id, text) in entries {
            list.push(*id, text).unwrap();
        }
        list
    }

    #[test]
    fn pieces_are_found_by_text_and_by_id() {
        let texts = [
            (7, "Ġhi"),
            (2, "a b"),
            (0, ""),
            (3, "你"),
            (9, "<0x41>"),
            (4, "A"),
            (5, "▁hi"),
            (12, "##ing"),
            (11, " hi"),
        ];
        for coding in [
            PieceCoding::Plain,
            PieceCoding::ByteLevel,
            PieceCoding::Metaspace,
            PieceCoding::WordPiece,
        ] {
            let pieces = Pieces::new(list(&texts)).unwrap().coded(coding);
            assert_eq!((pieces.len(), pieces.count()), (13, texts.len()));
            for id in 0..15 {
                let expected = texts.iter().find(|entry| entry.0 == id);
                let bytes = expected.map(|(_, text)| {
                    let mut bytes = Vec::new();
                    coding.push_bytes(text, &mut bytes);
                    bytes
                });
                assert_eq!(pieces.text(id).as_deref(), expected.map(|entry| entry.1));
                assert_eq!(pieces.bytes(id), bytes.as_deref(), "{coding:?} {id}");
            }
            for (id, text) in texts {
                assert_eq!(pieces.id(text), Some(id), "{coding:?} {text}");
            }
            for text in ["hi", "  hi", "ing", "<0x42>", "Ġ", "a", "ab", "▁"] {
                assert_eq!(pieces.id(text), None, "{coding:?} {text}");
            }
            assert_eq!(pieces.text(u32::MAX), None);
        }
    }

    #[test]
    fn contradictions_are_named() {
        let error = |entries: &[(u32, &str)]| Pieces::new(list(entries)).err();
        assert_eq!(
            error(&[(1, "a"), (2, "b"), (1, "c")]),
            Some(VocabularyError::RepeatedId(1))
        );
        assert_eq!(
            error(&[(1, "a"), (2, "b"), (3, "a")]),
            Some(VocabularyError::RepeatedText("a".to_owned()))
        );
        let huge = [u32::MAX, 4_000_000_000, 70_000];
        for largest in huge {
            assert_eq!(
                error(&[(0, "a"), (largest, "b")]),
                Some(VocabularyError::SparseIds { largest, count: 2 })
            );
        }
        assert_eq!(error(&[]), None);
    }
}
