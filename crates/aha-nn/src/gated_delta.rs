//! The gated delta rule: linear attention whose state forgets and corrects itself (arXiv 2412.06464).

use crate::batch::Batch;
use crate::cache::StateRows;
use crate::cpu::borrowed;
use crate::host::HostStep;
use crate::short_conv::recurrent_sequences;
use aha_kernels::RecurrentSequence;
use candle_core::{D, DType, Device, Result, Tensor};

/// Tokens that the chunked form computes at once.
const CHUNK: usize = 64;

/// Which heads of values a head of queries and keys serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadGroups {
    /// Consecutive ones, as releases order them.
    Consecutive,
    /// Every `num_key_heads`-th one, as llama.cpp orders them.
    Strided,
}

/// Sizes of the rule; keys of config.json in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatedDelta {
    /// Heads of queries and keys (`linear_num_key_heads`); each serves several heads of values.
    pub num_key_heads: usize,
    /// Heads of values (`linear_num_value_heads`).
    pub num_heads: usize,
    /// Size of a query or key (`linear_key_head_dim`).
    pub key_dim: usize,
    /// Size of a value (`linear_value_head_dim`).
    pub value_dim: usize,
    /// Which heads of values a head of keys serves.
    pub groups: HeadGroups,
}

impl GatedDelta {
    /// Values in a row of queries, keys and values.
    pub fn width(&self) -> usize {
        2 * self.num_key_heads * self.key_dim + self.num_heads * self.value_dim
    }

    /// `qkv` `[tokens, width]` are queries, keys and values, each head after head; `g` (the
    /// decay's logarithm) and `beta` are `[tokens, num_heads]` in f32. The result is
    /// `[tokens, num_heads * value_dim]` in f32; the sequences' matrices in `states` move on.
    ///
    /// On the CPU one kernel walks token by token, in prompts and answers alike; elsewhere prompts go through the
    /// chunked form, in which the tokens of a chunk are computed at once.
    pub fn forward(
        &self,
        qkv: &Tensor,
        g: &Tensor,
        beta: &Tensor,
        batch: &Batch,
        states: &mut StateRows,
    ) -> Result<Tensor> {
        if matches!(states, StateRows::Device(_)) {
            return self.forward_chunked(qkv, g, beta, batch, states);
        }
        let shape = (qkv.dim(0)?, self.num_heads * self.value_dim);
        let sequences: Vec<_> = recurrent_sequences(batch).collect();
        let mut out = vec![0f32; shape.0 * shape.1];
        let tensors = [qkv.contiguous()?, g.contiguous()?, beta.contiguous()?];
        let [qkv, g, beta] = tensors.each_ref().map(borrowed);
        let (qkv, g, beta) = (
            qkv.contiguous_f32()?,
            g.contiguous_f32()?,
            beta.contiguous_f32()?,
        );
        self.walk(qkv, g, beta, &sequences, states, &mut out)?;
        Tensor::from_vec(out, shape, &Device::Cpu)
    }

    /// The same from rows to rows on the CPU.
    ///
    /// # Errors
    /// When the states are on another device, or a slice does not fit.
    pub fn forward_rows(
        &self,
        qkv: &[f32],
        g: &[f32],
        beta: &[f32],
        step: &HostStep<'_>,
        states: &mut StateRows,
        out: &mut [f32],
    ) -> Result<()> {
        self.walk(qkv, g, beta, step.recurrent_sequences, states, out)
    }

    /// The CPU's kernel.
    fn walk(
        &self,
        qkv: &[f32],
        g: &[f32],
        beta: &[f32],
        sequences: &[RecurrentSequence],
        states: &mut StateRows,
        out: &mut [f32],
    ) -> Result<()> {
        let StateRows::Host { values, .. } = states else {
            candle_core::bail!("the states are not on the CPU")
        };
        let kernel = aha_kernels::GatedDelta {
            num_key_heads: self.num_key_heads,
            num_heads: self.num_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            strided_groups: self.groups == HeadGroups::Strided,
            sequences,
        };
        kernel
            .forward(qkv, g, beta, values, out)
            .map_err(candle_core::Error::wrap)
    }

