//! Recordings of any length as a series of short segments with their sound.

use std::collections::VecDeque;

use super::super::error::{AudioError, Result};
use super::super::mono::MonoReader;
use super::{Segment, VAD_SAMPLE_RATE, VadOptions, VadStream};

/// A segment and its samples, one channel at 16 kHz.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioSegment {
    /// Where it lies in the recording.
    pub segment: Segment,
    /// Its sound, `segment.end - segment.start` samples.
    pub samples: Vec<f32>,
}

/// Decodes, converts and splits a recording; only the sound of the segment under way is kept.
#[derive(Debug)]
pub struct SegmentReader {
    reader: MonoReader,
    /// Until the recording is at its end.
    vad: Option<VadStream>,
    ready: VecDeque<Segment>,
    found: Vec<Segment>,
    buffer: Vec<f32>,
    /// Position of `buffer[0]`.
    buffer_start: u64,
}

impl SegmentReader {
    /// Splits what a reader at 16 kHz gives.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`], also for a reader at another rate and for segments without a
    /// longest length, which could be as long as the recording.
    pub fn new(reader: MonoReader, options: &VadOptions) -> Result<Self> {
        if reader.sample_rate() != VAD_SAMPLE_RATE {
            return Err(AudioError::InvalidOption {
                name: "sample rate",
                reason: format!(
                    "voice activity needs 16000 Hz, not {}",
                    reader.sample_rate()
                ),
            });
        }
        if !options.max_segment_seconds.is_finite() {
            return Err(AudioError::InvalidOption {
                name: "max_segment_seconds",
                reason: "a stream needs a longest segment".into(),
            });
        }
        Ok(Self {
            reader,
            vad: Some(VadStream::new(options)?),
            ready: VecDeque::new(),
            found: Vec::new(),
            buffer: Vec::new(),
            buffer_start: 0,
        })
    }

    /// The reader, for its progress and damage.
    pub fn source(&self) -> &MonoReader {
        &self.reader
    }

    /// The next segment; `None` at the end of the recording.
    ///
    /// # Errors
    ///
    /// As [`MonoReader::next_block`].
    pub fn next_segment(&mut self) -> Result<Option<AudioSegment>> {
        while self.ready.is_empty() {
            let Some(vad) = &mut self.vad else {
                return Ok(None);
            };
            match self.reader.next_block()? {
                Some(block) => {
                    self.buffer.extend_from_slice(block);
                    vad.push(block, &mut self.found);
                }
                None => {
                    if let Some(vad) = self.vad.take() {
                        vad.finish(&mut self.found);
                    }
                }
            }
            self.ready.extend(self.found.drain(..));
            self.forget();
        }
        let Some(segment) = self.ready.pop_front() else {
            return Ok(None);
        };
        let start = (segment.start - self.buffer_start) as usize;
        let end = ((segment.end - self.buffer_start) as usize).min(self.buffer.len());
        let samples = self.buffer[start..end].to_vec();
        Ok(Some(AudioSegment { segment, samples }))
    }

    fn forget(&mut self) {
        let earliest = match (self.ready.front(), &self.vad) {
            (Some(first), _) => first.start,
            (None, Some(vad)) => vad.earliest(),
            (None, None) => return,
        };
        let unused = (earliest.saturating_sub(self.buffer_start) as usize).min(self.buffer.len());
        if unused > self.buffer.len() / 2 {
            self.buffer.drain(..unused);
            self.buffer_start += unused as u64;
        }
    }
}
