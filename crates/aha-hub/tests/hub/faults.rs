//! What a server or a line may do to a download; the files are byte-equal in the end, or the
//! error says why not and nothing wrong is kept.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::*;
use crate::support::{Fault, Random, noise};

fn cut(after: usize) -> Fault {
    Fault::Cut { after }
}

#[test]
fn a_clean_download_brings_exactly_the_wanted_files() {
    for source in [HF, MS] {
        let mock = Mock::with_model(1);
        let site = Site::new(&mock);
        let done = site.download(source).unwrap();
        site.assert_model(1);
        assert_eq!((done.source, done.files), (source, WANTED.len()));
        assert_eq!(done.downloaded_bytes, done.total_bytes);
        assert!(mock.seen_for("README.md").is_empty());
        assert!(matches!(
            site.events().first(),
            Some(Event::Started { files: 6, .. })
        ));
        assert!(matches!(site.events().last(), Some(Event::Finished { .. })));
        // A second time nothing is left to do.
        mock.forget();
        let again = site.download(source).unwrap();
        assert_eq!(
            (again.downloaded_bytes, mock.seen().len()),
            (0, 1),
            "only the list"
        );
    }
}

#[test]
fn cut_connections_are_resumed_where_they_broke() {
    let size = original(SHARD, 1).len();
    for seed in 1..=6 {
        for source in [HF, MS] {
            let mock = Mock::with_model(1);
            let mut random = Random(seed * 7919);
            let mut expected = vec![0];
            let mut at = 0;
            for _ in 0..5 {
                let after = random.below((size - at) / 2) + 1;
                mock.once(SHARD, cut(after));
                at += after;
                expected.push(at as u64);
            }
            let site = Site::new(&mock);
            let done = site.download(source).unwrap();
            site.assert_model(1);
            let starts: Vec<u64> = mock
                .seen_for(SHARD)
                .iter()
                .map(|seen| seen.from())
                .collect();
            assert_eq!(starts, expected);
            assert_eq!(
                done.downloaded_bytes, done.total_bytes,
                "no byte came twice"
            );
        }
    }
}

#[test]
fn the_mocks_resets_are_resets() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::Reset { after: 1000 });
    let mut stream = TcpStream::connect(("127.0.0.1", mock.port())).unwrap();
    let request = format!("GET /{REPO}/resolve/main/{SHARD} HTTP/1.1\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn resets_at_random_bytes_lose_nothing() {
    for seed in 1..=8 {
        let mock = Mock::with_model(1);
        let mut random = Random(seed * 6151);
        mock.once("list", Fault::Reset { after: 0 });
        for path in WANTED {
            let size = original(path, 1).len();
            for _ in 0..3 {
                let after = random.below(size + 1);
                mock.once(path, Fault::Reset { after });
            }
        }
        let site = Site::new(&mock);
        let retry = RetryPolicy {
            attempts: 10,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(2),
        };
        let source = if seed % 2 == 0 { HF } else { MS };
        site.downloader(source)
            .retry(retry)
            .download(&id())
            .unwrap();
        site.assert_model(1);
        let is_retry = |event: &&Event| matches!(event, Event::FileRetry { .. });
        assert!(site.events().iter().filter(is_retry).count() >= 3);
    }
}

#[test]
fn every_file_may_break_at_once() {
    let mock = Mock::with_model(2);
    for (index, path) in WANTED.iter().enumerate() {
        mock.once(path, cut(index))
            .once(path, Fault::status(503))
            .once(path, cut(1));
    }
    mock.once("list", cut(0)).once("list", Fault::status(500));
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    site.assert_model(2);
}

#[test]
fn a_server_that_ignores_ranges_starts_the_file_again() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, cut(100_000))
        .once(SHARD, Fault::IgnoreRange);
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    site.assert_model(1);
    assert_eq!(site.restarts(), ["the hub ignored the resume request"]);
}

#[test]
fn a_wrong_range_is_not_appended() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, cut(100_000))
        .once(SHARD, Fault::WrongRange);
    mock.once(
        "tokenizer.json",
        Fault::Header("Content-Encoding", "identity"),
    );
    let site = Site::new(&mock);
    site.download(MS).unwrap();
    site.assert_model(1);
    assert_eq!(
        site.restarts(),
        ["the hub sent another range than asked for"]
    );
}

#[test]
fn a_refused_range_starts_the_file_again() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, cut(100_000))
        .once(SHARD, Fault::status(416));
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    site.assert_model(1);
    assert_eq!(site.restarts(), ["the hub refused to resume"]);
}