    fn forward_chunked(
        &self,
        qkv: &Tensor,
        g: &Tensor,
        beta: &Tensor,
        batch: &Batch,
        states: &mut StateRows,
    ) -> Result<Tensor> {
        let device = qkv.device();
        let state_shape = (self.num_heads, self.key_dim, self.value_dim);
        let mut outputs = Vec::with_capacity(batch.sequences().len());
        for sequence in batch.sequences() {
            let mut state = if sequence.is_start() {
                Tensor::zeros(state_shape, DType::F32, device)?
            } else {
                states
                    .read(sequence.state_slot, device)?
                    .reshape(state_shape)?
            };
            for start in (0..sequence.query_len).step_by(CHUNK) {
                let len = CHUNK.min(sequence.query_len - start);
                let rows = |x: &Tensor| {
                    x.narrow(0, sequence.query_start + start, len)?
                        .to_dtype(DType::F32)
                };
                let (output, next) = self.chunk(&rows(qkv)?, &rows(g)?, &rows(beta)?, &state)?;
                outputs.push(output);
                state = next;
            }
            states.write(sequence.state_slot, &state)?;
        }
        Tensor::cat(&outputs, 0)
    }

    /// One chunk of one sequence after `state` `[num_heads, key_dim, value_dim]`; returns outputs and the next state.
    ///
    /// With `G` the sums of `g` from the chunk's first token on, the corrections `d` of all its tokens solve
    /// `d_t + beta_t Σ_{s<t} e^(G_t-G_s) (k_t·k_s) d_s = beta_t (v_t - e^G_t Sᵀk_t)`.
    fn chunk(
        &self,
        qkv: &Tensor,
        g: &Tensor,
        beta: &Tensor,
        state: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let len = qkv.dim(0)?;
        let (q, k, v) = self.heads(qkv)?;
        let beta = beta.t()?.unsqueeze(2)?.contiguous()?;
        let sums = g.t()?.contiguous()?.cumsum(1)?;
        let since_start = sums.unsqueeze(2)?.exp()?;
        let gaps = sums.unsqueeze(2)?.broadcast_sub(&sums.unsqueeze(1)?)?;
        // The future is masked before the exponential, where it could overflow.
        let decays = gaps
            .broadcast_add(&future_mask(len, qkv.device())?)?
            .exp()?;

        let keys = k.t()?.contiguous()?;
        let overlaps = (k.matmul(&keys)? * &decays)?
            .broadcast_mul(&beta)?
            .broadcast_mul(
                &Tensor::tril2(len, DType::F32, qkv.device())?.sub(&Tensor::eye(
                    len,
                    DType::F32,
                    qkv.device(),
                )?)?,
            )?;
        let recalled = k.matmul(state)?.broadcast_mul(&since_start)?;
        let errors = (v - recalled)?.broadcast_mul(&beta)?;
        let corrections = solve_unit_lower(&overlaps, &errors)?;

        let from_state = q.matmul(state)?.broadcast_mul(&since_start)?;
        let from_chunk = (q.matmul(&keys)? * decays)?.matmul(&corrections)?;
        let output = (from_state + from_chunk)?.transpose(0, 1)?.contiguous()?;

        let last = sums.narrow(1, len - 1, 1)?;
        let until_end = last.broadcast_sub(&sums)?.exp()?.unsqueeze(1)?;
        let gained = keys.broadcast_mul(&until_end)?.matmul(&corrections)?;
        let next = (state.broadcast_mul(&last.unsqueeze(2)?.exp()?)? + gained)?;
        Ok((
            output.reshape((len, self.num_heads * self.value_dim))?,
            next,
        ))
    }

