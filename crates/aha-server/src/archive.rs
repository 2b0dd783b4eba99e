//! Several files in one body: as a ZIP archive, or as parts.

use std::fmt::Write;

/// A file of an archive.
pub(crate) struct Member {
    /// Its name, in letters that need no escape.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// A ZIP archive that stores its files as they are: pictures are compressed already. None when sizes do not fit in the
/// format's 32 bits.
pub(crate) fn zip(members: &[Member]) -> Option<Vec<u8>> {
    let total: usize = members
        .iter()
        .map(|member| member.bytes.len() + 2 * member.name.len() + 128)
        .sum();
    let mut archive = Vec::with_capacity(total);
    let mut directory = Vec::new();
    for member in members {
        let offset = u32::try_from(archive.len()).ok()?;
        let head = head_of(member)?;
        archive.extend(b"PK\x03\x04");
        archive.extend(&head);
        archive.extend(member.name.as_bytes());
        archive.extend(&member.bytes);
        directory.extend(b"PK\x01\x02");
        // The version that made it, then what the file's own head says.
        directory.extend(20_u16.to_le_bytes());
        directory.extend(&head);
        // Comment, disk, and attributes of two and four bytes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(member.name.as_bytes());
    }
    let count = u16::try_from(members.len()).ok()?.to_le_bytes();
    let start = u32::try_from(archive.len()).ok()?;
    let length = u32::try_from(directory.len()).ok()?;
    archive.extend(directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend(count);
    archive.extend(count);
    archive.extend(length.to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0; 2]);
    Some(archive)
}

/// What is said of a file twice: version, flags, method, time and date (1980 begins), checksum, sizes, name's length.
fn head_of(member: &Member) -> Option<Vec<u8>> {
    let length = u32::try_from(member.bytes.len()).ok()?.to_le_bytes();
    let mut head = Vec::with_capacity(26);
    head.extend(20_u16.to_le_bytes());
    head.extend([0; 6]);
    head.extend(0x21_u16.to_le_bytes());
    head.extend(crc32fast::hash(&member.bytes).to_le_bytes());
    head.extend(length);
    head.extend(length);
    head.extend(u16::try_from(member.name.len()).ok()?.to_le_bytes());
    head.extend([0; 2]);
    Some(head)
}

/// The content type and the body of `multipart/mixed`, a part a file of type `kind`.
pub(crate) fn multipart_mixed(members: &[Member], kind: &str) -> (String, Vec<u8>) {
    let boundary = boundary_for(members);
    let mut body = Vec::new();
    for member in members {
        let mut head = format!("--{boundary}\r\nContent-Type: {kind}\r\n");
        let _ = write!(
            head,
            "Content-Disposition: attachment; filename=\"{}\"\r\nContent-Length: {}\r\n\r\n",
            member.name,
            member.bytes.len()
        );
        body.extend(head.as_bytes());
        body.extend(&member.bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/mixed; boundary={boundary}"), body)
}

/// A line that no file holds.
fn boundary_for(members: &[Member]) -> String {
    let mut number = 0_u64;
    loop {
        let boundary = format!("part-{number:016x}");
        let line = boundary.as_bytes();
        let holds = |member: &Member| {
            let mut windows = member.bytes.windows(line.len());
            windows.any(|window| window == line)
        };
        if !members.iter().any(holds) {
            return boundary;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Member> {
        [("000.png", b"first".to_vec()), ("001.png", vec![7; 300])]
            .into_iter()
            .map(|(name, bytes)| Member {
                name: name.to_owned(),
                bytes,
            })
            .collect()
    }

    fn number(bytes: &[u8]) -> usize {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum * 256 + usize::from(*byte))
    }

    #[test]
    fn an_archive_is_found_from_its_end_as_readers_do() {
        let members = members();
        let archive = zip(&members).unwrap();
        let end = &archive[archive.len() - 22..];
        assert_eq!(&end[..4], b"PK\x05\x06");
        assert_eq!(number(&end[10..12]), 2);
        let mut entry = number(&end[16..20]);
        assert_eq!(entry + number(&end[12..16]), archive.len() - 22);
        for member in &members {
            let head = &archive[entry..];
            assert_eq!(&head[..4], b"PK\x01\x02");
            let (length, name) = (number(&head[20..24]), number(&head[28..30]));
            assert_eq!(&head[46..46 + name], member.name.as_bytes());
            let local = &archive[number(&head[42..46])..];
            assert_eq!(&local[..4], b"PK\x03\x04");
            assert_eq!(
                number(&local[14..18]),
                crc32fast::hash(&member.bytes) as usize
            );
            assert_eq!(&local[30 + name..30 + name + length], member.bytes);
            entry += 46 + name;
        }
    }

    #[test]
    fn a_boundary_is_in_no_part() {
        let mut members = members();
        members[0].bytes = b"\r\n--part-0000000000000000--".to_vec();
        let (kind, body) = multipart_mixed(&members, "image/png");
        assert_eq!(kind, "multipart/mixed; boundary=part-0000000000000001");
        let text = String::from_utf8_lossy(&body);
        assert_eq!(text.matches("--part-0000000000000001").count(), 3);
        assert!(text.contains("filename=\"001.png\""));
    }
}
