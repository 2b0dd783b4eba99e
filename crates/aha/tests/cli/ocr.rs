//! `aha ocr`: documents to text, jobs that are killed, stopped, mended and repeated.

use super::pdf::{Page, Pdf};
use super::support::{Home, Ran, fixture};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn model() -> String {
    fixture("qwen2_5vl/mixed")
}

/// A PDF of so many small pages.
fn pages(count: usize) -> Vec<u8> {
    let page = |number| Page::text(&["A page", &format!("with number {number}")]);
    Pdf::of(&(1..=count).map(page).collect::<Vec<_>>()).bytes()
}

/// Arguments of a job whose pages are small and whose texts are short.
fn args<'a>(model: &'a str, inputs: &[&'a str], output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let options = ["-m", model, "--prompt", "Read this.", "--dpi", "36"];
    let length: &[&str] = if more.contains(&"-n") {
        &[]
    } else {
        &["-n", "24"]
    };
    [&["ocr"], inputs, &["-o", output], &options, length, more].concat()
}

fn ocr(home: &Home, inputs: &[&str], output: &str, more: &[&str]) -> Ran {
    home.run(&args(&model(), inputs, output, more))
}

fn read(home: &Home, name: &str) -> String {
    std::fs::read_to_string(home.path().join(name)).unwrap()
}

#[track_caller]
fn assert_done(ran: &Ran, told: &str) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
    assert!(ran.err.contains(told), "{}", ran.err);
}

/// Waits until the journal has so many items, while the job goes on.
fn wait_for_items(child: &mut Child, journal: &Path, items: usize) {
    let started = Instant::now();
    let lines = || std::fs::read(journal).map_or(0, |bytes| bytes.split(|b| *b == b'\n').count());
    // The header, and the empty rest behind the last line.
    while lines() < items + 2 {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "nothing was written"
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be stopped"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_job_of_20_pages_ends_with_the_same_bytes() {
    let home = Home::new();
    std::fs::write(home.path().join("in.pdf"), pages(20)).unwrap();
    let ran = ocr(
        &home,
        &["in.pdf"],
        "whole.md",
        &["-n", "100", "--jobs", "1"],
    );
    assert_done(&ran, "20 of 20 done");
    let whole = read(&home, "whole.md");
    for page in 1..=20 {
        assert!(
            whole.contains(&format!("<a id=\"page-{page}\"></a>")),
            "{whole}"
        );
    }
    assert!(!home.path().join("whole.md.journal").exists());

    let name = model();
    let killed = args(
        &name,
        &["in.pdf"],
        "killed.md",
        &["-n", "100", "--jobs", "3"],
    );
    let mut command = home.command(&killed);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = home.path().join("killed.md.journal");
    wait_for_items(&mut child, &journal, 5);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!home.path().join("killed.md").exists());
    let ran = home.run(&killed);
    assert_done(&ran, "known from before");
    assert_eq!(read(&home, "killed.md"), whole);
    assert!(!journal.exists());
    // And with other numbers of pages at once.
    let ran = ocr(
        &home,
        &["in.pdf"],
        "batch.md",
        &["-n", "100", "--jobs", "8"],
    );
    assert_done(&ran, "20 of 20 done");
    assert_eq!(read(&home, "batch.md"), whole);
}

