//! JPEG: baseline and progressive pictures, to the samples that libjpeg-turbo gives by default.
//!
//! References read JPEG through Pillow, which reads it through libjpeg-turbo: its integer transform, its smooth upsampling
//! and its colour tables are followed here to the last bit, because models were trained on those samples.

mod entropy;
mod frame;
mod idct;
mod output;
mod scan;

use super::malformed;
use crate::MediaError;
use crate::image::convert::cmyk_to_rgb;
use crate::image::{Channels, Image, Limits, Orientation};
use entropy::HuffmanTable;
use frame::Frame;
use output::Colors;
use scan::{ScanHeader, Tables, ZIGZAG};

/// What is wrong with a file.
type Result<T> = std::result::Result<T, String>;

/// More scans only serve to keep a decoder busy.
const MOST_SCANS: usize = 200;

pub(super) fn decode(
    bytes: &[u8],
    limits: &Limits,
) -> std::result::Result<(Image, Orientation), MediaError> {
    let broken = |reason: String| malformed("JPEG")(reason);
    let mut reader = Reader::new(bytes);
    let size = reader.read_frame_header().map_err(broken)?;
    let (width, height) = limits.check_pixels(size.0 as u64, size.1 as u64)?;
    let (frame, colors) = reader.read_scans().map_err(broken)?;
    let mut samples = output::pixels(&frame, colors);
    let channels = match colors {
        Colors::Gray => Channels::Gray,
        Colors::Rgb | Colors::Ycc => Channels::Rgb,
        Colors::Cmyk | Colors::Ycck => {
            if reader.adobe.is_some() {
                // Adobe stores the inks inverted.
                for sample in &mut samples {
                    *sample = 255 - *sample;
                }
            }
            samples = cmyk_to_rgb(&samples);
            Channels::Rgb
        }
    };
    Ok((
        Image::new(width, height, channels, samples)?,
        reader.orientation,
    ))
}

/// What the segments before and between the scans say.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    quantization: [Option<[u16; 64]>; 4],
    tables: Tables,
    restart_interval: usize,
    frame_header: Option<FrameHeader>,
    jfif: bool,
    /// The transform that an Adobe segment names.
    adobe: Option<u8>,
    orientation: Orientation,
}

