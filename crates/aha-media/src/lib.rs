//! Bytes to typed images, sound and video frames, and the preprocessing that must match a reference.
//!
//! Nothing here knows tensors, models or HTTP.

mod error;

pub mod audio;
pub mod image;
pub mod source;
pub mod video;

pub use error::{DecoderError, MediaError};
