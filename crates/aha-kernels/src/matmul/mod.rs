//! The driver of the matrix product: how work is cut into tiles and shared among threads.
//!
//! Whatever the cut, an output value is one lane of one accumulator that starts at zero and takes
//! the columns in ascending order. Accumulators may be stored and loaded again between stretches of
//! columns, which changes no bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod shapes;

use std::ops::Range;

use crate::InstructionSet;
#[cfg(target_arch = "x86_64")]
use crate::bf16;
use crate::buffer::{Line, bytes_of, flat_mut, with_indices, with_scratch};
use crate::pack::{
    PANEL, PackedMatrix, View,
    WeightKind::{self, F32},
};
use crate::pool::{TASKS, for_each_piece, for_each_task, threads, with_foresight};
use crate::quant;
use crate::transpose::{transpose, turn};

/// Rows of `x` that a tile holds at most: 6 x 16 accumulators fill twelve of AVX2's sixteen registers, and 24 of NEON's 32;
/// on AVX-512 they do so with two panels at a time.
pub(crate) const TILE_ROWS: usize = 6;

/// Sums of the largest tile: a line for each row and panel.
const TILE_SUMS: usize = 12;

/// Multiply-adds below which threads cost more than they bring.
pub(crate) const PARALLEL_FROM: usize = 64 * 1024;

/// Columns decoded at once when many rows share them (16 KiB of `f32`: half a first-level cache).
const WIDE_DEPTH: usize = 256;

/// Columns decoded at once for up to four panels when few rows share them.
const NARROW_DEPTH: usize = 64;

/// Rows of `x` that stay in the second-level cache together with `WIDE_PANELS` panels of outputs.
const WIDE_ROWS: usize = 192;
const WIDE_PANELS: usize = 8;

/// Matrices that are multiplied together, beyond which lists of them take memory of their own.
pub(crate) const MATRICES: usize = 4;

/// Rows of `x` up to which reading the weights takes longer than multiplying.
const FEW_ROWS: usize = 16;

/// Multiply-adds of a task of a large product. The longer a task, the longer threads that have run out of them wait
/// for the last one.
const TASK_WORK: usize = 2 << 20;

/// The rows of `x` in a tile.
#[derive(Clone, Copy)]
pub(crate) enum Activations<'a> {
    /// Row-major, with this many values from one row to the next.
    Rows(&'a [f32], usize),
    /// `[depth][rows]` without gaps.
    Packed(&'a [f32]),
}

/// Panels of weights in a tile.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    /// The first panel's bytes at the first column, and all that follows.
    pub(crate) data: &'a [u8],
    /// `F32`, `F16` or `Bf16`.
    pub(crate) kind: WeightKind,
    /// Bytes from one panel to the next.
    pub(crate) stride: usize,
    /// One, two or four.
    pub(crate) count: usize,
    /// Bytes that will be wanted soon, fetched while the product runs.
    pub(crate) ahead: &'a [u8],
}

/// Where a tile's results go: panel `p`, row `r` to `lines[p * stride + r]`.
pub(crate) struct Sums<'a> {
    pub(crate) lines: &'a mut [Line],
    pub(crate) stride: usize,
    /// Whether the sums go on from what the lines hold, instead of zero.
    pub(crate) accumulate: bool,
}

