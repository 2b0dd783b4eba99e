//! What is on this disk, and what may be deleted from it.

use std::fs;
use std::path::Path;

use aha_hub::{FileState, Manifest, Origin, verify};

use super::*;
use crate::support::{Fault, noise, sha256};

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[cfg(unix)]
fn link(target: &Path, path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(target, path).unwrap();
}

/// A repository of Hugging Face's cache: files are links to blobs named by their checksum.
#[cfg(unix)]
fn cached_snapshot(cache: &Path, commit: &str, weights: &[u8]) -> std::path::PathBuf {
    let repo = cache.join("models--acme--tiny");
    let snapshot = repo.join("snapshots").join(commit);
    let blob = repo.join("blobs").join(sha256(weights));
    write(&blob, weights);
    link(&blob, &snapshot.join("model.safetensors"));
    let config = repo
        .join("blobs")
        .join("0123456789012345678901234567890123456789");
    write(&config, b"{}");
    link(&config, &snapshot.join("config.json"));
    link(&config, &snapshot.join("tokenizer.json"));
    snapshot
}

#[test]
fn an_unfinished_download_is_listed_but_not_located() {
    let mock = Mock::with_model(1);
    mock.always(SHARD, Fault::Cut { after: 0 })
        .once(SHARD, Fault::Cut { after: 1000 });
    let site = Site::new(&mock);
    assert!(site.download(HF).is_err());
    let store = site.store();
    assert_eq!(store.locate(&id()), None);
    let models = store.local_models().unwrap();
    assert_eq!(models.len(), 1);
    assert!(!models[0].complete && models[0].size >= 1000);
    assert!(!Manifest::load(&site.model_dir()).unwrap().unwrap().complete);

    mock.heal();
    site.download(HF).unwrap();
    let models = store.local_models().unwrap();
    assert!(models[0].complete && models[0].id == id() && models[0].origin == Origin::Store);
    assert_eq!(models[0].source, Some(HF));
    assert_eq!(models[0].size, store.size_on_disk(&id()).unwrap());
    // A file that is lost or cut later is noticed.
    let shard = site.model_dir().join(SHARD);
    fs::write(&shard, b"short").unwrap();
    assert_eq!(store.locate(&id()), None);
    site.download(HF).unwrap();
    site.assert_model(1);
    fs::remove_file(&shard).unwrap();
    assert_eq!(store.locate(&id()), None);
}

#[test]
fn an_update_replaces_changed_files_and_drops_stale_ones() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    let first = site.download(HF).unwrap();
    mock.remove("1_Pooling/config.json");
    mock.put("tokenizer.json", &noise(5, 20_000));
    mock.forget();
    let second = site.download(HF).unwrap();
    assert_ne!(first.revision, second.revision);
    assert_eq!(second.downloaded_bytes, 20_000, "unchanged files stay");
    assert!(!site.model_dir().join("1_Pooling/config.json").exists());
    let found = fs::read(site.model_dir().join("tokenizer.json")).unwrap();
    assert!(found == noise(5, 20_000));
    assert!(verify(&site.model_dir()).unwrap().is_ok());
}

#[test]
fn files_placed_by_hand_are_taken_when_they_are_right() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    write(&site.model_dir().join(SHARD), &original(SHARD, 1));
    let other = "model-00002-of-00002.safetensors";
    write(
        &site.model_dir().join(other),
        &noise(0, original(other, 1).len()),
    );
    site.download(HF).unwrap();
    site.assert_model(1);
    assert!(mock.seen_for(SHARD).is_empty());
    assert_eq!(mock.seen_for(other).len(), 1, "right size, wrong content");
}

#[test]
fn a_damaged_manifest_is_not_trusted() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    let manifest = site.model_dir().join(".aha/manifest.json");
    for broken in ["{", "{\"version\": 9}"] {
        fs::write(&manifest, broken).unwrap();
        assert_eq!(site.store().locate(&id()), None);
        assert_eq!(
            verify(&site.model_dir()).unwrap_err().code(),
            "bad_manifest"
        );
        site.download(HF).unwrap();
        site.assert_model(1);
    }
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("tokenizer.json", "../../evil")).unwrap();
    assert_eq!(
        verify(&site.model_dir()).unwrap_err().code(),
        "bad_manifest"
    );
}

