//! From probabilities to segments: the state machine that ships with Silero VAD, made to stream.

use super::silero::VAD_FRAME;
use super::{Segment, VadOptions};

const SAMPLES_PER_MS: u64 = 16;

/// Turns one probability after the other into padded segments, in order and without overlap.
#[derive(Debug, Clone)]
pub(super) struct Timestamps {
    threshold: f32,
    negative_threshold: f32,
    min_speech: u64,
    min_silence: u64,
    padding: u64,
    /// Silence that may be cut at when a segment gets too long.
    min_cut_silence: u64,
    max_speech: f64,

    /// Start of the next frame.
    now: u64,
    /// Start of the speech that is going on.
    start: Option<u64>,
    /// Where it may have ended.
    maybe_end: Option<u64>,
    /// Silences inside of it: start and length.
    cuts: Vec<(u64, u64)>,
    /// The last segment, whose end depends on how soon the next one starts. Its start is padded.
    held: Option<Segment>,
}

impl Timestamps {
    pub(super) fn new(options: &VadOptions) -> Self {
        let padding = u64::from(options.padding_ms) * SAMPLES_PER_MS;
        Self {
            threshold: options.threshold,
            negative_threshold: options.negative_threshold(),
            min_speech: u64::from(options.min_speech_ms) * SAMPLES_PER_MS,
            min_silence: u64::from(options.min_silence_ms) * SAMPLES_PER_MS,
            padding,
            min_cut_silence: u64::from(options.min_cut_silence_ms) * SAMPLES_PER_MS,
            max_speech: options.max_segment_seconds * 16_000.0
                - (VAD_FRAME as u64 + 2 * padding) as f64,
            now: 0,
            start: None,
            maybe_end: None,
            cuts: Vec::new(),
            held: None,
        }
    }

    /// The first sample that a segment still to come may begin with.
    pub(super) fn earliest(&self) -> u64 {
        match (&self.held, self.start) {
            (Some(held), _) => held.start,
            (None, Some(start)) => start.saturating_sub(self.padding),
            (None, None) => self.now.saturating_sub(self.padding),
        }
    }

    /// Adds the probability of the next frame.
    pub(super) fn push(&mut self, probability: f32, out: &mut Vec<Segment>) {
        let now = self.now;
        self.now += VAD_FRAME as u64;
        self.advance(now, probability, out);
        // Once the next speech cannot start within the padding, the held one is certain.
        if let Some(held) = self.held
            && self.start.unwrap_or(self.now) >= held.end + 2 * self.padding
        {
            self.held = None;
            out.push(Segment {
                start: held.start,
                end: held.end + self.padding,
            });
        }
    }

    fn advance(&mut self, now: u64, probability: f32, out: &mut Vec<Segment>) {
        let loud = probability >= self.threshold;
        if loud && let Some(end) = self.maybe_end.take() {
            let silence = now - end;
            if silence > self.min_cut_silence {
                self.cuts.push((end, silence));
            }
        }
        let Some(mut start) = self.start else {
            if loud {
                self.start = Some(now);
            }
            return;
        };
        if (now - start) as f64 > self.max_speech {
            // The first of the longest silences.
            let longest = self
                .cuts
                .iter()
                .rev()
                .max_by_key(|(_, length)| *length)
                .copied();
            self.cuts.clear();
            self.maybe_end = None;
            if let Some((end, silence)) = longest {
                self.keep(start, end, out);
                start = end + silence;
                self.start = Some(start);
            } else {
                self.keep(start, now, out);
                self.start = None;
                return;
            }
        }
        if probability < self.negative_threshold {
            let end = *self.maybe_end.get_or_insert(now);
            if now - end < self.min_silence {
                return;
            }
            // A cut may lie behind the point where silence began.
            if end.saturating_sub(start) > self.min_speech {
                self.keep(start, end, out);
            }
            self.start = None;
            self.maybe_end = None;
            self.cuts.clear();
        }
    }

    /// Takes a segment in whole frames; the one before is now certain.
    fn keep(&mut self, start: u64, end: u64, out: &mut Vec<Segment>) {
        let mut padded = start.saturating_sub(self.padding);
        if let Some(mut held) = self.held.take() {
            let gap = start.saturating_sub(held.end);
            if gap < 2 * self.padding {
                held.end += gap / 2;
                padded = start - gap / 2;
            } else {
                held.end += self.padding;
            }
            out.push(held);
        }
        self.held = Some(Segment { start: padded, end });
    }

    /// The end of the sound at `length` samples.
    pub(super) fn finish(&mut self, length: u64, out: &mut Vec<Segment>) {
        if let Some(start) = self.start.take()
            && length.saturating_sub(start) > self.min_speech
        {
            self.keep(start, length, out);
        }
        if let Some(held) = self.held.take() {
            out.push(Segment {
                start: held.start,
                end: (held.end + self.padding).min(length),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wandering probability, the same that the reference was given.
    fn probabilities(seed: u32) -> Vec<f32> {
        let (mut state, mut level) = (seed, 128i64);
        (0..600)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                level = (level + i64::from((state >> 16) % 129) - 64).clamp(0, 256);
                level as f32 / 256.0
            })
            .collect()
    }

    /// Expected segments come from `get_speech_timestamps_from_probs` of the Silero package.
    #[test]
    fn segments_of_wandering_probabilities() {
        let defaults = VadOptions {
            max_segment_seconds: f64::INFINITY,
            ..Default::default()
        };
        let cases = [
            (1, 0, defaults.clone()),
            (
                2,
                100,
                VadOptions {
                    threshold: 0.6,
                    min_speech_ms: 64,
                    padding_ms: 200,
                    ..defaults.clone()
                },
            ),
            (
                3,
                300,
                VadOptions {
                    max_segment_seconds: 2.0,
                    ..defaults.clone()
                },
            ),
            (
                4,
                5,
                VadOptions {
                    max_segment_seconds: 3.0,
                    min_silence_ms: 500,
                    padding_ms: 100,
                    ..defaults.clone()
                },
            ),
            (
                5,
                511,
                VadOptions {
                    min_silence_ms: 2000,
                    max_segment_seconds: 5.0,
                    min_cut_silence_ms: 60,
                    ..defaults.clone()
                },
            ),
            (
                6,
                0,
                VadOptions {
                    min_silence_ms: 0,
                    min_speech_ms: 0,
                    negative_threshold: Some(0.5),
                    ..defaults
                },
            ),
        ];
        for (seed, cut, options) in cases {
            let mut timestamps = Timestamps::new(&options);
            let mut found = Vec::new();
            for probability in probabilities(seed) {
                timestamps.push(probability, &mut found);
            }
            let length = 600 * VAD_FRAME as u64 - cut;
            timestamps.finish(length, &mut found);
            let found: String = found
                .iter()
                .map(|segment| format!("{} {}\n", segment.start, segment.end.min(length)))
                .collect();
            let path = format!(
                "{}/../../tests/fixtures/audio/segments_{seed}.txt",
                env!("CARGO_MANIFEST_DIR")
            );
            assert_eq!(found, std::fs::read_to_string(path).unwrap(), "case {seed}");
        }
    }
}
