//! Streams that are small as they are stored and huge when they are unpacked.
//!
//! The reader of PDF unpacks a stream in one piece, so its size must be known before. Deflated streams are found by their
//! bytes, for some are unpacked while the file is opened; all others by their filters, once it is.

use super::guard::check_deadline;
use super::{DocumentError, DocumentLimits};
use crate::MediaError;
use flate2::{Decompress, FlushDecompress, Status};
use hayro::hayro_syntax::Filter;
use hayro::hayro_syntax::object::dict::keys::{HEIGHT, IMAGE, SUBTYPE, WIDTH};
use hayro::hayro_syntax::object::{Name, Stream};
use memchr::memmem;

/// Most bytes that a filter makes of one.
fn largest_ratio(filter: Filter) -> u64 {
    match filter {
        Filter::FlateDecode => 1032,
        // A code of 12 bits for each entry of a table of 4096.
        Filter::LzwDecode => 2731,
        Filter::RunLengthDecode => 64,
        Filter::Ascii85Decode => 4,
        // What these make is counted in pixels.
        _ => 1,
    }
}

fn bomb(limit: u64) -> MediaError {
    DocumentError::Bomb {
        what: "a stream",
        limit,
        unit: "bytes",
    }
    .into()
}

/// The refusal of an image.
pub(super) fn large_image(limits: &DocumentLimits) -> MediaError {
    DocumentError::Bomb {
        what: "an image",
        limit: limits.image_pixels,
        unit: "pixels",
    }
    .into()
}

/// Looks for deflated streams in the bytes of a file that become more than `limit` bytes.
pub(super) fn check_bytes(bytes: &[u8], limit: u64) -> Result<(), MediaError> {
    for at in memmem::find_iter(bytes, b"stream") {
        let body = &bytes[at + b"stream".len()..];
        let body = body.strip_prefix(b"\r").unwrap_or(body);
        let body = body.strip_prefix(b"\n").unwrap_or(body);
        // Where the stream ends, its own bytes say: no mark behind it can be trusted.
        let can_be = body.len() as u64 > limit / largest_ratio(Filter::FlateDecode);
        if can_be && is_zlib(body) && inflate(body, limit, |_| {}) > limit {
            return Err(bomb(limit));
        }
        check_deadline();
    }
    Ok(())
}

/// Checks a stream's image by the size that it declares and the one that it has, and what its filters make of its bytes.
pub(super) fn check_stream(stream: &Stream<'_>, limits: &DocumentLimits) -> Result<(), MediaError> {
    let dict = stream.dict();
    let filters = stream.filters();
    let mut data = stream.raw_data();
    if dict
        .get::<Name<'_>>(SUBTYPE)
        .is_some_and(|name| *name == *IMAGE)
    {
        let side = |key: &[u8]| u64::from(dict.get::<u32>(key).unwrap_or(0));
        let declared = side(WIDTH).saturating_mul(side(HEIGHT));
        let stored = match filters.first() {
            Some(Filter::DctDecode) => jpeg_pixels(&data),
            Some(Filter::JpxDecode) => jpeg2000_pixels(&data),
            _ => 0,
        };
        if declared.max(stored) > limits.image_pixels {
            return Err(large_image(limits));
        }
    }
    let limit = limits.stream_bytes;
    for (index, &filter) in filters.iter().enumerate() {
        let rest = &filters[index..];
        let ratio = rest.iter().map(|&filter| largest_ratio(filter));
        if ratio.fold(data.len() as u64, u64::saturating_mul) <= limit {
            return Ok(());
        }
        let mut unpacked = Vec::new();
        let length = match filter {
            Filter::FlateDecode => inflate(&data, limit, |bytes| unpacked.extend_from_slice(bytes)),
            Filter::Ascii85Decode => {
                unpacked = ascii85(&data);
                unpacked.len() as u64
            }
            Filter::AsciiHexDecode => {
                // Two digits a byte; what the digits say does not matter for the length, and nothing packs twice in hex.
                data.len() as u64 / 2
            }
            Filter::LzwDecode => lzw_length(&data),
            Filter::RunLengthDecode => run_length(&data),
            _ => return Ok(()),
        };
        let packs_again = rest[1..].iter().any(|&filter| largest_ratio(filter) > 1);
        if length > limit || (packs_again && unpacked.is_empty() && length > 0) {
            return Err(bomb(limit));
        }
        data = unpacked.into();
    }
    Ok(())
}