#[test]
fn verify_finds_what_changed() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    let report = verify(&site.model_dir()).unwrap();
    assert!(report.is_ok() && report.files.len() == WANTED.len());
    let from_hub = |path: &str| {
        report
            .files
            .iter()
            .find(|f| f.path == path)
            .unwrap()
            .from_hub
    };
    assert!(from_hub(SHARD) && !from_hub("config.json"));

    let mut bytes = original(SHARD, 1);
    bytes[1000] ^= 1;
    fs::write(site.model_dir().join(SHARD), bytes).unwrap();
    fs::remove_file(site.model_dir().join("config.json")).unwrap();
    let report = verify(&site.model_dir()).unwrap();
    let state = |path: &str| {
        report
            .files
            .iter()
            .find(|file| file.path == path)
            .unwrap()
            .state
    };
    assert!(!report.is_ok());
    assert_eq!(state(SHARD), FileState::Changed);
    assert_eq!(state("config.json"), FileState::Missing);
    assert_eq!(state("tokenizer.json"), FileState::Ok);
}

#[cfg(unix)]
#[test]
fn hugging_faces_cache_is_searched() {
    let cache = tempfile::tempdir().unwrap();
    let mut site = Site::with(NOBODY, NOBODY);
    site.config.huggingface_cache = Some(cache.path().to_owned());
    assert_eq!(site.store().locate(&id()), None);
    let main = cached_snapshot(cache.path(), "aaa", &noise(1, 100));
    let newer = cached_snapshot(cache.path(), "bbb", &noise(2, 100));
    write(&cache.path().join("models--acme--tiny/refs/main"), b"aaa\n");
    assert_eq!(site.store().locate(&id()), Some(main.clone()));

    let models = site.store().local_models().unwrap();
    assert_eq!(models.len(), 1);
    assert_eq!(
        (models[0].origin, models[0].size),
        (Origin::HuggingFaceCache, 104)
    );
    assert_eq!(models[0].revision.as_deref(), Some("aaa"));
    let report = verify(&main).unwrap();
    assert!(report.is_ok());
    assert_eq!(
        report.files[0].state,
        FileState::Unknown,
        "a git object id is no checksum"
    );

    // A link to a blob that never arrived, then one that is on its way.
    fs::remove_file(main.join("model.safetensors")).unwrap();
    link(
        &cache.path().join("nowhere"),
        &main.join("model.safetensors"),
    );
    assert_eq!(site.store().locate(&id()), Some(newer));

    let error = site.store().delete(&id()).unwrap_err();
    assert_eq!(error.code(), "not_in_store");
    assert!(error.to_string().contains("snapshots"), "{error}");
    assert!(
        site.store().locate(&id()).is_some(),
        "the cache is not ours to delete"
    );
    // Offline, the cache serves.
    assert!(
        site.downloader(Source::Auto)
            .offline(true)
            .download(&id())
            .is_ok()
    );
}

#[test]
fn modelscopes_cache_is_searched() {
    let dotted: ModelId = "acme/tiny-1.5".parse().unwrap();
    for layout in [
        "acme/tiny-1___5",
        "models/acme/tiny-1___5",
        "hub/models/acme/tiny-1.5",
    ] {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join(layout);
        write(&dir.join("config.json"), b"{}");
        write(&dir.join("tokenizer.json"), b"{}");
        let mut site = Site::with(NOBODY, NOBODY);
        site.config.modelscope_cache = Some(cache.path().to_owned());
        assert_eq!(site.store().locate(&dotted), None, "no weights yet");
        write(&dir.join("model.safetensors"), b"weights");
        assert_eq!(site.store().locate(&dotted), Some(dir));
        let models = site.store().local_models().unwrap();
        assert_eq!(models.len(), 1, "{layout}");
        assert_eq!(
            (&models[0].id, models[0].origin),
            (&dotted, Origin::ModelScopeCache)
        );
        assert_eq!(
            site.store().delete(&dotted).unwrap_err().code(),
            "not_in_store"
        );
    }
}

