//! Blocks as GGUF files hold them. The layouts are those of the GGUF specification's tensor types.

use half::f16;

use super::{Format, Scales, UNIT};
use crate::WeightKind;
use crate::pack::PANEL;

/// One block of one row, of `VALUES` values, with every field in a place of its own.
pub(super) struct Block<const VALUES: usize> {
    /// Bits of the `f16` factor of the scales.
    scale: u16,
    /// Bits of the `f16` factor of the minima, or (plain scales) of the term that is added.
    minimum: u16,
    /// Nested scales, by group.
    scales: [i8; 16],
    /// Nested minima, by group.
    minima: [u8; 16],
    /// Codes as the file has them: not negative, except for `Q8_0`.
    codes: [u8; VALUES],
}

// What packs is inlined where the format is a constant: of the many cases one is left.
#[allow(clippy::inline_always, reason = "said above")]
impl<const VALUES: usize> Block<VALUES> {
    /// Takes a block apart. `bytes` must have the length of the kind's block.
    #[inline(always)]
    pub(super) fn read(kind: WeightKind, bytes: &[u8]) -> Self {
        let mut block = Self {
            scale: 0,
            minimum: 0,
            scales: [0; 16],
            minima: [0; 16],
            codes: [0; VALUES],
        };
        match kind {
            WeightKind::F32 | WeightKind::F16 | WeightKind::Bf16 => {}
            WeightKind::Q8_0 => {
                block.scale = half_at(bytes, 0);
                block.codes[..32].copy_from_slice(&bytes[2..34]);
            }
            WeightKind::Q4_0 | WeightKind::Q4_1 | WeightKind::Q5_0 | WeightKind::Q5_1 => {
                block.read_plain(kind, bytes);
            }
            WeightKind::Q2K => {
                block.scale = half_at(bytes, 80);
                block.minimum = half_at(bytes, 82);
                for (group, &byte) in bytes[..16].iter().enumerate() {
                    block.scales[group] = (byte & 15).cast_signed();
                    block.minima[group] = byte >> 4;
                }
                block.read_pairs(&bytes[16..80]);
            }
            WeightKind::Q3K => block.read_q3k(bytes),
            WeightKind::Q4K | WeightKind::Q5K => block.read_q4k_q5k(kind, bytes),
            WeightKind::Q6K => block.read_q6k(bytes),
        }
        block
    }

    /// 32 values: the low halves of sixteen bytes, then the high halves; fifth bits in a word.
    #[inline(always)]
    fn read_plain(&mut self, kind: WeightKind, bytes: &[u8]) {
        self.scale = half_at(bytes, 0);
        let mut rest = &bytes[2..];
        if matches!(kind, WeightKind::Q4_1 | WeightKind::Q5_1) {
            self.minimum = half_at(bytes, 2);
            rest = &rest[2..];
        }
        if matches!(kind, WeightKind::Q5_0 | WeightKind::Q5_1) {
            for (index, code) in self.codes[..32].iter_mut().enumerate() {
                *code = (rest[index / 8] >> (index % 8) & 1) << 4;
            }
            rest = &rest[4..];
        }
        for (index, &byte) in rest.iter().enumerate() {
            self.codes[index] |= byte & 15;
            self.codes[index + 16] |= byte >> 4;
        }
    }

    /// Two bits a value: 32 bytes hold 128 values, a quarter of them at each bit pair.
    #[inline(always)]
    fn read_pairs(&mut self, bytes: &[u8]) {
        for (index, code) in self.codes.iter_mut().enumerate() {
            let (half, quarter, place) = (index / 128, index / 32 % 4, index % 32);
            *code = bytes[32 * half + place] >> (2 * quarter) & 3;
        }
    }