/// A frame that nothing was allocated for yet.
struct FrameHeader {
    size: (usize, usize),
    progressive: bool,
    components: Vec<(u8, (usize, usize), usize)>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 2,
            quantization: [None; 4],
            tables: Tables::default(),
            restart_interval: 0,
            frame_header: None,
            jfif: false,
            adobe: None,
            orientation: Orientation::Upright,
        }
    }

    /// The next marker, whatever stands before it.
    fn marker(&mut self) -> Result<u8> {
        loop {
            let at = self.at;
            match self.bytes.get(at..at + 2) {
                None => return Err("there is no end marker after the scans".into()),
                Some([0xff, code]) if !matches!(code, 0 | 0xff) => {
                    self.at += 2;
                    return Ok(*code);
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// The bytes of the segment that begins here.
    fn segment(&mut self) -> Result<&'a [u8]> {
        let cut = "a segment is cut off";
        let length = self.bytes.get(self.at..self.at + 2).ok_or(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
        let segment = self.bytes.get(self.at + 2..self.at + length).ok_or(cut)?;
        self.at += length;
        Ok(segment)
    }

    /// Reads up to the frame header; returns width and height.
    fn read_frame_header(&mut self) -> Result<(usize, usize)> {
        while self.frame_header.is_none() {
            match self.marker()? {
                0xd9 | 0xda => return Err("there is no frame header before the scans".into()),
                code => self.read_segment(code)?,
            }
        }
        let header = self.frame_header.as_ref();
        header
            .map(|header| header.size)
            .ok_or_else(|| "there is no frame header".into())
    }

    /// Reads all scans up to the end marker.
    fn read_scans(&mut self) -> Result<(Frame, Colors)> {
        let Some(FrameHeader {
            size,
            progressive,
            components,
        }) = self.frame_header.take()
        else {
            return Err("there is no frame header".into());
        };
        let mut frame = Frame::new(size, progressive, components)?;
        let mut scans = 0;
        loop {
            match self.marker()? {
                0xd9 => break,
                0xda => {
                    scans += 1;
                    if scans > MOST_SCANS {
                        return Err(format!("there are more than {MOST_SCANS} scans"));
                    }
                    self.read_scan(&mut frame)?;
                }
                code => self.read_segment(code)?,
            }
        }
        if scans == 0 || frame.components.iter().any(|component| !component.begun) {
            return Err("a component has no scan".into());
        }
        if self.frame_header.is_some() {
            return Err("there is a second frame".into());
        }
        if frame.progressive {
            frame.finish();
        }
        let colors = self.colors(&frame)?;
        Ok((frame, colors))
    }

    fn read_segment(&mut self, code: u8) -> Result<()> {
        if matches!(code, 0x01 | 0xd0..=0xd8) {
            return Ok(());
        }
        let segment = self.segment()?;
        match code {
            0xc0..=0xc2 => self.read_frame(segment, code == 0xc2),
            0xc4 => self.read_huffman_tables(segment),
            0xc3 | 0xc5..=0xcf => {
                Err("the coding (lossless, hierarchical or arithmetic) is not supported".into())
            }
            0xdb => self.read_quantization_tables(segment),
            0xdd => {
                let interval = segment.get(..2).ok_or("the restart interval is cut off")?;
                self.restart_interval = usize::from(u16::from_be_bytes([interval[0], interval[1]]));
                Ok(())
            }
            0xe0 => {
                self.jfif |= segment.starts_with(b"JFIF\0");
                Ok(())
            }
            0xe1 => {
                if let Some(block) = segment.strip_prefix(b"Exif\0\0") {
                    self.orientation = Orientation::from_exif_block(block);
                }
                Ok(())
            }
            0xee => {
                if segment.starts_with(b"Adobe") {
                    self.adobe = segment.get(11).copied();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read_frame(&mut self, segment: &[u8], progressive: bool) -> Result<()> {
        let [precision, h1, h0, w1, w0, count, rest @ ..] = segment else {
            return Err("the frame header is cut off".into());
        };
        if *precision != 8 {
            return Err(format!("{precision} bits a sample are not supported"));
        }
        let size = (
            usize::from(u16::from_be_bytes([*w1, *w0])),
            usize::from(u16::from_be_bytes([*h1, *h0])),
        );
        if size.0 == 0 || size.1 == 0 {
            return Err("a side is zero".into());
        }
        let count = usize::from(*count);
        let components: Vec<_> = rest
            .chunks_exact(3)
            .take(count)
            .map(|part| {
                let sampling = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
                (part[0], sampling, usize::from(part[2]))
            })
            .collect();
        let usable = |(_, (across, down), table): &(u8, (usize, usize), usize)| {
            (1..=4).contains(across) && (1..=4).contains(down) && *table < 4
        };
        if !matches!(count, 1 | 3 | 4)
            || components.len() != count
            || !components.iter().all(usable)
        {
            return Err("the frame header has components that no picture has".into());
        }
        self.frame_header = Some(FrameHeader {
            size,
            progressive,
            components,
        });
        Ok(())
    }

    fn read_quantization_tables(&mut self, mut segment: &[u8]) -> Result<()> {
        while let Some((&head, rest)) = segment.split_first() {
            let width = 1 + usize::from(head >> 4 != 0);
            let place = self.quantization.get_mut(usize::from(head & 15));
            let (Some(place), Some(values)) = (place, rest.get(..64 * width)) else {
                return Err("a quantisation table is cut off".into());
            };
            let mut table = [0; 64];
            for (value, at) in values.chunks_exact(width).zip(ZIGZAG) {
                table[usize::from(at)] = value
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u16::from(*byte));
            }
            *place = Some(table);
            segment = &rest[64 * width..];
        }
        Ok(())
    }

    fn read_huffman_tables(&mut self, mut segment: &[u8]) -> Result<()> {
        while let Some((&head, rest)) = segment.split_first() {
            let cut = "a Huffman table is cut off";
            let counts: &[u8; 16] = rest.first_chunk().ok_or(cut)?;
            let count = counts
                .iter()
                .map(|count| usize::from(*count))
                .sum::<usize>();
            let symbols = rest.get(16..16 + count).ok_or(cut)?;
            let table = HuffmanTable::new(counts, symbols)?;
            let places = if head >> 4 == 0 {
                &mut self.tables.dc
            } else {
                &mut self.tables.ac
            };
            *places
                .get_mut(usize::from(head & 15))
                .ok_or("a Huffman table has a number above 3")? = Some(table);
            segment = &rest[16 + count..];
        }
        Ok(())
    }

    fn read_scan(&mut self, frame: &mut Frame) -> Result<()> {
        let segment = self.segment()?;
        let header = scan_header(segment, frame)?;
        for &(index, ..) in &header.components {
            let component = &mut frame.components[index];
            if !component.begun {
                let table = self.quantization[component.table];
                component.quantization = table.ok_or("a quantisation table is missing")?;
                component.begun = true;
            }
        }
        let data = (self.bytes, self.at);
        self.at = scan::decode(frame, &self.tables, &header, self.restart_interval, data)?;
        Ok(())
    }

    /// What the components stand for, by the rules of libjpeg.
    fn colors(&self, frame: &Frame) -> Result<Colors> {
        let ids: Vec<u8> = frame
            .components
            .iter()
            .map(|component| component.id)
            .collect();
        Ok(match (ids.as_slice(), self.adobe) {
            ([_], _) => Colors::Gray,
            ([_, _, _], _) if self.jfif => Colors::Ycc,
            ([_, _, _], Some(0)) => Colors::Rgb,
            ([_, _, _], Some(_)) => Colors::Ycc,
            (b"RGB", None) => Colors::Rgb,
            ([_, _, _], None) => Colors::Ycc,
            ([_, _, _, _], None | Some(0)) => Colors::Cmyk,
            ([_, _, _, _], Some(_)) => Colors::Ycck,
            _ => return Err("the frame header has components that no picture has".into()),
        })
    }
}

fn scan_header(segment: &[u8], frame: &Frame) -> Result<ScanHeader> {
    let wrong = || "the header of a scan contradicts the frame".to_owned();
    let (&count, rest) = segment.split_first().ok_or_else(wrong)?;
    let count = usize::from(count);
    let (parts, rest) = rest.split_at_checked(2 * count).ok_or_else(wrong)?;
    let [first, last, bits, ..] = rest else {
        return Err(wrong());
    };
    let mut components: Vec<(usize, usize, usize)> = Vec::with_capacity(count);
    for part in parts.chunks_exact(2) {
        let index = frame
            .components
            .iter()
            .position(|component| component.id == part[0]);
        let index = index.ok_or_else(wrong)?;
        let (dc, ac) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
        if dc > 3 || ac > 3 || components.iter().any(|(known, ..)| *known == index) {
            return Err(wrong());
        }
        components.push((index, dc, ac));
    }
    let spectrum = (usize::from(*first), usize::from(*last));
    let approximation = (u32::from(bits >> 4), u32::from(bits & 15));
    let usable = !frame.progressive
        || spectrum.0 <= spectrum.1
            && spectrum.1 < 64
            && (spectrum.0 > 0 || spectrum.1 == 0)
            && (spectrum.0 == 0 || count == 1)
            && approximation.1 <= 13;
    if count == 0 || count > 4 || !usable {
        return Err(wrong());
    }
    Ok(ScanHeader {
        components,
        spectrum,
        approximation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of other kinds: baseline with restarts, progressive, four inks, other samplings.
    fn files() -> Vec<Vec<u8>> {
        let names = [
            "restart",
            "progressive",
            "cmyk",
            "subsampled_height",
            "subsampled_quarter",
        ];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/image/media");
        names
            .iter()
            .map(|name| std::fs::read(format!("{folder}/{name}.jpg")).unwrap())
            .collect()
    }

    #[test]
    fn damaged_files_are_errors_or_pictures() {
        let limits = Limits {
            max_pixels: 1 << 14,
            ..Limits::default()
        };
        for file in files() {
            assert!(decode(&file, &limits).is_ok());
            for at in 2..file.len() {
                for value in [0, 0x3f, 0xff, file[at] ^ 0x55] {
                    let mut damaged = file.clone();
                    damaged[at] = value;
                    let _ = decode(&damaged, &limits);
                }
                assert!(
                    decode(&file[..at], &limits).is_err(),
                    "{at} of {}",
                    file.len()
                );
            }
        }
    }

    #[test]
    fn more_scans_than_a_picture_needs_are_refused() {
        let file = files().remove(1);
        let next_marker = |from: usize| {
            let data = &file[from..];
            let is_marker = |pair: &[u8]| pair[0] == 0xff && pair[1] != 0;
            from + data.windows(2).position(is_marker).unwrap()
        };
        let start_of_scan = [0xff, 0xda];
        let start = file
            .windows(2)
            .position(|pair| pair == start_of_scan)
            .unwrap();
        // The first scan alone: a later one refines what the scans before it gave.
        let (before, scan) = (&file[..start], &file[start..next_marker(start + 2)]);
        let mut many = before.to_vec();
        for _ in 0..=MOST_SCANS {
            many.extend(scan);
        }
        many.extend([0xff, 0xd9]);
        let mut reader = Reader::new(&many);
        reader.read_frame_header().unwrap();
        let error = reader.read_scans().err().unwrap();
        assert!(error.contains("scans"), "{error}");
    }
}
