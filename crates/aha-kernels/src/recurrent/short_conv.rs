//! Causal depthwise convolution over a few tokens, as LFM2 and gated DeltaNet have it.

use super::{RecurrentSequence, begin};
use crate::KernelError;
use crate::error::check_len;
use crate::pool::for_each_stretch;

/// Values below which threads cost more than they bring.
const PARALLEL_FROM: usize = 64 * 1024;
/// Rows that one thread takes at a time.
const ROWS: usize = 16;

/// `out[t] = bias + Σ weight[j] * x[t - kernel_size + 1 + j]`, channel by channel, each sequence after its own past.
#[derive(Debug, Clone, Copy)]
pub struct ShortConv<'a> {
    /// Channels, each with a filter of its own.
    pub channels: usize,
    /// Taps of a filter; the last one meets the current token.
    pub kernel_size: usize,
    /// The sequences, end to end over all rows.
    pub sequences: &'a [RecurrentSequence],
}

impl ShortConv<'_> {
    /// `x` and `out` are `[tokens, channels]`, `weight` is `[kernel_size, channels]`, `bias` `[channels]`;
    /// `states` `[slots, kernel_size - 1, channels]` hold the last rows of `x` of each sequence.
    ///
    /// # Errors
    /// When a slice does not fit, or two sequences share a slot.
    pub fn forward(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        states: &mut [f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let (channels, taps) = (self.channels, self.kernel_size);
        if channels == 0 || taps == 0 {
            return Err(KernelError::Zero {
                argument: "channels and kernel_size",
            });
        }
        check_len("weight", taps * channels, weight.len())?;
        check_len("bias", channels, bias.map_or(channels, <[f32]>::len))?;
        check_len("x", out.len(), x.len())?;
        let past = (taps - 1) * channels;
        begin(self.sequences, x.len() / channels, states, past)?;
        for sequence in self.sequences {
            let state = &mut states[sequence.slot * past..][..past];
            let rows = sequence.query_start * channels
                ..(sequence.query_start + sequence.query_len) * channels;
            let (x, out) = (&x[rows.clone()], &mut out[rows]);
            let stretch = |start: usize, out: &mut [f32]| {
                for (row, out) in out.chunks_exact_mut(channels).enumerate() {
                    let token = start / channels + row;
                    match bias {
                        Some(bias) => out.copy_from_slice(bias),
                        None => out.fill(0.0),
                    }
                    for (tap, weight) in weight.chunks_exact(channels).enumerate() {
                        // Row `token - (taps - 1) + tap` of the sequence; what lies before `x` is in the state.
                        let from = match (token + tap).checked_sub(taps - 1) {
                            Some(row) => &x[row * channels..(row + 1) * channels],
                            None => &state[(token + tap) * channels..(token + tap + 1) * channels],
                        };
                        for ((out, x), weight) in out.iter_mut().zip(from).zip(weight) {
                            *out += x * weight;
                        }
                    }
                }
            };
            for_each_stretch(out, PARALLEL_FROM, ROWS * channels, stretch);
            if x.len() >= past {
                state.copy_from_slice(&x[x.len() - past..]);
            } else {
                state.copy_within(x.len().., 0);
                state[past - x.len()..].copy_from_slice(x);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    fn sequence(
        query_start: usize,
        query_len: usize,
        slot: usize,
        fresh: bool,
    ) -> RecurrentSequence {
        RecurrentSequence {
            query_start,
            query_len,
            slot,
            fresh,
        }
    }

    #[test]
    fn it_is_the_sum_over_the_last_tokens_whatever_the_steps() {
        for (channels, kernel_size, tokens) in [(5, 3, 40), (3, 4, 2), (1, 1, 7), (2048, 4, 70)] {
            let (x, weight) = (
                values(tokens * channels, 1),
                values(kernel_size * channels, 2),
            );
            let bias = values(channels, 3);
            let mut expected = Vec::new();
            for token in 0..tokens {
                for channel in 0..channels {
                    let sum: f64 = (0..kernel_size)
                        .filter_map(|tap| {
                            let row = (token + tap).checked_sub(kernel_size - 1)?;
                            Some(
                                f64::from(x[row * channels + channel])
                                    * f64::from(weight[tap * channels + channel]),
                            )
                        })
                        .sum();
                    expected.push(sum + f64::from(bias[channel]));
                }
            }
            let past = (kernel_size - 1) * channels;
            let mut whole = None;
            for step in [1, 2, 3, 17, tokens] {
                // Slot 1 of three; its neighbours and what lay in it before must not matter.
                let mut states = vec![f32::NAN; 3 * past];
                let mut found = vec![0f32; x.len()];
                let mut start = 0;
                while start < tokens {
                    let count = step.min(tokens - start);
                    let sequences = [sequence(0, count, 1, start == 0)];
                    let conv = ShortConv {
                        channels,
                        kernel_size,
                        sequences: &sequences,
                    };
                    let rows = start * channels..(start + count) * channels;
                    conv.forward(
                        &x[rows.clone()],
                        &weight,
                        Some(&bias),
                        &mut states,
                        &mut found[rows],
                    )
                    .unwrap();
                    start += count;
                }
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5);
                }
                assert_eq!(*whole.get_or_insert_with(|| found.clone()), found, "{step}");
                assert!(
                    states[..past]
                        .iter()
                        .chain(&states[2 * past..])
                        .all(|x| x.is_nan())
                );
            }
        }
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let sequences = [sequence(0, 2, 0, true)];
        let conv = ShortConv {
            channels: 2,
            kernel_size: 3,
            sequences: &sequences,
        };
        let run = |x: usize, weight: usize, states: usize, out: usize| {
            conv.forward(
                &vec![0.0; x],
                &vec![0.0; weight],
                None,
                &mut vec![0.0; states],
                &mut vec![0.0; out],
            )
        };
        assert!(run(4, 6, 4, 4).is_ok());
        for wrong in [
            (3, 6, 4, 3),
            (4, 5, 4, 4),
            (4, 6, 3, 4),
            (4, 6, 4, 5),
            (6, 6, 4, 6),
        ] {
            assert!(
                run(wrong.0, wrong.1, wrong.2, wrong.3).is_err(),
                "{wrong:?}"
            );
        }
    }
}
