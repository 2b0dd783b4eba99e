//! Where a task reads keys and values: from the pages of a cache, or from a copy of one tile.

use std::ops::Range;

use super::cache::PagedCache;
use super::call::{Call, Places, Rows, Sequence};
use super::task::{KEY_PANELS, KEYS, LANES, interleave};
use crate::InstructionSet;
use crate::buffer::{Line, bytes_of, prefetch};
use crate::matmul::{Panels, decode, reads_directly, tile_panels};
use crate::pack::{PANEL, WeightKind};

/// The keys and values of a tile, as products take them.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Of one key head: keys `[panel][head_dim][16 keys]` and values `[panel of dims][KEYS][16 dims]`.
    Loaded {
        keys: &'a [Line],
        values: &'a [Line],
    },
    /// Of all key heads: the pages of a cache that hold the tile's panels.
    Cached { cache: &'a PagedCache, pages: Pages },
}

/// Pages of a cache by the panels of a tile, and the page that is read behind them.
pub(super) type Pages = [usize; KEY_PANELS + 1];

impl<'a> Source<'a> {
    /// Keys of panel `panels.start` and, for a tile of `rows` queries, some that follow.
    pub(super) fn keys(
        self,
        set: InstructionSet,
        (kv_head, head_dim): (usize, usize),
        rows: usize,
        panels: Range<usize>,
    ) -> Panels<'a> {
        match self {
            Self::Loaded { keys, .. } => Panels {
                data: bytes_of(&keys[panels.start * head_dim..]),
                kind: WeightKind::F32,
                stride: head_dim * size_of::<Line>(),
                count: tile_panels(set, rows, panels.len()),
                ahead: &[],
            },
            Self::Cached { cache, pages } => {
                // All heads walk through a page before the next one: what a head reads there is fetched meanwhile.
                Panels {
                    data: cache.keys(pages[panels.start], kv_head),
                    kind: cache.kind(),
                    stride: 0,
                    count: 1,
                    ahead: cache.keys(pages[panels.start + 1], kv_head),
                }
            }
        }
    }

    /// Values from key `key` of the tile on, for dims of panel `panel` and of `count - 1` that follow.
    pub(super) fn values(
        self,
        kv_head: usize,
        key: usize,
        panel: usize,
        count: usize,
    ) -> Panels<'a> {
        match self {
            Self::Loaded { values, .. } => Panels {
                data: bytes_of(&values[panel * KEYS + key..]),
                kind: WeightKind::F32,
                stride: KEYS * size_of::<Line>(),
                count,
                ahead: &[],
            },
            Self::Cached { cache, pages } => {
                let kind = cache.kind();
                let page = |number: usize| {
                    &cache.values(pages[number], kv_head)[kind.span(panel * PANEL)..]
                };
                Panels {
                    data: &page(key / PANEL)[kind.span(key % PANEL)..],
                    kind,
                    stride: kind.span(PANEL),
                    count,
                    ahead: &page(key / PANEL + 1)[..kind.span(count * PANEL)],
                }
            }
        }
    }
}

/// Memory that a tile of keys and values is copied to.
pub(super) struct Room<'a> {
    /// `[panel][head_dim]`.
    pub(super) keys: &'a mut [Line],
    /// `[panel of dims][KEYS]`.
    pub(super) values: &'a mut [Line],
    /// `head_dim` zeros.
    pub(super) zeros: &'a [f32],
}

/// A tile of keys and values, and what of it is wanted.
pub(super) struct Wanted {
    /// Position of the tile's first key.
    pub(super) tile: usize,
    /// Panels of the tile that queries see.
    pub(super) panels: Range<usize>,
    /// Positions that queries of the task see, in this tile or others.
    pub(super) positions: Range<usize>,
}

impl Sequence<'_> {
    /// The cache whose keys and values tiles of `rows` queries meet where they lie. For more queries, or without
    /// instructions for its type, a copy in `f32` is faster: no bit differs.
    pub(super) fn read_in_place(&self, set: InstructionSet, rows: usize) -> Option<&PagedCache> {
        match self.places {
            Places::Blocks { cache, .. } if reads_directly(set, cache.kind(), rows) => Some(cache),
            _ => None,
        }
    }
}

impl Room<'_> {
    /// The tile that was copied last.
    pub(super) fn source(&self) -> Source<'_> {
        Source::Loaded {
            keys: self.keys,
            values: self.values,
        }
    }

    /// Copies the wanted panels of a tile. Places of positions that nobody sees hold anything.
    pub(super) fn load(
        &mut self,
        call: &Call<'_>,
        sequence: &Sequence<'_>,
        kv_head: usize,
        wanted: &Wanted,
    ) {
        match sequence.places {
            Places::Blocks { cache, .. } => {
                let pages = sequence.pages(wanted);
                self.load_pages(call, (cache, pages), kv_head, wanted);
            }
            Places::Rows { k, v, start } => {
                self.load_rows(call, ([k, v], start), kv_head, wanted);
            }
        }
    }

    fn load_pages(
        &mut self,
        call: &Call<'_>,
        (cache, pages): (&PagedCache, Pages),
        kv_head: usize,
        wanted: &Wanted,
    ) {
        let (dim, kind) = (call.head_dim, cache.kind());
        for panel in wanted.panels.clone() {
            let keys = &mut self.keys[panel * dim..][..dim];
            decode(call.set, kind, cache.keys(pages[panel], kv_head), 0, keys);
            let page = cache.values(pages[panel], kv_head);
            let pieces = page.chunks_exact(kind.span(PANEL));
            for (values, piece) in self.values.chunks_exact_mut(KEYS).zip(pieces) {
                decode(
                    call.set,
                    kind,
                    piece,
                    0,
                    &mut values[panel * PANEL..][..PANEL],
                );
            }
        }
    }

    fn load_rows(
        &mut self,
        call: &Call<'_>,
        (rows, start): ([Rows<'_>; 2], usize),
        kv_head: usize,
        wanted: &Wanted,
    ) {
        let dim = call.head_dim;
        let place = |position: usize| {
            rows.map(|rows| &rows.values[(start + position) * rows.stride + kv_head * dim..][..dim])
        };
        for first in (wanted.panels.start * PANEL..wanted.panels.end * PANEL).step_by(LANES) {
            let rows: [_; LANES] = std::array::from_fn(|lane| {
                let position = wanted.tile + first + lane;
                if position + KEYS < wanted.positions.end {
                    // Rows lie too far apart for the processor to guess the next one.
                    place(position + KEYS).into_iter().for_each(prefetch);
                }
                if wanted.positions.contains(&position) {
                    place(position)
                } else {
                    [self.zeros; 2]
                }
            });
            let keys = &mut self.keys[first / PANEL * dim..][..dim];
            interleave(call.set, rows.map(|[key, _]| key), first % PANEL, keys);
            for (lane, [_, value]) in rows.into_iter().enumerate() {
                let lines = self.values[first + lane..].iter_mut().step_by(KEYS);
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
}
