//! Downloads from a hub that misbehaves, and the store they go to. Nothing leaves loopback.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod processes;
mod security;
mod sources;
mod store;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aha_hub::{
    Downloaded, Downloader, Event, HubConfig, HubError, ModelId, RetryPolicy, Source, Store,
    Timeouts,
};
use support::{Mock, REPO, WANTED, model_files};
use tempfile::TempDir;

const HF: Source = Source::HuggingFace;
const MS: Source = Source::ModelScope;
const SHARD: &str = "model-00001-of-00002.safetensors";

/// An address where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

/// A store in a fresh directory and settings that reach only the given mocks.
struct Site {
    dir: TempDir,
    config: HubConfig,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Site {
    /// Both hubs are the same mock.
    fn new(mock: &Mock) -> Self {
        Self::with(&mock.url(), &mock.url())
    }

    fn with(huggingface: &str, modelscope: &str) -> Self {
        let mut config = HubConfig::from_lookup(|_| None).unwrap();
        config.huggingface_endpoint = huggingface.to_owned();
        config.modelscope_endpoint = modelscope.to_owned();
        Self {
            dir: tempfile::tempdir().unwrap(),
            config,
            events: Arc::default(),
        }
    }

    fn store(&self) -> Store {
        Store::open(Some(self.dir.path()), &self.config).unwrap()
    }

    fn model_dir(&self) -> PathBuf {
        self.store().model_dir(&id())
    }

    /// Tries again at once, but waits as long as a busy machine may need.
    fn downloader(&self, source: Source) -> Downloader {
        let events = Arc::clone(&self.events);
        Downloader::new(&self.store(), &self.config)
            .source(source)
            .disk_reserve(0)
            .retry(RetryPolicy {
                attempts: 3,
                base_delay: Duration::from_millis(2),
                max_delay: Duration::from_secs(2),
            })
            .progress(Arc::new(move |event: &Event| {
                events.lock().unwrap().push(event.clone());
            }))
    }

    /// Leaves servers that stall or drip soon.
    fn impatient(&self, source: Source) -> Downloader {
        self.downloader(source).timeouts(Timeouts {
            connect: Duration::from_secs(5),
            response: Duration::from_millis(600),
            stall: Duration::from_millis(600),
            min_speed: 20_000,
            speed_window: Duration::from_millis(200),
        })
    }

    /// Bytes of the first shard that are waiting to be continued.
    fn part_len(&self) -> u64 {
        let part = self.model_dir().join(format!(".aha/parts/{SHARD}.part"));
        std::fs::metadata(part).map_or(0, |meta| meta.len())
    }

    fn download(&self, source: Source) -> Result<Downloaded, HubError> {
        self.downloader(source).download(&id())
    }

    /// Every wanted file equals `seed`'s model byte by byte, and nothing else is there.
    fn assert_model(&self, seed: u64) {
        assert_model(&self.model_dir(), seed);
        assert_eq!(self.store().locate(&id()), Some(self.model_dir()));
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    fn restarts(&self) -> Vec<String> {
        self.events()
            .into_iter()
            .filter_map(|event| match event {
                Event::FileRestarted { reason, .. } => Some(reason),
                _ => None,
            })
            .collect()
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !ready() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn id() -> ModelId {
    REPO.parse().unwrap()
}

fn assert_model(dir: &Path, seed: u64) {
    for (path, bytes) in model_files(seed) {
        let found = std::fs::read(dir.join(&path));
        if WANTED.contains(&path.as_str()) {
            assert!(found.unwrap() == bytes, "{path} differs");
        } else {
            assert!(found.is_err(), "{path} is not needed");
        }
    }
    assert!(!dir.join(".aha/parts").exists(), "partial files are left");
}

fn original(path: &str, seed: u64) -> Vec<u8> {
    model_files(seed)
        .into_iter()
        .find(|file| file.0 == path)
        .unwrap()
        .1
}
