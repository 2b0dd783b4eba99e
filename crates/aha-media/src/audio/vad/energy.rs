//! Voice activity by level alone: what stands out of the noise floor.

use super::silero::VAD_FRAME;

/// Follows the noise floor and the loudest sound, and says how far a frame stands out of the one and
/// how near it comes to the other. It hears music and slamming doors as speech.
#[derive(Debug, Clone, Default)]
pub(super) struct EnergyDetector {
    /// Floor and peak in dB.
    range: Option<(f64, f64)>,
}

/// Nothing below this level is speech, whatever the floor.
const SILENCE_DB: f64 = -60.0;
/// A recording that starts with speech must not take it for its floor.
const HIGHEST_FIRST_FLOOR_DB: f64 = -45.0;
/// How fast the floor follows rising noise: 1 dB a second.
const RISE_DB: f64 = VAD_FRAME as f64 / 16_000.0;
/// How fast a peak is forgotten: 2 dB a second.
const FALL_DB: f64 = 2.0 * RISE_DB;
/// The probability is one half this far above the floor, or this far below the peak.
const MARGIN_DB: f64 = 12.0;
const DEPTH_DB: f64 = 32.0;
const SLOPE_DB: f64 = 3.0;

impl EnergyDetector {
    pub(super) fn probability(&mut self, frame: &[f32; VAD_FRAME]) -> f32 {
        let finite = frame.iter().filter(|sample| sample.is_finite());
        let power = finite.map(|&sample| f64::from(sample).powi(2)).sum::<f64>() / VAD_FRAME as f64;
        let level = 10.0 * (power + 1e-12).log10();
        let (floor, peak) = match self.range {
            Some((floor, peak)) => (level.min(floor + RISE_DB), level.max(peak - FALL_DB)),
            None => (level.min(HIGHEST_FIRST_FLOOR_DB), level),
        };
        self.range = Some((floor, peak));
        if level < SILENCE_DB {
            return 0.0;
        }
        let above = (level - floor - MARGIN_DB).min(level - peak + DEPTH_DB);
        (1.0 / (1.0 + (-above / SLOPE_DB).exp())) as f32
    }
}
