//! Feed-forward blocks.

use crate::cpu;
use crate::host::{Parts, through_tensors};
use crate::linear::Linear;
use crate::weights::{Result, Weights};
use candle_core::{Module, Tensor};
use serde::Deserialize;

/// Activation functions by their names in `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// The exact form with erf.
    Gelu,
    /// The tanh approximation.
    #[serde(alias = "gelu_new")]
    GeluPytorchTanh,
    /// `x * sigmoid(1.702 x)`, an approximation that CLIP was trained with.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Activation {
    /// The same for the kernels.
    pub(crate) fn kernel(self) -> aha_kernels::Activation {
        match self {
            Self::Silu => aha_kernels::Activation::Silu,
            Self::Gelu => aha_kernels::Activation::Gelu,
            Self::GeluPytorchTanh => aha_kernels::Activation::GeluTanh,
            Self::QuickGelu => aha_kernels::Activation::QuickGelu,
            Self::Relu => aha_kernels::Activation::Relu,
            Self::Sigmoid => aha_kernels::Activation::Sigmoid,
        }
    }

    /// By Candle's own operations.
    pub(crate) fn forward_plain(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Silu => candle_nn::ops::silu(x),
            Self::Gelu => x.gelu_erf(),
            Self::GeluPytorchTanh => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
            Self::Relu => x.relu(),
            Self::Sigmoid => candle_nn::ops::sigmoid(x),
        }
    }
}

impl Activation {
    /// The same in place on the CPU.
    ///
    /// # Errors
    /// Those of the kernel, which has none so far.
    pub fn forward_rows(self, x: &mut [f32]) -> candle_core::Result<()> {
        self.kernel()
            .apply_in_place(x)
            .map_err(candle_core::Error::wrap)
    }
}

impl Module for Activation {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if cpu::is_f32_on_cpu(x) {
            return x
                .contiguous()?
                .apply_op1_no_bwd(&cpu::Activate(self.kernel()));
        }
        self.forward_plain(x)
    }
}

