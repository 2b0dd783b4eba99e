use super::stretch::STRETCH;
use crate::matmul::tests::values;
use crate::pool::with_threads;
use crate::{InstructionSet, KernelError, PagedAttention, PagedCache, PagedSequence, WeightKind};
use half::f16;

const BLOCK: usize = 32;

const KINDS: [WeightKind; 2] = [WeightKind::F32, WeightKind::F16];

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
}

/// A sequence of `len` tokens whose blocks lie scattered in a cache.
struct Cached {
    shape: Shape,
    q: Vec<f32>,
    /// A row a slot, as are the values.
    k: Vec<f32>,
    v: Vec<f32>,
    cache: PagedCache,
    blocks: Vec<u32>,
}

impl Cached {
    fn new(shape: Shape, len: usize) -> Self {
        Self::of_kind(shape, len, WeightKind::F32)
    }

    fn of_kind(shape: Shape, len: usize, kind: WeightKind) -> Self {
        let count = len.div_ceil(BLOCK);
        let blocks = (0..count)
            .map(|block| ((block * 7 + 3) % (7 * count)) as u32)
            .collect();
        let slots = 7 * count * BLOCK + BLOCK;
        let mut q = values(len * shape.heads * shape.dim, 1);
        q.iter_mut().for_each(|value| *value *= 4.0);
        let mut k = values(slots * shape.kv_heads * shape.dim, 2);
        let mut v = values(slots * shape.kv_heads * shape.dim, 3);
        if kind == WeightKind::F16 {
            for value in k.iter_mut().chain(&mut v) {
                *value = f16::from_f32(*value).to_f32();
            }
        }
        let cache = PagedCache::new(kind, slots, shape.kv_heads, shape.dim).unwrap();
        let mut cached = Self {
            shape,
            q,
            k,
            v,
            cache,
            blocks,
        };
        cached.write();
        cached
    }

    /// Writes all rows to the cache.
    fn write(&mut self) {
        let slots: Vec<u32> = (0..self.cache.slots() as u32).collect();
        self.cache.write(&slots, &self.k, &self.v).unwrap();
    }

    fn slot(&self, position: usize) -> usize {
        self.blocks[position / BLOCK] as usize * BLOCK + position % BLOCK
    }

    /// Attention of the queries `start..end`, with a context that ends there.
    fn chunk(&self, set: InstructionSet, start: usize, end: usize) -> Vec<f32> {
        let sequence = PagedSequence {
            query_start: 0,
            query_len: end - start,
            context_len: end,
            blocks: &self.blocks,
        };
        let row = self.shape.heads * self.shape.dim;
        let q = &self.q[start * row..end * row];
        let mut out = vec![f32::NAN; q.len()];
        self.attention(&[sequence])
            .forward_on(set, q, &self.cache, &mut out)
            .unwrap();
        out
    }

