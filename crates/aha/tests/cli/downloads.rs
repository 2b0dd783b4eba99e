//! `aha download` from a hub of the test's own, and what follows from it, as a user would run it.

use crate::hub::Mock;
use crate::local_hub::{
    ID, PROMPT, WEIGHTS, assert_whole, events, expected_answer, folder, hub, online, online_command,
};
use crate::support::{Home, Ran, fixture};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::process::Stdio;

#[test]
fn a_model_is_downloaded_used_verified_and_deleted() {
    let home = Home::new();
    let hub = hub();
    let args = ["download", "smollm2-135m", "--source", "huggingface"];
    let ran = online(&home, &hub, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let folder = home.path().join("models").join(ID);
    assert_eq!(ran.out.trim_end(), folder.to_str().unwrap());
    assert!(
        ran.err.contains(&format!("{ID} from huggingface")),
        "{}",
        ran.err
    );

    assert!(
        ran.err.contains("\nmodel.safetensors, 682 KiB\n") && ran.err.contains("\ndone, "),
        "{}",
        ran.err
    );
    assert_whole(&home);

    let answer = home
        .run(&[&["run", "-m", "smollm2-135m"], &PROMPT[..]].concat())
        .ok();
    assert_eq!(answer, expected_answer(&home));

    assert!(home.run(&["verify", ID]).ok().contains("model.safetensors"));
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let ran = home.run(&["verify", ID, "--json"]);
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

    assert_eq!(report["ok"], false);

    home.run(&["delete", ID, "--yes"]).ok();
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
    let events = events(&online(&home, &hub(), &args).ok());
    assert_eq!(events.first().unwrap()["event"], "started");
    let last = events.last().unwrap();
    assert_eq!(last["event"], "finished");
    assert_eq!(last["path"].as_str(), folder(&home).to_str());
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
    let ran = online(&home, &hub(), &[&args[..], &["--json"]].concat());
    assert_eq!(ran.code, Some(1));
    let last = events(&ran.out).pop().unwrap();
    assert_eq!(
        (&last["event"], &last["code"]),
        (&"failed".into(), &"not_found".into())
    );
    assert_eq!(
        ran.err,
        format!("error: {}\n", last["message"].as_str().unwrap())
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

#[test]
fn whatever_loads_a_model_downloads_it_where_it_is_missing() {
    let hub = hub();
    let home = Home::new();
    let run = [&["run", "-m", "smollm2-135m"], &PROMPT[..]].concat();
    let ran = online(&home, &hub, &run);
    assert_eq!((ran.code, ran.out), (Some(0), expected_answer(&home)));
    assert!(
        ran.err.contains("to download") && ran.err.contains("done, "),
        "{}",
        ran.err
    );
    assert_whole(&home);
    // The second time there is nothing to ask for.
    hub.forget();
    let ran = online(&home, &hub, &run);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(hub.seen().is_empty());

    let home = Home::new();
    let mut command = online_command(&home, &hub.url(), &["chat", "-m", ID]);
    let ran = Ran::from(command.stdin(Stdio::null()).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_whole(&home);

    // Servers that cannot listen end after the download.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for command in ["serv", "cli"] {
        let home = Home::new();
        let ran = online(&home, &hub, &[command, "-m", ID, "-p", &port]);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        assert!(ran.err.contains(&port), "{}", ran.err);
        assert_whole(&home);
    }
}

#[test]
fn tokens_are_sent_to_their_hub_only_and_never_logged() {
    let (hub, elsewhere) = (hub(), hub());
    hub.redirect_large_files_to(&elsewhere.url());
    let secret = "hf_very_secret";
    hub.require_token(secret);
    let log = "trace,ureq=trace,ureq_proto=trace,rustls=trace";
    for by_flag in [true, false] {
        let home = Home::new();
        let args = ["download", ID, "--source", "huggingface", "--log", log];
        let token: &[&str] = if by_flag { &["--token", secret] } else { &[] };
        let mut command = online_command(&home, &hub.url(), &[&args[..], token].concat());
        if !by_flag {
            command.env("HF_TOKEN", secret);
        }
        let ran = Ran::from(command.output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(
            !ran.err.contains(secret) && !ran.out.contains(secret),
            "{}",
            ran.err
        );
        // Signed links are secrets, too.
        assert!(!ran.err.contains("X-Signature"), "{}", ran.err);
        assert_whole(&home);
    }
    assert!(!elsewhere.seen().is_empty());
    for seen in elsewhere.seen() {
        assert!(!format!("{:?}", seen.headers).contains(secret), "{seen:?}");
    }
    let refused = online(
        &Home::new(),
        &hub,
        &["download", ID, "--token", "two words"],
    );
    assert_eq!(refused.code, Some(2));
    assert!(!refused.err.contains("very"), "{}", refused.err);
    let home = Home::new();
    let error = online(&home, &hub, &["download", ID, "--source", "huggingface"]).failed(1);
    assert!(error.contains("HF_TOKEN"), "{error}");
}

#[test]
fn a_repository_of_gguf_files_asks_which_one() {
    let id = "somebody/tiny-GGUF";
    let mock = Mock::of(id);
    mock.put("tiny.Q4_K_M.gguf", b"GGUF four");
    mock.put("tiny.Q8_0.gguf", b"GGUF eight");
    mock.put("README.md", b"# tiny");
    let home = Home::new();
    let args = ["download", id, "--source", "huggingface"];
    let error = online(&home, &mock, &args).failed(1);
    let told = "choose files with --include: tiny.Q4_K_M.gguf, tiny.Q8_0.gguf";
    assert!(error.contains(told), "{error}");
    assert!(!home.path().join("models/somebody").exists());
    let chosen = [&args[..], &["--include", "*Q8_0.gguf"]].concat();
    let ran = online(&home, &mock, &chosen);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let folder = home.path().join("models").join(id);
    assert_eq!(
        fs::read(folder.join("tiny.Q8_0.gguf")).unwrap(),
        b"GGUF eight"
    );
    assert!(!folder.join("tiny.Q4_K_M.gguf").exists());
}

#[test]
fn another_folder_is_kept_to() {
    let (home, hub) = (Home::new(), hub());
    let ran = online(&home, &hub, &["download", ID, "--save-dir", "elsewhere"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let folder = home.path().join("elsewhere").join(ID);
    assert!(folder.join(WEIGHTS).exists());
    assert_eq!(
        fs::canonicalize(ran.out.trim_end()).unwrap(),
        fs::canonicalize(&folder).unwrap()
    );
    assert!(!home.path().join("models").exists());
    let deleted = home
        .run(&["delete", ID, "--yes", "--save-dir", "elsewhere"])
        .ok();
    assert!(deleted.contains("freed") && !folder.exists(), "{deleted}");
}

#[test]
fn another_revision_is_downloaded_and_never_passed_off() {
    let (home, hub) = (Home::new(), hub());
    let source = ["--source", "huggingface"];
    let download = |args: &[&str]| {
        online(
            &home,
            &hub,
            &[&["download", ID], &source[..], args].concat(),
        )
    };
    assert_eq!(download(&[]).code, Some(0));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Ends after the download, for the port is taken.
    let serve = |args: &[&str]| {
        let all = [&["cli", "-m", ID, "-p", &port], &source[..], args].concat();
        hub.forget();
        let ran = online(&home, &hub, &all);
        assert!(ran.err.contains(&port), "{}", ran.err);
        hub.seen().len()
    };
    assert_eq!(serve(&[]), 0);
    assert!(serve(&["--revision", "v2"]) > 0);
    assert_eq!(serve(&["--revision", "v2"]), 0);
    let error = home.run(&["download", ID, "--revision", "v3"]).failed(1);
    assert!(
        error.contains("revision v3") && error.contains("offline"),
        "{error}"
    );
    let here = home.run(&["download", ID, "--revision", "v2"]);
    assert_eq!(
        (here.code, here.err.as_str()),
        (Some(0), "nothing to download\n")
    );
    assert_eq!(here.out.trim_end(), folder(&home).to_str().unwrap());
}

#[test]
fn the_documented_shapes_of_json_hold() {
    let (home, hub) = (Home::new(), hub());
    let ran = online(
        &home,
        &hub,
        &["download", ID, "--source", "huggingface", "--json"],
    );
    let events = events(&ran.out);
    let fields =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let of = |name: &str| {
        let event = events.iter().find(|event| event["event"] == name);
        fields(event.unwrap())[1..].join(" ")
    };
    for (event, expected) in [
        (
            "started",
            "model source revision files total_bytes present_bytes",
        ),
        ("file_started", "path size resumed_from"),
        ("file_progress", "path received size"),
        ("file_finished", "path size verified"),
        ("finished", "model source path total_bytes downloaded_bytes"),
    ] {
        assert_eq!(of(event), expected, "{event}");
    }
    let json = |args: &[&str]| -> Value { serde_json::from_str(&home.run(args).out).unwrap() };
    let local = json(&["list", "--local", "--json"]);
    assert_eq!(
        fields(&local[0]).join(" "),
        "id path size_bytes origin complete source revision task license"
    );
    assert_eq!(
        (&local[0]["origin"], &local[0]["source"]),
        (&"store".into(), &"huggingface".into())
    );
    let shown = json(&["show", ID, "--json"]);
    assert_eq!(
        fields(&shown).join(" "),
        "name path format architecture family supported task license source revision context_length \
         chat_template dtype tensors parameters bytes bytes_by_type memory files"
    );
    assert_eq!(
        fields(&shown["memory"][0]).join(" "),
        "dtype weight_bytes cache_bytes"
    );
    let verified = json(&["verify", ID, "--json"]);
    assert_eq!(fields(&verified).join(" "), "model path ok files golden");
    assert_eq!(
        fields(&verified["files"][0]).join(" "),
        "path state from_hub"
    );
    let golden = json(&["verify", &fixture("llama/smol"), "--json"])["golden"].take();
    assert_eq!(
        fields(&golden).join(" "),
        "reference passed failed skipped worst_logprob_difference cases"
    );
    assert_eq!(
        fields(&golden["cases"][0]).join(" "),
        "name state tokens logprob_difference reason"
    );
}