/// A module whose result goes onto a residual stream.
pub trait Residual: Module {
    /// `residual` plus what the module makes of `x`.
    ///
    /// # Errors
    /// As [`Module::forward`].
    fn forward_added(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor>;
}

/// `residual + x`, of one shape. On the CPU it takes the kernels' threads; Candle has its own, and while some look out
/// for work the others lack a core.
///
/// # Errors
/// When the shapes differ.
pub fn add_residual(x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
    if cpu::is_f32_on_cpu(x) && cpu::is_f32_on_cpu(residual) && x.dims() == residual.dims() {
        let residual = residual.contiguous()?;
        return x.contiguous()?.apply_op2_no_bwd(&residual, &cpu::Add);
    }
    residual + x
}

/// `activation(gate) * x`, of one shape.
pub fn gated(activation: Activation, gate: &Tensor, x: &Tensor) -> candle_core::Result<Tensor> {
    if activation == Activation::Silu && cpu::is_f32_on_cpu(gate) {
        return gate
            .contiguous()?
            .apply_op2_no_bwd(&x.contiguous()?, &cpu::SiluMul);
    }
    activation.forward(gate)? * x
}

/// `silu(gate) * x` on the CPU, of one length.
///
/// # Errors
/// When the slices differ in length.
pub fn silu_gated_rows(gate: &[f32], x: &[f32], out: &mut [f32]) -> candle_core::Result<()> {
    aha_kernels::silu_mul(gate, x, out).map_err(candle_core::Error::wrap)
}

/// The two projections into a gated MLP, as releases store them.
#[derive(Debug, Clone)]
enum GateUp {
    /// One matrix, the gate's rows first.
    Fused(Linear),
    /// One each.
    Separate { gate: Linear, up: Linear },
}

/// `down(act(gate(x)) * up(x))` (GLU variants, arXiv 2002.05202).
#[derive(Debug, Clone)]
pub struct GatedMlp {
    gate_up: GateUp,
    down_proj: Linear,
    intermediate_size: usize,
    activation: Activation,
}

impl GatedMlp {
    /// Loads `gate_proj`, `up_proj` `[intermediate, hidden]`, or both as `gate_up_proj` `[2 * intermediate, hidden]`
    /// where the release has them so, and `down_proj` `[hidden, intermediate]`.
    pub fn load(
        weights: &Weights,
        hidden_size: usize,
        intermediate_size: usize,
        activation: Activation,
        bias: bool,
    ) -> Result<Self> {
        let inner =
            |name: &str, rows: usize| Linear::load(&weights.pp(name), hidden_size, rows, bias);
        let gate_up = if weights.contains("gate_up_proj.weight") {
            GateUp::Fused(inner("gate_up_proj", 2 * intermediate_size)?)
        } else {
            GateUp::Separate {
                gate: inner("gate_proj", intermediate_size)?,
                up: inner("up_proj", intermediate_size)?,
            }
        };
        Ok(Self {
            gate_up,
            down_proj: Linear::load(
                &weights.pp("down_proj"),
                intermediate_size,
                hidden_size,
                bias,
            )?,
            intermediate_size,
            activation,
        })
    }
}

#[cfg(test)]
impl GatedMlp {
    /// Random weights, those of gate and up in one matrix where `fused`.
    pub(crate) fn random(hidden_size: usize, intermediate_size: usize, fused: bool) -> Self {
        let linear = |rows: usize, columns: usize| {
            Linear::from_tensor(&crate::testing::random(&[rows, columns])).unwrap()
        };
        let gate_up = if fused {
            GateUp::Fused(linear(2 * intermediate_size, hidden_size))
        } else {
            GateUp::Separate {
                gate: linear(intermediate_size, hidden_size),
                up: linear(intermediate_size, hidden_size),
            }
        };
        Self {
            gate_up,
            down_proj: linear(hidden_size, intermediate_size),
            intermediate_size,
            activation: Activation::Silu,
        }
    }
}

impl GatedMlp {
    /// What goes into the last projection.
    fn inner(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (gate, up) = match &self.gate_up {
            GateUp::Separate { gate, up } => {
                let [gate, up] = Linear::forward_together([gate, up], x)?;
                (gate, up)
            }
            GateUp::Fused(both) => {
                let both = both.forward(x)?;
                let last = both.rank() - 1;
                let width = both.dim(last)? / 2;
                (
                    both.narrow(last, 0, width)?,
                    both.narrow(last, width, width)?,
                )
            }
        };
        gated(self.activation, &gate, &up)
    }
}

impl GatedMlp {
    /// Sizes of the parts that [`forward_rows`](Self::forward_rows) takes.
    pub(crate) fn part_sizes(&self, tokens: usize) -> [usize; 3] {
        let size = tokens * self.intermediate_size;
        match &self.gate_up {
            GateUp::Separate { .. } => [size; 3],
            GateUp::Fused(_) => [size, 2 * size, 0],
        }
    }

    /// The same from rows to rows on the CPU.
    ///
    /// # Errors
    /// When the weights are on another device, or a slice does not fit.
    pub fn forward_rows(
        &self,
        x: &[f32],
        tokens: usize,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        if self.activation != Activation::Silu {
            return through_tensors(x, tokens, out, |x| self.forward(x));
        }
        let sizes = self.part_sizes(tokens);
        let inner = match &self.gate_up {
            GateUp::Separate { gate, up } => {
                let [inner, gates, ups] = parts.rows(sizes);
                Linear::forward_rows([gate, up], x, tokens, [&mut *gates, &mut *ups])?;
                silu_gated_rows(gates, ups, inner)?;
                inner
            }
            GateUp::Fused(both) => {
                let [inner, halves, _] = parts.rows(sizes);
                Linear::forward_rows([both], x, tokens, [&mut *halves])?;
                aha_kernels::silu_mul_halves(halves, self.intermediate_size, inner)
                    .map_err(candle_core::Error::wrap)?;
                inner
            }
        };
        Linear::forward_rows([&self.down_proj], inner, tokens, [out])
    }
}

impl Module for GatedMlp {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.down_proj.forward(&self.inner(x)?)
    }
}

impl Residual for GatedMlp {
    fn forward_added(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        self.down_proj.forward_added(&self.inner(x)?, residual)
    }
}
