//! Media on the web: what is never fetched, and hosts that misbehave.

use crate::common::{Answer, accepted, refused, serve};
use crate::support::{TILES, URL_PARAM, ask, engine, medium, shows};
use aha_media::source::{HostPattern, SourcePolicy};
use aha_server::{FetchLimits, ServerOptions};
use axum::Router;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A host on loopback that answers each request by `handler`, which gets the path.
fn host(handler: impl Fn(&str, &mut TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, handler) = (stream.unwrap(), handler.clone());
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head);
                let path = head.split(' ').nth(1).unwrap_or_default();
                handler(path, &mut stream);
            });
        }
    });
    address
}

/// Sends a whole answer; a client that has gone is no fault.
fn answer(stream: &mut TcpStream, head: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n");
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

/// A server that may fetch from `allowed` besides the public internet, with little patience.
fn app(allowed: &[String]) -> Router {
    let mut options = ServerOptions::default();
    options.media.policy = SourcePolicy {
        allowed_hosts: allowed
            .iter()
            .map(|host| host.parse::<HostPattern>().unwrap())
            .collect(),
        ..SourcePolicy::default()
    };
    options.media.fetch = FetchLimits {
        connect: Duration::from_millis(500),
        total: Duration::from_millis(1500),
        redirects: 3,
    };
    options.media.limits.max_bytes = 1 << 20;
    serve(&engine(TILES), options)
}

async fn fetch(app: &Router, url: &str) -> Answer {
    ask(app, &shows(url)).await
}

#[tokio::test]
async fn inner_and_tricky_addresses_are_never_asked() {
    let app = app(&[]);
    for url in [
        "http://127.0.0.1/a.png",
        "http://127.0.0.1:10100/v1/models",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0.0.0.0/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://100.64.0.1/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST:80/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://user@10.0.0.1/",
        "http://example.com@10.0.0.1/",
        "http:\\\\10.0.0.1/",
        "http://10.0.0.1\\@example.com/",
        "http://127.0.0.1%2f@example.com/",
        "gopher://127.0.0.1:6379/_INFO",
        "ftp://127.0.0.1/a.png",
        "dict://127.0.0.1:11211/",
        "javascript:alert(1)",
        "//127.0.0.1/a.png",
    ] {
        let message = refused(&fetch(&app, url).await, 400, URL_PARAM);
        assert!(!message.contains("refused (os error"), "{url}: {message}");
    }
}

#[tokio::test]
async fn an_allowed_host_is_asked_and_its_picture_shown() {
    let picture = medium(TILES, "b.png");
    let address = host({
        let picture = picture.clone();
        move |_, stream| answer(stream, "200 OK\r\ncontent-type: text/plain", &picture)
    });
    let url = format!("http://{address}/a.png");
    let refusal = refused(&fetch(&app(&[]), &url).await, 400, URL_PARAM);
    assert!(
        refusal.contains("loopback") && refusal.contains("--allow-media-host"),
        "{refusal}"
    );
    let other_port = app(&[format!("127.0.0.1:{}", address.port() ^ 1)]);
    refused(&fetch(&other_port, &url).await, 400, URL_PARAM);
    let app = app(&[address.to_string()]);
    let fetched = accepted(&fetch(&app, &url).await);
    let sent = accepted(&fetch(&app, &crate::support::data_url(&picture)).await);
    assert_eq!(fetched["choices"], sent["choices"]);
}

#[tokio::test]
async fn redirects_are_checked_like_first_urls() {
    let secret = host(|_, stream| answer(stream, "200 OK", b"secret"));
    let port = secret.port();
    let address = host(move |path, stream| {
        let to = match path {
            "/private" => format!("http://127.0.0.1:{port}/"),
            "/metadata" => "http://169.254.169.254/".to_owned(),
            "/file" => "file:///etc/passwd".to_owned(),
            "/gopher" => "gopher://127.0.0.1/".to_owned(),
            "/user" => "http://user@example.com/".to_owned(),
            _ => "/loop".to_owned(),
        };
        answer(stream, &format!("302 Found\r\nlocation: {to}"), b"");
    });
    let app = app(&[address.to_string()]);
    for path in [
        "private", "metadata", "file", "gopher", "user", "loop", "nowhere",
    ] {
        let answer = fetch(&app, &format!("http://{address}/{path}")).await;
        let message = refused(&answer, 400, URL_PARAM);
        assert!(!message.contains("secret"), "{message}");
        if path == "loop" {
            assert!(message.contains("redirects"), "{message}");
        }
    }
}

#[tokio::test]
async fn hosts_that_stall_or_lie_are_given_up_in_time() {
    let picture = medium(TILES, "b.png");
    let address = host(move |path, stream| match path {
        "/drip" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
            for byte in &picture {
                std::thread::sleep(Duration::from_millis(200));
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        }
        "/drip-head" => {
            for byte in
                b"HTTP/1.1 200 OK\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"
            {
                std::thread::sleep(Duration::from_millis(200));
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        }
        "/silent" => std::thread::sleep(Duration::from_secs(10)),
        "/endless" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[0; 65536]).is_ok() {}
        }
        "/endless-head" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(b"x-more: and more and more\r\n").is_ok() {}
        }
        "/too-long" => answer(stream, "200 OK\r\ncontent-length: 99999999999", &picture),
        "/too-short" => answer(stream, "200 OK\r\ncontent-length: 10", &picture),
        "/cut" => answer(stream, "200 OK\r\ncontent-length: 500000", &picture),
        "/gzip" => answer(
            stream,
            "200 OK\r\ncontent-encoding: gzip",
            b"\x1f\x8b\x08\0\0\0\0\0",
        ),
        "/missing" => answer(stream, "404 Not Found", b""),
        "/partial" => answer(stream, "206 Partial Content", &picture),
        _ => answer(stream, "garbage", b""),
    });
    let app = app(&[address.to_string()]);
    for (path, status, said) in [
        ("drip", 400, "did not send"),
        ("drip-head", 400, "did not send"),
        ("silent", 400, "did not send"),
        ("endless", 413, "limit of 1048576"),
        ("endless-head", 400, ""),
        ("too-long", 413, "99999999999"),
        ("too-short", 400, "cut short"),
        ("cut", 400, ""),
        ("gzip", 400, "no known format"),
        ("missing", 400, "status 404"),
        ("partial", 400, "status 206"),
        ("garbage", 400, ""),
    ] {
        let began = Instant::now();
        let answer = fetch(&app, &format!("http://{address}/{path}")).await;
        let message = refused(&answer, status, URL_PARAM);
        assert!(message.contains(said), "{path}: {message}");
        assert!(began.elapsed() < Duration::from_secs(5), "{path}");
    }
}

#[tokio::test]
async fn only_listed_hosts_may_be_the_rule() {
    let mut options = ServerOptions::default();
    options.media.policy.only_allowed_hosts = true;
    let app = serve(&engine(TILES), options);
    let answer = fetch(&app, "https://example.com/a.png").await;
    let message = refused(&answer, 400, URL_PARAM);
    assert!(message.contains("example.com"), "{message}");
}
