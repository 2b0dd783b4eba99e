//! What threads fetch while they wait: the weights of the product that comes next.
//!
//! Generation is bound by the time that memory takes to deliver the weights, and between two products,
//! while one thread normalises and rotates, memory would deliver nothing. Every step runs the same
//! products in the same order, so each matrix remembers what followed it the last time, and threads
//! that have run out of tasks ask for the beginning of that. Only addresses are remembered: a prefetch
//! changes nothing, and one of memory that has been freed since does nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::prefetch_at;

/// Bytes that one thread fetches: about half of a second-level cache.
const MOST_BYTES: usize = 512 << 10;

/// Bytes that are asked for between two looks for work.
const STRIDE: usize = 1 << 10;

/// Matrices of a product that are remembered. More are seldom multiplied together.
const MOST_MATRICES: usize = 3;

/// Where a matrix lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: usize,
    pub(crate) bytes: usize,
}

/// A product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Product {
    /// Its matrices, in the order in which they are read.
    places: [Place; MOST_MATRICES],
    /// Equal parts that threads take one after another.
    tasks: usize,
}

/// What came after a product the last time, kept with its first matrix.
#[derive(Debug, Default)]
pub(crate) struct Follower(Mutex<Product>);

/// The product that runs or ran last, by what follows it.
#[derive(Debug, Default)]
pub(crate) struct Foresight(Mutex<Option<Arc<Follower>>>);

impl Foresight {
    /// A product that reads these matrices once, in so many tasks, begins; `follower` belongs to the first of them.
    pub(crate) fn begin(
        &self,
        follower: &Arc<Follower>,
        tasks: usize,
        places: impl Iterator<Item = Place>,
    ) {
        let mut product = Product {
            tasks,
            ..Product::default()
        };
        for (own, place) in product.places.iter_mut().zip(places) {
            *own = place;
        }
        if let Some(last) = lock(&self.0).replace(Arc::clone(follower)) {
            *lock(&last.0) = product;
        }
    }

    /// A product begins whose like fetches for itself.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one thread fetches.
#[derive(Debug, Default)]
pub(crate) struct Fetcher {
    of: Option<Arc<Follower>>,
    product: Product,
    /// The next byte of the product's to fetch, and the one to stop at.
    next: usize,
    end: usize,
}

impl Fetcher {
    /// Looks for what comes next. `task` is the task of a product that this thread begins with.
    pub(crate) fn look(&mut self, foresight: &Foresight, task: usize) {
        let of = lock(&foresight.0).clone();
        if of.as_ref().map(Arc::as_ptr) == self.of.as_ref().map(Arc::as_ptr) {
            return;
        }
        self.product = of
            .as_ref()
            .map_or_else(Product::default, |follower| *lock(&follower.0));
        self.of = of;
        let all: usize = self.product.places.iter().map(|place| place.bytes).sum();
        self.next = all / self.product.tasks.max(1) * task;
        self.end = all.min(self.next + MOST_BYTES);
    }

    /// Asks for a little more. False when there is no more to ask for.
    pub(crate) fn fetch(&mut self) -> bool {
        match self.step() {
            Some(place) => {
                for offset in (0..place.bytes).step_by(64) {
                    prefetch_at((place.address + offset) as *const u8);
                }
                true
            }
            None => false,
        }
    }

    fn step(&mut self) -> Option<Place> {
        let mut offset = self.next;
        for place in &self.product.places {
            if offset < place.bytes {
                let bytes = STRIDE
                    .min(place.bytes - offset)
                    .min(self.end.saturating_sub(self.next));
                self.next += bytes;
                return (bytes > 0).then_some(Place {
                    address: place.address + offset,
                    bytes,
                });
            }
            offset -= place.bytes;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: usize, bytes: usize) -> Place {
        Place { address, bytes }
    }

    /// All that a thread asks for, joined where it touches.
    fn fetched(foresight: &Foresight, task: usize) -> Vec<Place> {
        let mut fetcher = Fetcher::default();
        fetcher.look(foresight, task);
        let mut places: Vec<Place> = Vec::new();
        while let Some(place) = fetcher.step() {
            match places.last_mut() {
                Some(last) if last.address + last.bytes == place.address => {
                    last.bytes += place.bytes;
                }
                _ => places.push(place),
            }
        }
        assert!(!fetcher.fetch());
        places
    }

    #[test]
    fn what_followed_is_fetched_the_next_time() {
        let foresight = Foresight::default();
        let [a, b] = [(); 2].map(|()| Arc::new(Follower::default()));
        let first = [place(1 << 20, 5000)];
        let second = [place(2 << 20, 3000), place(3 << 20, 1000)];
        foresight.begin(&a, 8, first.into_iter());
        assert_eq!(fetched(&foresight, 0), []);
        foresight.begin(&b, 2, second.into_iter());
        assert_eq!(fetched(&foresight, 0), []);
        foresight.begin(&a, 8, first.into_iter());
        assert_eq!(fetched(&foresight, 0), second);
        // Another thread begins further on, with the second of two tasks: half of 4000 bytes.
        let half = [place((2 << 20) + 2000, 1000), place(3 << 20, 1000)];
        assert_eq!(fetched(&foresight, 1), half);
        foresight.begin(&b, 2, second.into_iter());
        assert_eq!(fetched(&foresight, 0), first);
        foresight.forget();
        assert_eq!(fetched(&foresight, 0), []);
    }

    #[test]
    fn a_thread_goes_on_where_it_was_and_stops_at_its_share_of_the_cache() {
        let foresight = Foresight::default();
        let follower = Arc::new(Follower::default());
        let weights = [place(0, 10 * MOST_BYTES)];
        foresight.begin(&follower, 8, weights.into_iter());
        foresight.begin(&follower, 8, weights.into_iter());
        let mut fetcher = Fetcher::default();
        let mut bytes = 0;
        for _ in 0..3 {
            fetcher.look(&foresight, 0);
            bytes += fetcher.step().unwrap().bytes;
        }
        assert_eq!(bytes, 3 * STRIDE);
        while let Some(place) = fetcher.step() {
            assert_eq!(place.address, bytes);
            bytes += place.bytes;
        }
        assert_eq!(bytes, MOST_BYTES);
        fetcher.look(&foresight, 0);
        assert_eq!(fetcher.step(), None);
    }

    #[test]
    fn more_matrices_than_are_remembered_are_no_fault() {
        let foresight = Foresight::default();
        let follower = Arc::new(Follower::default());
        let places = (1..=5).map(|index| place(index << 20, 100));
        foresight.begin(&follower, 8, places.clone());
        foresight.begin(&follower, 8, places);
        assert_eq!(fetched(&foresight, 0).len(), MOST_MATRICES);
    }
}
