use std::sync::Arc;

use half::{bf16, f16};

use crate::pool::with_threads;
use crate::quant::tests::{random_blocks, rounded_to_bytes};
use crate::{InstructionSet, KernelError, PackedMatrix, WeightKind, dequantize_gguf};

/// Deterministic values in -1..1.
pub(crate) fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn available() -> Vec<InstructionSet> {
    InstructionSet::available().collect()
}

/// A packed matrix and the values that it holds, in `f32`.
fn matrix(kind: WeightKind, rows: usize, cols: usize, seed: u64) -> (PackedMatrix, Vec<f32>) {
    let data = values(rows * cols, seed);
    match kind {
        WeightKind::F32 => (PackedMatrix::from_f32(rows, cols, &data).unwrap(), data),
        WeightKind::F16 => {
            let data: Vec<_> = data.into_iter().map(f16::from_f32).collect();
            let exact = data.iter().map(|value| value.to_f32()).collect();
            (PackedMatrix::from_f16(rows, cols, &data).unwrap(), exact)
        }
        WeightKind::Bf16 => {
            let data: Vec<_> = data.into_iter().map(bf16::from_f32).collect();
            let exact = data.iter().map(|value| value.to_f32()).collect();
            (PackedMatrix::from_bf16(rows, cols, &data).unwrap(), exact)
        }
        _ => {
            let data = random_blocks(kind, rows * cols, seed);
            let mut exact = vec![0.0; rows * cols];
            dequantize_gguf(kind, &data, &mut exact).unwrap();
            (
                PackedMatrix::from_gguf_blocks(kind, rows, cols, &data).unwrap(),
                exact,
            )
        }
    }
}

/// The next number of columns that is a whole number of blocks.
fn fitting(kind: WeightKind, cols: usize) -> usize {
    cols.next_multiple_of(kind.gguf_block().map_or(1, |(values, _)| values))
}

/// One kind of each way through the kernels.
const KINDS: [WeightKind; 8] = [
    WeightKind::F32,
    WeightKind::F16,
    WeightKind::Bf16,
    WeightKind::Q8_0,
    WeightKind::Q5_1,
    WeightKind::Q2K,
    WeightKind::Q4K,
    WeightKind::Q6K,
];

fn product(set: InstructionSet, w: &PackedMatrix, x: &[f32], m: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.rows()];
    w.matmul_on(set, x, m, &mut out).unwrap();
    out
}

