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
    assert!(line.ends_with("KiB"), "{line}");
    let known: Value = serde_json::from_str(&home.run(&["list", "--json"]).ok()).unwrap();
    let entry = known
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["id"] == SMOLLM)
        .unwrap();
    assert_eq!(entry["on_disk"], true);
    assert_eq!(entry["path"].as_str(), folder.to_str());
    let on_disk = std::fs::read_dir(&folder).unwrap();
    let size: u64 = on_disk
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(entry["size_bytes"].as_u64(), Some(size));
    let local: Value =
        serde_json::from_str(&home.run(&["list", "--local", "--json"]).ok()).unwrap();
    assert_eq!(
        (&local[0]["id"], &local[0]["complete"]),
        (&SMOLLM.into(), &true.into())
    );
    assert_eq!(
        (&local[0]["task"], &local[0]["license"]),
        (&"chat".into(), &"Apache-2.0".into())
    );
    assert!(home.run(&["list", "--local"]).ok().contains(SMOLLM));
}

#[test]
fn every_command_that_takes_a_name_takes_it_with_and_without_the_flag() {
    let home = Home::new();
    for command in ["show", "verify", "delete", "download"] {
        let bare = home.run(&[command, "qwen3-0.6b"]).failed(1);
        assert_eq!(bare, home.run(&[command, "-m", "qwen3-0.6b"]).failed(1));
        let both = home
            .run(&[command, "qwen3-0.6b", "-m", "qwen3-4b"])
            .failed(2);
        assert!(both.contains("cannot be used with"), "{both}");
        let none = home.run(&[command]).failed(2);
        assert!(
            none.contains("required") && none.contains("MODEL"),
            "{none}"
        );
        let empty = home.run(&[command, ""]);
        assert!(empty.code != Some(0), "{}", empty.out);
    }
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
    assert_eq!(shown["supported"], true);
    assert_eq!(shown["chat_template"], true);
    assert_eq!(shown["context_length"], 40960);
    let files: Vec<&str> = shown["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert!(files.contains(&"config.json"), "{files:?}");
    // 2 layers, 4 heads of 24 values, keys and values of 1000 tokens.
    let values = 2 * 2 * 4 * 24 * 1000;
    let parameters = shown["parameters"].as_u64().unwrap();
    for (place, dtype, weights, size) in [
        (0, "auto", parameters * 4, 4),
        (1, "f32", parameters * 4, 4),
        (2, "bf16", parameters * 2, 2),
        (3, "f16", parameters * 2, 2),
    ] {
        let need = &shown["memory"][place];
        assert_eq!(need["dtype"], dtype);
        assert_eq!(need["weight_bytes"], weights);
        assert_eq!(need["cache_bytes"], values * size);
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
        assert_eq!(home.run(&["show", "-m", model]).failed(1), message);
        // What these would download is told in the tests of downloads.
        if model == "qwen3-0.6b" {
            continue;
        }
        assert_eq!(
            home.run(&["run", "-m", model, "-i", "hi"]).failed(1),
            message
        );
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
fn what_is_no_id_cannot_be_downloaded() {
    let error = Home::new().run(&["download", "not an id"]).failed(1);
    assert!(error.contains("owner/name"), "{error}");
}

#[test]
fn a_golden_set_is_held_to() {
    let home = Home::new();
    let folder = home.install("llama/smol", SMOLLM);
    let verify = |args: &[&str]| {
        let ran = home.run(&[&["verify", SMOLLM, "--json"], args].concat());
        let report: Value = serde_json::from_str(&ran.out).unwrap();
        (ran.code, report, ran.err)
    };
    let (code, report, _) = verify(&[]);
    assert_eq!((code, &report["ok"]), (Some(0), &true.into()));
    let golden = &report["golden"];
    let worst = golden["worst_logprob_difference"].as_f64().unwrap();
    assert!(worst > 0.0 && worst < 1e-3, "{worst}");
    let cases = golden["cases"].as_array().unwrap().len();
    assert_eq!(golden["passed"], cases);
    assert!(cases > 3);

    // A number of one case, and a case of another kind.
    let path = folder.join("golden.json");
    let mut set: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    set["cases"][0]["expect"]["steps"][2]["logprob"] = (-9.0).into();
    set["cases"][1]["endpoint"] = "/v1/embeddings".into();
    set["cases"][2]["expect"]["prompt_tokens"] = 1.into();
    let picture = serde_json::json!([{"type": "image_url", "image_url": {"url": "media/a.png"}}]);
    set["cases"][3]["request"]["messages"][0]["content"] = picture;
    std::fs::write(&path, set.to_string()).unwrap();
    let (code, report, error) = verify(&[]);
    assert_eq!((code, &report["ok"]), (Some(1), &false.into()));
    let golden = &report["golden"];
    assert_eq!(
        (&golden["failed"], &golden["skipped"]),
        (&2.into(), &2.into())
    );
    let reason = golden["cases"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("token 2: log-probability"), "{reason}");
    assert!(
        error.contains(&format!("2 of {} cases", cases - 2)),
        "{error}"
    );
    let told = home.run(&["verify", SMOLLM]).out;
    assert!(
        told.contains("differs: token 2") && told.contains("skipped: /v1/embeddings"),
        "{told}"
    );

    // Without it there is nothing to compare with.
    let (code, report, error) = verify(&["--no-golden"]);
    assert_eq!((code, &report["golden"]), (Some(1), &Value::Null));
    assert!(error.contains("no checksums"), "{error}");
    std::fs::write(&path, "{").unwrap();
    let error = home.run(&["verify", SMOLLM]).failed(1);
    assert!(error.contains("cannot read the golden set"), "{error}");
}

#[test]
fn models_are_verified_and_deleted() {
    let home = Home::new();
    let folder = home.install("llama/smol", SMOLLM);
    let ran = home.run(&["verify", SMOLLM, "--no-golden"]);
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
