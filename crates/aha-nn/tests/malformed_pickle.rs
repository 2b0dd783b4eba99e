//! Damaged and hostile PyTorch files: refused before a tensor is built, with the file, the place and the reason.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod weights_support;

use std::time::{Duration, Instant};

use aha_nn::weights::{Catalog, pickle};
use weights_support::torch::{Pickle, Zip};
use weights_support::{f32_bytes, write};

const FILE: &str = "broken.pt";
/// Milliseconds in fact; the rest is for busy machines.
const AT_ONCE: Duration = Duration::from_secs(5);

fn open(bytes: Vec<u8>) -> Result<Catalog, String> {
    pickle::from_bytes(FILE, bytes).map_err(|error| error.to_string())
}

fn refused(case: &str, bytes: Vec<u8>, reasons: &[&str]) {
    let started = Instant::now();
    let message = match open(bytes) {
        Ok(catalog) => panic!("{case}: opened with {} tensors", catalog.len()),
        Err(message) => message,
    };
    assert!(started.elapsed() < AT_ONCE, "{case}");
    assert!(message.contains(FILE), "{case}: {message}");
    assert!(message.len() < 2000, "{case}: {} characters", message.len());
    for reason in reasons {
        assert!(
            message.contains(reason),
            "{case}: no `{reason}` in: {message}"
        );
    }
}

/// A file with one storage of four floats and any program.
fn program(pickle: &Pickle) -> Vec<u8> {
    Zip::of(pickle, &[("0", &f32_bytes(&[1., 2., 3., 4.]))]).bytes()
}

/// A file whose one tensor has a storage of four floats and any view of it.
fn view(storage: (&str, &str, i64), offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let pickle = Pickle::new()
        .raw(b"}(")
        .text("a.b")
        .tensor(storage, offset, shape, strides)
        .raw(b"u.");
    program(&pickle)
}

#[test]
fn the_writers_of_these_tests_write_good_files() {
    for wide in [false, true] {
        let mut zip = Zip::good();
        zip.wide = wide;
        let catalog = open(zip.bytes()).unwrap();
        let values = catalog.load("a").unwrap().to_f32().unwrap();
        assert_eq!(values, [1., 2., 3., 4.]);
    }
    let four = ("FloatStorage", "0", 4);
    let catalog = open(view(four, 1, &[3], &[1])).unwrap();
    assert_eq!(catalog.load("a.b").unwrap().to_f32().unwrap(), [2., 3., 4.]);
    let catalog = open(view(four, 0, &[2, 2], &[1, 2])).unwrap();
    assert_eq!(
        catalog.load("a.b").unwrap().to_f32().unwrap(),
        [1., 3., 2., 4.]
    );
}

#[test]
fn programs_that_could_run_code() {
    let call = |module: &str, name: &str| {
        program(
            &Pickle::new()
                .global(module, name)
                .raw(b"(")
                .text("touch /tmp/owned")
                .raw(b"tR."),
        )
    };
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch", "QInt8Storage"),
        ("collections", "OrderedDict.__reduce__"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("__main__", "Trainer"),
    ] {
        let name_in_full = format!("`{module}.{name}`");
        refused(
            name,
            call(module, name),
            &["at byte", &name_in_full, "refused"],
        );
    }
    // The same by the names of newer protocols, and after a good tensor.
    let stacked = Pickle::new().text("os").text("system").raw([0x93, b'.']);
    refused("stack global", program(&stacked), &["`os.system`"]);
    let mut late = Pickle::good();
    late.0.pop();
    refused(
        "after a tensor",
        program(&late.global("os", "system").raw(b".")),
        &["`os.system`"],
    );
    for (case, opcode) in [
        ("new object", b"\x81".as_slice()),
        ("instance", b"i__main__\nX\n"),
        ("object", b"o"),
        ("extension", b"\x82\x01"),
        ("text reference", b"Pstorage\n"),
        ("text integer", b"I1\n"),
        ("out-of-band buffer", b"\x97"),
        ("nonsense", b"\xff"),
    ] {
        refused(
            case,
            program(&Pickle::new().raw(opcode)),
            &["at byte", "instruction 0x"],
        );
    }
}

