use super::stretch::STRETCH;
use super::tests::{available, bits};
use crate::matmul::tests::values;
use crate::pool::with_threads;
use crate::{
    HeadNorm, HeadRotation, InstructionSet, KernelError, PagedAttention, PagedCache, PagedSequence,
    Projected, Rows, WeightKind,
};

const BLOCK: usize = 32;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
/// Neither a multiple of a panel nor of what is rounded in one piece.
const DIM: usize = 72;
const HALF: usize = 30;

/// A step of some tokens, whose projections lie side by side in one row.
struct Step {
    rows: Vec<f32>,
    angles: [Vec<f32>; 2],
    weight: Vec<f32>,
    tokens: usize,
}

impl Step {
    const STRIDE: usize = (HEADS + 2 * KV_HEADS) * DIM;

    fn new(tokens: usize, seed: u64) -> Self {
        let angles = values(tokens * HALF, seed + 1);
        Self {
            rows: values(tokens * Self::STRIDE, seed),
            angles: [f32::cos, f32::sin].map(|f| angles.iter().map(|&x| f(3.0 * x)).collect()),
            weight: values(DIM, seed + 2),
            tokens,
        }
    }

    fn part(&self, first_head: usize) -> Rows<'_> {
        Rows {
            values: &self.rows[first_head * DIM..],
            stride: Self::STRIDE,
        }
    }

    fn rotation(&self, num_heads: usize, norm_after: Option<bool>) -> HeadRotation<'_> {
        HeadRotation {
            num_heads,
            head_dim: DIM,
            half: HALF,
            cos: &self.angles[0],
            sin: &self.angles[1],
            interleaved: false,
            norm: norm_after.map(|after_rotation| HeadNorm {
                weight: &self.weight,
                epsilon: 1e-6,
                after_rotation,
            }),
        }
    }

    fn projected<'a>(&'a self, norm_after: Option<Option<bool>>) -> Projected<'a> {
        Projected {
            queries: self.part(0),
            keys: self.part(HEADS),
            values: self.part(HEADS + KV_HEADS),
            rotations: norm_after
                .map(|norm| [HEADS, KV_HEADS].map(|heads| self.rotation(heads, norm))),
        }
    }

    /// Rows of some heads, rotated where asked for, without gaps.
    fn heads(&self, first: usize, count: usize, norm_after: Option<Option<bool>>) -> Vec<f32> {
        let rows = self.rows.chunks_exact(Self::STRIDE);
        let plain: Vec<f32> = rows
            .flat_map(|row| row[first * DIM..(first + count) * DIM].to_vec())
            .collect();
        let Some(norm) = norm_after else { return plain };
        let rows = Rows {
            values: &plain,
            stride: count * DIM,
        };
        let mut out = vec![f32::NAN; plain.len()];
        self.rotation(count, norm).forward(rows, &mut out).unwrap();
        out
    }
}

fn cache(kind: WeightKind) -> PagedCache {
    PagedCache::new(kind, 16 * BLOCK, KV_HEADS, DIM).unwrap()
}

