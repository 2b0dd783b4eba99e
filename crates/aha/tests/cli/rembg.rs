//! `aha rembg`: pictures and folders, resumed and repeated; `aha run` with such a model.

use super::support::{Home, Ran, fixture};
use aha::image::{Channels, Image, Limits, decode};
use std::path::Path;

fn model() -> String {
    fixture("rmbg2/windows6")
}

fn rembg(home: &Home, args: &[&str]) -> Ran {
    let model = model();
    home.run(&[&["rembg", "-m", model.as_str(), "--dtype", "f32"], args].concat())
}

fn image(path: &Path) -> Image {
    let bytes = std::fs::read(path).unwrap();
    decode(&bytes, &Limits::default()).unwrap().as_stored()
}

/// Puts a picture of the fixture into the home.
fn put(home: &Home, picture: &str, name: &str) {
    let path = home.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::copy(Path::new(&model()).join("media").join(picture), path).unwrap();
}

/// The mask that the reference gives.
fn reference(picture: &str) -> Vec<u8> {
    let path = Path::new(&model())
        .join("media")
        .join(format!("alpha_{picture}"));
    image(&path).into_samples()
}

#[track_caller]
fn assert_close(got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len());
    let gaps = got.iter().zip(want).map(|(got, want)| got.abs_diff(*want));
    assert!(gaps.max() <= Some(2));
}

#[test]
fn a_picture_becomes_a_cutout_as_the_reference_makes_it() {
    let home = Home::new();
    put(&home, "small.png", "in.png");
    let ran = rembg(&home, &["in.png", "-o", "out.png"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
    assert!(ran.err.contains("1 of 1 done"), "{}", ran.err);
    let cutout = image(&home.path().join("out.png"));
    assert_eq!(cutout.channels(), Channels::Rgba);
    let alphas: Vec<u8> = cutout
        .samples()
        .iter()
        .skip(3)
        .step_by(4)
        .copied()
        .collect();
    assert_close(&alphas, &reference("small.png"));
    let own = image(&home.path().join("in.png"));
    assert_eq!(cutout.into_rgb_dropping_alpha(), own);
    // One complete file needs no journal.
    assert!(!home.path().join("out.png.journal").exists());

    // The same by `aha run`, to a file of another kind and to a pipe.
    let model = model();
    let run = |output: &str| {
        home.command(&[
            "run", "-m", &model, "--dtype", "f32", "-i", "in.png", "-o", output,
        ])
        .output()
        .unwrap()
    };
    assert!(run("out.webp").status.success());
    let webp = image(&home.path().join("out.webp"));
    assert_eq!(webp, image(&home.path().join("out.png")));
    let piped = run("-");
    assert_eq!(
        piped.stdout,
        std::fs::read(home.path().join("out.png")).unwrap()
    );
}

#[test]
fn a_folder_goes_on_where_it_was_and_tells_what_failed() {
    let home = Home::new();
    put(&home, "small.png", "in/a.png");
    put(&home, "alpha.png", "in/deep/b.png");
    std::fs::write(home.path().join("in/c.png"), b"no picture").unwrap();
    std::fs::write(home.path().join("in/notes.txt"), b"no picture").unwrap();
    let args = ["in", "-o", "out", "--mask"];
    let ran = rembg(&home, &args);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("c.png: "), "{}", ran.err);
    assert!(ran.err.contains("2 of 3 done"), "{}", ran.err);
    assert!(!ran.err.contains("notes.txt"), "{}", ran.err);
    let mask = image(&home.path().join("out/a.png"));
    assert_eq!(mask.channels(), Channels::Gray);
    assert_close(mask.samples(), &reference("small.png"));
    let deep = std::fs::read(home.path().join("out/deep/b.png")).unwrap();

    // Mended, repeated: what is done is not done again.
    put(&home, "palette.png", "in/c.png");
    let ran = rembg(&home, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("3 of 3 done (2 known from before)"),
        "{}",
        ran.err
    );
    assert_close(
        image(&home.path().join("out/c.png")).samples(),
        &reference("palette.png"),
    );
    assert_eq!(
        std::fs::read(home.path().join("out/deep/b.png")).unwrap(),
        deep
    );
}

#[test]
fn a_foreground_is_put_on_colours_and_pictures() {
    let home = Home::new();
    put(&home, "small.png", "in.png");
    put(&home, "alpha.png", "behind.png");
    for background in ["#fff", "behind.png"] {
        let ran = rembg(
            &home,
            &["in.png", "-o", "out/", "--bg", background, "--restart"],
        );
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let image = image(&home.path().join("out/in.png"));
        assert_eq!(image.channels(), Channels::Rgb, "{background}");
        assert_eq!((image.width(), image.height()), (90, 60));
    }
    let ran = rembg(&home, &["in.png", "-o", "x.png", "--bg", "nowhere.png"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("--bg") && ran.err.contains("nowhere.png"),
        "{}",
        ran.err
    );
    let ran = rembg(&home, &["in.png", "-o", "x.png", "--bg", "red", "--mask"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}

#[test]
fn what_cannot_be_worked_on_is_said() {
    let home = Home::new();
    std::fs::write(
        home.path().join("clip.mp4"),
        b"\0\0\0\x18ftypisom\0\0\0\0isomiso2",
    )
    .unwrap();
    let model = model();
    let mut command = home.command(&["rembg", "-m", &model, "clip.mp4", "-o", "frames/"]);
    // Without ffmpeg, whether or not this machine has it.
    let output = command.env("PATH", home.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("ffmpeg"), "{told}");

    put(&home, "small.png", "in.png");
    let text_model = fixture("qwen3/sharded");
    let ran = home.run(&["rembg", "-m", &text_model, "in.png", "-o", "x.png"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("matte"), "{}", ran.err);
    let ran = home.run(&["run", "-m", &model, "-i", "in.png"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("-o"), "{}", ran.err);
}
