//! Encrypted connections: an unknown authority is refused, one of the user's own is accepted.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

/// Keys for tests only: an authority, and a server that it vouches for on loopback.
fn key_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support/tls")
        .join(name)
}

/// Puts TLS before the mock, one request a connection.
fn encrypted(mock: &Mock) -> String {
    let certificates = CertificateDer::pem_file_iter(key_file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(key_file("server.key")).unwrap();
    let config =
        ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates.map(Result::unwrap).collect(), key)
            .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let port = mock.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            // A client that refuses the certificate breaks off here.
            std::thread::spawn(move || pass_on(StreamOwned::new(connection, client), port));
        }
    });
    url
}

fn pass_on(mut client: StreamOwned<ServerConnection, TcpStream>, port: u16) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0; 1];
    while !request.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.write_all(&request)?;
    server.shutdown(Shutdown::Write)?;
    std::io::copy(&mut server, &mut client)?;
    client.conn.send_close_notify();
    client.flush()
}

#[test]
fn certificates_are_checked() {
    let mock = Mock::with_model(1);
    let url = encrypted(&mock);
    let mut site = Site::with(&url, NOBODY);
    let error = site.download(HF).unwrap_err();
    assert_eq!(error.code(), "network");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(mock.seen().is_empty());

    site.config.ca_file = Some(key_file("ca.pem"));
    site.download(HF).unwrap();
    site.assert_model(1);

    // The certificate is for loopback's number and name, not for any other.
    let url = url.replace("127.0.0.1", "127.0.0.2");
    site.config.huggingface_endpoint = url;
    assert_eq!(site.download(HF).unwrap_err().code(), "network");
}

#[test]
fn a_redirect_does_not_leave_encryption() {
    let mock = Mock::with_model(1);
    mock.redirect_large_files_to(&mock.url());
    let mut site = Site::with(&encrypted(&mock), NOBODY);
    site.config.ca_file = Some(key_file("ca.pem"));
    let error = site.download(HF).unwrap_err();
    assert_eq!(error.code(), "bad_redirect", "{error}");
}
