//! Which format the first bytes speak of. File names and declared media types are not looked at:
//! they come from the same stranger and are more often wrong.

/// Bytes that [`sniff`] wants to see.
pub(super) const SNIFF_BYTES: usize = 512;

/// A container or bare stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sniffed {
    Wav,
    Aiff,
    Caf,
    Flac,
    Ogg,
    Mpeg,
    Adts,
    Mp4,
    Matroska,
    /// Known, and left to ffmpeg.
    Foreign(&'static str),
    Unknown,
}

/// Looks at the start of a stream, behind any ID3v2 tag.
pub(super) fn sniff(head: &[u8]) -> Sniffed {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    if (at(0, b"RF64") || at(0, b"BW64")) && at(8, b"WAVE") {
        return Sniffed::Wav;
    }
    if at(0, b"RIFF") {
        return match head.get(8..12) {
            Some(b"WAVE") => Sniffed::Wav,
            Some(b"AVI ") => Sniffed::Foreign("AVI"),
            _ => Sniffed::Unknown,
        };
    }
    if at(0, b"FORM") && (at(8, b"AIFF") || at(8, b"AIFC")) {
        return Sniffed::Aiff;
    }
    if at(4, b"ftyp") || at(4, b"moov") || at(4, b"mdat") || at(4, b"wide") || at(4, b"free") {
        return Sniffed::Mp4;
    }
    for (magic, found) in MAGICS {
        if at(0, magic) {
            return *found;
        }
    }
    if head.len() > 376 && head[0] == 0x47 && head[188] == 0x47 && head[376] == 0x47 {
        return Sniffed::Foreign("MPEG transport stream");
    }
    mpeg_sync(head)
}

const MAGICS: &[(&[u8], Sniffed)] = &[
    (b"fLaC", Sniffed::Flac),
    (b"OggS", Sniffed::Ogg),
    (b"caff", Sniffed::Caf),
    (b"\x1a\x45\xdf\xa3", Sniffed::Matroska),
    (b"riff\x2e\x91\xcf\x11", Sniffed::Foreign("Wave64")),
    (
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
        Sniffed::Foreign("ASF (WMA, WMV)"),
    ),
    (b"#!AMR", Sniffed::Foreign("AMR")),
    (b"FLV\x01", Sniffed::Foreign("Flash video")),
    (b"wvpk", Sniffed::Foreign("WavPack")),
    (b"MAC ", Sniffed::Foreign("Monkey's Audio")),
    (b"TTA1", Sniffed::Foreign("TTA")),
    (b"MPCK", Sniffed::Foreign("Musepack")),
    (b"MP+", Sniffed::Foreign("Musepack")),
    (b".snd", Sniffed::Foreign("AU")),
    (b"DSD ", Sniffed::Foreign("DSF")),
    (b"\x0b\x77", Sniffed::Foreign("AC-3")),
    (b"\x7f\xfe\x80\x01", Sniffed::Foreign("DTS")),
    (b"\x00\x00\x01\xba", Sniffed::Foreign("MPEG program stream")),
];

/// MPEG audio and ADTS have no magic number but a sync word with fields of which some values are
/// reserved. Files cut from streams may start with zeros.
fn mpeg_sync(head: &[u8]) -> Sniffed {
    let start = head
        .iter()
        .position(|&byte| byte != 0)
        .unwrap_or(head.len());
    let Some(&[first, second, third, ..]) = head.get(start..) else {
        return Sniffed::Unknown;
    };
    if first != 0xff || second & 0xe0 != 0xe0 {
        return Sniffed::Unknown;
    }
    let (version, layer) = (second >> 3 & 3, second >> 1 & 3);
    if layer == 0 {
        // Layer 0 is what ADTS uses; its sync word has 12 bits.
        let rate_index = third >> 2 & 15;
        return if second & 0xf6 == 0xf0 && rate_index < 13 {
            Sniffed::Adts
        } else {
            Sniffed::Unknown
        };
    }
    let (bitrate, rate) = (third >> 4, third >> 2 & 3);
    if version == 1 || bitrate == 15 || rate == 3 {
        Sniffed::Unknown
    } else {
        Sniffed::Mpeg
    }
}

/// Length of an ID3v2 tag at the start, header and footer included; 0 when there is none.
pub(super) fn id3v2_length(head: &[u8]) -> u64 {
    let Some(&[b'I', b'D', b'3', major, _, flags, a, b, c, d]) = head.first_chunk::<10>() else {
        return 0;
    };
    if major == 0xff || [a, b, c, d].iter().any(|byte| byte & 0x80 != 0) {
        return 0;
    }
    let size = [a, b, c, d]
        .iter()
        .fold(0u64, |sum, &byte| sum << 7 | u64::from(byte));
    10 + size + if flags & 0x10 != 0 { 10 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_content() {
        assert_eq!(sniff(b"RIFF\x00\x00\x00\x00WAVEfmt "), Sniffed::Wav);
        assert_eq!(sniff(b"RIFF\x00\x00\x00\x00WEBPVP8 "), Sniffed::Unknown);
        assert_eq!(sniff(b"\x00\x00\x00\x20ftypM4A "), Sniffed::Mp4);
        assert_eq!(sniff(&[0xff, 0xfb, 0x90, 0x00]), Sniffed::Mpeg);
        assert_eq!(sniff(&[0, 0, 0xff, 0xf3, 0x40, 0x00]), Sniffed::Mpeg);
        assert_eq!(sniff(&[0xff, 0xf1, 0x50, 0x80]), Sniffed::Adts);
        // The start of a JPEG is a sync word with a reserved layer and rate.
        assert_eq!(sniff(&[0xff, 0xd8, 0xff, 0xe0]), Sniffed::Unknown);
        assert_eq!(sniff(b"<!DOCTYPE html>"), Sniffed::Unknown);
        assert_eq!(sniff(&[]), Sniffed::Unknown);
        assert_eq!(sniff(&[0; 600]), Sniffed::Unknown);
    }

    #[test]
    fn tags_are_measured() {
        assert_eq!(
            id3v2_length(b"ID3\x04\x00\x00\x00\x00\x02\x01rest"),
            10 + 257
        );
        assert_eq!(id3v2_length(b"ID3\x04\x00\x10\x00\x00\x00\x05"), 25);
        assert_eq!(id3v2_length(b"ID3\x04\x00\x00\x80\x00\x02\x01"), 0);
        assert_eq!(id3v2_length(b"RIFF"), 0);
    }
}
