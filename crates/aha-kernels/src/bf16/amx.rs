//! The tiles of AMX: sixteen rows of activations meet sixteen rows of weights, 32 columns at a time.
//!
//! A panel is a column of tiles as it is: sixteen pairs of columns are sixteen lines of sixteen pairs.
//! All products of such weights run on tiles, also those of a single row, for their sums are rounded in
//! an order of their own: 32 columns after 32 columns, the even ones and the odd ones apart.

use std::arch::asm;
use std::ops::Range;

use super::work;
use crate::buffer::{Line, flat_mut, with_scratch};
use crate::matmul::{Job, PARALLEL_FROM, for_each_job_piece, tasks};
use crate::pool::for_each_stretch;

/// Rows of a tile, and lines of sixteen pairs.
const TILE: usize = 16;

/// Columns that a tile takes.
const DEPTH: usize = 2 * TILE;

/// Rows and panels that are multiplied at once, in tiles of sums: two by two, or one by four.
const MOST_ROWS: usize = 2 * TILE;
const PANELS: [usize; 2] = [2, 4];

/// Panels of a task's stretch of work.
const GROUP: usize = 4;

/// Whether tiles can multiply rows of `cols` columns: whole ones only, since a panel has no room behind it.
pub(super) fn takes(cols: usize) -> bool {
    cols > 0 && cols.is_multiple_of(DEPTH)
}

