use half::f16;

use super::UNIT;
use super::activations::{Plain, Quantise};
use crate::matmul::tests::values;
use crate::{KernelError, PackedMatrix, WeightKind, dequantize_gguf};

const KINDS: [WeightKind; 10] = [
    WeightKind::Q4_0,
    WeightKind::Q4_1,
    WeightKind::Q5_0,
    WeightKind::Q5_1,
    WeightKind::Q8_0,
    WeightKind::Q2K,
    WeightKind::Q3K,
    WeightKind::Q4K,
    WeightKind::Q5K,
    WeightKind::Q6K,
];

/// Where the blocks of a kind have their `f16` factors.
fn factor_places(kind: WeightKind) -> &'static [usize] {
    match kind {
        WeightKind::Q2K => &[80, 82],
        WeightKind::Q3K => &[108],
        WeightKind::Q6K => &[208],
        WeightKind::Q4_1 | WeightKind::Q5_1 | WeightKind::Q4K | WeightKind::Q5K => &[0, 2],
        _ => &[0],
    }
}

/// Blocks of arbitrary codes and scales, but finite factors, for `count` values.
pub(crate) fn random_blocks(kind: WeightKind, count: usize, seed: u64) -> Vec<u8> {
    let (block, bytes) = kind.gguf_block().unwrap();
    let random = values(count / block * bytes, seed);
    let mut data: Vec<u8> = random
        .iter()
        .map(|value| ((value + 1.0) * 65_536.0) as u32 as u8)
        .collect();
    for (block, value) in data.chunks_exact_mut(bytes).zip(random) {
        for &place in factor_places(kind) {
            let factor = f16::from_f32(value * 0.02 + 0.001 * place as f32);
            block[place..place + 2].copy_from_slice(&factor.to_le_bytes());
        }
    }
    data
}

/// Values as integer products take them, and how far each may be from its own for it.
pub(crate) fn rounded_to_bytes(x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let units = x.as_chunks::<UNIT>().0.iter();
    units
        .flat_map(|x| {
            // SAFETY: the plain form needs no instruction set.
            let unit = unsafe { Plain::unit(x) };
            let codes = unit.words.into_iter().flat_map(u32::to_ne_bytes);
            codes.map(move |code| {
                let value = unit.scale * f32::from(code.cast_signed());
                (value, unit.scale * 0.501)
            })
        })
        .unzip()
}

fn decoded(kind: WeightKind, block: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; kind.gguf_block().unwrap().0];
    dequantize_gguf(kind, block, &mut out).unwrap();
    out
}

/// A block of zeros with the factors given.
fn block(kind: WeightKind, factors: &[f32]) -> Vec<u8> {
    let mut block = vec![0; kind.gguf_block().unwrap().1];
    for (&place, &factor) in factor_places(kind).iter().zip(factors) {
        block[place..place + 2].copy_from_slice(&f16::from_f32(factor).to_le_bytes());
    }
    block
}

#[test]
fn plain_blocks_decode_as_computed_by_hand() {
    let mut b = block(WeightKind::Q4_0, &[0.5]);
    b[2 + 3] = 0xf1; // values 3 and 19
    let out = decoded(WeightKind::Q4_0, &b);
    assert_eq!((out[0], out[3], out[19]), (-4.0, -3.5, 3.5));

    let mut b = block(WeightKind::Q4_1, &[0.5, -1.0]);
    b[4 + 15] = 0x2f; // values 15 and 31
    let out = decoded(WeightKind::Q4_1, &b);
    assert_eq!((out[0], out[15], out[31]), (-1.0, 6.5, 0.0));

    let mut b = block(WeightKind::Q5_0, &[2.0]);
    b[2 + 2] = 0b10; // fifth bit of value 17
    b[6 + 1] = 0x3a; // values 1 and 17
    let out = decoded(WeightKind::Q5_0, &b);
    assert_eq!((out[0], out[1], out[17]), (-32.0, -12.0, 6.0));

    let mut b = block(WeightKind::Q5_1, &[0.25, 3.0]);
    b[4] = 0b1000; // fifth bit of value 3
    b[8 + 3] = 0x05;
    let out = decoded(WeightKind::Q5_1, &b);
    assert_eq!((out[0], out[3], out[19]), (3.0, 8.25, 3.0));

    let mut b = block(WeightKind::Q8_0, &[0.125]);
    b[2] = 0x80;
    b[33] = 127;
    let out = decoded(WeightKind::Q8_0, &b);
    assert_eq!((out[0], out[1], out[31]), (-16.0, 0.0, 15.875));
}

