//! The bytes and the kind of every token, in one contiguous table.

use std::collections::HashMap;

/// How the text of a vocabulary entry stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceCoding {
    /// One printable character a byte (GPT-2).
    ByteLevel,
    /// `▁` is a space and `<0xNN>` a byte (sentencepiece).
    Metaspace,
    /// `##` continues a word, anything else begins one after a space (BERT).
    WordPiece,
    /// The text itself.
    Plain,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// No token has this id.
    Absent,
    /// An entry of the vocabulary.
    Piece,
    /// Added as a whole text, but part of the visible text.
    Added,
    /// A control token.
    Special,
}

/// Bytes and kind by token id.
#[derive(Debug)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// `ends[id]` is where the bytes of `id` end; they begin where those of `id - 1` end.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
}

impl TokenTable {
    /// `entries` must be sorted by id; ids between them become absent.
    pub(super) fn new<'a>(
        entries: impl Iterator<Item = (u32, &'a str, TokenKind)>,
        coding: PieceCoding,
    ) -> Self {
        let byte_of_char = byte_of_char();
        let mut table = Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            kinds: Vec::new(),
        };
        for (id, text, kind) in entries {
            let id = id as usize;
            if id < table.ends.len() {
                continue;
            }
            table.ends.resize(id, table.bytes.len());
            table.kinds.resize(id, TokenKind::Absent);
            if kind == TokenKind::Piece {
                push_piece(&mut table.bytes, text, coding, &byte_of_char);
            } else {
                table.bytes.extend_from_slice(text.as_bytes());
            }
            table.ends.push(table.bytes.len());
            table.kinds.push(kind);
        }
        table
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds
            .get(id as usize)
            .copied()
            .unwrap_or(TokenKind::Absent)
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        if self.kind(id) == TokenKind::Absent {
            return None;
        }
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        self.bytes.get(start..self.ends[id])
    }
}

fn push_piece(
    bytes: &mut Vec<u8>,
    text: &str,
    coding: PieceCoding,
    byte_of_char: &HashMap<char, u8>,
) {
    match coding {
        PieceCoding::ByteLevel => {
            let start = bytes.len();
            for character in text.chars() {
                match byte_of_char.get(&character) {
                    Some(&byte) => bytes.push(byte),
                    None => {
                        // Not in the alphabet: the entry is meant as it is written.
                        bytes.truncate(start);
                        bytes.extend_from_slice(text.as_bytes());
                        return;
                    }
                }
            }
        }
        PieceCoding::Metaspace => match byte_piece(text) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(text.replace('▁', " ").as_bytes()),
        },
        PieceCoding::WordPiece => match text.strip_prefix("##") {
            Some(rest) => bytes.extend_from_slice(rest.as_bytes()),
            None => {
                bytes.push(b' ');
                bytes.extend_from_slice(text.as_bytes());
            }
        },
        PieceCoding::Plain => bytes.extend_from_slice(text.as_bytes()),
    }
}

/// The byte that a piece of the form `<0xNN>` stands for.
pub(super) fn byte_piece(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other 68 bytes, in order, for the
/// characters from U+0100 on.
fn byte_of_char() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).map(|character| (character, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_alphabet_is_a_bijection_with_known_points() {
        let map = byte_of_char();
        assert_eq!(map.len(), 256);
        let mut bytes: Vec<u8> = map.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        for (character, byte) in [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('a', b'a'),
            ('Ń', 0xAD),
            ('ÿ', 0xFF),
        ] {
            assert_eq!(map[&character], byte);
        }
    }

    #[test]
    fn pieces_decode_by_their_coding() {
        let piece = |text, coding| {
            TokenTable::new([(0, text, TokenKind::Piece)].into_iter(), coding)
                .bytes(0)
                .unwrap()
                .to_vec()
        };
        assert_eq!(piece("ĠhiĊ", PieceCoding::ByteLevel), b" hi\n");
        assert_eq!(piece("a b", PieceCoding::ByteLevel), b"a b");
        assert_eq!(piece("▁hi", PieceCoding::Metaspace), b" hi");
        assert_eq!(piece("<0xE4>", PieceCoding::Metaspace), [0xE4]);
        assert_eq!(piece("<0xE41>", PieceCoding::Metaspace), b"<0xE41>");
        assert_eq!(piece("##ing", PieceCoding::WordPiece), b"ing");
        assert_eq!(piece("go", PieceCoding::WordPiece), b" go");
    }

    #[test]
    fn gaps_are_absent() {
        let entries = [(1, "a", TokenKind::Piece), (4, "<x>", TokenKind::Special)];
        let table = TokenTable::new(entries.into_iter(), PieceCoding::Plain);
        assert_eq!(table.len(), 5);
        assert_eq!(table.bytes(0), None);
        assert_eq!(table.bytes(1), Some(&b"a"[..]));
        assert_eq!(table.bytes(3), None);
        assert_eq!(table.bytes(4), Some(&b"<x>"[..]));
        assert_eq!(table.bytes(5), None);
        assert_eq!(table.kind(4), TokenKind::Special);
    }
}
