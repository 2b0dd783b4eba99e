//! A hash table of numbers.

/// A slot without a number.
const EMPTY: u32 = u32::MAX;

/// Finds numbers (token ids, ranks of merges) by the hash of what they stand for, which is kept elsewhere.
///
/// Open addressing, four bytes a slot. Above the bits that a number needs, a slot has as many bits of the hash as there is
/// room for, so that hardly anything but what is looked for is ever compared.
pub(super) struct Slots {
    /// A power of two, one of them empty at least.
    slots: Vec<u32>,
    /// Bits of a slot that are the number's. No number has all of them set, so no full slot looks empty.
    number_bits: u32,
}

impl Slots {
    /// Room for `count` numbers up to `largest`, which must be below 2^31 - 1.
    pub(super) fn new(count: usize, largest: u32) -> Self {
        Self {
            slots: vec![EMPTY; (count + count / 2).next_power_of_two().max(2)],
            number_bits: u32::BITS - (largest + 1).leading_zeros(),
        }
    }

    /// The number with this hash that `is` the one looked for.
    pub(super) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let slot = self.slots[self.place(hash, is)];
        (slot != EMPTY).then_some(slot & self.number_mask())
    }

    /// Puts in `number`, in the place of one that is the `same`, which is given back. No more than the `count` of
    /// [`Slots::new`] may be put in.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        number: u32,
        same: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let place = self.place(hash, same);
        let filled = self.tag(hash) | number;
        let before = std::mem::replace(&mut self.slots[place], filled);
        (before != EMPTY).then_some(before & self.number_mask())
    }

    /// The slot of the number that is looked for, or the empty one where it would be.
    fn place(&self, hash: u64, is: impl Fn(u32) -> bool) -> usize {
        let (tag, mask) = (self.tag(hash), self.number_mask());
        let last = self.slots.len() - 1;
        // The upper bits are the best ones of a product.
        let mut place = (hash >> (u64::BITS - last.count_ones())) as usize;
        loop {
            let slot = self.slots[place];
            if slot == EMPTY || (slot & !mask == tag && is(slot & mask)) {
                return place;
            }
            place = (place + 1) & last;
        }
    }

    /// The part of the hash that a slot keeps.
    fn tag(&self, hash: u64) -> u32 {
        ((hash >> 32) << self.number_bits) as u32
    }

    fn number_mask(&self) -> u32 {
        (1 << self.number_bits) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn numbers_are_found_whatever_their_hashes() {
        for (count, spread) in [(0, 1), (1, 1), (2, 7), (5, 1), (1000, 1), (1000, 1 << 60)] {
            // All in one place, neighbours, or well spread.
            for shift in [0, 40] {
                let hash = |key: u64| (key % spread).wrapping_mul(0x9E37_79B9_7F4A_7C15) << shift;
                let mut slots = Slots::new(count, 2 * count as u32);
                let mut expected = HashMap::new();
                for key in 0..count as u64 {
                    let number = 2 * key as u32;
                    assert_eq!(
                        slots.insert(hash(key), number, |other| other == number),
                        None
                    );
                    expected.insert(key, number);
                }
                for key in 0..2 * count as u64 + 3 {
                    let found = slots.find(hash(key), |number| u64::from(number) == 2 * key);
                    assert_eq!(found, expected.get(&key).copied(), "{key} of {count}");
                }
            }
        }
    }

    #[test]
    fn the_same_is_replaced() {
        let mut slots = Slots::new(3, 2);
        assert_eq!(slots.insert(9, 0, |_| true), None);
        assert_eq!(slots.insert(9, 1, |other| other == 0), Some(0));
        assert_eq!(slots.insert(9, 2, |_| false), None);
        assert_eq!(slots.find(9, |number| number == 0), None);
        assert_eq!(slots.find(9, |number| number == 1), Some(1));
    }
}
