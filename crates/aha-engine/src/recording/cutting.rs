//! A recording of any length as pieces that a model hears in one prompt.

use crate::transcription::AudioInput;
use aha_media::audio::{
    AudioError, AudioSegment, AudioSource, DecodeOptions, MonoReader, QuietCuts, SegmentReader,
    VadOptions,
};
use std::collections::VecDeque;

/// Where recordings are cut.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Cutting {
    /// Only where they are longer than the model hears in one prompt, at the quietest places near that length. Nothing is
    /// left out, and the pieces are long.
    #[default]
    Long,
    /// Where nobody speaks: pieces are utterances with times, and silence is left out.
    Speech(VadOptions),
}

/// How far around the longest length a quiet place is looked for, and how long it is: what Qwen3-ASR's package does.
const SEARCH_SECONDS: f64 = 5.0;
const WINDOW_MS: f64 = 100.0;
/// Shorter pieces of a longer recording are filled up with silence.
const SHORTEST_PIECE_SECONDS: f64 = 0.5;
/// Sound that moves less than this between its lowest and its highest sample is none: less than the smallest step of 16
/// bits, at whatever level.
const FLAT: f32 = 1.0 / 32_768.0;
/// 25 ms at 16 kHz.
const SHORTEST_SILENCE: usize = 400;

/// One piece of a recording.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    /// First sample.
    pub(super) start: u64,
    /// Sample after the last.
    pub(super) end: u64,
    /// One channel at the model's rate; longer than the piece where silence was added.
    pub(super) samples: Vec<f32>,
}

impl Piece {
    /// Whether there is nothing to hear: models that are asked all the same tend to make something up. What is shorter
    /// than a frame of any front end is not silence, it is too short.
    pub(super) fn is_silent(&self) -> bool {
        if self.samples.len() < SHORTEST_SILENCE {
            return false;
        }
        let lowest = self.samples.iter().copied().fold(f32::INFINITY, f32::min);
        let highest = self
            .samples
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        highest - lowest < FLAT
    }
}

/// Decodes, converts and cuts a recording. Only the sound of the piece under way is kept.
#[derive(Debug)]
pub(super) struct Cutter {
    source: Source,
    /// The last piece that was cut and is not given yet: whether it is the only one shows with the next.
    held: Option<Piece>,
    cut_before: bool,
    shortest: usize,
}

#[derive(Debug)]
enum Source {
    Long(Box<LongPieces>),
    Speech(Box<SegmentReader>),
}

/// Pieces that join without a gap.
#[derive(Debug)]
struct LongPieces {
    reader: MonoReader,
    /// Until the recording is at its end.
    cuts: Option<QuietCuts>,
    found: Vec<AudioSegment>,
    ready: VecDeque<AudioSegment>,
}

impl Cutter {
    /// Opens a recording for a model that hears `input` in one prompt and pieces of `piece_seconds` well.
    pub(super) fn open(
        source: AudioSource,
        input: &AudioInput,
        piece_seconds: f64,
        cutting: &Cutting,
        decode: &DecodeOptions,
    ) -> Result<Self, AudioError> {
        let rate = input.sample_rate;
        let reader = MonoReader::open(source, rate, input.resampling, decode)?;
        let source = match cutting {
            Cutting::Long => {
                let search = SEARCH_SECONDS.min(piece_seconds / 4.0);
                let longest = piece_seconds.min(input.max_seconds - search);
                Source::Long(Box::new(LongPieces {
                    reader,
                    cuts: Some(QuietCuts::new(rate, longest, search, WINDOW_MS)?),
                    found: Vec::new(),
                    ready: VecDeque::new(),
                }))
            }
            Cutting::Speech(options) => {
                let longest = options.max_segment_seconds.min(piece_seconds);
                let options = VadOptions {
                    max_segment_seconds: longest,
                    ..options.clone()
                };
                Source::Speech(Box::new(SegmentReader::new(reader, &options)?))
            }
        };
        Ok(Self {
            source,
            held: None,
            cut_before: false,
            shortest: (SHORTEST_PIECE_SECONDS * f64::from(rate)) as usize,
        })
    }

    /// Samples that were heard so far.
    pub(super) fn heard(&self) -> u64 {
        match &self.source {
            Source::Long(pieces) => pieces.reader.samples(),
            Source::Speech(segments) => segments.source().samples(),
        }
    }

    /// The next piece; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, AudioError> {
        if self.held.is_none() {
            self.held = self.source.next()?;
        }
        let Some(mut piece) = self.held.take() else {
            return Ok(None);
        };
        self.held = self.source.next()?;
        let is_part = self.cut_before || self.held.is_some() || self.source.leaves_out();
        self.cut_before = true;
        if is_part && piece.samples.len() < self.shortest {
            piece.samples.resize(self.shortest, 0.0);
        }
        Ok(Some(piece))
    }
}

impl Source {
    /// Whether a piece may be a part of the recording although it is the only one.
    fn leaves_out(&self) -> bool {
        matches!(self, Self::Speech(_))
    }

