//! Depthwise convolution along rows of channels.

use crate::error::{check_len, checked_mul};
use crate::fused::multiply_add;
use crate::pool::for_each_stretch;
use crate::{InstructionSet, KernelError, instruction_set};

/// Values below which threads cost more than they bring.
const PARALLEL_FROM: usize = 16 * 1024;

/// Values that one thread takes at a time.
const CHUNK: usize = 8192;

/// Channels whose sums stay in registers while the taps pass: four of AVX2's.
const LANES: usize = 32;

/// `out[t] = bias + Σ weight[j] * x[t * stride + j * dilation]`, channel by channel, without padding.
///
/// Unlike [`crate::ShortConv`] it knows no sequences and keeps no past: what lies before the first row is the
/// caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DepthwiseConv {
    /// Channels, each with a filter of its own.
    pub channels: usize,
    /// Taps of a filter.
    pub kernel_size: usize,
    /// Rows of the input from one row of the output to the next.
    pub stride: usize,
    /// Rows of the input from one tap to the next.
    pub dilation: usize,
}

impl DepthwiseConv {
    /// Rows that `rows` rows of input give.
    pub fn output_rows(&self, rows: usize) -> usize {
        let span = self
            .kernel_size
            .saturating_sub(1)
            .saturating_mul(self.dilation);
        rows.checked_sub(span + 1)
            .map_or(0, |last| last / self.stride.max(1) + 1)
    }

    /// `x` is `[rows, channels]`, `weight` `[kernel_size, channels]`, `bias` `[channels]`, `out`
    /// `[output_rows(rows), channels]`.
    ///
    /// # Errors
    /// When a size is zero, or a slice does not fit.
    pub fn forward(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), x, weight, bias, out)
    }

    /// [`DepthwiseConv::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As there, and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let (set, channels) = (set.require()?, self.channels);
        if channels == 0 || self.kernel_size == 0 || self.stride == 0 || self.dilation == 0 {
            return Err(KernelError::Zero {
                argument: "channels, kernel_size, stride and dilation",
            });
        }
        if !x.len().is_multiple_of(channels) {
            return Err(KernelError::NotMultiple {
                argument: "length of x",
                value: x.len(),
                of: channels,
            });
        }
        check_len(
            "weight",
            checked_mul(self.kernel_size, channels)?,
            weight.len(),
        )?;
        check_len("bias", channels, bias.map_or(channels, <[f32]>::len))?;
        let rows = self.output_rows(x.len() / channels);
        check_len("out", checked_mul(rows, channels)?, out.len())?;
        let task = |start: usize, out: &mut [f32]| {
            for (row, out) in out.chunks_exact_mut(channels).enumerate() {
                let x = &x[(start / channels + row) * self.stride * channels..];
                match set {
                    #[cfg(target_arch = "x86_64")]
                    set if set.has_avx2() => {
                        // SAFETY: the instruction set is present (required above).
                        unsafe { avx2(self.dilation * channels, x, weight, bias, out) }
                    }
                    #[cfg(target_arch = "aarch64")]
                    set if set.has_neon() => {
                        plain::<true>(self.dilation * channels, x, weight, bias, out);
                    }
                    _ => plain::<false>(self.dilation * channels, x, weight, bias, out),
                }
            }
        };
        let size = CHUNK.div_ceil(channels) * channels;
        for_each_stretch(out, PARALLEL_FROM, size, task);
        Ok(())
    }
}

/// One row of the output; taps are `step` values apart in `x`. Inlined so that the AVX2 body is this one, compiled
/// for AVX2. The NEON body is this one, too, with fused multiply-adds.
#[inline(always)]
fn plain<const FUSED: bool>(
    step: usize,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let channels = out.len();
    for (index, out) in out.chunks_mut(LANES).enumerate() {
        let first = index * LANES;
        let mut sums = [0f32; LANES];
        if let Some(bias) = bias {
            sums[..out.len()].copy_from_slice(&bias[first..first + out.len()]);
        }
        for (tap, weight) in weight.chunks_exact(channels).enumerate() {
            let (x, weight) = (&x[tap * step + first..], &weight[first..]);
            // A whole group has a length that the compiler knows, so its sums stay in registers.
            match (x.first_chunk::<LANES>(), weight.first_chunk::<LANES>()) {
                (Some(x), Some(weight)) if out.len() == LANES => {
                    for lane in 0..LANES {
                        sums[lane] = multiply_add::<FUSED>(x[lane], weight[lane], sums[lane]);
                    }
                }
                _ => {
                    for ((sum, x), weight) in sums.iter_mut().zip(x).zip(weight).take(out.len()) {
                        *sum = multiply_add::<FUSED>(*x, *weight, *sum);
                    }
                }
            }
        }
        out.copy_from_slice(&sums[..out.len()]);
    }
}

/// See [`plain`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(step: usize, x: &[f32], weight: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    plain::<false>(step, x, weight, bias, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    #[test]
    fn it_is_the_sum_over_the_taps() {
        for (channels, kernel_size, stride, dilation, rows) in [
            (5, 7, 1, 1, 20),
            (5, 7, 1, 3, 40),
            (40, 7, 1, 9, 90),
            (96, 7, 1, 9, 400),
            (33, 4, 2, 1, 31),
            (32, 1, 3, 2, 10),
        ] {
            let conv = DepthwiseConv {
                channels,
                kernel_size,
                stride,
                dilation,
            };
            let (x, weight, bias) = (
                values(rows * channels, 1),
                values(kernel_size * channels, 2),
                values(channels, 3),
            );
            let outputs = conv.output_rows(rows);
            assert_eq!(
                outputs,
                (rows - (kernel_size - 1) * dilation - 1) / stride + 1
            );
            for set in InstructionSet::available() {
                let mut out = vec![f32::NAN; outputs * channels];
                conv.forward_on(set, &x, &weight, Some(&bias), &mut out)
                    .unwrap();
                for (index, &got) in out.iter().enumerate() {
                    let (row, channel) = (index / channels, index % channels);
                    let sum: f64 = (0..kernel_size)
                        .map(|tap| {
                            let from = (row * stride + tap * dilation) * channels + channel;
                            f64::from(x[from]) * f64::from(weight[tap * channels + channel])
                        })
                        .sum();
                    let want = f64::from(bias[channel]) + sum;
                    assert!((f64::from(got) - want).abs() <= 2e-6, "{got} {want}");
                }
            }
        }
    }

    #[test]
    fn misfits_are_refused_and_too_few_rows_give_none() {
        let conv = DepthwiseConv {
            channels: 2,
            kernel_size: 3,
            stride: 1,
            dilation: 2,
        };
        assert_eq!(conv.output_rows(4), 0);
        assert_eq!(conv.output_rows(5), 1);
        conv.forward(&[0.0; 8], &[0.0; 6], None, &mut []).unwrap();
        assert!(conv.forward(&[0.0; 9], &[0.0; 6], None, &mut []).is_err());
        assert!(
            conv.forward(&[0.0; 10], &[0.0; 5], None, &mut [0.0; 2])
                .is_err()
        );
        assert!(
            conv.forward(&[0.0; 10], &[0.0; 6], None, &mut [0.0; 4])
                .is_err()
        );
        assert!(
            conv.forward(&[0.0; 10], &[0.0; 6], Some(&[0.0]), &mut [0.0; 2])
                .is_err()
        );
        let still = DepthwiseConv { stride: 0, ..conv };
        assert!(
            still
                .forward(&[0.0; 10], &[0.0; 6], None, &mut [0.0; 2])
                .is_err()
        );
    }
}