/// Multiplies `rows` rows of `x` with `w.count` panels over `depth` columns.
///
/// `rows` and `w.count` must be such as [`tile_panels`] allows; the portable kernel takes `F32` panels only.
pub(crate) fn tile(
    set: InstructionSet,
    x: Activations<'_>,
    rows: usize,
    w: Panels<'_>,
    depth: usize,
    sums: Sums<'_>,
) {
    debug_assert!(reads_directly(set, w.kind, 1));
    // The kernels below index without further checks.
    assert!(matches!(w.count, 1 | 2 | 4) && (1..=TILE_ROWS).contains(&rows));
    assert!(rows * w.count <= most_sums(set));
    let last = w.count - 1;
    assert!(w.data.len() >= last * w.stride + w.kind.span(depth));
    assert!(sums.lines.len() >= last * sums.stride + rows);
    match x {
        Activations::Rows(data, stride) => assert!(data.len() >= (rows - 1) * stride + depth),
        Activations::Packed(data) => assert!(data.len() >= rows * depth),
    }
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx512() => {
            // SAFETY: the lengths were checked above, the instruction set when it was chosen.
            unsafe { avx512::tile(x, rows, w, depth, sums) }
        }
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: as above.
            unsafe { avx2::tile(x, rows, w, depth, sums) }
        }
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { neon::tile(x, rows, w, depth, sums) }
        }
        _ => scalar::tile(x, rows, w, depth, sums),
    }
}

/// Writes columns `start..start + out.len()` of `panel` as `f32`, sixteen rows a line. `start` must be
/// a multiple of 32.
pub(crate) fn decode(
    set: InstructionSet,
    kind: WeightKind,
    panel: &[u8],
    start: usize,
    out: &mut [Line],
) {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx512() => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { avx512::decode(kind, panel, start, out) }
        }
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: as above.
            unsafe { avx2::decode(kind, panel, start, out) }
        }
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { neon::decode(kind, panel, start, out) }
        }
        _ => scalar::decode(kind, panel, start, out),
    }
}

/// Lines of sums that the registers of an instruction set hold.
fn most_sums(set: InstructionSet) -> usize {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx512() => avx512::MOST_SUMS,
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => avx2::MOST_SUMS,
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => neon::MOST_SUMS,
        _ => TILE_ROWS,
    }
}

/// How many panels a tile of `rows` rows takes: as many as there are registers for their sums, up to four, which hides
/// the latency of the multiply-add; no more than there are `left`.
pub(crate) fn tile_panels(set: InstructionSet, rows: usize, left: usize) -> usize {
    let wanted: usize = match most_sums(set) / rows {
        4.. => 4,
        2.. => 2,
        _ => 1,
    };
    if left >= wanted {
        wanted
    } else {
        left.min(wanted / 2).max(1)
    }
}

/// A product to compute: a matrix, and where its result goes.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) w: &'a PackedMatrix,
    pub(crate) out: Output,
}

/// The kernels that a matrix is multiplied by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Integers,
    #[cfg(target_arch = "x86_64")]
    Bf16,
    Floats,
}

impl Way {
    fn of(set: InstructionSet, kind: WeightKind) -> Self {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = set;
        match kind {
            WeightKind::F32 | WeightKind::F16 => Self::Floats,
            #[cfg(target_arch = "x86_64")]
            WeightKind::Bf16 if set.rounds_to_bf16() => Self::Bf16,
            WeightKind::Bf16 => Self::Floats,
            _ => Self::Integers,
        }
    }
}

/// The products of the `m` rows of `x` with some matrices of as many columns; shapes were checked by the
/// caller.
pub(crate) fn matmul(set: InstructionSet, jobs: &[Job<'_>], x: &[f32], m: usize) {
    if m == 0 {
        return;
    }
    let way = |job: &Job<'_>| Way::of(set, job.w.kind());
    for jobs in jobs.chunk_by(|a, b| way(a) == way(b)) {
        match way(&jobs[0]) {
            Way::Integers => quant::product::matmul(set, jobs, x, m),
            #[cfg(target_arch = "x86_64")]
            Way::Bf16 => bf16::matmul(set, jobs, x, m),
            Way::Floats => {
                for job in jobs.iter().filter(|job| job.w.rows() > 0) {
                    announce(m, std::iter::once(job.w));
                    let weights = Weights::of(job.w);
                    if m <= TILE_ROWS {
                        narrow(set, weights, x, m, job.out);
                    } else {
                        wide(set, weights, x, m, job.out);
                    }
                }
            }
        }
    }
}

/// The output matrix, which tasks fill piece by piece.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    start: *mut f32,
    rows: usize,
    cols: usize,
}

