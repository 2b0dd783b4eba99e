//! Which hub is asked, and what happens when one of them fails.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use aha_hub::{FileFilter, ProxySettings};

use super::*;
use crate::support::Fault;

#[test]
fn the_faster_hub_serves() {
    let (hf, ms) = (Mock::with_model(1), Mock::with_model(1));
    let late = || Fault::Delay(Duration::from_secs(2));
    hf.once("list", late());
    let site = Site::with(&hf.url(), &ms.url());
    assert_eq!(site.download(Source::Auto).unwrap().source, MS);
    site.assert_model(1);

    hf.heal();
    // Quick to list, slow to send: the sample of the file decides.
    ms.always(SHARD, late());
    let site = Site::with(&hf.url(), &ms.url());
    assert_eq!(site.download(Source::Auto).unwrap().source, HF);
    site.assert_model(1);
}

#[test]
fn one_hub_down_is_no_trouble() {
    let mock = Mock::with_model(1);
    for (hf, ms, expected) in [(NOBODY, mock.url().as_str(), MS), (&mock.url(), NOBODY, HF)] {
        let site = Site::with(hf, ms);
        assert_eq!(site.download(Source::Auto).unwrap().source, expected);
        site.assert_model(1);
    }
    for fault in [
        Fault::status(404),
        Fault::status(401),
        Fault::status(503),
        Fault::LoginPage("text/html"),
        Fault::Hang { after: 0 },
    ] {
        let broken = Mock::with_model(1);
        broken.always("list", fault);
        let site = Site::with(&broken.url(), &mock.url());
        let done = site.impatient(Source::Auto).download(&id()).unwrap();
        assert_eq!(done.source, MS);
        site.assert_model(1);
    }
}

#[test]
fn a_hub_that_fails_half_way_is_replaced_and_its_bytes_are_kept() {
    let (hf, ms) = (Mock::with_model(1), Mock::with_model(1));
    // Wins the race, delivers a part, then nothing more.
    hf.once("list", Fault::Delay(Duration::from_secs(2)));
    ms.once(SHARD, Fault::Header("X-Sample", "yes"));
    ms.once(SHARD, Fault::Cut { after: 123_456 });
    ms.always(SHARD, Fault::status(503));
    let site = Site::with(&hf.url(), &ms.url());
    let done = site.download(Source::Auto).unwrap();
    assert_eq!(done.source, HF);
    site.assert_model(1);
    // Both hubs give the same checksum, so the other hub's bytes count.
    assert_eq!(hf.seen_for(SHARD).last().unwrap().from(), 123_456);
    let failed = |event: &Event| matches!(event, Event::SourceFailed { source: MS, .. });
    assert!(site.events().iter().any(failed));
}

#[test]
fn files_of_two_hubs_are_not_mixed_without_proof() {
    // The hubs hold different models under one name.
    let (hf, ms) = (Mock::with_model(1), Mock::with_model(2));
    ms.always(SHARD, Fault::status(503));
    let site = Site::with(&hf.url(), &ms.url());
    assert!(site.download(MS).is_err());
    assert_eq!(site.store().locate(&id()), None);
    site.download(HF).unwrap();
    site.assert_model(1);
}

#[test]
fn an_unfinished_download_goes_back_to_its_hub() {
    let (hf, ms) = (Mock::with_model(1), Mock::with_model(1));
    hf.hide_checksums();
    hf.always(SHARD, Fault::status(503));
    let site = Site::with(&hf.url(), &ms.url());
    assert!(site.download(HF).is_err());
    hf.heal();
    assert_eq!(site.download(Source::Auto).unwrap().source, HF);
    assert!(ms.seen().is_empty());
    site.assert_model(1);
}

#[test]
fn when_all_fail_every_reason_is_told() {
    let broken = Mock::with_model(1);
    broken.always("list", Fault::status(403));
    let site = Site::with(NOBODY, &broken.url());
    let error = site.download(Source::Auto).unwrap_err();
    assert_eq!(error.code(), "all_sources_failed");
    let text = error.to_string();
    assert!(
        text.contains("[huggingface]") && text.contains("[modelscope]"),
        "{text}"
    );
    assert!(text.contains("403"), "{text}");
}

#[test]
fn a_model_may_have_another_id_on_a_hub() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    let ours: ModelId = "ours/tiny-local".parse().unwrap();
    let error = site.downloader(HF).download(&ours).unwrap_err();
    assert_eq!(error.code(), "not_found");
    let done = site
        .downloader(HF)
        .hub_id(HF, id())
        .download(&ours)
        .unwrap();
    assert_eq!(done.dir, site.store().model_dir(&ours));
    assert_model(&done.dir, 1);
}

