//! Rows of a file as panels: sixteen rows of 32-bit words become lines of sixteen.
//!
//! A word is two columns of `bf16`, as panels have them. The bytes may begin anywhere.

use crate::InstructionSet;
use crate::buffer::{Line, prefetch_at};
use crate::pack::PANEL;

/// Bytes of a word.
const WORD: usize = 4;

/// Writes so many words as `panel` has lines of each of sixteen rows, which begin `row_bytes` after one another. As many
/// bytes from the address `ahead` on are asked for meanwhile, evenly: all at once, loads would wait behind them.
pub(crate) fn turn(
    set: InstructionSet,
    rows: &[u8],
    row_bytes: usize,
    panel: &mut [Line],
    ahead: *const u8,
) {
    assert!(rows.len() >= (PANEL - 1) * row_bytes + WORD * panel.len());
    let done = match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the length was checked above, the instruction set when it was chosen.
            unsafe { avx2(rows, row_bytes, panel, ahead) }
        }
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { neon(rows, row_bytes, panel, ahead) }
        }
        _ => 0,
    };
    scalar(&rows[WORD * done..], row_bytes, &mut panel[done..]);
}

fn scalar(rows: &[u8], row_bytes: usize, panel: &mut [Line]) {
    for lane in 0..PANEL {
        let row = rows[lane * row_bytes..].as_chunks::<WORD>().0;
        for (word, line) in row.iter().zip(&mut *panel) {
            line.0[lane] = f32::from_ne_bytes(*word);
        }
    }
}

/// Returns how many lines were written: those in whole vectors.
///
/// # Safety
/// The rows must be as long as [`turn`] asserts, and AVX2 present.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(rows: &[u8], row_bytes: usize, panel: &mut [Line], ahead: *const u8) -> usize {
    use std::arch::x86_64::*;
    let (groups, _) = panel.as_chunks_mut::<8>();
    for (index, lines) in groups.iter_mut().enumerate() {
        for half in [0, 8] {
            let at = rows.as_ptr().wrapping_add(8 * WORD * index);
            let vectors = std::array::from_fn(|row| {
                // SAFETY: each of the rows holds a word for each line (the caller's promise).
                unsafe { _mm256_loadu_ps(at.wrapping_add((half + row) * row_bytes).cast()) }
            });
            for (line, vector) in lines.iter_mut().zip(super::avx2::transposed(vectors)) {
                // SAFETY: a line has room for two vectors.
                unsafe { _mm256_store_ps(line.0.as_mut_ptr().add(half), vector) }
            }
            for line in half / 2..half / 2 + 4 {
                prefetch_at(ahead.wrapping_add((8 * index + line) * size_of::<Line>()));
            }
        }
    }
    8 * groups.len()
}

/// The same for NEON.
///
/// # Safety
/// The rows must be as long as [`turn`] asserts, and NEON present.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(rows: &[u8], row_bytes: usize, panel: &mut [Line], ahead: *const u8) -> usize {
    use std::arch::aarch64::*;
    let (groups, _) = panel.as_chunks_mut::<4>();
    for (index, lines) in groups.iter_mut().enumerate() {
        for part in [0, 4, 8, 12] {
            let at = rows.as_ptr().wrapping_add(4 * WORD * index);
            let mut vectors = [vdupq_n_f32(0.0); 4];
            for (row, vector) in vectors.iter_mut().enumerate() {
                let row = at.wrapping_add((part + row) * row_bytes);
                // SAFETY: each of the rows holds a word for each line (the caller's promise). Bytes may begin anywhere.
                *vector = unsafe { vreinterpretq_f32_u8(vld1q_u8(row)) };
            }
            for (line, vector) in lines.iter_mut().zip(super::neon::transposed(vectors)) {
                // SAFETY: a line has room for four vectors.
                unsafe { vst1q_f32(line.0.as_mut_ptr().add(part), vector) }
            }
            prefetch_at(ahead.wrapping_add((4 * index + part / 4) * size_of::<Line>()));
        }
    }
    4 * groups.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instruction_sets_write_the_same() {
        for pairs in [0, 1, 3, 4, 7, 8, 9, 33] {
            let row_bytes = WORD * pairs + 6;
            // No byte more than the last row has, and none where words would begin.
            let bytes: Vec<u8> = (0..1 + (PANEL - 1) * row_bytes + WORD * pairs)
                .map(|byte| (byte % 251) as u8)
                .collect();
            let bits = |panel: &[Line]| -> Vec<[u32; PANEL]> {
                panel.iter().map(|line| line.0.map(f32::to_bits)).collect()
            };
            let mut expected = vec![Line::ZERO; pairs];
            scalar(&bytes[1..], row_bytes, &mut expected);
            for (index, line) in expected.iter().enumerate() {
                let first = 1 + 2 * row_bytes + WORD * index;
                assert_eq!(line.0[2].to_ne_bytes(), bytes[first..first + WORD]);
            }
            for set in InstructionSet::available() {
                let mut panel = vec![Line([7.0; PANEL]); pairs];
                turn(set, &bytes[1..], row_bytes, &mut panel, bytes.as_ptr());
                assert_eq!(bits(&panel), bits(&expected), "{pairs} words on {set:?}");
            }
        }
    }
}
