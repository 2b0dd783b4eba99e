//! Damaged and hostile GGUF files: an error that names file and reason, at once, never a panic.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod weights_support;

use std::time::{Duration, Instant};

use aha_nn::weights::gguf::GgufFile;
use aha_nn::weights::{NameMap, Weights, WeightsError};
use weights_support::*;

/// Milliseconds in fact; the rest is for busy machines.
const AT_ONCE: Duration = Duration::from_secs(5);

fn assert_refused(case: &str, bytes: Vec<u8>, reasons: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "broken.gguf", bytes);
    let started = Instant::now();
    let result = GgufFile::open(&path);
    let elapsed = started.elapsed();
    let message = match result {
        Ok(file) => panic!("{case}: opened with {} tensors", file.catalog().len()),
        Err(error) => error.to_string(),
    };
    assert!(message.contains("broken.gguf"), "{case}: {message}");
    for reason in reasons {
        assert!(
            message.contains(reason),
            "{case}: no `{reason}` in: {message}"
        );
    }
    assert!(
        message.len() < 2000,
        "{case}: {} characters of message",
        message.len()
    );
    assert!(elapsed < AT_ONCE, "{case}: took {elapsed:?}");
}

#[test]
fn magic_version_and_counts() {
    let with = |change: fn(&mut Gguf)| {
        let mut file = Gguf::default().u32("a", 1).tensor("t", &[4], F32, &[0; 16]);
        change(&mut file);
        file.bytes()
    };
    assert_refused("empty", vec![], &["empty"]);
    assert_refused("3 bytes", b"GGU".to_vec(), &["magic", "3 are left"]);
    assert_refused(
        "bad magic",
        with(|file| file.magic = *b"GGML"),
        &["does not begin with `GGUF`"],
    );
    assert_refused(
        "version 1",
        with(|file| file.version = 1),
        &["version 1", "not supported"],
    );
    assert_refused(
        "version 4",
        with(|file| file.version = 4),
        &["version 4", "not supported"],
    );
    assert_refused(
        "big-endian",
        with(|file| file.version = 3 << 24),
        &["big-endian", "little-endian"],
    );
    for count in [1u64 << 63, u64::MAX, 1 << 40] {
        let mut file = Gguf::default();
        file.tensor_count = Some(count);
        let shown = count.to_string();
        assert_refused("tensor count", file.bytes(), &["number of tensors", &shown]);
        let mut file = Gguf::default();
        file.pair_count = Some(count);
        assert_refused(
            "key count",
            file.bytes(),
            &["number of metadata keys", &shown],
        );
    }
    assert_refused(
        "one tensor too many",
        with(|file| file.tensor_count = Some(2)),
        &["empty name"],
    );
    assert_refused(
        "one key too many",
        with(|file| file.pair_count = Some(2)),
        &["broken.gguf"],
    );
}

#[test]
fn metadata() {
    let with = |kind: u32, value: &[u8]| Gguf::default().pair("some.key", kind, value).bytes();
    for length in [u64::MAX, 1 << 63, 1000] {
        let shown = length.to_string();
        let text = with(8, &length.to_le_bytes());
        assert_refused(
            "string length",
            text,
            &["metadata key `some.key`", &shown, "left"],
        );
        let mut key = Gguf::default();
        key.pair_count = Some(1);
        let mut bytes = key.bytes();
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 20]);
        assert_refused("key length", bytes, &["a metadata key needs", &shown]);
        let array = Gguf::default()
            .array("some.key", 8, length, &[0; 64])
            .bytes();
        assert_refused("array length", array, &["`some.key`", &shown, "at most 8"]);
    }
    let nested = Gguf::default().array("some.key", 9, 1, &[0; 64]).bytes();
    assert_refused(
        "array of arrays",
        nested,
        &["`some.key`", "array of arrays"],
    );
    let deep: Vec<u8> = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()]
        .concat()
        .repeat(100_000);
    assert_refused("deep arrays", with(9, &deep), &["array of arrays"]);
    assert_refused(
        "unknown type",
        with(13, &[0; 8]),
        &["`some.key`", "type 13"],
    );
    let unknown = Gguf::default()
        .array("some.key", 4_000_000_000, 1, &[0; 8])
        .bytes();
    assert_refused(
        "unknown element type",
        unknown,
        &["`some.key`", "type 4000000000"],
    );
    assert_refused(
        "boolean 2",
        with(7, &[2]),
        &["`some.key`", "boolean of value 2"],
    );
    assert_refused(
        "value cut off",
        with(12, &[0; 4]),
        &["`some.key` needs 8 bytes but 4"],
    );
    assert_refused(
        "text not UTF-8",
        with(8, &string(b"\xff\xfe")),
        &["`some.key`", "not UTF-8"],
    );
    let key = Gguf::default().pair(b"\xff", 4, [0; 4]).bytes();
    assert_refused("key not UTF-8", key, &["a metadata key is not UTF-8"]);
    let twice = Gguf::default()
        .u32("some.key", 1)
        .u32("some.key", 2)
        .bytes();
    assert_refused("key twice", twice, &["`some.key`", "twice"]);
    let large = Gguf::default()
        .array("some.key", 10, 1, &u64::MAX.to_le_bytes())
        .bytes();
    assert_refused("entry beyond i64", large, &["`some.key`", "beyond 2^63"]);
    let flood = Gguf::default()
        .array("some.key", 0, 20_000_000, &vec![0; 20_000_000])
        .bytes();
    assert_refused(
        "twenty million entries",
        flood,
        &["`some.key`", "20000000 entries"],
    );
}

