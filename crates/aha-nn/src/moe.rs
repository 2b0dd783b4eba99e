//! Feed-forward blocks of which each token uses a few (sparsely-gated mixtures of experts, arXiv 1701.06538).

use crate::host::{Parts, sized};
use crate::linear::Linear;
use crate::mlp::{Activation, GatedMlp};
use crate::weights::{Placement, Precision, Result, Weights};
use candle_core::{DType, Device, Module, Tensor};

/// Sizes and rules of a mixture; keys of config.json in brackets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeConfig {
    /// Width of the residual stream (`hidden_size`).
    pub hidden_size: usize,
    /// Width inside an expert (`moe_intermediate_size`).
    pub intermediate_size: usize,
    /// Experts to choose from (`n_routed_experts`).
    pub num_experts: usize,
    /// Experts that a token uses (`num_experts_per_tok`); at most `num_experts`.
    pub experts_per_token: usize,
    /// Width inside the expert that every token uses, 0 for none (`n_shared_experts * moe_intermediate_size`).
    pub shared_intermediate_size: usize,
    /// The shares of a token's experts add up to one (`norm_topk_prob`).
    pub normalized: bool,
    /// Factor of what the chosen experts give (`routed_scaling_factor`).
    pub scale: f64,
    /// Activation of all experts (`hidden_act`).
    pub activation: Activation,
}

/// A router, the experts it chooses from, and an expert for all tokens.
///
/// Tokens are grouped by expert, so each expert runs once over the rows of all tokens that chose it. A token's experts
/// are summed in the order of their shares: what it gets has the same bits in any company on the CPU.
#[derive(Debug, Clone)]
pub struct MoeMlp {
    router: Linear,
    experts: Vec<GatedMlp>,
    shared: Option<GatedMlp>,
    config: MoeConfig,
}

impl MoeMlp {
    /// Loads `gate` `[num_experts, hidden_size]`, `experts.N` and, where there is one, `shared_experts`.
    pub fn load(weights: &Weights, config: &MoeConfig) -> Result<Self> {
        let MoeConfig {
            hidden_size,
            intermediate_size,
            num_experts,
            shared_intermediate_size: shared_size,
            activation,
            ..
        } = *config;
        let mlp = |weights: &Weights, width| {
            GatedMlp::load(weights, hidden_size, width, activation, false)
        };
        let single = Placement {
            device: weights.device().clone(),
            dtype: DType::F32,
            weights: Precision::F32,
        };
        let gate = weights.pp("gate").with_placement(single);
        Ok(Self {
            router: Linear::load(&gate, hidden_size, num_experts, false)?,
            experts: (0..num_experts)
                .map(|index| {
                    mlp(
                        &weights.pp(format_args!("experts.{index}")),
                        intermediate_size,
                    )
                })
                .collect::<Result<_>>()?,
            shared: (shared_size > 0)
                .then(|| mlp(&weights.pp("shared_experts"), shared_size))
                .transpose()?,
            config: *config,
        })
    }

    /// What the tokens' experts give together, `[tokens, hidden_size]`.
    fn routed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.router.forward(&x.to_dtype(DType::F32)?)?;
        let mut routes = Routes::default();
        routes.choose(&logits.flatten_all()?.to_vec1::<f32>()?, &self.config);
        let device = x.device();
        let rows = x.index_select(&Tensor::new(routes.tokens.as_slice(), device)?, 0)?;
        let mut outputs = Vec::with_capacity(self.experts.len());
        let mut start = 0;
        for (expert, &count) in self.experts.iter().zip(&routes.counts) {
            if count > 0 {
                outputs.push(expert.forward(&rows.narrow(0, start, count)?)?);
                start += count;
            }
        }
        let outputs = Tensor::cat(&outputs, 0)?;
        let mut sum: Option<Tensor> = None;
        for (places, shares) in routes.ranks(x.dim(0)?) {
            let shares = column(shares, x.dtype(), device)?;
            let part = outputs
                .index_select(&Tensor::new(places, device)?, 0)?
                .broadcast_mul(&shares)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        sum.map_or_else(|| x.zeros_like(), Ok)
    }

