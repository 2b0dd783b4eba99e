//! `aha run` and `aha chat` with pictures.

use crate::support::{Home, fixture, golden};

const MODEL: &str = "lfm2vl/tiles";

fn picture(name: &str) -> String {
    format!("{}/media/{name}", fixture(MODEL))
}

fn run(home: &Home, args: &[&str]) -> String {
    let model = fixture(MODEL);
    let args = [
        &["run", "-m", model.as_str(), "-t", "0", "--dtype", "f32"],
        args,
    ]
    .concat();
    home.run(&args).ok()
}

#[test]
fn a_picture_among_the_inputs_stands_in_its_place() {
    let home = Home::new();
    let a = picture("a.png");
    let (_, text) = golden(MODEL, "single-tile-exact");
    for named in [a.clone(), format!("@{a}"), format!("file://{a}")] {
        let args = [
            "-i",
            &named,
            "-i",
            "Describe the image.",
            "-n",
            "12",
            "--ignore-eos",
        ];
        assert_eq!(run(&home, &args).trim(), text.trim(), "{named}");
    }
    let (_, text) = golden(MODEL, "single-tile-resized");
    let b = picture("b.png");
    let args = ["-i", "What is this? ", "-i", &b, "-n", "8", "--ignore-eos"];
    assert_eq!(run(&home, &args).trim(), text.trim());
}

#[test]
fn several_pictures_and_their_size_matter() {
    let home = Home::new();
    let (a, d) = (picture("a.png"), picture("d.png"));
    let answer = |args: &[&str]| run(&home, &[args, &["-i", "What?", "-n", "6"]].concat());
    let two = answer(&["-i", &a, "-i", &d]);
    assert_ne!(two, answer(&["-i", &d, "-i", &a]));
    let whole = answer(&["-i", &d]);
    assert_ne!(whole, answer(&["-i", &d, "--max-pixels", "4096"]));
}

#[test]
fn a_picture_can_come_through_a_pipe() {
    let home = Home::new();
    let model = fixture(MODEL);
    let a = picture("a.png");
    let args = [
        "run", "-m", &model, "-t", "0", "--dtype", "f32", "-n", "6", "-i", "-", "-i", "What?",
    ];
    let piped = home.run_with_input(&args, std::fs::read(&a).unwrap());
    assert_eq!(
        piped.ok(),
        run(&home, &["-i", &a, "-i", "What?", "-n", "6"])
    );
}

#[test]
fn what_cannot_be_shown_is_said() {
    let home = Home::new();
    let a = picture("a.png");
    let model = fixture("qwen3/sharded");
    let text_only = home
        .run(&["run", "-m", &model, "-i", &a, "-n", "1"])
        .failed(1);
    assert!(
        text_only.contains("a.png") && text_only.contains("does not take image"),
        "{text_only}"
    );
    let model = fixture(MODEL);
    let fails = |args: &[&str]| home.run(&[&["run", "-m", &model], args].concat()).failed(1);
    let missing = fails(&["-i", "no-such-cat.jpg"]);
    assert!(missing.contains("no such file"), "{missing}");
    let raw = fails(&["--raw", "-i", &a]);
    assert!(raw.contains("--raw"), "{raw}");
    let unknown = fails(&["-i", &a, "--mm-processor-kwargs", "{\"base_size\": 640}"]);
    assert!(unknown.contains("base_size"), "{unknown}");
    let broken = home.path().join("half.png");
    let bytes = std::fs::read(&a).unwrap();
    std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    let broken = fails(&["-i", broken.to_str().unwrap()]);
    assert!(
        broken.contains("half.png") && broken.contains("cut short"),
        "{broken}"
    );
}

#[test]
fn a_conversation_shows_pictures_with_its_next_message() {
    let home = Home::new();
    let model = fixture(MODEL);
    let chat = |input: &str| {
        let args = [
            "chat",
            "-m",
            model.as_str(),
            "-t",
            "0",
            "-n",
            "12",
            "--ignore-eos",
            "--dtype",
            "f32",
        ];
        let ran = home.run_with_input(&args, input);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        (ran.out, ran.err)
    };
    let (_, text) = golden(MODEL, "single-tile-exact");
    let (answer, told) = chat(&format!(
        "/image {}\nDescribe the image.\n",
        picture("a.png")
    ));
    assert_eq!(answer.trim(), text.trim());
    assert!(told.contains("goes with the next message"), "{told}");
    let (first, _) = chat("Describe the image.\n");
    let (reset, _) = chat(&format!(
        "/image {}\n/reset\nDescribe the image.\n",
        picture("a.png")
    ));
    assert_eq!(first, reset);
    let (_, told) = chat("/image nowhere.png\n");
    assert!(told.contains("error: cannot read nowhere.png"), "{told}");
}
