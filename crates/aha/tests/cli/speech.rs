//! `aha speak`, and `aha run` on models that speak.

use super::support::{Home, Ran, fixture};
use std::process::{Output, Stdio};

fn model() -> String {
    fixture("voxcpm1_5/odd")
}

/// Arguments that keep it short.
const SHORT: [&str; 6] = ["--seed", "1", "-n", "5", "--inference-timesteps", "2"];

fn output(home: &Home, args: &[&str]) -> Output {
    home.command(args).output().unwrap()
}

/// Samples of a WAV with 16 bits, whose header must be right.
fn samples(wav: &[u8]) -> Vec<i16> {
    assert_eq!((&wav[..4], &wav[8..16]), (&b"RIFF"[..], &b"WAVEfmt "[..]));
    assert_eq!(u32::from_le_bytes(wav[24..28].try_into().unwrap()), 44_100);
    let length = u32::from_le_bytes(wav[40..44].try_into().unwrap());
    assert!(
        length == u32::MAX || length as usize == wav.len() - 44,
        "{length}"
    );
    wav[44..]
        .chunks_exact(2)
        .map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
        .collect()
}

#[test]
fn speak_writes_files_and_pipes_of_the_same_sound() {
    let home = Home::new();
    let model = model();
    let speak = |more: &[&str]| {
        let args = [&["speak", "Hello world", "-m", &model][..], &SHORT, more].concat();
        output(&home, &args)
    };
    let file = speak(&["-o", "out.wav"]);
    let err = String::from_utf8(file.stderr).unwrap();
    // Five patches are no end that the model chose: that is said, not hidden.
    assert!(file.status.success() && file.stdout.is_empty(), "{err}");
    assert!(err.contains("cut"), "{err}");
    let wav = std::fs::read(home.path().join("out.wav")).unwrap();
    let whole = samples(&wav);
    assert_eq!(whole.len(), 5 * 4 * 63);
    let pipe = speak(&["-o", "-"]);
    assert_eq!(samples(&pipe.stdout), whole);
    let raw = speak(&["-o", "-", "--format", "pcm"]);
    assert_eq!(raw.stdout, wav[44..]);
    for (name, magic) in [("a.flac", &b"fLaC"[..]), ("a.opus", b"OggS")] {
        assert!(speak(&["-o", name]).status.success());
        assert!(
            std::fs::read(home.path().join(name))
                .unwrap()
                .starts_with(magic)
        );
    }
    // Run knows how to speak, too, and so does a pipe on standard input.
    let run = [
        &["run", "-m", &model, "-i", "Hello world", "-o", "run.wav"][..],
        &SHORT,
    ]
    .concat();
    assert!(output(&home, &run).status.success());
    assert_eq!(std::fs::read(home.path().join("run.wav")).unwrap(), wav);
    let args = [&["speak", "-m", &model, "-o", "in.wav"][..], &SHORT].concat();
    assert_eq!(home.run_with_input(&args, "Hello world").code, Some(0));
    assert_eq!(std::fs::read(home.path().join("in.wav")).unwrap(), wav);
}

#[test]
fn speak_takes_a_reference_and_says_what_is_wrong() {
    let home = Home::new();
    let model = model();
    let reference = fixture("voxcpm1_5/odd/media/ref_44k.wav");
    let speak = |more: &[&str]| {
        let args = [&["speak", "Hello world", "-m", &model][..], &SHORT, more].concat();
        Ran::from(output(&home, &args))
    };
    let with = [
        "-o",
        "with.wav",
        "--ref",
        &reference,
        "--ref-text",
        "语音合成 test. ",
    ];
    assert_eq!(speak(&with).code, Some(0));
    assert_eq!(speak(&["-o", "without.wav"]).code, Some(0));
    let read = |name: &str| std::fs::read(home.path().join(name)).unwrap();
    assert_ne!(read("with.wav"), read("without.wav"));

    assert!(
        speak(&["-o", "a.wav", "--ref", &reference])
            .failed(2)
            .contains("--ref-text")
    );
    assert!(speak(&["-o", "a.midi"]).failed(2).contains("opus"));
    assert!(
        speak(&["-o", "a.wav", "--voice", "nobody"])
            .failed(1)
            .contains("nobody")
    );
    let missing = ["-o", "a.wav", "--ref", "no.wav", "--ref-text", "a"];
    assert!(speak(&missing).failed(1).contains("no.wav"));
    assert!(
        speak(&["-o", "no/such/a.wav"])
            .failed(1)
            .contains("no/such")
    );
    let args = ["speak", "?!", "-m", &model, "-o", "a.wav"];
    assert!(home.run(&args).failed(1).contains("nothing to say"));
    let args = ["run", "-m", &model, "-i", "Hello"];
    assert!(home.run(&args).failed(2).contains("-o"));
    // A model of another task, and a speaking one that is asked to chat.
    let chat = fixture("qwen3/sharded");
    assert!(
        home.run(&["speak", "a", "-m", &chat, "-o", "a.wav"])
            .failed(1)
            .contains("speak")
    );
    assert!(home.run(&["chat", "-m", &model]).err.contains("speak"));
}

#[cfg(unix)]
#[test]
fn a_signal_stops_a_speech() {
    let home = Home::new();
    let model = model();
    let text = "Hello there, how are you today? ".repeat(40);
    let args = [
        "speak",
        &text,
        "-m",
        &model,
        "-o",
        "-",
        "-n",
        "60",
        "--min-len",
        "60",
        "--inference-timesteps",
        "200",
    ];
    let mut command = home.command(&args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none());
    super::support::signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