    fn next(&mut self) -> Result<Option<Piece>, AudioError> {
        let segment = match self {
            Self::Speech(segments) => segments.next_segment()?,
            Self::Long(pieces) => pieces.next()?,
        };
        Ok(segment.map(|segment| Piece {
            start: segment.segment.start,
            end: segment.segment.end,
            samples: segment.samples,
        }))
    }
}

impl LongPieces {
    fn next(&mut self) -> Result<Option<AudioSegment>, AudioError> {
        loop {
            self.ready.extend(self.found.drain(..));
            if let Some(segment) = self.ready.pop_front() {
                return Ok(Some(segment));
            }
            let Some(cuts) = &mut self.cuts else {
                return Ok(None);
            };
            if let Some(block) = self.reader.next_block()? {
                cuts.push(block, &mut self.found);
            } else if let Some(cuts) = self.cuts.take() {
                cuts.finish(&mut self.found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_media::audio::{AudioFormat, EncodeOptions, VadMethod, encode};

    const RATE: u32 = 16_000;

    /// Seconds of a tone and of silence in turn.
    fn recording(parts: &[(f64, f32)]) -> Vec<u8> {
        let samples: Vec<f32> = parts
            .iter()
            .flat_map(|&(seconds, level)| {
                let count = (seconds * f64::from(RATE)) as usize;
                (0..count)
                    .map(move |at| level * (at as f32 * 0.3).sin() * (at as f32 * 0.0007).sin())
            })
            .collect();
        let options = EncodeOptions {
            format: AudioFormat::WavPcm16,
            sample_rate: RATE,
            channels: 1,
            bitrate: None,
        };
        encode(&samples, options).unwrap()
    }

    fn pieces(bytes: Vec<u8>, piece_seconds: f64, cutting: &Cutting) -> Vec<Piece> {
        let decode = DecodeOptions::default();
        let mut cutter = Cutter::open(
            bytes.into(),
            &AudioInput::SPEECH,
            piece_seconds,
            cutting,
            &decode,
        )
        .unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = cutter.next().unwrap() {
            pieces.push(piece);
        }
        pieces
    }

    #[test]
    fn a_recording_that_fits_is_one_piece_as_it_is() {
        let bytes = recording(&[(3.0, 0.5)]);
        let found = pieces(bytes, 5.0, &Cutting::Long);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].start, found[0].end), (0, 48_000));
        assert_eq!(found[0].samples.len(), 48_000);
        let short = pieces(recording(&[(0.2, 0.5)]), 5.0, &Cutting::Long);
        assert_eq!(
            short[0].samples.len(),
            3_200,
            "what was sent is not changed"
        );
    }

    #[test]
    fn longer_ones_are_cut_in_their_pauses_without_a_gap() {
        let bytes = recording(&[(4.2, 0.5), (0.4, 0.0), (4.4, 0.5), (0.4, 0.0), (1.0, 0.5)]);
        let found = pieces(bytes, 5.0, &Cutting::Long);
        let total = found.last().unwrap().end;
        assert_eq!(total, 166_400);
        assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
        let first = found[0].end as f64 / f64::from(RATE);
        assert!((4.2..4.6).contains(&first), "{first}");
    }

    #[test]
    fn the_last_rest_is_filled_up() {
        let found = pieces(recording(&[(4.1, 0.5)]), 2.0, &Cutting::Long);
        let last = found.last().unwrap();
        assert!(found.len() > 1);
        assert!(last.samples.len() >= 8_000, "{}", last.samples.len());
        assert!(last.samples.len() as u64 >= last.end - last.start);
    }

    #[test]
    fn utterances_have_times_and_silence_is_left_out() {
        let options = VadOptions {
            method: VadMethod::Energy,
            ..VadOptions::default()
        };
        let bytes = recording(&[(1.0, 0.0), (2.0, 0.5), (2.0, 0.0), (1.5, 0.5), (1.0, 0.0)]);
        let found = pieces(bytes, 30.0, &Cutting::Speech(options));
        let seconds: Vec<(f64, f64)> = found
            .iter()
            .map(|piece| (piece.start as f64 / 16e3, piece.end as f64 / 16e3))
            .collect();
        assert_eq!(found.len(), 2, "{seconds:?}");
        for ((start, end), wanted) in seconds.iter().zip([(1.0, 3.0), (5.0, 6.5)]) {
            assert!(
                (start - wanted.0).abs() < 0.2 && (end - wanted.1).abs() < 0.2,
                "{seconds:?}"
            );
        }
    }

    #[test]
    fn flat_sound_is_silence_at_any_level() {
        let piece = |samples: Vec<f32>| Piece {
            start: 0,
            end: 0,
            samples,
        };
        assert!(piece(vec![0.0; 400]).is_silent());
        assert!(piece(vec![0.7; 400]).is_silent());
        assert!(piece(vec![1e-20; 400]).is_silent());
        assert!(!piece([[0.0; 200], [1e-4; 200]].concat()).is_silent());
        assert!(!piece(vec![0.0; 399]).is_silent(), "too short to say");
    }
}
