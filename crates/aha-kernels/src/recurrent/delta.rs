//! The gated delta rule (Gated DeltaNet, arXiv 2412.06464), token by token.
//!
//! The columns of a head's state evolve apart from each other. So a slice of columns that fits in the first-level
//! cache walks through all tokens of a step before the next slice does; the walk is bound by arithmetic, as the
//! chunked form is, and gives the same bits however a prompt is cut.

use super::{RecurrentSequence, begin};
use crate::attention::Output;
use crate::buffer::{flat_mut, with_scratch};
use crate::error::check_len;
use crate::fused::multiply_add;
use crate::pack::PANEL;
use crate::pool::{for_each_stretch, for_each_task};
use crate::{InstructionSet, KernelError, instruction_set};

/// Columns of the state that walk together.
const COLUMNS: usize = 32;
/// Values (those of states once for each token) below which threads cost more than they bring.
const PARALLEL_FROM: usize = 64 * 1024;
/// Added to the squared length of queries and keys before the root.
const EPSILON: f32 = 1e-6;

type Row = [f32; COLUMNS];

/// For each head, with a state `S` `[key_dim, value_dim]` that begins at zero:
/// `S *= e^g; d = beta * (v - Sᵀk); S += k dᵀ; out = Sᵀq`,
/// where `q` and `k` are divided by their lengths and `q` by `√key_dim` first.
#[derive(Debug, Clone, Copy)]
pub struct GatedDelta<'a> {
    /// Heads of queries and keys; each serves `num_heads / num_key_heads` heads.
    pub num_key_heads: usize,
    /// Heads of values, states and outputs.
    pub num_heads: usize,
    /// Values of a query or key.
    pub key_dim: usize,
    /// Values of a value.
    pub value_dim: usize,
    /// A key head serves every `num_key_heads`-th head instead of consecutive ones.
    pub strided_groups: bool,
    /// The sequences, end to end over all rows.
    pub sequences: &'a [RecurrentSequence],
}

/// What one step reads.
#[derive(Debug, Clone, Copy)]
struct Input<'a> {
    /// Unit-length queries (over `√key_dim`) and keys, `[tokens, num_key_heads, key_dim]`.
    q: &'a [f32],
    k: &'a [f32],
    qkv: &'a [f32],
    decay: &'a [f32],
    beta: &'a [f32],
}

