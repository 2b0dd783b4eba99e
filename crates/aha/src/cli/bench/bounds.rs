//! What the machine can do at most, and how much of it a test reached.

use super::Test;
use crate::cli::memory::Shape;
use crate::cli::weights::WeightsSummary;
use aha::{Dtype, Quant};
use aha_kernels::{Arithmetic, measure_multiply_add_rate, measure_read_bandwidth};
use aha_nn::weights::StoredType;
use serde::Serialize;
use std::fmt;

/// Limits of the threads that compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes a second.
    pub(super) bandwidth: f64,
    /// What the rate below is of.
    pub(super) arithmetic: Arithmetic,
    /// Operations a second.
    pub(super) operations: f64,
}

/// How weights are kept in memory, as the user asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) dtype: Dtype,
    pub(super) quant: Option<Quant>,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quant {
            Some(quant) => quant.fmt(f),
            None => self.dtype.fmt(f),
        }
    }
}

impl Kept {
    /// Bytes of weights that a step of generation reads; none where `auto` decided and does not say.
    fn bytes_per_step(self, weights: &WeightsSummary) -> Option<f64> {
        let recipe = match self.quant {
            Some(Quant::Auto) => return None,
            Some(Quant::Recipe(recipe)) => Some(recipe),
            None => None,
        };
        Some(weights.bytes_per_step(self.dtype, recipe) as f64)
    }

    /// What weights that are stored in this type could be multiplied with.
    fn arithmetic(self, stored: Option<StoredType>) -> Arithmetic {
        match (self.dtype, stored) {
            _ if matches!(self.quant, Some(Quant::Recipe(_))) => Arithmetic::Int8,
            (Dtype::Bf16, _) | (Dtype::Auto, Some(StoredType::Bf16)) => Arithmetic::Bf16,
            (Dtype::Auto, Some(stored)) if stored.is_quantized() => Arithmetic::Int8,
            _ => Arithmetic::F32,
        }
    }
}

/// What limits a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bound {
    /// Reading the weights.
    Bandwidth,
    /// Multiplying and adding.
    Arithmetic,
}

/// How much of the bounds a test reached.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Shares {
    /// Of generation only: how often a prompt reads its weights is the engine's affair, not the test's.
    pub(super) bandwidth: Option<f64>,
    pub(super) arithmetic: Option<f64>,
}

impl Shares {
    /// The bound that leaves less room, and the share of it.
    pub(super) fn nearest(self) -> Option<(Bound, f64)> {
        let bandwidth = self.bandwidth.map(|share| (Bound::Bandwidth, share));
        let arithmetic = self.arithmetic.map(|share| (Bound::Arithmetic, share));
        let larger = |a: &(Bound, f64), b: &(Bound, f64)| a.1.total_cmp(&b.1);
        bandwidth.into_iter().chain(arithmetic).max_by(larger)
    }
}

impl Bound {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::Arithmetic => "arithmetic",
        }
    }
}

impl Bounds {
    /// Takes about a second. None when the memory for it is not to be had.
    pub(super) fn measure(kept: Kept, stored: Option<StoredType>, threads: usize) -> Option<Self> {
        let bandwidth = measure_read_bandwidth(threads);
        let wanted = kept.arithmetic(stored);
        let measured = |arithmetic| {
            measure_multiply_add_rate(arithmetic, threads).map(|rate| (arithmetic, rate))
        };
        let (arithmetic, operations) = measured(wanted).or_else(|| measured(Arithmetic::F32))?;
        (bandwidth > 0.0).then_some(Self {
            bandwidth,
            arithmetic,
            operations,
        })
    }

    /// The larger of both limits.
    pub(super) fn larger(self, other: Self) -> Self {
        Self {
            bandwidth: self.bandwidth.max(other.bandwidth),
            operations: self.operations.max(other.operations),
            ..self
        }
    }

