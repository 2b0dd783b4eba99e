//! Products with `bf16` weights by dot products of `bf16`: AVX-512's, or the tiles of AMX.
//!
//! The activations are rounded to `bf16`, as accelerators and reference implementations have them in a
//! `bf16` model; sums are `f32`. An output value is one lane of one accumulator, which takes the columns
//! in ascending order, two at a time.

#[cfg(target_os = "linux")]
pub(crate) mod amx;
mod avx512;
pub(crate) mod rows;

use std::ops::Range;

use smallvec::SmallVec;

use crate::InstructionSet;
use crate::buffer::{Line, bytes_of, bytes_of_mut, flat_mut, prefetch, with_scratch};
use crate::matmul::{Job, MATRICES, PARALLEL_FROM, announce, cut, for_each_job_stretch, tasks};
use crate::pack::View;
use crate::pool::{TASKS, for_each_stretch, threads};

/// Rows of `x` and panels of a tile: their sums fill 24 of 32 registers.
const TILE_ROWS: usize = 6;
const TILE_PANELS: usize = 4;

/// Bytes of a group of panels up to which the next one has room beside it in a second-level cache.
const FETCHED_BYTES: usize = 400 << 10;

/// Bytes that are asked for ahead of use, a panel, where panels come from memory as they are used.
const PREFETCH: usize = 2048;

/// Rows that are rounded in one go.
const ROUNDED_ROWS: usize = 16;

/// What is fetched into a cache while a tile is multiplied.
#[derive(Clone, Copy)]
enum Ahead {
    Nothing,
    /// The tile's own panels, which come from memory as they are used.
    Own,
    /// So many panels from an address on.
    Next(*const u8, usize),
}

/// A tile's operands.
struct Tile<'a> {
    /// Activations `[row][pair of columns]`, two in a word.
    x: &'a [u32],
    rows: usize,
    pairs: usize,
    /// The panels, one after another without gaps.
    panels: &'a [u8],
    /// One, two or four.
    count: usize,
    /// Where as much as `fetched` panels is asked for meanwhile; none, as many as `count`, or fewer.
    ahead: *const u8,
    fetched: usize,
    /// `[panel][row]`.
    sums: &'a mut [Line],
}

impl Tile<'_> {
    fn multiply(self) {
        // The kernel indexes without further checks.
        assert!((1..=TILE_ROWS).contains(&self.rows) && matches!(self.count, 1 | 2 | 4));
        assert!(self.x.len() >= self.rows * self.pairs);
        assert!(self.panels.len() >= self.count * self.pairs * size_of::<Line>());
        assert!(self.sums.len() >= self.count * self.rows);
        // SAFETY: lengths were checked above, the instruction set by the caller of `matmul`.
        unsafe { avx512::multiply(self) }
    }
}

/// The products; shapes were checked by the caller, all matrices are `Bf16`, and `set` is `Avx512` or
/// `Amx`, which the processor has.
pub(crate) fn matmul(set: InstructionSet, jobs: &[Job<'_>], x: &[f32], m: usize) {
    let cols = jobs[0].w.cols();
    let pairs = cols.div_ceil(2);
    with_scratch((m * pairs).div_ceil(16), |scratch| {
        let words = &mut flat_mut(scratch)[..m * pairs];
        for_each_stretch(
            words,
            PARALLEL_FROM / 2,
            ROUNDED_ROWS * pairs,
            |start, words| {
                let x = &x[start / pairs * cols..][..words.len() / pairs * cols];
                // SAFETY: the instruction set was checked by the caller.
                unsafe { avx512::round(cols, x, words) }
            },
        );
        // SAFETY: `u32` has the size and alignment of `f32`, and both take every bit pattern.
        let x: &[u32] = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) };
        announce(m, jobs.iter().map(|job| job.w));
        #[cfg(target_os = "linux")]
        if set == InstructionSet::Amx && amx::takes(cols) {
            return amx::multiply(jobs, x, m);
        }
        let _ = set;
        multiply(jobs, x, m);
    });
}