#[test]
fn the_place_of_a_fault_is_that_in_the_file() {
    let bytes = program(&Pickle::new().global("os", "system").raw(b"."));
    let at = bytes
        .windows(4)
        .position(|window| window == b"cos\n")
        .unwrap();
    refused("place", bytes, &[&format!("at byte {at}:")]);
}

#[test]
fn programs_that_are_none() {
    let wrong_protocol = |protocol: u8| Pickle(vec![0x80, protocol, b'}', b'.']);
    for protocol in [0, 1, 6, 255] {
        let message = format!("protocol {protocol}");
        refused("protocol", program(&wrong_protocol(protocol)), &[&message]);
    }
    refused(
        "no protocol",
        program(&Pickle(b"}.".to_vec())),
        &["protocol"],
    );
    refused(
        "empty",
        program(&Pickle(Vec::new())),
        &["1 bytes", "0 are left"],
    );
    let new = Pickle::new;
    for (case, pickle, reason) in [
        ("no end", new().raw(b"}"), "an instruction needs 1 bytes"),
        ("nothing left", new().raw(b"."), "0 values"),
        ("two left", new().raw(b"}}."), "2 values"),
        ("an open mark", new().raw(b"}(."), "1 values"),
        ("more behind", new().raw(b"}.}"), "more follows"),
        ("pop of nothing", new().raw(b"\x85"), "a value is missing"),
        (
            "pop below a mark",
            new().raw(b"}(\x85"),
            "a value is missing",
        ),
        ("no mark", new().raw(b"}u"), "a mark is missing"),
        ("mark of nothing", new().raw(b"(u"), "a value is missing"),
        ("odd items", new().raw(b"}(}u"), "a key has no value"),
        (
            "items of a text",
            new().text("x").raw(b"(u"),
            "a text takes no entries",
        ),
        ("item of a dictionary", new().raw(b"}}a"), "takes no items"),
        ("empty slot", new().raw(b"h\x07"), "slot 7"),
        (
            "attributes of a list",
            new().raw(b"]}b"),
            "takes no attributes",
        ),
        ("call of a text", new().text("x").raw(b")R"), "no name"),
        (
            "call without arguments",
            new().global("collections", "OrderedDict").raw(b"}R"),
            "tuple",
        ),
        (
            "wrong arguments",
            new()
                .global("torch._utils", "_rebuild_tensor_v2")
                .raw(b")R"),
            "do not fit",
        ),
        (
            "storage is a text",
            new().text("x").raw(b"Q"),
            "reference to a storage",
        ),
        (
            "text beyond the end",
            new().raw(b"X\xff\xff\xff\xff"),
            "a text needs 4294967295 bytes",
        ),
        (
            "text of 2^64",
            new().raw(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"),
            "a text needs",
        ),
        ("text not UTF-8", new().raw(b"X\x01\0\0\0\xff"), "not UTF-8"),
        (
            "long name",
            new().raw(b"c").raw(vec![b'a'; 1000]),
            "longer than 256",
        ),
        (
            "a list at the top",
            new().raw(b"]."),
            "a list where a dictionary",
        ),
        ("no tensors", new().raw(b"}."), "no tensors"),
    ] {
        refused(case, program(&pickle), &[reason]);
    }
}

#[test]
fn structures_without_end() {
    let nested = Pickle::new().raw(b")").raw(vec![0x85; 1_000_000]).raw(b".");
    refused(
        "a million tuples",
        program(&nested),
        &["a tuple where a dictionary"],
    );
    // A dictionary that holds itself.
    let cycle = Pickle::new().raw(b"}q\x00(").text("a").raw(b"h\x00u.");
    refused("a cycle", program(&cycle), &["nested in itself"]);
    let shared = Pickle::new()
        .raw(b"}(")
        .text("a")
        .raw(b"}q\x01")
        .text("b")
        .raw(b"h\x01u.");
    refused(
        "a dictionary in two places",
        program(&shared),
        &["two places"],
    );
    let mut deep = Pickle::new();
    for _ in 0..1000 {
        deep = deep.raw(b"}(").text("a");
    }
    deep = deep.raw(b"}").raw(vec![b'u'; 1000]).raw(b".");
    refused(
        "a thousand dictionaries",
        program(&deep),
        &["deeper than 16"],
    );
    let large = Pickle::new().raw(vec![b'N'; 17 << 20]);
    refused(
        "17 MiB of program",
        program(&large),
        &["more than 16777216"],
    );
    let twice =
        Pickle::new()
            .raw(b"}(")
            .text("a.b")
            .tensor(("FloatStorage", "0", 4), 0, &[1], &[1]);
    let twice = twice.text("a").raw(b"}(").text("b");
    let twice = twice
        .tensor(("FloatStorage", "0", 4), 0, &[1], &[1])
        .raw(b"uu.");
    refused("one name twice", program(&twice), &["`b` is there twice"]);
}

#[test]
fn views_that_do_not_fit_their_storage() {
    let four = ("FloatStorage", "0", 4);
    let most = i64::MAX;
    for (case, bytes, reason) in [
        ("one too many", view(four, 0, &[5], &[1]), "does not fit"),
        ("offset", view(four, 1, &[4], &[1]), "does not fit"),
        ("stride", view(four, 0, &[2, 2], &[3, 1]), "does not fit"),
        (
            "repeated",
            view(four, 0, &[1_000_000_000], &[0]),
            "does not fit",
        ),
        ("large stride", view(four, 0, &[2], &[most]), "does not fit"),
        (
            "overflow",
            view(four, most, &[2, 2], &[most, most]),
            "does not fit",
        ),
        (
            "shape overflows",
            view(four, 0, &[most, most], &[0, 0]),
            "does not fit",
        ),
        ("negative shape", view(four, 0, &[-1], &[1]), "holds -1"),
        ("negative stride", view(four, 3, &[4], &[-1]), "holds -1"),
        ("negative offset", view(four, -1, &[1], &[1]), "holds -1"),
        (
            "fewer strides",
            view(four, 0, &[2, 2], &[1]),
            "2 dimensions but 1 strides",
        ),
        (
            "17 dimensions",
            view(four, 0, &[1; 17], &[1; 17]),
            "17 dimensions",
        ),
        (
            "claimed storage",
            view(("FloatStorage", "0", 8), 0, &[8], &[1]),
            "16 bytes",
        ),
        (
            "smaller storage",
            view(("FloatStorage", "0", 2), 0, &[2], &[1]),
            "16 bytes",
        ),
        (
            "wider type",
            view(("DoubleStorage", "0", 4), 0, &[4], &[1]),
            "16 bytes",
        ),
        (
            "storage overflows",
            view(("FloatStorage", "0", most), 0, &[1], &[1]),
            "does not fit",
        ),
        (
            "no storage",
            view(("FloatStorage", "9", 4), 0, &[4], &[1]),
            "`9` is not in the file",
        ),
        (
            "storage outside",
            view(("FloatStorage", "../data.pkl", 4), 0, &[4], &[1]),
            "not in the file",
        ),
        (
            "unknown storage",
            view(("ComplexFloatStorage", "0", 4), 0, &[4], &[1]),
            "ComplexFloatStorage",
        ),
    ] {
        refused(case, bytes, &[reason]);
    }
}

#[test]
fn archives() {
    let good = Zip::good;
    for name in [
        "../evil",
        "model/../evil",
        "/etc/passwd",
        "model\\..\\evil",
        "model//x",
        "model/./x",
        "evil",
    ] {
        refused(
            name,
            good().entry(name, b"x").bytes(),
            &["plain name in a folder"],
        );
    }
    let changed = |change: fn(&mut weights_support::torch::Entry)| good().change(1, change).bytes();
    for (case, bytes, reason) in [
        (
            "another folder",
            good().entry("other/x", b"x").bytes(),
            "another folder",
        ),
        (
            "twice",
            good().entry("model/data/0", b"x").bytes(),
            "is there twice",
        ),
        (
            "deflated",
            changed(|entry| entry.method = 8),
            "compressed (method 8)",
        ),
        ("encrypted", changed(|entry| entry.flags = 1), "encrypted"),
        (
            "overlap",
            changed(|entry| entry.offset = Some(0)),
            "another name",
        ),
        (
            "beyond",
            changed(|entry| entry.offset = Some(u32::MAX - 1)),
            "beyond the zip directory",
        ),
        (
            "no header there",
            changed(|entry| entry.offset = Some(3)),
            "no header",
        ),
        (
            "size beyond the end",
            changed(|entry| entry.size = Some(1 << 30)),
            "1073741824 bytes",
        ),
        (
            "two names",
            changed(|entry| entry.local_name = Some("model/data/1".into())),
            "another name",
        ),
        (
            "other byte order",
            good().entry("model/byteorder", b"big").bytes(),
            "little-endian",
        ),
        (
            "no program",
            Zip::default().entry("model/x", b"x").bytes(),
            "no data.pkl",
        ),
        (
            "no entries",
            b"PK\x05\x06".iter().copied().chain([0; 18]).collect(),
            "does not begin as a zip",
        ),
    ] {
        refused(case, bytes, &[reason]);
    }
    // Two entries of one place: the second lies within the data of the first.
    let inner = Zip::default().entry("model/data/1", b"abcd").bytes();
    let header_end = 30 + "model/data/1".len() + 4;
    let offset = 30 + "model/data/0".len();
    let overlapping = Zip::default()
        .entry("model/data/0", &inner[..header_end])
        .with("model/data/1", b"abcd", |entry| {
            entry.offset = Some(offset as u32);
        });
    refused("overlap", overlapping.bytes(), &["overlaps `model/data/0`"]);
    let mut many = good();
    many.count = Some(u16::MAX);
    refused("claims 65535 entries", many.bytes(), &["65535 entries"]);
    let mut moved = good();
    moved.directory_offset = Some(1);
    refused("directory elsewhere", moved.bytes(), &["directly before"]);
}

#[test]
fn other_formats_are_named() {
    let legacy = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    refused(
        "before PyTorch 1.6",
        legacy,
        &["before PyTorch 1.6", "save it again"],
    );
    refused(
        "HTML",
        b"<html></html>".to_vec(),
        &["does not begin as a zip"],
    );
    refused("a tar", vec![0; 1024], &["does not begin as a zip"]);
}

#[test]
fn every_truncation_of_a_file_is_refused() {
    for wide in [false, true] {
        let mut zip = Zip::good();
        zip.wide = wide;
        let whole = zip.bytes();
        for length in 1..whole.len() {
            assert!(
                open(whole[..length].to_vec()).is_err(),
                "{length} of {}",
                whole.len()
            );
        }
    }
}

#[test]
fn every_changed_byte_is_an_error_or_a_file() {
    // No panic, no endless loop, whatever one byte says.
    let whole = Zip::good().bytes();
    for place in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[place] = value;
            if let Ok(catalog) = open(changed) {
                for name in catalog.names() {
                    let _ = catalog.load(name).map(|tensor| tensor.bytes().is_ok());
                }
            }
        }
    }
}

#[test]
fn an_empty_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), FILE, []);
    let message = Catalog::open(&path).unwrap_err().to_string();
    assert!(message.contains("empty"), "{message}");
}
