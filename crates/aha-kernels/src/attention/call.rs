//! What all kinds of attention share: where sequences lie, what their queries see, and the cut into tasks.

use std::cell::Cell;
use std::ops::Range;

use super::appending::{Appending, Token};
use super::cache::PagedCache;
use super::grid::GridBias;
use super::source::{Pages, Wanted};
use super::stretch::{Partials, STRETCH};
use super::task::{KEY_PANELS, KEYS, Part, ROWS, Task};
use super::windows::WindowBias;
use crate::InstructionSet;
use crate::buffer::{flat_mut, with_scratch};
use crate::matmul::{PARALLEL_FROM, cut};
use crate::pack::PANEL;
use crate::pool::{for_each_task, threads};
use crate::rotary::HeadRotation;

/// Rows of queries, keys or values; heads lie side by side in a row.
///
/// The rows may be parts of longer ones, as those of a fused projection are: then `stride` is the
/// length of the whole row, and `values` begins with the first value of the part.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The values; the last row may end with its part.
    pub values: &'a [f32],
    /// Values from one row to the next.
    pub stride: usize,
}

/// One sequence of a call.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    /// Row of `q` that holds the first query.
    pub(super) query_start: usize,
    pub(super) query_len: usize,
    /// Keys and values that the sequence has.
    pub(super) context_len: usize,
    pub(super) places: Places<'a>,
    pub(super) seen: Seen,
}

/// Where the keys and values of a sequence lie.
#[derive(Clone, Copy)]
pub(super) enum Places<'a> {
    /// In blocks of a cache, of so many positions each.
    Blocks {
        cache: &'a PagedCache,
        blocks: &'a [u32],
        block_size: usize,
    },
    /// In rows that follow one another from row `start` on.
    Rows {
        k: Rows<'a>,
        v: Rows<'a>,
        start: usize,
    },
}

/// Which positions a query sees.
#[derive(Clone, Copy)]
pub(super) enum Seen {
    /// All of its sequence.
    All,
    /// Those up to its own, but at least so many.
    Prefix(usize),
    /// Those up to its own; queries are the last positions of the context. With a window only so many,
    /// its own included.
    Causal(Option<usize>),
}

impl Sequence<'_> {
    /// The positions that query `index` sees, as `first..end`.
    pub(super) fn visible(&self, index: usize) -> Range<usize> {
        match self.seen {
            Seen::All => 0..self.context_len,
            Seen::Prefix(prefix) => 0..prefix.max(index + 1).min(self.context_len),
            Seen::Causal(window) => {
                let end = self.context_len - self.query_len + index + 1;
                window.map_or(0, |window| end.saturating_sub(window))..end
            }
        }
    }

    /// The pages of a cache that hold the wanted panels of a tile, and the one that is read next, which is the last
    /// where none follows; zero in the place of others.
    pub(super) fn pages(&self, wanted: &Wanted) -> Pages {
        let mut pages = [0; KEY_PANELS + 1];
        if let Places::Blocks {
            blocks, block_size, ..
        } = self.places
        {
            let (start, end) = (wanted.panels.start, wanted.panels.end);
            for (panel, page) in pages.iter_mut().enumerate().take(end + 1).skip(start) {
                let position = (wanted.tile + panel * PANEL).min(wanted.positions.end - 1);
                let slot = blocks[position / block_size] as usize * block_size;
                *page = (slot + position % block_size) / PagedCache::PAGE;
            }
        }
        pages
    }
}

/// The arrays of one call, and the shapes that all tasks share.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) set: InstructionSet,
    pub(super) num_heads: usize,
    /// Query heads that share a key head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    pub(super) num_sequences: usize,
    /// Each of them by its index.
    pub(super) sequence: &'a (dyn Fn(usize) -> Sequence<'a> + Sync),
    pub(super) q: Rows<'a>,
    /// What queries pass before they meet keys.
    pub(super) rotation: Option<&'a HeadRotation<'a>>,
    /// The only token of a step, whose key and value tasks write, each those of its heads.
    pub(super) new: Option<(Appending<'a>, Token)>,
    pub(super) bias: Option<Bias<'a>>,
    pub(super) out: Output,
}

/// What is added to scores before the factor `scale`.
#[derive(Clone, Copy)]
pub(super) enum Bias<'a> {
    Grid(GridBias<'a>),
    Windows(WindowBias<'a>),
}

impl Bias<'_> {
    /// Writes what keys `tile..end` get from the query at `position` of its sequence, which is row `token` of the
    /// call.
    pub(super) fn addends(
        &self,
        query: (usize, usize, usize),
        keys: (usize, usize),
        addends: &mut [f32; KEYS],
    ) {
        match self {
            Self::Grid(bias) => bias.addends(query, keys, addends),
            Self::Windows(bias) => bias.addends(query, keys, addends),
        }
    }
}

