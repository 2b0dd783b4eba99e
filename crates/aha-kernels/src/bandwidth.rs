use std::hint::black_box;
use std::time::Instant;

use crate::buffer::{AlignedBytes, as_f32};

/// Bytes that the measurement reads: far more than caches hold.
const BYTES: usize = 512 << 20;

/// Parts of the memory that are timed one by one.
const STRETCHES: usize = 4;

/// Measures how many bytes a second `threads` threads together read from memory.
///
/// This is the ceiling of a product with a single row, which reads every weight once. The best of a
/// few rounds counts; the measurement takes well under a second and 512 MiB of memory. Zero when
/// that memory is not to be had.
pub fn measure_read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    // The same kind of memory that weights lie in.
    let Ok(mut memory) = AlignedBytes::zeroed(BYTES) else {
        return 0.0;
    };
    memory.as_mut_slice().fill(1); // memory that was never written may not exist yet
    let data = as_f32(memory.as_slice());
    let mut best: f64 = 0.0;
    for _ in 0..4 {
        // Stretches short enough that some fall between the interruptions of a busy machine.
        for stretch in data.chunks(BYTES / 4 / STRETCHES) {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for part in stretch.chunks(stretch.len().div_ceil(threads)) {
                    scope.spawn(move || black_box(sum(part)));
                }
            });
            best = best.max(size_of_val(stretch) as f64 / start.elapsed().as_secs_f64());
        }
    }
    best
}

/// A sum with enough independent parts that memory is all it waits for.
fn sum(data: &[f32]) -> f32 {
    let mut sums = [0.0; 32];
    for chunk in data.chunks_exact(32) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += *value;
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
