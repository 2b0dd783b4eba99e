//! Activations in eight bits, laid out for integer dot products.

use super::UNIT;

/// 1.5 * 2^23: adding it to a number below 2^22 leaves the number, rounded to the nearest integer (to the
/// even one when two are as near), in the low bits.
pub(super) const ROUNDING: f32 = 12_582_912.0;

/// What the sums beside the codes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// Integers `-offset * sum(codes)`: where integer accumulators start, so that the offset of the
    /// weights' codes drops out.
    Offset(i32),
    /// Floats `scale * sum(codes)`: what the weights' minima are multiplied by.
    Minima,
}

/// How quantised rows are laid out.
///
/// Each 32 values (a unit) of a row share a scale, the largest absolute value over 127, and are
/// rounded to integers of -127..=127. Rows that a kernel takes together (a tile) lie interleaved:
/// `[step of 4 columns][row]` words of four codes (or two such words in the place of one), `[unit][row]` scales,
/// `[group][row]` sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) cols: usize,
    /// Groups of weights with a scale of their own in a unit: one or two.
    pub(super) groups: usize,
    pub(super) sums: Sums,
    /// Whether two words of a row lie together. Only 64-bit ARM has kernels for that.
    pub(super) pairs: bool,
}

impl Layout {
    pub(super) fn units(&self) -> usize {
        self.cols / UNIT
    }

    /// 32-bit words that a row takes.
    pub(super) fn row_words(&self) -> usize {
        self.units() * (UNIT / 4 + 1 + self.groups)
    }

    /// Quantises a tile of rows, which lie one after another in `x`, to `rows * row_words()` words.
    ///
    /// # Safety
    /// The instruction set of `Q` must be present.
    #[inline(always)] // compiled for the caller's instruction set
    pub(super) unsafe fn quantise<Q: Quantise>(&self, x: &[f32], rows: usize, words: &mut [u32]) {
        let (codes, rest) = words.split_at_mut(rows * self.cols / 4);
        let (scales, sums) = rest.split_at_mut(rows * self.units());
        for (row, x) in x.chunks_exact(self.cols).enumerate() {
            for (index, x) in x.as_chunks::<UNIT>().0.iter().enumerate() {
                // SAFETY: the caller's promise.
                let unit = unsafe { Q::unit(x) };
                for (step, word) in unit.words.into_iter().enumerate() {
                    let step = index * (UNIT / 4) + step;
                    let place = if cfg!(any(target_arch = "aarch64", test)) && self.pairs {
                        (step / 2 * rows + row) * 2 + step % 2
                    } else {
                        step * rows + row
                    };
                    codes[place] = word;
                }
                scales[index * rows + row] = unit.scale.to_bits();
                let [first, second] = unit.half_sums;
                let groups = if self.groups == 1 {
                    [first + second, 0]
                } else {
                    [first, second]
                };
                for (group, sum) in groups[..self.groups].iter().enumerate() {
                    sums[(index * self.groups + group) * rows + row] = match self.sums {
                        Sums::Offset(offset) => (-offset * sum).cast_unsigned(),
                        Sums::Minima => (unit.scale * *sum as f32).to_bits(),
                    };
                }
            }
        }
    }
}

/// 32 quantised values of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    /// Four codes each.
    pub(super) words: [u32; UNIT / 4],
    pub(super) scale: f32,
    /// The sum of the first and of the last sixteen codes.
    pub(super) half_sums: [i32; 2],
}

/// How an instruction set quantises.
pub(super) trait Quantise {
    /// Quantises 32 values. NaN and infinity give a scale that is not finite, and with it results that are
    /// not; a unit without a value above 4e-37 counts as zeros.
    ///
    /// # Safety
    /// The instruction set must be present.
    unsafe fn unit(x: &[f32; UNIT]) -> Unit;
}

/// The scale of a unit by the bits of its largest value, and what values are multiplied by. Without their sign, floats
/// are ordered as their bits, and NaN is above infinity.
#[inline(always)]
pub(super) fn scales(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    let inverse = 127.0 / largest;
    if inverse == f32::INFINITY {
        (0.0, 0.0)
    } else {
        (largest / 127.0, inverse)
    }
}

