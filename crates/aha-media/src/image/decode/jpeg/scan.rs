//! Scans to coefficients or samples (ITU-T T.81, annexes F and G).

use super::Result;
use super::entropy::{BitReader, HuffmanTable};
use super::frame::{Component, Frame};
use super::idct;

/// Where coefficients in the order of a scan stand in a block, row by row.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Huffman tables by their numbers.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) dc: [Option<HuffmanTable>; 4],
    pub(super) ac: [Option<HuffmanTable>; 4],
}

/// What a scan's header says.
pub(super) struct ScanHeader {
    /// Index of each component in the frame, and numbers of its tables.
    pub(super) components: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub(super) spectrum: (usize, usize),
    /// Bits that are still missing before this scan and after it; 0 before means all.
    pub(super) approximation: (u32, u32),
}

/// Decodes a scan; returns where its bytes end.
pub(super) fn decode(
    frame: &mut Frame,
    tables: &Tables,
    header: &ScanHeader,
    restart_interval: usize,
    (bytes, at): (&[u8], usize),
) -> Result<usize> {
    let mut state = State {
        reader: BitReader::new(bytes, at),
        predictions: [0; 4],
        end_of_band_run: 0,
    };
    let progressive = frame.progressive;
    let interleaved = header.components.len() > 1;
    let (columns, rows) = match header.components.as_slice() {
        [(index, ..)] => frame.components[*index].own_blocks,
        _ => frame.units,
    };
    let mut until_restart = restart_interval;
    for unit in 0..columns * rows {
        if restart_interval > 0 && until_restart == 0 {
            state.reader.restart()?;
            (state.predictions, state.end_of_band_run) = ([0; 4], 0);
            until_restart = restart_interval;
        }
        until_restart = until_restart.wrapping_sub(1);
        let (row, column) = (unit / columns, unit % columns);
        for &(index, dc, ac) in &header.components {
            let component = &mut frame.components[index];
            let (h, v) = if interleaved {
                component.sampling
            } else {
                (1, 1)
            };
            for part in 0..h * v {
                let place = (column * h + part % h, row * v + part / h);
                let tables = (tables.dc[dc].as_ref(), tables.ac[ac].as_ref());
                if progressive {
                    state.progressive_block(component, index, place, tables, header)?;
                } else {
                    state.sequential_block(component, index, place, tables)?;
                }
            }
        }
    }
    Ok(state.reader.position())
}

struct State<'a> {
    reader: BitReader<'a>,
    /// Last DC value of each component.
    predictions: [i32; 4],
    /// Blocks that follow without further coefficients in the band.
    end_of_band_run: u32,
}

fn needed(table: Option<&HuffmanTable>) -> Result<&HuffmanTable> {
    table.ok_or_else(|| "a Huffman table is missing".into())
}

type BlockTables<'t> = (Option<&'t HuffmanTable>, Option<&'t HuffmanTable>);

impl State<'_> {
    fn dc(&mut self, index: usize, table: &HuffmanTable) -> Result<i32> {
        let size = u32::from(self.reader.symbol(table)?);
        if size > 11 {
            return Err("a DC value is too long".into());
        }
        let value = self.predictions[index].wrapping_add(self.reader.signed(size));
        self.predictions[index] = value;
        Ok(value)
    }

    /// A whole block, straight to samples.
    fn sequential_block(
        &mut self,
        component: &mut Component,
        index: usize,
        (column, row): (usize, usize),
        (dc, ac): BlockTables<'_>,
    ) -> Result<()> {
        let (dc, ac) = (needed(dc)?, needed(ac)?);
        let mut block = [0_i16; 64];
        block[0] = self.dc(index, dc)? as i16;
        let mut at = 1;
        while at < 64 {
            let symbol = self.reader.symbol(ac)?;
            let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if zeros != 15 {
                    break;
                }
                at += 16;
                continue;
            }
            at += zeros;
            let value = self.reader.signed(size);
            let place = ZIGZAG.get(at).ok_or("a block has too many coefficients")?;
            block[usize::from(*place)] = value as i16;
            at += 1;
        }
        let (start, stride) = component.sample_place(column, row);
        idct::block(
            &block,
            &component.quantization,
            &mut component.samples,
            start,
            stride,
        );
        Ok(())
    }

    fn progressive_block(
        &mut self,
        component: &mut Component,
        index: usize,
        place: (usize, usize),
        (dc, ac): BlockTables<'_>,
        header: &ScanHeader,
    ) -> Result<()> {
        let (first, last) = header.spectrum;
        let (before, after) = header.approximation;
        let block = component.coefficients_at(place)?;
        match (first == 0, before == 0) {
            (true, true) => block[0] = (self.dc(index, needed(dc)?)? << after) as i16,
            (true, false) => {
                if self.reader.bits(1) == 1 {
                    block[0] |= 1 << after;
                }
            }
            (false, true) => self.first_band(block, needed(ac)?, (first, last), after)?,
            (false, false) => self.refined_band(block, needed(ac)?, (first, last), after)?,
        }
        Ok(())
    }

    /// The first scan of a band of coefficients.
    fn first_band(
        &mut self,
        block: &mut [i16; 64],
        table: &HuffmanTable,
        (first, last): (usize, usize),
        after: u32,
    ) -> Result<()> {
        if self.end_of_band_run > 0 {
            self.end_of_band_run -= 1;
            return Ok(());
        }
        let mut at = first;
        while at <= last {
            let symbol = self.reader.symbol(table)?;
            let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 {
                if zeros == 15 {
                    at += 16;
                    continue;
                }
                self.end_of_band_run = (1 << zeros) - 1 + self.reader.bits(zeros as u32);
                break;
            }
            at += zeros;
            let value = self.reader.signed(size);
            if at > last {
                return Err("a band has too many coefficients".into());
            }
            block[usize::from(ZIGZAG[at])] = (value << after) as i16;
            at += 1;
        }
        Ok(())
    }

    /// A scan that adds a bit to every coefficient of a band that is known, and names new ones.
    fn refined_band(
        &mut self,
        block: &mut [i16; 64],
        table: &HuffmanTable,
        (first, last): (usize, usize),
        after: u32,
    ) -> Result<()> {
        let bit = 1_i16 << after;
        let mut at = first;
        if self.end_of_band_run == 0 {
            while at <= last {
                let symbol = self.reader.symbol(table)?;
                let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 15);
                let mut new = 0;
                match size {
                    0 if zeros < 15 => {
                        self.end_of_band_run = (1 << zeros) + self.reader.bits(zeros);
                        break;
                    }
                    0 => {}
                    1 => new = if self.reader.bits(1) == 1 { bit } else { -bit },
                    _ => return Err("a refinement of more than one bit".into()),
                }
                // Known coefficients on the way are refined; unknown ones are counted.
                while at <= last {
                    let value = &mut block[usize::from(ZIGZAG[at])];
                    if *value != 0 {
                        self.refine(value, bit);
                    } else if zeros == 0 {
                        *value = new;
                        at += 1;
                        break;
                    } else {
                        zeros -= 1;
                    }
                    at += 1;
                }
            }
        }
        if self.end_of_band_run > 0 {
            for at in at..=last {
                let value = &mut block[usize::from(ZIGZAG[at])];
                if *value != 0 {
                    self.refine(value, bit);
                }
            }
            self.end_of_band_run -= 1;
        }
        Ok(())
    }

    fn refine(&mut self, value: &mut i16, bit: i16) {
        if self.reader.bits(1) == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
        }
    }
}
