//! GGUF blocks of arbitrary bits against the values that the format's reference decoder gives them.
//!
//! The fixture holds, kind by kind in the order below, some blocks and then their values as `f32`,
//! all little-endian.

use aha_kernels::{WeightKind, dequantize_gguf};

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

#[test]
fn blocks_decode_to_the_reference_values() {
    let mut rest = include_bytes!("fixtures/gguf_blocks.bin").as_slice();
    for kind in KINDS {
        let (values, bytes) = kind.gguf_block().unwrap();
        let count = if values == 32 { 4 } else { 1 };
        let (blocks, tail) = rest.split_at(count * bytes);
        let (want, tail) = tail.split_at(count * values * 4);
        rest = tail;
        let mut out = vec![f32::NAN; count * values];
        dequantize_gguf(kind, blocks, &mut out).unwrap();
        for (index, (got, want)) in out.iter().zip(want.chunks_exact(4)).enumerate() {
            let want = f32::from_le_bytes(want.try_into().unwrap());
            assert_eq!(*got, want, "{kind:?} value {index}");
        }
    }
    assert!(rest.is_empty());
}