/// The plain form.
pub(super) struct Plain;

impl Quantise for Plain {
    unsafe fn unit(x: &[f32; UNIT]) -> Unit {
        let largest = x.iter().map(|x| x.abs().to_bits()).fold(0, u32::max);
        let (scale, inverse) = scales(largest);
        let codes = x.map(|x| (x * inverse + ROUNDING).to_bits() as u8);
        let (words, _) = codes.as_chunks();
        let halves = codes.as_chunks::<{ UNIT / 2 }>().0;
        let sum = |half: usize| halves[half].iter().map(|&code| i32::from(code as i8)).sum();
        Unit {
            words: std::array::from_fn(|word| u32::from_ne_bytes(words[word])),
            scale,
            half_sums: [sum(0), sum(1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(values: &[f32]) -> Unit {
        let mut x = [0.0; UNIT];
        x[..values.len()].copy_from_slice(values);
        // SAFETY: the plain form needs no instruction set.
        unsafe { Plain::unit(&x) }
    }

    fn codes(unit: &Unit) -> Vec<i8> {
        let bytes = unit.words.iter().flat_map(|word| word.to_ne_bytes());
        bytes.map(u8::cast_signed).collect()
    }

    #[test]
    fn values_become_the_nearest_of_255_steps() {
        let unit = unit(&[127.0, -127.0, 1.4, -1.6, 2.5, 3.5, -0.5]);
        assert_eq!(unit.scale, 1.0);
        assert_eq!(codes(&unit)[..8], [127, -127, 1, -2, 2, 4, 0, 0]);
        assert_eq!(unit.half_sums, [5, 0]);
    }

    #[test]
    fn what_is_not_finite_stays_so_and_what_is_tiny_becomes_zero() {
        assert!(unit(&[1.0, f32::NAN]).scale.is_nan());
        assert_eq!(unit(&[f32::NEG_INFINITY, 1.0]).scale, f32::INFINITY);
        for zero in [0.0, f32::from_bits(1), 1e-38] {
            let unit = unit(&[zero]);
            assert_eq!((unit.scale, unit.words), (0.0, [0; UNIT / 4]));
        }
        let unit = unit(&[1e-36, -2.5e-37]);
        assert_eq!(codes(&unit)[..2], [127, -32]);
    }

    #[test]
    fn rows_of_a_tile_are_interleaved_with_their_sums() {
        let x: Vec<f32> = (0..128).map(|index| (index % 64) as f32 - 31.5).collect();
        for (groups, sums, pairs) in [
            (1, Sums::Offset(8), false),
            (2, Sums::Minima, false),
            (1, Sums::Offset(8), true),
        ] {
            let layout = Layout {
                cols: 64,
                groups,
                sums,
                pairs,
            };
            assert_eq!(layout.row_words(), 2 * (8 + 1 + groups));
            let mut words = vec![0; 2 * layout.row_words()];
            // SAFETY: the plain form needs no instruction set.
            unsafe { layout.quantise::<Plain>(&x, 2, &mut words) }
            for row in 0..2 {
                for index in 0..2 {
                    let unit = unit(&x[row * 64 + index * 32..][..32]);
                    for (step, word) in unit.words.into_iter().enumerate() {
                        let place = if pairs {
                            ((index * 4 + step / 2) * 2 + row) * 2 + step % 2
                        } else {
                            (index * 8 + step) * 2 + row
                        };
                        assert_eq!(words[place], word);
                    }
                    assert_eq!(words[32 + index * 2 + row], unit.scale.to_bits());
                    let halves = unit.half_sums;
                    let sum = |group: usize| words[36 + (index * groups + group) * 2 + row];
                    match sums {
                        Sums::Offset(_) => {
                            let want = -8 * (halves[0] + halves[1]);
                            assert_eq!(sum(0).cast_signed(), want);
                        }
                        Sums::Minima => {
                            for (group, half) in halves.into_iter().enumerate() {
                                assert_eq!(sum(group), (unit.scale * half as f32).to_bits());
                            }
                        }
                    }
                }
            }
        }
    }
}
