//! Images, video frames and media sources, held against what Pillow, torchvision and the model
//! references give for the same input.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod decode;
mod limits;
mod resize;
mod sizing;
mod source;
mod support;
mod tensor;
mod video;