// SAFETY: tasks write disjoint pieces, see `write`.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// A matrix `[rows, cols]` that begins at `start`.
    ///
    /// # Safety
    /// All of it must be writable, and nobody else's, until the last `write`.
    pub(crate) unsafe fn new(start: *mut f32, rows: usize, cols: usize) -> Self {
        Self { start, rows, cols }
    }

    /// Copies the sixteen (or, at the right edge, fewer) values of one row of one panel.
    ///
    /// # Safety
    /// No other thread may write the same panel of the same row.
    pub(crate) unsafe fn write(self, row: usize, panel: usize, line: &Line) {
        let col = panel * PANEL;
        assert!(row < self.rows && col < self.cols);
        let len = PANEL.min(self.cols - col);
        // SAFETY: the piece lies inside the matrix (asserted), and is this task's own.
        unsafe {
            let target = self.start.add(row * self.cols + col);
            if len == PANEL {
                target.cast::<[f32; PANEL]>().write_unaligned(line.0);
            } else {
                write_edge(&line.0[..len], target);
            }
        }
    }
}

/// A function of its own: beside it, the compiler makes one call of both copies, instead of a few moves of that whose
/// length it knows.
///
/// # Safety
/// As many values as `values` has must be writable.
#[cold]
#[inline(never)]
unsafe fn write_edge(values: &[f32], target: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len()) }
}

/// How many tasks share `pieces` pieces of `work` multiply-adds, each task walking forwards through memory.
pub(crate) fn tasks(pieces: usize, work: usize) -> usize {
    if work < PARALLEL_FROM {
        return 1;
    }
    pieces
        .min((TASKS * threads()).max(work / TASK_WORK))
        .min(work / (PARALLEL_FROM / 2))
}

/// Runs `piece` for every piece of every one of `counts.len()` jobs, which are laid end to end and cut into
/// `tasks` tasks.
pub(crate) fn for_each_job_piece(
    counts: &[usize],
    tasks: usize,
    piece: impl Fn(usize, usize) + Sync,
) {
    for_each_job_stretch(counts, tasks, |job, pieces| {
        pieces.for_each(|index| piece(job, index));
    });
}

/// The same for stretches of pieces: what a task has of a job.
pub(crate) fn for_each_job_stretch(
    counts: &[usize],
    tasks: usize,
    stretch: impl Fn(usize, Range<usize>) + Sync,
) {
    let all: usize = counts.iter().sum();
    for_each_task(tasks, |task| {
        let own = cut(all, tasks, task)..cut(all, tasks, task + 1);
        let mut skipped = 0;
        for (job, &count) in counts.iter().enumerate() {
            let inside = |place: usize| place.clamp(skipped, skipped + count) - skipped;
            stretch(job, inside(own.start)..inside(own.end));
            skipped += count;
        }
    });
}

/// Says that the product of `m` rows with these matrices begins, which are read from the first to the last.
pub(crate) fn announce<'a>(m: usize, matrices: impl Iterator<Item = &'a PackedMatrix> + Clone) {
    let Some(first) = matrices.clone().next() else {
        return;
    };
    with_foresight(|foresight| {
        if m <= FEW_ROWS {
            let rows: usize = matrices.clone().map(PackedMatrix::rows).sum();
            let work = m.saturating_mul(rows).saturating_mul(first.cols());
            let places = matrices.map(PackedMatrix::place);
            foresight.begin(first.follower(), tasks(usize::MAX, work), places);
        } else {
            foresight.forget();
        }
    });
}

/// A matrix, and its values as they lie while a product runs.
#[derive(Clone, Copy)]
struct Weights<'a> {
    matrix: &'a PackedMatrix,
    view: View<'a>,
}

impl<'a> Weights<'a> {
    fn of(matrix: &'a PackedMatrix) -> Self {
        let view = matrix.view();
        Self { matrix, view }
    }

