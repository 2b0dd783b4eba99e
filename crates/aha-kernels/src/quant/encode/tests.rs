use half::f16;

use super::{quantize_gguf, quantize_gguf_on};
use crate::{InstructionSet, KernelError, WeightKind, dequantize_gguf};

const KINDS: [WeightKind; 5] = [
    WeightKind::Q4_0,
    WeightKind::Q8_0,
    WeightKind::Q4K,
    WeightKind::Q5K,
    WeightKind::Q6K,
];

/// Sums of four uniform numbers: nearly normal, as weights are.
fn weights(count: usize, deviation: f32) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut normal = || (0..4).map(|_| uniform()).sum::<f32>() * 3.0_f32.sqrt();
    (0..count).map(|_| normal() * deviation).collect()
}

fn encoded(kind: WeightKind, values: &[f32]) -> Vec<u8> {
    let (block, bytes) = kind.gguf_block().unwrap();
    let mut out = vec![0xAA; values.len() / block * bytes];
    quantize_gguf(kind, values, &mut out).unwrap();
    out
}

fn round_trip(kind: WeightKind, values: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; values.len()];
    dequantize_gguf(kind, &encoded(kind, values), &mut out).unwrap();
    out
}

#[test]
fn every_kind_keeps_its_error_bound() {
    // Root of the mean square that is missed, as a share of the values'.
    for (kind, bound) in [
        (WeightKind::Q8_0, 0.006),
        (WeightKind::Q6K, 0.02),
        (WeightKind::Q5K, 0.04),
        (WeightKind::Q4K, 0.08),
        (WeightKind::Q4_0, 0.1),
    ] {
        for deviation in [0.02, 1.0, 300.0] {
            let values = weights(64 * 256, deviation);
            let decoded = round_trip(kind, &values);
            let square = |x: f32| f64::from(x) * f64::from(x);
            let missed: f64 = values
                .iter()
                .zip(&decoded)
                .map(|(a, b)| square(a - b))
                .sum();
            let all: f64 = values.iter().map(|&value| square(value)).sum();
            let share = (missed / all).sqrt();
            assert!(
                share < bound && share > bound / 4.0,
                "{kind:?} at {deviation}: {share}"
            );
        }
    }
}

#[test]
fn what_a_block_can_hold_exactly_comes_back_exactly() {
    // All codes are there, and scales are 63 times what a half float holds.
    let codes = |largest: f32| (0..256).map(move |index| (index % 32) as f32 % (largest + 1.0));
    let values: Vec<f32> = codes(15.0).map(|code| code * 63.0 / 128.0).collect();
    assert_eq!(round_trip(WeightKind::Q4K, &values), values);
    let values: Vec<f32> = codes(31.0).map(|code| code * 63.0 / 32.0 - 63.0).collect();
    assert_eq!(round_trip(WeightKind::Q5K, &values), values);
    let values: Vec<f32> = codes(31.0).map(|code| (code - 32.0) * 0.25).collect();
    assert_eq!(round_trip(WeightKind::Q6K, &values), values);
    let values: Vec<f32> = codes(15.0).map(|code| (code - 8.0) * 0.125).collect();
    assert_eq!(round_trip(WeightKind::Q4_0, &values), values);
    let values: Vec<f32> = (0..32).map(|index| (4 * index - 127) as f32).collect();
    assert_eq!(round_trip(WeightKind::Q8_0, &values), values);
}

#[test]
fn a_q8_0_block_by_hand() {
    let mut values = [0.0; 32];
    values[..5].copy_from_slice(&[-63.5, 1.0, 0.25, -0.25, 20.1]);
    // A scale of 63.5 / 127 = 0.5; halves of a code go away from zero.
    let block = encoded(WeightKind::Q8_0, &values);
    assert_eq!(block[..2], f16::from_f32(0.5).to_le_bytes());
    assert_eq!(
        block[2..8],
        [-127_i8, 2, 1, -1, 40, 0].map(i8::cast_unsigned)
    );
}

#[test]
fn a_q4_0_block_by_hand() {
    let mut values = [0.0; 32];
    (values[0], values[1], values[16], values[17]) = (-2.0, 1.75, 2.0, -0.3);
    // A scale of -2 / -8 = 0.25: codes 0 and 15; 16, which is one too many; 8 - 1.2.
    let block = encoded(WeightKind::Q4_0, &values);
    assert_eq!(block[..2], f16::from_f32(0.25).to_le_bytes());
    assert_eq!(block[2..5], [0xF0, 0x7F, 0x88]);
}

/// Groups of codes 0 to `levels`, over and over, by `(scale, minimum)`.
fn affine(levels: usize, groups: [(f32, f32); 8]) -> Vec<f32> {
    let group = |(scale, minimum): (f32, f32)| {
        (0..32).map(move |index| {
            if scale == 0.0 {
                0.0
            } else {
                scale * (index % (levels + 1)) as f32 - minimum
            }
        })
    };
    groups.into_iter().flat_map(group).collect()
}

const GROUPS: [(f32, f32); 8] = [
    (63.0, 0.0),
    (21.0, 63.0),
    (0.0, 0.0),
    (42.0, 21.0),
    (32.0, 0.0),
    (17.0, 9.0),
    (5.0, 40.0),
    (48.0, 33.0),
];
/// Six bits each: of the last four groups the low four at the end, the high two on top of the others.
const SCALES: [u8; 12] = [
    63 | 2 << 6,
    21 | 1 << 6,
    0,
    42 | 3 << 6,
    0,
    63,
    2 << 6,
    21 | 2 << 6,
    0,
    1 | 9 << 4,
    5 | 8 << 4,
    1 << 4,
];

