//! Ownership of cache blocks: allocation, sharing by content, eviction.

use crate::media::ContentHash;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// Identity of a full block: its tokens and everything before them.
///
/// 128 bits under two random keys, so that equal hashes mean equal histories even against a client that tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash(u64, u64);

/// A block's share of the pool's bookkeeping.
#[derive(Debug, Clone, Default)]
struct Block {
    references: u32,
    hash: Option<BlockHash>,
    /// Key in `evictable` while nobody refers to the block but its content is still known.
    last_use: u64,
}

/// All blocks of one model's cache.
///
/// A block is free (no content worth keeping), held (by one or more sequences), or evictable (held by nobody, but its
/// content may be asked for again). Evictable blocks are given out last, least recently used first.
#[derive(Debug)]
pub(crate) struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    /// The last one given back is the first given out: its memory is touched already.
    free: Vec<u32>,
    evictable: BTreeMap<u64, u32>,
    by_hash: HashMap<BlockHash, u32>,
    keys: (RandomState, RandomState),
    clock: u64,
    prefix_cache: bool,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize, block_size: usize, prefix_cache: bool) -> Self {
        Self {
            block_size,
            blocks: vec![Block::default(); num_blocks],
            free: (0..num_blocks as u32).rev().collect(),
            evictable: BTreeMap::new(),
            by_hash: HashMap::new(),
            keys: (RandomState::new(), RandomState::new()),
            clock: 0,
            prefix_cache,
        }
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that can be given out now.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Blocks that nobody holds but whose content is still known.
    pub(crate) fn evictable(&self) -> usize {
        self.evictable.len()
    }

    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Hash of a full block after `parent` whose first token is at `start`. Media that stand in it count with their
    /// content and place.
    pub(crate) fn hash(
        &self,
        parent: Option<BlockHash>,
        tokens: &[u32],
        start: usize,
        media: &[(Range<usize>, ContentHash)],
    ) -> BlockHash {
        debug_assert_eq!(tokens.len(), self.block_size);
        let inside: Vec<_> = media
            .iter()
            .filter(|(range, _)| range.start < start + tokens.len() && start < range.end)
            .map(|(range, content)| (range.start, *content))
            .collect();
        let content = (parent.map(|hash| (hash.0, hash.1)), tokens, inside);
        BlockHash(
            self.keys.0.hash_one(&content),
            self.keys.1.hash_one(&content),
        )
    }

    /// Takes hold of the cached blocks that begin `tokens`, as many as match, leaving at least one token to compute.
    pub(crate) fn take_prefix(
        &mut self,
        tokens: &[u32],
        media: &[(Range<usize>, ContentHash)],
    ) -> Vec<(u32, BlockHash)> {
        let mut taken = Vec::new();
        if !self.prefix_cache {
            return taken;
        }
        let mut parent = None;
        let full_blocks = tokens.len().saturating_sub(1) / self.block_size;
        let chunks = tokens.chunks_exact(self.block_size).take(full_blocks);
        for (index, chunk) in chunks.enumerate() {
            let hash = self.hash(parent, chunk, index * self.block_size, media);
            let Some(&block) = self.by_hash.get(&hash) else {
                break;
            };
            self.hold(block);
            taken.push((block, hash));
            parent = Some(hash);
        }
        taken
    }

    fn hold(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        if entry.references == 0 {
            self.evictable.remove(&entry.last_use);
        }
        entry.references += 1;
    }

    /// Gives out a block without content; `None` when all are held.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.evictable.pop_first()?;
                if let Some(hash) = self.blocks[block as usize].hash.take() {
                    self.by_hash.remove(&hash);
                }
                block
            }
        };
        self.blocks[block as usize].references = 1;
        Some(block)
    }

    /// Declares that a held block is full and computed, so that others may share it.
    pub(crate) fn publish(&mut self, block: u32, hash: BlockHash) {
        if self.prefix_cache && !self.by_hash.contains_key(&hash) {
            self.by_hash.insert(hash, block);
            self.blocks[block as usize].hash = Some(hash);
        }
    }

    /// Gives a block back.
    pub(crate) fn release(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.references > 0, "block {block} is released twice");
        entry.references = entry.references.saturating_sub(1);
        if entry.references == 0 {
            if entry.hash.is_some() {
                self.clock += 1;
                entry.last_use = self.clock;
                self.evictable.insert(self.clock, block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Gives a sequence's blocks back. The last ones go first: a prefix is worth more than what follows it.
    pub(crate) fn release_all(&mut self, blocks: &mut Vec<u32>) {
        while let Some(block) = blocks.pop() {
            self.release(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &mut BlockPool, tokens: &[u32]) -> Vec<u32> {
        let mut blocks = Vec::new();
        let mut parent = None;
        for chunk in tokens.chunks_exact(pool.block_size()) {
            let block = pool.allocate().unwrap();
            let hash = pool.hash(parent, chunk, 0, &[]);
            pool.publish(block, hash);
            blocks.push(block);
            parent = Some(hash);
        }
        blocks
    }

    #[test]
    fn a_released_prefix_is_found_again_and_leaves_one_token_to_compute() {
        let mut pool = BlockPool::new(4, 2, true);
        let mut blocks = filled(&mut pool, &[1, 2, 3, 4]);
        let first = blocks[0];
        pool.release_all(&mut blocks);
        assert_eq!(pool.available(), 4);
        let found = pool.take_prefix(&[1, 2, 3, 4], &[]);
        assert_eq!(
            found.iter().map(|(block, _)| *block).collect::<Vec<_>>(),
            [first]
        );
        assert!(pool.take_prefix(&[9, 2, 3, 4], &[]).is_empty());
        assert_eq!(pool.available(), 3);
    }

    #[test]
    fn eviction_takes_the_end_of_the_least_recently_used_chain() {
        let mut pool = BlockPool::new(4, 2, true);
        let mut old = filled(&mut pool, &[1, 2, 3, 4]);
        let mut new = filled(&mut pool, &[5, 6, 7, 8]);
        let old_end = old[1];
        pool.release_all(&mut old);
        pool.release_all(&mut new);
        assert_eq!(pool.allocate(), Some(old_end));
        assert_eq!(pool.take_prefix(&[1, 2, 3, 4, 0], &[]).len(), 1);
        assert_eq!(pool.take_prefix(&[5, 6, 7, 8, 0], &[]).len(), 2);
    }

    #[test]
    fn shared_blocks_stay_until_the_last_holder_leaves() {
        let mut pool = BlockPool::new(2, 2, true);
        let mut first = filled(&mut pool, &[1, 2]);
        let second = pool.take_prefix(&[1, 2, 3], &[]);
        pool.release_all(&mut first);
        assert_eq!(pool.evictable(), 0);
        pool.release(second[0].0);
        assert_eq!(pool.evictable(), 1);
    }

    #[test]
    fn other_media_or_other_places_are_other_blocks() {
        let pool = BlockPool::new(1, 4, true);
        let hash = |start, range: Range<usize>, content: &str| {
            pool.hash(None, &[7; 4], start, &[(range, ContentHash::of(content))])
        };
        assert_eq!(hash(4, 5..7, "cat"), hash(4, 5..7, "cat"));
        assert_ne!(hash(4, 5..7, "cat"), hash(4, 5..7, "dog"));
        assert_ne!(hash(4, 5..7, "cat"), hash(4, 4..6, "cat"));
        assert_eq!(
            hash(4, 8..9, "cat"),
            hash(4, 0..4, "dog"),
            "outside of the block"
        );
    }

    #[test]
    fn without_prefix_cache_nothing_is_shared() {
        let mut pool = BlockPool::new(2, 2, false);
        let mut blocks = filled(&mut pool, &[1, 2]);
        pool.release_all(&mut blocks);
        assert!(pool.take_prefix(&[1, 2, 3], &[]).is_empty());
        assert_eq!((pool.available(), pool.evictable()), (2, 0));
    }
}