/// Multiply-adds.
fn work(jobs: &[Job<'_>], m: usize) -> usize {
    let rows: usize = jobs.iter().map(|job| job.w.rows()).sum();
    m.saturating_mul(rows).saturating_mul(jobs[0].w.cols())
}

/// Group after group of panels meets the rows tile by tile. A group stays in the second-level cache meanwhile, and
/// the next one comes from memory.
fn multiply(jobs: &[Job<'_>], x: &[u32], m: usize) {
    let tiles = m.div_ceil(TILE_ROWS);
    let groups = |job: &Job<'_>| job.w.panels().div_ceil(TILE_PANELS);
    let all: usize = jobs.iter().map(groups).sum();
    // Rows are cut, too, where panels alone do not keep the threads busy.
    let blocks = (TASKS * threads()).div_ceil(all.max(1)).min(tiles);
    let counts: SmallVec<[_; MATRICES]> = jobs.iter().map(|job| groups(job) * blocks).collect();
    let tasks = match work(jobs, m) {
        work if tiles == 1 => tasks(all, work),
        ..PARALLEL_FROM => 1,
        // Long enough to fetch ahead in, short enough that no thread waits long for the last one.
        _ => (2 * TASKS * threads()).min(all * blocks),
    };
    let views: SmallVec<[_; MATRICES]> = jobs.iter().map(|job| job.w.view()).collect();
    for_each_job_stretch(&counts, tasks, |job, pieces| {
        let (job, view) = (&jobs[job], views[job]);
        if view.is_rows() && m <= rows::TILE_ROWS {
            let group = |piece: usize| piece / blocks;
            // Few rows are one tile here: the first block has all of them.
            let mut own = pieces
                .filter(|piece| piece % blocks == 0)
                .map(group)
                .peekable();
            if let Some(&first) = own.peek() {
                // Each panel is asked for during the one before it; this one has none.
                prefetch(panel_range(
                    job,
                    view,
                    first * TILE_PANELS..first * TILE_PANELS + 1,
                ));
            }
            return own.for_each(|group| multiply_rows(job, view, group, x, m));
        }
        let fetches =
            tiles > 1 && blocks == 1 && TILE_PANELS * job.w.panel_bytes() <= FETCHED_BYTES;
        // Each of the first tiles fetches a share of the next group.
        let share = TILE_PANELS.div_ceil(tiles);
        let mut sums = [Line::ZERO; TILE_ROWS * TILE_PANELS];
        for piece in pieces.clone() {
            let (group, block) = (piece / blocks, piece % blocks);
            let own = cut(tiles, blocks, block)..cut(tiles, blocks, block + 1);
            let is_fetched = view.is_rows() || fetches && piece > pieces.start;
            let mut next = match fetches && piece + 1 < pieces.end {
                true => panels_of(job, group + 1),
                false => 0..0,
            }
            .step_by(share);
            with_panels(job, view, panels_of(job, group), |panels| {
                for tile in own.clone() {
                    let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
                    let ahead = if tile == own.start && !is_fetched {
                        Ahead::Own
                    } else {
                        next.next().map_or(Ahead::Nothing, |panel| {
                            Ahead::Next(panel_range(job, view, panel..panel + 1).as_ptr(), share)
                        })
                    };
                    multiply_group(job, group, panels, x, rows, ahead, &mut sums);
                }
            });
        }
    });
}

/// The panels of a group.
fn panels_of(job: &Job<'_>, group: usize) -> Range<usize> {
    group * TILE_PANELS..job.w.panels().min((group + 1) * TILE_PANELS)
}

/// The bytes of some panels, or of the rows that they are of.
fn panel_range<'a>(job: &Job<'_>, view: View<'a>, panels: Range<usize>) -> &'a [u8] {
    let bytes = job.w.panel_bytes();
    &view.bytes()[panels.start * bytes..panels.end * bytes]
}

/// Calls `work` with some panels: as they are kept, or packed for the occasion.
fn with_panels(job: &Job<'_>, view: View<'_>, panels: Range<usize>, work: impl FnOnce(&[u8])) {
    let bytes = panel_range(job, view, panels);
    if !view.is_rows() {
        return work(bytes);
    }
    let pairs = job.w.cols() / 2;
    with_scratch(bytes.len() / size_of::<Line>(), |lines| {
        let rows = bytes.chunks_exact(job.w.panel_bytes());
        for (rows, panel) in rows.zip(lines.chunks_exact_mut(pairs)) {
            // SAFETY: the instruction set was checked by the caller of `matmul`.
            unsafe { rows::pack(rows, pairs, bytes_of_mut(panel)) }
        }
        work(bytes_of(lines));
    });
}

/// The panels of a group in rows with all `m` rows of `x`.
fn multiply_rows(job: &Job<'_>, view: View<'_>, group: usize, x: &[u32], m: usize) {
    let mut sums = [Line::ZERO; rows::TILE_ROWS];
    for panel in panels_of(job, group) {
        let own = panel_range(job, view, panel..panel + 1);
        let tile = rows::Tile {
            x,
            rows: m,
            pairs: job.w.cols() / 2,
            panel: own,
            ahead: own.as_ptr_range().end,
            sums: &mut sums,
        };
        // SAFETY: the instruction set was checked by the caller of `matmul`.
        unsafe { tile.multiply() }
        for (row, line) in sums[..m].iter().enumerate() {
            // SAFETY: this panel is this task's own.
            unsafe { job.out.write(row, panel, line) }
        }
    }
}

/// The panels of a group with a tile of rows.
fn multiply_group(
    job: &Job<'_>,
    group: usize,
    panels: &[u8],
    x: &[u32],
    rows: Range<usize>,
    ahead: Ahead,
    sums: &mut [Line],
) {
    let pairs = job.w.cols().div_ceil(2);
    let own = panels_of(job, group);
    let mut first = own.start;
    while first < own.end {
        let count = match own.end - first {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let panels = &panels[(first - own.start) * job.w.panel_bytes()..];
        let (ahead, fetched) = match ahead {
            Ahead::Own => (panels.as_ptr().wrapping_add(PREFETCH), count),
            Ahead::Next(panel, share) if count == TILE_PANELS => (panel, share),
            _ => (panels.as_ptr(), 0),
        };
        Tile {
            x: &x[rows.start * pairs..rows.end * pairs],
            rows: rows.len(),
            pairs,
            panels,
            count,
            ahead,
            fetched,
            sums,
        }
        .multiply();
        for (index, line) in sums[..count * rows.len()].iter().enumerate() {
            let (panel, row) = (first + index / rows.len(), index % rows.len());
            // SAFETY: these panels of these rows are this task's own.
            unsafe { job.out.write(rows.start + row, panel, line) }
        }
        first += count;
    }
}