#[test]
fn a_q4_k_block_by_hand() {
    let values = affine(15, GROUPS);
    let block = encoded(WeightKind::Q4K, &values);
    let one = f16::ONE.to_le_bytes();
    assert_eq!((&block[..2], &block[2..4]), (&one[..], &one[..]));
    assert_eq!(block[4..16], SCALES);
    // Groups 0 and 1 side by side, then 2 (zeros) and 3.
    assert_eq!(block[16..19], [0x00, 0x11, 0x22]);
    assert_eq!(block[48..51], [0x00, 0x10, 0x20]);
    assert_eq!(round_trip(WeightKind::Q4K, &values), values);
}

#[test]
fn a_q5_k_block_by_hand() {
    let values = affine(31, GROUPS);
    let block = encoded(WeightKind::Q5K, &values);
    assert_eq!(block[4..16], SCALES);
    // Codes 15 and 16: the fifth bit of all groups but the one of zeros.
    assert_eq!(block[16 + 15..16 + 17], [0, 0b1111_1011]);
    assert_eq!(block[48 + 15..48 + 17], [0xFF, 0x00]);
    assert_eq!(round_trip(WeightKind::Q5K, &values), values);
}

#[test]
fn a_q6_k_block_by_hand() {
    let mut values = [0.0; 256];
    for place in 0..16 {
        let code = place as f32 - 32.0;
        values[place] = 128.0 * code;
        values[128 + 16 + place] = -5.0 * code;
    }
    let block = encoded(WeightKind::Q6K, &values);
    // The largest scale is -128 times the factor, which is the file's convention.
    assert_eq!(block[208..], f16::from_f32(-1.0).to_le_bytes());
    let mut scales = [0_i8; 16];
    (scales[0], scales[9]) = (-128, 5);
    assert_eq!(block[192..208], scales.map(i8::cast_unsigned));
    // Codes of a group of zeros are in the middle, 32.
    assert_eq!(block[0..3], [0x00, 0x01, 0x02]);
    assert_eq!(block[128..130], [0b1010_1000, 0b1010_1000]);
    assert_eq!(round_trip(WeightKind::Q6K, &values), values);
}

#[test]
fn zeros_stay_zeros_and_tiny_values_do_not_become_nan() {
    for kind in KINDS {
        assert_eq!(round_trip(kind, &[0.0; 256]), [0.0; 256], "{kind:?}");
        for tiny in [1e-9, 1e-20, f32::MIN_POSITIVE, 1e-45] {
            let mut values = [0.0; 256];
            values[7] = tiny;
            values[40] = -tiny;
            let decoded = round_trip(kind, &values);
            assert!(
                decoded.iter().all(|value| value.abs() < 1e-6),
                "{kind:?} {tiny}: {decoded:?}"
            );
        }
        // One value in a block of nothing, and all values the same.
        for values in [[-3.0; 256], [3.0; 256]] {
            let decoded = round_trip(kind, &values);
            assert!(
                decoded
                    .iter()
                    .zip(values)
                    .all(|(a, b)| (a - b).abs() < 0.02),
                "{kind:?}: {decoded:?}"
            );
        }
        let largest = round_trip(kind, &[65_504.0; 256]);
        assert!(largest.iter().all(|value| value.is_finite()), "{kind:?}");
    }
}

#[test]
fn values_without_a_code_are_refused_with_their_place() {
    for kind in KINDS {
        let mut out =
            vec![0; 2 * kind.gguf_block().unwrap().1 * 256 / kind.gguf_block().unwrap().0];
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 70_000.0] {
            let mut values = weights(512, 1.0);
            values[300] = value;
            assert_eq!(
                quantize_gguf(kind, &values, &mut out),
                Err(KernelError::Unencodable { index: 300 })
            );
        }
    }
}

#[test]
fn sizes_and_kinds_are_checked() {
    let values = [0.0; 512];
    let refused = |kind, values: &[f32], bytes: usize| {
        quantize_gguf(kind, values, &mut vec![0; bytes]).unwrap_err()
    };
    assert!(matches!(
        refused(WeightKind::Q4K, &values[..32], 0),
        KernelError::NotMultiple { of: 256, .. }
    ));
    assert!(matches!(
        refused(WeightKind::Q8_0, &values[..64], 67),
        KernelError::Length { expected: 68, .. }
    ));
    for kind in [WeightKind::Bf16, WeightKind::Q2K, WeightKind::Q5_1] {
        let bytes = kind
            .gguf_block()
            .map_or(0, |(block, bytes)| 512 / block * bytes);
        assert!(matches!(
            refused(kind, &values, bytes),
            KernelError::Kind { .. }
        ));
    }
}

#[test]
fn every_instruction_set_gives_the_same_bytes() {
    if !InstructionSet::Avx2.is_available() {
        return;
    }
    let values = weights(32 * 256, 0.03);
    for kind in KINDS {
        let wide = encoded(kind, &values);
        let mut out = vec![0; wide.len()];
        quantize_gguf_on(InstructionSet::Scalar, kind, &values, &mut out).unwrap();
        assert!(wide == out, "{kind:?}");
    }
}