#[test]
fn patterns_choose_the_files() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    let family = FileFilter::common_and(&["*.bin"]).unwrap();
    let done = site
        .downloader(HF)
        .filter(family.clone())
        .exclude(["*-00002-*"])
        .download(&id());
    let dir = done.unwrap().dir;
    assert!(dir.join("pytorch_model.bin").exists() && dir.join(SHARD).exists());
    assert!(!dir.join("model-00002-of-00002.safetensors").exists());
    assert_eq!(
        site.store().locate(&id()),
        None,
        "half of the weights is no model"
    );

    let site = Site::new(&mock);
    let done = site
        .downloader(HF)
        .filter(family)
        .include(["README.md"])
        .download(&id())
        .unwrap();
    assert_eq!(done.files, 1);
    assert!(site.model_dir().join("README.md").exists());
    assert_eq!(site.store().locate(&id()), None);
    assert!(!site.store().local_models().unwrap()[0].complete);

    let error = site
        .downloader(HF)
        .include(["*.onnx"])
        .download(&id())
        .unwrap_err();
    assert_eq!(error.code(), "no_files");
    let error = site
        .downloader(HF)
        .include(["["])
        .download(&id())
        .unwrap_err();
    assert_eq!(error.code(), "invalid_pattern");
}

#[test]
fn mirrors_may_list_less() {
    // Names only, sizes and checksums from the tree, several pages of it.
    let mock = Mock::with_model(1);
    mock.list_names_only(false);
    let site = Site::new(&mock);
    mock.once(SHARD, Fault::Corrupt);
    site.download(HF).unwrap();
    site.assert_model(1);
    assert!(mock.seen_for("list").len() > 3, "several pages");

    // No tree either: sizes come with the files.
    let mock = Mock::with_model(1);
    mock.list_names_only(true);
    mock.once("tokenizer.json", Fault::Cut { after: 5_000 });
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    site.assert_model(1);

    // ModelScope without checksums.
    let mock = Mock::with_model(1);
    mock.hide_checksums();
    mock.once(SHARD, Fault::Cut { after: 5_000 });
    let site = Site::new(&mock);
    site.download(MS).unwrap();
    site.assert_model(1);
    assert_eq!(
        mock.seen_for(SHARD)[1].from(),
        5_000,
        "the same tag proves the same file"
    );
}

/// A proxy that passes one connection after another on to where CONNECT says.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:pw@{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || tunnel(client, &log));
        }
    });
    (url, asked)
}

fn tunnel(mut client: TcpStream, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    log.lock().unwrap().push(first.trim().to_owned());
    let target = first.split(' ').nth(1).unwrap();
    let mut server = TcpStream::connect(target).unwrap();
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
    let (mut up, mut down) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut reader, &mut up));
    let _ = std::io::copy(&mut server, &mut down);
}

#[test]
fn proxies_are_used_unless_excepted() {
    let mock = Mock::with_model(1);
    let (url, asked) = proxy();
    let mut site = Site::new(&mock);
    site.config.proxies = ProxySettings {
        http: Some(url.clone()),
        ..Default::default()
    };
    site.download(HF).unwrap();
    site.assert_model(1);
    let through = asked.lock().unwrap().clone();
    assert!(
        through
            .iter()
            .all(|line| line.starts_with("CONNECT 127.0.0.1:")),
        "{through:?}"
    );
    assert!(!through.is_empty());

    let mut site = Site::new(&mock);
    site.config.proxies = ProxySettings {
        http: Some(NOBODY.to_owned()),
        https: None,
        no_proxy: vec!["127.0.0.1".to_owned()],
    };
    site.download(HF).unwrap();

    site.config.proxies.no_proxy.clear();
    let error = site.download(HF).unwrap_err();
    assert_eq!(error.code(), "network", "{error}");
}

#[test]
fn a_bad_ca_file_is_named() {
    let mock = Mock::with_model(1);
    let mut site = Site::new(&mock);
    let file = site.dir.path().join("ca.pem");
    site.config.ca_file = Some(file.clone());
    assert_eq!(site.download(HF).unwrap_err().code(), "io");
    std::fs::write(&file, "no certificate").unwrap();
    let error = site.download(HF).unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
    assert!(mock.seen().is_empty());
}
