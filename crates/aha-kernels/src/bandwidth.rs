use std::hint::black_box;
use std::time::Instant;

/// Bytes that the measurement reads: far more than caches hold.
const BYTES: usize = 512 << 20;

/// Measures how many bytes a second `threads` threads together read from memory.
///
/// This is the ceiling of a product with a single row, which reads every weight once. The best of a
/// few rounds counts; the measurement takes well under a second and 512 MiB of memory. Zero when
/// that memory is not to be had.
pub fn measure_read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    let mut data: Vec<u64> = Vec::new();
    if data.try_reserve_exact(BYTES / 8).is_err() {
        return 0.0;
    }
    data.resize(BYTES / 8, 1); // not zero: the pages of zeroed memory may not exist yet
    let share = data.len().div_ceil(threads);
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.max(size_of_val(data.as_slice()) as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// A sum with enough independent parts that memory is all it waits for.
fn sum(data: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    for chunk in data.chunks_exact(32) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bandwidth_is_that_of_a_machine_of_this_world() {
        let bandwidth = super::measure_read_bandwidth(2);
        assert!((1e8..1e14).contains(&bandwidth), "{bandwidth}");
    }
}
