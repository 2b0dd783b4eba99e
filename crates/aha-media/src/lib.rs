//! Bytes to typed images, sound, video frames and document pages, and the preprocessing that must match a reference.
//!
//! Nothing here knows tensors, models or HTTP.

mod error;

pub mod audio;
pub mod document;
pub mod image;
pub mod source;
pub mod video;

pub use error::{DecoderError, MediaError};
