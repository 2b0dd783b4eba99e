//! Damaged and hostile safetensors files: an error that names file and reason, at once, never a panic.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod weights_support;

use std::path::Path;
use std::time::{Duration, Instant};

use aha_nn::weights::{Catalog, Weights, WeightsError};
use weights_support::*;

/// Milliseconds in fact; the rest is for busy machines.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Opens the checkpoint at `path` and checks that the error names `file` and every one of `reasons`.
fn assert_refused(case: &str, path: &Path, file: &str, reasons: &[&str]) {
    let started = Instant::now();
    let result = Catalog::open(path);
    let elapsed = started.elapsed();
    let message = match result {
        Ok(catalog) => panic!("{case}: opened with {} tensors", catalog.len()),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(file), "{case}: {message}");
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

fn single_file_refused(case: &str, bytes: Vec<u8>, reasons: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "broken.safetensors", bytes);
    assert_refused(case, &path, "broken.safetensors", reasons);
}

fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}"#)
}

#[test]
fn header_lengths() {
    single_file_refused("empty file", vec![], &["empty"]);
    single_file_refused("7 bytes", vec![1; 7], &["byte 0", "8 bytes", "7 are left"]);
    single_file_refused("length 0", raw_file("", &[0; 8]), &["header is empty"]);
    for (case, length) in [
        ("2^63", 1u64 << 63),
        ("2^64 - 1", u64::MAX),
        ("10^8 + 1", 100_000_001),
    ] {
        let mut file = length.to_le_bytes().to_vec();
        file.extend_from_slice(b"{}");
        single_file_refused(case, file, &["100000000", &length.to_string()]);
    }
    let mut longer_than_file = 50u64.to_le_bytes().to_vec();
    longer_than_file.extend_from_slice(b"{}");
    single_file_refused(
        "longer than the file",
        longer_than_file,
        &["50 bytes", "2 are left"],
    );
}

