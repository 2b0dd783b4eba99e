//! Runs a model's media encoder and keeps what it gave.

use crate::media::{ContentHash, EncoderInput, MediaEncoder, MediaSpan};
use crate::scheduler::Scheduled;
use aha_nn::batch::EncodedRows;
use candle_core::{Result, Tensor};
use std::collections::HashMap;
use std::sync::Arc;

/// An output that is kept.
struct Kept {
    output: Tensor,
    bytes: usize,
    last_use: u64,
}

/// The encoder of one model and its latest outputs by content, so that a picture is encoded once, however many steps,
/// turns and requests show it.
pub(crate) struct Encoders {
    encoder: Option<Box<dyn MediaEncoder>>,
    kept: HashMap<ContentHash, Kept>,
    bytes: usize,
    budget: usize,
    clock: u64,
}

impl Encoders {
    pub(crate) fn new(encoder: Option<Box<dyn MediaEncoder>>, budget: usize) -> Self {
        Self {
            encoder,
            kept: HashMap::new(),
            bytes: 0,
            budget,
            clock: 0,
        }
    }

    /// Bytes of the outputs that are kept.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What encoders give for the rows of a step; `media` are the spans of a sequence's prompt. Everything that is
    /// not kept yet is encoded as one batch.
    pub(crate) fn rows<'a>(
        &mut self,
        scheduled: &[Scheduled],
        media: impl Fn(&Scheduled) -> &'a [MediaSpan],
    ) -> Result<Vec<EncodedRows>> {
        self.clock += 1;
        let mut places = Vec::new();
        let mut missing: Vec<&EncoderInput> = Vec::new();
        for part in scheduled {
            let computed = part.slice.positions();
            for span in media(part) {
                let range = span.range();
                let (from, to) = (range.start.max(computed.start), range.end.min(computed.end));
                if from >= to {
                    continue;
                }
                let input: &'a Arc<EncoderInput> = &span.input;
                let start = part.slice.query_start + from - computed.start;
                places.push((start, input.hash, from - range.start, to - from));
                match self.kept.get_mut(&input.hash) {
                    Some(kept) => kept.last_use = self.clock,
                    None if missing.iter().all(|other| other.hash != input.hash) => {
                        missing.push(input);
                    }
                    None => {}
                }
            }
        }
        self.encode(&missing)?;
        let mut rows = Vec::with_capacity(places.len());
        for (start, hash, offset, count) in places {
            let Some(kept) = self.kept.get(&hash) else {
                candle_core::bail!("an encoder's output is missing");
            };
            let values = kept.output.narrow(0, offset, count)?;
            rows.push(EncodedRows { start, values });
        }
        self.evict();
        Ok(rows)
    }

    fn encode(&mut self, inputs: &[&EncoderInput]) -> Result<()> {
        if inputs.is_empty() {
            return Ok(());
        }
        let Some(encoder) = &self.encoder else {
            candle_core::bail!("this model has no encoder for media");
        };
        let outputs = encoder.encode(inputs)?;
        if outputs.len() != inputs.len() {
            candle_core::bail!("{} inputs gave {} outputs", inputs.len(), outputs.len());
        }
        for (input, output) in inputs.iter().zip(outputs) {
            let (rows, _) = output.dims2()?;
            if rows != input.num_tokens {
                candle_core::bail!(
                    "the encoder gave {rows} rows for {} tokens",
                    input.num_tokens
                );
            }
            let bytes = output.elem_count() * output.dtype().size_in_bytes();
            self.bytes += bytes;
            let last_use = self.clock;
            let kept = Kept {
                output,
                bytes,
                last_use,
            };
            self.kept.insert(input.hash, kept);
        }
        Ok(())
    }

    /// Drops the least recently used outputs beyond the budget, but none that this step used: a prompt that is
    /// computed in several steps needs them again.
    fn evict(&mut self) {
        while self.bytes > self.budget {
            let oldest = self
                .kept
                .iter()
                .filter(|(_, kept)| kept.last_use < self.clock)
                .min_by_key(|(_, kept)| kept.last_use)
                .map(|(hash, _)| *hash);
            let Some(kept) = oldest.and_then(|hash| self.kept.remove(&hash)) else {
                return;
            };
            self.bytes -= kept.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{EncoderContent, MediaKind};
    use aha_nn::batch::SequenceSlice;
    use candle_core::{Device, IndexOp};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Gives each token of an input its index, and counts what it encodes.
    struct Counting(Arc<AtomicUsize>);

    impl MediaEncoder for Counting {
        fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
            self.0.fetch_add(inputs.len(), Ordering::Relaxed);
            inputs
                .iter()
                .map(|input| {
                    Tensor::arange(0f32, input.num_tokens as f32, &Device::Cpu)?.unsqueeze(1)
                })
                .collect()
        }
    }

    fn span(start: usize, num_tokens: usize, content: &str) -> MediaSpan {
        MediaSpan {
            start,
            kind: MediaKind::Image,
            input: Arc::new(EncoderInput {
                content: EncoderContent::Features {
                    values: Vec::new(),
                    shape: vec![0],
                },
                grid: [1, 1, num_tokens],
                step_seconds: 0.0,
                num_tokens,
                hash: ContentHash::of(content),
            }),
        }
    }

    fn part(query_start: usize, query_len: usize, context_len: usize) -> Scheduled {
        Scheduled {
            id: 0,
            slice: SequenceSlice {
                query_start,
                query_len,
                context_len,
                prompt_len: context_len,
                blocks: Vec::new(),
                state_slot: 0,
                axes: None,
            },
            logits: None,
        }
    }

    #[test]
    fn chunks_take_their_share_and_a_content_is_encoded_once() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut encoders = Encoders::new(Some(Box::new(Counting(count.clone()))), 1 << 20);
        let spans = [span(2, 4, "a"), span(8, 4, "a"), span(14, 3, "b")];
        // Tokens 4..10 of the prompt as the second sequence of a step, behind three rows of another.
        let rows = encoders.rows(&[part(3, 6, 10)], |_| &spans).unwrap();
        let found: Vec<(usize, Vec<f32>)> = rows
            .iter()
            .map(|rows| {
                (
                    rows.start,
                    rows.values.i((.., 0)).unwrap().to_vec1().unwrap(),
                )
            })
            .collect();
        assert_eq!(found, [(3, vec![2.0, 3.0]), (7, vec![0.0, 1.0])]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(
            encoders
                .rows(&[part(0, 1, 13)], |_| &spans)
                .unwrap()
                .is_empty()
        );
        encoders.rows(&[part(0, 17, 17)], |_| &spans).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_budget_drops_what_was_not_used_for_longest() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut encoders = Encoders::new(Some(Box::new(Counting(count.clone()))), 8 * 4);
        for (content, encoded) in [("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)] {
            let spans = [span(0, 4, content)];
            encoders.rows(&[part(0, 4, 4)], |_| &spans).unwrap();
            assert_eq!(count.load(Ordering::Relaxed), encoded, "{content}");
            assert!(encoders.bytes() <= 8 * 4);
        }
    }
}
