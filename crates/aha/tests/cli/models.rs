//! The commands around models on this disk.

use crate::support::{Home, assert_expected, fixture};
use serde_json::Value;

const SMOLLM: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

#[test]
fn the_known_models_are_listed() {
    let home = Home::new();
    assert_expected("list.txt", &home.run(&["list"]).ok());
    assert_expected("list.json", &home.run(&["list", "--json"]).ok());
}

#[test]
fn the_list_tells_what_is_on_this_disk() {
    let home = Home::new();
    assert_eq!(home.run(&["list", "--local", "--json"]).ok(), "[]\n");
    let folder = home.install("llama/smol", SMOLLM);
    let listed = home.run(&["list"]).ok();
    let line = listed
        .lines()
        .find(|line| line.starts_with(SMOLLM))
        .unwrap();
    assert!(line.ends_with("yes"), "{line}");
    let known: Value = serde_json::from_str(&home.run(&["list", "--json"]).ok()).unwrap();
    let entry = known
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["id"] == SMOLLM)
        .unwrap();
    assert_eq!(entry["on_disk"], true);
    assert_eq!(entry["path"].as_str(), folder.to_str());
    let local: Value =
        serde_json::from_str(&home.run(&["list", "--local", "--json"]).ok()).unwrap();
    assert_eq!(
        (&local[0]["id"], &local[0]["complete"]),
        (&SMOLLM.into(), &true.into())
    );
    assert!(home.run(&["list", "--local"]).ok().contains(SMOLLM));
}

#[test]
fn a_checkpoint_is_described_without_loading_it() {
    let home = Home::new();
    let text = home
        .run(&["show", "--json", "-m", &fixture("qwen3/untied-yarn")])
        .ok();
    let shown: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("name", "untied-yarn"),
        ("format", "safetensors"),
        ("architecture", "Qwen3ForCausalLM"),
        ("family", "qwen3"),
        ("task", "chat"),
    ] {
        assert_eq!(shown[key], value);
    }
    let by_type = shown["bytes_by_type"].as_object().unwrap().values();
    let sum: u64 = by_type.map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(shown["bytes"].as_u64(), Some(sum));
    home.install("llama/smol", SMOLLM);
    let text = home.run(&["show", "-m", "smollm2-135m"]).ok();
    assert!(
        text.contains(SMOLLM) && text.contains("Apache-2.0"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_found_says_what_to_do() {
    let home = Home::new();
    for (model, message) in [
        (
            "qwen3-0.6b",
            "error: cannot find the model: Qwen/Qwen3-0.6B: it is not on this disk; get it with \
             `aha download -m Qwen/Qwen3-0.6B`, or give the path of its files\n",
        ),
        (
            "nonsense",
            "error: cannot find the model: nonsense: it is no path, no hub id (owner/name) and no \
             alias of `aha list`\n",
        ),
        (
            "./nowhere",
            "error: cannot find the model: ./nowhere: there is no such file or folder\n",
        ),
    ] {
        assert_eq!(
            home.run(&["run", "-m", model, "-i", "hi"]).failed(1),
            message
        );
        assert_eq!(home.run(&["show", "-m", model]).failed(1), message);
        assert_eq!(
            home.run(&["serv", "-m", model, "-p", "0", "--log", "warn"])
                .failed(1),
            message
        );
    }
    let named = home
        .run(&["run", "-m", "any name", "--weight-path", "gone", "-i", "hi"])
        .failed(1);
    assert_eq!(
        named,
        "error: cannot find the model: gone: there is no such file or folder\n"
    );
}

#[test]
fn a_folder_without_a_checkpoint_is_refused() {
    let home = Home::new();
    let empty = home.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = home
        .run(&["run", "--weight-path", empty.to_str().unwrap(), "-i", "hi"])
        .failed(1);
    assert!(
        error.starts_with("error: cannot load the model: "),
        "{error}"
    );
    assert!(error.contains("config.json"), "{error}");
}

#[test]
#[cfg(not(any(feature = "cuda", feature = "metal")))]
fn a_device_that_was_not_built_is_an_error() {
    let args = [
        "run",
        "-m",
        &fixture("llama/smol"),
        "-i",
        "hi",
        "--device",
        "cuda:1",
    ];
    assert_eq!(
        Home::new().run(&args).failed(1),
        "error: cannot use the device: cuda:1: this build has no support for it; build with \
         `--features cuda`\n"
    );
}

#[test]
fn nothing_is_downloaded_when_offline() {
    let home = Home::new();
    let error = home.run(&["download", "-m", "qwen3-0.6b"]).failed(1);
    assert!(
        error.contains("offline") && error.contains("Qwen/Qwen3-0.6B"),
        "{error}"
    );
    let error = home
        .run(&["cli", "-m", "qwen3-0.6b", "--log", "warn"])
        .failed(1);
    assert!(error.contains("offline"), "{error}");
    let error = home.run(&["download", "-m", "not an id"]).failed(1);
    assert!(error.contains("owner/name"), "{error}");
}

#[test]
fn models_are_verified_and_deleted() {
    let home = Home::new();
    let folder = home.install("llama/smol", SMOLLM);
    let ran = home.run(&["verify", "-m", SMOLLM]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no checksums"), "{}", ran.err);

    let error = home.run(&["delete", "-m", "smollm2-135m"]).failed(2);
    assert!(error.contains("--yes") && folder.exists(), "{error}");
    let told = home.run(&["delete", "-m", "smollm2-135m", "--yes"]).ok();
    assert!(
        told.starts_with(&format!("deleted {SMOLLM}, ")) && !folder.exists(),
        "{told}"
    );
    let error = home
        .run(&["delete", "-m", "smollm2-135m", "--yes"])
        .failed(1);
    assert!(error.contains("is not in the store"), "{error}");
}
