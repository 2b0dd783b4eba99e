//! One piece of attention: a stretch of queries of one sequence, for one key head.

use super::{Call, PagedSequence};
use crate::InstructionSet;
use crate::buffer::{Line, bytes_of, flat, flat_mut, with_scratch};
use crate::matmul::{Activations, Panels, Sums, TILE_ROWS, tile, tile_panels};
use crate::pack::{PANEL, WeightKind};

/// Rows (queries times heads of a group) that a task holds at most, if a group is not larger.
pub(super) const ROWS: usize = 96;

/// Key positions that the running softmax takes at once. Tiles start at its multiples.
pub(super) const KEYS: usize = 32;

/// Panels of a tile of keys.
const KEY_PANELS: usize = KEYS / PANEL;

/// Scores, then probabilities, of one row and one tile of keys.
pub(super) type Scores = [Line; KEY_PANELS];

/// Queries `start..end` of a sequence, for the heads that share one key head.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The running softmax of a row: the largest score so far and the sum of `exp(score - largest)`.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    sum: f32,
}

/// What the softmax of a row over one more tile changes.
pub(super) struct Step {
    /// The largest score, this tile included.
    pub(super) largest: f32,
    /// The sum of this tile's `exp(score - largest)`.
    pub(super) sum: f32,
    /// Factor of all that was summed before: `exp(former largest - largest)`.
    pub(super) correction: f32,
}

impl Task {
    pub(super) fn run(&self, call: &Call<'_>) {
        let rows = (self.end - self.start) * call.group;
        let dim_panels = call.attention.head_dim.div_ceil(PANEL);
        let keys = KEY_PANELS * call.attention.head_dim;
        let values = dim_panels * KEYS;
        let queries = (rows * call.attention.head_dim).div_ceil(PANEL);
        let sums = dim_panels * rows;
        let lines = keys + values + queries + 2 * KEY_PANELS * rows + sums;
        with_scratch(lines, |scratch| {
            let (keys, scratch) = scratch.split_at_mut(keys);
            let (values, scratch) = scratch.split_at_mut(values);
            let (queries, scratch) = scratch.split_at_mut(queries);
            let (scores, scratch) = scratch.split_at_mut(KEY_PANELS * rows);
            let (probabilities, sums) = scratch.split_at_mut(KEY_PANELS * rows);
            self.pack_queries(call, flat_mut(queries));
            sums.fill(Line::ZERO);
            let mut running = vec![
                Running {
                    largest: f32::NEG_INFINITY,
                    sum: 0.0
                };
                rows
            ];
            let sequence = &call.attention.sequences[self.sequence];
            let first = sequence.visible(self.start).start;
            let last = sequence.visible(self.end - 1).end;
            for tile_start in (first / KEYS * KEYS..last).step_by(KEYS) {
                let loaded = first.max(tile_start)..last.min(tile_start + KEYS);
                self.load(call, tile_start, loaded, flat_mut(keys), flat_mut(values));
                score(call, rows, flat(queries), keys, scores);
                let visible = |row: usize| {
                    let seen = sequence.visible(self.start + row / call.group);
                    let inside = |position: usize| position.clamp(tile_start, tile_start + KEYS);
                    inside(seen.start) - tile_start..inside(seen.end) - tile_start
                };
                for (row, running) in running.iter_mut().enumerate() {
                    let seen = visible(row);
                    if seen.is_empty() {
                        continue;
                    }
                    let mut tile = [scores[row], scores[rows + row]];
                    let scale = call.attention.scale;
                    let step = softmax(call.set, &mut tile, scale, seen, running.largest);
                    probabilities[KEY_PANELS * row..][..KEY_PANELS].copy_from_slice(&tile);
                    if step.correction != 1.0 {
                        for line in sums.iter_mut().skip(row).step_by(rows) {
                            line.0.iter_mut().for_each(|sum| *sum *= step.correction);
                        }
                    }
                    running.sum = running.sum * step.correction + step.sum;
                    running.largest = step.largest;
                }
                weigh(call.set, rows, visible, flat(probabilities), values, sums);
            }
            self.write(call, &running, sums);
        });
    }

    /// Row `row` of the task in `q` and `out`: where its head starts.
    fn row_start(&self, call: &Call<'_>, row: usize) -> usize {
        let sequence = &call.attention.sequences[self.sequence];
        let token = sequence.query_start + self.start + row / call.group;
        let head = self.kv_head * call.group + row % call.group;
        (token * call.attention.num_heads + head) * call.attention.head_dim
    }

