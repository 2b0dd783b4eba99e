//! One stretch of text that is being spoken: its place in the caches, its patches, its sound.

use super::{PatchInput, SoundState, Speaker, SpeechFormat, SpeechParams, SpeechPrompt};
use crate::event::FinishReason;
use crate::speech::noise::NoiseSource;
use aha_nn::batch::{EncodedRows, SequenceSlice};
use candle_core::{Device, Result, Tensor};

/// Patches that a token of text takes at most, beyond some to begin with.
const PATCHES_PER_TOKEN: usize = 6;
const PATCHES_TO_BEGIN: usize = 10;
/// Patches of the reference that the decoder of the sound hears first, so that the speech does not begin abruptly.
const CONTEXT_PATCHES: usize = 2;
/// Attempts at an utterance that does not end.
const ATTEMPTS: usize = 3;
/// Patches whose sound is decoded at once where nobody waits for it: the decoder's weights are read once for all.
const PATCHES_AT_ONCE: usize = 8;

/// Most patches of `target_tokens` of text in a context of which `room` positions are free.
pub(super) fn longest(target_tokens: usize, asked: Option<usize>, room: usize) -> usize {
    let of_text = PATCHES_PER_TOKEN * target_tokens + PATCHES_TO_BEGIN;
    of_text.min(asked.unwrap_or(usize::MAX)).min(room)
}

/// Rows of one utterance in a step.
pub(super) struct Rows {
    pub(super) token_ids: Vec<u32>,
    pub(super) slice: SequenceSlice,
    pub(super) patches: Option<EncodedRows>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Utterance {
    prompt: SpeechPrompt,
    /// The reference's patches, `[patches, patch_size, latent_dim]`.
    reference: Option<Tensor>,
    /// Patches that were made, `[patch_size, latent_dim]` each.
    patches: Vec<Tensor>,
    /// Most patches.
    limit: usize,
    /// Rows in the caches.
    computed: usize,
    /// Under what the next patch is made; there once all rows are in the caches.
    condition: Option<Tensor>,
    /// Of the first patch: other attempts begin there.
    first_condition: Option<Tensor>,
    attempt: usize,
    ended: Option<FinishReason>,
    /// Latents whose sound is decoded, those of the reference included.
    decoded: usize,
    sound: SoundState,
    /// Samples of the reference that are still to be left out.
    skip: usize,
    format: SpeechFormat,
}

impl Utterance {
    pub(super) fn new(
        prompt: SpeechPrompt,
        reference: Option<Tensor>,
        limit: usize,
        format: SpeechFormat,
    ) -> Self {
        let mut utterance = Self {
            prompt,
            reference,
            patches: Vec::new(),
            limit,
            computed: 0,
            condition: None,
            first_condition: None,
            attempt: 1,
            ended: None,
            decoded: 0,
            sound: SoundState::default(),
            skip: 0,
            format,
        };
        utterance.rewind_sound();
        utterance
    }

    fn rewind_sound(&mut self) {
        self.sound = SoundState::default();
        self.decoded = 0;
        // Always as many, also after a shorter reference: this is what the reference implementation does.
        self.skip = if self.reference.is_some() {
            CONTEXT_PATCHES * self.format.patch_samples
        } else {
            0
        };
    }

    /// Patches of the reference.
    pub(super) fn reference_patches(&self) -> usize {
        self.reference
            .as_ref()
            .and_then(|reference| reference.dims().first().copied())
            .unwrap_or(0)
    }

    fn context_patches(&self) -> usize {
        self.reference_patches().min(CONTEXT_PATCHES)
    }

    /// Rows of the prompt: tokens, then the reference's patches.
    pub(super) fn prompt_rows(&self) -> usize {
        self.prompt.token_ids.len() + self.reference_patches()
    }

    /// Patches that were made.
    pub(super) fn patches(&self) -> &[Tensor] {
        &self.patches
    }

    /// Rows whose keys and values are not in the caches yet.
    pub(super) fn missing_rows(&self) -> usize {
        self.prompt_rows() + self.patches.len() - self.computed
    }

    /// Whether the whole prompt is in the caches.
    pub(super) fn speaks(&self) -> bool {
        self.computed >= self.prompt_rows()
    }

    /// The next `count` rows, behind `query_start` others in the batch.
    pub(super) fn rows(&self, count: usize, query_start: usize, blocks: &[u32]) -> Result<Rows> {
        let (start, end) = (self.computed, self.computed + count);
        let tokens = &self.prompt.token_ids;
        let mut token_ids: Vec<u32> = tokens
            .get(start..end.min(tokens.len()))
            .unwrap_or_default()
            .to_vec();
        let text_rows = token_ids.len();
        token_ids.resize(count, 0);
        let patches = if text_rows < count {
            let first = start.max(tokens.len()) - tokens.len();
            let values = self.patch_rows(first, count - text_rows)?;
            Some(EncodedRows {
                start: query_start + text_rows,
                values,
            })
        } else {
            None
        };
        Ok(Rows {
            token_ids,
            slice: SequenceSlice {
                query_start,
                query_len: count,
                context_len: end,
                prompt_len: self.prompt_rows(),
                blocks: blocks.to_vec(),
                state_slot: 0,
                axes: None,
            },
            patches,
        })
    }