    /// The bytes of `count` panels from `first` on, or of their rows.
    fn panels(&self, first: usize, count: usize) -> &'a [u8] {
        let bytes = self.matrix.panel_bytes();
        &self.view.bytes()[first * bytes..][..count * bytes]
    }

    /// Columns `start..start + depth` of a panel, and all that follows; of rows, turned to a panel in `turned`, while the
    /// panel `next` panels on is asked for. `start` must be a multiple of 32.
    fn columns<'t>(
        &self,
        set: InstructionSet,
        panel: usize,
        start: usize,
        turned: &'t mut [Line],
        next: usize,
    ) -> &'t [u8]
    where
        'a: 't,
    {
        let bytes = self.panels(panel, 1);
        if !self.view.is_rows() {
            let offset = self.matrix.kind().column_offset(start);
            return &self.view.bytes()[panel * bytes.len() + offset..];
        }
        let row_bytes = 2 * self.matrix.cols();
        // The same share of that panel, in the order of memory. There need not be one.
        let ahead = (self.view.bytes().as_ptr())
            .wrapping_add((panel + next) * bytes.len() + 2 * PANEL * start);
        turn(set, &bytes[2 * start..], row_bytes, turned, ahead);
        bytes_of(turned)
    }
}

/// Up to six rows: the weights stream through once, each value used as it arrives.
fn narrow(set: InstructionSet, weights: Weights<'_>, x: &[f32], m: usize, out: Output) {
    let w = weights.matrix;
    let panels = w.panels();
    let group = tile_panels(set, m, usize::MAX);
    let groups = panels.div_ceil(group);
    let tasks = tasks(groups, m.saturating_mul(w.rows()).saturating_mul(w.cols()));
    for_each_task(tasks, |task| {
        let end = panels.min((task + 1) * groups / tasks * group);
        let mut first = task * groups / tasks * group;
        while first < end {
            let count = tile_panels(set, m, end - first);
            let mut c = [Line::ZERO; TILE_SUMS];
            narrow_group(set, weights, x, m, first, count, &mut c);
            for (index, line) in c[..count * m].iter().enumerate() {
                // SAFETY: the panels of this task are its own.
                unsafe { out.write(index % m, first + index / m, line) }
            }
            first += count;
        }
    });
}

fn narrow_group(
    set: InstructionSet,
    weights: Weights<'_>,
    x: &[f32],
    m: usize,
    first: usize,
    count: usize,
    c: &mut [Line],
) {
    let (kind, cols) = (weights.matrix.kind(), weights.matrix.cols());
    let is_direct = reads_directly(set, kind, m);
    let mut multiply = |panels: Panels<'_>, start: usize, depth: usize| {
        let x = Activations::Rows(&x[start..], cols);
        let sums = Sums {
            lines: &mut *c,
            stride: m,
            accumulate: start > 0,
        };
        tile(set, x, m, panels, depth, sums);
    };
    if is_direct && !weights.view.is_rows() {
        let panels = Panels {
            data: weights.panels(first, count),
            kind,
            stride: weights.matrix.panel_bytes(),
            count,
            ahead: &[],
        };
        return multiply(panels, 0, cols);
    }
    with_scratch(4 * NARROW_DEPTH / 2 * 3, |scratch| {
        let (turned, values) = scratch.split_at_mut(4 * NARROW_DEPTH / 2);
        for start in (0..cols).step_by(NARROW_DEPTH) {
            let depth = NARROW_DEPTH.min(cols - start);
            let pieces = turned
                .chunks_mut(NARROW_DEPTH / 2)
                .zip(values.chunks_mut(NARROW_DEPTH));
            for (index, (turned, values)) in pieces.take(count).enumerate() {
                let turned = &mut turned[..depth.div_ceil(2)];
                let columns = weights.columns(set, first + index, start, turned, count);
                if !is_direct {
                    decode(set, kind, columns, 0, &mut values[..depth]);
                }
            }
            let (lines, kind, stride) = match is_direct {
                true => (&turned[..], kind, NARROW_DEPTH / 2),
                false => (&values[..], F32, NARROW_DEPTH),
            };
            let panels = Panels {
                data: bytes_of(lines),
                kind,
                stride: stride * size_of::<Line>(),
                count,
                ahead: &[],
            };
            multiply(panels, start, depth);
        }
    });
}

