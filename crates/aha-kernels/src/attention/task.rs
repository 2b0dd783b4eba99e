//! One piece of attention: a stretch of queries of one sequence, for some key heads.

use std::ops::Range;

use super::call::{Bias, Call, Rows};
use crate::InstructionSet;
use crate::buffer::{Line, bytes_of, flat, flat_mut, prefetch, with_scratch};
use crate::matmul::{Activations, Panels, Sums, TILE_ROWS, tile, tile_panels};
use crate::pack::{PANEL, WeightKind};

/// Rows (queries times heads of a group) that a task holds at most, if a group is not larger; twice as many where all
/// queries see the same keys.
pub(super) const ROWS: usize = 96;

/// Key positions that the running softmax takes at once. Tiles start at its multiples. What a tile costs beside its
/// products (the largest score, the correction, sums that are loaded and stored) is paid once for so many keys.
pub(super) const KEYS: usize = 64;

/// Panels of a tile of keys.
pub(super) const KEY_PANELS: usize = KEYS / PANEL;

/// Probabilities of one row and one tile of keys.
pub(super) type Probabilities = [Line; KEY_PANELS];

/// Queries `start..end` of a sequence, for all heads that share some key heads.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) sequence: usize,
    pub(super) kv_heads: Range<usize>,
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

/// Keys that are interleaved at once.
pub(super) const LANES: usize = 8;

/// Where a tile of keys and values is loaded to.
struct Loaded<'a> {
    keys: &'a mut [Line],
    values: &'a mut [Line],
    /// `head_dim` zeros.
    zeros: &'a [f32],
}

/// What one key head of a task carries from tile to tile.
struct Head<'a> {
    kv_head: usize,
    queries: &'a mut [Line],
    running: &'a mut [Running],
    /// `[panel of dims][row]`.
    sums: &'a mut [Line],
}

impl Task {
    pub(super) fn run(&self, call: &Call<'_>) {
        let (dim, heads) = (call.head_dim, self.kv_heads.len());
        let rows = (self.end - self.start) * call.group;
        let dim_panels = dim.div_ceil(PANEL);
        let (keys, values) = (KEY_PANELS * dim, dim_panels * KEYS);
        let (queries, sums) = ((rows * dim).div_ceil(PANEL), dim_panels * rows);
        let scores = KEY_PANELS * rows;
        let lines = dim_panels + keys + values + 2 * scores + heads * (queries + sums);
        let start = Running {
            largest: f32::NEG_INFINITY,
            sum: 0.0,
        };
        let mut running = vec![start; heads * rows];
        with_scratch(lines, |scratch| {
            let (zeros, scratch) = scratch.split_at_mut(dim_panels);
            let (keys, scratch) = scratch.split_at_mut(keys);
            let (values, scratch) = scratch.split_at_mut(values);
            let (scores, scratch) = scratch.split_at_mut(scores);
            let (probabilities, scratch) = scratch.split_at_mut(scores.len());
            zeros.fill(Line::ZERO);
            let zeros = &flat(zeros)[..dim];
            let (all_queries, all_sums) = scratch.split_at_mut(heads * queries);
            let mut states: Vec<Head<'_>> = (self.kv_heads.clone())
                .zip(all_queries.chunks_exact_mut(queries))
                .zip(
                    all_sums
                        .chunks_exact_mut(sums)
                        .zip(running.chunks_exact_mut(rows)),
                )
                .map(|((kv_head, queries), (sums, running))| {
                    self.pack_queries(call, kv_head, flat_mut(queries));
                    sums.fill(Line::ZERO);
                    Head {
                        kv_head,
                        queries,
                        running,
                        sums,
                    }
                })
                .collect();
            let sequence = &call.sequences[self.sequence];
            let first = sequence.visible(self.start).start;
            let last = sequence.visible(self.end - 1).end;
            // Heads inside, tiles outside: the heads of a position are neighbours in the cache.
            for tile in (first / KEYS * KEYS..last).step_by(KEYS) {
                // Panels that no query of the task sees are neither loaded nor multiplied.
                let wanted = first.max(tile)..last.min(tile + KEYS);
                let panels = (wanted.start - tile) / PANEL..(wanted.end - tile).div_ceil(PANEL);
                let visible = |row: usize| {
                    let seen = sequence.visible(self.start + row / call.group);
                    let inside = |position: usize| position.clamp(tile, tile + KEYS) - tile;
                    inside(seen.start)..inside(seen.end)
                };
                for head in &mut states {
                    let loaded = Loaded {
                        keys,
                        values,
                        zeros,
                    };
                    let at = (tile, panels.clone());
                    self.load(call, head.kv_head, at, first..last, loaded);
                    score(call, rows, flat(head.queries), keys, panels.clone(), scores);
                    if let Some(bias) = &call.bias {
                        self.add_bias(call, bias, head.kv_head, tile, scores);
                    }
                    head.advance(call, visible, &panels, scores, probabilities);
                    weigh(
                        call.set,
                        rows,
                        visible,
                        flat(probabilities),
                        values,
                        head.sums,
                    );
                }
            }
            for head in &states {
                self.write(call, head);
            }
        });
    }