    /// Lays the queries out as `[tile][dim][row of the tile]`.
    fn pack_queries(&self, call: &Call<'_>, target: &mut [f32]) {
        let (dim, rows) = (
            call.attention.head_dim,
            (self.end - self.start) * call.group,
        );
        for from in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - from);
            let target = &mut target[from * dim..(from + count) * dim];
            for row in 0..count {
                let source = &call.q[self.row_start(call, from + row)..][..dim];
                for (&value, place) in source.iter().zip(target[row..].iter_mut().step_by(count)) {
                    *place = value;
                }
            }
        }
    }

    /// Loads the keys of positions `loaded` as panels `[dim][16 keys]` and their values as panels
    /// `[32 keys][16 dims]`. Places of other positions are zero.
    fn load(
        &self,
        call: &Call<'_>,
        tile_start: usize,
        loaded: std::ops::Range<usize>,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let sequence: &PagedSequence<'_> = &call.attention.sequences[self.sequence];
        let (dim, block_size) = (call.attention.head_dim, call.attention.block_size);
        let slot_len = call.attention.num_kv_heads * dim;
        if loaded.len() < KEYS {
            keys.fill(0.0);
            values.fill(0.0);
        }
        for position in loaded {
            let start = sequence.slot(position, block_size) * slot_len + self.kv_head * dim;
            let index = position - tile_start;
            let lane = (index / PANEL) * dim * PANEL + index % PANEL;
            let key = &call.k_cache[start..start + dim];
            for (&value, place) in key.iter().zip(keys[lane..].iter_mut().step_by(PANEL)) {
                *place = value;
            }
            let value = call.v_cache[start..start + dim].chunks(PANEL);
            for (panel, piece) in value.enumerate() {
                let line = &mut values[(panel * KEYS + index) * PANEL..][..PANEL];
                line[..piece.len()].copy_from_slice(piece);
                line[piece.len()..].fill(0.0);
            }
        }
    }

    fn write(&self, call: &Call<'_>, running: &[Running], sums: &[Line]) {
        let (dim, rows) = (call.attention.head_dim, running.len());
        for (row, running) in running.iter().enumerate() {
            // SAFETY: each row and head belongs to one task, and rows to one sequence (checked).
            let out = unsafe { call.out.piece(self.row_start(call, row), dim) };
            for (panel, piece) in out.chunks_mut(PANEL).enumerate() {
                for (value, sum) in piece.iter_mut().zip(sums[panel * rows + row].0) {
                    *value = sum / running.sum;
                }
            }
        }
    }
}

/// `scores[panel][row] = query · key`, for one tile of keys.
fn score(call: &Call<'_>, rows: usize, queries: &[f32], keys: &[Line], scores: &mut [Line]) {
    let dim = call.attention.head_dim;
    let stride = dim * size_of::<Line>();
    for from in (0..rows).step_by(TILE_ROWS) {
        let count = TILE_ROWS.min(rows - from);
        let x = Activations::Packed(&queries[from * dim..(from + count) * dim]);
        let mut panel = 0;
        while panel < KEY_PANELS {
            let together = tile_panels(count, KEY_PANELS - panel);
            let data = &bytes_of(keys)[panel * stride..];
            let w = Panels {
                data,
                kind: WeightKind::F32,
                stride,
                count: together,
            };
            let lines = &mut scores[panel * rows + from..];
            tile(
                call.set,
                x,
                count,
                w,
                dim,
                Sums {
                    lines,
                    stride: rows,
                    accumulate: false,
                },
            );
            panel += together;
        }
    }
}

/// Turns one row's scores into `exp(scale * score - largest)`, zero outside `seen`.
fn softmax(
    set: InstructionSet,
    scores: &mut Scores,
    scale: f32,
    seen: std::ops::Range<usize>,
    largest: f32,
) -> Step {
    match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { super::avx2::softmax(scores, scale, seen, largest) }
        }
        _ => super::scalar::softmax(scores, scale, seen, largest),
    }
}

/// Adds `probabilities · values` of the visible keys to the sums.
///
/// Rows see different keys at the edges of their context. A key that a row does not see must not
/// reach it even with probability zero, since its value may be infinite: so the rows of a tile are
/// those neighbours that see the same keys.
fn weigh(
    set: InstructionSet,
    rows: usize,
    visible: impl Fn(usize) -> std::ops::Range<usize>,
    probabilities: &[f32],
    values: &[Line],
    sums: &mut [Line],
) {
    let panels = values.len() / KEYS;
    let mut from = 0;
    while from < rows {
        let seen = visible(from);
        let same = (from + 1..rows.min(from + TILE_ROWS)).take_while(|&row| visible(row) == seen);
        let count = 1 + same.count();
        if !seen.is_empty() {
            let x = Activations::Rows(&probabilities[from * KEYS + seen.start..], KEYS);
            let mut panel = 0;
            while panel < panels {
                let together = tile_panels(count, panels - panel);
                let w = Panels {
                    data: bytes_of(&values[panel * KEYS + seen.start..]),
                    kind: WeightKind::F32,
                    stride: KEYS * size_of::<Line>(),
                    count: together,
                };
                let lines = &mut sums[panel * rows + from..];
                let sums = Sums {
                    lines,
                    stride: rows,
                    accumulate: true,
                };
                tile(set, x, count, w, seen.len(), sums);
                panel += together;
            }
        }
        from += count;
    }
}
