//! One piece of attention: a stretch of queries of one sequence, for some key heads.

use std::cell::Cell;
use std::ops::Range;

use smallvec::SmallVec;

use super::call::{Bias, Call, Places};
use super::source::{Room, Source, Wanted};
use super::stretch::{Partials, Running, STRETCH};
use crate::InstructionSet;
use crate::buffer::{Line, flat, flat_mut, with_scratch};
use crate::matmul::{Activations, Sums, TILE_ROWS, tile, tile_panels};
use crate::pack::PANEL;

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
    /// Row of the call that holds its first query.
    pub(super) first_row: usize,
    pub(super) kv_heads: Range<usize>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// The part of the context that it takes; all of it where there is none.
    pub(super) part: Option<Part>,
}

/// Some stretches of a context that tasks share.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) stretches: Range<usize>,
    /// The place of the first one among the stretches of all shared contexts.
    pub(super) first: usize,
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

/// Key heads of a task that need no memory of their own.
const HEADS: usize = 16;

/// Keys that are interleaved at once.
pub(super) const LANES: usize = 8;

/// What one key head of a task carries from tile to tile.
struct Head<'a> {
    kv_head: usize,
    queries: &'a mut [Line],
    /// Of the stretch at work.
    running: &'a mut [Running],
    /// Of the stretch at work, `[panel of dims][row]`.
    sums: &'a mut [Line],
    /// The same of the stretches before; nothing where there is but one.
    totals: &'a mut [Running],
    total_sums: &'a mut [Line],
    /// Of the tile at work, `[panel][row]`.
    scores: &'a mut [Line],
    /// Of the tile at work, `[row][key]`.
    probabilities: &'a mut [Line],
}

thread_local! {
    /// Memory for the softmaxes of a task, kept for the thread's next one.
    static RUNNING: Cell<Vec<Running>> = const { Cell::new(Vec::new()) };
}

