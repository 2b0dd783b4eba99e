//! The tiles of AMX: sixteen rows of activations meet sixteen rows of weights, 32 columns at a time.
//!
//! A panel is a column of tiles as it is: sixteen pairs of columns are sixteen lines of sixteen pairs.
//! All products of such weights run on tiles, also those of a single row, for their sums are rounded in
//! an order of their own: 32 columns after 32 columns, the even ones and the odd ones apart.

use std::arch::asm;
use std::ops::Range;

use smallvec::SmallVec;

use super::{PREFETCH, with_panels, work};
use crate::buffer::Line;
use crate::matmul::{Job, MATRICES, for_each_job_piece, tasks};

/// Rows of a tile, and lines of sixteen pairs.
const TILE: usize = 16;

/// Columns that a tile takes.
const DEPTH: usize = 2 * TILE;

/// Panels that are multiplied at once, each to a tile of sums; a task takes so many. Two panels with two tiles of
/// rows, which read less, were no faster.
const PANELS: usize = 4;

/// Whether tiles can multiply rows of `cols` columns: whole ones only, since a panel has no room behind it.
pub(super) fn takes(cols: usize) -> bool {
    cols > 0 && cols.is_multiple_of(DEPTH)
}

/// The products with rows `x` of pairs of columns, as [`super::matmul`] has rounded them.
pub(super) fn multiply(jobs: &[Job<'_>], x: &[u32], m: usize) {
    let groups = |job: &Job<'_>| job.w.panels().div_ceil(PANELS);
    let groups: SmallVec<[_; MATRICES]> = jobs.iter().map(groups).collect();
    let all = groups.iter().sum();
    let count = if m <= TILE {
        tasks(all, work(jobs, m))
    } else {
        all
    };
    let views: SmallVec<[_; MATRICES]> = jobs.iter().map(|job| job.w.view()).collect();
    for_each_job_piece(&groups, count, |job, group| {
        let (job, view) = (&jobs[job], views[job]);
        let panels = group * PANELS..job.w.panels().min((group + 1) * PANELS);
        with_panels(job, view, panels.clone(), |weights| {
            multiply_group(job, panels, weights, x, m);
        });
    });
}

/// All rows with up to four panels, which stay in the second-level cache meanwhile.
fn multiply_group(job: &Job<'_>, panels: Range<usize>, weights: &[u8], x: &[u32], m: usize) {
    let pairs = job.w.cols() / 2;
    let mut sums = [Line::ZERO; PANELS * TILE];
    for from in (0..m).step_by(TILE) {
        let rows = from..m.min(from + TILE);
        let x = &x[rows.start * pairs..rows.end * pairs];
        // The first rows find the panels in memory, the others in a cache.
        let is_first = from == 0;
        // SAFETY: the instruction set was checked by the caller of `matmul`.
        unsafe {
            tiles(
                x,
                rows.len(),
                pairs,
                weights,
                panels.len(),
                is_first,
                &mut sums,
            )
        }
        for (panel, sums) in panels.clone().zip(sums.chunks_exact(TILE)) {
            for (row, line) in rows.clone().zip(sums) {
                // SAFETY: these panels are this task's own.
                unsafe { job.out.write(row, panel, line) }
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
    /// Tiles 0 to 3 are sums and 4 activations, of `rows` rows; 6 and 7 are weights.
    fn new(rows: usize) -> Self {
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(TILE as u8);
        config.rows[..5].fill(rows as u8);
        config
    }
}

/// Asks for the tile that a panel has [`PREFETCH`] bytes further on.
macro_rules! fetch_tile {
    ($panel:literal) => {
        fetch_tile!($panel, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960)
    };
    ($panel:literal, $($line:literal),*) => {
        concat!($("prefetcht1 [{", $panel, "} + {ahead} + ", $line, "]\n"),*)
    };
}

/// The loop over the columns, 32 at a time, with what is fetched meanwhile.
macro_rules! multiply_tiles {
    ([$($fetch:expr),*], $($operands:tt)*) => {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            $($fetch,)*
            "tileloadd tmm4, [{x} + {row} * 1]",
            "tileloadd tmm6, [{w0} + {line} * 1]",
            "tileloadd tmm7, [{w1} + {line} * 1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm6, [{w2} + {line} * 1]",
            "tileloadd tmm7, [{w3} + {line} * 1]",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tdpbf16ps tmm3, tmm4, tmm7",
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
            tile = const TILE * size_of::<Line>(),
            line = in(reg) size_of::<Line>(),
            options(nostack),
            $($operands)*
        )
    };
}

/// Up to sixteen rows with up to four panels, which come from memory as they are used, or are in a cache.
///
/// # Safety
/// AMX with BF16 must be granted.
unsafe fn tiles(
    x: &[u32],
    rows: usize,
    pairs: usize,
    panels: &[u8],
    count: usize,
    from_memory: bool,
    sums: &mut [Line; PANELS * TILE],
) {
    let panel_bytes = pairs * size_of::<Line>();
    assert!((1..=TILE).contains(&rows) && x.len() >= rows * pairs);
    assert!(pairs >= TILE && pairs.is_multiple_of(TILE));
    assert!((1..=PANELS).contains(&count) && panels.len() >= count * panel_bytes);
    // Where there are fewer panels than tiles, the last one stands in; nobody reads its sums.
    let panel = |index: usize| panels[index.min(count - 1) * panel_bytes..].as_ptr();
    let config = Config::new(rows);
    // SAFETY: tiles are configured with the rows that `x` has, of a stride that stays inside while
    // `pairs / TILE` steps of 64 bytes pass; panels have as many tiles each (asserted), and `sums` room for
    // four. The tiles are released before anything else runs. Asking for memory ahead is allowed anywhere.
    unsafe {
        macro_rules! run {
            ($fetches:tt $(, $ahead:ident)?) => {
                multiply_tiles!(
                    $fetches,
                    config = in(reg) &config,
                    x = inout(reg) x.as_ptr() => _,
                    row = in(reg) 4 * pairs,
                    w0 = inout(reg) panel(0) => _,
                    w1 = inout(reg) panel(1) => _,
                    w2 = inout(reg) panel(2) => _,
                    w3 = inout(reg) panel(3) => _,
                    steps = inout(reg) pairs / TILE => _,
                    sums = in(reg) sums.as_mut_ptr(),
                    $(ahead = const $ahead,)?
                )
            };
        }
        if from_memory {
            run!(
                [
                    fetch_tile!("w0"),
                    fetch_tile!("w1"),
                    fetch_tile!("w2"),
                    fetch_tile!("w3")
                ],
                PREFETCH
            );
        } else {
            run!([]);
        }
    }
}

/// Multiplies tiles of zeros, `4 * rounds` times [`TILE_OPERATIONS`]: what the processor can do at most.
///
/// # Safety
/// AMX with BF16 must be granted.
pub(crate) unsafe fn multiply_zeros(rounds: usize) {
    let config = Config::new(TILE);
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
