//! Who connects when, and models that are here already.

use crate::local_hub::{ID, PROMPT, WEIGHTS, expected_answer, online_command, wait_for};
use crate::support::{Home, Ran, fixture};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