    /// `seconds` is what the test takes.
    pub(super) fn shares(
        &self,
        test: Test,
        seconds: f64,
        weights: &WeightsSummary,
        shape: &Shape,
        kept: Kept,
    ) -> Shares {
        let bytes = match test {
            Test::Prompt(_) => None,
            Test::Generate { tokens, .. } => {
                let step = kept.bytes_per_step(weights);
                step.map(|bytes| bytes * tokens as f64)
            }
        };
        Shares {
            bandwidth: bytes.map(|bytes| bytes / seconds / self.bandwidth),
            arithmetic: Some(operations(test, weights, shape) / seconds / self.operations),
        }
    }
}

/// Operations of a test, a product and its sum being two.
fn operations(test: Test, weights: &WeightsSummary, shape: &Shape) -> f64 {
    let share = shape.expert_share();
    match test {
        Test::Prompt(tokens) => {
            weights.prompt_flops(tokens, share) + shape.attention_flops(0, tokens)
        }
        // The first token comes out of the prompt's, so there are as many steps as tokens.
        Test::Generate { tokens, batch } => {
            let steps = tokens as f64 * weights.step_flops(share);
            batch as f64 * (steps + shape.attention_flops(0, tokens))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn kept(dtype: Dtype) -> Kept {
        Kept { dtype, quant: None }
    }

    #[test]
    fn work_is_counted_once_a_token_and_the_head_once_a_prompt() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        let weights = WeightsSummary::of(&Path::new(root).join("llama/smol")).unwrap();
        let shape = Shape::of_config(&json!({"num_hidden_layers": 3, "num_attention_heads": 3,
            "num_key_value_heads": 1, "head_dim": 24}));
        let layers = f64::from(3 * (72 * 72 * 2 + 72 * 24 * 2 + 72 * 144 * 3));
        let head = f64::from(537 * 72);
        // A pair of tokens costs two products of 24 values in each of three heads of three layers.
        let pair = f64::from(2 * 2 * 24 * 3 * 3);
        let prompt = 2.0 * (5.0 * layers + head) + 15.0 * pair;
        assert_eq!(operations(Test::Prompt(5), &weights, &shape), prompt);
        let one = 5.0 * 2.0 * (layers + head) + 15.0 * pair;
        let (tokens, batch) = (5, 3);
        let generated = operations(Test::Generate { tokens, batch }, &weights, &shape);
        assert_eq!(generated, 3.0 * one);

        let bounds = Bounds {
            bandwidth: 1e9,
            arithmetic: Arithmetic::F32,
            operations: prompt,
        };
        let shares = |test| bounds.shares(test, 2.0, &weights, &shape, kept(Dtype::F32));
        let prompt = shares(Test::Prompt(5));
        assert_eq!(prompt.nearest(), Some((Bound::Arithmetic, 0.5)));
        let read = (layers + head) * 4.0 * 5.0 / 2.0 / 1e9;
        let generated = shares(Test::Generate { tokens, batch });
        assert_eq!(generated.bandwidth, Some(read));
        assert_eq!(Shares::default().nearest(), None);
    }

    #[test]
    fn the_arithmetic_is_that_of_the_weights_in_memory() {
        let of = |dtype, stored| kept(dtype).arithmetic(stored);
        assert_eq!(of(Dtype::Auto, Some(StoredType::Bf16)), Arithmetic::Bf16);
        assert_eq!(of(Dtype::F32, Some(StoredType::Bf16)), Arithmetic::F32);
        assert_eq!(of(Dtype::Bf16, Some(StoredType::F32)), Arithmetic::Bf16);
        assert_eq!(of(Dtype::Auto, Some(StoredType::Q4K)), Arithmetic::Int8);
        assert_eq!(of(Dtype::F16, Some(StoredType::Q4K)), Arithmetic::F32);
        assert_eq!(of(Dtype::Auto, None), Arithmetic::F32);
    }
}
