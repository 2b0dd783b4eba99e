//! Sample rate conversion, equal to what the references do to the whole signal.

mod kernel;

use super::error::{AudioError, Result};
use kernel::{Shape, Steps, Taps};

/// Which reference the conversion follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResampleMethod {
    /// `librosa.resample` and everything else that uses soxr at high quality: steep, -120 dB of
    /// aliasing. The one to take unless a model was fed otherwise.
    #[default]
    SoxrHq,
    /// `torchaudio.transforms.Resample` with its defaults: a short Hann-windowed sinc.
    Torchaudio,
    /// `torchaudio.functional.resample`, which computes the same kernel in single precision.
    TorchaudioFunctional,
}

/// A streaming converter of one channel. Any cutting of the input into blocks gives the same bits.
///
/// ```
/// use aha_media::audio::{ResampleMethod, Resampler};
///
/// let mut resampler = Resampler::new(48_000, 16_000, ResampleMethod::SoxrHq)?;
/// let mut out = Vec::new();
/// for block in vec![0.0; 48_000].chunks(1000) {
///     resampler.push(block, &mut out);
/// }
/// resampler.finish(&mut out);
/// assert_eq!(out.len(), 16_000);
/// # Ok::<(), aha_media::audio::AudioError>(())
/// ```
pub struct Resampler {
    method: ResampleMethod,
    /// Rates without their common divisor.
    from: usize,
    to: usize,
    /// `None` when the rates are equal.
    taps: Option<Taps>,
    /// Input from [`Self::window_start`] on; zeros stand before the first sample.
    window: Vec<f32>,
    /// Index of the input sample at `window[0]`, counted from `-half`.
    window_start: u64,
    received: u64,
    produced: u64,
}

impl std::fmt::Debug for Resampler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Resampler")
            .field("method", &self.method)
            .field("from", &self.from)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

impl Resampler {
    /// A converter between two rates in Hz.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] for a rate of 0 or above 4 MHz.
    pub fn new(from: u32, to: u32, method: ResampleMethod) -> Result<Self> {
        for rate in [from, to] {
            if !(1..=4_000_000).contains(&rate) {
                return Err(AudioError::InvalidOption {
                    name: "sample rate",
                    reason: format!("{rate} Hz cannot be converted"),
                });
            }
        }
        let divisor = greatest_common_divisor(from, to);
        let (from, to) = ((from / divisor) as usize, (to / divisor) as usize);
        let shape = match method {
            ResampleMethod::SoxrHq => Shape::Steep(steps(from, to)),
            ResampleMethod::Torchaudio => Shape::HannSinc { single: false },
            ResampleMethod::TorchaudioFunctional => Shape::HannSinc { single: true },
        };
        let taps = (from != to).then(|| Taps::new(shape, from, to));
        let mut resampler = Self {
            method,
            from,
            to,
            taps,
            window: Vec::new(),
            window_start: 0,
            received: 0,
            produced: 0,
        };
        resampler.reset();
        Ok(resampler)
    }

    /// Forgets everything heard so far; the filter stays.
    pub fn reset(&mut self) {
        self.window.clear();
        self.window
            .resize(self.taps.as_ref().map_or(0, Taps::half), 0.0);
        (self.window_start, self.received, self.produced) = (0, 0, 0);
    }

    /// Adds input and appends what can be said of the output to `out`.
    pub fn push(&mut self, input: &[f32], out: &mut Vec<f32>) {
        self.received += input.len() as u64;
        if self.taps.is_none() {
            out.extend_from_slice(input);
            return;
        }
        self.window.extend_from_slice(input);
        self.produce(u64::MAX, out);
    }

    /// Appends the end of the output, of which the reference gives a definite number of samples.
    /// The converter is then as new.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        if let Some(taps) = &self.taps {
            // One more input period of zeros than the last output can reach.
            let tail = taps.count() + self.from.div_ceil(self.to) + 1;
            self.window.resize(self.window.len() + tail, 0.0);
            self.produce(self.output_length(self.received), out);
        }
        self.reset();
    }

    /// Number of output samples for a whole input.
    pub fn output_length(&self, input: u64) -> u64 {
        if self.taps.is_none() {
            return input;
        }
        let (from, to) = (self.from as f64, self.to as f64);
        match self.method {
            ResampleMethod::SoxrHq => (input as f64 * (to / from)).ceil() as u64,
            // The reference rounds the length to single precision before it rounds it up, and
            // has no more than a whole number of periods.
            ResampleMethod::Torchaudio | ResampleMethod::TorchaudioFunctional => {
                let length = (to * input as f64 / from) as f32;
                (length.ceil() as u64).min((input / self.from as u64 + 1) * self.to as u64)
            }
        }
    }

    fn produce(&mut self, end: u64, out: &mut Vec<f32>) {
        let Some(taps) = &mut self.taps else { return };
        let (from, to, count) = (self.from as u64, self.to as u64, taps.count());
        while self.produced < end {
            let phase = self.produced % to;
            // Counted from -half, like `window_start`.
            let start = self.produced / to * from + phase * from / to;
            let offset = (start - self.window_start) as usize;
            let Some(span) = self.window.get(offset..offset + count) else {
                break;
            };
            out.push(dot(span, taps.phase(phase as usize)));
            self.produced += 1;
        }
        let next = self.produced / to * from + self.produced % to * from / to;
        let used = ((next - self.window_start) as usize).min(self.window.len());
        // Moving the rest down costs as much as the rest is long: not for every small block.
        if used > self.window.len() / 2 {
            self.window.drain(..used);
            self.window_start += used as u64;
        }
    }
}

/// Converts a whole signal of one channel.
///
/// # Errors
///
/// As [`Resampler::new`].
pub fn resample(input: &[f32], from: u32, to: u32, method: ResampleMethod) -> Result<Vec<f32>> {
    let mut resampler = Resampler::new(from, to, method)?;
    let mut out = Vec::with_capacity(resampler.output_length(input.len() as u64) as usize);
    resampler.push(input, &mut out);
    resampler.finish(&mut out);
    Ok(out)
}

/// The filters that soxr takes for a ratio.
fn steps(from: usize, to: usize) -> Steps {
    let odd_part = |n: usize| n >> n.trailing_zeros();
    match (odd_part(from), odd_part(to)) {
        (1, 1) if to <= 4 => Steps::Halves,
        (1 | 3, 1 | 3) if to <= 4 => Steps::Thirds,
        _ => Steps::Two,
    }
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Sum of products in a fixed order of sixteen running sums, which compilers turn into vectors.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