#[test]
fn header_contents() {
    single_file_refused(
        "not UTF-8",
        raw_file(b"{\"\xff\xfe\": 1}", &[]),
        &["not UTF-8"],
    );
    single_file_refused(
        "not JSON",
        raw_file("{tensor}", &[]),
        &["not valid", "line 1"],
    );
    single_file_refused(
        "cut off",
        raw_file(r#"{"a": {"dtype""#, &[]),
        &["not valid"],
    );
    single_file_refused(
        "not an object",
        raw_file("[1, 2]", &[]),
        &["does not begin with `{`"],
    );
    single_file_refused(
        "a page of HTML",
        raw_file("<html></html>", &[]),
        &["does not begin"],
    );
    let twice = format!(
        r#"{{"a": {}, "a": {}}}"#,
        tensor("F32", "[1]", "[0, 4]"),
        tensor("F32", "[1]", "[4, 8]")
    );
    single_file_refused(
        "duplicate name",
        raw_file(twice, &[0; 8]),
        &["`a` is there twice"],
    );
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    single_file_refused(
        "nested 10^5 deep",
        raw_file(deep, &[]),
        &["not valid", "tensor `a`"],
    );
    let deep = format!(
        "{{\"__metadata__\": {}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    single_file_refused(
        "nested in metadata",
        raw_file(deep, &[]),
        &["not valid", "__metadata__"],
    );
    let deep = tensor("F32", "[1]", "[0, 4], \"x\": ").replace("}", &"{\"x\":".repeat(100_000));
    single_file_refused(
        "nested in an unknown field",
        raw_file(format!("{{\"a\": {deep}"), &[]),
        &["not valid"],
    );
    let many = tensor("F32", &format!("[{}1]", "1,".repeat(200_000)), "[0, 8]");
    single_file_refused(
        "200001 dimensions",
        raw_file(format!("{{\"a\": {many}}}"), &[0; 8]),
        &["tensor `a`", "dimensions"],
    );
}

#[test]
fn offsets_and_sizes() {
    let one = |dtype: &str, shape: &str, offsets: &str, data: usize| {
        raw_file(
            format!("{{\"a.b\": {}}}", tensor(dtype, shape, offsets)),
            &vec![0; data],
        )
    };
    let two = |first: &str, second: &str, data: usize| {
        let header = format!(
            "{{\"a\": {}, \"b\": {}}}",
            tensor("F32", "[2]", first),
            tensor("F32", "[2]", second)
        );
        raw_file(header, &vec![0; data])
    };
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        (
            "reversed",
            one("F32", "[1]", "[4, 0]", 4),
            vec!["tensor `a.b`", "begins at 4", "at 0"],
        ),
        (
            "overlapping",
            two("[0, 8]", "[4, 12]", 12),
            vec!["tensor `b`", "overlaps tensor `a`"],
        ),
        (
            "same place",
            two("[0, 8]", "[0, 8]", 8),
            vec!["tensor `b`", "overlaps"],
        ),
        (
            "hole",
            two("[0, 8]", "[12, 20]", 20),
            vec!["tensor `b`", "begins at 12", "hole"],
        ),
        (
            "hole at the start",
            one("F32", "[1]", "[4, 8]", 8),
            vec!["hole after the start"],
        ),
        (
            "past the end",
            one("F32", "[2]", "[0, 8]", 4),
            vec!["ends at 8", "4 bytes", "truncated"],
        ),
        (
            "far past the end",
            one("U8", "[1]", "[0, 18446744073709551615]", 4),
            vec!["truncated"],
        ),
        (
            "trailing bytes",
            one("F32", "[1]", "[0, 4]", 9),
            vec!["take 4 bytes", "9 bytes of data"],
        ),
        (
            "no tensors, some data",
            raw_file("{}", &[0; 3]),
            vec!["3 bytes of data"],
        ),
        (
            "shape product overflows",
            one("F32", "[4294967296, 4294967296, 2]", "[0, 8]", 8),
            vec!["tensor `a.b`", "4294967296", "overflows"],
        ),
        (
            "byte size overflows",
            one("F64", "[4611686018427387904]", "[0, 8]", 8),
            vec!["overflows"],
        ),
        (
            "unknown dtype",
            one("F31", "[1]", "[0, 4]", 4),
            vec!["tensor `a.b`", "`F31`", "not supported"],
        ),
        (
            "size mismatch",
            one("F32", "[3]", "[0, 8]", 8),
            vec!["[3] in F32 needs 12 bytes", "has 8"],
        ),
        (
            "wrong dtype size",
            one("F16", "[2]", "[0, 8]", 8),
            vec!["in F16 needs 4 bytes"],
        ),
        (
            "negative offset",
            one("F32", "[1]", "[-4, 0]", 4),
            vec!["tensor `a.b`", "not valid"],
        ),
        (
            "negative dimension",
            one("F32", "[-1]", "[0, 4]", 4),
            vec!["tensor `a.b`", "not valid"],
        ),
        (
            "fractional dimension",
            one("F32", "[1.5]", "[0, 4]", 4),
            vec!["tensor `a.b`"],
        ),
        (
            "three offsets",
            one("F32", "[1]", "[0, 4, 8]", 4),
            vec!["tensor `a.b`"],
        ),
        (
            "no shape",
            raw_file(r#"{"a": {"dtype": "F32"}}"#, &[]),
            vec!["tensor `a`", "shape"],
        ),
    ];
    for (case, bytes, reasons) in cases {
        single_file_refused(case, bytes, &reasons);
    }
}

#[test]
fn names_are_made_printable() {
    let long = "x".repeat(100_000);
    let header = format!(
        "{{\"{long}\\u001b[31m\": {}}}",
        tensor("F32", "[1]", "[4, 0]")
    );
    single_file_refused("long name", raw_file(header, &[0; 4]), &["xxx…"]);
    let header = format!("{{\"a\\u001b[31m\": {}}}", tensor("F32", "[1]", "[4, 0]"));
    single_file_refused(
        "control characters",
        raw_file(header, &[0; 4]),
        &["a\\u{1b}[31m"],
    );
}

#[test]
fn every_truncation_of_a_file_is_refused() {
    let whole = f32_file(&[("a", &[2, 2], &[1.0; 4]), ("b", &[3], &[2.0; 3])]);
    let folder = tempfile::tempdir().unwrap();
    for length in 0..whole.len() {
        let path = write(folder.path(), "cut.safetensors", &whole[..length]);
        assert!(
            Catalog::open(&path).is_err(),
            "opened with {length} of {} bytes",
            whole.len()
        );
    }
}

#[test]
fn a_hundred_thousand_tensors_are_read() {
    let entries: Vec<String> = (0..100_000)
        .map(|i| format!("\"t{i}\": {}", tensor("U8", "[0]", "[0, 0]")))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = raw_file(format!("{{{}}}", entries.join(",")), &[]);
    let path = write(folder.path(), "many.safetensors", file);
    assert_eq!(Catalog::open(&path).unwrap().len(), 100_000);
}

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

fn sharded_refused(
    case: &str,
    index: &str,
    shards: &[(&str, Vec<u8>)],
    file: &str,
    reasons: &[&str],
) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), INDEX, index);
    for (name, bytes) in shards {
        write(folder.path(), name, bytes);
    }
    assert_refused(case, folder.path(), file, reasons);
}

