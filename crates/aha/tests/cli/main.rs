//! The `aha` binary, from outside: what it prints, where, and with which exit status.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bench;
mod conversation;
mod downloads;
mod help;
#[path = "../../../aha-hub/tests/support/mod.rs"]
mod hub;
mod interrupted;
mod local_hub;
mod models;
mod ocr;
mod offline;
#[path = "../../../aha-media/tests/support/pdf.rs"]
mod pdf;
mod pictures;
mod pooled;
mod quantize;
mod rembg;
mod running;
mod server;
mod speech;
mod support;
mod transcribe;