#[test]
fn a_file_that_changes_between_two_requests_is_never_mixed() {
    // The hub gives no checksum for this file: only the entity tag tells.
    let old = original("tokenizer.json", 1);
    let new = noise(99, old.len());
    let mock = Mock::with_model(1);
    let replaced = Fault::Replace {
        after: 9_000,
        bytes: new.clone(),
    };
    mock.once("tokenizer.json", replaced);
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    let found = std::fs::read(site.model_dir().join("tokenizer.json")).unwrap();
    assert!(found == new);
    assert_eq!(site.restarts(), ["the file changed on the hub"]);
}

#[test]
fn a_large_file_that_changes_is_listed_again() {
    for source in [HF, MS] {
        let mock = Mock::with_model(1);
        let new = noise(77, original(SHARD, 1).len());
        mock.once(
            SHARD,
            Fault::Replace {
                after: 50_000,
                bytes: new.clone(),
            },
        );
        // Hugging Face names the stored object in a header.
        if source == HF {
            mock.redirect_large_files_to(&mock.url());
        }
        let site = Site::new(&mock);
        site.download(source).unwrap();
        assert!(std::fs::read(site.model_dir().join(SHARD)).unwrap() == new);
        assert_eq!(mock.seen_for("list").len(), 2);
    }
}

#[test]
fn a_changed_tag_with_the_same_checksum_does_not_cost_the_bytes() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, cut(200_000))
        .once(SHARD, Fault::Etag("other-edge-server".to_owned()));
    let site = Site::new(&mock);
    let done = site.download(MS).unwrap();
    site.assert_model(1);
    assert!(site.restarts().is_empty());
    assert_eq!(done.downloaded_bytes, done.total_bytes);
}

#[test]
fn a_wrong_tag_without_a_checksum_starts_the_file_again() {
    let mock = Mock::with_model(1);
    mock.once("tokenizer.json", cut(9_000))
        .once("tokenizer.json", Fault::Etag("of-another-file".to_owned()));
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    site.assert_model(1);
    assert_eq!(site.restarts(), ["the file changed on the hub"]);
    let starts = mock.seen_for("tokenizer.json");
    let starts: Vec<u64> = starts.iter().map(|seen| seen.from()).collect();
    assert_eq!(starts, [0, 9_000, 0]);
}

#[test]
fn a_limit_is_waited_for() {
    let mock = Mock::with_model(1);
    let wait = |seconds: &str| {
        Fault::Status(
            429,
            vec![("Retry-After".into(), seconds.into())],
            String::new(),
        )
    };
    mock.once(SHARD, wait("1"));
    let site = Site::new(&mock);
    let begin = Instant::now();
    site.download(HF).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    site.assert_model(1);

    // A wait beyond all patience is an error at once, with the number.
    let mock = Mock::with_model(1);
    mock.always(SHARD, wait("3600"));
    let site = Site::new(&mock);
    let error = site.download(HF).unwrap_err();
    assert_eq!(error.code(), "rate_limited");
    assert!(error.to_string().contains("3600 s"), "{error}");
    assert_eq!(mock.seen_for(SHARD).len(), 1);
}

#[test]
fn server_errors_are_retried_but_not_for_ever() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::status(500))
        .once(SHARD, Fault::status(503));
    let site = Site::new(&mock);
    site.download(MS).unwrap();
    site.assert_model(1);

    mock.always(SHARD, Fault::status(502));
    let site = Site::new(&mock);
    mock.forget();
    let error = site.download(MS).unwrap_err();
    assert!(
        matches!(error, HubError::Status { status: 502, .. }),
        "{error}"
    );
    assert_eq!(mock.seen_for(SHARD).len(), 3);
    assert_eq!(site.store().locate(&id()), None);
}

#[test]
fn a_dripping_server_is_left_and_resumed() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::Drip { after: 120_000 });
    let site = Site::new(&mock);
    site.impatient(HF).download(&id()).unwrap();
    site.assert_model(1);
    let slow = |event: &Event| matches!(event, Event::FileRetry { reason, .. } if reason.contains("is too slow"));
    assert!(site.events().iter().any(slow));
    let again = mock.seen_for(SHARD)[1].from();
    assert!(again >= 120_000, "the bytes before the drip are kept");
}

