//! The audio half against its references. Fixtures are in `tests/fixtures/audio` of the
//! repository; signals that were fed to a reference are computed by [`support::signal`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod decode;
mod encode;
mod faults;
mod ffmpeg;
mod front_ends;
mod resample;
mod support;
mod vad;
