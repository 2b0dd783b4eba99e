//! Where media comes from, and what is refused.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aha_media::MediaError;
use aha_media::source::{
    Host, MediaSource, RemoteUrl, SourcePolicy, decode_base64, decode_data_url, refused_kind,
};

const MAX: u64 = 1 << 20;

#[test]
fn base64_is_read_tolerantly() {
    for text in [
        "aGVsbG8/IHdvcmxkPg==",
        "aGVsbG8/IHdvcmxkPg",
        "aGVsbG8_IHdvcmxkPg==",
        " aGVs\nbG8/\r\n IHdv\tcmxkPg== ",
        "aGVsbG8%2FIHdvcmxkPg%3D%3D",
    ] {
        assert_eq!(
            decode_base64(text, MAX).unwrap(),
            b"hello? world>",
            "{text:?}"
        );
        let url = format!("data:image/png;base64,{text}");
        assert_eq!(
            decode_data_url(&url, MAX).unwrap(),
            b"hello? world>",
            "{url:?}"
        );
    }
    let url = "DATA:;charset=x;BASE64,AAEC";
    assert_eq!(
        MediaSource::parse(url, MAX).unwrap(),
        MediaSource::Bytes(vec![0, 1, 2])
    );
    assert_eq!(
        MediaSource::parse("AAEC", MAX).unwrap(),
        MediaSource::Bytes(vec![0, 1, 2])
    );
}

#[test]
fn broken_base64_is_said() {
    for text in [
        "a",
        "aGVsbG8*",
        "aGVs=bG8",
        "not base64 at all!",
        "aGVsbG8\u{e4}",
    ] {
        let error = decode_base64(text, MAX).unwrap_err();
        assert!(
            matches!(error, MediaError::InvalidData { .. }),
            "{text:?}: {error:?}"
        );
    }
    for text in ["", " \n", "=="] {
        assert!(matches!(
            decode_base64(text, MAX).unwrap_err(),
            MediaError::Empty { .. }
        ));
    }
    for url in [
        "data:image/png;base64",
        "data:image/png,abc",
        "data:,x",
        "d",
    ] {
        let error = decode_data_url(url, MAX).unwrap_err();
        assert!(
            matches!(error, MediaError::InvalidData { .. }),
            "{url:?}: {error:?}"
        );
    }
}

#[test]
fn the_size_is_checked_before_decoding() {
    // The end is broken, which is not looked at once the length is too much.
    let long = format!("{}!", "A".repeat(400));
    let error = decode_base64(&long, 299).unwrap_err();
    assert!(
        matches!(error, MediaError::TooManyBytes { limit: 299, .. }),
        "{error:?}"
    );
    assert_eq!(decode_base64(&"A".repeat(400), 300).unwrap().len(), 300);
}

#[test]
fn plain_urls_are_read() {
    let url = RemoteUrl::parse("HTTPS://Example.COM.:8443/a/b.png?x=1&y=%20#part").unwrap();
    assert_eq!(
        url.to_string(),
        "https://example.com:8443/a/b.png?x=1&y=%20"
    );
    assert_eq!(url.host(), &Host::Name("example.com".to_owned()));
    assert_eq!(url.port(), 8443);
    assert_eq!(
        RemoteUrl::parse("http://a.b?q").unwrap().to_string(),
        "http://a.b/?q"
    );
    let url = RemoteUrl::parse("http://[::1]:80/").unwrap();
    assert_eq!(url.to_string(), "http://[::1]/");
    let url = RemoteUrl::parse("http://127.0.0.1").unwrap();
    assert_eq!(url.host(), &Host::Address("127.0.0.1".parse().unwrap()));
}

#[test]
fn urls_that_parsers_read_differently_are_refused() {
    for text in [
        "http:\\\\evil",
        "http://a\\@b/",
        "http://user@host/",
        "http://user:pass@host/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://1.2.3.4.5/",
        "http://a b/",
        "http://a\tb/",
        "http://a\n/",
        "http://\u{ff21}.com/",
        "http://exa%6dple.com/",
        "http:///x",
        "http://",
        "http:/x",
        "http://host:0/",
        "http://host:99999/",
        "http://host:+80/",
        "http://[::1/",
        "http://[::1%eth0]/",
        "http://[::1]x/",
        "http://a..b/",
        "http://-%/",
    ] {
        let error = MediaSource::parse(text, MAX).unwrap_err();
        assert!(
            matches!(error, MediaError::InvalidUrl { .. }),
            "{text:?}: {error:?}"
        );
    }
    for text in [
        "gopher://x/",
        "ftp://x/a.png",
        "javascript:alert(1)",
        "C:\\x.png",
    ] {
        let error = MediaSource::parse(text, MAX).unwrap_err();
        assert!(
            matches!(error, MediaError::UnsupportedScheme { .. }),
            "{text:?}: {error:?}"
        );
    }
}

#[test]
fn redirects_are_resolved_and_read_as_strictly() {
    let from = RemoteUrl::parse("https://a.example:8443/x/y.png?q=1").unwrap();
    for (location, expected) in [
        ("/z.png", "https://a.example:8443/z.png"),
        ("z.png", "https://a.example:8443/x/z.png"),
        ("?r=2", "https://a.example:8443/x/y.png?r=2"),
        ("//b.example/z", "https://b.example/z"),
        ("http://c.example/z:1", "http://c.example/z"),
    ] {
        let to = from.redirected(location).unwrap().to_string();
        assert!(to.starts_with(expected), "{location}: {to}");
    }
    assert!(from.redirected("http://user@b/").is_err());
    assert!(from.redirected("file:///etc/passwd").is_err());
    assert!(from.redirected("//b\\c/").is_err());
}

