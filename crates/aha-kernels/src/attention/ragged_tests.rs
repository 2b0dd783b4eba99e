use super::tests::{available, bits};
use super::{RaggedAttention, Rows};
use crate::InstructionSet;
use crate::matmul::tests::values;
use crate::pool::with_threads;

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    causal: bool,
}

/// The head sizes of vision and audio encoders, and awkward ones.
const SHAPES: [Shape; 7] = [
    shape(4, 4, 32, false),
    shape(2, 2, 64, false),
    shape(3, 3, 72, false),
    shape(4, 2, 80, false),
    shape(6, 1, 12, false),
    shape(2, 2, 128, true),
    shape(100, 1, 5, false),
];

const fn shape(heads: usize, kv_heads: usize, dim: usize, causal: bool) -> Shape {
    Shape {
        heads,
        kv_heads,
        dim,
        causal,
    }
}

/// Rows of queries, keys and values side by side, as a fused projection gives them.
struct Fused {
    shape: Shape,
    qkv: Vec<f32>,
}

impl Fused {
    fn new(shape: Shape, tokens: usize) -> Self {
        let mut qkv = values(tokens * Self::stride(shape), 1);
        qkv.iter_mut().for_each(|value| *value *= 2.0);
        Self { shape, qkv }
    }

    fn stride(shape: Shape) -> usize {
        (shape.heads + 2 * shape.kv_heads) * shape.dim
    }

    /// Queries, keys and values from the token `first` on.
    fn rows(&self, first: usize) -> [Rows<'_>; 3] {
        let Shape {
            heads,
            kv_heads,
            dim,
            ..
        } = self.shape;
        let stride = Self::stride(self.shape);
        [0, heads * dim, (heads + kv_heads) * dim].map(|part| Rows {
            values: &self.qkv[first * stride + part..],
            stride,
        })
    }

    fn forward(&self, set: InstructionSet, first: usize, cu_seqlens: &[u32]) -> Vec<f32> {
        let Shape {
            heads,
            kv_heads,
            dim,
            causal,
        } = self.shape;
        let tokens = cu_seqlens.last().copied().unwrap_or(0) as usize;
        let mut out = vec![f32::NAN; tokens * heads * dim];
        let [q, k, v] = self.rows(first);
        RaggedAttention {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim,
            scale: 1.0 / (dim as f32).sqrt(),
            causal,
            prefix: 0,
            bias: None,
            cu_seqlens,
        }
        .forward_on(set, q, k, v, &mut out)
        .unwrap();
        out
    }

    /// The definition, in double precision, for one token and head among the tokens of its sequence.
    fn reference(&self, token: usize, head: usize, sequence: std::ops::Range<usize>) -> Vec<f64> {
        let Shape {
            heads,
            kv_heads,
            dim,
            causal,
        } = self.shape;
        let [q, k, v] = self.rows(0);
        let part = |rows: Rows<'_>, token: usize, head: usize| -> Vec<f64> {
            let part = &rows.values[token * rows.stride + head * dim..][..dim];
            part.iter().map(|&value| f64::from(value)).collect()
        };
        let q = part(q, token, head);
        let kv_head = head / (heads / kv_heads);
        let end = if causal { token + 1 } else { sequence.end };
        let scores: Vec<f64> = (sequence.start..end)
            .map(|key| {
                let k = part(k, key, kv_head);
                let dot: f64 = q.iter().zip(&k).map(|(a, b)| a * b).sum();
                dot / (dim as f64).sqrt()
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; dim];
        for (key, score) in (sequence.start..end).zip(&scores) {
            for (out, v) in out.iter_mut().zip(part(v, key, kv_head)) {
                *out += (score - largest).exp() / total * v;
            }
        }
        out
    }
}

