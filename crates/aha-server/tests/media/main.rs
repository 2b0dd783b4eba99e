//! Pictures and clips over HTTP: the reference's answers, every spelling of a content part, and what hostile or broken
//! media do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod formats;
mod load;
mod parts;
mod remote;
mod support;
