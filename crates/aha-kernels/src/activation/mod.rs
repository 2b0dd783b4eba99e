//! Activation functions, alone and behind the bias of a product, each in one pass over memory.

#[cfg(target_arch = "x86_64")]
mod avx2;

use crate::elementwise::{PARALLEL_FROM, check_rows, gelu_of};
use crate::error::check_len;
use crate::exp::exp_of;
use crate::fused::multiply_add;
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
        #[cfg(target_arch = "aarch64")]
        if set.has_neon() {
            return self.plain::<true>(bias, x);
        }
        let _ = set;
        self.plain::<false>(bias, x);
    }

    /// The portable body. With `FUSED` it is that of processors with fused multiply-adds: compilers vectorise its
    /// loops, of which there is one for each function.
    fn plain<const FUSED: bool>(self, bias: Option<&[f32]>, x: &mut [f32]) {
        match self {
            Self::Gelu => each(bias, x, |x| Self::Gelu.of::<FUSED>(x)),
            Self::GeluTanh => each(bias, x, |x| Self::GeluTanh.of::<FUSED>(x)),
            Self::QuickGelu => each(bias, x, |x| Self::QuickGelu.of::<FUSED>(x)),
            Self::Silu => each(bias, x, |x| Self::Silu.of::<FUSED>(x)),
            Self::Relu => each(bias, x, |x| Self::Relu.of::<FUSED>(x)),
            Self::Sigmoid => each(bias, x, |x| Self::Sigmoid.of::<FUSED>(x)),
        }
    }

    #[inline(always)]
    fn of<const FUSED: bool>(self, x: f32) -> f32 {
        let one_and_exp_of_minus = |x: f32| 1.0 + exp_of::<FUSED>(-x);
        match self {
            Self::Gelu => gelu_of::<FUSED>(x),
            Self::GeluTanh => {
                let slope = multiply_add::<FUSED>(TANH_CUBIC, x * x, TANH_LINEAR);
                x / one_and_exp_of_minus(x * slope)
            }
            Self::QuickGelu => x / one_and_exp_of_minus(x * QUICK),
            Self::Silu => x / one_and_exp_of_minus(x),
            // Written as a comparison, because `f32::max` would drop NaN.
            Self::Relu if x < 0.0 => 0.0,
            Self::Relu => x,
            Self::Sigmoid => 1.0 / one_and_exp_of_minus(x),
        }
    }
}

/// In place; `bias` is as long as `x`.
#[inline(always)]
fn each(bias: Option<&[f32]>, x: &mut [f32], function: impl Fn(f32) -> f32) {
    match bias {
        Some(bias) => {
            for (x, bias) in x.iter_mut().zip(bias) {
                *x = function(*x + bias);
            }
        }
        None => x.iter_mut().for_each(|x| *x = function(*x)),
    }
}

#[cfg(test)]
mod tests;