#[test]
fn inner_addresses_are_known() {
    for text in [
        "127.0.0.1",
        "127.255.0.3",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.1.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.0.1",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.1.2.3",
        "::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:0:127.0.0.1",
    ] {
        let address: IpAddr = text.parse().unwrap();
        assert!(refused_kind(address).is_some(), "{text}");
    }
    for text in [
        "1.1.1.1",
        "8.8.8.8",
        "172.15.0.1",
        "172.32.0.1",
        "100.63.0.1",
        "100.128.0.1",
        "192.167.1.1",
        "223.255.255.1",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ] {
        let address: IpAddr = text.parse().unwrap();
        assert_eq!(refused_kind(address), None, "{text}");
    }
}

#[test]
fn the_policy_guards_hosts_and_addresses() {
    let url = |text: &str| RemoteUrl::parse(text).unwrap();
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let public: IpAddr = "8.8.8.8".parse().unwrap();
    let usual = SourcePolicy::default();
    assert!(usual.check_url(&url("http://example.com/")).is_ok());
    assert!(
        usual
            .check_address(&url("http://example.com/"), public)
            .is_ok()
    );
    for text in [
        "http://127.0.0.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::1]/",
    ] {
        let error = usual.check_url(&url(text)).unwrap_err();
        assert!(matches!(error, MediaError::AddressRefused { .. }), "{text}");
    }
    // A public name that is found at an inner address.
    let error = usual
        .check_address(&url("http://rebind.example/"), local)
        .unwrap_err();
    assert!(matches!(error, MediaError::AddressRefused { .. }));

    let listing = SourcePolicy {
        allowed_hosts: ["localhost:9000", "*.inner.example", "10.0.0.7"]
            .iter()
            .map(|host| host.parse().unwrap())
            .collect(),
        ..SourcePolicy::default()
    };
    assert!(
        listing
            .check_address(&url("http://LOCALHOST.:9000/"), local)
            .is_ok()
    );
    assert!(
        listing
            .check_address(&url("http://localhost:9001/"), local)
            .is_err()
    );
    assert!(
        listing
            .check_address(&url("http://a.inner.example/"), local)
            .is_ok()
    );
    assert!(
        listing
            .check_address(&url("http://inner.example/"), local)
            .is_err()
    );
    assert!(
        listing
            .check_address(&url("http://evilinner.example/"), local)
            .is_err()
    );
    assert!(listing.check_url(&url("http://10.0.0.7/")).is_ok());
    assert!(listing.check_url(&url("http://10.0.0.8/")).is_err());
    assert!(listing.check_url(&url("http://elsewhere.example/")).is_ok());

    let closed = SourcePolicy {
        only_allowed_hosts: true,
        ..listing
    };
    let error = closed
        .check_url(&url("http://elsewhere.example/"))
        .unwrap_err();
    assert!(matches!(error, MediaError::HostNotAllowed { .. }));
    assert!(closed.check_url(&url("http://a.inner.example/")).is_ok());
    assert!(
        "user@host"
            .parse::<aha_media::source::HostPattern>()
            .is_err()
    );
}

fn file(text: &str) -> PathBuf {
    match MediaSource::parse(text, MAX).unwrap() {
        MediaSource::File(path) => path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn file_urls_are_paths_of_this_machine() {
    assert_eq!(file("file:///a/b%20c.png"), Path::new("/a/b c.png"));
    assert_eq!(file("FILE://localhost/a"), Path::new("/a"));
    for text in [
        "file://server/share",
        "file:////server/share",
        "file:relative",
        "file://",
        "file:///a%00b",
        "file:///a%5Cb",
        "file:///%ff",
    ] {
        let error = MediaSource::parse(text, MAX).unwrap_err();
        assert!(
            matches!(error, MediaError::InvalidUrl { .. }),
            "{text:?}: {error:?}"
        );
    }
}

#[test]
fn only_files_below_the_media_root_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("inner")).unwrap();
    std::fs::write(root.join("inner/a.png"), "a").unwrap();
    std::fs::write(folder.path().join("secret"), "s").unwrap();
    std::fs::create_dir(folder.path().join("root2")).unwrap();
    std::fs::write(folder.path().join("root2/b.png"), "b").unwrap();

    let closed = SourcePolicy::default();
    let error = closed.resolve_file(&root.join("inner/a.png")).unwrap_err();
    assert!(matches!(error, MediaError::FilesNotAllowed));

    let open = SourcePolicy {
        media_root: Some(root.clone()),
        ..SourcePolicy::default()
    };
    let real = root.canonicalize().unwrap().join("inner/a.png");
    assert_eq!(open.resolve_file(&root.join("inner/a.png")).unwrap(), real);
    assert_eq!(
        open.resolve_file(Path::new("inner/../inner/a.png"))
            .unwrap(),
        real
    );
    let url = format!("file://{}", root.join("inner/%2e%2e/../secret").display());
    for path in [
        PathBuf::from("../secret"),
        folder.path().join("secret"),
        folder.path().join("root2/b.png"),
        root.join("../root2/b.png"),
        root.join("inner"),
        root.join("missing.png"),
        PathBuf::from("/etc/passwd"),
        file(&url),
    ] {
        let error = open.resolve_file(&path).unwrap_err();
        assert!(
            matches!(error, MediaError::FileNotFound),
            "{}: {error:?}",
            path.display()
        );
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
        assert!(open.resolve_file(Path::new("link")).is_err());
        std::os::unix::fs::symlink(root.join("inner/a.png"), root.join("inside")).unwrap();
        assert_eq!(open.resolve_file(Path::new("inside")).unwrap(), real);
    }
}
