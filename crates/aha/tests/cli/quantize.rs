//! Quantising: while a model loads, and to files.

use crate::support::{Home, fixture};

const QWEN: &str = "qwen3/sharded";

fn ask(model: &[&str], home: &Home) -> crate::support::Ran {
    let mut args = vec!["run"];
    args.extend(model);
    args.extend(["-i", "The river", "-n", "8", "-t", "0"]);
    home.run(&args)
}

#[test]
fn a_quantised_file_answers_like_the_model_that_is_quantised_while_it_loads() {
    let home = Home::new();
    let qwen = fixture(QWEN);
    let ran = home.run(&["quantize", &qwen, "-o", "model.gguf", "--quant", "q8_0"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "model.gguf\n"));
    assert!(
        ran.err
            .starts_with("q8_0: 29 matrices are quantised (Q8_0 29); "),
        "{}",
        ran.err
    );
    assert!(!home.path().join("model.gguf.part").exists());
    let written = ask(&["--gguf-path", "model.gguf"], &home).ok();
    let loaded = ask(&["-m", &qwen, "--quant", "q8_0"], &home).ok();
    assert!(!written.is_empty());
    assert_eq!(written, loaded);

    let shown = home.run(&["show", "model.gguf"]).ok();
    assert!(shown.contains("Q8_0") && shown.contains("qwen3"), "{shown}");
}

#[test]
fn what_is_not_quantised_as_asked_is_told() {
    let home = Home::new();
    // Rows of 64 and 128 values hold no blocks of 256, those of 72 none at all.
    let ran = ask(&["-m", &fixture(QWEN), "--quant", "q4_k_m"], &home);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err
            .contains("29 of them are Q8_0 instead of the type asked for"),
        "{}",
        ran.err
    );
    let ran = ask(&["-m", &fixture("llama/smol"), "--quant", "q8_0"], &home);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err
            .contains("stay as stored, because their rows are no multiple of 32"),
        "{}",
        ran.err
    );
}

#[test]
fn auto_says_what_it_chose() {
    let home = Home::new();
    let ran = ask(&["-m", &fixture(QWEN), "--quant", "auto"], &home);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.starts_with("auto: weights are kept as stored") && ran.err.lines().count() == 1,
        "{}",
        ran.err
    );
    assert_eq!(ran.out, ask(&["-m", &fixture(QWEN)], &home).ok());
}

#[test]
fn wishes_that_contradict_each_other_are_wrong_usage() {
    let home = Home::new();
    let qwen = fixture(QWEN);
    home.run(&["quantize", &qwen, "-o", "model.gguf"]);
    for (args, message) in [
        (
            &[
                "run",
                "--gguf-path",
                "model.gguf",
                "-i",
                "x",
                "--quant",
                "q4_0",
            ][..],
            "quantised already (Q8_0)",
        ),
        (
            &["quantize", "model.gguf", "-o", "other.gguf"],
            "quantised already (Q8_0)",
        ),
        (
            &[
                "run", "-m", &qwen, "-i", "x", "--quant", "q8_0", "--device", "cuda",
            ],
            "works on the CPU only, not on cuda:0",
        ),
        (
            &[
                "--dtype", "f32", "run", "-m", &qwen, "-i", "x", "--quant", "q8_0",
            ],
            "the precision f32 was asked for, too",
        ),
        (
            &["quantize", &qwen, "-o", "x.gguf", "--quant", "auto"],
            "name the type for a file",
        ),
        (
            &["quantize", &qwen, "-o", "x.gguf", "--dtype", "f16"],
            "are chosen with `--quant`",
        ),
        (&["quantize", &qwen], "required"),
    ] {
        let error = home.run(args).failed(2);
        assert!(error.contains(message), "{args:?}: {error}");
    }
}

#[test]
fn files_are_not_replaced_unless_told_to() {
    let home = Home::new();
    let qwen = fixture(QWEN);
    let file = home.path().join("model.gguf");
    std::fs::write(&file, "mine").unwrap();
    let error = home.run(&["quantize", &qwen, "-o", "model.gguf"]).failed(1);
    assert!(
        error.contains("model.gguf") && error.contains("--force"),
        "{error}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let ran = home.run(&["quantize", &qwen, "-o", "model.gguf", "--force"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_ne!(std::fs::read(&file).unwrap(), b"mine");
    let error = home
        .run(&["quantize", &qwen, "-o", "no/model.gguf"])
        .failed(1);
    assert!(error.contains("its folder does not exist"), "{error}");
    let error = home.run(&["quantize", &qwen, "-o", "."]).failed(1);
    assert!(error.contains("name a file in it"), "{error}");
    let plain = fixture("gguf/lfm2.gguf");
    let error = home
        .run(&["quantize", &plain, "-o", &plain, "--force"])
        .failed(1);
    assert!(error.contains("it is what is to be read"), "{error}");
}

#[test]
fn models_without_a_place_in_the_format_name_those_that_have_one() {
    let home = Home::new();
    let error = home
        .run(&["quantize", &fixture("minilm/base"), "-o", "x.gguf"])
        .failed(1);
    assert!(
        error.contains("minilm") && error.contains("llama, qwen3, lfm2"),
        "{error}"
    );
    assert!(!home.path().join("x.gguf").exists() && !home.path().join("x.gguf.part").exists());
}
