use super::tests::{available, bits};
use super::{GridBias, RaggedAttention, Rows};
use crate::InstructionSet;
use crate::matmul::tests::values;

const HEADS: usize = 3;
const DIM: usize = 16;
const ROW: usize = HEADS * DIM;

/// Sequences of `height` by `width` tokens, or of any length where there is no grid.
struct Case {
    lengths: Vec<usize>,
    grid: Option<(usize, usize)>,
    prefix: Option<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    terms: Vec<f32>,
}

impl Case {
    fn new(lengths: Vec<usize>, grid: Option<(usize, usize)>, prefix: Option<usize>) -> Self {
        let tokens: usize = lengths.iter().sum();
        let term_row = grid.map_or(0, |(height, width)| HEADS * (2 * (height + width) - 2));
        Self {
            lengths,
            grid,
            prefix,
            q: values(tokens * ROW, 1),
            k: values(tokens * ROW, 2),
            v: values(tokens * ROW, 3),
            terms: values(tokens * term_row, 4),
        }
    }

    fn grids(height: usize, width: usize, count: usize) -> Self {
        Self::new(vec![height * width; count], Some((height, width)), None)
    }

    /// The outputs of `count` sequences from `first` on.
    fn forward(&self, set: InstructionSet, first: usize, count: usize) -> Vec<f32> {
        let before: usize = self.lengths[..first].iter().sum();
        let lengths = &self.lengths[first..first + count];
        let mut cu_seqlens = vec![0];
        for length in lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + *length as u32);
        }
        let rows = |values, stride: usize| -> Rows<'_> {
            let values: &[f32] = values;
            Rows {
                values: &values[before * stride..],
                stride,
            }
        };
        let bias = self.grid.map(|(height, width)| GridBias {
            height,
            width,
            terms: rows(&self.terms, HEADS * (2 * (height + width) - 2)),
        });
        let mut out = vec![f32::NAN; lengths.iter().sum::<usize>() * ROW];
        RaggedAttention {
            num_heads: HEADS,
            num_kv_heads: HEADS,
            head_dim: DIM,
            scale: 0.25,
            causal: self.prefix.is_some(),
            prefix: self.prefix.unwrap_or(0),
            bias,
            cu_seqlens: &cu_seqlens,
        }
        .forward_on(
            set,
            rows(&self.q, ROW),
            rows(&self.k, ROW),
            rows(&self.v, ROW),
            &mut out,
        )
        .unwrap();
        out
    }

    /// The addend of a pair of positions of a sequence that begins at `start`.
    fn addend(&self, start: usize, query: usize, key: usize, head: usize) -> f64 {
        let Some((height, width)) = self.grid else {
            return 0.0;
        };
        let each = 2 * (height + width) - 2;
        let terms = &self.terms[((start + query) * HEADS + head) * each..][..each];
        let down = key / width + height - 1 - query / width;
        let right = key % width + width - 1 - query % width;
        f64::from(terms[down]) + f64::from(terms[2 * height - 1 + right])
    }

    /// The definition, in double precision.
    fn reference(&self) -> Vec<f64> {
        let mut out = Vec::new();
        let mut start = 0;
        for &length in &self.lengths {
            for query in 0..length {
                let seen = self
                    .prefix
                    .map_or(length, |prefix| prefix.max(query + 1).min(length));
                for head in 0..HEADS {
                    let part = |values: &[f32], position: usize| -> Vec<f64> {
                        let at = (start + position) * ROW + head * DIM;
                        values[at..at + DIM].iter().map(|&x| x.into()).collect()
                    };
                    let q = part(&self.q, query);
                    let scores: Vec<f64> = (0..seen)
                        .map(|key| {
                            let k = part(&self.k, key);
                            let dot: f64 = q.iter().zip(&k).map(|(a, b)| a * b).sum();
                            (0.25 * (dot + self.addend(start, query, key, head))).exp()
                        })
                        .collect();
                    let total: f64 = scores.iter().sum();
                    let mut sums = vec![0.0; DIM];
                    for (key, score) in scores.iter().enumerate() {
                        for (sum, v) in sums.iter_mut().zip(part(&self.v, key)) {
                            *sum += score / total * v;
                        }
                    }
                    out.extend(sums);
                }
            }
            start += length;
        }
        out
    }

    fn check(&self, what: &str) {
        let want = self.reference();
        for set in available() {
            let together = self.forward(set, 0, self.lengths.len());
            for (got, want) in together.iter().zip(&want) {
                let difference = (f64::from(*got) - want).abs();
                assert!(difference < 8e-6, "{what} {set:?}: {got} {want}");
            }
            let mut start = 0;
            for (index, length) in self.lengths.iter().enumerate() {
                let end = start + length * ROW;
                let alone = self.forward(set, index, 1);
                assert_eq!(bits(&together[start..end]), bits(&alone), "{what} {set:?}");
                start = end;
            }
        }
    }
}

#[test]
fn addends_of_grids_agree_with_the_definition() {
    // Rows longer and shorter than a tile of keys, and single ones.
    for (height, width) in [(14, 14), (3, 70), (40, 5), (8, 16), (1, 9), (11, 1), (1, 1)] {
        Case::grids(height, width, 2).check(&format!("{height}x{width}"));
    }
}

#[test]
fn tokens_of_a_prefix_see_each_other_and_the_rest_what_is_before() {
    for prefix in [0, 1, 31, 64, 500] {
        Case::new(vec![130, 7, 64], None, Some(prefix)).check(&format!("prefix {prefix}"));
    }
}

#[test]
fn grids_of_another_size_are_errors() {
    let values = vec![0.0; 6 * 4 * 8];
    let run = |height, width, terms: usize, cu_seqlens: &[u32]| {
        let rows = |len: usize, stride| Rows {
            values: &values[..len],
            stride,
        };
        RaggedAttention {
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 4,
            scale: 1.0,
            causal: false,
            prefix: 0,
            bias: Some(GridBias {
                height,
                width,
                terms: rows(terms, 8),
            }),
            cu_seqlens,
        }
        .forward(
            rows(48, 4),
            rows(48, 4),
            rows(48, 4),
            &mut vec![0.0; 4 * cu_seqlens.last().copied().unwrap_or(0) as usize],
        )
    };
    assert!(run(2, 3, 96, &[0, 6, 12]).is_ok());
    assert!(run(2, 3, 96, &[0, 6, 6, 12]).is_ok());
    assert!(run(2, 3, 95, &[0, 6, 12]).is_err());
    assert!(run(2, 2, 96, &[0, 6, 12]).is_err());
    assert!(run(6, 1, 96, &[0, 6, 12]).is_err());
    assert!(run(0, 6, 96, &[0, 6]).is_err());
    assert!(run(usize::MAX, 2, 96, &[0, 6]).is_err());
}
