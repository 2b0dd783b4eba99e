//! The Silero voice activity network at 16 kHz, computed here.
//!
//! A short Fourier transform, four convolutions, one LSTM cell and a sigmoid: one probability for
//! every 512 samples. Weights and their licence lie in `data/silero-vad`.

use std::sync::OnceLock;

use super::super::resample::dot;
use super::super::spectrum::PowerSpectrum;

/// Samples a probability is for.
pub const VAD_FRAME: usize = 512;
/// Samples of the frame before that the network sees again.
const CONTEXT: usize = 64;
const N_FFT: usize = 256;
const HOP: usize = 128;
const BINS: usize = N_FFT / 2 + 1;
/// Spectra of a frame: context, frame and the reflection behind it.
const COLUMNS: usize = (CONTEXT + VAD_FRAME + CONTEXT - N_FFT) / HOP + 1;
const HIDDEN: usize = 128;

static BYTES: &[u8] = include_bytes!("../../../data/silero-vad/silero_vad_16k.bin");

/// The network with its memory of the sound before.
pub struct SileroVad {
    weights: &'static Weights,
    spectrum: PowerSpectrum,
    context: [f32; CONTEXT],
    hidden: Vec<f32>,
    cell: Vec<f32>,
}

impl std::fmt::Debug for SileroVad {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SileroVad").finish_non_exhaustive()
    }
}

impl Default for SileroVad {
    fn default() -> Self {
        Self::new()
    }
}

impl SileroVad {
    /// A network that has heard nothing yet. The weights are shared by all of them.
    pub fn new() -> Self {
        Self {
            weights: Weights::get(),
            spectrum: PowerSpectrum::new(N_FFT),
            context: [0.0; CONTEXT],
            hidden: vec![0.0; HIDDEN],
            cell: vec![0.0; HIDDEN],
        }
    }

    /// Forgets the sound heard so far.
    pub fn reset(&mut self) {
        self.context = [0.0; CONTEXT];
        self.hidden.fill(0.0);
        self.cell.fill(0.0);
    }

    /// The probability of speech in the next 512 samples at 16 kHz, full scale 1.
    pub fn probability(&mut self, frame: &[f32; VAD_FRAME]) -> f32 {
        let weights = self.weights;
        let mut sound = [0.0f32; CONTEXT + VAD_FRAME + CONTEXT];
        sound[..CONTEXT].copy_from_slice(&self.context);
        for (slot, &sample) in sound[CONTEXT..].iter_mut().zip(frame) {
            // What is no number would stay in the memory for good.
            *slot = if sample.is_finite() {
                sample.clamp(-8.0, 8.0)
            } else {
                0.0
            };
        }
        let end = CONTEXT + VAD_FRAME;
        self.context.copy_from_slice(&sound[end - CONTEXT..end]);
        for i in 0..CONTEXT {
            sound[end + i] = sound[end - 2 - i];
        }

        let mut columns = Columns::new(BINS, COLUMNS);
        for column in 0..COLUMNS {
            let part = &sound[column * HOP..][..N_FFT];
            let windowed = part
                .iter()
                .zip(&weights.window)
                .map(|(&sample, weight)| f64::from(sample) * weight);
            for (slot, &power) in columns
                .column(column)
                .iter_mut()
                .zip(self.spectrum.of(windowed))
            {
                *slot = power.sqrt() as f32;
            }
        }
        let mut features = columns;
        for layer in &weights.convolutions {
            features = layer.forward(&features);
        }
        self.step(features.column(0));
        let score = self
            .hidden
            .iter()
            .zip(&weights.head)
            .map(|(h, w)| h.max(0.0) * w)
            .sum::<f32>();
        sigmoid(score + weights.head_bias)
    }