    /// Token and query head of row `row` of a key head.
    fn query(&self, call: &Call<'_>, kv_head: usize, row: usize) -> (usize, usize) {
        let sequence = &call.sequences[self.sequence];
        let token = sequence.query_start + self.start + row / call.group;
        (token, kv_head * call.group + row % call.group)
    }

    /// Lays the queries out as `[tile][dim][row of the tile]`.
    fn pack_queries(&self, call: &Call<'_>, kv_head: usize, target: &mut [f32]) {
        let (dim, rows) = (call.head_dim, (self.end - self.start) * call.group);
        for from in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - from);
            let target = &mut target[from * dim..(from + count) * dim];
            for row in 0..count {
                let (token, head) = self.query(call, kv_head, from + row);
                let source = &call.q.values[token * call.q.stride + head * dim..][..dim];
                for (&value, place) in source.iter().zip(target[row..].iter_mut().step_by(count)) {
                    *place = value;
                }
            }
        }
    }

    /// Loads the keys of some panels of the tile at position `tile` as `[dim][16 keys]` and their values as
    /// panels `[KEYS][16 dims]`. Places of positions outside `wanted` are zero.
    fn load(
        &self,
        call: &Call<'_>,
        kv_head: usize,
        (tile, panels): (usize, Range<usize>),
        wanted: Range<usize>,
        into: Loaded<'_>,
    ) {
        let sequence = &call.sequences[self.sequence];
        let dim = call.head_dim;
        let place = |position: usize| {
            let row = sequence.row(position);
            let part = |rows: Rows<'_>| row * rows.stride + kv_head * dim;
            let (key, value) = (part(call.k), part(call.v));
            (
                &call.k.values[key..key + dim],
                &call.v.values[value..value + dim],
            )
        };
        for first in (panels.start * PANEL..panels.end * PANEL).step_by(LANES) {
            let rows: [_; LANES] = std::array::from_fn(|lane| {
                let position = tile + first + lane;
                if position + KEYS < wanted.end {
                    // Rows of a cache lie too far apart for the processor to guess the next one.
                    let (key, value) = place(position + KEYS);
                    prefetch(key);
                    prefetch(value);
                }
                if wanted.contains(&position) {
                    place(position)
                } else {
                    (into.zeros, into.zeros)
                }
            });
            let target = &mut into.keys[first / PANEL * dim..][..dim];
            interleave(call.set, rows.map(|(key, _)| key), first % PANEL, target);
            for (lane, (_, value)) in rows.into_iter().enumerate() {
                let lines = into.values[first + lane..].iter_mut().step_by(KEYS);
                for (line, piece) in lines.zip(value.chunks(PANEL)) {
                    match <&[f32; PANEL]>::try_from(piece) {
                        Ok(whole) => line.0 = *whole,
                        Err(_) => {
                            *line = Line::ZERO;
                            line.0[..piece.len()].copy_from_slice(piece);
                        }
                    }
                }
            }
        }
    }

    /// Adds the addends to the scores `[panel][row]` of the tile at position `tile`.
    fn add_bias(
        &self,
        call: &Call<'_>,
        bias: &Bias<'_>,
        kv_head: usize,
        tile: usize,
        scores: &mut [Line],
    ) {
        let rows = scores.len() / KEY_PANELS;
        let end = (tile + KEYS).min(call.sequences[self.sequence].context_len);
        for row in 0..rows {
            let (token, head) = self.query(call, kv_head, row);
            let position = self.start + row / call.group;
            let mut addends = [0.0; KEYS];
            bias.addends((token, head, position), (tile, end), &mut addends);
            for (line, addends) in scores[row..]
                .iter_mut()
                .step_by(rows)
                .zip(addends.chunks_exact(PANEL))
            {
                for (score, addend) in line.0.iter_mut().zip(addends) {
                    *score += addend;
                }
            }
        }
    }

    fn write(&self, call: &Call<'_>, head: &Head<'_>) {
        let (dim, rows) = (call.head_dim, head.running.len());
        for (row, running) in head.running.iter().enumerate() {
            let (token, query_head) = self.query(call, head.kv_head, row);
            let start = (token * call.num_heads + query_head) * dim;
            // SAFETY: each row and head belongs to one task, and rows to one sequence (checked).
            let out = unsafe { call.out.piece(start, dim) };
            for (panel, piece) in out.chunks_mut(PANEL).enumerate() {
                for (value, sum) in piece.iter_mut().zip(head.sums[panel * rows + row].0) {
                    *value = sum / running.sum;
                }
            }
        }
    }
}