#[test]
fn alignment() {
    for alignment in [0u32, 1, 3, 4, 24, 1 << 17, 1 << 31] {
        let file = Gguf::default().u32("general.alignment", alignment).bytes();
        let shown = format!("{alignment} is not a power of two");
        assert_refused("alignment", file, &["general.alignment", &shown]);
    }
    let file = Gguf::default().text("general.alignment", "32").bytes();
    assert_refused(
        "alignment as text",
        file,
        &["general.alignment", "integer", "is a string"],
    );
    let file = Gguf::default()
        .pair("general.alignment", 5, (-32i32).to_le_bytes())
        .bytes();
    assert_refused(
        "negative alignment",
        file,
        &["general.alignment", "not negative"],
    );
}

#[test]
fn tensor_infos() {
    let info = |dimensions: &[u64], kind: u32, offset: u64| {
        // 64 bytes of data belong to a tensor that is in order.
        Gguf::default().tensor("good", &[16], F32, &[0; 64]).info(
            "blk.0.bad",
            dimensions,
            kind,
            offset,
        )
    };
    let cases: Vec<(&str, Gguf, Vec<&str>)> = vec![
        (
            "past the end",
            info(&[16], F32, 64),
            vec!["64 bytes at offset 64", "truncated"],
        ),
        (
            "offset far out",
            info(&[16], F32, 1 << 40),
            vec!["offset 1099511627776"],
        ),
        (
            "offset + size overflows",
            info(&[16], F32, u64::MAX - 31),
            vec!["do not fit"],
        ),
        (
            "not aligned",
            info(&[1], F32, 4),
            vec!["offset 4", "alignment 32"],
        ),
        (
            "overlapping",
            info(&[8], F32, 32),
            vec!["overlap", "`good`"],
        ),
        (
            "size overflows",
            info(&[1 << 32, 1 << 32, 2], F32, 0),
            vec!["overflows"],
        ),
        (
            "bytes overflow",
            info(&[1 << 62], F32, 0),
            vec!["overflows"],
        ),
        (
            "2^64 - 1 rows",
            info(&[32, u64::MAX], Q8_0, 0),
            vec!["overflows"],
        ),
        (
            "row of half a Q4_K block",
            info(&[128, 4], Q4_K, 0),
            vec!["128", "256", "Q4_K"],
        ),
        (
            "row of no whole Q4_K block",
            info(&[384], Q4_K, 0),
            vec!["384", "256"],
        ),
        (
            "Q8_0 row of 33",
            info(&[33], Q8_0, 0),
            vec!["33", "32", "Q8_0"],
        ),
        (
            "unknown type",
            info(&[4], 77, 0),
            vec!["type 77", "not supported"],
        ),
        (
            "removed type",
            info(&[4], 4, 0),
            vec!["type 4", "not supported"],
        ),
        (
            "type of another library",
            info(&[256], 23, 0),
            vec!["IQ4_XS", "not supported", "Q4_K"],
        ),
        (
            "five dimensions",
            info(&[1; 5], F32, 0),
            vec!["5 dimensions"],
        ),
    ];
    for (case, file, reasons) in cases {
        let reasons = [reasons, vec!["tensor `blk.0.bad`"]].concat();
        assert_refused(case, file.bytes(), &reasons);
    }
    let twice = Gguf::default()
        .tensor("t", &[8], F32, &[0; 32])
        .tensor("t", &[8], F32, &[0; 32]);
    assert_refused("name twice", twice.bytes(), &["tensor `t`", "twice"]);
    let many = Gguf::default().info("t", &[1; 2], F32, 0).bytes();
    assert_refused("no data", many, &["tensor `t`", "truncated"]);
}