impl GatedDelta<'_> {
    /// Values in a row of `qkv`.
    fn width(&self) -> usize {
        2 * self.num_key_heads * self.key_dim + self.num_heads * self.value_dim
    }

    /// `qkv` holds rows of queries, keys and values, `[tokens, 2 * num_key_heads * key_dim + num_heads * value_dim]`;
    /// `g` (the decay's logarithm) and `beta` are `[tokens, num_heads]`, `states` is
    /// `[slots, num_heads, key_dim, value_dim]` and `out` `[tokens, num_heads, value_dim]`.
    ///
    /// # Errors
    /// When a slice does not fit, or two sequences share a slot.
    pub fn forward(
        &self,
        qkv: &[f32],
        g: &[f32],
        beta: &[f32],
        states: &mut [f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), qkv, g, beta, states, out)
    }

    /// [`GatedDelta::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As [`GatedDelta::forward`], and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        qkv: &[f32],
        g: &[f32],
        beta: &[f32],
        states: &mut [f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        let (heads, key_heads) = (self.num_heads, self.num_key_heads);
        if key_heads == 0 || self.key_dim == 0 || self.value_dim == 0 {
            return Err(KernelError::Zero {
                argument: "num_key_heads, key_dim and value_dim",
            });
        }
        if heads == 0 || !heads.is_multiple_of(key_heads) {
            return Err(KernelError::NotMultiple {
                argument: "num_heads",
                value: heads,
                of: key_heads,
            });
        }
        let tokens = g.len() / heads;
        check_len("g", tokens * heads, g.len())?;
        check_len("beta", g.len(), beta.len())?;
        check_len("qkv", tokens * self.width(), qkv.len())?;
        check_len("out", tokens * heads * self.value_dim, out.len())?;
        let state_size = self.key_dim * self.value_dim;
        begin(self.sequences, tokens, states, heads * state_size)?;
        let size = tokens * key_heads * self.key_dim;
        with_scratch((2 * size + g.len()).div_ceil(PANEL), |scratch| {
            let (q, scratch) = flat_mut(scratch).split_at_mut(size);
            let (k, scratch) = scratch.split_at_mut(size);
            let decay = &mut scratch[..g.len()];
            self.unit_queries_and_keys(qkv, q, k);
            for (decay, g) in decay.iter_mut().zip(g) {
                *decay = g.exp();
            }
            let input = Input {
                q,
                k,
                qkv,
                decay,
                beta,
            };
            let (states, out) = (Output::new(states), Output::new(out));
            let walk = |index: usize| {
                let (sequence, head) = (self.sequences[index / heads], index % heads);
                let start = (sequence.slot * heads + head) * state_size;
                // SAFETY: each head of a slot has a state of its own, no two sequences share a slot (checked on
                // entry), and each index runs once.
                let state = unsafe { states.piece(start, state_size) };
                self.walk(set, input, sequence, head, state, out);
            };
            let walks = self.sequences.len() * heads;
            if tokens * heads * state_size < PARALLEL_FROM {
                (0..walks).for_each(walk);
            } else {
                for_each_task(walks, walk);
            }
        });
        Ok(())
    }

    /// Queries over their length and `√key_dim`, keys over their length.
    fn unit_queries_and_keys(&self, qkv: &[f32], q: &mut [f32], k: &mut [f32]) {
        let size = self.num_key_heads * self.key_dim;
        let scale = 1.0 / (self.key_dim as f32).sqrt();
        let unit = |from: usize, scale: f32, out: &mut [f32]| {
            for_each_stretch(out, PARALLEL_FROM, size, |start, rows| {
                for (index, row) in rows.chunks_exact_mut(size).enumerate() {
                    let token = start / size + index;
                    let source = &qkv[token * self.width() + from..][..size];
                    unit_heads(source, self.key_dim, scale, row);
                }
            });
        };
        unit(0, scale, q);
        unit(size, 1.0, k);
    }

    /// One head's walk through a sequence's tokens, whose rows of `out` it alone writes for this head.
    fn walk(
        &self,
        set: InstructionSet,
        input: Input<'_>,
        sequence: RecurrentSequence,
        head: usize,
        state: &mut [f32],
        out: Output,
    ) {
        with_scratch(self.key_dim * (COLUMNS / PANEL), |scratch| {
            let columns: &mut [Row] = flat_mut(scratch).as_chunks_mut().0;
            for first in (0..self.value_dim).step_by(COLUMNS) {
                let width = COLUMNS.min(self.value_dim - first);
                if width < COLUMNS {
                    // What is left of other work could be slow to compute with.
                    columns.fill([0.0; COLUMNS]);
                }
                for (row, state) in columns.iter_mut().zip(state.chunks_exact(self.value_dim)) {
                    row[..width].copy_from_slice(&state[first..first + width]);
                }
                let slice = Slice {
                    rule: self,
                    sequence,
                    head,
                    first,
                    width,
                };
                match set {
                    #[cfg(target_arch = "x86_64")]
                    set if set.has_avx2() => {
                        // SAFETY: the instruction set is present (required on entry).
                        unsafe { slice.walk_avx2(input, columns, out) }
                    }
                    #[cfg(target_arch = "aarch64")]
                    set if set.has_neon() => slice.walk::<true>(input, columns, out),
                    _ => slice.walk::<false>(input, columns, out),
                }
                for (row, state) in columns.iter().zip(state.chunks_exact_mut(self.value_dim)) {
                    state[first..first + width].copy_from_slice(&row[..width]);
                }
            }
        });
    }
}

/// Divides each head of `x` by its length and multiplies it by `scale`.
fn unit_heads(x: &[f32], size: usize, scale: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        let squares: f32 = x.iter().map(|x| x * x).sum();
        let factor = scale / (squares + EPSILON).sqrt();
        for (x, out) in x.iter().zip(out) {
            *out = x * factor;
        }
    }
}

/// Some columns of one head's state.
#[derive(Clone, Copy)]
struct Slice<'a> {
    rule: &'a GatedDelta<'a>,
    sequence: RecurrentSequence,
    head: usize,
    first: usize,
    width: usize,
}