#[test]
fn nested_blocks_decode_as_computed_by_hand() {
    let mut b = block(WeightKind::Q2K, &[0.5, 0.25]);
    b[9] = 0x73; // group 9: scale 3, minimum 7
    b[16 + 32 + 16] = 0b11; // values 144, 176, 208 and 240 of groups 9, 11, 13 and 15
    let out = decoded(WeightKind::Q2K, &b);
    assert_eq!(
        (out[0], out[144], out[145], out[176]),
        (0.0, 2.75, -1.75, 0.0)
    );

    let mut b = block(WeightKind::Q3K, &[0.5]);
    b[96 + 8 + 1] = 0b11_00_01_00; // high scale bits of groups 5 (01) and 13 (11)
    b[96 + 5] = 0x51; // low scale bits of groups 5 (1) and 13 (5)
    b[32 + 16] = 0b10 << 4; // low code bits of value 80 (group 5)
    b[16] = 1 << 2; // its high bit
    let out = decoded(WeightKind::Q3K, &b);
    // Group 5: 17 - 32 = -15. Group 13: 53 - 32 = 21. Others: -32. A code of zero means -4.
    assert_eq!(
        (out[80], out[81], out[208], out[0]),
        (-15.0, 30.0, -42.0, 64.0)
    );

    let mut b = block(WeightKind::Q4K, &[0.5, 2.0]);
    b[4 + 2] = 0b10_000011; // scale of group 2: 3; high bits of the scale of group 6: 2
    b[4 + 6] = 0b01_000101; // minimum of group 2: 5; high bits of the minimum of group 6: 1
    b[4 + 10] = 0x94; // group 6: low bits of scale (4) and minimum (9)
    b[16 + 32 + 7] = 0x0b; // value 71 (group 2)
    b[16 + 96 + 1] = 0x02; // value 193 (group 6)
    let out = decoded(WeightKind::Q4K, &b);
    assert_eq!(
        (out[71], out[64], out[0]),
        (0.5 * 3.0 * 11.0 - 10.0, -10.0, 0.0)
    );
    assert_eq!(out[193], 0.5 * 36.0 * 2.0 - 2.0 * 25.0);

    let mut b = block(WeightKind::Q5K, &[0.5, 2.0]);
    b[4 + 3] = 2; // scale of group 3
    b[16 + 4] = 1 << 3; // fifth bit of value 100 (group 3)
    b[48 + 32 + 4] = 0x70;
    let out = decoded(WeightKind::Q5K, &b);
    assert_eq!((out[100], out[101]), (23.0, 0.0));

    let mut b = block(WeightKind::Q6K, &[0.5]);
    b[192 + 13] = (-2_i8).cast_unsigned(); // scale of group 13: values 208..224
    b[64 + 32 + 17] = 0x05; // low bits of value 128 + 32 + 17 (group 11) and high of + 96
    b[64 + 17] = 0x90; // low bits of value 128 + 64 + 17 = 209 (group 13)
    b[128 + 32 + 17] = 0b11 << 4; // its high bits
    b[192 + 11] = 4;
    let out = decoded(WeightKind::Q6K, &b);
    assert_eq!((out[209], out[208], out[177]), (-25.0, 32.0, -54.0));
}

#[test]
fn packed_panels_hold_the_very_values_of_the_file() {
    for kind in KINDS {
        let (rows, cols) = (37, 512);
        let data = random_blocks(kind, rows * cols, 5);
        let mut want = vec![0.0; rows * cols];
        dequantize_gguf(kind, &data, &mut want).unwrap();
        let w = PackedMatrix::from_gguf_blocks(kind, rows, cols, &data).unwrap();
        let mut row = vec![0.0; cols];
        for (index, want) in want.chunks(cols).enumerate() {
            w.row(index, &mut row).unwrap();
            assert_eq!(row, want, "{kind:?} row {index}");
        }
    }
}

#[test]
fn packing_adds_at_most_a_few_percent() {
    for kind in KINDS {
        let data = random_blocks(kind, 64 * 1024, 1);
        let w = PackedMatrix::from_gguf_blocks(kind, 64, 1024, &data).unwrap();
        assert!(w.size_in_bytes() * 100 <= data.len() * 106, "{kind:?}");
    }
}

#[test]
fn wrong_shapes_and_kinds_are_errors() {
    assert!(matches!(
        PackedMatrix::from_gguf_blocks(WeightKind::Bf16, 1, 2, &[0; 4]),
        Err(KernelError::Kind { .. })
    ));
    assert_eq!(
        PackedMatrix::from_gguf_blocks(WeightKind::Q4K, 1, 288, &[0; 162]).unwrap_err(),
        KernelError::NotMultiple {
            argument: "cols",
            value: 288,
            of: 256
        }
    );
    assert_eq!(
        PackedMatrix::from_gguf_blocks(WeightKind::Q8_0, 2, 32, &[0; 67]).unwrap_err(),
        KernelError::Length {
            argument: "data",
            expected: 68,
            actual: 67
        }
    );
    let mut out = [0.0; 32];
    assert!(dequantize_gguf(WeightKind::Q8_0, &[0; 33], &mut out).is_err());
    assert!(dequantize_gguf(WeightKind::Q8_0, &[0; 68], &mut out).is_err());
    assert!(dequantize_gguf(WeightKind::F32, &[0; 128], &mut out).is_err());
}