#[test]
fn a_stalled_server_is_left_and_resumed() {
    let mock = Mock::with_model(1);
    mock.once(SHARD, Fault::Hang { after: 70_000 });
    let site = Site::new(&mock);
    site.impatient(MS).download(&id()).unwrap();
    site.assert_model(1);
    assert_eq!(mock.seen_for(SHARD)[1].from(), 70_000);
}

#[test]
fn lies_about_the_length_are_seen() {
    // Without a checksum the size is the only witness.
    let size = original("tokenizer.json", 1).len();
    for length in [size - 1, size + 1, 0] {
        let mock = Mock::with_model(1);
        mock.once("tokenizer.json", Fault::Length(length));
        let site = Site::new(&mock);
        site.download(HF).unwrap();
        site.assert_model(1);

        mock.always("tokenizer.json", Fault::Length(length));
        let site = Site::new(&mock);
        let error = site.download(HF).unwrap_err();
        assert_eq!(error.code(), "size_mismatch", "{error}");
        assert!(!site.model_dir().join("tokenizer.json").exists());
        assert_eq!(site.store().locate(&id()), None);
    }
}

#[test]
fn wrong_bytes_are_fetched_again_once() {
    for source in [HF, MS] {
        let mock = Mock::with_model(1);
        mock.once(SHARD, Fault::Corrupt);
        let site = Site::new(&mock);
        site.download(source).unwrap();
        site.assert_model(1);

        mock.always(SHARD, Fault::Corrupt);
        let site = Site::new(&mock);
        mock.forget();
        let error = site.download(source).unwrap_err();
        assert_eq!(error.code(), "checksum_mismatch", "{error}");
        assert_eq!(mock.seen_for(SHARD).len(), 2);
        assert!(!site.model_dir().join(SHARD).exists());
        assert_eq!(site.store().locate(&id()), None);
        // The wrong bytes are not resumed from.
        mock.heal();
        site.download(source).unwrap();
        site.assert_model(1);
    }
}

#[test]
fn wrong_bytes_of_an_earlier_run_cost_one_more_try() {
    let mock = Mock::with_model(1);
    mock.always(SHARD, cut(0)).once(SHARD, cut(40_000));
    let site = Site::new(&mock);
    assert_eq!(site.download(HF).unwrap_err().code(), "network");
    let part = site.model_dir().join(format!(".aha/parts/{SHARD}.part"));
    assert_eq!(std::fs::read(&part).unwrap().len(), 40_000);
    std::fs::write(&part, vec![0; 40_000]).unwrap();
    mock.heal();
    site.download(HF).unwrap();
    site.assert_model(1);
    assert_eq!(site.restarts().len(), 1);
}

#[test]
fn login_pages_are_not_saved() {
    for (what, kind) in [
        ("list", "text/html; charset=utf-8"),
        ("list", "application/json"),
        (SHARD, "text/html"),
        (SHARD, "application/octet-stream"),
        ("config.json", "text/html"),
    ] {
        for source in [HF, MS] {
            let mock = Mock::with_model(1);
            mock.always(what, Fault::LoginPage(kind));
            let site = Site::new(&mock);
            let error = site.download(source).unwrap_err();
            let expected: &[&str] = match kind {
                // The list's size gives it away before the page is looked at.
                "application/octet-stream" => &["size_mismatch", "not_a_hub"],
                _ => &["not_a_hub"],
            };
            assert!(expected.contains(&error.code()), "{what} {kind}: {error}");
            assert!(!site.model_dir().join(what).exists());
            assert_eq!(site.store().locate(&id()), None);
        }
    }
    // Where no size is known, the page itself tells.
    let mock = Mock::with_model(1);
    mock.list_names_only(true);
    mock.always("tokenizer.json", Fault::LoginPage("application/json"));
    let error = Site::new(&mock).download(HF).unwrap_err();
    assert_eq!(error.code(), "not_a_hub", "{error}");
}

