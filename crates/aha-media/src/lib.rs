//! Bytes to typed images, sound and video frames, and the preprocessing that must match a reference.
//!
//! Nothing here knows tensors, models or HTTP.

pub mod audio;
pub mod image;