impl Head<'_> {
    /// The softmax over one more tile: scores `[panel][row]` to probabilities `[row][key]`.
    fn advance(
        &mut self,
        call: &Call<'_>,
        visible: impl Fn(usize) -> Range<usize>,
        panels: &Range<usize>,
        scores: &[Line],
        probabilities: &mut [Line],
    ) {
        let rows = self.running.len();
        let (probabilities, _) = probabilities.as_chunks_mut::<KEY_PANELS>();
        for ((row, running), target) in self.running.iter_mut().enumerate().zip(probabilities) {
            let seen = visible(row);
            if seen.is_empty() {
                continue;
            }
            let scores: [&Line; KEY_PANELS] =
                std::array::from_fn(|panel| &scores[panel * rows + row]);
            let tile = Tile {
                scores,
                panels: panels.clone(),
                seen,
            };
            let step = softmax(call.set, tile, call.scale, running.largest, target);
            if step.correction != 1.0 {
                for line in self.sums.iter_mut().skip(row).step_by(rows) {
                    line.0.iter_mut().for_each(|sum| *sum *= step.correction);
                }
            }
            running.sum = running.sum * step.correction + step.sum;
            running.largest = step.largest;
        }
    }
}

/// `scores[panel][row] = query · key`, for some panels of one tile of keys.
fn score(
    call: &Call<'_>,
    rows: usize,
    queries: &[f32],
    keys: &[Line],
    panels: Range<usize>,
    scores: &mut [Line],
) {
    let dim = call.head_dim;
    let stride = dim * size_of::<Line>();
    for from in (0..rows).step_by(TILE_ROWS) {
        let count = TILE_ROWS.min(rows - from);
        let x = Activations::Packed(&queries[from * dim..(from + count) * dim]);
        let mut panel = panels.start;
        while panel < panels.end {
            let together = tile_panels(count, panels.end - panel);
            let data = &bytes_of(keys)[panel * stride..];
            let w = Panels {
                data,
                kind: WeightKind::F32,
                stride,
                count: together,
                ahead: &[],
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

/// Writes eight rows of `dim` values as lanes `first_lane..first_lane + 8` of `dim` lines.
fn interleave(set: InstructionSet, rows: [&[f32]; LANES], first_lane: usize, lines: &mut [Line]) {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { super::avx2::interleave(rows, first_lane, lines) }
        }
        _ => super::scalar::interleave(rows, first_lane, lines),
    }
}

/// One row's scores for a tile of keys.
pub(super) struct Tile<'a> {
    pub(super) scores: [&'a Line; KEY_PANELS],
    /// The panels that were computed; others hold anything.
    pub(super) panels: Range<usize>,
    /// The keys that the row sees, inside these panels.
    pub(super) seen: Range<usize>,
}

/// Writes `exp(scale * score - largest)` for the keys of the computed panels, zero outside those that are seen.
fn softmax(
    set: InstructionSet,
    tile: Tile<'_>,
    scale: f32,
    largest: f32,
    out: &mut Probabilities,
) -> Step {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { super::avx2::softmax(tile, scale, largest, out) }
        }
        _ => super::scalar::softmax(tile, scale, largest, out),
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
    visible: impl Fn(usize) -> Range<usize>,
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
                    ahead: &[],
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