#[test]
fn every_truncation_of_a_file_is_refused() {
    let whole = Gguf::default()
        .text("general.architecture", "qwen3")
        .array(
            "tokenizer.ggml.tokens",
            8,
            2,
            &[string("a"), string("b")].concat(),
        )
        .tensor("token_embd.weight", &[32, 2], Q8_0, &[0; 68])
        .bytes();
    let folder = tempfile::tempdir().unwrap();
    for length in 0..whole.len() {
        let path = write(folder.path(), "cut.gguf", &whole[..length]);
        assert!(
            GgufFile::open(&path).is_err(),
            "opened with {length} of {} bytes",
            whole.len()
        );
    }
}

/// Flips every byte of a file in turn: whatever comes of it, nothing panics and tensors stay readable.
#[test]
fn no_flipped_byte_causes_a_panic() {
    let whole = Gguf::default()
        .u32("general.alignment", 32)
        .array("x", 5, 2, &[0; 8])
        .tensor("a", &[32, 2], Q8_0, &[1; 68])
        .tensor("b", &[4], F32, &[0; 16])
        .bytes();
    for position in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] ^= flip;
            let Ok(file) = GgufFile::from_bytes("flipped.gguf".as_ref(), bytes) else {
                continue;
            };
            for name in file.catalog().names() {
                let tensor = file.tensor(name).unwrap();
                let _ = tensor.to_f32();
            }
        }
    }
}

#[test]
fn known_keys_of_another_type() {
    let bytes = Gguf::default()
        .u32("general.architecture", 7)
        .text("llama.block_count", "30")
        .pair("negative", 5, (-1i32).to_le_bytes())
        .array("tokenizer.ggml.tokens", 5, 2, &[0; 8])
        .bytes();
    let file = GgufFile::from_bytes("confused.gguf".as_ref(), bytes).unwrap();
    let metadata = &file.metadata;
    let errors: Vec<(WeightsError, &str, &str)> = vec![
        (
            metadata.text("general.architecture").unwrap_err(),
            "general.architecture",
            "a string",
        ),
        (
            metadata.unsigned("llama.block_count").unwrap_err(),
            "llama.block_count",
            "is a string",
        ),
        (
            metadata.unsigned("negative").unwrap_err(),
            "negative",
            "not negative",
        ),
        (
            metadata.float("llama.block_count").unwrap_err(),
            "llama.block_count",
            "floating",
        ),
        (
            metadata.boolean("negative").unwrap_err(),
            "negative",
            "a boolean",
        ),
        (
            metadata.texts("tokenizer.ggml.tokens").unwrap_err(),
            "tokens",
            "array of integers",
        ),
        (
            metadata.floats("tokenizer.ggml.tokens").unwrap_err(),
            "tokens",
            "floating",
        ),
        (
            metadata.integers("negative").unwrap_err(),
            "negative",
            "an array of integers",
        ),
        (
            NameMap::for_gguf(metadata).unwrap_err(),
            "general.architecture",
            "unsigned integer",
        ),
    ];
    for (error, key, reason) in errors {
        let message = error.to_string();
        for part in ["confused.gguf", key, reason] {
            assert!(message.contains(part), "no `{part}` in: {message}");
        }
    }
}

#[test]
fn heads_that_do_not_divide_the_rows() {
    let cases: [(Option<u32>, &str); 4] = [
        (None, "llama.attention.head_count"),
        (Some(0), "0 attention heads"),
        (Some(3), "8 rows do not divide into 3"),
        (Some(8), "even size"),
    ];
    for (heads, reason) in cases {
        let mut file = Gguf::default().text("general.architecture", "llama");
        if let Some(heads) = heads {
            file = file.u32("llama.attention.head_count", heads);
        }
        let file = file.tensor("blk.0.attn_q.weight", &[4, 8], F32, &[0; 128]);
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "llama.gguf", file.bytes());
        let loaded = Weights::open(&path, cpu())
            .and_then(|weights| weights.tensor("model.layers.0.self_attn.q_proj.weight", &[8, 4]));
        let message = loaded.unwrap_err().to_string();
        assert!(message.contains(reason), "{heads:?}: {message}");
    }
}
