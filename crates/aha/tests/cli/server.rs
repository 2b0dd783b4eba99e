//! `aha serv`, `aha ps` and `aha stop`. What the server answers is tested in its own crate.

use crate::support::{Home, fixture};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

/// A running server, killed with the test.
struct Server {
    child: Child,
    port: u16,
    log: Option<BufReader<ChildStderr>>,
}

impl Server {
    /// `aha serv` of a fixture under a name of its own.
    fn start(home: &Home, args: &[&str]) -> Self {
        let model = fixture("llama/smol");
        let fixed = ["serv", "-m", "A model (of sorts)", "--weight-path", &model];
        Self::start_command(home, &[&fixed, args].concat())
    }

    /// Starts a server on a free port and waits until its model answers.
    fn start_command(home: &Home, args: &[&str]) -> Self {
        let mut command = home.command(&[args, &["-p", "0"]].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the server ended");
            if let Some((_, port)) = line.trim_end().split_once("http://127.0.0.1:") {
                break port.parse().unwrap();
            }
        };
        let server = Self {
            child,
            port,
            log: Some(log),
        };
        let started = Instant::now();
        while server.get("/health").0 != 200 {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "the model does not load"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.request(&format!("GET {path} HTTP/1.1\r\n"), "")
    }

    fn request(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head}host: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    /// The exit status, and what the log said on the way.
    fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.take().unwrap().read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_answers_under_the_name_it_was_given() {
    let home = Home::new();
    let server = Server::start(&home, &["--dtype", "f32", "--device", "cpu"]);
    let (status, body) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &models["data"][0]["id"]),
        (200, &"A model (of sorts)".into())
    );
    let request = r#"{"model": "A model (of sorts)", "temperature": 0, "max_tokens": 12,
                      "messages": [{"role": "user", "content": "Hello!"}]}"#;
    let (status, body) = server.request("POST /v1/chat/completions HTTP/1.1\r\n", request);
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let model = fixture("llama/smol");
    let args = [
        "run", "-m", &model, "-i", "Hello!", "-t", "0", "-n", "12", "--dtype", "f32",
    ];
    let alone = home.run(&args).ok();
    assert_eq!(
        answer["choices"][0]["message"]["content"].as_str(),
        Some(alone.trim_end_matches('\n'))
    );
}

#[test]
fn servers_are_listed_and_stopped() {
    let home = Home::new();
    assert_eq!(home.run(&["ps", "--json"]).ok(), "[]\n");
    assert!(
        home.run(&["stop"])
            .failed(1)
            .contains("none such is running")
    );
    let (one, two) = (Server::start(&home, &[]), Server::start(&home, &[]));
    let running: Value = serde_json::from_str(&home.run(&["ps", "--json"]).ok()).unwrap();
    let ports: Vec<_> = running
        .as_array()
        .unwrap()
        .iter()
        .map(|server| &server["port"])
        .collect();
    assert!(
        ports.contains(&&one.port.into()) && ports.contains(&&two.port.into()),
        "{running}"
    );
    assert!(home.run(&["ps"]).ok().contains("A model (of sorts)"));
    assert!(
        home.run(&["stop"])
            .failed(2)
            .contains("2 servers are running")
    );
    let port = one.port.to_string();
    let told = home.run(&["stop", "--port", &port]).ok();
    assert_eq!(told, format!("stopped A model (of sorts) on port {port}\n"));
    assert_eq!(one.wait().0, Some(0));
    home.run(&["stop", "--all"]).ok();
    assert_eq!(two.wait().0, Some(0));
    assert_eq!(home.run(&["ps", "--json"]).ok(), "[]\n");
}

#[test]
#[cfg(unix)]
fn signals_end_a_server_with_success() {
    let home = Home::new();
    for name in ["INT", "TERM"] {
        let server = Server::start(&home, &[]);
        crate::support::signal(&server.child, name);
        let (code, log) = server.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("stopped"), "{log}");
    }
}

#[test]
fn a_key_is_asked_for_when_set() {
    let home = Home::new();
    let server = Server::start(&home, &["--api-key", "secret"]);
    assert_eq!(server.get("/v1/models").0, 401);
    let head = "GET /v1/models HTTP/1.1\r\nauthorization: Bearer secret\r\n";
    assert_eq!(server.request(head, "").0, 200);
}

#[test]
fn what_cannot_be_served_ends_with_1() {
    let home = Home::new();
    let server = Server::start(&home, &[]);
    let model = fixture("llama/smol");
    let serve =
        |args: &[&str]| home.run(&[&["serv", "-m", &model, "--log", "error"], args].concat());
    let error = serve(&["-p", &server.port.to_string()]).failed(1);
    assert!(
        error.starts_with("error: cannot listen on 127.0.0.1:"),
        "{error}"
    );
    let error = serve(&["-p", "0", "-a", "0.0.0.0"]).failed(1);
    assert!(error.contains("without an API key"), "{error}");
    let broken = home.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("config.json"), "{").unwrap();
    let args = [
        "serv",
        "--weight-path",
        "broken",
        "-p",
        "0",
        "--log",
        "error",
    ];
    let error = home.run(&args).failed(1);
    assert!(
        error.starts_with("error: cannot load the model: "),
        "{error}"
    );
}

#[test]
#[cfg(unix)]
fn the_second_signal_ends_a_busy_server_at_once() {
    let home = Home::new();
    let mut server = Server::start(&home, &["--shutdown-grace", "600"]);
    let body = r#"{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8000,
                   "ignore_eos": true, "stream": true}"#;
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream.read_exact(&mut [0; 400]).unwrap();
    crate::support::signal(&server.child, "TERM");
    let mut line = String::new();
    let log = server.log.as_mut().unwrap();
    while !line.contains("the next signal ends at once") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the server ended");
    }
    crate::support::signal(&server.child, "TERM");
    assert_eq!(server.wait().0, Some(143));
}

#[test]
fn cli_serves_without_a_download_what_is_here() {
    let home = Home::new();
    let id = "HuggingFaceTB/SmolLM2-135M-Instruct";
    home.install("llama/smol", id);
    let other = home.path().join("other");
    std::fs::rename(home.path().join("models"), &other).unwrap();
    let args = [
        "cli",
        "-m",
        "smollm2-135m",
        "--save-dir",
        other.to_str().unwrap(),
    ];
    let server = Server::start_command(&home, &args);
    let (_, body) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(models["data"][0]["id"], id);
    let error = home
        .run(&["cli", "-m", "smollm2-135m", "--log", "error"])
        .failed(1);
    assert!(error.contains("offline"), "{error}");
}
