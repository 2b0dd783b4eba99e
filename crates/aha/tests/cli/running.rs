//! `aha run` on a tiny checkpoint.

use crate::support::{Home, Ran, fixture, golden};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::process::Stdio;

/// Greedy and short.
const GREEDY: [&str; 4] = ["-t", "0", "-n", "12"];

fn run(home: &Home, args: &[&str]) -> String {
    let model = fixture("llama/smol");
    let args = [&["run", "-m", model.as_str()], &GREEDY[..], args].concat();
    home.run(&args).ok()
}

#[test]
fn the_answer_is_the_references() {
    let home = Home::new();
    for (name, case) in [
        ("qwen3/sharded", "stop-2-short"),
        ("llama/llama3", "stop-1-short"),
    ] {
        let (request, text) = golden(name, case);
        let prompt = request["messages"][0]["content"].as_str().unwrap();
        let most = request["max_tokens"].to_string();
        let model = fixture(name);
        let args = [
            "run", "-m", &model, "-i", prompt, "-t", "0", "-n", &most, "--dtype", "f32",
        ];
        assert_eq!(home.run(&args).ok().trim(), text.trim(), "{name}");
    }
    for (name, case) in [
        ("llama/smol", "stop-1-system"),
        ("minicpm4/tied-short", "system"),
    ] {
        let (request, text) = golden(name, case);
        let content = |turn: usize| request["messages"][turn]["content"].as_str().unwrap();
        let model = fixture(name);
        let args = [
            "--dtype",
            "f32",
            "run",
            "-m",
            &model,
            "--system",
            content(0),
            "-i",
            content(1),
        ];
        let answer = home
            .run(&[&args[..], &["-t", "0", "-n", "16"]].concat())
            .ok();
        assert_eq!(answer.trim(), text.trim(), "{name}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn pinned_threads_answer_alike_and_need_a_core_each() {
    let home = Home::new();
    let expected = run(&home, &["-i", "once upon a time"]);
    let pinned = ["-i", "once upon a time", "--pin-cores", "--threads", "1"];
    assert_eq!(run(&home, &pinned), expected);
    let all = std::thread::available_parallelism().unwrap().to_string();
    let pinned = ["-i", "once upon a time", "--pin-cores", "--threads", &all];
    assert_eq!(run(&home, &pinned), expected);
    let error = home
        .run(&["list", "--pin-cores", "--threads", "5000"])
        .failed(1);
    assert!(
        error.starts_with(
            "error: --pin-cores: threads cannot be bound to cores: there are 5000 threads"
        ),
        "{error}"
    );
}

#[test]
fn the_answer_does_not_depend_on_the_number_of_threads() {
    let home = Home::new();
    let one = run(&home, &["-i", "Hello!", "--threads", "1"]);
    assert_eq!(run(&home, &["-i", "Hello!", "--threads", "3"]), one);
    assert!(one.ends_with('\n') && one.len() > 1, "{one:?}");
}

#[test]
fn inputs_are_texts_files_and_pipes() {
    let home = Home::new();
    let plain = run(&home, &["-i", "Tell me\n\nabout rivers."]);
    assert_ne!(plain, run(&home, &["-i", "Tell me"]));
    assert_eq!(run(&home, &["-i", "Tell me", "-i", "about rivers."]), plain);
    let file = home.path().join("rivers.txt");
    fs::write(&file, "about rivers.\n").unwrap();
    assert_eq!(run(&home, &["-i", "Tell me", "-i", "@rivers.txt"]), plain);
    let url = format!("file://{}", file.display());
    assert_eq!(run(&home, &["-i", "Tell me", "-i", &url]), plain);
    let model = fixture("llama/smol");
    let args = [&["run", "-m", model.as_str()], &GREEDY[..]].concat();
    let piped = [&args[..], &["-i", "Tell me", "-i", "-"]].concat();
    assert_eq!(home.run_with_input(&piped, "about rivers.\n").ok(), plain);
    assert_eq!(
        home.run_with_input(&args, "Tell me\n\nabout rivers.").ok(),
        plain
    );
}

#[test]
fn inputs_that_cannot_be_read_are_named() {
    let home = Home::new();
    let model = fixture("llama/smol");
    let error = home
        .run(&["run", "-m", &model, "-i", "@gone.txt"])
        .failed(1);
    assert!(
        error.starts_with("error: cannot read gone.txt: "),
        "{error}"
    );
    fs::write(home.path().join("binary"), b"ab\xff").unwrap();
    let error = home.run(&["run", "-m", &model, "-i", "@binary"]).failed(1);
    assert_eq!(
        error,
        "error: cannot read binary: it is no UTF-8 text (byte 2)\n"
    );
}

#[test]
fn the_answer_goes_to_a_file_when_asked() {
    let home = Home::new();
    let answer = run(&home, &["-i", "Hello!"]);
    fs::write(
        home.path().join("out.txt"),
        "something older, and much longer than an answer",
    )
    .unwrap();
    assert_eq!(run(&home, &["-i", "Hello!", "-o", "out.txt"]), "");
    assert_eq!(
        fs::read_to_string(home.path().join("out.txt")).unwrap(),
        answer
    );
    assert_eq!(run(&home, &["-i", "Hello!", "-o", "-"]), answer);
    let model = fixture("llama/smol");
    let error = home
        .run(&["run", "-m", &model, "-i", "hi", "-o", "no/folder"])
        .failed(1);
    assert!(
        error.starts_with("error: cannot write to no/folder: "),
        "{error}"
    );
}

#[test]
fn an_answer_that_fails_leaves_the_file_as_it_was() {
    let home = Home::new();
    fs::write(home.path().join("out.txt"), "kept").unwrap();
    let model = fixture("llama/smol");
    let args = [
        "run",
        "-m",
        &model,
        "-i",
        "a long prompt",
        "--context-length",
        "2",
        "-o",
        "out.txt",
    ];
    let error = home.run(&args).failed(1);
    assert!(error.contains("context holds 2 tokens"), "{error}");
    assert_eq!(
        fs::read_to_string(home.path().join("out.txt")).unwrap(),
        "kept"
    );
}

#[test]
fn sampling_follows_the_flags() {
    let home = Home::new();
    let model = fixture("llama/smol");
    let seeded = |seed: &str| {
        home.run(&[
            "run", "-m", &model, "-i", "Hello!", "-t", "2", "-n", "12", "--seed", seed,
        ])
        .ok()
    };
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
    let greedy = run(&home, &["-i", "Hello!"]);
    let one = home
        .run(&[
            "run", "-m", &model, "-i", "Hello!", "--top-k", "1", "-n", "12",
        ])
        .ok();
    assert_eq!(one, greedy);
    assert_ne!(run(&home, &["-i", "Hello!", "--raw"]), greedy);
    assert_ne!(
        run(&home, &["-i", "Hello!", "--system", "Be brief."]),
        greedy
    );
    let middle: String = greedy.trim().chars().skip(3).take(1).collect();
    let stopped = run(&home, &["-i", "Hello!", "--stop", &middle]);
    assert!(
        !stopped.contains(&middle) && greedy.starts_with(stopped.trim_end()),
        "{stopped:?}"
    );
}

#[test]
fn verbose_adds_numbers_on_standard_error_only() {
    let home = Home::new();
    let plain = run(&home, &["-i", "Hello!"]);
    let model = fixture("llama/smol");
    let ran = home.run(&[&["run", "-m", &model, "-i", "Hello!", "-v"], &GREEDY[..]].concat());
    assert_eq!((ran.code, ran.out), (Some(0), plain));
    for word in [
        "load ",
        "prompt ",
        "answer ",
        "12 tokens",
        "tokens/s",
        "total ",
    ] {
        assert!(ran.err.contains(word), "{word}: {}", ran.err);
    }
    assert!(!ran.err.contains('\u{1b}'));
}

#[test]
fn the_log_is_silent_until_asked() {
    let home = Home::new();
    let model = fixture("llama/smol");
    let args = [&["run", "-m", model.as_str(), "-i", "hi"], &GREEDY[..]].concat();
    let ran = home.run(&[&args[..], &["--log", "info", "--log-format", "json"]].concat());
    assert_eq!(ran.code, Some(0));
    let lines: Vec<Value> = ran
        .err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.iter().all(|line| line["level"] == "INFO") && !lines.is_empty());
    let mut command = home.command(&args);
    let by_environment = command.env("AHA_LOG", "info").output().unwrap();
    assert!(
        String::from_utf8(by_environment.stderr)
            .unwrap()
            .contains("INFO")
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let home = Home::new();
    let model = fixture("llama/smol");
    let args = [
        "run",
        "-m",
        &model,
        "-i",
        "Hello!",
        "-n",
        "2000",
        "--ignore-eos",
    ];
    let mut command = home.command(&args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::ended(child);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[test]
#[cfg(unix)]
fn the_first_ctrl_c_stops_an_answer_politely() {
    let home = Home::new();
    let model = fixture("llama/smol");
    let args = [
        "run",
        "-m",
        &model,
        "-i",
        "Hello!",
        "--ignore-eos",
        "-n",
        "8000",
    ];
    let mut command = home.command(&args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = vec![0; 1];
    output.read_exact(&mut text).unwrap();
    crate::support::signal(&child, "INT");
    output.read_to_end(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(text.last(), Some(&b'\n'));
}