    /// The block from rows to rows on the CPU, both `[tokens, hidden_size]`.
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
        if out.len() != x.len() {
            candle_core::bail!("{} values do not fill {}", x.len(), out.len());
        }
        if tokens == 0 {
            return Ok(());
        }
        let mut memory = std::mem::take(&mut parts.experts);
        let result = self.forward_in(&mut memory, x, tokens, parts, out);
        parts.experts = memory;
        result
    }

    /// The same in `memory`; the experts have `parts` to themselves.
    fn forward_in(
        &self,
        memory: &mut ExpertMemory,
        x: &[f32],
        tokens: usize,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        let hidden_size = self.config.hidden_size;
        let routes = &mut memory.routes;
        let logits = sized(&mut memory.logits, tokens * self.experts.len());
        Linear::forward_rows([&self.router], x, tokens, [&mut *logits])?;
        routes.choose(logits, &self.config);

        let rows = sized(&mut memory.rows, tokens * hidden_size);
        let outputs = sized(&mut memory.outputs, routes.tokens.len() * hidden_size);
        let mut start = 0;
        for (expert, &count) in self.experts.iter().zip(&routes.counts) {
            // How many tokens choose an expert changes from step to step; its memory should not.
            parts.rows(expert.part_sizes(tokens));
            if count == 0 {
                continue;
            }
            let chosen = &routes.tokens[start..start + count];
            for (token, row) in chosen.iter().zip(rows.chunks_exact_mut(hidden_size)) {
                row.copy_from_slice(&x[*token as usize * hidden_size..][..hidden_size]);
            }
            let output = &mut outputs[start * hidden_size..][..count * hidden_size];
            expert.forward_rows(&rows[..count * hidden_size], count, parts, output)?;
            start += count;
        }
        if routes.tokens.is_empty() {
            out.fill(0.0);
        }
        for (rank, (places, shares)) in routes.ranks(tokens).enumerate() {
            let chosen = places.iter().zip(shares);
            for (out, (place, share)) in out.chunks_exact_mut(hidden_size).zip(chosen) {
                let output = &outputs[*place as usize * hidden_size..][..hidden_size];
                for (out, output) in out.iter_mut().zip(output) {
                    let part = output * share;
                    *out = if rank == 0 { part } else { *out + part };
                }
            }
        }
        if let Some(shared) = &self.shared {
            shared.forward_rows(x, tokens, parts, rows)?;
            aha_kernels::add(out, rows).map_err(candle_core::Error::wrap)?;
        }
        Ok(())
    }
}

fn column(values: &[f32], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    Tensor::from_slice(values, (values.len(), 1), device)?.to_dtype(dtype)
}

impl Module for MoeMlp {
    /// `x` is `[tokens, hidden_size]`, and so is the result.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if x.dim(0)? == 0 {
            return Ok(x.clone());
        }
        let routed = self.routed(x)?;
        match &self.shared {
            Some(shared) => routed + shared.forward(x)?,
            None => Ok(routed),
        }
    }
}

/// What a mixture keeps from one step to the next, beside the memory of its experts.
#[derive(Debug, Default)]
pub(crate) struct ExpertMemory {
    routes: Routes,
    /// The router's, `[tokens, num_experts]`.
    logits: Vec<f32>,
    /// The tokens of an expert, `[tokens, hidden_size]`.
    rows: Vec<f32>,
    /// What the experts give, one after another, `[tokens * experts_per_token, hidden_size]`.
    outputs: Vec<f32>,
}

/// Which token goes to which experts.
#[derive(Debug, Default)]
struct Routes {
    /// The tokens of the first expert, of the second, and so on.
    tokens: Vec<u32>,
    /// Tokens of each expert.
    counts: Vec<usize>,
    /// For each rank, beginning with a token's largest share: where each token's row is among `tokens`,
    /// `[experts_per_token, tokens]`.
    places: Vec<u32>,
    /// For each rank each token's share, `[experts_per_token, tokens]`.
    shares: Vec<f32>,
    /// Numerators of a token's softmax.
    weights: Vec<f32>,
    /// All experts, the best ones of a token in front.
    order: Vec<usize>,
    /// The experts of each token, `[tokens, experts_per_token]`.
    chosen: Vec<usize>,
    /// Where the next token of each expert goes among `tokens`.
    next: Vec<usize>,
}

impl Routes {
    /// Each token's experts with the largest shares, which are the softmax of its row of `logits`
    /// `[tokens, num_experts]`; of equal ones the first.
    fn choose(&mut self, logits: &[f32], config: &MoeConfig) {
        let experts = config.num_experts.max(1);
        let (tokens, ranks) = (
            logits.len() / experts,
            config.experts_per_token.min(experts),
        );
        self.chosen.clear();
        self.shares.clear();
        self.shares.resize(ranks * tokens, 0.0);
        let (weights, order) = (&mut self.weights, &mut self.order);
        for (token, row) in logits.chunks_exact(experts).enumerate() {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = aha_kernels::softmax_weights(row, largest, 1.0, weights);
            order.clear();
            order.extend(0..experts);
            let larger = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
            if ranks < experts {
                order.select_nth_unstable_by(ranks, larger);
                order.truncate(ranks);
            }
            order.sort_unstable_by(larger);
            let weight = |expert: &usize| f64::from(weights[*expert]);
            let whole = if config.normalized {
                order.iter().map(weight).sum()
            } else {
                sum
            };
            for (rank, expert) in order.iter().enumerate() {
                let share = weight(expert) / whole * config.scale;
                self.shares[rank * tokens + token] = share as f32;
            }
            self.chosen.extend_from_slice(order);
        }
        self.group(tokens, experts);
    }

