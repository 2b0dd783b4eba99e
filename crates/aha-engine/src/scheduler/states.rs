//! Ownership of recurrent states: a slot for each running sequence, and snapshots for the prefix cache.
//!
//! A recurrent state stands for all tokens before it and cannot be cut back. So a prefix is only shared up to a block
//! border at which somebody has kept a copy of the state.

use super::blocks::BlockHash;
use std::collections::{BTreeMap, HashMap};

/// A kept state.
#[derive(Debug, Clone, Copy)]
struct Snapshot {
    slot: u32,
    /// Key in `by_use`.
    last_use: u64,
}

/// All state slots of one model's cache.
#[derive(Debug)]
pub(crate) struct StatePool {
    free: Vec<u32>,
    snapshots: HashMap<BlockHash, Snapshot>,
    by_use: BTreeMap<u64, BlockHash>,
    max_snapshots: usize,
    total: usize,
    clock: u64,
}

impl StatePool {
    /// Slots for as many running sequences and as many snapshots.
    pub(crate) fn new(max_sequences: usize, max_snapshots: usize) -> Self {
        Self {
            free: (0..(max_sequences + max_snapshots) as u32).rev().collect(),
            total: max_sequences + max_snapshots,
            snapshots: HashMap::new(),
            by_use: BTreeMap::new(),
            max_snapshots,
            clock: 0,
        }
    }

    /// A slot for a sequence; there is one for each that may run.
    pub(crate) fn acquire(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// All slots.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Slots that no running sequence holds, those of snapshots included.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.snapshots.len()
    }

    /// Slots that hold a snapshot.
    pub(crate) fn kept(&self) -> usize {
        self.snapshots.len()
    }

    /// Gives a sequence's slot back.
    pub(crate) fn release(&mut self, slot: u32) {
        debug_assert!(!self.free.contains(&slot), "slot {slot} is released twice");
        self.free.push(slot);
    }

    /// Whether the state after the block is kept.
    pub(crate) fn contains(&self, hash: BlockHash) -> bool {
        self.snapshots.contains_key(&hash)
    }

    /// Slot of the state after the block, which counts as used.
    pub(crate) fn find(&mut self, hash: BlockHash) -> Option<u32> {
        let clock = self.tick();
        let snapshot = self.snapshots.get_mut(&hash)?;
        self.by_use.remove(&snapshot.last_use);
        snapshot.last_use = clock;
        self.by_use.insert(clock, hash);
        Some(snapshot.slot)
    }

    /// Slot to which the state after the block shall be copied, at the cost of the least recently used snapshot when
    /// all are taken. `None` when the state is kept already or nothing is to be kept.
    pub(crate) fn keep(&mut self, hash: BlockHash) -> Option<u32> {
        if self.max_snapshots == 0 || self.find(hash).is_some() {
            return None;
        }
        if self.snapshots.len() >= self.max_snapshots
            && let Some((_, oldest)) = self.by_use.first_key_value()
        {
            self.forget(*oldest);
        }
        let slot = self.free.pop()?;
        let last_use = self.tick();
        self.snapshots.insert(hash, Snapshot { slot, last_use });
        self.by_use.insert(last_use, hash);
        Some(slot)
    }

    /// Drops the snapshot after the block, if there is one.
    pub(crate) fn forget(&mut self, hash: BlockHash) {
        if let Some(snapshot) = self.snapshots.remove(&hash) {
            self.by_use.remove(&snapshot.last_use);
            self.free.push(snapshot.slot);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::super::BlockPool;
    use super::*;

    #[test]
    fn snapshots_are_evicted_least_recently_used_first_and_never_take_a_sequences_slot() {
        let pool = BlockPool::new(1, 1, true);
        let hash = |token: u32| pool.hash(None, &[token], 0, &[]);
        let mut states = StatePool::new(2, 2);
        let first = states.keep(hash(1)).unwrap();
        let second = states.keep(hash(2)).unwrap();
        assert_eq!(states.keep(hash(1)), None, "kept already");
        assert_eq!(states.find(hash(1)), Some(first));
        assert_eq!(states.keep(hash(3)), Some(second));
        assert!(!states.contains(hash(2)));
        let running = [states.acquire().unwrap(), states.acquire().unwrap()];
        assert!(!running.contains(&first) && !running.contains(&second));
        assert_eq!(states.acquire(), None);
        states.release(running[0]);
        assert_eq!(states.acquire(), Some(running[0]));
    }

    #[test]
    fn without_room_for_snapshots_nothing_is_kept() {
        let pool = BlockPool::new(1, 1, true);
        let mut states = StatePool::new(1, 0);
        assert_eq!(states.keep(pool.hash(None, &[1], 0, &[])), None);
        assert!(states.acquire().is_some());
    }
}