    fn attention<'a>(&self, sequences: &'a [PagedSequence<'a>]) -> PagedAttention<'a> {
        PagedAttention {
            num_heads: self.shape.heads,
            block_size: BLOCK,
            scale: 1.0 / (self.shape.dim as f32).sqrt(),
            window: self.shape.window,
            sequences,
        }
    }

    /// The definition, in double precision.
    fn reference(&self, query: usize, head: usize) -> Vec<f64> {
        let Shape {
            heads,
            kv_heads,
            dim,
            window,
        } = self.shape;
        let kv_head = head / (heads / kv_heads);
        let q = &self.q[(query * heads + head) * dim..][..dim];
        let first = window.map_or(0, |window| (query + 1).saturating_sub(window));
        let place = |position| (self.slot(position) * kv_heads + kv_head) * dim;
        let scores: Vec<f64> = (first..=query)
            .map(|position| {
                let k = &self.k[place(position)..][..dim];
                let dot: f64 = q
                    .iter()
                    .zip(k)
                    .map(|(&a, &b)| f64::from(a) * f64::from(b))
                    .sum();
                dot / (dim as f64).sqrt()
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; dim];
        for (position, score) in (first..=query).zip(&scores) {
            let v = &self.v[place(position)..][..dim];
            for (out, &v) in out.iter_mut().zip(v) {
                *out += (score - largest).exp() / total * f64::from(v);
            }
        }
        out
    }
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape {
            heads: 4,
            kv_heads: 2,
            dim: 64,
            window: None,
        },
        Shape {
            heads: 3,
            kv_heads: 3,
            dim: 20,
            window: None,
        },
        Shape {
            heads: 7,
            kv_heads: 1,
            dim: 8,
            window: None,
        },
        Shape {
            heads: 4,
            kv_heads: 2,
            dim: 32,
            window: Some(1),
        },
        Shape {
            heads: 2,
            kv_heads: 1,
            dim: 33,
            window: Some(37),
        },
        Shape {
            heads: 100,
            kv_heads: 1,
            dim: 4,
            window: Some(9),
        },
    ]
}

pub(super) fn available() -> Vec<InstructionSet> {
    InstructionSet::available().collect()
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn attention_agrees_with_the_definition() {
    for shape in shapes() {
        for (len, kind) in [1, 5, 31, 32, 33, 100, 150]
            .into_iter()
            .flat_map(|len| KINDS.map(|kind| (len, kind)))
        {
            let cached = Cached::of_kind(shape, len, kind);
            for set in available() {
                let out = cached.chunk(set, 0, len);
                for (index, out) in out.chunks(shape.dim).enumerate() {
                    let want = cached.reference(index / shape.heads, index % shape.heads);
                    for (&got, want) in out.iter().zip(want) {
                        let difference = (f64::from(got) - want).abs();
                        assert!(
                            difference < 4e-6,
                            "{shape:?} {set:?} {len}: {got} is not {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn chunks_of_a_prompt_change_no_bit() {
    for (shape, kind) in shapes()
        .into_iter()
        .flat_map(|shape| KINDS.map(|kind| (shape, kind)))
    {
        let len = 130;
        let cached = Cached::of_kind(shape, len, kind);
        let row = shape.heads * shape.dim;
        for set in available() {
            let whole = cached.chunk(set, 0, len);
            for chunk in [1, 2, 17, 48, 64] {
                for start in (0..len).step_by(chunk) {
                    let end = len.min(start + chunk);
                    let part = cached.chunk(set, start, end);
                    let whole = &whole[start * row..end * row];
                    assert_eq!(bits(whole), bits(&part), "{shape:?} {set:?} {start}..{end}");
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_meet() {
    let shape = Shape {
        heads: 4,
        kv_heads: 2,
        dim: 64,
        window: None,
    };
    let cached = Cached::new(shape, 90);
    let row = shape.heads * shape.dim;
    let sequence = |query_start, query_len, context_len| PagedSequence {
        query_start,
        query_len,
        context_len,
        blocks: &cached.blocks,
    };
    // Rows 2 and 3 belong to nobody.
    let sequences = [
        sequence(4, 50, 50),
        sequence(1, 1, 90),
        sequence(54, 20, 70),
        sequence(0, 0, 0),
    ];
    let rows: Vec<usize> = [89, 89, 0, 0]
        .into_iter()
        .chain(0..50)
        .chain(50..70)
        .collect();
    let q: Vec<f32> = rows
        .iter()
        .flat_map(|&t| cached.q[t * row..][..row].to_vec())
        .collect();
    for set in available() {
        let mut out = vec![7.0; q.len()];
        let attention = cached.attention(&sequences);
        attention
            .forward_on(set, &q, &cached.cache, &mut out)
            .unwrap();
        let whole = cached.chunk(set, 0, 90);
        for (index, out) in out.chunks(row).enumerate() {
            match index {
                0 | 2 | 3 => assert!(out.iter().all(|&value| value == 7.0)),
                _ => assert_eq!(bits(out), bits(&whole[rows[index] * row..][..row])),
            }
        }
    }
}

#[test]
fn a_query_is_blind_to_later_and_to_forgotten_tokens() {
    let shape = Shape {
        heads: 2,
        kv_heads: 1,
        dim: 16,
        window: Some(20),
    };
    let mut cached = Cached::new(shape, 70);
    let before: Vec<_> = available()
        .into_iter()
        .map(|set| cached.chunk(set, 0, 70))
        .collect();
    // Position 40 is out of reach for queries before it and from 60 on.
    let start = cached.slot(40) * shape.dim;
    cached.k[start] = f32::NAN;
    cached.v[start..start + shape.dim].fill(f32::INFINITY);
    cached.write();
    for (set, before) in available().into_iter().zip(before) {
        let after = cached.chunk(set, 0, 70);
        for (query, (after, before)) in after.chunks(32).zip(before.chunks(32)).enumerate() {
            if (40..60).contains(&query) {
                assert!(after.iter().all(|value| value.is_nan()), "{set:?} {query}");
            } else {
                assert_eq!(bits(after), bits(before), "{set:?} {query}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let cached = Cached::new(
        Shape {
            heads: 4,
            kv_heads: 2,
            dim: 64,
            window: None,
        },
        200,
    );
    for set in available() {
        let on = |threads| with_threads(threads, || bits(&cached.chunk(set, 0, 200)));
        assert_eq!(on(1), on(3));
    }
}

/// Contexts of several stretches, which tasks share where a query's heads do not keep the threads busy.
#[test]
fn threads_that_share_a_long_context_change_no_bit() {
    let len = 2 * STRETCH + 70;
    let shape = |heads, kv_heads, window| Shape {
        heads,
        kv_heads,
        dim: 24,
        window,
    };
    for (shape, kind) in [
        shape(2, 1, None),
        shape(6, 2, None),
        shape(6, 2, Some(STRETCH + 40)),
        shape(3, 1, Some(30)),
    ]
    .into_iter()
    .flat_map(|shape| KINDS.map(|kind| (shape, kind)))
    {
        let cached = Cached::of_kind(shape, len, kind);
        let row = shape.heads * shape.dim;
        for set in available() {
            // All of the last stretch, and the edges of the others.
            let queries = [STRETCH - 2..STRETCH + 3, 2 * STRETCH - 3..len];
            for queries in queries {
                let whole = cached.chunk(set, queries.start, queries.end);
                for (query, whole) in queries.zip(whole.chunks_exact(row)) {
                    let alone =
                        |threads| with_threads(threads, || cached.chunk(set, query, query + 1));
                    for threads in [1, 2, 9] {
                        let alone = alone(threads);
                        assert_eq!(bits(whole), bits(&alone), "{shape:?} {set:?} {query}");
                    }
                    for (head, out) in whole.chunks(shape.dim).enumerate().take(2) {
                        let want = cached.reference(query, head);
                        for (&got, want) in out.iter().zip(want) {
                            assert!((f64::from(got) - want).abs() < 4e-6, "{shape:?} {set:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn sequences_that_point_outside_are_errors() {
    let cached = Cached::new(
        Shape {
            heads: 2,
            kv_heads: 1,
            dim: 4,
            window: None,
        },
        64,
    );
    let good = PagedSequence {
        query_start: 0,
        query_len: 2,
        context_len: 40,
        blocks: &cached.blocks,
    };
    let run = |sequences: &[PagedSequence<'_>]| {
        let q = vec![0.0; 4 * 8];
        let mut out = vec![0.0; 4 * 8];
        cached
            .attention(sequences)
            .forward(&q, &cached.cache, &mut out)
    };
    assert_eq!(run(&[good]), Ok(()));
    let bad = [
        PagedSequence {
            query_start: 3,
            ..good
        },
        PagedSequence {
            query_start: usize::MAX,
            ..good
        },
        PagedSequence {
            query_len: usize::MAX,
            ..good
        },
        PagedSequence {
            context_len: 65,
            ..good
        },
        PagedSequence {
            context_len: usize::MAX,
            ..good
        },
        PagedSequence {
            context_len: 1,
            ..good
        },
        PagedSequence {
            blocks: &[0],
            ..good
        },
        PagedSequence {
            blocks: &[0, 15],
            ..good
        },
        PagedSequence {
            blocks: &[u32::MAX, 0],
            ..good
        },
    ];
    for sequence in bad {
        assert!(run(&[sequence]).is_err(), "{sequence:?}");
    }
    let sequences = [good];
    let blind = PagedAttention {
        window: Some(0),
        ..cached.attention(&sequences)
    };
    let blind = blind.forward(&[0.0; 16], &cached.cache, &mut [0.0; 16]);
    assert!(blind.is_err());
    assert_eq!(
        run(&[
            good,
            PagedSequence {
                query_start: 1,
                ..good
            }
        ]),
        Err(KernelError::OverlappingQueries { row: 1 })
    );
    let sequences = [good];
    let mut attention = cached.attention(&sequences);
    attention.block_size = 24;
    assert_eq!(
        attention.forward(&[], &cached.cache, &mut []),
        Err(KernelError::NotMultiple {
            argument: "block_size",
            value: 24,
            of: 16
        })
    );
}

#[test]
fn caches_refuse_what_does_not_fit() {
    let new = |kind, slots, heads, dim| PagedCache::new(kind, slots, heads, dim).map(|_| ());
    assert_eq!(new(WeightKind::F16, 32, 2, 8), Ok(()));
    assert!(new(WeightKind::Bf16, 32, 2, 8).is_err());
    assert!(new(WeightKind::F32, 20, 2, 8).is_err());
    assert!(new(WeightKind::F32, 32, 0, 8).is_err());
    assert!(new(WeightKind::F32, 32, 2, 0).is_err());
    assert!(new(WeightKind::F32, usize::MAX / 16 * 16, 2, 8).is_err());
    let mut cache = PagedCache::new(WeightKind::F32, 32, 2, 8).unwrap();
    assert!(cache.write(&[31], &[0.0; 16], &[0.0; 16]).is_ok());
    assert!(cache.write(&[32], &[0.0; 16], &[0.0; 16]).is_err());
    assert!(cache.write(&[0, 1], &[0.0; 16], &[0.0; 16]).is_err());
    assert!(cache.write(&[0], &[0.0; 16], &[0.0; 8]).is_err());
}

#[test]
fn finite_values_stay_finite_in_half_precision() {
    let mut cache = PagedCache::new(WeightKind::F16, 16, 1, 4).unwrap();
    let (key, value) = ([0.0; 4], [1e6, -1e6, 1.5, f32::INFINITY]);
    cache.write(&[0], &key, &value).unwrap();
    let sequences = [PagedSequence {
        query_start: 0,
        query_len: 1,
        context_len: 1,
        blocks: &[0],
    }];
    let attention = PagedAttention {
        num_heads: 1,
        block_size: 16,
        scale: 1.0,
        window: None,
        sequences: &sequences,
    };
    for set in available() {
        let mut out = [0.0; 4];
        attention
            .forward_on(set, &[1.0; 4], &cache, &mut out)
            .unwrap();
        assert_eq!(out, [65504.0, -65504.0, 1.5, f32::INFINITY], "{set:?}");
    }
}