    /// Groups the tokens by the experts that were chosen.
    fn group(&mut self, tokens: usize, experts: usize) {
        self.counts.clear();
        self.counts.resize(experts, 0);
        for &expert in &self.chosen {
            self.counts[expert] += 1;
        }
        self.next.clear();
        self.next.extend(self.counts.iter().scan(0, |start, count| {
            let first = *start;
            *start += count;
            Some(first)
        }));
        self.tokens.clear();
        self.tokens.resize(self.chosen.len(), 0);
        self.places.clear();
        self.places.resize(self.chosen.len(), 0);
        let ranks = self.chosen.len() / tokens.max(1);
        for (token, experts) in self.chosen.chunks_exact(ranks.max(1)).enumerate() {
            for (rank, &expert) in experts.iter().enumerate() {
                let next = &mut self.next[expert];
                self.tokens[*next] = token as u32;
                self.places[rank * tokens + token] = *next as u32;
                *next += 1;
            }
        }
    }

    /// Places and shares of all `tokens`, rank after rank.
    fn ranks(&self, tokens: usize) -> impl Iterator<Item = (&[u32], &[f32])> {
        let tokens = tokens.max(1);
        let places = self.places.chunks_exact(tokens);
        places.zip(self.shares.chunks_exact(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    fn config(normalized: bool, scale: f64) -> MoeConfig {
        MoeConfig {
            hidden_size: 4,
            intermediate_size: 4,
            num_experts: 4,
            experts_per_token: 2,
            shared_intermediate_size: 0,
            normalized,
            scale,
            activation: Activation::Silu,
        }
    }

    #[test]
    fn tokens_are_grouped_by_their_largest_shares() {
        let logits = [0.1f32, 0.4, 0.2, 0.3, 0.6, 0.1, 0.3, 0.0].map(f32::ln);
        let mut routes = Routes::default();
        routes.choose(&logits, &config(false, 2.0));
        assert_eq!(routes.counts, [1, 1, 1, 1]);
        assert_eq!(routes.tokens, [1, 0, 1, 0]);
        assert_eq!(routes.places, [1, 0, 3, 2]);
        let close = |found: &[f32], want: &[f32]| {
            let worst = found
                .iter()
                .zip(want)
                .map(|(found, want)| (found - want).abs());
            assert!(worst.fold(0.0, f32::max) < 1e-6, "{found:?} {want:?}");
        };
        close(&routes.shares, &[0.8, 1.2, 0.6, 0.6]);
        // In the same memory once more.
        routes.choose(&logits, &config(true, 1.0));
        assert_eq!(routes.places, [1, 0, 3, 2]);
        close(
            &routes.shares,
            &[4.0 / 7.0, 2.0 / 3.0, 3.0 / 7.0, 1.0 / 3.0],
        );
    }

    #[test]
    fn equal_shares_go_to_the_first_experts_and_some_experts_rest() {
        let mut routes = Routes::default();
        routes.choose(&[0.25; 12], &config(false, 1.0));
        assert_eq!(routes.counts, [3, 3, 0, 0]);
        assert_eq!(routes.tokens, [0, 1, 2, 0, 1, 2]);
        assert_eq!(routes.places, [0, 1, 2, 3, 4, 5]);
        assert_eq!(routes.shares, [0.25; 6]);
    }

    #[test]
    fn rows_and_tensors_give_the_same_bits() {
        let mut parts = Parts::default();
        for (shared, fused, normalized) in [(0, false, true), (9, true, false), (9, false, true)] {
            let config = MoeConfig {
                hidden_size: 24,
                shared_intermediate_size: shared,
                ..config(normalized, 1.5)
            };
            let experts = (0..4).map(|_| GatedMlp::random(24, 4, fused));
            let mixture = MoeMlp {
                router: Linear::from_tensor(&random(&[4, 24])).unwrap(),
                experts: experts.collect(),
                shared: (shared > 0).then(|| GatedMlp::random(24, shared, fused)),
                config,
            };
            for tokens in [0, 1, 70, 5] {
                let x = random(&[tokens, 24]);
                let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let want = values(&mixture.forward(&x).unwrap());
                let mut out = vec![f32::NAN; want.len()];
                mixture
                    .forward_rows(&values(&x), tokens, &mut parts, &mut out)
                    .unwrap();
                assert_eq!(out, want, "{tokens} tokens");
            }
            let wrong = mixture.forward_rows(&[0.0; 24], 1, &mut parts, &mut [0.0; 23]);
            assert!(wrong.is_err());
        }
    }
}