/// Whether tiles of `rows` rows read panels of this kind as they are. From five rows on, the registers
/// that unpacking takes are missing for the sums, and decoding first is faster.
pub(crate) fn reads_directly(set: InstructionSet, kind: WeightKind, rows: usize) -> bool {
    match kind {
        WeightKind::F32 => true,
        WeightKind::F16 | WeightKind::Bf16 => set != InstructionSet::Scalar && rows <= 4,
        _ => false,
    }
}

/// The cut of `total` into `parts` nearly equal stretches: where stretch `index` starts.
pub(crate) fn cut(total: usize, parts: usize, index: usize) -> usize {
    (total as u128 * index as u128 / parts as u128) as usize
}

/// Many rows: a stretch of columns of a panel is decoded once and meets a block of rows of `x`.
fn wide(set: InstructionSet, weights: Weights<'_>, x: &[f32], m: usize, out: Output) {
    let w = weights.matrix;
    let (panels, threads) = (w.panels(), threads());
    let blocks = m.div_ceil(WIDE_ROWS);
    let wanted = (2 * threads).div_ceil(blocks);
    let groups = panels.div_ceil(WIDE_PANELS).max(wanted.min(panels));
    with_scratch(x.len().div_ceil(PANEL), |packed| {
        let packed = &mut flat_mut(packed)[..x.len()];
        pack_rows(set, x, m, w.cols(), blocks, packed);
        let packed = &*packed;
        let parallel = m.saturating_mul(w.rows()).saturating_mul(w.cols()) >= PARALLEL_FROM;
        let task = |task: usize| {
            let (block, group) = (task / groups, task % groups);
            let rows = cut(m, blocks, block)..cut(m, blocks, block + 1);
            let panels = cut(panels, groups, group)..cut(panels, groups, group + 1);
            let x = &packed[rows.start * w.cols()..rows.end * w.cols()];
            wide_task(set, weights, x, rows, panels, out);
        };
        if parallel {
            for_each_task(blocks * groups, task);
        } else {
            (0..blocks * groups).for_each(task);
        }
    });
}

fn wide_task(
    set: InstructionSet,
    weights: Weights<'_>,
    x: &[f32],
    rows: Range<usize>,
    panels: Range<usize>,
    out: Output,
) {
    let w = weights.matrix;
    let (kind, cols, m) = (w.kind(), w.cols(), rows.len());
    let tiles = m.div_ceil(TILE_ROWS);
    let tile_rows = m.div_ceil(tiles);
    let is_direct = reads_directly(set, kind, tile_rows) && (tiles <= 2 || kind == F32);
    let most = tile_panels(set, tile_rows, usize::MAX);
    with_scratch(panels.len() * m + (most + 1) * WIDE_DEPTH, |scratch| {
        let (values, scratch) = scratch.split_at_mut(most * WIDE_DEPTH);
        let (turned, c) = scratch.split_at_mut(WIDE_DEPTH);
        if cols == 0 {
            c.fill(Line::ZERO);
        }
        for start in (0..cols).step_by(WIDE_DEPTH) {
            let depth = WIDE_DEPTH.min(cols - start);
            let x = &x[start * m..][..depth * m];
            let mut first = panels.start;
            while first < panels.end {
                let count = tile_panels(set, tile_rows, panels.end - first);
                let c = &mut c[(first - panels.start) * m..];
                let turned = &mut turned[..depth.div_ceil(2)];
                if !is_direct {
                    for (index, values) in values.chunks_mut(WIDE_DEPTH).take(count).enumerate() {
                        let columns = weights.columns(set, first + index, start, turned, 1);
                        decode(set, kind, columns, 0, &mut values[..depth]);
                    }
                }
                let (data, kind, stride) = if is_direct {
                    let columns = weights.columns(set, first, start, turned, 1);
                    (columns, kind, w.panel_bytes())
                } else {
                    let stride = WIDE_DEPTH * size_of::<Line>();
                    (bytes_of(values), F32, stride)
                };
                // While these stretches are multiplied, the next ones come from memory: each tile fetches a share.
                let share = depth / 2 * size_of::<Line>();
                for index in 0..tiles {
                    let (from, to) = (cut(m, tiles, index), cut(m, tiles, index + 1));
                    let next = next_stretch(weights, &panels, first + index % count, count, start);
                    let ahead = next.get(index / count * share..).unwrap_or_default();
                    let w = Panels {
                        data,
                        kind,
                        stride,
                        count,
                        ahead: &ahead[..share.min(ahead.len())],
                    };
                    let x = Activations::Packed(&x[from * depth..to * depth]);
                    let sums = Sums {
                        lines: &mut c[from..],
                        stride: m,
                        accumulate: start > 0,
                    };
                    tile(set, x, to - from, w, depth, sums);
                }
                first += count;
            }
        }
        for (index, row) in rows.enumerate() {
            for (offset, panel) in panels.clone().enumerate() {
                // SAFETY: these panels of these rows are this task's own.
                unsafe { out.write(row, panel, &c[offset * m + index]) }
            }
        }
    });
}