    #[inline(always)]
    fn read_q3k(&mut self, bytes: &[u8]) {
        let (high, low, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
        self.scale = half_at(bytes, 108);
        self.read_pairs(low);
        for (index, code) in self.codes.iter_mut().enumerate() {
            *code |= (high[index % 32] >> (index / 32) & 1) << 2;
        }
        for (group, scale) in self.scales.iter_mut().enumerate() {
            let low = scales[group % 8] >> (4 * (group / 8)) & 15;
            let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
            *scale = (low | high << 4).cast_signed() - 32;
        }
    }

    #[inline(always)]
    fn read_q4k_q5k(&mut self, kind: WeightKind, bytes: &[u8]) {
        self.scale = half_at(bytes, 0);
        self.minimum = half_at(bytes, 2);
        // Eight scales and eight minima of six bits in twelve bytes: the last four of each have
        // their low bits in bytes 8..12 and their high bits on top of the first four.
        let packed = &bytes[4..16];
        for group in 0..4 {
            let (scale, minimum, low) = (packed[group], packed[group + 4], packed[group + 8]);
            self.scales[group] = (scale & 63).cast_signed();
            self.minima[group] = minimum & 63;
            self.scales[group + 4] = (low & 15 | scale >> 6 << 4).cast_signed();
            self.minima[group + 4] = low >> 4 | minimum >> 6 << 4;
        }
        let (fifth, halves) = match kind {
            WeightKind::Q5K => (Some(&bytes[16..48]), &bytes[48..176]),
            _ => (None, &bytes[16..144]),
        };
        for (pair, codes) in self.codes.chunks_exact_mut(64).enumerate() {
            let (low, high) = codes.split_at_mut(32);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(&halves[32 * pair..]) {
                (*low, *high) = (byte & 15, byte >> 4);
            }
        }
        if let Some(fifth) = fifth {
            for (unit, codes) in self.codes.chunks_exact_mut(32).enumerate() {
                for (code, byte) in codes.iter_mut().zip(fifth) {
                    *code |= (byte >> unit & 1) << 4;
                }
            }
        }
    }

    #[inline(always)]
    fn read_q6k(&mut self, bytes: &[u8]) {
        self.scale = half_at(bytes, 208);
        for (scale, byte) in self.scales.iter_mut().zip(&bytes[192..208]) {
            *scale = byte.cast_signed();
        }
        for (part, codes) in self.codes.chunks_exact_mut(32).enumerate() {
            let (half, quarter) = (part / 4, part % 4);
            let low = &bytes[64 * half + 32 * (quarter % 2)..][..32];
            let high = &bytes[128 + 32 * half..][..32];
            for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                *code = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            }
        }
    }

    /// The code of value `index` as packed panels hold it: never negative, see [`Format::offset`].
    fn code(&self, format: &Format, index: usize) -> u8 {
        self.codes[index] ^ if centred_in_file(format) { 0x80 } else { 0 }
    }

    /// The values of the block.
    pub(super) fn values(&self, format: &Format, out: &mut [f32]) {
        let (factor, term) = (f16::from_bits(self.scale), f16::from_bits(self.minimum));
        let (factor, term) = (factor.to_f32(), term.to_f32());
        for (index, out) in out.iter_mut().enumerate() {
            let code = (i32::from(self.code(format, index)) - format.offset()) as f32;
            let (scale, minimum) = match format.scales {
                Scales::Plain => (factor, -term),
                Scales::Nested { groups, .. } => {
                    let group = index * groups / UNIT;
                    let minimum = term * f32::from(self.minima[group]);
                    (factor * f32::from(self.scales[group]), minimum)
                }
            };
            *out = if format.minima {
                scale * code - minimum
            } else {
                scale * code
            };
        }
    }

    /// Writes the block, which is the row's `index`th, to its lane of a panel that is still zero there.
    #[inline(always)]
    pub(super) fn pack(&self, format: &Format, lane: usize, index: usize, panel: &mut [u8]) {
        let sign = if centred_in_file(format) {
            0x8080_8080
        } else {
            0
        };
        for unit in 0..format.values / UNIT {
            let [factors, scales, codes] =
                format.unit_places(index * (format.values / UNIT) + unit);
            let factors = &mut panel[factors..][..format.factor_bytes()];
            factors[2 * lane..][..2].copy_from_slice(&self.scale.to_ne_bytes());
            if format.minima {
                factors[2 * (PANEL + lane)..][..2].copy_from_slice(&self.minimum.to_ne_bytes());
            }
            if let Scales::Nested { groups, shared } = format.scales {
                let scales = &mut panel[scales..][..format.scale_bytes()];
                for index in 0..groups {
                    let group = unit * groups + index;
                    let scale = self.scales[group].cast_unsigned();
                    let minimum = self.minima[group];
                    if shared {
                        scales[index * PANEL + lane] = scale | minimum << 4;
                    } else {
                        scales[index * PANEL + lane] = scale;
                        if format.minima {
                            scales[(groups + index) * PANEL + lane] = minimum;
                        }
                    }
                }
            }
            let mut words = [0_u32; 8];
            let own = self.codes[unit * UNIT..][..UNIT].as_chunks::<4>().0;
            for (step, codes) in own.iter().enumerate() {
                let codes = u32::from_ne_bytes(*codes) ^ sign;
                for place in format.places(step) {
                    let mask = ((1 << place.bits) - 1) * 0x0101_0101_u32;
                    words[place.word] |= (codes >> place.low & mask) << place.shift;
                }
            }
            let packed = panel[codes..][..format.code_bytes()].chunks_exact_mut(4 * PANEL);
            for (word, packed) in words.iter().zip(packed) {
                packed[4 * lane..][..4].copy_from_slice(&word.to_ne_bytes());
            }
        }
    }
}

/// Whether codes are in two's complement in the file: those of `Q8_0` alone.
fn centred_in_file(format: &Format) -> bool {
    format.bits == 8
}

/// The little-endian 16-bit word at byte `at`.
fn half_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
