//! Several processes, killed ones, and a disk that fills up. The child processes are this test
//! binary again, running [`child`] only.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::support::{Fault, Random};

const URL: &str = "AHA_HUB_TEST_URL";
const DIR: &str = "AHA_HUB_TEST_DIR";

/// Not a test: what a child process does. Prints the error's code, if there is one.
#[test]
fn child() {
    let (Ok(url), Ok(dir)) = (std::env::var(URL), std::env::var(DIR)) else {
        return;
    };
    let mut config = HubConfig::from_lookup(|_| None).unwrap();
    config.huggingface_endpoint = url;
    let store = Store::open(Some(Path::new(&dir)), &config).unwrap();
    match Downloader::new(&store, &config).source(HF).download(&id()) {
        Ok(_) => println!("child: ok"),
        Err(error) => println!("child: {} {error}", error.code()),
    }
}

/// `shell` runs before the child and ends with `exec "$@"`.
fn spawn_child(site: &Site, mock: &Mock, shell: Option<&str>) -> Child {
    let exe = std::env::current_exe().unwrap();
    let mut command = match shell {
        Some(script) => {
            let mut command = Command::new("sh");
            command.args(["-c", script, "sh"]).arg(exe);
            command
        }
        None => Command::new(exe),
    };
    command
        .args(["--exact", "processes::child", "--nocapture"])
        .env(URL, mock.url())
        .env(DIR, site.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn output(child: Child) -> String {
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn a_killed_download_goes_on_where_it_stopped() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::Hang { after: 150_000 })
        .once(SHARD, Fault::Hang { after: 90_000 });
    let site = Site::new(&mock);
    for stopped_at in [150_000, 240_000] {
        let mut child = spawn_child(&site, &mock, None);
        wait_for("the part", || site.part_len() == stopped_at);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(site.store().locate(&id()), None);
        assert_eq!(
            site.store()
                .delete(&"a/b".parse().unwrap())
                .unwrap_err()
                .code(),
            "not_in_store"
        );
    }
    // The lock of the killed process does not hold us up.
    site.download(HF).unwrap();
    site.assert_model(1);
    let starts: Vec<u64> = mock
        .seen_for(SHARD)
        .iter()
        .map(|seen| seen.from())
        .collect();
    assert_eq!(starts, [0, 150_000, 240_000]);
}

#[test]
fn a_download_may_be_killed_at_any_moment() {
    for source_seed in 1..=2 {
        let mock = Mock::with_model(source_seed);
        for path in WANTED {
            mock.always(path, Fault::Slow { piece: 1500 });
        }
        let site = Site::new(&mock);
        let mut random = Random(source_seed * 31_337);
        let mut killed = 0;
        for _ in 0..8 {
            let mut child = spawn_child(&site, &mock, None);
            std::thread::sleep(Duration::from_millis(20 + random.below(120) as u64));
            child.kill().unwrap();
            killed += usize::from(!child.wait().unwrap().success());
            // What is offered is whole, whenever it is offered.
            if site.store().locate(&id()).is_some() {
                site.assert_model(source_seed);
            }
        }
        assert!(killed > 0, "every child was done before it was killed");
        mock.heal();
        site.download(HF).unwrap();
        site.assert_model(source_seed);
    }
}

#[test]
fn two_processes_download_one_model_once() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::Delay(Duration::from_millis(200)));
    let site = Site::new(&mock);
    let children: Vec<Child> = (0..3).map(|_| spawn_child(&site, &mock, None)).collect();
    for child in children {
        assert!(output(child).contains("child: ok"));
    }
    site.assert_model(1);
    for path in WANTED {
        assert_eq!(mock.seen_for(path).len(), 1, "{path} came more than once");
    }
}

#[test]
fn a_second_downloader_waits_and_says_so() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::Hang { after: 1000 });
    let site = Site::new(&mock);
    let mut child = spawn_child(&site, &mock, None);
    wait_for("the first byte", || site.part_len() == 1000);
    let pid = child.id();
    let error = site.store().delete(&id()).unwrap_err();
    assert!(
        error.code() == "busy" && error.to_string().contains(&pid.to_string()),
        "{error}"
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| site.download(HF));
        let told =
            |event: &Event| matches!(event, Event::Waiting { pid: Some(p), .. } if *p == pid);
        wait_for("the wait", || site.events().iter().any(told));
        assert!(!waiting.is_finished());
        child.kill().unwrap();
        child.wait().unwrap();
        waiting.join().unwrap().unwrap();
    });
    site.assert_model(1);
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_the_part_is_kept() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    // The limit on the size of a file, 400 blocks of 512 bytes, stands for the disk; the shard has
    // 300 000 bytes. Its signal is ignored, so that the write fails as on a full disk.
    let child = spawn_child(
        &site,
        &mock,
        Some("trap '' XFSZ; ulimit -f 400; exec \"$@\""),
    );
    let said = output(child);
    assert!(said.contains("child: io cannot write"), "{said}");
    assert!(
        said.contains("free some space") && said.contains(SHARD),
        "{said}"
    );
    let kept = site.part_len();
    assert_eq!(kept, 400 * 512);
    assert_eq!(site.store().locate(&id()), None);
    mock.forget();
    site.download(HF).unwrap();
    site.assert_model(1);
    assert_eq!(mock.seen_for(SHARD)[0].from(), kept);
}