    /// Unit queries (over `√key_dim`) and keys `[num_heads, len, key_dim]` and values `[num_heads, len, value_dim]`.
    fn heads(&self, qkv: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let Self {
            num_key_heads,
            num_heads,
            key_dim,
            value_dim,
            groups,
        } = *self;
        let (len, keys) = (qkv.dim(0)?, num_key_heads * key_dim);
        let served = num_heads / num_key_heads;
        let (single, repeated) = match groups {
            HeadGroups::Consecutive => ((num_key_heads, 1), (num_key_heads, served)),
            HeadGroups::Strided => ((1, num_key_heads), (served, num_key_heads)),
        };
        let unit = |start: usize| {
            let x = qkv
                .narrow(1, start, keys)?
                .reshape((len, single.0, single.1, key_dim))?;
            let length = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
            x.broadcast_div(&length)?
                .broadcast_as((len, repeated.0, repeated.1, key_dim))?
                .reshape((len, num_heads, key_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let v = qkv
            .narrow(1, 2 * keys, num_heads * value_dim)?
            .reshape((len, num_heads, value_dim))?
            .transpose(0, 1)?
            .contiguous()?;
        Ok(((unit(0)? / (key_dim as f64).sqrt())?, unit(keys)?, v))
    }
}

/// `[len, len]`: 0 up to the own token, -inf after it.
fn future_mask(len: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..len * len)
        .map(|i| {
            if i % len > i / len {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        })
        .collect();
    Tensor::from_vec(mask, (len, len), device)
}

/// Solves `(I + lower) x = right` for strictly lower triangular `lower` `[heads, len, len]` and `right`
/// `[heads, len, width]`, by halves: forward substitution in logarithmic depth, as stable as the plain one.
fn solve_unit_lower(lower: &Tensor, right: &Tensor) -> Result<Tensor> {
    let len = lower.dim(1)?;
    if len == 1 {
        return Ok(right.clone());
    }
    let half = len / 2;
    let rest = len - half;
    let block = |row: usize, rows: usize, column: usize, columns: usize| {
        lower
            .narrow(1, row, rows)?
            .narrow(2, column, columns)?
            .contiguous()
    };
    let first = solve_unit_lower(
        &block(0, half, 0, half)?,
        &right.narrow(1, 0, half)?.contiguous()?,
    )?;
    let carried = block(half, rest, 0, half)?.matmul(&first)?;
    let second = solve_unit_lower(
        &block(half, rest, half, rest)?,
        &(right.narrow(1, half, rest)? - carried)?,
    )?;
    Tensor::cat(&[first, second], 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheSpec, LayerSpec};
    use crate::testing::{batch_of, close, random};

    #[test]
    fn the_chunked_form_equals_the_walk_token_by_token() {
        for groups in [HeadGroups::Consecutive, HeadGroups::Strided] {
            compare_forms(GatedDelta {
                num_key_heads: 2,
                num_heads: 4,
                key_dim: 12,
                value_dim: 10,
                groups,
            });
        }
    }

    fn compare_forms(rule: GatedDelta) {
        let spec = CacheSpec {
            layers: vec![LayerSpec::GatedDelta {
                channels: 1,
                kernel_size: 1,
                num_heads: 4,
                key_dim: 12,
                value_dim: 10,
            }],
            shareable_prompt_len: None,
        };
        let cache = || Cache::new(&spec, 0, 16, 3, &Device::Cpu).unwrap();
        let (mut walked, mut chunked) = (cache(), cache());
        for step in [
            vec![(1, 150, 150), (0, 3, 3)],
            vec![(1, 1, 151), (2, 64, 64), (0, 1, 4)],
            vec![(0, 130, 134), (1, 1, 152)],
        ] {
            let batch = batch_of(&step);
            let tokens = batch.num_tokens();
            let qkv = random(&[tokens, 2 * 2 * 12 + 4 * 10]);
            // Strong and weak decay, and beta up to its limit.
            let g = random(&[tokens, 4]).abs().unwrap().neg().unwrap();
            let g = (g.sqr().unwrap().neg().unwrap() * 2.0).unwrap();
            let beta = random(&[tokens, 4]).abs().unwrap().clamp(0.0, 1.0).unwrap();
            let states = &mut walked.layers_mut()[0].recurrent().unwrap().matrices;
            let one = rule.forward(&qkv, &g, &beta, &batch, states).unwrap();
            let states = &mut chunked.layers_mut()[0].recurrent().unwrap().matrices;
            let other = rule
                .forward_chunked(&qkv, &g, &beta, &batch, states)
                .unwrap();
            close(&one, &other, 2e-5);
        }
    }

    #[test]
    fn equal_keys_without_decay_stay_exact() {
        let rule = GatedDelta {
            num_key_heads: 1,
            num_heads: 1,
            key_dim: 4,
            value_dim: 3,
            groups: HeadGroups::Consecutive,
        };
        let (tokens, device) = (64, Device::Cpu);
        let keys = Tensor::ones((tokens, 8), DType::F32, &device).unwrap();
        let values = random(&[tokens, 3]);
        let qkv = Tensor::cat(&[keys, values.clone()], 1).unwrap();
        let g = Tensor::zeros((tokens, 1), DType::F32, &device).unwrap();
        let beta = Tensor::ones((tokens, 1), DType::F32, &device).unwrap();
        let state = Tensor::zeros((1, 4, 3), DType::F32, &device).unwrap();
        let (output, _) = rule.chunk(&qkv, &g, &beta, &state).unwrap();
        // Every token replaces what the one before has stored, so each is answered with its own value.
        close(&output, &(values / 2.0).unwrap(), 1e-4);
    }
}
