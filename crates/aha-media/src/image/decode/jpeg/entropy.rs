//! Bits and Huffman codes of a scan (ITU-T T.81, annexes C and F).

use super::Result;

/// Codes up to this long are looked up at once.
const FAST_BITS: u32 = 9;

/// A Huffman table: what the codes of each length stand for.
#[derive(Clone)]
pub(super) struct HuffmanTable {
    /// For each beginning of [`FAST_BITS`] bits the symbol and the length of its code; length 0 where it is longer.
    fast: Vec<(u8, u8)>,
    /// Largest code of each length, shifted left to 16 bits, and one more; of no code where it is not above the last.
    ends: [u32; 17],
    /// Added to a code of a length gives the index of its symbol.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl HuffmanTable {
    /// From the number of codes of each length and the symbols in order.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self> {
        let mut fast = vec![(0, 0); 1 << FAST_BITS];
        let (mut ends, mut offsets) = ([0; 17], [0; 17]);
        let (mut code, mut index) = (0_u32, 0_usize);
        for length in 1..=16_u32 {
            offsets[length as usize] = index as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                let symbol = *symbols.get(index).ok_or("a Huffman table is cut off")?;
                if code >= 1 << length {
                    return Err("a Huffman table has too many codes".into());
                }
                if length <= FAST_BITS {
                    let spare = FAST_BITS - length;
                    let first = (code << spare) as usize;
                    fast[first..first + (1 << spare)].fill((symbol, length as u8));
                }
                code += 1;
                index += 1;
            }
            ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(Self {
            fast,
            ends,
            offsets,
            symbols: symbols[..index].to_vec(),
        })
    }
}

/// Reads a scan's bits; zeros follow where they end before the next marker, as in libjpeg.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    bits: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            bits: 0,
            count: 0,
        }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let byte = match self.bytes.get(self.at) {
                Some(0xff) if self.bytes.get(self.at + 1) == Some(&0) => {
                    self.at += 2;
                    0xff
                }
                // A marker: it stays for whoever reads on.
                Some(0xff) | None => 0,
                Some(&byte) => {
                    self.at += 1;
                    byte
                }
            };
            self.bits = self.bits << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next `count` bits, at most 16.
    pub(super) fn bits(&mut self, count: u32) -> u32 {
        if count == 0 {
            return 0;
        }
        let value = self.peek(count);
        self.count -= count;
        value
    }

    fn peek(&mut self, count: u32) -> u32 {
        if self.count < count {
            self.fill();
        }
        (self.bits >> (self.count - count)) as u32 & ((1 << count) - 1)
    }

    /// A number of `size` bits whose first bit tells its sign.
    pub(super) fn signed(&mut self, size: u32) -> i32 {
        let value = self.bits(size) as i32;
        if size > 0 && value < 1 << (size - 1) {
            value - (1 << size) + 1
        } else {
            value
        }
    }

    /// The next symbol.
    pub(super) fn symbol(&mut self, table: &HuffmanTable) -> Result<u8> {
        let ahead = self.peek(16);
        let (symbol, length) = table.fast[(ahead >> (16 - FAST_BITS)) as usize];
        if length > 0 {
            self.count -= u32::from(length);
            return Ok(symbol);
        }
        for length in FAST_BITS + 1..=16 {
            if ahead < table.ends[length as usize] {
                self.count -= length;
                let code = (ahead >> (16 - length)) as i32;
                let index = code + table.offsets[length as usize];
                let symbol = usize::try_from(index)
                    .ok()
                    .and_then(|index| table.symbols.get(index));
                return symbol
                    .copied()
                    .ok_or_else(|| "a code stands for nothing".into());
            }
        }
        Err("a code stands for nothing".into())
    }

    /// Goes on behind the next restart marker.
    pub(super) fn restart(&mut self) -> Result<()> {
        (self.bits, self.count) = (0, 0);
        while self.bytes.get(self.at) == Some(&0xff) && self.bytes.get(self.at + 1) == Some(&0xff) {
            self.at += 1;
        }
        match self.bytes.get(self.at..self.at + 2) {
            Some([0xff, 0xd0..=0xd7]) => {
                self.at += 2;
                Ok(())
            }
            _ => Err("a restart marker is missing".into()),
        }
    }

    /// Where the next marker is looked for: bytes read ahead were not of the scan.
    pub(super) fn position(&self) -> usize {
        self.at
    }
}