#[test]
fn shards_and_their_index() {
    let a = || f32_file(&[("a", &[2], &[1.0, 2.0])]);
    let b = || f32_file(&[("b", &[2], &[3.0, 4.0])]);
    let good = index(&[("a", FIRST), ("b", SECOND)]);
    let mut truncated = b();
    truncated.pop();

    let both = || vec![(FIRST, a()), (SECOND, b())];
    sharded_refused(
        "last shard truncated",
        &good,
        &[(FIRST, a()), (SECOND, truncated)],
        SECOND,
        &["tensor `b`", "truncated"],
    );
    sharded_refused(
        "shard missing",
        &good,
        &[(FIRST, a())],
        INDEX,
        &[SECOND, "missing"],
    );
    sharded_refused(
        "shard empty",
        &good,
        &[(FIRST, a()), (SECOND, vec![])],
        SECOND,
        &["empty"],
    );
    let twice = index(&[("a", FIRST), ("b", SECOND), ("a", SECOND)]);
    sharded_refused(
        "named twice",
        &twice,
        &both(),
        INDEX,
        &["`a` is there twice"],
    );
    let ab = f32_file(&[("a", &[2], &[1.0, 2.0]), ("b", &[2], &[3.0, 4.0])]);
    sharded_refused(
        "in two shards",
        &good,
        &[(FIRST, ab), (SECOND, b())],
        SECOND,
        &["tensor `b`", "is also in", FIRST],
    );
    let swapped = index(&[("a", SECOND), ("b", FIRST)]);
    sharded_refused(
        "index contradicts shards",
        &swapped,
        &both(),
        INDEX,
        &["tensor `a`", SECOND, FIRST],
    );
    let more = index(&[("a", FIRST), ("b", SECOND), ("c", SECOND)]);
    sharded_refused(
        "in no shard",
        &more,
        &both(),
        INDEX,
        &["tensor `c`", "in no shard"],
    );
    sharded_refused("not JSON", "{", &both(), INDEX, &["not valid"]);
    sharded_refused(
        "no map",
        "{\"metadata\": {}}",
        &both(),
        INDEX,
        &["weight_map"],
    );
    sharded_refused(
        "empty map",
        "{\"weight_map\": {}}",
        &both(),
        INDEX,
        &["no tensors"],
    );
    sharded_refused(
        "numbers",
        "{\"weight_map\": {\"a\": 1}}",
        &both(),
        INDEX,
        &["not valid"],
    );
    for escape in [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "a\\b",
    ] {
        let outside = index(&[("a", escape)]);
        sharded_refused(escape, &outside, &both(), INDEX, &["plain name"]);
    }
}

#[test]
fn folders_without_clear_weights() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().display().to_string();
    assert_refused(
        "empty folder",
        folder.path(),
        &name,
        &["model.safetensors", "holds no weights"],
    );
    let text = write(folder.path(), "notes.txt", "hello");
    assert_refused("text file", &text, "notes.txt", &["neither"]);
    assert_refused(
        "absent",
        &folder.path().join("no.safetensors"),
        "no.safetensors",
        &["open"],
    );
    write(folder.path(), FIRST, f32_file(&[]));
    write(folder.path(), SECOND, f32_file(&[]));
    assert_refused(
        "index missing",
        folder.path(),
        &name,
        &["2 files", FIRST, INDEX],
    );
}

#[test]
fn a_shard_of_another_model_is_reported_with_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "model.safetensors",
        f32_file(&[("norm.weight", &[4], &[1.0; 4])]),
    );
    let weights = Weights::open(folder.path(), cpu()).unwrap();
    let stand_in = weights.pp("norm").tensor("weight", &[8]).unwrap();
    assert_eq!(stand_in.dims(), [8]);
    let message = weights.finish(&[]).unwrap_err().to_string();
    assert!(
        message.contains("`norm.weight` has shape [4], expected [8]"),
        "{message}"
    );
}

#[test]
fn a_file_truncated_while_in_use_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        folder.path(),
        "model.safetensors",
        f32_file(&[("a", &[4], &[1.0; 4])]),
    );
    let weights = Weights::open(&path, cpu()).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(16)
        .unwrap();
    let error = weights.tensor("a", &[4]).unwrap_err();
    assert!(
        matches!(error, WeightsError::Changed { now: 16, .. }),
        "{error}"
    );
}
