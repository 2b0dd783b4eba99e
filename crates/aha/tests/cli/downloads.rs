//! `aha download` from a hub of the test's own, and what follows from it, as a user would run it.

use crate::hub::{Fault, Mock, Random};
use crate::support::{Home, Ran, fixture};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const WEIGHTS: &str = "model.safetensors";
const PROMPT: [&str; 6] = ["-i", "Hello!", "-t", "0", "-n", "8"];

/// Files of the fixture that are no part of the release.
const NOT_RELEASED: [&str; 2] = ["golden.json", "stages.safetensors"];

/// Serves a fixture under a release's id, as both hubs would.
fn hub() -> Mock {
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

fn online_command(home: &Home, hub: &str, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command.env_remove("AHA_OFFLINE").env("HF_ENDPOINT", hub);
    command.env("MODELSCOPE_ENDPOINT", hub);
    command
}

fn online(home: &Home, hub: &Mock, args: &[&str]) -> Ran {
    let mut command = online_command(home, &hub.url(), args);
    Ran::from(command.output().unwrap())
}

fn folder(home: &Home) -> PathBuf {
    home.path().join("models").join(ID)
}

fn assert_whole(home: &Home) {
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

fn events(out: &str) -> Vec<Value> {
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The answer of the model itself.
fn expected_answer(home: &Home) -> String {
    let model = fixture("llama/smol");
    home.run(&[&["run", "-m", &model], &PROMPT[..]].concat())
        .ok()
}

/// Counts who connects, and answers nobody.
struct Trap {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Trap {
    fn set() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
        Self { url, connections }
    }

    /// Both hubs and all proxies are the trap.
    fn command(&self, home: &Home, args: &[&str]) -> Command {
        let mut command = online_command(home, &self.url, args);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"] {
            command.env(name, &self.url);
        }
        command
    }

    fn connections(&self) -> usize {
        // What was refused or accepted has been by now: the client has ended.
        std::thread::sleep(Duration::from_millis(50));
        self.connections.load(Ordering::SeqCst)
    }
}

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
fn a_missing_model_is_not_asked_for_when_offline() {
    for args in [
        &["run", "-m", ID, "-i", "hi"][..],
        &["chat", "-m", ID],
        &["serv", "-m", ID],
        &["cli", "-m", ID],
        &["bench", "-m", ID],
        &["download", ID],
        &["download", ID, "--json"],
    ] {
        for by_flag in [true, false] {
            let (home, trap) = (Home::new(), Trap::set());
            let flag: &[&str] = if by_flag { &["--offline"] } else { &[] };
            let mut command = trap.command(&home, &[args, flag].concat());
            if !by_flag {
                command.env("AHA_OFFLINE", "1");
            }
            let ran = Ran::from(command.output().unwrap());
            assert_eq!(ran.code, Some(1), "{args:?}");
            let told = [ID, "offline mode is on", "--offline", "AHA_OFFLINE"];
            assert!(
                told.iter().all(|text| ran.err.contains(text)),
                "{}",
                ran.err
            );
            assert_eq!(trap.connections(), 0, "{args:?}");
        }
    }
    // The trap does catch: without the mode there are connections.
    let (home, trap) = (Home::new(), Trap::set());
    let mut command = trap.command(&home, &["download", ID]);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    wait_for("a connection", || trap.connections() > 0);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn models_on_this_disk_need_no_network() {
    let (home, trap) = (Home::new(), Trap::set());
    home.install("llama/smol", ID);
    let model = fixture("llama/smol");
    let expected = expected_answer(&home);
    // Not offline by any switch: nobody is asked all the same.
    for name in [model.as_str(), ID, "smollm2-135m"] {
        let args = [&["run", "-m", name], &PROMPT[..]].concat();
        let ran = Ran::from(trap.command(&home, &args).output().unwrap());
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (Some(0), expected.as_str()),
            "{}",
            ran.err
        );
    }
    let by_path = [&["run", "--weight-path", &model], &PROMPT[..]].concat();
    for args in [
        &by_path[..],
        &["list"],
        &["list", "--local"],
        &["show", ID],
        &["show", "qwen3-0.6b"],
        &["verify", ID],
        &["verify", &model],
        &["ps"],
        &["stop", "--all"],
        &["run", "-m", "./nowhere", "-i", "hi"],
        &["run", "-m", "no-such-alias", "-i", "hi"],
        &["delete", ID, "--yes"],
    ] {
        trap.command(&home, args).output().unwrap();
        assert_eq!(trap.connections(), 0, "{args:?}");
    }
}

#[test]
fn a_release_that_this_build_cannot_run_is_not_downloaded_to_be_run() {
    let Some(lacking) = aha::releases::RELEASES
        .iter()
        .find(|known| !known.is_supported())
    else {
        return;
    };
    let (home, trap) = (Home::new(), Trap::set());
    for command in ["run", "cli", "serv"] {
        let input: &[&str] = if command == "run" { &["-i", "hi"] } else { &[] };
        let args = [&[command, "-m", lacking.alias], input].concat();
        let ran = Ran::from(trap.command(&home, &args).output().unwrap());
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.err.contains(lacking.id) && ran.err.contains(lacking.family),
            "{}",
            ran.err
        );
    }
    assert_eq!(trap.connections(), 0);
}

/// Waits until `ready`, but not for ever.
fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn part_len(home: &Home) -> u64 {
    let part = folder(home).join(format!(".aha/parts/{WEIGHTS}.part"));
    fs::metadata(part).map_or(0, |meta| meta.len())
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    let (home, hub) = (Home::new(), hub());
    let mut random = Random(4242);
    let (mut at, mut expected) = (0, vec![0]);
    for _ in 0..4 {
        let after = 1 + random.below(150_000);
        hub.once(WEIGHTS, Fault::Hang { after });
        at += after as u64;
        expected.push(at);
        let args = ["download", ID, "--source", "huggingface"];
        let mut command = online_command(&home, &hub.url(), &args);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        wait_for("the part", || part_len(&home) == at);
        child.kill().unwrap();
        child.wait().unwrap();
        let listed = home.run(&["list", "--local"]).ok();
        assert!(listed.contains("unfinished download"), "{listed}");
        // The lock of a killed process does not hold anybody up.
    }
    let ran = online(&home, &hub, &["download", ID, "--source", "huggingface"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("are here"), "{}", ran.err);
    assert_whole(&home);
    let seen = hub.seen_for(WEIGHTS);
    let starts: Vec<u64> = seen.iter().map(|seen| seen.from()).collect();
    assert_eq!(starts, expected);
}

#[test]
fn two_downloads_of_one_model_share_the_work() {
    let (home, hub) = (Home::new(), hub());
    hub.once(WEIGHTS, Fault::Hang { after: 1000 });
    let args = ["download", ID, "--source", "modelscope"];
    let begin = || {
        let mut command = online_command(&home, &hub.url(), &args);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut first = begin();
    wait_for("the first byte", || part_len(&home) == 1000);
    let pid = format!("(pid {})", first.id());
    let error = home.run(&["delete", ID, "--yes"]).failed(1);
    assert!(
        error.contains("another process") && error.contains(&pid),
        "{error}"
    );
    let second = begin();
    std::thread::sleep(Duration::from_millis(300));
    first.kill().unwrap();
    first.wait().unwrap();
    let second = Ran::ended(second);
    assert_eq!(second.code, Some(0), "{}", second.err);
    assert!(second.err.contains("waiting for it"), "{}", second.err);
    assert_whole(&home);
    assert_eq!(hub.seen_for(WEIGHTS).last().unwrap().from(), 1000);
}

#[test]
fn faults_of_the_line_are_told_and_overcome() {
    let (home, hub) = (Home::new(), hub());
    let wait = vec![("Retry-After".to_owned(), "1".to_owned())];
    hub.once(WEIGHTS, Fault::Reset { after: 50_000 })
        .once(WEIGHTS, Fault::Status(429, wait, String::new()))
        .once(WEIGHTS, Fault::Cut { after: 70_000 })
        .once(WEIGHTS, Fault::IgnoreRange)
        .once("config.json", Fault::status(503));
    let ran = online(&home, &hub, &["download", ID, "--source", "huggingface"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for text in ["asks to wait 1 s", "attempt 2 in", "begins again: ", "503"] {
        assert!(ran.err.contains(text), "{text}: {}", ran.err);
    }
    assert_whole(&home);

    let home = Home::new();
    hub.always(WEIGHTS, Fault::Corrupt);
    let ran = online(&home, &hub, &["download", ID, "--source", "huggingface"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("it was discarded"), "{}", ran.err);
    assert!(!folder(&home).join(WEIGHTS).exists());
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_told_and_the_part_is_kept() {
    let (home, hub) = (Home::new(), hub());
    let exe = env!("CARGO_BIN_EXE_aha");
    let base = online_command(&home, &hub.url(), &[]);
    let mut command = Command::new("sh");
    // The limit on a file's size stands for the disk; without its signal, writing fails.
    let script = "trap '' XFSZ; ulimit -f 400; exec \"$@\"";
    command
        .args([
            "-c",
            script,
            "sh",
            exe,
            "download",
            ID,
            "--source",
            "huggingface",
        ])
        .env_clear()
        .envs(
            base.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err.contains("free some space") && ran.err.contains(WEIGHTS),
        "{}",
        ran.err
    );
    let kept = part_len(&home);
    assert_eq!(kept, 400 * 512);
    hub.forget();
    let ran = online(&home, &hub, &["download", ID, "--source", "huggingface"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_whole(&home);
    assert_eq!(hub.seen_for(WEIGHTS)[0].from(), kept);
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

/// Links into `blobs/`, as Hugging Face's tools lay out their cache.
#[cfg(unix)]
fn cached(cache: &Path) -> PathBuf {
    let repo = cache.join(format!("models--{}", ID.replace('/', "--")));
    let snapshot = repo.join("snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("blobs")).unwrap();
    for entry in fs::read_dir(fixture("llama/smol")).unwrap() {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        let blob = crate::hub::sha256(&bytes);
        fs::write(repo.join("blobs").join(&blob), bytes).unwrap();
        let target = Path::new("../../blobs").join(blob);
        std::os::unix::fs::symlink(target, snapshot.join(entry.file_name())).unwrap();
    }
    snapshot
}

#[test]
#[cfg(unix)]
fn models_in_the_caches_of_other_tools_are_used_where_they_lie() {
    let expected = expected_answer(&Home::new());
    let home = Home::new();
    let snapshot = cached(&home.path().join(".cache/huggingface/hub"));
    let run = [&["run", "-m", "smollm2-135m"], &PROMPT[..]].concat();
    assert_eq!(home.run(&run).ok(), expected);
    let shown = home.run(&["show", ID, "--json"]).ok();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["path"].as_str(), snapshot.to_str());
    assert!(home.run(&["verify", ID]).ok().contains("ok"));
    let listed = home.run(&["list", "--local"]).ok();
    assert!(listed.contains("Hugging Face's cache"), "{listed}");
    assert!(!home.path().join("models").exists(), "nothing was copied");
    let error = home.run(&["delete", ID, "--yes"]).failed(1);
    assert!(error.contains("belongs to another tool"), "{error}");
    assert!(snapshot.join(WEIGHTS).exists());

    let home = Home::new();
    let own = home.path().join(".cache/modelscope/hub/models").join(ID);
    fs::create_dir_all(&own).unwrap();
    for entry in fs::read_dir(fixture("llama/smol")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), own.join(entry.file_name())).unwrap();
    }
    assert_eq!(home.run(&run).ok(), expected);
    let listed = home.run(&["list", "--local"]).ok();
    assert!(listed.contains("ModelScope's cache"), "{listed}");
    assert!(!home.path().join("models").exists(), "nothing was copied");
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
fn without_a_home_paths_work_and_names_say_what_is_missing() {
    let home = Home::new();
    let without = |args: &[&str]| {
        let mut command = home.command(args);
        command.env_remove("HOME").env_remove("AHA_HOME");
        Ran::from(command.output().unwrap())
    };
    let model = fixture("llama/smol");
    let ran = without(&[&["run", "-m", &model], &PROMPT[..]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for args in [
        &["list"][..],
        &["show", ID],
        &["download", ID],
        &["run", "-m", ID, "-i", "hi"],
    ] {
        let error = without(args).failed(1);
        assert!(error.contains("AHA_HOME"), "{args:?}: {error}");
    }
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
        "dtype weight_bytes cache_bytes_cpu cache_bytes_gpu"
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
