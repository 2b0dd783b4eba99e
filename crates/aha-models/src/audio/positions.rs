//! Sinusoidal positions of speech encoders.

use candle_core::{DType, Device, Result, Tensor};

/// Longest wavelength over the shortest.
const MAX_TIMESCALE: f64 = 10_000.0;

/// Rows for the positions `first..first + len`, `[len, width]`: sines of all frequencies, then their cosines. The
/// frequencies fall from 1 to 1 / 10000 inclusive, which is Whisper's form (arXiv 2212.04356).
pub fn sinusoids(
    first: usize,
    len: usize,
    width: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let half = width / 2;
    let step = MAX_TIMESCALE.ln() / (half.max(2) - 1) as f64;
    let mut rows = Vec::with_capacity(len * 2 * half);
    for position in first..first + len {
        let angle = |index: usize| {
            // The references multiply in single precision.
            let frequency = (-(step * index as f64)).exp() as f32;
            position as f32 * frequency
        };
        rows.extend((0..half).map(|index| angle(index).sin()));
        rows.extend((0..half).map(|index| angle(index).cos()));
    }
    Tensor::from_vec(rows, (len, 2 * half), device)?.to_dtype(dtype)
}
