//! `aha download` from a hub of the test's own, and what follows from it. Faults of hubs are
//! tested in the hub's crate.

use crate::support::{Home, Ran, fixture};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

const ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves a fixture as Hugging Face would; the address.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    // The rest of the head, up to the empty line.
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    let target = request.split(' ').nth(1).unwrap();
    let folder = PathBuf::from(fixture("llama/smol"));
    let (status, body) = match target.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) {
        Some(file) => (200, fs::read(folder.join(file)).unwrap()),
        None if target.starts_with(&format!("/api/models/{ID}/revision/main")) => {
            (200, listing(&folder).to_string().into_bytes())
        }
        None => (404, b"{}".to_vec()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n"
    )
    .unwrap();
    // A client may know enough after the head.
    let _ = stream.write_all(&body);
}

fn listing(folder: &Path) -> Value {
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        json!({"rfilename": name, "size": entry.metadata().unwrap().len()})
    });
    json!({"sha": COMMIT, "siblings": files.collect::<Vec<_>>()})
}

fn online(home: &Home, hub: &str, args: &[&str]) -> Ran {
    let mut command = home.command(args);
    command.env_remove("AHA_OFFLINE").env("HF_ENDPOINT", hub);
    command.env("MODELSCOPE_ENDPOINT", hub);
    Ran::from(command.output().unwrap())
}

#[test]
fn a_model_is_downloaded_used_verified_and_deleted() {
    let home = Home::new();
    let hub = hub();
    let args = ["download", "-m", "smollm2-135m", "--source", "huggingface"];
    let ran = online(&home, &hub, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let folder = home.path().join("models").join(ID);
    assert_eq!(ran.out.trim_end(), folder.to_str().unwrap());
    assert!(
        ran.err.contains(&format!("{ID} from huggingface")),
        "{}",
        ran.err
    );

    let prompt = ["-i", "Hello!", "-t", "0", "-n", "8"];
    let model = fixture("llama/smol");
    let expected = home
        .run(&[&["run", "-m", &model], &prompt[..]].concat())
        .ok();
    let answer = home
        .run(&[&["run", "-m", "smollm2-135m"], &prompt[..]].concat())
        .ok();
    assert_eq!(answer, expected);

    assert!(
        home.run(&["verify", "-m", ID])
            .ok()
            .contains("model.safetensors")
    );
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let ran = home.run(&["verify", "-m", ID, "--json"]);
    assert_eq!(ran.code, Some(1));
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let states = report["files"].as_array().unwrap();
    let changed: Vec<_> = states
        .iter()
        .filter(|file| file["state"] == "changed")
        .collect();
    assert_eq!(
        (changed.len(), &changed[0]["path"]),
        (1, &"model.safetensors".into())
    );
    assert!(ran.err.contains("the model is not intact"), "{}", ran.err);

    home.run(&["delete", "-m", ID, "--yes"]).ok();
    assert!(!folder.exists());
}

#[test]
fn json_events_are_one_object_a_line() {
    let home = Home::new();
    let args = [
        "download",
        "-m",
        ID,
        "--source",
        "huggingface",
        "--json",
        "--include",
        "*.json",
    ];
    let events = online(&home, &hub(), &args).ok();
    let events: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.first().unwrap()["event"], "started");
    assert_eq!(events.last().unwrap()["event"], "finished");
    let finished = events
        .iter()
        .filter(|event| event["event"] == "file_finished");
    let files: Vec<_> = finished
        .map(|event| event["path"].as_str().unwrap())
        .collect();
    assert!(
        files.contains(&"config.json") && !files.contains(&"model.safetensors"),
        "{files:?}"
    );
}

#[test]
fn a_model_that_no_hub_has_is_an_error() {
    let home = Home::new();
    let args = [
        "download",
        "-m",
        "nobody/nothing",
        "--source",
        "huggingface",
    ];
    let error = online(&home, &hub(), &args).failed(1);
    assert!(
        error.starts_with("error: huggingface has nothing at "),
        "{error}"
    );
}

#[test]
fn a_hub_that_fails_is_told_of_once() {
    let home = Home::new();
    let hub = hub();
    let told = |error: &str, source: &str| error.matches(&format!("{source} has nothing")).count();
    for command in ["cli", "download"] {
        let args = [command, "-m", "nobody/nothing", "--source", "huggingface"];
        let error = online(&home, &hub, &args).failed(1);
        assert_eq!(told(&error, "huggingface"), 1, "{error}");
        let error = online(&home, &hub, &[command, "-m", "nobody/nothing"]).failed(1);
        assert_eq!(told(&error, "huggingface"), 1, "{error}");
        assert_eq!(told(&error, "modelscope"), 1, "{error}");
    }
    // The other one does better.
    let ran = online(&home, &hub, &["download", "-m", ID]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(told(&ran.err, "modelscope") <= 1, "{}", ran.err);
}

#[test]
fn a_gguf_file_alone_is_a_model() {
    let home = Home::new();
    let folder = home.path().join("models").join(ID);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"), "no GGUF").unwrap();
    let listed: Value =
        serde_json::from_str(&home.run(&["list", "--local", "--json"]).ok()).unwrap();
    assert_eq!(listed[0]["complete"], true);
    // It is found, and then read.
    let error = home.run(&["run", "-m", ID, "-i", "hi"]).failed(1);
    assert!(error.contains("Q4_1.gguf: at byte 0"), "{error}");
}
