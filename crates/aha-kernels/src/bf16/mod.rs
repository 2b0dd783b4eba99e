//! Products with `bf16` weights by dot products of `bf16`: AVX-512's, or the tiles of AMX.
//!
//! The activations are rounded to `bf16`, as accelerators and reference implementations have them in a
//! `bf16` model; sums are `f32`. An output value is one lane of one accumulator, which takes the columns
//! in ascending order, two at a time.

#[cfg(target_os = "linux")]
pub(crate) mod amx;
mod avx512;

use std::ops::Range;

use crate::InstructionSet;
use crate::buffer::{Line, flat_mut, with_scratch};
use crate::matmul::{Job, PARALLEL_FROM, cut, for_each_job_piece, tasks};
use crate::pool::{for_each_piece, for_each_task, threads};

/// Rows of `x` in a tile at most.
const TILE_ROWS: usize = 12;

/// Panels of a group: so many meet one tile of rows after another.
const TILE_PANELS: usize = 4;

/// Sums of a tile at most: they fill 24 of 32 registers.
const TILE_SUMS: usize = 24;

/// Into how many tiles `m` rows are cut. Tiles of twelve rows and two panels read the panels least often;
/// those of six rows and four panels read less in all, which counts once the rows fill the caches.
fn tiles_of(m: usize) -> usize {
    m.div_ceil(if m <= 128 { TILE_ROWS } else { TILE_ROWS / 2 })
}

/// A tile's operands.
struct Tile<'a> {
    /// Activations `[pair of columns][row]`, two in a word.
    x: &'a [u32],
    rows: usize,
    pairs: usize,
    /// The panels, one after another without gaps.
    panels: &'a [u8],
    /// One, two or four.
    count: usize,
    /// Whether the panels come from memory rather than from a cache.
    streams: bool,
    /// `[panel][row]`.
    sums: &'a mut [Line],
}

impl Tile<'_> {
    fn multiply(self) {
        // The kernel indexes without further checks.
        assert!((1..=TILE_ROWS).contains(&self.rows) && matches!(self.count, 1 | 2 | 4));
        assert!(self.rows * self.count <= TILE_SUMS);
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
    #[cfg(target_os = "linux")]
    if set == InstructionSet::Amx && amx::takes(cols) {
        return amx::matmul(jobs, x, m);
    }
    let _ = set;
    let pairs = cols.div_ceil(2);
    let tiles = tiles_of(m);
    with_scratch((m * pairs).div_ceil(16), |scratch| {
        let words = &mut flat_mut(scratch)[..m * pairs];
        round(cols, x, m, words);
        // SAFETY: `u32` has the size and alignment of `f32`, and both take every bit pattern.
        let x: &[u32] = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) };
        if tiles == 1 {
            narrow(jobs, x, m);
        } else {
            jobs.iter().for_each(|job| wide(job, x, m));
        }
    });
}

/// Multiply-adds.
fn work(jobs: &[Job<'_>], m: usize) -> usize {
    let rows: usize = jobs.iter().map(|job| job.w.rows()).sum();
    m.saturating_mul(rows).saturating_mul(jobs[0].w.cols())
}

/// A single tile of rows: the weights stream through once, a group of panels at a time.
fn narrow(jobs: &[Job<'_>], x: &[u32], m: usize) {
    let groups = |job: &Job<'_>| job.w.panels().div_ceil(TILE_PANELS);
    let groups: Vec<_> = jobs.iter().map(groups).collect();
    let tasks = tasks(groups.iter().sum(), work(jobs, m));
    for_each_job_piece(&groups, tasks, |job, group| {
        multiply_group(&jobs[job], group, x, 0..m, true);
    });
}

/// Many rows: a group of panels stays in the second-level cache while the rows pass.
fn wide(job: &Job<'_>, x: &[u32], m: usize) {
    let (w, tiles) = (job.w, tiles_of(m));
    let pairs = w.cols().div_ceil(2);
    let groups = w.panels().div_ceil(TILE_PANELS);
    // Rows are cut, too, where panels alone do not keep the threads busy.
    let blocks = (4 * threads()).div_ceil(groups.max(1)).min(tiles);
    let task = |task: usize| {
        let (group, block) = (task / blocks, task % blocks);
        let own = cut(tiles, blocks, block)..cut(tiles, blocks, block + 1);
        for tile in own.clone() {
            let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
            // The first rows bring the panels from memory.
            let streams = tile == own.start;
            multiply_group(job, group, &x[rows.start * pairs..], rows, streams);
        }
    };
    if m.saturating_mul(w.rows()).saturating_mul(w.cols()) < PARALLEL_FROM {
        (0..groups * blocks).for_each(task);
    } else {
        for_each_task(groups * blocks, task);
    }
}

/// The panels of a group with a tile of rows.
fn multiply_group(job: &Job<'_>, group: usize, x: &[u32], rows: Range<usize>, streams: bool) {
    let pairs = job.w.cols().div_ceil(2);
    let end = job.w.panels().min((group + 1) * TILE_PANELS);
    let mut first = group * TILE_PANELS;
    while first < end {
        let count = match (end - first).min(TILE_SUMS / rows.len()) {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let mut sums = [Line::ZERO; TILE_SUMS];
        Tile {
            x,
            rows: rows.len(),
            pairs,
            panels: job.w.panel_range(first, count),
            count,
            streams,
            sums: &mut sums,
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

/// Rounds rows to `bf16` and lays them out as `[tile][pair of columns][row of the tile]`, two in the
/// bits of an `f32`.
fn round(cols: usize, x: &[f32], m: usize, words: &mut [f32]) {
    if cols == 0 {
        return;
    }
    let (pairs, tiles) = (cols.div_ceil(2), tiles_of(m));
    let round_tile = |tile: usize, words: &mut [f32]| {
        let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
        let x = &x[rows.start * cols..rows.end * cols];
        // SAFETY: the instruction set was checked by the caller of `matmul`.
        unsafe { avx512::round(cols, x, rows.len(), words) }
    };
    let starts: Vec<_> = (0..=tiles)
        .map(|tile| cut(m, tiles, tile) * pairs)
        .collect();
    for_each_piece(words, &starts, m * cols >= PARALLEL_FROM, round_tile);
}
