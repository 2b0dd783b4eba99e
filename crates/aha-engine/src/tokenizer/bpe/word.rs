//! Joining the characters of a word.

use super::merges::Merges;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Words of so many pieces are searched through for each merge, which is faster than a queue for nearly all words, but takes
/// time with the square of the length.
const SHORT: usize = 24;

/// Joins neighbours, those of the lowest rank first and of the same rank from the left, until no rule fits.
pub(super) fn merge(ids: &mut Vec<u32>, merges: &Merges) {
    if ids.len() <= SHORT {
        merge_short(ids, merges);
    } else {
        merge_long(ids, merges);
    }
}

/// Where no rule fits.
const NONE: u32 = u32::MAX;

fn merge_short(ids: &mut Vec<u32>, merges: &Merges) {
    let rank = |left, right| merges.rank(left, right).unwrap_or(NONE);
    let mut ranks = [NONE; SHORT];
    for (place, pair) in ranks.iter_mut().zip(ids.windows(2)) {
        *place = rank(pair[0], pair[1]);
    }
    loop {
        let pairs = ids.len().saturating_sub(1);
        let Some((at, &lowest)) = ranks[..pairs].iter().enumerate().min_by_key(|pair| pair.1)
        else {
            return;
        };
        if lowest == NONE {
            return;
        }
        ids[at] = merges.whole(lowest);
        ids.remove(at + 1);
        ranks.copy_within(at + 1..pairs, at);
        if at > 0 {
            ranks[at - 1] = rank(ids[at - 1], ids[at]);
        }
        if at + 1 < ids.len() {
            ranks[at] = rank(ids[at], ids[at + 1]);
        }
    }
}

/// The same with a queue of pairs and a chain of pieces, in n log n.
fn merge_long(ids: &mut Vec<u32>, merges: &Merges) {
    let mut chain = Chain::new(ids.len());
    let entry = |rank: u32, at: usize| Reverse((rank, at));
    let pairs = ids.windows(2).enumerate();
    let mut queue: BinaryHeap<Reverse<(u32, usize)>> = pairs
        .filter_map(|(at, pair)| Some(entry(merges.rank(pair[0], pair[1])?, at)))
        .collect();
    while let Some(Reverse((rank, at))) = queue.pop() {
        // What became of a pair after it was queued is another rule's.
        let Some(right) = chain.next(at) else {
            continue;
        };
        if merges.rank(ids[at], ids[right]) != Some(rank) {
            continue;
        }
        ids[at] = merges.whole(rank);
        chain.remove(right);
        if let Some(left) = chain.previous(at) {
            queue.extend(
                merges
                    .rank(ids[left], ids[at])
                    .map(|rank| entry(rank, left)),
            );
        }
        if let Some(right) = chain.next(at) {
            queue.extend(merges.rank(ids[at], ids[right]).map(|rank| entry(rank, at)));
        }
    }
    let mut kept = 0;
    let mut next = Some(0);
    while let Some(at) = next {
        ids[kept] = ids[at];
        kept += 1;
        next = chain.next(at);
    }
    ids.truncate(kept);
}

/// Places in a row, of which some were removed.
struct Chain {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Chain {
    fn new(length: usize) -> Self {
        Self {
            next: (1..=length).collect(),
            // The first one has none.
            previous: (0..length).map(|at| at.wrapping_sub(1)).collect(),
        }
    }

    /// The next place; none behind the last one and behind a removed one.
    fn next(&self, at: usize) -> Option<usize> {
        let next = self.next[at];
        (next < self.next.len()).then_some(next)
    }

    fn previous(&self, at: usize) -> Option<usize> {
        let previous = self.previous[at];
        (previous < at).then_some(previous)
    }

    /// Removes a place that is not the first one.
    fn remove(&mut self, at: usize) {
        let (previous, next) = (self.previous[at], self.next[at]);
        self.next[previous] = next;
        if let Some(after) = self.previous.get_mut(next) {
            *after = previous;
        }
        self.next[at] = usize::MAX;
    }
}