/// See [`super::matmul`].
pub(super) fn matmul(jobs: &[Job<'_>], x: &[f32], m: usize) {
    let cols = jobs[0].w.cols();
    let pairs = cols / 2;
    with_scratch((m * pairs).div_ceil(16), |scratch| {
        let words = &mut flat_mut(scratch)[..m * pairs];
        for_each_stretch(words, PARALLEL_FROM / 2, TILE * pairs, |start, words| {
            let x = &x[2 * start..][..2 * words.len()];
            for (x, words) in x.chunks_exact(cols).zip(words.chunks_exact_mut(pairs)) {
                // SAFETY: the instruction set includes AVX-512 with BF16.
                unsafe { super::avx512::round(cols, x, 1, words) }
            }
        });
        let x = &*words;
        let groups = |job: &Job<'_>| job.w.panels().div_ceil(GROUP);
        let groups: Vec<_> = jobs.iter().map(groups).collect();
        let all = groups.iter().sum();
        let count = if m <= MOST_ROWS {
            tasks(all, work(jobs, m))
        } else {
            all
        };
        for_each_job_piece(&groups, count, |job, group| {
            let panels = group * GROUP..jobs[job].w.panels().min((group + 1) * GROUP);
            multiply(&jobs[job], panels, x, m);
        });
    });
}

/// All rows with some panels, which stay in the second-level cache meanwhile.
fn multiply(job: &Job<'_>, panels: Range<usize>, x: &[f32], m: usize) {
    let pairs = job.w.cols() / 2;
    for from in (0..m).step_by(MOST_ROWS) {
        let rows = from..m.min(from + MOST_ROWS);
        let together = PANELS[usize::from(rows.len() <= TILE)];
        for first in panels.clone().step_by(together) {
            let count = together.min(panels.end - first);
            let mut sums = [Line::ZERO; 4 * TILE];
            // SAFETY: the instruction set was checked by the caller of `matmul`.
            unsafe {
                tiles(
                    &x[rows.start * pairs..rows.end * pairs],
                    rows.len(),
                    pairs,
                    job.w.panel_range(first, count),
                    count,
                    &mut sums,
                );
            }
            for panel in 0..count {
                for row in rows.clone() {
                    // Sums lie tile by tile: the rows of a panel, or the two tiles of a panel's rows.
                    let place = row - from;
                    let tile = if together == 4 {
                        panel
                    } else {
                        2 * (place / TILE) + panel
                    };
                    let line = &sums[tile * TILE + place % TILE];
                    // SAFETY: these panels are this task's own.
                    unsafe { job.out.write(row, first + panel, line) }
                }
            }
        }
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Tiles 0..4 are sums, 4 and 5 activations, 6 and 7 weights; `rows` are those of the tiles of
    /// activations.
    fn new(rows: [usize; 2], wide: bool) -> Self {
        let [first, second] = rows.map(|rows| rows as u8);
        let sums = if wide {
            [first; 4]
        } else {
            [first, first, second, second]
        };
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(64);
        config.rows[..4].copy_from_slice(&sums);
        config.rows[4..8].copy_from_slice(&[first, second, TILE as u8, TILE as u8]);
        config
    }
}

/// Up to sixteen rows with up to four panels, or up to 32 rows with up to two.
///
/// # Safety
/// AMX with BF16 must be granted.
unsafe fn tiles(
    x: &[f32],
    rows: usize,
    pairs: usize,
    panels: &[u8],
    count: usize,
    sums: &mut [Line; 4 * TILE],
) {
    const TILE_BYTES: usize = TILE * size_of::<Line>();
    let panel_bytes = pairs * size_of::<Line>();
    let wide = rows <= TILE;
    assert!((1..=MOST_ROWS).contains(&rows) && x.len() >= rows * pairs);
    assert!(pairs >= TILE && pairs.is_multiple_of(TILE));
    assert!(
        count >= 1 && count <= PANELS[usize::from(wide)] && panels.len() >= count * panel_bytes
    );
    // Where there are fewer panels or rows than tiles, the last ones stand in; nobody reads their sums.
    let panel = |index: usize| panels[index.min(count - 1) * panel_bytes..].as_ptr();
    let row_bytes = 4 * pairs;
    let second = rows.saturating_sub(TILE);
    let config = Config::new([rows.min(TILE), second.max(1)], wide);
    let first_rows = x.as_ptr();
    let second_rows = x[if wide { 0 } else { TILE * pairs }..].as_ptr();
    let steps = pairs / TILE;
    // SAFETY: tiles are configured with the rows that `x` has from both places on, each of a stride that
    // stays inside while `steps` steps of 64 bytes pass; panels have `steps` tiles each (asserted), and
    // `sums` room for four. The tiles are released before anything else runs.
    unsafe {
        if wide {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x} + {row} * 1]",
                "tileloadd tmm6, [{w0} + {line} * 1]",
                "tileloadd tmm7, [{w1} + {line} * 1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm6, [{w2} + {line} * 1]",
                "tileloadd tmm7, [{w3} + {line} * 1]",
                "tdpbf16ps tmm2, tmm4, tmm6",
                "tdpbf16ps tmm3, tmm4, tmm7",
                "prefetcht0 [{w0} + 4096]",
                "add {x}, 64",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "add {w2}, {tile}",
                "add {w3}, {tile}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line} * 1], tmm0",
                "tilestored [{sums} + {line} * 1 + 1024], tmm1",
                "tilestored [{sums} + {line} * 1 + 2048], tmm2",
                "tilestored [{sums} + {line} * 1 + 3072], tmm3",
                "tilerelease",
                config = in(reg) &config,
                x = inout(reg) first_rows => _,
                row = in(reg) row_bytes,
                line = in(reg) size_of::<Line>(),
                tile = const TILE_BYTES,
                w0 = inout(reg) panel(0) => _,
                w1 = inout(reg) panel(1) => _,
                w2 = inout(reg) panel(2) => _,
                w3 = inout(reg) panel(3) => _,
                steps = inout(reg) steps => _,
                sums = in(reg) sums.as_mut_ptr(),
                options(nostack),
            );
        } else {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x} + {row} * 1]",
                "tileloadd tmm6, [{w0} + {line} * 1]",
                "tileloadd tmm7, [{w1} + {line} * 1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{y} + {row} * 1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 64",
                "add {y}, 64",
                "add {w0}, {tile}",
                "add {w1}, {tile}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line} * 1], tmm0",
                "tilestored [{sums} + {line} * 1 + 1024], tmm1",
                "tilestored [{sums} + {line} * 1 + 2048], tmm2",
                "tilestored [{sums} + {line} * 1 + 3072], tmm3",
                "tilerelease",
                config = in(reg) &config,
                x = inout(reg) first_rows => _,
                y = inout(reg) second_rows => _,
                row = in(reg) row_bytes,
                line = in(reg) size_of::<Line>(),
                tile = const TILE_BYTES,
                w0 = inout(reg) panel(0) => _,
                w1 = inout(reg) panel(1) => _,
                steps = inout(reg) steps => _,
                sums = in(reg) sums.as_mut_ptr(),
                options(nostack),
            );
        }
    }
}

/// Multiplies tiles of zeros, `4 * rounds` times [`TILE_OPERATIONS`]: what the processor can do at most.
///
/// # Safety
/// AMX with BF16 must be granted.
pub(crate) unsafe fn multiply_zeros(rounds: usize) {
    let config = Config::new([TILE; 2], false);
    // SAFETY: all tiles are configured and zeroed, and released before anything else runs.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm6",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tdpbf16ps tmm3, tmm4, tmm6",
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &config,
            rounds = inout(reg) rounds.max(1) => _,
            options(nostack),
        );
    }
}

/// Multiplications and additions of two whole tiles.
pub(crate) const TILE_OPERATIONS: usize = 2 * TILE * TILE * DEPTH;
