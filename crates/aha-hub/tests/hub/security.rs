//! Tokens stay with their hub, names stay inside the store, offline means offline.

use std::net::TcpListener;
use std::time::Duration;

use aha_hub::{Revision, Secret};

use super::*;
use crate::support::Fault;

fn token(text: &str) -> Option<Secret> {
    Some(Secret::new("the token", text).unwrap())
}

#[test]
fn a_token_does_not_follow_a_redirect_to_another_host() {
    let (hub, cdn) = (Mock::with_model(1), Mock::with_model(1));
    hub.require_token("hf_secret");
    hub.redirect_large_files_to(&cdn.url());
    let mut site = Site::new(&hub);
    site.config.huggingface_token = token("hf_secret");
    site.download(HF).unwrap();
    site.assert_model(1);
    assert!(!cdn.seen().is_empty());
    for seen in cdn.seen() {
        assert!(
            !seen.headers.contains_key("authorization"),
            "{}",
            seen.target
        );
        assert!(!seen.headers.contains_key("cookie"), "{}", seen.target);
    }
    let with_token = |seen: &support::Seen| seen.headers["authorization"] == "Bearer hf_secret";
    assert!(hub.seen().iter().all(with_token));
}

#[test]
fn a_token_follows_a_redirect_on_the_same_host() {
    let mock = Mock::with_model(1);
    mock.require_token("hf_secret");
    mock.once(
        "list",
        Fault::Redirect(format!("/api/models/{REPO}/revision/main?blobs=true")),
    );
    let mut site = Site::new(&mock);
    site.config.huggingface_token = token("hf_secret");
    site.download(HF).unwrap();
    site.assert_model(1);
}

#[test]
fn each_hub_gets_its_own_token_only() {
    let (hf, ms) = (Mock::with_model(1), Mock::with_model(1));
    let mut site = Site::with(&hf.url(), &ms.url());
    site.config.huggingface_token = token("hf_one");
    site.config.modelscope_token = token("ms-two");
    site.download(HF).unwrap();
    site.store().delete(&id()).unwrap();
    site.download(MS).unwrap();
    assert!(
        hf.seen()
            .iter()
            .all(|seen| seen.headers["authorization"] == "Bearer hf_one")
    );
    assert!(
        ms.seen()
            .iter()
            .all(|seen| seen.headers["authorization"] == "Bearer ms-two")
    );

    // A token given by hand goes where its prefix says, or nowhere.
    let site = Site::with(&hf.url(), &ms.url());
    hf.forget();
    ms.forget();
    ms.once("list", Fault::Delay(Duration::from_secs(2)));
    let given = |text| site.downloader(Source::Auto).token(token(text).unwrap());
    given("hf_given").download(&id()).unwrap();
    assert!(!hf.seen().is_empty());
    assert!(
        ms.seen()
            .iter()
            .all(|seen| !seen.headers.contains_key("authorization"))
    );
    let error = given("mystery").download(&id()).unwrap_err();
    assert_eq!(error.code(), "invalid_setting");
    assert!(!error.to_string().contains("mystery"));
}

#[test]
fn messages_hold_no_tokens_and_no_signatures() {
    let (hub, cdn) = (Mock::with_model(1), Mock::start());
    hub.redirect_large_files_to(&cdn.url());
    let mut site = Site::new(&hub);
    site.config.huggingface_token = token("hf_secret");
    let error = site.download(HF).unwrap_err();
    assert_eq!(error.code(), "not_found");
    let told = format!("{error} {error:?} {:?} {:?}", site.events(), site.config);
    assert!(
        !told.contains("hf_secret") && !told.contains("X-Signature"),
        "{told}"
    );
}

#[test]
fn redirects_have_an_end() {
    let mock = Mock::with_model(1);
    mock.always(
        "list",
        Fault::Redirect(format!("/api/models/{REPO}/revision/main")),
    );
    let error = Site::new(&mock).download(HF).unwrap_err();
    assert_eq!(error.code(), "bad_redirect", "{error}");
    let mock = Mock::with_model(1);
    mock.always("list", Fault::Redirect("file:///etc/passwd".to_owned()));
    let error = Site::new(&mock).download(HF).unwrap_err();
    assert_eq!(error.code(), "bad_redirect", "{error}");
}

#[test]
fn listed_names_cannot_leave_the_store() {
    for name in [
        "../evil.json",
        "/tmp/evil.json",
        "a/../../evil.json",
        ".aha/manifest.json",
    ] {
        for source in [HF, MS] {
            let mock = Mock::with_model(1);
            mock.put(name, b"{}");
            let site = Site::new(&mock);
            let error = site.download(source).unwrap_err();
            assert_eq!(error.code(), "unsafe_path", "{name}: {error}");
            assert!(
                !site.model_dir().join("config.json").exists(),
                "nothing is written"
            );
        }
    }
}

#[test]
fn offline_opens_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut site = Site::with(&url, &url);
    site.config.offline = true;
    for source in [Source::Auto, HF, MS] {
        let error = site.download(source).unwrap_err();
        assert_eq!(error.code(), "offline", "{error}");
    }
    let accepted = listener.accept().unwrap_err();
    assert_eq!(
        accepted.kind(),
        std::io::ErrorKind::WouldBlock,
        "somebody connected"
    );
    assert!(!site.model_dir().exists());

    // A model that is here is found all the same.
    let mock = Mock::with_model(1);
    site.config.huggingface_endpoint = mock.url();
    site.downloader(HF).offline(false).download(&id()).unwrap();
    mock.forget();
    let done = site.downloader(Source::Auto).download(&id()).unwrap();
    assert_eq!((done.dir, done.downloaded_bytes), (site.model_dir(), 0));
    assert!(mock.seen().is_empty());
}

#[test]
fn names_in_urls_are_escaped() {
    let mock = Mock::with_model(1);
    let odd = "tokenizer #1 & 2?.json";
    mock.put(odd, b"odd");
    for source in [HF, MS] {
        let site = Site::new(&mock);
        site.download(source).unwrap();
        assert_eq!(std::fs::read(site.model_dir().join(odd)).unwrap(), b"odd");
    }
    let site = Site::new(&mock);
    let pull: Revision = "refs/pr/1".parse().unwrap();
    site.downloader(HF).revision(pull).download(&id()).unwrap();
    assert!(
        mock.seen()
            .iter()
            .any(|seen| seen.target.contains("/revision/refs%2Fpr%2F1?"))
    );
}
