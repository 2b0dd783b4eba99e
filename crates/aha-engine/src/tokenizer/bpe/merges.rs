//! Which neighbours a byte-pair encoding joins, and into what.

use super::super::slots::Slots;
use std::hash::{BuildHasher, RandomState};

/// One rule: two neighbours become one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Merge {
    pub(in super::super) left: u32,
    pub(in super::super) right: u32,
    pub(in super::super) whole: u32,
}

/// Rules by rank (the lowest comes first), and ranks by the pair that is joined.
pub(super) struct Merges {
    merges: Vec<Merge>,
    ranks: Slots,
    /// Odd, and another one in each run: a file cannot bring pairs that fall on one place.
    factor: u64,
}

impl Merges {
    /// Rules in the order of their ranks. Of two with the same pair, the last one counts.
    pub(super) fn new(mut merges: Vec<Merge>) -> Self {
        merges.shrink_to_fit();
        let factor = RandomState::new().hash_one(()) | 1;
        let mut ranks = Slots::new(merges.len(), merges.len() as u32);
        for (rank, merge) in (0..).zip(&merges) {
            let same = |other: u32| is_pair(&merges, other, merge.left, merge.right);
            ranks.insert(hash(factor, merge.left, merge.right), rank, same);
        }
        Self {
            merges,
            ranks,
            factor,
        }
    }

    /// The rank of the rule that joins these two.
    pub(super) fn rank(&self, left: u32, right: u32) -> Option<u32> {
        let is = |rank| is_pair(&self.merges, rank, left, right);
        self.ranks.find(hash(self.factor, left, right), is)
    }

    /// What the rule with this rank makes.
    pub(super) fn whole(&self, rank: u32) -> u32 {
        self.merges[rank as usize].whole
    }

    /// The rules that count, by rank.
    pub(super) fn iter(&self) -> impl Iterator<Item = Merge> {
        let ranked = (0..).zip(&self.merges);
        ranked.filter_map(|(rank, merge)| {
            let counts = self.rank(merge.left, merge.right) == Some(rank);
            counts.then_some(*merge)
        })
    }
}

fn is_pair(merges: &[Merge], rank: u32, left: u32, right: u32) -> bool {
    let merge = &merges[rank as usize];
    merge.left == left && merge.right == right
}

fn hash(factor: u64, left: u32, right: u32) -> u64 {
    (u64::from(left) << 32 | u64::from(right)).wrapping_mul(factor)
}