/// Slots of the new tokens.
fn slots(sequences: &[PagedSequence<'_>]) -> Vec<u32> {
    let slots = sequences.iter().flat_map(|sequence| {
        (sequence.context_len - sequence.query_len..sequence.context_len).map(|position| {
            sequence.blocks[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32
        })
    });
    slots.collect()
}

fn attention<'a>(sequences: &'a [PagedSequence<'a>]) -> PagedAttention<'a> {
    PagedAttention {
        num_heads: HEADS,
        block_size: BLOCK,
        scale: 0.3,
        window: None,
        sequences,
    }
}

fn sequence(query_start: usize, query_len: usize, end: usize, blocks: &[u32]) -> PagedSequence<'_> {
    PagedSequence {
        query_start,
        query_len,
        context_len: end,
        blocks,
    }
}

/// A step on a cache, in one call.
fn appended(
    set: InstructionSet,
    step: &Step,
    norm_after: Option<Option<bool>>,
    sequences: &[PagedSequence<'_>],
    cache: &mut PagedCache,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; step.tokens * HEADS * DIM];
    attention(sequences)
        .forward_appending_on(set, &step.projected(norm_after), cache, &mut out)
        .unwrap();
    out
}

/// The same, one thing after another.
fn apart(
    set: InstructionSet,
    step: &Step,
    norm_after: Option<Option<bool>>,
    sequences: &[PagedSequence<'_>],
    cache: &mut PagedCache,
) -> Vec<f32> {
    let keys = step.heads(HEADS, KV_HEADS, norm_after);
    let values = step.heads(HEADS + KV_HEADS, KV_HEADS, None);
    cache.write(&slots(sequences), &keys, &values).unwrap();
    let queries = step.heads(0, HEADS, norm_after);
    let mut out = vec![f32::NAN; queries.len()];
    attention(sequences)
        .forward_on(set, &queries, cache, &mut out)
        .unwrap();
    out
}

#[test]
fn a_step_in_one_call_is_that_of_its_parts() {
    let (first, second) = ([7, 2, 11], [0, 5, 3, 9]);
    // Two prompts (one is cut into pieces for threads), then a step of both, then steps of one alone.
    let steps = [
        vec![sequence(0, 40, 40, &first), sequence(40, 97, 97, &second)],
        vec![sequence(0, 1, 41, &first), sequence(1, 3, 100, &second)],
        vec![sequence(0, 1, 101, &second)],
        vec![sequence(0, 1, 42, &first)],
        vec![sequence(0, 1, 102, &second)],
    ];
    for kind in [WeightKind::F32, WeightKind::F16] {
        for norm_after in [None, Some(None), Some(Some(false)), Some(Some(true))] {
            for set in available() {
                let (mut one, mut other) = (cache(kind), cache(kind));
                for (seed, sequences) in steps.iter().enumerate() {
                    let tokens = sequences.iter().map(|sequence| sequence.query_len).sum();
                    let step = Step::new(tokens, 10 * seed as u64);
                    for threads in [1, 3] {
                        let have = with_threads(threads, || {
                            appended(set, &step, norm_after, sequences, &mut one)
                        });
                        let want = apart(set, &step, norm_after, sequences, &mut other);
                        assert_eq!(bits(&have), bits(&want), "{set:?} {kind:?} {norm_after:?}");
                    }
                }
            }
        }
    }
}

/// The task that reads the new position writes it, and no other.
#[test]
fn a_token_joins_a_context_that_tasks_share() {
    let blocks: Vec<u32> = (0..48).rev().collect();
    let before = 2 * STRETCH + 37;
    let step = Step::new(1, 5);
    let history: Vec<u32> = (0..before as u32)
        .map(|p| blocks[p as usize / BLOCK] * BLOCK as u32 + p % BLOCK as u32)
        .collect();
    let rows = values(before * KV_HEADS * DIM, 6);
    let filled = || {
        let mut cache = PagedCache::new(WeightKind::F16, 48 * BLOCK, KV_HEADS, DIM).unwrap();
        cache.write(&history, &rows, &rows).unwrap();
        cache
    };
    let sequences = [sequence(0, 1, before + 1, &blocks)];
    for set in available() {
        let want = apart(set, &step, Some(None), &sequences, &mut filled());
        for threads in [1, 2, 9] {
            let have = with_threads(threads, || {
                appended(set, &step, Some(None), &sequences, &mut filled())
            });
            assert_eq!(bits(&have), bits(&want), "{set:?} {threads}");
        }
    }
}

#[test]
fn two_tokens_with_one_slot_are_an_error() {
    let (blocks, other) = ([1, 2], [3, 2]);
    let step = Step::new(2, 1);
    let sequences = [sequence(0, 1, 40, &blocks), sequence(1, 1, 40, &other)];
    let mut out = vec![0.0; 2 * HEADS * DIM];
    let outcome = attention(&sequences).forward_appending(
        &step.projected(None),
        &mut cache(WeightKind::F32),
        &mut out,
    );
    let slot = 2 * BLOCK + 7;
    assert_eq!(outcome, Err(KernelError::SharedSlot { slot }));
}

#[test]
fn projections_that_do_not_fit_are_errors() {
    let blocks = [1];
    let step = Step::new(2, 1);
    let sequences = [sequence(0, 2, 2, &blocks)];
    let outcome = |projected: &Projected<'_>, len: usize| {
        let mut out = vec![0.0; len];
        attention(&sequences).forward_appending(projected, &mut cache(WeightKind::F16), &mut out)
    };
    let (len, good) = (2 * HEADS * DIM, step.projected(Some(None)));
    assert_eq!(outcome(&good, len), Ok(()));
    assert!(outcome(&good, len - 1).is_err());
    assert!(outcome(&good, 2 * len).is_err());
    let short = |rows: Rows<'_>| rows.values.len() - 1;
    for projected in [
        Projected {
            values: Rows {
                values: &good.values.values[..short(good.values)],
                ..good.values
            },
            ..good
        },
        Projected {
            rotations: Some([step.rotation(HEADS, None), step.rotation(HEADS, None)]),
            ..good
        },
        Projected {
            rotations: good.rotations.map(|rotations| {
                rotations.map(|rotation| HeadRotation {
                    cos: &rotation.cos[..HALF],
                    sin: &rotation.sin[..HALF],
                    ..rotation
                })
            }),
            ..good
        },
    ] {
        assert!(outcome(&projected, len).is_err());
    }
}
