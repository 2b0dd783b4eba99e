//! Activation functions, alone and behind the bias of a product, each in one pass over memory.

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::elementwise::{PARALLEL_FROM, check_rows, gelu_of};
use crate::error::check_len;
use crate::exp::exp;
use crate::pool::for_each_stretch;
use crate::{InstructionSet, KernelError, instruction_set};

/// Values that one thread takes at a time.
const CHUNK: usize = 16 * 1024;

/// `sqrt(8 / π)`, and the same times 0.044715: twice the argument of the tanh in [`Activation::GeluTanh`].
const TANH_LINEAR: f32 = 1.595_769_2;
const TANH_CUBIC: f32 = 0.071_354_814;

/// The slope of [`Activation::QuickGelu`].
const QUICK: f32 = 1.702;

/// A function of single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * Φ(x)` with the normal distribution function Φ.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / π) * (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
}

impl Activation {
    /// `out = activation(x)`. NaN stays NaN.
    ///
    /// # Errors
    /// When the slices differ in length.
    pub fn apply(self, x: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
        self.apply_on(instruction_set(), x, out)
    }

    /// [`Activation::apply`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn apply_on(
        self,
        set: InstructionSet,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        check_len("out", x.len(), out.len())?;
        for_each_stretch(out, PARALLEL_FROM, CHUNK, |start, out| {
            out.copy_from_slice(&x[start..start + out.len()]);
            self.run(set, None, out);
        });
        Ok(())
    }

    /// `x = activation(x)`.
    ///
    /// # Errors
    /// Never so far; other functions of this kind have some.
    pub fn apply_in_place(self, x: &mut [f32]) -> Result<(), KernelError> {
        let set = instruction_set().require()?;
        for_each_stretch(x, PARALLEL_FROM, CHUNK, |_, x| self.run(set, None, x));
        Ok(())
    }

    /// `x = activation(x + bias)` for every row of `x`, which is `[rows, bias.len()]`.
    ///
    /// # Errors
    /// When `bias` is empty or the rows are not as long.
    pub fn apply_to_biased(self, x: &mut [f32], bias: &[f32]) -> Result<(), KernelError> {
        self.apply_to_biased_on(instruction_set(), x, bias)
    }

    /// [`Activation::apply_to_biased`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn apply_to_biased_on(
        self,
        set: InstructionSet,
        x: &mut [f32],
        bias: &[f32],
    ) -> Result<(), KernelError> {
        let (set, size) = (set.require()?, bias.len());
        check_rows("length of x", x.len(), "length of bias", size)?;
        let stretch = CHUNK.div_ceil(size) * size;
        for_each_stretch(x, PARALLEL_FROM, stretch, |_, rows| {
            for row in rows.chunks_exact_mut(size) {
                self.run(set, Some(bias), row);
            }
        });
        Ok(())
    }

    /// In place; `bias` is as long as `x`.
    fn run(self, set: InstructionSet, bias: Option<&[f32]>, x: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if set.has_avx2() {
            // SAFETY: every other instruction set of this architecture includes AVX2 and FMA, and it is present.
            unsafe { avx2::run(self, bias, x) }
            return;
        }
        let _ = set;
        match bias {
            Some(bias) => {
                for (x, bias) in x.iter_mut().zip(bias) {
                    *x = self.of(*x + bias);
                }
            }
            None => x.iter_mut().for_each(|x| *x = self.of(*x)),
        }
    }

    /// The portable body.
    fn of(self, x: f32) -> f32 {
        match self {
            Self::Gelu => gelu_of(x),
            Self::GeluTanh => x / (1.0 + exp(-(x * (TANH_LINEAR + TANH_CUBIC * (x * x))))),
            Self::QuickGelu => x / (1.0 + exp(-(x * QUICK))),
            Self::Silu => x / (1.0 + exp(-x)),
            // Written as a comparison, because `f32::max` would drop NaN.
            Self::Relu if x < 0.0 => 0.0,
            Self::Relu => x,
            Self::Sigmoid => 1.0 / (1.0 + exp(-x)),
        }
    }
}

#[cfg(test)]
mod tests;
