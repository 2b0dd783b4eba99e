//! Fixtures, and images that both sides compute by the same formula.

use std::path::PathBuf;

use aha_media::image::{Channels, Image};
use serde_json::Value;

pub(crate) fn path(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/image").join(name)
}

pub(crate) fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

pub(crate) fn records(name: &str) -> Vec<Value> {
    serde_json::from_slice(&bytes(name)).unwrap()
}

/// FNV-1a, 64 bits.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

pub(crate) fn hash_words(words: impl IntoIterator<Item = u32>) -> String {
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    hash(&bytes)
}

pub(crate) fn hash_floats(values: &[f32]) -> String {
    hash_words(values.iter().map(|value| value.to_bits()))
}

pub(crate) fn channels(count: u64) -> Channels {
    match count {
        1 => Channels::Gray,
        2 => Channels::GrayAlpha,
        3 => Channels::Rgb,
        _ => Channels::Rgba,
    }
}

/// Noise that depends on nothing but place and channel, each sample changed by `mask`.
pub(crate) fn pattern(width: u32, height: u32, channels: Channels, mask: u8) -> Image {
    let mut samples = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for channel in 0..channels.count() as u32 {
                let mut word = x.wrapping_mul(73_856_093)
                    ^ y.wrapping_mul(19_349_663)
                    ^ channel.wrapping_mul(83_492_791);
                word ^= word >> 13;
                word = word.wrapping_mul(0x5bd1_e995);
                word ^= word >> 15;
                samples.push(word as u8 ^ mask);
            }
        }
    }
    Image::new(width, height, channels, samples).unwrap()
}

pub(crate) fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

pub(crate) fn pair(value: &Value) -> (u32, u32) {
    (number(&value[0]), number(&value[1]))
}
