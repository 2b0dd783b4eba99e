//! A hub of the tests' own with one release, and `aha` commands that reach it.

use crate::hub::Mock;
use crate::support::{Home, Ran, fixture};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) const ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const PROMPT: [&str; 6] = ["-i", "Hello!", "-t", "0", "-n", "8"];

/// Files of the fixture that are no part of the release.
pub(crate) const NOT_RELEASED: [&str; 2] = ["golden.json", "stages.safetensors"];

/// Serves a fixture under a release's id, as both hubs would.
pub(crate) fn hub() -> Mock {
    let mock = Mock::of(ID);
    for entry in fs::read_dir(fixture("llama/smol")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !NOT_RELEASED.contains(&name.as_str()) {
            mock.put(&name, &fs::read(entry.path()).unwrap());
        }
    }
    mock
}

pub(crate) fn online_command(home: &Home, hub: &str, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command.env_remove("AHA_OFFLINE").env("HF_ENDPOINT", hub);
    command.env("MODELSCOPE_ENDPOINT", hub);
    command
}

pub(crate) fn online(home: &Home, hub: &Mock, args: &[&str]) -> Ran {
    let mut command = online_command(home, &hub.url(), args);
    Ran::from(command.output().unwrap())
}

pub(crate) fn folder(home: &Home) -> PathBuf {
    home.path().join("models").join(ID)
}

pub(crate) fn assert_whole(home: &Home) {
    for entry in fs::read_dir(fixture("llama/smol")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !NOT_RELEASED.contains(&name) {
            let found = fs::read(folder(home).join(name)).unwrap();
            assert!(found == fs::read(&path).unwrap(), "{name} differs");
        }
    }
    assert!(!folder(home).join(".aha/parts").exists());
}

pub(crate) fn events(out: &str) -> Vec<Value> {
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The answer of the model itself.
pub(crate) fn expected_answer(home: &Home) -> String {
    let model = fixture("llama/smol");
    home.run(&[&["run", "-m", &model], &PROMPT[..]].concat())
        .ok()
}

/// Waits until `ready`, but not for ever.
pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn part_len(home: &Home) -> u64 {
    let part = folder(home).join(format!(".aha/parts/{WEIGHTS}.part"));
    fs::metadata(part).map_or(0, |meta| meta.len())
}