#[cfg(unix)]
#[test]
fn a_stopped_job_says_so_and_goes_on() {
    let home = Home::new();
    std::fs::write(home.path().join("in.pdf"), pages(12)).unwrap();
    let name = model();
    let args = args(&name, &["in.pdf"], "out.md", &["-n", "100", "--jobs", "2"]);
    let mut command = home.command(&args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_items(&mut child, &home.path().join("out.md.journal"), 2);
    super::support::signal(&child, "INT");
    let ran = Ran::ended(child);
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    assert!(ran.err.contains("start it again to go on"), "{}", ran.err);
    let left: Vec<String> = std::fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_done(&home.run(&args), "known from before");
    assert_eq!(read(&home, "out.md").matches("<a id=").count(), 12);
}

#[test]
fn folders_become_folders_and_failures_are_told_and_retried() {
    let home = Home::new();
    let at = |name: &str| home.path().join(name);
    std::fs::create_dir_all(at("in/deep")).unwrap();
    std::fs::write(at("in/a.pdf"), pages(2)).unwrap();
    let fixtures = fixture("documents");
    std::fs::copy(
        Path::new(&fixtures).join("plain-1.png"),
        at("in/deep/a.png"),
    )
    .unwrap();
    std::fs::copy(Path::new(&fixtures).join("locked.pdf"), at("in/locked.pdf")).unwrap();
    std::fs::write(at("in/notes.txt"), "no document").unwrap();
    let ran = ocr(&home, &["in"], "out", &["--format", "txt"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
    assert!(
        ran.err
            .contains("locked.pdf: the PDF is encrypted with a password"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("3 of 4 done"), "{}", ran.err);
    assert!(ran.err.contains("--retry-failed"), "{}", ran.err);
    let text = read(&home, "out/a.txt");
    assert_eq!(text.matches('\u{c}').count(), 1, "{text:?}");
    assert!(at("out/deep/a.txt").exists() && !at("out/locked.txt").exists());
    assert!(at("out.journal").exists());

    // Failures are remembered, and what is done is not done again.
    let again = ocr(&home, &["in"], "out", &["--format", "txt"]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("4 known from before"), "{}", again.err);
    let retried = ocr(
        &home,
        &["in"],
        "out",
        &["--format", "txt", "--retry-failed"],
    );
    assert_eq!(retried.code, Some(1));
    assert!(
        retried.err.contains("3 known from before"),
        "{}",
        retried.err
    );
    // Another content is another item, and an output that was deleted is written again.
    std::fs::write(at("in/locked.pdf"), pages(1)).unwrap();
    std::fs::remove_file(at("out/a.txt")).unwrap();
    let mended = ocr(&home, &["in"], "out", &["--format", "txt"]);
    assert_done(&mended, "4 of 4 done (3 known from before)");
    assert_eq!(read(&home, "out/a.txt"), text);
    assert!(at("out/locked.txt").exists());
}

#[test]
fn formats_hold_the_same_text() {
    let home = Home::new();
    std::fs::write(home.path().join("in.pdf"), pages(2)).unwrap();
    for name in ["out.md", "out.html", "out.json", "out.txt"] {
        assert_done(
            &ocr(&home, &["in.pdf"], name, &["--pages", "2"]),
            "1 of 1 done, ",
        );
    }
    let json: Value = serde_json::from_str(&read(&home, "out.json")).unwrap();
    assert_eq!(json["file"], "in.pdf");
    assert_eq!(json["task"], "prompt");
    let page = &json["pages"][0];
    assert_eq!(page["page"], 2);
    assert_eq!(
        (&page["width"], &page["height"]),
        (&Value::from(100), &Value::from(100))
    );
    assert_eq!(
        (&page["source"], &page["truncated"]),
        (&Value::from("model"), &Value::from(true))
    );
    let block = &page["blocks"][0];
    assert_eq!(
        (&block["page"], &block["kind"]),
        (&Value::from(2), &Value::from("text"))
    );
    let text = block["text"].as_str().unwrap();
    assert_eq!(read(&home, "out.txt"), format!("{text}\n"));
    assert_eq!(
        read(&home, "out.md"),
        format!("<a id=\"page-2\"></a>\n\n{text}\n")
    );
    assert!(read(&home, "out.html").contains("<section id=\"page-2\">"));
}

#[test]
fn a_documents_own_text_is_taken_where_it_is_wished_for() {
    let home = Home::new();
    let scanned = Page::drawing("0 0 1 rg 20 20 50 50 re f");
    let pdf = Pdf::of(&[Page::text(&["Typed", "by hand"]), scanned]);
    std::fs::write(home.path().join("in.pdf"), pdf.bytes()).unwrap();
    assert_done(
        &ocr(&home, &["in.pdf"], "out.json", &["--prefer-text"]),
        "2 of 2 done",
    );
    let json: Value = serde_json::from_str(&read(&home, "out.json")).unwrap();
    let first = &json["pages"][0];
    assert_eq!(first["source"], "text_layer");
    assert_eq!(first["blocks"][0]["text"], "Typed\nby hand");
    let bbox: Vec<f64> = serde_json::from_value(first["blocks"][0]["bbox"].clone()).unwrap();
    assert!(
        bbox[0] >= 9.0 && bbox[0] < 13.0 && bbox[2] < 60.0 && bbox[3] < 40.0,
        "{bbox:?}"
    );
    assert_eq!(json["pages"][1]["source"], "model");
}

#[test]
fn one_output_has_one_job_at_a_time() {
    let home = Home::new();
    std::fs::write(home.path().join("in.pdf"), pages(1)).unwrap();
    let journal = std::fs::File::create(home.path().join("out.md.journal")).unwrap();
    journal.try_lock().unwrap();
    let ran = ocr(&home, &["in.pdf"], "out.md", &[]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("another aha works on this output"),
        "{}",
        ran.err
    );
    drop(journal);
    // A journal of something else is not overwritten.
    std::fs::write(home.path().join("out.md.journal"), "{\"job\":\"embed\"}\n").unwrap();
    let ran = ocr(&home, &["in.pdf"], "out.md", &[]);
    assert!(ran.err.contains("--restart"), "{}", ran.err);
    assert_done(
        &ocr(&home, &["in.pdf"], "out.md", &["--restart"]),
        "1 of 1 done",
    );
}

#[test]
fn what_cannot_be_done_is_told_first() {
    let home = Home::new();
    std::fs::write(home.path().join("in.pdf"), pages(2)).unwrap();
    let vision = model();
    let chat = fixture("llama/smol");
    for (args, code, told) in [
        (
            vec![
                "ocr", "in.pdf", "-m", &vision, "-o", "o.md", "--task", "a", "--prompt", "b",
            ],
            2,
            "--prompt",
        ),
        (
            vec!["ocr", "in.pdf", "-m", &vision, "-o", "o.md", "--pages", "0"],
            2,
            "3-9,12,20-",
        ),
        (
            vec!["ocr", "in.pdf", "-m", &vision, "-o", "o.md", "--dpi", "7"],
            2,
            "between 18 and 1200",
        ),
        (
            vec![
                "ocr", "in.pdf", "-m", &vision, "-o", "o.md", "--format", "pdf",
            ],
            2,
            "--format",
        ),
        (vec!["ocr", "in.pdf", "-m", &vision], 2, "--output"),
        (
            vec!["ocr", "no.pdf", "-m", &vision, "-o", "o.md"],
            1,
            "cannot read no.pdf",
        ),
        (
            vec!["ocr", "in.pdf", "-m", &vision, "-o", "no/o.md"],
            1,
            "its folder does not exist",
        ),
        (
            vec!["ocr", "in.pdf", "-m", &vision, "-o", "o.md"],
            1,
            "no OCR tasks",
        ),
        (
            vec![
                "ocr", "in.pdf", "-m", &vision, "-o", "o.md", "--task", "table",
            ],
            1,
            "no OCR tasks",
        ),
        (
            vec!["ocr", "in.pdf", "-m", &chat, "-o", "o.md", "--prompt", "a"],
            1,
            "does not take image input",
        ),
    ] {
        let told_by = home.run(&args).failed(code);
        assert!(told_by.contains(told), "{told_by}");
    }
    let ran = ocr(&home, &["in.pdf"], "o.md", &["--pages", "2-3"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err
            .contains("page 3 was asked for, and the document has 2 pages"),
        "{}",
        ran.err
    );
}

/// Checkpoints of families that are made for documents.
const FAMILIES: [&str; 5] = [
    "paddleocr_vl/spotting",
    "glm_ocr/mtp",
    "hunyuan_ocr/flat",
    "deepseek_ocr/small",
    "deepseek_ocr2/small",
];

#[test]
fn ocr_families_have_tasks_by_name() {
    let home = Home::new();
    std::fs::write(home.path().join("in.pdf"), pages(2)).unwrap();
    for name in FAMILIES {
        let model = fixture(name);
        let run = |more: &[&str]| {
            let args = ["ocr", "in.pdf", "-m", &model, "--dpi", "72", "-n", "16"];
            home.run(&[&args[..], more].concat())
        };
        let refused = run(&["-o", "no.md", "--task", "sing"]).failed(1);
        let (_, tasks) = refused.trim().split_once("it has ").unwrap();
        let tasks: Vec<&str> = tasks.split(", ").collect();
        assert!(tasks.len() > 2, "{refused}");
        for task in &tasks {
            assert_done(&run(&["-o", "out.json", "--task", task]), "2 of 2 done");
            let json: Value = serde_json::from_str(&read(&home, "out.json")).unwrap();
            assert_eq!(
                (&json["task"], &json["pages"][1]["page"]),
                (&Value::from(*task), &Value::from(2))
            );
        }
        // The first is the default.
        assert_done(&run(&["-o", "out.json"]), "2 of 2 done");
        let json: Value = serde_json::from_str(&read(&home, "out.json")).unwrap();
        assert_eq!(json["task"], tasks[0]);
    }
}

#[test]
fn a_task_asks_as_the_reference_does() {
    let home = Home::new();
    let model = fixture("glm_ocr/mtp");
    let (request, text) = super::support::golden("glm_ocr/mtp", "text_page");
    let image = Path::new(&model).join("media/text_page_0.png");
    let most = request["max_tokens"].to_string();
    let args = [
        "ocr",
        image.to_str().unwrap(),
        "-m",
        &model,
        "--dtype",
        "f32",
        "-o",
        "out.txt",
        "-n",
        &most,
        "--task",
        "ocr",
    ];
    assert_done(&home.run(&args), "1 of 1 done");
    assert_eq!(read(&home, "out.txt").trim(), text.trim());
}