impl Slice<'_> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn walk_avx2(&self, input: Input<'_>, columns: &mut [Row], out: Output) {
        self.walk::<true>(input, columns, out);
    }

    /// The same source for both bodies; with `FUSED` it is compiled for processors with fused multiply-add.
    #[inline(always)]
    fn walk<const FUSED: bool>(&self, input: Input<'_>, columns: &mut [Row], out: Output) {
        let GatedDelta {
            num_key_heads,
            num_heads,
            key_dim,
            value_dim,
            strided_groups,
            ..
        } = *self.rule;
        let key_head = if strided_groups {
            self.head % num_key_heads
        } else {
            self.head / (num_heads / num_key_heads)
        };
        let value_start = 2 * num_key_heads * key_dim + self.head * value_dim + self.first;
        for token in self.sequence.query_start..self.sequence.query_start + self.sequence.query_len
        {
            let key_at = (token * num_key_heads + key_head) * key_dim;
            let (q, k) = (
                &input.q[key_at..key_at + key_dim],
                &input.k[key_at..key_at + key_dim],
            );
            let value_at = token * self.rule.width() + value_start;
            let v = &input.qkv[value_at..value_at + self.width];
            let gate = token * num_heads + self.head;
            let (decay, beta) = (input.decay[gate], input.beta[gate]);

            // Two sums side by side hide the latency of the additions.
            let mut recalled = [[0f32; COLUMNS]; 2];
            let mut pairs = columns.chunks_exact(2).zip(k.chunks_exact(2));
            for (rows, k) in &mut pairs {
                for column in 0..COLUMNS {
                    recalled[0][column] =
                        multiply_add::<FUSED>(rows[0][column], k[0], recalled[0][column]);
                    recalled[1][column] =
                        multiply_add::<FUSED>(rows[1][column], k[1], recalled[1][column]);
                }
            }
            if key_dim % 2 == 1 {
                let row = columns[key_dim - 1];
                for column in 0..COLUMNS {
                    recalled[0][column] =
                        multiply_add::<FUSED>(row[column], k[key_dim - 1], recalled[0][column]);
                }
            }
            let mut delta = [0f32; COLUMNS];
            for (column, v) in v.iter().enumerate() {
                let recalled = recalled[0][column] + recalled[1][column];
                delta[column] = beta * multiply_add::<FUSED>(-decay, recalled, *v);
            }
            let mut answer = [0f32; COLUMNS];
            for ((row, k), q) in columns.iter_mut().zip(k).zip(q) {
                for column in 0..COLUMNS {
                    let kept = multiply_add::<FUSED>(delta[column], *k, decay * row[column]);
                    row[column] = kept;
                    answer[column] = multiply_add::<FUSED>(kept, *q, answer[column]);
                }
            }
            let start = gate * value_dim + self.first;
            // SAFETY: this slice of columns alone writes these values of the token's row.
            let out = unsafe { out.piece(start, self.width) };
            out.copy_from_slice(&answer[..self.width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::values;

    struct Case {
        qkv: Vec<f32>,
        g: Vec<f32>,
        beta: Vec<f32>,
    }

    fn case(rule: &GatedDelta<'_>, tokens: usize) -> Case {
        let gates = tokens * rule.num_heads;
        Case {
            qkv: values(tokens * rule.width(), 1),
            g: values(gates, 2).iter().map(|x| -x.abs()).collect(),
            beta: values(gates, 3).iter().map(|x| x.abs().min(1.0)).collect(),
        }
    }

    /// The rule as it is written, in double precision.
    fn reference(rule: &GatedDelta<'_>, case: &Case, tokens: usize) -> Vec<f64> {
        let (dk, dv) = (rule.key_dim, rule.value_dim);
        let mut out = vec![0f64; tokens * rule.num_heads * dv];
        for head in 0..rule.num_heads {
            let key_head = if rule.strided_groups {
                head % rule.num_key_heads
            } else {
                head / (rule.num_heads / rule.num_key_heads)
            };
            let mut state = vec![0f64; dk * dv];
            for token in 0..tokens {
                let row = &case.qkv[token * rule.width()..][..rule.width()];
                let unit = |start: usize| -> Vec<f64> {
                    let x: Vec<f64> = row[start..start + dk]
                        .iter()
                        .map(|x| f64::from(*x))
                        .collect();
                    let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                    x.iter().map(|x| x / length).collect()
                };
                let q = unit(key_head * dk);
                let k = unit((rule.num_key_heads + key_head) * dk);
                let v = &row[2 * rule.num_key_heads * dk + head * dv..][..dv];
                let gate = token * rule.num_heads + head;
                let decay = f64::from(case.g[gate]).exp();
                state.iter_mut().for_each(|s| *s *= decay);
                for column in 0..dv {
                    let recalled: f64 = (0..dk).map(|i| state[i * dv + column] * k[i]).sum();
                    let delta = f64::from(case.beta[gate]) * (f64::from(v[column]) - recalled);
                    for i in 0..dk {
                        state[i * dv + column] += k[i] * delta;
                    }
                    let answer: f64 = (0..dk).map(|i| state[i * dv + column] * q[i]).sum();
                    out[(token * rule.num_heads + head) * dv + column] =
                        answer / (dk as f64).sqrt();
                }
            }
        }
        out
    }

    #[test]
    fn it_is_the_rule_as_written_whatever_the_steps() {
        for (num_key_heads, num_heads, key_dim, value_dim, tokens) in [
            (2, 4, 7, 5, 20),
            (1, 1, 1, 1, 3),
            (2, 2, 64, 128, 70),
            (1, 3, 16, 40, 33),
        ] {
            let rule = GatedDelta {
                num_key_heads,
                num_heads,
                key_dim,
                value_dim,
                strided_groups: tokens == 20,
                sequences: &[],
            };
            let case = case(&rule, tokens);
            let expected = reference(&rule, &case, tokens);
            let size = num_heads * key_dim * value_dim;
            for set in InstructionSet::available() {
                let mut whole = None;
                for step in [1, 2, 7, tokens] {
                    let mut states = vec![f32::NAN; 2 * size];
                    let mut found = Vec::new();
                    for start in (0..tokens).step_by(step) {
                        let count = step.min(tokens - start);
                        let sequences = [RecurrentSequence {
                            query_start: 0,
                            query_len: count,
                            slot: 1,
                            fresh: start == 0,
                        }];
                        let rule = GatedDelta {
                            sequences: &sequences,
                            ..rule
                        };
                        let mut out = vec![f32::NAN; count * num_heads * value_dim];
                        rule.forward_on(
                            set,
                            &case.qkv[start * rule.width()..][..count * rule.width()],
                            &case.g[start * num_heads..][..count * num_heads],
                            &case.beta[start * num_heads..][..count * num_heads],
                            &mut states,
                            &mut out,
                        )
                        .unwrap();
                        found.extend(out);
                    }
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((f64::from(*found) - expected).abs() < 1e-5, "{set:?}");
                    }
                    assert_eq!(*whole.get_or_insert_with(|| found.clone()), found);
                    assert!(states[..size].iter().all(|x| x.is_nan()));
                }
            }
        }
    }

    #[test]
    fn company_changes_nothing() {
        let sequence = |query_start, query_len, slot| RecurrentSequence {
            query_start,
            query_len,
            slot,
            fresh: true,
        };
        let rule = GatedDelta {
            num_key_heads: 1,
            num_heads: 2,
            key_dim: 8,
            value_dim: 36,
            strided_groups: false,
            sequences: &[],
        };
        let case = case(&rule, 9);
        let run = |sequences: &[RecurrentSequence], from: usize, count: usize| {
            let rule = GatedDelta { sequences, ..rule };
            let mut out = vec![0f32; count * 2 * 36];
            rule.forward(
                &case.qkv[from * rule.width()..][..count * rule.width()],
                &case.g[from * 2..][..count * 2],
                &case.beta[from * 2..][..count * 2],
                &mut vec![0f32; 3 * 2 * 8 * 36],
                &mut out,
            )
            .unwrap();
            out
        };
        let together = run(&[sequence(0, 4, 2), sequence(4, 5, 0)], 0, 9);
        let apart = [
            run(&[sequence(0, 4, 1)], 0, 4),
            run(&[sequence(0, 5, 1)], 4, 5),
        ];
        assert_eq!(together, apart.concat());
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let sequences = [RecurrentSequence {
            query_start: 0,
            query_len: 1,
            slot: 0,
            fresh: true,
        }];
        let rule = GatedDelta {
            num_key_heads: 1,
            num_heads: 2,
            key_dim: 2,
            value_dim: 3,
            strided_groups: false,
            sequences: &sequences,
        };
        let run = |rule: GatedDelta<'_>, qkv: usize, gates: usize, states: usize| {
            let (qkv, gates) = (vec![0.0; qkv], vec![0.0; gates]);
            rule.forward(&qkv, &gates, &gates, &mut vec![0.0; states], &mut [0.0; 6])
        };
        assert!(run(rule, 10, 2, 12).is_ok());
        assert!(run(rule, 9, 2, 12).is_err());
        assert!(run(rule, 10, 1, 12).is_err());
        assert!(run(rule, 10, 2, 11).is_err());
        let uneven = GatedDelta {
            num_key_heads: 3,
            ..rule
        };
        assert!(run(uneven, 10, 2, 12).is_err());
    }
}
