//! Rows as columns.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod panel;

pub(crate) use panel::turn;

use crate::InstructionSet;

/// Rows that are transposed at once, at most.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
const LANES: usize = 8;

/// Writes `rows` rows, which begin `stride` values after one another in `source`, as `[depth][rows]`: as many columns
/// as `target` has room for. There may be up to eight rows.
pub(crate) fn transpose(
    set: InstructionSet,
    source: &[f32],
    stride: usize,
    rows: usize,
    target: &mut [f32],
) {
    let done = match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { avx2::transpose(source, stride, rows, target) }
        }
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { neon::transpose(source, stride, rows, target) }
        }
        _ => 0,
    };
    scalar(&source[done..], stride, rows, &mut target[done * rows..]);
}

fn scalar(source: &[f32], stride: usize, rows: usize, target: &mut [f32]) {
    let depth = target.len() / rows;
    for row in 0..rows {
        let source = &source[row * stride..][..depth];
        let places = target.iter_mut().skip(row).step_by(rows);
        for (&value, place) in source.iter().zip(places) {
            *place = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instruction_sets_write_the_same() {
        for (rows, depth) in
            (1..=LANES).flat_map(|rows| [0, 1, 7, 8, 9, 64, 77].map(|depth| (rows, depth)))
        {
            let stride = depth + 3;
            // No value more than the last row has: nothing may be read behind it.
            let source: Vec<f32> = (0..(rows - 1) * stride + depth)
                .map(|value| value as f32)
                .collect();
            let mut expected = vec![f32::NAN; depth * rows];
            scalar(&source, stride, rows, &mut expected);
            for set in InstructionSet::available() {
                let mut target = vec![f32::NAN; depth * rows];
                transpose(set, &source, stride, rows, &mut target);
                assert_eq!(target, expected, "{rows} rows of {depth} on {set:?}");
            }
        }
    }
}
