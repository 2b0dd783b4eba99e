//! Convolutions.

mod conv1d;

pub use conv1d::{Conv1d, Conv1dConfig, ConvTranspose1d};