/// The bytes that come `count` panels after the stretch at column `start` of `panel` in the order of `wide_task`; none of
/// rows, which are asked for when they are turned.
fn next_stretch<'a>(
    weights: Weights<'a>,
    panels: &Range<usize>,
    panel: usize,
    count: usize,
    start: usize,
) -> &'a [u8] {
    let (panel, start) = if panel + count < panels.end {
        (panel + count, start)
    } else {
        let over = (panel + count - panels.end) % panels.len();
        (panels.start + over, start + WIDE_DEPTH)
    };
    let w = weights.matrix;
    if start >= w.cols() || weights.view.is_rows() {
        return &[];
    }
    let end = w.cols().min(start + WIDE_DEPTH);
    &weights.panels(panel, 1)[w.kind().column_offset(start)..w.kind().span(end)]
}

/// Rearranges `x[m, cols]` to `[block][stretch of columns][tile][column][row of the tile]`, the
/// order in which `wide_task` reads it.
fn pack_rows(
    set: InstructionSet,
    x: &[f32],
    m: usize,
    cols: usize,
    blocks: usize,
    packed: &mut [f32],
) {
    if cols == 0 {
        return;
    }
    let stretches = cols.div_ceil(WIDE_DEPTH);
    let block_rows = |block| cut(m, blocks, block)..cut(m, blocks, block + 1);
    let place = |piece: usize| (piece / stretches, piece % stretches * WIDE_DEPTH);
    let piece_start = |piece| {
        let (block, column) = place(piece);
        let rows = if block < blocks {
            block_rows(block)
        } else {
            m..m
        };
        rows.start * cols + rows.len() * column
    };
    let pack_piece = |piece, target: &mut [f32]| {
        let (block, start) = place(piece);
        let (rows, depth) = (block_rows(block), WIDE_DEPTH.min(cols - start));
        let tiles = rows.len().div_ceil(TILE_ROWS);
        for index in 0..tiles {
            let (from, to) = (
                cut(rows.len(), tiles, index),
                cut(rows.len(), tiles, index + 1),
            );
            let target = &mut target[from * depth..to * depth];
            let source = &x[(rows.start + from) * cols + start..];
            transpose(set, source, cols, to - from, target);
        }
    };
    with_indices(|starts| {
        starts.extend((0..=blocks * stretches).map(piece_start));
        for_each_piece(packed, starts, m * cols >= PARALLEL_FROM, pack_piece);
    });
}

#[cfg(test)]
pub(crate) mod tests;
