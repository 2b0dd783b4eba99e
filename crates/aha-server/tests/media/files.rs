//! Files of the server's own machine.

use crate::common::{accepted, refused, serve};
use crate::support::{TILES, URL_PARAM, app, ask, engine, medium, shows};
use aha_server::ServerOptions;

#[tokio::test]
async fn files_are_closed_unless_a_folder_is_opened() {
    let app = app(TILES);
    for url in [
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "FILE:///etc/hosts",
    ] {
        let message = refused(&ask(&app, &shows(url)).await, 400, URL_PARAM);
        assert!(message.contains("--media-root"), "{message}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_opened_folder_is_read() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let picture = medium(TILES, "b.png");
    std::fs::write(root.join("in side.png"), &picture).unwrap();
    std::fs::write(home.path().join("outside.png"), &picture).unwrap();
    std::os::unix::fs::symlink(home.path().join("outside.png"), root.join("link.png")).unwrap();
    std::os::unix::fs::symlink(root.join("in side.png"), root.join("inner.png")).unwrap();
    let mut options = ServerOptions::default();
    options.media.policy.media_root = Some(root.clone());
    let app = serve(&engine(TILES), options);
    let shown = root.display();
    for url in [
        format!("file://{shown}/in%20side.png"),
        format!("file://localhost{shown}/in%20side.png"),
        format!("file://{shown}/inner.png"),
    ] {
        accepted(&ask(&app, &shows(&url)).await);
    }
    let mut messages = Vec::new();
    for url in [
        "file:///etc/passwd".to_owned(),
        format!("file://{shown}/../outside.png"),
        format!("file://{shown}/%2e%2e/outside.png"),
        format!("file://{shown}/link.png"),
        format!("file://{shown}/missing.png"),
        format!("file://{shown}"),
    ] {
        messages.push(refused(&ask(&app, &shows(&url)).await, 400, URL_PARAM));
    }
    // Nothing tells whether a file is there.
    assert!(
        messages.iter().all(|message| *message == messages[0]),
        "{messages:?}"
    );
    assert!(!messages[0].contains(&shown.to_string()));
    for url in [
        "file://../outside.png".to_owned(),
        "file://server/share/a.png".to_owned(),
        "file:////server/share/a.png".to_owned(),
        format!("file://{shown}/..\\outside.png"),
        format!("file://{shown}/a%00.png"),
    ] {
        refused(&ask(&app, &shows(&url)).await, 400, URL_PARAM);
    }
}