/// Whether the bytes begin as zlib's do.
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [head, flags, ..]
        if head & 0x0f == 8 && u16::from_be_bytes([*head, *flags]).is_multiple_of(31))
}

/// Inflates until the end, a fault, or more than `limit` bytes; gives their number.
fn inflate(packed: &[u8], limit: u64, mut take: impl FnMut(&[u8])) -> u64 {
    let mut inflater = Decompress::new(is_zlib(packed));
    let mut window = vec![0; 256 << 10];
    loop {
        check_deadline();
        let (read, written) = (inflater.total_in(), inflater.total_out());
        let input = packed.get(read as usize..).unwrap_or_default();
        let status = inflater.decompress(input, &mut window, FlushDecompress::None);
        let new = (inflater.total_out() - written) as usize;
        take(&window[..new]);
        let is_stuck = new == 0 && inflater.total_in() == read;
        let goes_on = matches!(status, Ok(Status::Ok | Status::BufError)) && !is_stuck;
        if !goes_on || inflater.total_out() > limit {
            return inflater.total_out();
        }
    }
}

/// The bytes of groups of five digits to the base 85, and of `z`, which is four zeros.
fn ascii85(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 5 * 4);
    let (mut group, mut digits) = (0u32, 0);
    for &character in text {
        match character {
            b'z' if digits == 0 => bytes.extend([0; 4]),
            b'!'..=b'u' => {
                group = group
                    .wrapping_mul(85)
                    .wrapping_add(u32::from(character - b'!'));
                digits += 1;
                if digits == 5 {
                    bytes.extend(group.to_be_bytes());
                    (group, digits) = (0, 0);
                }
            }
            b'~' => break,
            _ => {}
        }
    }
    if digits > 1 {
        let missing = 5 - digits;
        let group = (0..missing).fold(group, |group, _| group.wrapping_mul(85).wrapping_add(84));
        bytes.extend(&group.to_be_bytes()[..digits - 1]);
    }
    bytes
}

/// How many bytes LZW's codes stand for.
fn lzw_length(packed: &[u8]) -> u64 {
    const CLEAR: usize = 256;
    const END: usize = 257;
    const FULL: usize = 4096;
    let mut lengths: Vec<u64> = vec![1; END + 1];
    let (mut bits, mut held, mut width, mut before) = (0u32, 0u32, 9u32, 0u64);
    let mut total = 0;
    for &byte in packed {
        bits = (bits << 8) | u32::from(byte);
        held += 8;
        if held < width {
            continue;
        }
        held -= width;
        let code = (bits >> held) as usize & ((1 << width) - 1);
        match code {
            CLEAR => {
                lengths.truncate(END + 1);
                (width, before) = (9, 0);
                continue;
            }
            END => break,
            _ => {}
        }
        // A code that is not there yet is the last string with its own first byte.
        let length = lengths.get(code).copied().unwrap_or(before + 1);
        total += length;
        if before > 0 && lengths.len() < FULL {
            lengths.push(before + 1);
        }
        before = length;
        // Codes grow one early, unless the stream says otherwise, which makes no more of it.
        width = (lengths.len() + 1).ilog2().clamp(8, 11) + 1;
    }
    total
}

/// How many bytes runs stand for.
fn run_length(packed: &[u8]) -> u64 {
    let (mut rest, mut total) = (packed, 0);
    while let [head, tail @ ..] = rest {
        let (stored, length) = match head {
            0..128 => (usize::from(*head) + 1, u64::from(*head) + 1),
            128 => break,
            _ => (1, 257 - u64::from(*head)),
        };
        total += length;
        rest = tail.get(stored..).unwrap_or_default();
    }
    total
}