impl Task {
    pub(super) fn run(&self, call: &Call<'_>, partials: Partials) {
        let positions = match &self.part {
            Some(part) => part.stretches.start * STRETCH..part.stretches.end * STRETCH,
            None => 0..usize::MAX,
        };
        if let Some((appending, token)) = call.new
            && positions.contains(&token.position)
        {
            // SAFETY: there is no other token, and this task alone reads this position of these heads.
            unsafe { appending.place_all(call.set, &[token], self.kv_heads.clone()) }
        }
        let (dim, heads) = (call.head_dim, self.kv_heads.len());
        let rows = (self.end - self.start) * call.group;
        let dim_panels = dim.div_ceil(PANEL);
        let sequence = &(call.sequence)(self.sequence);
        let in_place = sequence.read_in_place(call.set, rows);
        let (keys, values) = match in_place {
            Some(_) => (0, 0),
            None => (KEY_PANELS * dim, dim_panels * KEYS),
        };
        let (queries, sums) = ((rows * dim).div_ceil(PANEL), dim_panels * rows);
        let first = sequence.visible(self.start).start.max(positions.start);
        let last = sequence.visible(self.end - 1).end.min(positions.end);
        let is_cached = matches!(sequence.places, Places::Blocks { .. });
        let joins = is_cached && self.part.is_none() && first / STRETCH < (last - 1) / STRETCH;
        let scores = KEY_PANELS * rows;
        let totals = if joins { rows } else { 0 };
        let own = queries + sums + dim_panels * totals + 2 * scores;
        let lines = 2 * dim_panels + keys + values + heads * own;
        let mut running = RUNNING.take();
        running.clear();
        running.resize(heads * (rows + totals), Running::NOTHING);
        with_scratch(lines, |scratch| {
            let (zeros, scratch) = scratch.split_at_mut(dim_panels);
            let (turned, scratch) = scratch.split_at_mut(dim_panels);
            let turned = &mut flat_mut(turned)[..dim];
            let (keys, scratch) = scratch.split_at_mut(keys);
            let (values, scratch) = scratch.split_at_mut(values);
            zeros.fill(Line::ZERO);
            let mut room = Room {
                keys,
                values,
                zeros: &flat(zeros)[..dim],
            };
            let mut states: SmallVec<[Head<'_>; HEADS]> = (self.kv_heads.clone())
                .zip(scratch.chunks_exact_mut(own))
                .zip(running.chunks_exact_mut(rows + totals))
                .map(|((kv_head, own), running)| {
                    let (queries, own) = own.split_at_mut(queries);
                    let (sums, own) = own.split_at_mut(sums);
                    let (total_sums, own) = own.split_at_mut(dim_panels * totals);
                    let (running, totals) = running.split_at_mut(rows);
                    let (scores, probabilities) = own.split_at_mut(scores);
                    self.pack_queries(call, kv_head, turned, flat_mut(queries));
                    sums.fill(Line::ZERO);
                    total_sums.fill(Line::ZERO);
                    Head {
                        kv_head,
                        queries,
                        running,
                        sums,
                        totals,
                        total_sums,
                        scores,
                        probabilities,
                    }
                })
                .collect();
            // Heads inside, tiles outside: the heads of a position are neighbours in the cache.
            for tile in (first / KEYS * KEYS..last).step_by(KEYS) {
                if is_cached && tile > first && tile.is_multiple_of(STRETCH) {
                    self.end_stretch(call, partials, tile / STRETCH - 1, &mut states);
                }
                // Panels that no query of the task sees are neither loaded nor multiplied.
                let wanted = first.max(tile)..last.min(tile + KEYS);
                let panels = (wanted.start - tile) / PANEL..(wanted.end - tile).div_ceil(PANEL);
                let visible = |row: usize| {
                    let seen = sequence.visible(self.start + row / call.group);
                    let inside = |position: usize| position.clamp(tile, tile + KEYS) - tile;
                    inside(seen.start)..inside(seen.end)
                };
                let wanted = Wanted {
                    tile,
                    panels,
                    positions: first..last,
                };
                // In a cache heads lie beside each other, page after page: all walk through a page together, as
                // memory likes it.
                let (together, step) = match in_place {
                    Some(_) => (heads, 1),
                    None => (1, KEY_PANELS),
                };
                for heads in states.chunks_mut(together) {
                    let source = match in_place {
                        Some(cache) => Source::Cached {
                            cache,
                            pages: sequence.pages(&wanted),
                        },
                        None => {
                            room.load(call, sequence, heads[0].kv_head, &wanted);
                            room.source()
                        }
                    };
                    for panel in wanted.panels.clone().step_by(step) {
                        let panels = panel..wanted.panels.end.min(panel + step);
                        for head in &mut *heads {
                            head.score(call, source, panels.clone());
                        }
                    }
                    for head in &mut *heads {
                        if let Some(bias) = &call.bias {
                            self.add_bias(call, bias, head.kv_head, tile, head.scores);
                        }
                        head.advance(call, visible, &wanted.panels);
                    }
                    for panel in wanted.panels.clone().step_by(step) {
                        let keys = panel * PANEL..(panel + step) * PANEL;
                        for head in &mut *heads {
                            head.weigh(call.set, visible, source, keys.clone());
                        }
                    }
                }
            }
            self.end_stretch(
                call,
                partials,
                last.saturating_sub(1) / STRETCH,
                &mut states,
            );
            if self.part.is_none() {
                for head in &states {
                    self.write(call, head);
                }
            }
        });
        RUNNING.set(running);
    }

    /// Puts what the heads have of a stretch with what they had before, or where the tasks that share it meet.
    fn end_stretch(
        &self,
        call: &Call<'_>,
        partials: Partials,
        stretch: usize,
        heads: &mut [Head<'_>],
    ) {
        for head in heads {
            let Some(part) = &self.part else {
                head.join();
                continue;
            };
            let rows = head.running.len();
            let place = part.first + stretch - part.stretches.start;
            for (row, &running) in head.running.iter().enumerate() {
                let (_, query_head) = self.query(call, head.kv_head, row);
                let panels = head.sums[row..].iter().step_by(rows).map(|line| &line.0);
                // SAFETY: each stretch and head belongs to one task.
                unsafe { partials.put(place, query_head, running, panels) }
            }
            head.clear();
        }
    }

    /// Token and query head of row `row` of a key head.
    fn query(&self, call: &Call<'_>, kv_head: usize, row: usize) -> (usize, usize) {
        (
            self.first_row + row / call.group,
            kv_head * call.group + row % call.group,
        )
    }

    /// Lays the queries out as `[tile][dim][row of the tile]`; `turned` has room for one.
    fn pack_queries(
        &self,
        call: &Call<'_>,
        kv_head: usize,
        turned: &mut [f32],
        target: &mut [f32],
    ) {
        let (dim, rows) = (call.head_dim, (self.end - self.start) * call.group);
        for from in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - from);
            let target = &mut target[from * dim..(from + count) * dim];
            for row in 0..count {
                let (token, head) = self.query(call, kv_head, from + row);
                let mut source = &call.q.values[token * call.q.stride + head * dim..][..dim];
                if let Some(rotation) = call.rotation {
                    rotation.turn(call.set, token, source, turned);
                    source = turned;
                }
                for (&value, place) in source.iter().zip(target[row..].iter_mut().step_by(count)) {
                    *place = value;
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
        let end = (tile + KEYS).min((call.sequence)(self.sequence).context_len);
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
        let (running, sums) = match head.totals {
            [] => (&*head.running, &*head.sums),
            _ => (&*head.totals, &*head.total_sums),
        };
        for (row, running) in running.iter().enumerate() {
            let (token, query_head) = self.query(call, head.kv_head, row);
            let start = (token * call.num_heads + query_head) * dim;
            // SAFETY: each row and head belongs to one task, and rows to one sequence (checked).
            let out = unsafe { call.out.piece(start, dim) };
            let share = 1.0 / running.sum;
            for (panel, piece) in out.chunks_mut(PANEL).enumerate() {
                for (value, sum) in piece.iter_mut().zip(sums[panel * rows + row].0) {
                    *value = sum * share;
                }
            }
        }
    }
}

impl Head<'_> {
    /// Begins a stretch.
    fn clear(&mut self) {
        self.running.fill(Running::NOTHING);
        self.sums.fill(Line::ZERO);
    }

    /// Puts the stretch at work behind those before, where there are more than one.
    fn join(&mut self) {
        if self.totals.is_empty() {
            return;
        }
        let rows = self.running.len();
        for (row, (total, &next)) in self.totals.iter_mut().zip(&*self.running).enumerate() {
            let join = total.join(next);
            let totals = self.total_sums[row..].iter_mut().step_by(rows);
            for (total, sums) in totals.zip(self.sums[row..].iter().step_by(rows)) {
                join.apply(&mut total.0, &sums.0);
            }
        }
        self.clear();
    }

    /// `scores[panel][row] = query · key`, for some panels of the tile.
    fn score(&mut self, call: &Call<'_>, source: Source<'_>, panels: Range<usize>) {
        let (dim, rows) = (call.head_dim, self.running.len());
        for from in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - from);
            let x = Activations::Packed(&flat(self.queries)[from * dim..(from + count) * dim]);
            let mut panel = panels.start;
            while panel < panels.end {
                let w = source.keys(call.set, (self.kv_head, dim), count, panel..panels.end);
                let together = w.count;
                let sums = Sums {
                    lines: &mut self.scores[panel * rows + from..],
                    stride: rows,
                    accumulate: false,
                };
                tile(call.set, x, count, w, dim, sums);
                panel += together;
            }
        }
    }

