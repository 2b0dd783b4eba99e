//! The zip container around a pickle: entries as byte ranges of the file.
//!
//! Entries are stored, never compressed, so a few bytes cannot stand for gigabytes. The central directory and the
//! headers before the entries must agree, so that no other reader sees another file in these bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::super::error::{Location, Result, WeightsError, printable};
use super::super::reader::Reader;

const LOCAL_HEADER: u32 = 0x0403_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;
const ZIP64_EXTRA: u16 = 1;

const END_BYTES: usize = 22;
const END_64_LOCATOR_BYTES: usize = 20;
const CENTRAL_HEADER_BYTES: u64 = 46;
const MAX_COMMENT_BYTES: usize = u16::MAX as usize;
const ENCRYPTED: u16 = 1;
const STORED: u16 = 0;
/// Fields of the old format that say "look into the zip64 field".
const IN_ZIP64: u32 = u32::MAX;

/// What `torch.save` wrote before PyTorch 1.6 begins with: the pickle of a magic number.
const LEGACY_START: [u8; 4] = [0x80, 0x02, 0x8a, 0x0a];

/// The entries of a zip file by their names below its one top folder.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    entries: BTreeMap<&'a str, Range<usize>>,
}

impl<'a> Archive<'a> {
    /// Reads the directory of the zip file `bytes`, which is the file at `path`.
    pub(super) fn read(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        refuse_other_formats(path, bytes)?;
        let directory = Directory::find(path, bytes)?;
        let mut reader = Reader::within(path, bytes, directory.range.clone());
        let most = reader.remaining() / CENTRAL_HEADER_BYTES;
        if directory.entries > most {
            return Err(reader.error(format!(
                "the zip directory claims {} entries but its {} bytes hold at most {most}",
                directory.entries,
                reader.remaining()
            )));
        }
        let mut entries = BTreeMap::new();
        // From each header to the end of its data: these may not overlap.
        let mut spans = Vec::new();
        let mut folder = None;
        for _ in 0..directory.entries {
            let header = CentralHeader::read(path, &mut reader)?;
            let data = header.locate(path, bytes, directory.range.start)?;
            spans.push((header.offset..data.end, header.name));
            let (top, name) = header.split_name(path)?;
            if *folder.get_or_insert(top) != top {
                return Err(header.fail(path, "lies in another folder than the entries before it"));
            }
            if entries.insert(name, data).is_some() {
                return Err(header.fail(path, "is there twice"));
            }
        }
        if reader.remaining() > 0 {
            return Err(reader.error("the zip directory is longer than its entries"));
        }
        refuse_overlaps(path, spans)?;
        Ok(Self {
            path,
            bytes,
            entries,
        })
    }

    /// Where the data of an entry lies in the file.
    pub(super) fn entry(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name).cloned()
    }

    /// Checks the note that newer files carry of their byte order.
    pub(super) fn ensure_little_endian(&self) -> Result<()> {
        let Some(range) = self.entry("byteorder") else {
            return Ok(());
        };
        match self.bytes.get(range.clone()) {
            Some(b"little") => Ok(()),
            _ => Err(WeightsError::Unsupported {
                path: self.path.to_owned(),
                location: Location::Offset(range.start as u64),
                what: "a byte order that is not little-endian".to_owned(),
                advice: "save the weights again on a little-endian machine".to_owned(),
            }),
        }
    }
}

fn refuse_other_formats(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(&LOCAL_HEADER.to_le_bytes()) {
        return Ok(());
    }
    if bytes.starts_with(&LEGACY_START) {
        return Err(WeightsError::Unsupported {
            path: path.to_owned(),
            location: Location::File,
            what: "the format that torch.save wrote before PyTorch 1.6".to_owned(),
            advice: "load the file with torch.load(…, weights_only=True) and save it again"
                .to_owned(),
        });
    }
    Err(WeightsError::malformed(
        path,
        Location::File,
        "does not begin as a zip file; this is no file of torch.save",
    ))
}

fn refuse_overlaps(path: &Path, mut spans: Vec<(Range<usize>, &str)>) -> Result<()> {
    spans.sort_by_key(|(span, _)| (span.start, span.end));
    for pair in spans.windows(2) {
        if let [(first, first_name), (second, second_name)] = pair
            && second.start < first.end
        {
            return Err(WeightsError::malformed(
                path,
                Location::Offset(second.start as u64),
                format!(
                    "the entry `{}` overlaps `{}`, which ends at {}",
                    printable(second_name),
                    printable(first_name),
                    first.end
                ),
            ));
        }
    }
    Ok(())
}

