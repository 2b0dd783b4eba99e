//! Convolutions.

mod conv2d;
mod filters;

pub use conv2d::{Conv2d, Conv2dConfig};
pub use filters::BatchNorm;
