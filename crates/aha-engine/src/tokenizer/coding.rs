//! How the texts of a vocabulary stand for bytes.

use std::borrow::Cow;

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

/// Sentencepiece's space.
pub(super) const SPACE: char = '▁';
const CONTINUATION: &str = "##";

impl PieceCoding {
    /// Appends the bytes that `text` stands for.
    pub(super) fn push_bytes(self, text: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = bytes.len();
                for character in text.chars() {
                    match byte_of(character) {
                        Some(byte) => bytes.push(byte),
                        None => {
                            // Not in the alphabet: the entry is meant as it is written.
                            bytes.truncate(start);
                            bytes.extend_from_slice(text.as_bytes());
                            return;
                        }
                    }
                }
            }
            Self::Metaspace => match byte_piece(text) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
            },
            Self::WordPiece => match text.strip_prefix(CONTINUATION) {
                Some(rest) => bytes.extend_from_slice(rest.as_bytes()),
                None => {
                    bytes.push(b' ');
                    bytes.extend_from_slice(text.as_bytes());
                }
            },
            Self::Plain => bytes.extend_from_slice(text.as_bytes()),
        }
    }

    /// Whether [`Self::text`] of `bytes` is `text`. For each `bytes` it is so for one text at most.
    pub(super) fn is_text(self, text: &str, bytes: &[u8]) -> bool {
        match self {
            Self::ByteLevel => text
                .chars()
                .map(byte_of)
                .eq(bytes.iter().copied().map(Some)),
            Self::Metaspace => {
                let mut rest = Some(bytes);
                for part in text.split_inclusive(SPACE) {
                    let (word, end) = match part.strip_suffix(SPACE) {
                        Some(word) => (word, &b" "[..]),
                        None => (part, &b""[..]),
                    };
                    rest = rest
                        .filter(|_| !word.contains(' '))
                        .and_then(|rest| rest.strip_prefix(word.as_bytes()))
                        .and_then(|rest| rest.strip_prefix(end));
                }
                rest.is_some_and(<[u8]>::is_empty)
            }
            Self::WordPiece => match bytes.strip_prefix(b" ") {
                Some(word) => text.as_bytes() == word && !text.starts_with(CONTINUATION),
                None => text.strip_prefix(CONTINUATION).map(str::as_bytes) == Some(bytes),
            },
            Self::Plain => text.as_bytes() == bytes,
        }
    }

    /// The text that stands for `bytes`, if they are those of a regular piece.
    pub(super) fn text(self, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Self::ByteLevel => bytes.iter().map(|&byte| character_of(byte)).collect(),
            Self::Metaspace => String::from_utf8_lossy(bytes).replace(' ', "▁").into(),
            Self::WordPiece => {
                let text = String::from_utf8_lossy(bytes);
                match text.strip_prefix(' ') {
                    Some(word) => word.to_owned().into(),
                    None => format!("{CONTINUATION}{text}").into(),
                }
            }
            Self::Plain => String::from_utf8_lossy(bytes),
        }
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

/// Characters of GPT-2's alphabet are below this one.
pub(super) const ALPHABET_END: usize = 0x144;

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other 68 bytes, in order, for the
/// characters from U+0100 on.
const ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let mut next = 0x100_u16;
    let mut byte = 0_usize;
    while byte < 256 {
        let own = byte as u8;
        alphabet[byte] = if matches!(own, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            own as char
        } else {
            next += 1;
            match char::from_u32(next as u32 - 1) {
                Some(character) => character,
                None => '\0',
            }
        };
        byte += 1;
    }
    alphabet
};

const BYTES: [Option<u8>; ALPHABET_END] = {
    let mut bytes = [None; ALPHABET_END];
    let mut byte = 0;
    while byte < 256 {
        bytes[ALPHABET[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    bytes
};

fn byte_of(character: char) -> Option<u8> {
    BYTES.get(character as usize).copied().flatten()
}

fn character_of(byte: u8) -> char {
    ALPHABET[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_alphabet_is_a_bijection_with_known_points() {
        for byte in 0..=255 {
            assert_eq!(byte_of(character_of(byte)), Some(byte));
        }
        assert_eq!(BYTES.iter().flatten().count(), 256);
        for (character, byte) in [
            ('Ġ', b' '),
            ('Ċ', b'\n'),
            ('a', b'a'),
            ('Ń', 0xAD),
            ('ÿ', 0xFF),
        ] {
            assert_eq!(byte_of(character), Some(byte));
        }
        assert_eq!(byte_of('你'), None);
    }

    #[test]
    fn pieces_decode_by_their_coding() {
        let bytes = |text, coding: PieceCoding| {
            let mut bytes = Vec::new();
            coding.push_bytes(text, &mut bytes);
            bytes
        };
        // Whether the text can be told from the bytes.
        for (text, coding, expected, regular) in [
            ("ĠhiĊ", PieceCoding::ByteLevel, &b" hi\n"[..], true),
            ("a b", PieceCoding::ByteLevel, b"a b", false),
            ("▁hi", PieceCoding::Metaspace, b" hi", true),
            ("hi▁▁a▁", PieceCoding::Metaspace, b"hi  a ", true),
            ("▁h i", PieceCoding::Metaspace, b" h i", false),
            ("<0xE4>", PieceCoding::Metaspace, &[0xE4], false),
            ("<0x41>", PieceCoding::Metaspace, b"A", false),
            ("<0xE41>", PieceCoding::Metaspace, b"<0xE41>", true),
            ("##ing", PieceCoding::WordPiece, b"ing", true),
            ("go", PieceCoding::WordPiece, b" go", true),
            ("## go", PieceCoding::WordPiece, b" go", false),
            ("a b", PieceCoding::Plain, b"a b", true),
        ] {
            assert_eq!(bytes(text, coding), expected, "{text}");
            assert_eq!(coding.is_text(text, expected), regular, "{text}");
            assert_eq!(coding.text(expected) == *text, regular, "{text}");
            assert!(!coding.is_text(text, &expected[1..]), "{text}");
            assert!(!coding.is_text(&format!("{text}a"), expected), "{text}");
        }
    }
}