/// Where the central directory lies.
struct Directory {
    range: Range<usize>,
    entries: u64,
}

impl Directory {
    fn find(path: &Path, bytes: &[u8]) -> Result<Self> {
        let malformed = |at: usize, reason: &str| {
            WeightsError::malformed(path, Location::Offset(at as u64), reason)
        };
        let end = find_end(bytes).ok_or_else(|| {
            malformed(
                bytes.len(),
                "the zip directory is missing; the file is truncated, download it again",
            )
        })?;
        let mut reader = Reader::within(path, bytes, end..bytes.len());
        reader.u32("the end of the zip directory")?;
        let disks = (reader.u16("the disk")?, reader.u16("the directory's disk")?);
        let entries_here = u64::from(reader.u16("the number of entries")?);
        let mut entries = u64::from(reader.u16("the number of entries")?);
        let mut size = u64::from(reader.u32("the directory's size")?);
        let mut offset = u64::from(reader.u32("the directory's offset")?);
        if disks != (0, 0) || entries_here != entries {
            return Err(malformed(end, "the zip file is one of several parts"));
        }
        let mut records = end;
        if let Some(locator) = end.checked_sub(END_64_LOCATOR_BYTES)
            && bytes[locator..].starts_with(&END_64_LOCATOR.to_le_bytes())
        {
            let mut reader = Reader::within(path, bytes, locator..end);
            reader.u32("the zip64 locator")?;
            reader.u32("the disk")?;
            let at = reader.u64("the zip64 record's offset")?;
            let at = usize::try_from(at)
                .ok()
                .filter(|&at| at < locator)
                .ok_or_else(|| malformed(locator, "the zip64 record lies beyond its locator"))?;
            let mut reader = Reader::within(path, bytes, at..locator);
            if reader.u32("the zip64 record")? != END_64 {
                return Err(malformed(at, "this is no zip64 record"));
            }
            reader.bytes(20, "the zip64 record")?;
            let entries_here = reader.u64("the number of entries")?;
            entries = reader.u64("the number of entries")?;
            size = reader.u64("the directory's size")?;
            offset = reader.u64("the directory's offset")?;
            if entries_here != entries {
                return Err(malformed(at, "the zip file is one of several parts"));
            }
            records = at;
        }
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(size).ok())
            .and_then(|(start, size)| Some(start..start.checked_add(size)?))
            .filter(|range| range.end == records)
            .ok_or_else(|| {
                malformed(
                    end,
                    "the zip directory does not lie directly before its end record",
                )
            })?;
        Ok(Self { range, entries })
    }
}

/// The last record of the file: it must end where the file does, comment included.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().checked_sub(END_BYTES)?;
    (last.saturating_sub(MAX_COMMENT_BYTES)..=last)
        .rev()
        .find(|&start| {
            let record = &bytes[start..];
            record.starts_with(&END.to_le_bytes())
                && record[END_BYTES - 2..]
                    .first_chunk()
                    .map(|length| usize::from(u16::from_le_bytes(*length)))
                    == Some(record.len() - END_BYTES)
        })
}

/// One line of the central directory.
struct CentralHeader<'a> {
    name: &'a str,
    /// Where the local header begins.
    offset: usize,
    /// Bytes of data.
    size: u64,
    flags: u16,
    method: u16,
}

impl<'a> CentralHeader<'a> {
    fn read(path: &Path, reader: &mut Reader<'a>) -> Result<Self> {
        let start = reader.position();
        let fail = |reason: String| WeightsError::malformed(path, Location::Offset(start), reason);
        if reader.u32("a zip directory entry")? != CENTRAL_HEADER {
            return Err(fail("this is no zip directory entry".to_owned()));
        }
        reader.bytes(4, "the versions")?;
        let flags = reader.u16("the flags")?;
        let method = reader.u16("the compression")?;
        reader.bytes(8, "time and checksum")?;
        let compressed = reader.u32("the compressed size")?;
        let size = reader.u32("the size")?;
        let name_bytes = reader.u16("the length of the name")?;
        let extra_bytes = reader.u16("the length of the extra field")?;
        let comment_bytes = reader.u16("the length of the comment")?;
        reader.bytes(8, "the attributes")?;
        let offset = reader.u32("the offset")?;
        let name = std::str::from_utf8(reader.bytes(name_bytes.into(), "the name")?)
            .map_err(|error| fail(format!("the name of an entry is not UTF-8 ({error})")))?;
        let extra = reader.bytes(extra_bytes.into(), "the extra field")?;
        reader.bytes(comment_bytes.into(), "the comment")?;

        let mut wide = Zip64::find(path, extra, start)?;
        let size = wide.or(size)?;
        let compressed = wide.or(compressed)?;
        let offset = wide.or(offset)?;
        if method == STORED && compressed != size {
            return Err(fail(format!(
                "the entry `{}` is stored but has two sizes, {compressed} and {size}",
                printable(name)
            )));
        }
        Ok(Self {
            name,
            offset: usize::try_from(offset)
                .map_err(|_| fail(format!("offset {offset} lies beyond the address space")))?,
            size,
            flags,
            method,
        })
    }