#[test]
fn refusals_are_told_apart_and_not_repeated() {
    for (status, code, advice) in [
        (401, "unauthorized", "HF_TOKEN"),
        (403, "forbidden", "accept"),
        (404, "not_found", "check the id"),
        (418, "bad_status", "418"),
    ] {
        for what in ["list", SHARD] {
            let mock = Mock::with_model(1);
            let body = "{\"error\": \"Access is\\r\\nrestricted\"}".to_owned();
            mock.always(what, Fault::Status(status, Vec::new(), body));
            let site = Site::new(&mock);
            let error = site.download(HF).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(advice), "{error}");
            assert!(!error.to_string().contains(['\r', '\n']), "{error}");
            assert_eq!(mock.seen_for(what).len(), 1, "{status} is final");
        }
    }
    // Hugging Face answers 401 for what does not exist.
    let mock = Mock::with_model(1);
    let absent = vec![("X-Error-Code".to_owned(), "RepoNotFound".to_owned())];
    mock.always("list", Fault::Status(401, absent, String::new()));
    assert_eq!(
        Site::new(&mock).download(HF).unwrap_err().code(),
        "not_found"
    );
    // ModelScope reports failures inside a 200, too.
    let mock = Mock::with_model(1);
    let body = "{\"Code\": 10010205001, \"Success\": false, \"Message\": \"no such model\"}";
    mock.always("list", Fault::Status(200, Vec::new(), body.to_owned()));
    let error = Site::new(&mock).download(MS).unwrap_err();
    assert!(
        error.code() == "not_found" && error.to_string().contains("no such model"),
        "{error}"
    );
}

#[test]
fn unasked_compression_is_refused() {
    let mock = Mock::with_model(1);
    mock.always("tokenizer.json", Fault::Header("Content-Encoding", "br"));
    let error = Site::new(&mock).download(HF).unwrap_err();
    assert_eq!(error.code(), "not_a_hub", "{error}");
}

#[test]
fn a_cancelled_download_goes_on_later() {
    let mock = Mock::with_model(1);
    mock.always(SHARD, Fault::Hang { after: 10_000 });
    let site = Site::new(&mock);
    let cancel = aha_hub::CancelToken::default();
    let downloader = site.impatient(HF).cancel(cancel.clone());
    let error = std::thread::scope(|scope| {
        let download = scope.spawn(|| downloader.download(&id()));
        // The other files are not held up by the one that hangs.
        let finished = |event: &&Event| matches!(event, Event::FileFinished { .. });
        wait_for("the other files and a part of this one", || {
            site.events().iter().filter(finished).count() == WANTED.len() - 1
                && site.part_len() >= 10_000
        });
        cancel.cancel();
        download.join().unwrap().unwrap_err()
    });
    assert_eq!(error.code(), "cancelled");
    mock.heal();
    mock.forget();
    site.download(HF).unwrap();
    site.assert_model(1);
    assert!(mock.seen_for(SHARD)[0].from() >= 10_000);
    for path in WANTED.iter().filter(|path| **path != SHARD) {
        assert!(mock.seen_for(path).is_empty(), "finished files stay");
    }
}

#[test]
fn an_empty_file_is_a_file() {
    let mock = Mock::with_model(1);
    mock.put("tokenizer.json", b"");
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    let meta = std::fs::metadata(site.model_dir().join("tokenizer.json")).unwrap();
    assert_eq!(meta.len(), 0);
}

/// Faults that a hub recovers from, for one file of `size` bytes.
fn any_fault(random: &mut Random, size: usize, has_checksum: bool) -> Fault {
    match random.below(if has_checksum { 9 } else { 7 }) {
        0..2 => cut(random.below(size + 1)),
        2 => Fault::Reset {
            after: random.below(size + 1),
        },
        3 => Fault::IgnoreRange,
        4 => Fault::WrongRange,
        5 => Fault::status([408, 416, 500, 502, 503][random.below(5)]),
        6 => Fault::Length(random.below(size * 2)),
        7 => Fault::Etag(format!("tag-{}", random.below(3))),
        _ => Fault::Corrupt,
    }
}

#[test]
fn any_mixture_of_faults_ends_in_the_right_bytes() {
    for seed in 1..=30 {
        let mut random = Random(seed * 104_729);
        let mock = Mock::with_model(seed);
        for path in WANTED {
            let size = original(path, seed).len();
            let mut corrupt = 0;
            for _ in 0..random.below(6) {
                let fault = any_fault(&mut random, size, path.ends_with(".safetensors"));
                // Twice the wrong bytes in a row are an error, rightly.
                corrupt += usize::from(matches!(fault, Fault::Corrupt));
                if corrupt < 2 {
                    mock.once(path, fault);
                }
            }
        }
        let site = Site::new(&mock);
        let retry = RetryPolicy {
            attempts: 20,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(2),
        };
        let source = if seed % 2 == 0 { HF } else { MS };
        let result = site.downloader(source).retry(retry).download(&id());
        assert!(
            result.is_ok(),
            "seed {seed}: {result:?}\n{:#?}",
            site.events()
        );
        site.assert_model(seed);
    }
}
