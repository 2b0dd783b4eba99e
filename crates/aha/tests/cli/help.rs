//! Help texts, versions, completions and the refusal of wrong usage.

use crate::support::{Home, assert_expected, fixture};

const COMMANDS: [&str; 17] = [
    "bench",
    "chat",
    "cli",
    "completions",
    "delete",
    "download",
    "list",
    "ocr",
    "ps",
    "quantize",
    "rembg",
    "run",
    "serv",
    "show",
    "stop",
    "transcribe",
    "verify",
];

/// Standard output of a command whose help shows the environment's values.
fn help(args: &[&str]) -> String {
    let home = Home::new();
    let mut command = home.command(args);
    command.env_remove("AHA_THREADS").env_remove("AHA_OFFLINE");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    // On Windows the program's name has an ending.
    String::from_utf8(output.stdout)
        .unwrap()
        .replace("aha.exe", "aha")
}

#[test]
fn every_command_explains_itself() {
    assert_expected("help/aha.txt", &help(&["--help"]));
    for command in COMMANDS {
        assert_expected(&format!("help/{command}.txt"), &help(&[command, "--help"]));
    }
}

#[test]
fn the_overview_names_every_command() {
    let overview = help(&["--help"]);
    let listed = |command: &&str| overview.contains(&format!("\n  {command} "));
    assert!(COMMANDS.iter().all(listed), "{overview}");
}

#[test]
fn help_is_plain_text_where_nobody_sees_colours() {
    assert!(!help(&["run", "--help"]).contains('\u{1b}'));
}

#[test]
fn the_version_is_the_packages() {
    let version = concat!("aha ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(Home::new().run(&["--version"]).ok(), version);
}

#[test]
fn completions_are_made_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = home.run(&["completions", shell]).ok();
        assert!(
            script.contains("--weight-path") || script.contains("-l weight-path"),
            "{shell}"
        );
    }
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_wrong() {
    let home = Home::new();
    let smol = fixture("llama/smol");
    for (args, message) in [
        (&["fly"][..], "error: unrecognized subcommand 'fly'"),
        (
            &["run", "-i", "hi"],
            "error: the following required arguments were not provided",
        ),
        (
            &["run", "-m", &smol, "-i", "hi", "-t", "-1"],
            "a number between 0 and 100 is wanted",
        ),
        (
            &["run", "-m", &smol, "-i", "hi", "-n", "0"],
            "invalid value '0' for '--max-tokens",
        ),
        (
            &["run", "-m", &smol, "-i", "hi", "--stop", ""],
            "the text must not be empty",
        ),
        (&["run", "-m", "", "-i", "hi"], "the text must not be empty"),
        (
            &["run", "-m", &smol, "-i", "-", "-i", "-"],
            "standard input can be read only once",
        ),
        (
            &["run", "-m", &smol, "-i", "hi", "--raw", "--system", "x"],
            "cannot be used with",
        ),
        (
            &["run", "--weight-path", "a", "--gguf-path", "b", "-i", "x"],
            "cannot be used with",
        ),
        (&["list", "--device", "tpu"], "unknown device `tpu`"),
        (&["list", "--dtype", "int3"], "unknown precision `int3`"),
        (&["list", "--quant", "q3_k"], "unknown quantisation `q3_k`"),
        (
            &[
                "run", "-m", &smol, "-i", "hi", "--quant", "q8_0", "--dtype", "f32",
            ],
            "cannot be used with",
        ),
        (
            &["verify", "-m", &smol, "--quant", "q8_0"],
            "does not go with verify",
        ),
        (
            &["list", "--threads", "0"],
            "invalid value '0' for '--threads",
        ),
        (
            &["serv", "-m", &smol, "--body-limit", "0"],
            "invalid value '0' for '--body-limit",
        ),
        (
            &["list", "--log", "a=b=c"],
            "invalid value 'a=b=c' for '--log'",
        ),
        (
            &["serv", "-m", &smol, "--body-limit", "lots"],
            "a size such as 1048576",
        ),
        (
            &["serv", "-m", &smol, "--request-timeout", "-1"],
            "a number of seconds is wanted",
        ),
        (
            &["bench", "-m", &smol, "-p", "0", "-n", "0"],
            "there is nothing to measure",
        ),
    ] {
        let error = home.run(args).failed(2);
        assert!(
            error.starts_with("error: ") && error.contains(message),
            "{args:?}: {error}"
        );
    }
}

#[test]
fn sizes_that_would_let_nothing_through_are_refused() {
    let home = Home::new();
    let smol = fixture("llama/smol");
    for (command, option) in [
        ("serv", "--queue-limit"),
        ("serv", "--max-sequences"),
        ("serv", "--max-batch-tokens"),
        ("serv", "--max-connections"),
        ("serv", "--context-length"),
        ("cli", "--queue-limit"),
        ("run", "--context-length"),
        ("chat", "--cache-tokens"),
        ("bench", "--max-batch-tokens"),
        ("bench", "--batch"),
        ("bench", "--repetitions"),
    ] {
        let error = home.run(&[command, "-m", &smol, option, "0"]).failed(2);
        assert!(
            error.starts_with(&format!("error: invalid value '0' for '{option} <"))
                && error.contains("at least 1"),
            "{command}: {error}"
        );
    }
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let home = Home::new();
    let mut command = home.command(&["list"]);
    let ran = command.env("AHA_THREADS", "").env("AHA_LOG", "").output();
    assert!(ran.unwrap().status.success());
}

#[test]
fn kernels_that_the_processor_lacks_are_refused() {
    let home = Home::new();
    let ran = |value: &str| {
        let mut command = home.command(&["list"]);
        command.env("AHA_KERNELS", value).output().unwrap()
    };
    assert!(ran("scalar").status.success() && ran("").status.success());
    let refused = ran("mmx");
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(
        error.contains("AHA_KERNELS is \"mmx\"") && error.contains("scalar"),
        "{error}"
    );
}