    /// The data's place: behind the local header, which must be of the same entry, and before the directory.
    fn locate(&self, path: &Path, bytes: &[u8], directory: usize) -> Result<Range<usize>> {
        if self.flags & ENCRYPTED != 0 {
            return Err(self.fail(path, "is encrypted"));
        }
        if self.method != STORED {
            return Err(self.fail(
                path,
                &format!(
                    "is compressed (method {}); torch.save stores its entries",
                    self.method
                ),
            ));
        }
        if self.offset > directory {
            return Err(self.fail(path, "begins beyond the zip directory"));
        }
        let mut reader = Reader::within(path, bytes, self.offset..directory);
        if reader.u32("an entry's header")? != LOCAL_HEADER {
            return Err(self.fail(path, "has no header where the zip directory says"));
        }
        reader.bytes(22, "an entry's header")?;
        let name_bytes = reader.u16("the length of the name")?;
        let extra_bytes = reader.u16("the length of the extra field")?;
        let name = reader.bytes(name_bytes.into(), "the name")?;
        if name != self.name.as_bytes() {
            return Err(self.fail(path, "has another name in its own header"));
        }
        reader.bytes(extra_bytes.into(), "the extra field")?;
        let start = usize::try_from(reader.position()).unwrap_or(usize::MAX);
        reader.bytes(self.size, &format!("the entry `{}`", printable(self.name)))?;
        let end = usize::try_from(reader.position()).unwrap_or(usize::MAX);
        Ok(start..end)
    }

    /// The top folder and the name below it.
    fn split_name(&self, path: &Path) -> Result<(&'a str, &'a str)> {
        let plain = !self.name.contains(['\\', '\0'])
            && self
                .name
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        match self.name.split_once('/') {
            Some(parts) if plain => Ok(parts),
            _ => Err(self.fail(path, "is not a plain name in a folder")),
        }
    }

    fn fail(&self, path: &Path, reason: &str) -> WeightsError {
        WeightsError::malformed(
            path,
            Location::Offset(self.offset as u64),
            format!("the zip entry `{}` {reason}", printable(self.name)),
        )
    }
}

/// The 64-bit values of an entry, in the order of the fields that refer to them.
struct Zip64<'a> {
    values: Option<Reader<'a>>,
    path: &'a Path,
    at: u64,
}

impl<'a> Zip64<'a> {
    fn find(path: &'a Path, extra: &'a [u8], at: u64) -> Result<Self> {
        let mut reader = Reader::new(path, extra);
        let mut values = None;
        while values.is_none() && reader.remaining() > 0 {
            let truncated = |_| {
                WeightsError::malformed(path, Location::Offset(at), "its extra field is cut off")
            };
            let kind = reader.u16("a field").map_err(truncated)?;
            let length = reader.u16("a field").map_err(truncated)?;
            let field = reader.bytes(length.into(), "a field").map_err(truncated)?;
            if kind == ZIP64_EXTRA {
                values = Some(Reader::new(path, field));
            }
        }
        Ok(Self { values, path, at })
    }

    /// The value itself, or the next 64-bit one where it says so.
    fn or(&mut self, value: u32) -> Result<u64> {
        if value != IN_ZIP64 {
            return Ok(value.into());
        }
        self.values
            .as_mut()
            .and_then(|values| values.u64("a zip64 value").ok())
            .ok_or_else(|| {
                WeightsError::malformed(
                    self.path,
                    Location::Offset(self.at),
                    "a zip entry lacks its 64-bit size or offset",
                )
            })
    }
}