    fn step(&mut self, input: &[f32]) {
        let weights = self.weights;
        let mut gates = [0.0f32; 4 * HIDDEN];
        for (row, gate) in gates.iter_mut().enumerate() {
            let at = row * HIDDEN;
            *gate = dot(&weights.input[at..at + HIDDEN], input)
                + dot(&weights.recurrent[at..at + HIDDEN], &self.hidden)
                + weights.gate_bias[row];
        }
        for i in 0..HIDDEN {
            let [enter, forget, candidate, leave] =
                [0, 1, 2, 3].map(|gate| gates[gate * HIDDEN + i]);
            self.cell[i] = sigmoid(forget) * self.cell[i] + sigmoid(enter) * candidate.tanh();
            self.hidden[i] = sigmoid(leave) * self.cell[i].tanh();
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Channels of some points in time, one time after the other, with a column of zeros at each end:
/// the receptive field of a kernel of three is then one slice.
struct Columns {
    channels: usize,
    count: usize,
    data: Vec<f32>,
}

impl Columns {
    fn new(channels: usize, count: usize) -> Self {
        Self {
            channels,
            count,
            data: vec![0.0; channels * (count + 2)],
        }
    }

    fn column(&mut self, index: usize) -> &mut [f32] {
        let at = (index + 1) * self.channels;
        &mut self.data[at..at + self.channels]
    }
}

/// A convolution over time with a kernel of three, padding of one, and ReLU.
struct Convolution {
    inputs: usize,
    outputs: usize,
    stride: usize,
    /// `[outputs, 3, inputs]`: the order that [`Columns`] lie in.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Convolution {
    fn forward(&self, input: &Columns) -> Columns {
        let count = (input.count - 1) / self.stride + 1;
        let mut out = Columns::new(self.outputs, count);
        let width = 3 * self.inputs;
        for column in 0..count {
            let field = &input.data[column * self.stride * self.inputs..][..width];
            let rows = self.weight.chunks_exact(width).zip(&self.bias);
            for (slot, (row, bias)) in out.column(column).iter_mut().zip(rows) {
                *slot = (dot(row, field) + bias).max(0.0);
            }
        }
        out
    }
}

struct Weights {
    window: Vec<f64>,
    convolutions: [Convolution; 4],
    input: Vec<f32>,
    recurrent: Vec<f32>,
    gate_bias: Vec<f32>,
    head: Vec<f32>,
    head_bias: f32,
}

impl Weights {
    fn get() -> &'static Self {
        static WEIGHTS: OnceLock<Weights> = OnceLock::new();
        WEIGHTS.get_or_init(Self::read)
    }

    fn read() -> Self {
        let mut values = BYTES
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let mut take = |count: usize| values.by_ref().take(count).collect::<Vec<f32>>();
        let mut convolution = |inputs: usize, outputs: usize, stride: usize| {
            let stored = take(outputs * inputs * 3);
            let mut weight = vec![0.0; stored.len()];
            for out in 0..outputs {
                for channel in 0..inputs {
                    for tap in 0..3 {
                        weight[(out * 3 + tap) * inputs + channel] =
                            stored[(out * inputs + channel) * 3 + tap];
                    }
                }
            }
            Convolution {
                inputs,
                outputs,
                stride,
                weight,
                bias: take(outputs),
            }
        };
        let convolutions = [
            convolution(BINS, 128, 1),
            convolution(128, 64, 2),
            convolution(64, 64, 2),
            convolution(64, HIDDEN, 1),
        ];
        let input = take(4 * HIDDEN * HIDDEN);
        let recurrent = take(4 * HIDDEN * HIDDEN);
        let gate_bias = take(4 * HIDDEN);
        let gate_bias = gate_bias
            .iter()
            .zip(take(4 * HIDDEN))
            .map(|(a, b)| a + b)
            .collect();
        let head = take(HIDDEN);
        let head_bias = take(1).first().copied().unwrap_or(0.0);
        let window = (0..N_FFT)
            .map(|i| 0.5 - 0.5 * (2.0 * std::f64::consts::PI * i as f64 / N_FFT as f64).cos())
            .collect();
        Self {
            window,
            convolutions,
            input,
            recurrent,
            gate_bias,
            head,
            head_bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_are_as_many_as_the_network_takes() {
        let convolutions = [(BINS, 128), (128, 64), (64, 64), (64, HIDDEN)];
        let count: usize = convolutions
            .iter()
            .map(|(inputs, outputs)| outputs * (inputs * 3 + 1))
            .sum();
        let lstm = 2 * (4 * HIDDEN * HIDDEN + 4 * HIDDEN);
        assert_eq!(BYTES.len(), 4 * (count + lstm + HIDDEN + 1));
    }

    #[test]
    fn what_is_no_number_is_forgotten() {
        let mut vad = SileroVad::new();
        vad.probability(&[f32::NAN; VAD_FRAME]);
        vad.probability(&[f32::INFINITY; VAD_FRAME]);
        vad.probability(&[f32::MAX; VAD_FRAME]);
        assert!(vad.probability(&[0.0; VAD_FRAME]).is_finite());
    }
}