/// Pixels that the frame header of a JPEG tells of.
fn jpeg_pixels(bytes: &[u8]) -> u64 {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let [0xff, marker, tail @ ..] = rest {
        match (marker, tail) {
            (0xff, _) => rest = &rest[1..],
            (0x01 | 0xd0..=0xd8, _) => rest = tail,
            // Frames of all kinds; the others in this row are tables.
            (
                0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf,
                [_, _, _, h1, h0, w1, w0, ..],
            ) => {
                let side = |high: u8, low: u8| u64::from(u16::from_be_bytes([high, low]));
                return side(*h1, *h0) * side(*w1, *w0);
            }
            (_, [high, low, ..]) => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest = tail.get(length..).unwrap_or_default();
            }
            _ => break,
        }
    }
    0
}

/// Pixels that the size marker of a JPEG 2000 codestream tells of.
fn jpeg2000_pixels(bytes: &[u8]) -> u64 {
    // Start of codestream and size, with the length and the capabilities of the latter.
    let Some(at) = memmem::find(bytes, &[0xff, 0x4f, 0xff, 0x51]) else {
        return 0;
    };
    let (numbers, _) = bytes.get(at + 8..).unwrap_or_default().as_chunks::<4>();
    let number = |index: usize| {
        numbers
            .get(index)
            .map_or(0, |&four| u64::from(u32::from_be_bytes(four)))
    };
    let side = |index: usize| number(index).saturating_sub(number(index + 2));
    side(0).saturating_mul(side(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deflated(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn deflated_streams_are_found_by_their_bytes() {
        let stream =
            |body: &[u8]| [b"1 0 obj <<>> stream\r\n", body, b"\nendstream endobj"].concat();
        let large = stream(&deflated(&vec![0; 4 << 20]));
        assert!(check_bytes(&large, 8 << 20).is_ok());
        assert!(check_bytes(&large, 2 << 20).is_err());
        let two = [stream(&deflated(b"small")), large.clone()].concat();
        assert!(check_bytes(&two, 2 << 20).is_err());
        // Bytes that are not deflated, and a stream that never ends.
        assert!(check_bytes(&stream(&vec![7; 8 << 10]), 1 << 20).is_ok());
        assert!(check_bytes(&large[..large.len() - 40], 2 << 20).is_err());
        assert!(check_bytes(b"stream", 1).is_ok() && check_bytes(b"", 1).is_ok());
    }

    #[test]
    fn lengths_are_those_of_the_unpacked_bytes() {
        assert_eq!(inflate(&deflated(&[1; 70_000]), 1 << 20, |_| {}), 70_000);
        assert!(inflate(&deflated(&vec![1; 1 << 20]), 1000, |_| {}) > 1000);
        assert_eq!(inflate(b"nothing", 9, |_| {}), 0);
        // "Man sure." and eight zeros.
        assert_eq!(ascii85(b"9jqo^F*2M7\n/c~>"), b"Man sure.");
        assert_eq!(ascii85(b"zz~>"), [0; 8]);
        // The example of the PDF standard: 45 45 45 45 45 65 45 45 45 66.
        assert_eq!(
            lzw_length(&[0x80, 0x0b, 0x60, 0x50, 0x22, 0x0c, 0x0c, 0x85, 0x01]),
            10
        );
        assert_eq!(
            run_length(&[2, 1, 2, 3, 255, 7, 129, 7, 128, 0, 0]),
            3 + 2 + 128
        );
        assert_eq!(run_length(&[200]), 57);
    }

    #[test]
    fn sizes_of_images_are_read_from_their_heads() {
        let jpeg = [
            0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xc2, 0, 9, 8, 0x10, 0, 0x20, 0, 3,
        ];
        assert_eq!(jpeg_pixels(&jpeg), 0x1000 * 0x2000);
        assert_eq!(jpeg_pixels(&jpeg[..12]), 0);
        let mut codestream = vec![0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0];
        for number in [300u32, 200, 100, 50] {
            codestream.extend(number.to_be_bytes());
        }
        assert_eq!(jpeg2000_pixels(&codestream), 200 * 150);
        assert_eq!(jpeg2000_pixels(b"x"), 0);
    }
}
