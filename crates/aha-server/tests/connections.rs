//! A server on a real socket: slow, large and silent clients, and stopping.

#![allow(clippy::unwrap_used, reason = "tests may")]

use aha_server::{ServedModel, ServerOptions, Shutdown};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), aha_server::ServerError>>,
}

async fn start(options: ServerOptions) -> Server {
    let options = ServerOptions { port: 0, ..options };
    let shutdown = Shutdown::default();
    let models = vec![ServedModel::new("m", [], "chat")];
    let bound = aha_server::bind(options, models, shutdown.clone())
        .await
        .unwrap();
    Server {
        address: bound.local_addr(),
        shutdown,
        task: tokio::spawn(bound.serve()),
    }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `request` on a fresh connection and reads until the server closes it.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    }

    async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    // A reset after the answer is as good an end as any.
    let _ = tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

const LIVE: &str = "GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn loopback_callers_may_stop_the_server() {
    let server = start(ServerOptions::default()).await;
    assert!(server.exchange(LIVE).await.starts_with("HTTP/1.1 200"));
    let forwarded = "POST /shutdown HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: 8.8.8.8\r\n\
                     content-length: 0\r\nconnection: close\r\n\r\n";
    assert!(server.exchange(forwarded).await.starts_with("HTTP/1.1 403"));
    let stop = "POST /shutdown HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    assert!(server.exchange(stop).await.starts_with("HTTP/1.1 200"));
    server.ended().await;
}

#[tokio::test]
async fn silent_and_idle_connections_do_not_hold_up_the_end() {
    let server = start(ServerOptions::default()).await;
    let silent = server.connect().await;
    let mut half = server.connect().await;
    half.write_all(b"GET /live HTTP/1.1\r\nhost: loc")
        .await
        .unwrap();
    let mut idle = server.connect().await;
    idle.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    server.shutdown.request();
    server.ended().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    drop((silent, half));
}

#[tokio::test]
async fn running_answers_are_cut_after_the_grace_time() {
    let server = start(ServerOptions {
        shutdown_grace: Duration::from_millis(300),
        ..ServerOptions::default()
    })
    .await;
    // A request whose body never comes is running.
    let mut stream = server.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 10\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.shutdown.request();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("shutting_down"), "{answer}");
    server.ended().await;
}

#[tokio::test]
async fn a_second_request_to_stop_does_not_wait() {
    let server = start(ServerOptions::default()).await;
    let mut stream = server.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 10\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.shutdown.request();
    server.shutdown.request();
    let began = Instant::now();
    server.ended().await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn slow_heads_are_given_up_and_large_ones_refused() {
    let server = start(ServerOptions {
        header_timeout: Duration::from_millis(200),
        max_header_bytes: 16 << 10,
        ..ServerOptions::default()
    })
    .await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /live HTTP/1.1\r\nhost: loc")
        .await
        .unwrap();
    let began = Instant::now();
    let answer = read_to_end(&mut slow).await;
    assert!(!answer.contains(" 200 "), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(5));
    let large = format!(
        "GET /live HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let mut stream = server.connect().await;
    // The server may close before it has read everything.
    let _ = stream.write_all(large.as_bytes()).await;
    assert!(!read_to_end(&mut stream).await.contains(" 200 "));
    let many = format!(
        "GET /live HTTP/1.1\r\nhost: localhost\r\n{}\r\n",
        "a: b\r\n".repeat(500)
    );
    assert!(server.exchange(&many).await.starts_with("HTTP/1.1 431"));
    // Others are served as ever.
    assert!(server.exchange(LIVE).await.starts_with("HTTP/1.1 200"));
    server.shutdown.request();
    server.ended().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = start(ServerOptions {
        max_connections: 1,
        ..ServerOptions::default()
    })
    .await;
    let mut first = server.connect().await;
    first
        .write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = server.connect().await;
    second.write_all(LIVE.as_bytes()).await.unwrap();
    let early =
        tokio::time::timeout(Duration::from_millis(200), second.read_exact(&mut byte)).await;
    assert!(
        early.is_err(),
        "the second connection was served beside the first"
    );
    drop(first);
    let answer = read_to_end(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.shutdown.request();
    server.ended().await;
}

#[tokio::test]
async fn old_and_odd_requests_are_answered() {
    let server = start(ServerOptions::default()).await;
    let old = server.exchange("GET /live HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
    let pipelined = format!("GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n{LIVE}");
    assert_eq!(
        server
            .exchange(&pipelined)
            .await
            .matches("HTTP/1.1 200")
            .count(),
        2
    );
    let garbage = server.exchange("\x16\x03\x01 this is TLS\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage}");
    let expecting = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
                     content-type: application/json\r\ncontent-length: 2\r\n\
                     connection: close\r\n\r\n{}";
    let answer = server.exchange(expecting).await;
    assert!(
        answer.contains("100 Continue") && answer.contains("400 Bad Request"),
        "{answer}"
    );
    server.shutdown.request();
    server.ended().await;
}
