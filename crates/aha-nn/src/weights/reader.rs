//! The checked reader that every size in a binary file goes through.

use std::ops::Range;
use std::path::Path;

use super::error::{Location, Result, WeightsError};

/// Reads little-endian values from bytes of a file, never past their end.
///
/// Counts and lengths in a file are claims. This type is the only place that turns them into sizes, and
/// it does so only when that many bytes are left, before anything is allocated. Errors name the file, the
/// byte offset and what was being read.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

macro_rules! number {
    ($name:ident, $type:ty) => {
        #[doc = concat!("Reads one little-endian `", stringify!($type), "`; `what` names it in errors.")]
        pub fn $name(&mut self, what: &str) -> Result<$type> {
            Ok(<$type>::from_le_bytes(self.array(what)?))
        }
    };
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`, which are the contents of the file at `path`.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self {
            path,
            bytes,
            position: 0,
        }
    }

    /// A reader of `range` alone, whose offsets are those in `bytes`. A range that is not inside `bytes` is cut to what
    /// is.
    pub fn within(path: &'a Path, bytes: &'a [u8], range: Range<usize>) -> Self {
        let end = range.end.min(bytes.len());
        Self {
            path,
            bytes: &bytes[..end],
            position: range.start.min(end),
        }
    }

    number!(u8, u8);
    number!(i8, i8);
    number!(u16, u16);
    number!(i16, i16);
    number!(u32, u32);
    number!(i32, i32);
    number!(u64, u64);
    number!(i64, i64);
    number!(f32, f32);
    number!(f64, f64);

    /// Reads `length` bytes without copying them.
    pub fn bytes(&mut self, length: u64, what: &str) -> Result<&'a [u8]> {
        let start = self.position;
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| start.checked_add(length));
        match end.and_then(|end| self.bytes.get(start..end)) {
            Some(bytes) => {
                self.position += bytes.len();
                Ok(bytes)
            }
            None => Err(self.error(format!(
                "{what} needs {length} bytes but {} are left; the file is truncated or damaged, \
                 download it again",
                self.remaining()
            ))),
        }
    }

    /// Reads a string's length (`u64`) and its bytes, in whatever encoding.
    pub fn string_bytes(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.u64(what)?;
        self.bytes(length, what)
    }

    /// Reads a string's length (`u64`) and its bytes, which must be UTF-8.
    pub fn string(&mut self, what: &str) -> Result<&'a str> {
        let start = self.position;
        let bytes = self.string_bytes(what)?;
        std::str::from_utf8(bytes).map_err(|error| {
            WeightsError::malformed(
                self.path,
                Location::Offset(start as u64),
                format!("{what} is not UTF-8 ({error})"),
            )
        })
    }

    /// Reads a `u64` count of items that take at least `smallest` bytes each, so that no more of them are
    /// claimed than can follow.
    pub fn count(&mut self, smallest: u64, what: &str) -> Result<usize> {
        let start = self.position;
        let count = self.u64(what)?;
        let most = self.remaining() / smallest.max(1);
        match usize::try_from(count) {
            Ok(items) if count <= most => Ok(items),
            _ => Err(WeightsError::malformed(
                self.path,
                Location::Offset(start as u64),
                format!(
                    "{what} is {count} but the {} bytes left hold at most {most}",
                    self.remaining()
                ),
            )),
        }
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// Bytes read so far: the offset of the next value.
    pub fn position(&self) -> u64 {
        self.position as u64
    }

    /// An error about the value at the current position.
    pub fn error(&self, reason: impl Into<String>) -> WeightsError {
        WeightsError::malformed(self.path, Location::Offset(self.position()), reason)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N as u64, what)?);
        Ok(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_values_in_order_and_stops_at_the_end() {
        let mut bytes = vec![7];
        bytes.extend_from_slice(&300u16.to_le_bytes());
        bytes.extend_from_slice(&1.5f64.to_le_bytes());
        bytes.extend_from_slice(&3u64.to_le_bytes());
        bytes.extend_from_slice(b"abc");
        let mut reader = Reader::new(Path::new("weights.bin"), &bytes);
        assert_eq!(reader.u8("a").unwrap(), 7);
        assert_eq!(reader.u16("b").unwrap(), 300);
        assert_eq!(reader.f64("c").unwrap(), 1.5);
        assert_eq!(reader.string("d").unwrap(), "abc");
        assert_eq!((reader.position(), reader.remaining()), (22, 0));
        let message = reader.u32("the version").unwrap_err().to_string();
        assert!(
            message.contains("weights.bin: at byte 22: the version needs 4 bytes"),
            "{message}"
        );
    }

    #[test]
    fn lengths_and_counts_beyond_the_rest_are_refused_before_any_allocation() {
        for claimed in [5, 1 << 31, 1 << 63, u64::MAX] {
            let mut bytes = claimed.to_le_bytes().to_vec();
            bytes.extend_from_slice(b"abcd");
            let path = Path::new("x");
            assert!(Reader::new(path, &bytes).string("s").is_err(), "{claimed}");
            assert!(
                Reader::new(path, &bytes).count(1, "n").is_err(),
                "{claimed}"
            );
        }
        let mut bytes = 2u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"abcd");
        assert_eq!(
            Reader::new(Path::new("x"), &bytes).count(2, "n").unwrap(),
            2
        );
        assert!(Reader::new(Path::new("x"), &bytes).count(3, "n").is_err());
    }
}
