//! Convolutions.

mod conv1d;
mod conv2d;
mod deform;
mod filters;

pub use conv1d::{Conv1d, Conv1dConfig, ConvTranspose1d};
pub use conv2d::{Conv2d, Conv2dConfig};
pub use deform::{DeformConv2d, Sampling};
pub use filters::BatchNorm;
