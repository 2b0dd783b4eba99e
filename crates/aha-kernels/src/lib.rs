//! CPU kernels for the products that inference spends its time in.
//!
//! Every kernel has two bodies: one in portable Rust (the scalar twin, which compilers vectorise as
//! far as the target allows) and one written for an instruction set that is looked up at run time,
//! see [`instruction_set`]. The crate knows plain slices only; it has no notion of a model.
//!
//! Two properties hold throughout and are tested:
//!
//! * **Batch invariance.** Each output value is accumulated in one fixed order, whatever rows stand
//!   beside it and however many threads run. A request gives the same bits alone or in company.
//! * **No reads outside the given slices.** Shapes are checked on entry and answered with
//!   [`KernelError`].
//!
//! Parallel work runs on one pool of threads a process, as many as [`rayon`]'s; the caller's thread is
//! one of them.

mod activation;
mod affinity;
mod arithmetic;
mod attention;
mod bandwidth;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod buffer;
mod depthwise;
mod elementwise;
mod error;
mod exp;
mod foresight;
mod fused;
mod isa;
mod matmul;
mod memory;
mod pack;
mod pool;
mod quant;
mod recurrent;
mod rotary;
mod snake;
mod transpose;

pub use activation::Activation;
pub use affinity::pin_threads;
pub use arithmetic::{Arithmetic, measure_multiply_add_rate};
pub use attention::{
    GridBias, PagedAttention, PagedCache, PagedSequence, Projected, RaggedAttention, Rows,
    WindowAttention,
};
pub use bandwidth::measure_read_bandwidth;
pub use depthwise::DepthwiseConv;
pub use elementwise::{
    add, add_bias, add_bias_and, add_rms_norm, layer_norm, layer_norm_on, multiply, rms_norm,
    rms_norm_on, silu_mul, silu_mul_halves, silu_mul_on, softmax_weights,
};
pub use error::KernelError;
pub use isa::{InstructionSet, instruction_set};
pub use memory::{give_back_memory, giving_back_memory};
pub use pack::{PackedMatrix, SharedBytes, WeightKind};
pub use quant::{dequantize_gguf, quantize_gguf};
pub use recurrent::{GatedDelta, RecurrentSequence, ShortConv};
pub use rotary::{HeadNorm, HeadRotation};
pub use snake::{snake, snake_on};