/// The activations as the kernels of a kind take them, and how far each may be from `x` for it.
fn taken(set: InstructionSet, kind: WeightKind, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    if kind.gguf_block().is_some() {
        return rounded_to_bytes(x);
    }
    if kind == WeightKind::Bf16 && set.rounds_to_bf16() {
        let taken = x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        return (taken, x.iter().map(|x| x.abs() / 256.0).collect());
    }
    (x.to_vec(), vec![0.0; x.len()])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn products_agree_with_double_precision_over_odd_shapes() {
    for kind in KINDS {
        for (rows, cols) in [
            (1, 1),
            (2, 7),
            (15, 33),
            (16, 64),
            (17, 65),
            (31, 2),
            (33, 99),
            (40, 100),
            (130, 300),
        ] {
            let cols = fitting(kind, cols);
            let (w, exact) = matrix(kind, rows, cols, (rows * 1000 + cols) as u64);
            for m in (1..=34).chain([200]) {
                let x = values(m * cols, m as u64);
                for set in available() {
                    let out = product(set, &w, &x, m);
                    let (taken, _) = taken(set, kind, &x);
                    for (index, &got) in out.iter().enumerate() {
                        let x = &taken[index / rows * cols..][..cols];
                        let row = &exact[index % rows * cols..][..cols];
                        let terms = x
                            .iter()
                            .zip(row)
                            .map(|(&a, &b)| f64::from(a) * f64::from(b));
                        let (want, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| {
                            (sum + term, all + term.abs())
                        });
                        // Recursive summation: each of the `cols` steps rounds once or twice. Minima are
                        // summed apart from scaled codes, which are larger than their difference.
                        let apart = if kind.gguf_block().is_some() {
                            16.0
                        } else {
                            1.0
                        };
                        let bound = apart * magnitude * (cols + 1) as f64 * f64::from(f32::EPSILON);
                        let difference = (f64::from(got) - want).abs();
                        assert!(
                            difference <= bound,
                            "{kind:?} {set:?} [{rows}, {cols}] m {m}: {got} is not {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rounded_activations_change_a_product_by_no_more_than_their_rounding() {
    for kind in KINDS {
        let (rows, cols) = (33, fitting(kind, 512));
        let (w, exact) = matrix(kind, rows, cols, 21);
        let m = 5;
        // Values of very different size: a scale for a whole row would not do.
        let mut x = values(m * cols, 22);
        x.iter_mut()
            .enumerate()
            .for_each(|(index, x)| *x *= 2f32.powi(index as i32 / 32 % 16));
        for set in available() {
            let (_, off) = taken(set, kind, &x);
            let out = product(set, &w, &x, m);
            for (index, &got) in out.iter().enumerate() {
                let (x, off) = (
                    &x[index / rows * cols..][..cols],
                    &off[index / rows * cols..][..cols],
                );
                let row = &exact[index % rows * cols..][..cols];
                let (mut want, mut bound) = (0.0, 0.0);
                for ((&x, &off), &w) in x.iter().zip(off).zip(row) {
                    let (x, off, w) = (f64::from(x), f64::from(off), f64::from(w));
                    want += x * w;
                    bound +=
                        (off + 16.0 * f64::from(f32::EPSILON) * cols as f64 * x.abs()) * w.abs();
                }
                assert!(
                    (f64::from(got) - want).abs() <= bound,
                    "{kind:?} {set:?} {got} {want}"
                );
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_every_batch() {
    for kind in KINDS {
        for (rows, cols) in [(40, 99), (129, 515), (70, 512)] {
            let cols = fitting(kind, cols);
            let (w, _) = matrix(kind, rows, cols, 7);
            let x = values(400 * cols, 3);
            for set in available() {
                let alone: Vec<f32> = x
                    .chunks(cols)
                    .flat_map(|row| product(set, &w, row, 1))
                    .collect();
                for m in (2..=34).chain([64, 193, 400]) {
                    let together = product(set, &w, &x[..m * cols], m);
                    assert_eq!(
                        bits(&alone[..m * rows]),
                        bits(&together),
                        "{kind:?} {set:?} m {m}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for kind in KINDS {
        let (rows, cols) = (600, fitting(kind, 300));
        let (w, _) = matrix(kind, rows, cols, 11);
        for m in [1, 5, 64] {
            let x = values(m * cols, 5);
            for set in available() {
                let on = |threads| with_threads(threads, || bits(&product(set, &w, &x, m)));
                let one = on(1);
                assert_eq!(one, on(2));
                assert_eq!(one, on(5));
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_exactly_their_row() {
    for kind in KINDS {
        let (rows, cols) = (20, fitting(kind, 33));
        let (w, _) = matrix(kind, rows, cols, 1);
        for m in [3, 12] {
            let mut x = values(m * cols, 2);
            x[cols + 32] = f32::NAN;
            x[2 * cols] = f32::INFINITY;
            for set in available() {
                let out = product(set, &w, &x, m);
                for (row, out) in out.chunks(rows).enumerate() {
                    match row {
                        1 => assert!(out.iter().all(|value| value.is_nan())),
                        // A quantised weight may be zero, and infinity times zero is NaN.
                        2 => assert!(out.iter().all(|value| !value.is_finite())),
                        _ => assert!(out.iter().all(|value| value.is_finite())),
                    }
                }
            }
        }
    }
}

#[test]
fn rows_come_back_as_they_went_in() {
    for kind in KINDS {
        for (rows, cols) in [(1, 1), (17, 33), (40, 64)] {
            let cols = fitting(kind, cols);
            let (w, exact) = matrix(kind, rows, cols, 9);
            let mut out = vec![0.0; cols];
            for row in 0..rows {
                w.row(row, &mut out).unwrap();
                assert_eq!(out, exact[row * cols..][..cols]);
            }
            assert!(matches!(
                w.row(rows, &mut out),
                Err(KernelError::OutOfRange { .. })
            ));
        }
    }
}

#[test]
fn products_together_are_those_alone() {
    // Kinds that share their activations, kinds that do not, and kinds that have ways of their own.
    let kinds = [
        WeightKind::Q4K,
        WeightKind::Q4K,
        WeightKind::Q6K,
        WeightKind::Bf16,
        WeightKind::Bf16,
        WeightKind::F32,
        WeightKind::Q8_0,
    ];
    let (sizes, cols) = ([40, 600, 7, 130, 33, 16, 1], 512);
    let matrices: Vec<_> = kinds
        .into_iter()
        .zip(sizes)
        .map(|(kind, rows)| matrix(kind, rows, cols, rows as u64).0)
        .collect();
    let weights: Vec<_> = matrices.iter().collect();
    for m in [0, 1, 3, 7, 50] {
        let x = values(m * cols, 4);
        for set in available() {
            let together = PackedMatrix::matmul_together_on(set, &weights, &x, m).unwrap();
            let alone: Vec<f32> = weights
                .iter()
                .flat_map(|w| product(set, w, &x, m))
                .collect();
            assert_eq!(bits(&together), bits(&alone), "{set:?} {m}");
        }
    }
    let other = PackedMatrix::from_f32(1, 2, &[1.0; 2]).unwrap();
    assert!(matches!(
        PackedMatrix::matmul_together(&[weights[0], &other], &[0.0; 512], 1),
        Err(KernelError::Length { argument: "x", .. })
    ));
}

#[test]
fn rows_of_a_file_give_the_bits_of_packed_ones() {
    // Whole panels of whole steps are read where they are, from any byte on; other shapes are packed.
    for (rows, cols) in [
        (16, 32),
        (32, 2),
        (16, 70),
        (80, 346),
        (48, 96),
        (272, 1024),
        (64, 3072),
        (8224, 1088),
        (17, 32),
        (16, 40),
        (3, 5),
    ] {
        let data = values(rows * cols, rows as u64)
            .into_iter()
            .map(bf16::from_f32);
        let data: Vec<_> = data.collect();
        let packed = PackedMatrix::from_bf16(rows, cols, &data).unwrap();
        let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        for set in available() {
            let shared = Arc::new(Offset([vec![0], bytes.clone()].concat()));
            let shared = PackedMatrix::from_shared_bf16_for(set, rows, cols, shared).unwrap();
            let step = if set.rounds_to_bf16() { 32 } else { 2 };
            let is_whole = rows % 16 == 0 && cols % step == 0;
            assert_eq!(shared.is_shared(), is_whole, "{set:?} [{rows}, {cols}]");
            let all = [1, 2, 5, 6, 7, 8, 12, 13, 16, 30, 100];
            for &m in &all[..if rows > 1000 { 2 } else { all.len() }] {
                let x = values(m * cols, 3);
                let together =
                    PackedMatrix::matmul_together_on(set, &[&packed, &shared, &packed], &x, m);
                let expected = product(set, &packed, &x, m);
                assert_eq!(
                    bits(&together.unwrap()),
                    bits(&[&expected[..]; 3].concat()),
                    "{set:?} [{rows}, {cols}] {m}"
                );
                // Instruction sets that do not read rows pack them for the occasion.
                for other in available() {
                    let expected = product(other, &packed, &x, m);
                    assert_eq!(
                        bits(&product(other, &shared, &x, m)),
                        bits(&expected),
                        "{other:?}"
                    );
                }
            }
            let check_rows = || {
                let [mut expected, mut row] = [vec![0.0; cols], vec![0.0; cols]];
                for index in [0, rows / 2, rows - 1] {
                    packed.row(index, &mut expected).unwrap();
                    shared.row(index, &mut row).unwrap();
                    assert_eq!(row, expected);
                }
            };
            check_rows();
            let released = std::cell::Cell::new(0);
            let release = |bytes: std::ops::Range<usize>| {
                assert_eq!(bytes.start, released.get());
                released.set(bytes.end);
            };
            let was_shared = shared.is_shared();
            shared.pack_shared(release).unwrap();
            assert_eq!(released.get(), if was_shared { bytes.len() } else { 0 });
            assert!(!shared.is_shared());
            check_rows();
            let x = values(9 * cols, 3);
            let expected = product(set, &packed, &x, 9);
            assert_eq!(bits(&product(set, &shared, &x, 9)), bits(&expected));
        }
    }
    assert!(matches!(
        PackedMatrix::from_shared_bf16(3, 5, Arc::new(vec![0u8; 31])),
        Err(KernelError::Length {
            argument: "bytes",
            expected: 30,
            actual: 31
        })
    ));
}

/// Bytes that do not begin where words do.
struct Offset(Vec<u8>);

impl AsRef<[u8]> for Offset {
    fn as_ref(&self) -> &[u8] {
        &self.0[1..]
    }
}

#[test]
fn empty_shapes_are_products_too() {
    let w = PackedMatrix::from_f32(0, 5, &[]).unwrap();
    w.matmul(&[0.0; 10], 2, &mut []).unwrap();
    for m in [1, 9] {
        let w = PackedMatrix::from_bf16(20, 0, &[]).unwrap();
        let mut out = vec![1.0; 20 * m];
        w.matmul(&[], m, &mut out).unwrap();
        assert_eq!(out, vec![0.0; 20 * m]);
    }
}

#[test]
fn wrong_shapes_are_errors_with_both_numbers() {
    assert_eq!(
        PackedMatrix::from_f32(3, 4, &[0.0; 11]).unwrap_err(),
        KernelError::Length {
            argument: "data",
            expected: 12,
            actual: 11
        }
    );
    assert!(matches!(
        PackedMatrix::from_f32(usize::MAX, 2, &[]).unwrap_err(),
        KernelError::Memory { .. }
    ));
    let w = PackedMatrix::from_f32(3, 4, &[0.0; 12]).unwrap();
    assert_eq!(format!("{w:?}"), "PackedMatrix([3, 4], F32)");
    assert_eq!(
        w.matmul(&[0.0; 7], 2, &mut [0.0; 6]).unwrap_err(),
        KernelError::Length {
            argument: "x",
            expected: 8,
            actual: 7
        }
    );
    assert_eq!(
        w.matmul(&[0.0; 8], 2, &mut [0.0; 5])
            .unwrap_err()
            .to_string(),
        "`out` has 5 elements, but the shapes given ask for 6"
    );
}
