use std::hint::black_box;
use std::time::Instant;

use crate::buffer::{as_f32, prefetch_at};
use crate::memory::AlignedBytes;

/// Bytes that the measurement reads: far more than caches hold.
const BYTES: usize = 512 << 20;

/// Parts of the memory that are timed one by one: short enough that some fall between the interruptions of a busy
/// machine.
const STRETCHES: usize = 16;

/// Passes over the memory, each in one of the ways.
const PASSES: usize = 12;

/// Bytes that a thread reads from one place before it goes on to others.
const PANEL: usize = 32 << 10;

/// Bytes that are asked for ahead of use, a place.
const PREFETCH: usize = 2048;

/// Measures how many bytes a second `threads` threads together read from memory.
///
/// This is the ceiling of a product with a single row, which reads every weight once. A thread reads at one place, at
/// four or at eight in turn, since how many bring the most depends on the processor; the best of a few rounds counts. The
/// measurement takes about a second and 512 MiB of memory. Zero when that memory is not to be had.
pub fn measure_read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    // The same kind of memory that weights lie in.
    let Ok(mut memory) = AlignedBytes::zeroed(BYTES) else {
        return 0.0;
    };
    memory.as_mut_slice().fill(1); // memory that was never written may not exist yet
    let data = memory.as_slice();
    let mut best: f64 = 0.0;
    for pass in 0..PASSES {
        let read = [read::<1>, read::<4>, read::<8>][pass % 3];
        for stretch in data.chunks(BYTES / STRETCHES) {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for part in stretch.chunks(stretch.len().div_ceil(threads)) {
                    scope.spawn(move || black_box(read(part)));
                }
            });
            best = best.max(stretch.len() as f64 / start.elapsed().as_secs_f64());
        }
    }
    best
}

/// A sum with enough independent parts that memory is all it waits for, over `PLACES` places in turn.
fn read<const PLACES: usize>(data: &[u8]) -> f32 {
    let mut sums = [0.0; 32];
    for group in data.chunks(PLACES * PANEL) {
        let panel = group.len() / PLACES / 128 * 128;
        for offset in (0..panel).step_by(128) {
            for place in 0..PLACES {
                let at = place * panel + offset;
                // Behind the end of a place follows what the next group has there.
                let over = (offset + PREFETCH >= panel) as usize * (PLACES - 1) * panel;
                let ahead = group.as_ptr().wrapping_add(at + PREFETCH + over);
                prefetch_at(ahead);
                prefetch_at(ahead.wrapping_add(64));
                for (sum, value) in sums.iter_mut().zip(as_f32(&group[at..at + 128])) {
                    *sum += *value;
                }
            }
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bandwidth_is_that_of_a_machine_of_this_world() {
        let bandwidth = super::measure_read_bandwidth(2);
        assert!((1e8..1e14).contains(&bandwidth), "{bandwidth}");
    }
}