    /// `count` patches from `first` on, the reference's before those that were made, `[count, patch_size * latent_dim]`.
    fn patch_rows(&self, first: usize, count: usize) -> Result<Tensor> {
        let SpeechFormat {
            patch_size,
            latent_dim,
            ..
        } = self.format;
        let given = self.reference_patches();
        let mut pieces = Vec::new();
        if let Some(reference) = &self.reference
            && first < given
        {
            let taken = count.min(given - first);
            pieces.push(reference.narrow(0, first, taken)?);
        }
        let made = (first.max(given) - given)..(first + count).max(given) - given;
        for patch in self.patches.get(made).unwrap_or_default() {
            pieces.push(patch.unsqueeze(0)?);
        }
        Tensor::cat(&pieces, 0)?.reshape((count, patch_size * latent_dim))
    }

    /// Notes that `count` more rows are in the caches; `condition` is what the last of them gave.
    pub(super) fn advance(&mut self, count: usize, condition: Tensor) {
        self.computed += count;
        if self.missing_rows() == 0 {
            if self.patches.is_empty() {
                self.first_condition = Some(condition.clone());
            }
            self.condition = Some(condition);
        }
    }

    /// What the next patch is sampled from; `None` before all rows are in the caches.
    pub(super) fn patch_input(
        &self,
        params: &SpeechParams,
        noise: &mut NoiseSource,
        device: &Device,
    ) -> Result<Option<PatchInput>> {
        let Some(condition) = self.condition.clone().filter(|_| self.ended.is_none()) else {
            return Ok(None);
        };
        let SpeechFormat {
            patch_size,
            latent_dim,
            ..
        } = self.format;
        let previous = match (self.patches.last(), &self.reference) {
            (Some(patch), _) => patch.clone(),
            (None, Some(reference)) => reference.get(self.reference_patches() - 1)?,
            (None, None) => Tensor::zeros((patch_size, latent_dim), condition.dtype(), device)?,
        };
        let noise = noise
            .draw(patch_size, latent_dim, device)?
            .to_dtype(previous.dtype())?;
        Ok(Some(PatchInput {
            condition,
            previous,
            noise,
            steps: params.steps,
            guidance: params.guidance,
        }))
    }

    /// Takes a patch; `stops` says whether the model would end with it.
    pub(super) fn push_patch(&mut self, patch: Tensor, stops: bool, min_patches: usize) {
        let index = self.patches.len();
        self.patches.push(patch);
        self.condition = None;
        if stops && index > min_patches {
            self.ended = Some(FinishReason::Stop);
        } else if self.patches.len() >= self.limit {
            self.ended = Some(FinishReason::Length);
        }
    }

    /// Why the utterance ended, if it did.
    pub(super) fn ended(&self) -> Option<FinishReason> {
        self.ended
    }

    /// Goes back to before the first patch when the utterance ran to the length at which the model is known to have
    /// lost its way, and attempts are left. What was said is forgotten.
    pub(super) fn try_again(&mut self) -> bool {
        let length = self.patches.len() + self.context_patches();
        if length < PATCHES_PER_TOKEN * self.prompt.target_tokens || self.attempt >= ATTEMPTS {
            return false;
        }
        self.attempt += 1;
        self.computed = self.prompt_rows();
        self.patches.clear();
        self.condition = self.first_condition.clone();
        self.ended = None;
        self.rewind_sound();
        true
    }

    /// Whether sound is due: of every patch at once, or of several where nobody waits.
    pub(super) fn sound_is_due(&self, stream: bool) -> bool {
        let latents = (self.context_patches() + self.patches.len()) * self.format.patch_size;
        let waiting = latents - self.decoded;
        waiting > 0
            && (stream
                || self.ended.is_some()
                || waiting >= PATCHES_AT_ONCE * self.format.patch_size)
    }

    /// Decodes the sound of all patches that there are.
    pub(super) fn decode(&mut self, speaker: &dyn Speaker) -> Result<Vec<f32>> {
        let patch_size = self.format.patch_size;
        let context = self.context_patches();
        let first = self.decoded / patch_size;
        let mut pieces = Vec::new();
        if let Some(reference) = &self.reference
            && first < context
        {
            let from = self.reference_patches() - context + first;
            let latents = reference.narrow(0, from, context - first)?;
            pieces.push(latents.flatten(0, 1)?);
        }
        let made = self.patches.get(first.max(context) - context..);
        pieces.extend(made.unwrap_or_default().iter().cloned());
        let latents = Tensor::cat(&pieces, 0)?;
        let mut samples = speaker.decode(&latents, &mut self.sound)?;
        self.decoded += latents.dim(0)?;
        let skipped = self.skip.min(samples.len());
        samples.drain(..skipped);
        self.skip -= skipped;
        Ok(samples)
    }
}
