//! Feed-forward blocks of which each token uses a few (sparsely-gated mixtures of experts, arXiv 1701.06538).

use crate::linear::Linear;
use crate::mlp::{Activation, GatedMlp};
use crate::weights::{Placement, Precision, Result, Weights};
use candle_core::{D, DType, Device, Module, Tensor};

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

    /// Shares of all experts for each token, `[tokens, num_experts]` in f32.
    fn shares(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.router.forward(&x.to_dtype(DType::F32)?)?;
        candle_nn::ops::softmax(&logits, D::Minus1)
    }

    /// What the tokens' experts give together, `[tokens, hidden_size]`.
    fn routed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let routes = Routes::choose(&self.shares(x)?, &self.config)?;
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
        for (places, shares) in routes.places.iter().zip(&routes.shares) {
            let shares = column(shares, x.dtype(), device)?;
            let part = outputs
                .index_select(&Tensor::new(places.as_slice(), device)?, 0)?
                .broadcast_mul(&shares)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        sum.map_or_else(|| x.zeros_like(), Ok)
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

/// Which token goes to which experts.
#[derive(Debug, PartialEq)]
struct Routes {
    /// The tokens of the first expert, of the second, and so on.
    tokens: Vec<u32>,
    /// Tokens of each expert.
    counts: Vec<usize>,
    /// For each rank, beginning with a token's largest share: where each token's row is among `tokens`.
    places: Vec<Vec<u32>>,
    /// For each rank each token's share.
    shares: Vec<Vec<f32>>,
}

impl Routes {
    /// Each token's experts with the largest `shares` `[tokens, num_experts]`; of equal ones the first.
    fn choose(shares: &Tensor, config: &MoeConfig) -> candle_core::Result<Self> {
        let (tokens, experts) = shares.dims2()?;
        let ranks = config.experts_per_token.min(experts);
        let values = shares.flatten_all()?.to_vec1::<f32>()?;
        let mut chosen = Vec::with_capacity(tokens * ranks);
        let mut picked = vec![Vec::with_capacity(tokens); ranks];
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for row in values.chunks_exact(experts) {
            order.clear();
            order.extend(0..experts);
            let larger = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
            if ranks < experts {
                order.select_nth_unstable_by(ranks, larger);
                order.truncate(ranks);
            }
            order.sort_unstable_by(larger);
            let whole = if config.normalized {
                order.iter().map(|&expert| row[expert]).sum()
            } else {
                1.0
            };
            for (picked, &expert) in picked.iter_mut().zip(&order) {
                picked.push(row[expert] / whole * config.scale as f32);
            }
            chosen.extend_from_slice(&order);
        }
        let mut counts = vec![0; experts];
        chosen.iter().for_each(|&expert| counts[expert] += 1);
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |start, count| {
                let first = *start;
                *start += count;
                Some(first)
            })
            .collect();
        let mut grouped = vec![0; chosen.len()];
        let mut places = vec![vec![0; tokens]; ranks];
        for (token, experts) in chosen.chunks_exact(ranks.max(1)).enumerate() {
            for (places, &expert) in places.iter_mut().zip(experts) {
                grouped[next[expert]] = token as u32;
                places[token] = next[expert] as u32;
                next[expert] += 1;
            }
        }
        Ok(Self {
            tokens: grouped,
            counts,
            places,
            shares: picked,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let shares = [[0.1f32, 0.4, 0.2, 0.3], [0.6, 0.1, 0.3, 0.0]];
        let shares = Tensor::new(&shares, &Device::Cpu).unwrap();
        let routes = Routes::choose(&shares, &config(false, 2.0)).unwrap();
        assert_eq!(routes.counts, [1, 1, 1, 1]);
        assert_eq!(routes.tokens, [1, 0, 1, 0]);
        assert_eq!(routes.places, [[1, 0], [3, 2]]);
        assert_eq!(routes.shares, [[0.8, 1.2], [0.6, 0.6]]);
        let routes = Routes::choose(&shares, &config(true, 1.0)).unwrap();
        let sums = [0, 1].map(|token| routes.shares[0][token] + routes.shares[1][token]);
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{sums:?}");
    }

    #[test]
    fn equal_shares_go_to_the_first_experts_and_some_experts_rest() {
        let shares = Tensor::full(0.25f32, (3, 4), &Device::Cpu).unwrap();
        let routes = Routes::choose(&shares, &config(false, 1.0)).unwrap();
        assert_eq!(routes.counts, [3, 3, 0, 0]);
        assert_eq!(routes.tokens, [0, 1, 2, 0, 1, 2]);
        assert_eq!(routes.places, [[0, 1, 2], [3, 4, 5]]);
    }
}