#[test]
fn deleting_frees_the_model_and_nothing_else() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    let other: ModelId = "acme/other".parse().unwrap();
    site.download(HF).unwrap();
    site.downloader(HF)
        .hub_id(HF, id())
        .download(&other)
        .unwrap();
    let store = site.store();
    let size = store.size_on_disk(&id()).unwrap();
    assert_eq!(store.delete(&id()).unwrap(), size);
    assert!(!site.model_dir().exists());
    assert_eq!(store.delete(&id()).unwrap_err().code(), "not_in_store");
    assert_model(&store.model_dir(&other), 1);
    store.delete(&other).unwrap();
    assert!(
        !site.dir.path().join("acme").exists(),
        "the empty owner goes, too"
    );
    assert!(store.local_models().unwrap().is_empty());
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out_of_the_store() {
    let outside = tempfile::tempdir().unwrap();
    write(&outside.path().join("tiny/config.json"), b"{}");
    let site = Site::with(NOBODY, NOBODY);
    link(
        &outside.path().join("tiny"),
        &site.dir.path().join("acme/tiny"),
    );
    assert_eq!(
        site.store().delete(&id()).unwrap_err().code(),
        "outside_store"
    );
    fs::remove_file(site.dir.path().join("acme/tiny")).unwrap();
    fs::remove_dir(site.dir.path().join("acme")).unwrap();
    link(outside.path(), &site.dir.path().join("acme"));
    assert_eq!(
        site.store().delete(&id()).unwrap_err().code(),
        "outside_store"
    );
    assert!(outside.path().join("tiny/config.json").exists());
}

#[test]
fn free_space_is_asked_for_before() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    let error = site
        .downloader(HF)
        .disk_reserve(u64::MAX / 2)
        .download(&id())
        .unwrap_err();
    assert_eq!(error.code(), "no_space", "{error}");
    assert!(mock.seen_for(SHARD).is_empty(), "no byte was fetched");
    // What is here already needs no space.
    site.download(HF).unwrap();
    site.downloader(HF)
        .disk_reserve(u64::MAX / 2)
        .download(&id())
        .unwrap();
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    // A file where the store should be fails for every user, root included.
    let blocked = site.dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let store = Store::open(Some(&blocked), &site.config).unwrap();
    let error = Downloader::new(&store, &site.config)
        .source(HF)
        .download(&id())
        .unwrap_err();
    assert_eq!(error.code(), "io", "{error}");
    assert!(error.to_string().contains("file"), "{error}");
    assert_eq!(
        Store::open(None, &site.config).unwrap_err().code(),
        "no_home"
    );
}

#[test]
fn a_path_that_is_too_long_is_named() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    let deep = site.dir.path().join(["x"; 2100].join("/"));
    let store = Store::open(Some(&deep), &site.config).unwrap();
    let error = Downloader::new(&store, &site.config)
        .source(HF)
        .download(&id())
        .unwrap_err();
    assert_eq!(error.code(), "io", "{error}");
    assert!(error.to_string().contains("shorter path"), "{error}");
}

#[test]
fn one_file_of_a_model_is_verified_alone() {
    let mock = Mock::with_model(1);
    let site = Site::new(&mock);
    site.download(HF).unwrap();
    let states = |path: &Path| {
        let files = aha_hub::verify(path).unwrap().files;
        let state = |file: &aha_hub::FileCheck| (file.path.clone(), file.state);
        files.iter().map(state).collect::<Vec<_>>()
    };
    let shard = site.model_dir().join(SHARD);
    assert_eq!(states(&shard), [(SHARD.to_owned(), FileState::Ok)]);
    std::fs::write(&shard, b"damaged").unwrap();
    assert_eq!(states(&shard), [(SHARD.to_owned(), FileState::Changed)]);
    let other = site.dir.path().join("model.gguf");
    std::fs::write(&other, b"x").unwrap();
    assert_eq!(
        states(&other),
        [("model.gguf".to_owned(), FileState::Unknown)]
    );
}