#[test]
fn ragged_attention_agrees_with_the_definition() {
    // An empty sequence, a single token, edges of tiles of keys and of tasks of queries.
    let cu_seqlens = [0, 1, 1, 32, 65, 105, 203];
    for shape in SHAPES {
        let fused = Fused::new(shape, 203);
        for set in available() {
            let out = fused.forward(set, 0, &cu_seqlens);
            for bounds in cu_seqlens.windows(2) {
                let sequence = bounds[0] as usize..bounds[1] as usize;
                for token in sequence.clone() {
                    for head in 0..shape.heads {
                        let want = fused.reference(token, head, sequence.clone());
                        let got = &out[(token * shape.heads + head) * shape.dim..][..shape.dim];
                        for (&got, want) in got.iter().zip(want) {
                            let difference = (f64::from(got) - want).abs();
                            assert!(difference < 8e-6, "{shape:?} {set:?} {token}: {got} {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn company_and_threads_change_no_bit() {
    let cu_seqlens: [u32; 5] = [0, 7, 130, 131, 300];
    for shape in SHAPES {
        let fused = Fused::new(shape, 300);
        let row = shape.heads * shape.dim;
        for set in available() {
            let together = fused.forward(set, 0, &cu_seqlens);
            for bounds in cu_seqlens.windows(2) {
                let (start, end) = (bounds[0] as usize, bounds[1] as usize);
                let alone = fused.forward(set, start, &[0, (end - start) as u32]);
                assert_eq!(bits(&together[start * row..end * row]), bits(&alone));
            }
            for threads in [1, 3, 5] {
                let again = with_threads(threads, || fused.forward(set, 0, &cu_seqlens));
                assert_eq!(bits(&together), bits(&again), "{shape:?} {threads}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_sequence() {
    let shape = shape(2, 2, 16, false);
    let mut fused = Fused::new(shape, 50);
    let stride = Fused::stride(shape);
    let clean = fused.forward(InstructionSet::Scalar, 0, &[0, 40, 50]);
    fused.qkv[45 * stride..46 * stride].fill(f32::NAN);
    for set in available() {
        let out = fused.forward(set, 0, &[0, 40, 50]);
        let row = shape.heads * shape.dim;
        assert!(out[..40 * row].iter().all(|value| value.is_finite()));
        assert!(out[40 * row..].iter().all(|value| value.is_nan()));
        if set == InstructionSet::Scalar {
            assert_eq!(bits(&out[..40 * row]), bits(&clean[..40 * row]));
        }
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let values = [0.0; 64];
    let rows = |len: usize, stride| Rows {
        values: &values[..len],
        stride,
    };
    let run = |heads, kv_heads, cu_seqlens: &[u32], k: Rows<'_>, out: usize| {
        RaggedAttention {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: 4,
            scale: 1.0,
            causal: false,
            prefix: 0,
            bias: None,
            cu_seqlens,
        }
        .forward(rows(heads * 8, heads * 4), k, k, &mut vec![0.0; out])
    };
    assert!(run(2, 2, &[0, 2], rows(16, 8), 16).is_ok());
    // The last row of a part may end with the part.
    assert!(run(2, 1, &[0, 2], rows(12, 8), 16).is_ok());
    assert!(run(2, 1, &[0, 2], rows(11, 8), 16).is_err());
    assert!(run(2, 2, &[], rows(0, 8), 0).is_ok());
    assert!(run(2, 2, &[1, 2], rows(16, 8), 16).is_err());
    assert!(run(2, 2, &[0, 2, 1], rows(16, 8), 8).is_err());
    assert!(run(2, 2, &[0, 3], rows(16, 8), 24).is_err());
    assert!(run(2, 2, &[0, 2], rows(16, 8), 15).is_err());
    assert!(run(2, 2, &[0, 2], rows(16, 7), 16).is_err());
    assert!(run(3, 2, &[0, 1], rows(16, 8), 12).is_err());
    assert!(run(2, 0, &[0, 1], rows(16, 8), 8).is_err());
}