/// The output array, which tasks fill piece by piece.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    start: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint pieces, see `Output::piece`.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub(crate) fn new(out: &mut [f32]) -> Self {
        Self {
            start: out.as_mut_ptr(),
            len: out.len(),
        }
    }

    /// The values `start..start + len`.
    ///
    /// # Safety
    /// No other piece that overlaps this one may be alive.
    pub(crate) unsafe fn piece<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside the array (asserted) and not shared (the caller's promise).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

impl Call<'_> {
    /// Computes everything. Each row of `out` must belong to one sequence only.
    pub(super) fn run(&self) {
        let mut work = WORK.take();
        work.lay_out(self);
        let Work {
            tasks,
            shared,
            stretches,
            multiply_adds,
        } = &work;
        let lines =
            (stretches * Partials::stretch_len(self.num_heads, self.head_dim)).div_ceil(PANEL);
        with_scratch(lines, |memory| {
            let partials = Partials::new(flat_mut(memory), self.num_heads, self.head_dim);
            if *multiply_adds < PARALLEL_FROM {
                tasks.iter().for_each(|task| task.run(self, partials));
            } else {
                for_each_task(tasks.len(), |index| tasks[index].run(self, partials));
            }
            for shared in shared {
                for head in 0..self.num_heads {
                    let start = (shared.row * self.num_heads + head) * self.head_dim;
                    // SAFETY: all tasks are done.
                    unsafe {
                        let out = self.out.piece(start, self.head_dim);
                        partials.join(shared.stretches.clone(), head, out);
                    }
                }
            }
        });
        WORK.set(work);
    }
}

thread_local! {
    /// What a thread's last call was cut into: its memory serves the next one.
    static WORK: Cell<Work> = Cell::default();
}

impl Work {
    /// The pieces of a call.
    fn lay_out(&mut self, call: &Call<'_>) {
        self.tasks.clear();
        self.shared.clear();
        (self.stretches, self.multiply_adds) = (0, 0);
        let num_kv_heads = call.num_heads / call.group;
        // Heads of a position lie side by side: a task takes as many as fit its rows, as long as
        // every thread gets a task.
        let sequences = call.num_sequences.max(1);
        let spread = (2 * threads()).div_ceil(sequences);
        let heads_at_most = num_kv_heads.div_ceil(spread);
        for index in 0..call.num_sequences {
            let sequence = (call.sequence)(index);
            // Where all queries see the same keys, more of them share the loading of each; where they do not, scores
            // that nobody sees would outweigh it.
            let rows_a_task = match sequence.seen {
                Seen::All => 2 * ROWS,
                Seen::Prefix(_) | Seen::Causal(_) => ROWS,
            };
            let queries_a_task = (rows_a_task / call.group).max(1);
            // The last queries see most keys: they come first, so that short tasks end the call.
            let mut end = sequence.query_len;
            while end > 0 {
                let start = end.saturating_sub(queries_a_task);
                let rows = (end - start) * call.group;
                let heads = (rows_a_task / rows).clamp(1, heads_at_most);
                // Where one query's heads do not keep the threads busy, they share its context.
                let visible = match sequence.places {
                    Places::Blocks { .. } if sequence.query_len == 1 => sequence.visible(0),
                    _ => 0..0,
                };
                let stretches = visible.start / STRETCH..visible.end.div_ceil(STRETCH);
                let alone = sequences * num_kv_heads.div_ceil(heads);
                let parts = (2 * threads()).div_ceil(alone).min(stretches.len()).max(1);
                for first in (0..num_kv_heads).step_by(heads) {
                    let task = Task {
                        sequence: index,
                        first_row: sequence.query_start + start,
                        kv_heads: first..num_kv_heads.min(first + heads),
                        start,
                        end,
                        part: None,
                    };
                    if parts == 1 {
                        self.tasks.push(task);
                        continue;
                    }
                    let bound = |part| stretches.start + cut(stretches.len(), parts, part);
                    let before = self.stretches;
                    self.tasks.extend((0..parts).map(|part| Task {
                        part: Some(Part {
                            stretches: bound(part)..bound(part + 1),
                            first: before + bound(part) - stretches.start,
                        }),
                        ..task.clone()
                    }));
                }
                if parts > 1 {
                    self.shared.push(Shared {
                        row: sequence.query_start,
                        stretches: self.stretches..self.stretches + stretches.len(),
                    });
                    self.stretches += stretches.len();
                }
                end = start;
            }
            let width = call.num_heads.saturating_mul(call.head_dim);
            let pairs = sequence.query_len.saturating_mul(sequence.context_len);
            let multiply_adds = pairs.saturating_mul(width).saturating_mul(2);
            self.multiply_adds = self.multiply_adds.saturating_add(multiply_adds);
        }
    }
}

/// The pieces that a call is cut into.
#[derive(Default)]
struct Work {
    tasks: Vec<Task>,
    /// Rows whose context is shared by several tasks.
    shared: Vec<Shared>,
    /// Stretches of all shared contexts.
    stretches: usize,
    multiply_adds: usize,
}

/// A row whose context is shared: where its stretches are among those of all.
struct Shared {
    row: usize,
    stretches: Range<usize>,
}
