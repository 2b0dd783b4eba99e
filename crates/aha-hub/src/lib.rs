//! Gets, keeps and finds models.
//!
//! - [`Downloader`] brings a model's files from Hugging Face or ModelScope into the store: only
//!   the wanted files, several at once, resumed after a break, checked by size and checksum.
//! - [`Store`] is the models on this disk: its own (`~/.aha/<owner>/<name>/`) and those in the
//!   hubs' caches, which it finds without copying. It also knows the running servers.
//! - [`verify`] recomputes checksums.
//!
//! All calls block. Settings come from a [`HubConfig`], read from the environment once.

mod caches;
mod complete;
mod config;
mod download;
mod error;
mod filter;
mod http;
mod hubs;
mod id;
mod lock;
mod manifest;
mod part;
mod progress;
mod run_file;
mod store;
mod transfer;
mod verify;

pub use config::{HubConfig, ProxySettings, Secret};
pub use download::{Downloaded, Downloader};
pub use error::HubError;
pub use filter::FileFilter;
pub use http::{Timeouts, trusted_certificates};
pub use id::{ModelId, Revision, Source};
pub use manifest::{FileRecord, Manifest};
pub use progress::{CancelToken, Event, Progress, Silent};
pub use run_file::{RunFile, RunGuard};
pub use store::{LocalModel, Origin, Store};
pub use transfer::RetryPolicy;
pub use verify::{FileCheck, FileState, VerifyReport, verify};
