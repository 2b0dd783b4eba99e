//! Downloads that are killed, meet each other, or run on a bad line or a full disk.

use crate::hub::{Fault, Random};
use crate::local_hub::{
    ID, WEIGHTS, assert_whole, folder, hub, online, online_command, part_len, wait_for,
};
use crate::support::{Home, Ran};
use std::process::{Command, Stdio};
use std::time::Duration;

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