    /// The softmax over one more tile: scores `[panel][row]` to probabilities `[row][key]`.
    fn advance(
        &mut self,
        call: &Call<'_>,
        visible: impl Fn(usize) -> Range<usize>,
        panels: &Range<usize>,
    ) {
        let rows = self.running.len();
        let (probabilities, _) = self.probabilities.as_chunks_mut::<KEY_PANELS>();
        for ((row, running), target) in self.running.iter_mut().enumerate().zip(probabilities) {
            let seen = visible(row);
            if seen.is_empty() {
                continue;
            }
            let scores: [&Line; KEY_PANELS] =
                std::array::from_fn(|panel| &self.scores[panel * rows + row]);
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

    /// Adds `probabilities · values` of those of the tile's `keys` that are visible to the sums.
    ///
    /// Rows see different keys at the edges of their context. A key that a row does not see must not
    /// reach it even with probability zero, since its value may be infinite: so the rows of a tile are
    /// those neighbours that see the same keys.
    fn weigh(
        &mut self,
        set: InstructionSet,
        visible: impl Fn(usize) -> Range<usize>,
        source: Source<'_>,
        keys: Range<usize>,
    ) {
        let rows = self.running.len();
        let panels = self.sums.len() / rows;
        let probabilities = flat(self.probabilities);
        let visible = |row: usize| {
            let seen = visible(row);
            seen.start.max(keys.start)..seen.end.min(keys.end)
        };
        let mut from = 0;
        while from < rows {
            let seen = visible(from);
            let same =
                (from + 1..rows.min(from + TILE_ROWS)).take_while(|&row| visible(row) == seen);
            let count = 1 + same.count();
            if !seen.is_empty() {
                let x = Activations::Rows(&probabilities[from * KEYS + seen.start..], KEYS);
                let mut panel = 0;
                while panel < panels {
                    let together = tile_panels(set, count, panels - panel);
                    let w = source.values(self.kv_head, seen.start, panel, together);
                    let sums = Sums {
                        lines: &mut self.sums[panel * rows + from..],
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
}

/// Writes eight rows of `dim` values as lanes `first_lane..first_lane + 8` of `dim` lines.
pub(super) fn interleave(
    set: InstructionSet,
    rows: [&[f32]; LANES],
    first_lane: usize,
    lines: &mut [Line],
) {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { super::avx2::interleave(rows, first_lane, lines) }
        }
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { super::neon::interleave(rows, first_lane, lines) }
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
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { super::neon::softmax(tile, scale, largest, out) }
        }
        _ => super::scalar::softmax(tile, scale, largest, out),
    }
}
