//! The building blocks of models on Candle: weights, layers, rotary positions, attention over paged caches.
//!
//! One implementation of each block serves every family. Nothing here knows of requests or tokenizers.

pub mod attention;
pub mod batch;
pub mod cache;
pub mod conv;
mod cpu;
pub mod gated_delta;
pub mod host;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod ragged;
pub mod resize;
pub mod rope;
mod rotation;
pub mod short_conv;
pub mod snake;
#[cfg(test)]
mod testing;
pub mod weights;
pub mod windows;

pub use cpu::with_f32;
