//! The thread of a speaking model: takes requests, makes patches, sends sound.

use super::joints::Joiner;
use super::noise::NoiseSource;
use super::request::{SpeechEvent, SpeechFinished, SpeechParams};
use super::utterance::{Rows, Utterance, longest};
use super::{PatchInput, Speaker, SpeechPrompt};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::event::FinishReason;
use crate::worker::Alive;
use aha_nn::batch::Batch;
use aha_nn::cache::Cache;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::sync::mpsc;

/// One stretch of text that waits for its turn.
pub(super) struct Stretch {
    pub(super) prompt: SpeechPrompt,
    /// The reference's patches.
    pub(super) reference: Reference,
}

/// What a stretch sounds like.
#[derive(Clone)]
pub(super) enum Reference {
    /// Whatever the noise makes of it.
    None,
    /// Like this.
    Voice(Tensor),
    /// Like the first stretch of the same request.
    FirstStretch,
}

/// One request on the thread.
pub(super) struct Job {
    pub(super) stretches: VecDeque<Stretch>,
    pub(super) params: SpeechParams,
    pub(super) stream: bool,
    /// Positions that the longest stretch may need.
    pub(super) positions: usize,
    pub(super) seed: u64,
    pub(super) events: mpsc::Sender<SpeechEvent>,
    pub(super) overrun: Arc<AtomicBool>,
    pub(super) submitted: Instant,
}

pub(super) enum Command {
    Submit(Box<Job>),
    Shutdown,
}

/// A request that is being served.
struct Running {
    job: Job,
    utterance: Utterance,
    blocks: Vec<u32>,
    noise: NoiseSource,
    joiner: Joiner,
    /// The sound of a request that is not streamed.
    audio: Vec<f32>,
    /// How much of it is of stretches that are complete.
    kept: usize,
    /// Patches of the first stretch, for those that shall sound like it.
    first_stretch: Option<Tensor>,
    finished: SpeechFinished,
    /// Its sound is no numbers.
    failed: bool,
    started: Instant,
}

pub(super) struct Worker {
    speaker: Arc<dyn Speaker>,
    cache: Cache,
    context_length: usize,
    max_utterances: usize,
    max_batch_tokens: usize,
    free_blocks: Vec<u32>,
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
}

/// Sizes of a worker.
pub(super) struct Sizes {
    pub(super) context_length: usize,
    pub(super) max_utterances: usize,
    pub(super) max_batch_tokens: usize,
    pub(super) num_blocks: usize,
    pub(super) block_size: usize,
}

impl Worker {
    pub(super) fn new(
        speaker: Arc<dyn Speaker>,
        sizes: &Sizes,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> std::result::Result<Self, EngineError> {
        let cache = Cache::new(
            &speaker.cache_spec(),
            sizes.num_blocks,
            sizes.block_size,
            0,
            speaker.device(),
        )?;
        shared
            .total_blocks
            .store(sizes.num_blocks, Ordering::Relaxed);
        shared
            .free_blocks
            .store(sizes.num_blocks, Ordering::Release);
        Ok(Self {
            speaker,
            cache,
            context_length: sizes.context_length,
            max_utterances: sizes.max_utterances,
            max_batch_tokens: sizes.max_batch_tokens,
            free_blocks: (0..sizes.num_blocks as u32).rev().collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            commands,
            shared,
        })
    }

    pub(super) fn run(mut self) {
        let _alive = Alive(self.shared.clone());
        while self.receive() {
            self.drop_cancelled();
            self.admit();
            if !self.running.is_empty() {
                self.step();
            }
        }
        for job in std::mem::take(&mut self.waiting) {
            self.shared.leave_queue();
            send(&job, SpeechEvent::Failed(EngineError::ShuttingDown));
        }
        for running in std::mem::take(&mut self.running) {
            self.end(running, Some(EngineError::ShuttingDown));
        }
    }

    /// Takes all commands that are there, waiting for one when there is nothing else to do. False ends the thread.
    fn receive(&mut self) -> bool {
        let idle = self.waiting.is_empty() && self.running.is_empty();
        if idle {
            match self.commands.recv() {
                Ok(Command::Submit(job)) => self.waiting.push_back(*job),
                Ok(Command::Shutdown) | Err(_) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::Submit(job)) => self.waiting.push_back(*job),
                Ok(Command::Shutdown) => return false,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    return !(self.waiting.is_empty() && self.running.is_empty());
                }
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|job| !job.events.is_closed());
        for _ in self.waiting.len()..before {
            self.shared.leave_queue();
        }
        for running in std::mem::take(&mut self.running) {
            if running.job.events.is_closed() {
                tracing::debug!("cancelled: the receiver is gone");
                self.end(running, None);
            } else {
                self.running.push(running);
            }
        }
    }

    /// Starts waiting requests, first come first served, while the caches have room for all that they may say.
    fn admit(&mut self) {
        while self.running.len() < self.max_utterances
            && let Some(job) = self.waiting.front()
        {
            let needed = job.positions.div_ceil(self.cache.block_size());
            let Some(first) = self.free_blocks.len().checked_sub(needed) else {
                return;
            };
            let Some(mut job) = self.waiting.pop_front() else {
                return;
            };
            self.shared.running.fetch_add(1, Ordering::AcqRel);
            self.shared.leave_queue();
            let blocks = self.free_blocks.split_off(first);
            self.count_blocks();
            let several = job.stretches.len() > 1;
            let Some(stretch) = job.stretches.pop_front() else {
                self.shared.running.fetch_sub(1, Ordering::AcqRel);
                self.free_blocks.extend(blocks);
                continue;
            };
            let started = Instant::now();
            let mut finished = SpeechFinished {
                reason: FinishReason::Stop,
                prompt_tokens: 0,
                patches: 0,
                samples: 0,
                queued: started - job.submitted,
                first_sound: Default::default(),
                computed: Default::default(),
            };
            let utterance = self.begin(stretch, &job.params, None, &mut finished);
            let rate = self.speaker.format().sample_rate;
            self.running.push(Running {
                noise: NoiseSource::new(job.seed, job.params.temperature),
                joiner: Joiner::new(rate, several),
                utterance,
                blocks,
                audio: Vec::new(),
                kept: 0,
                first_stretch: None,
                finished,
                failed: false,
                started,
                job,
            });
        }
    }

    fn begin(
        &self,
        stretch: Stretch,
        params: &SpeechParams,
        first_stretch: Option<&Tensor>,
        finished: &mut SpeechFinished,
    ) -> Utterance {
        let reference = match stretch.reference {
            Reference::None => None,
            Reference::Voice(latents) => Some(latents),
            Reference::FirstStretch => first_stretch.cloned(),
        };
        let tokens = stretch.prompt.token_ids.len();
        let patches = reference.as_ref().map_or(0, |latents| latents.dims()[0]);
        let room = self.context_length.saturating_sub(tokens + patches);
        let limit = longest(stretch.prompt.target_tokens, params.max_patches, room);
        finished.prompt_tokens += tokens;
        self.shared
            .prompt_tokens
            .fetch_add(tokens as u64, Ordering::Relaxed);
        Utterance::new(stretch.prompt, reference, limit, self.speaker.format())
    }

    /// Makes one more patch of every utterance whose prompt is computed, and computes more of the other prompts. A
    /// fault, even a panic, ends the requests that run and nothing else.
    fn step(&mut self) {
        self.shared.begin_step();
        // Inside the pool, many small parallel loops start without handing work from thread to thread.
        let result = catch_unwind(AssertUnwindSafe(|| rayon::scope(|_| self.advance())));
        self.shared.end_step();
        let error = match result {
            Ok(Ok(())) => return self.finish_utterances(),
            Ok(Err(error)) => {
                tracing::error!(%error, "a step of speech failed");
                EngineError::internal(error)
            }
            Err(_) => {
                tracing::error!("a step of speech panicked");
                self.shared.panics.fetch_add(1, Ordering::Relaxed);
                EngineError::internal("the model failed while computing this request")
            }
        };
        for running in std::mem::take(&mut self.running) {
            self.end(running, Some(error.clone()));
        }
    }

    fn advance(&mut self) -> Result<()> {
        self.forward()?;
        let device = self.speaker.device();
        let (mut inputs, mut speaking): (Vec<PatchInput>, Vec<&mut Running>) = (vec![], vec![]);
        for running in &mut self.running {
            let params = &running.job.params;
            let input = running
                .utterance
                .patch_input(params, &mut running.noise, device)?;
            if let Some(input) = input {
                inputs.push(input);
                speaking.push(running);
            }
        }
        if inputs.is_empty() {
            return Ok(());
        }
        let patches = self.speaker.sample(&inputs)?;
        let conditions: Vec<&Tensor> = inputs.iter().map(|input| &input.condition).collect();
        let stops = self.speaker.stops(&Tensor::cat(&conditions, 0)?)?;
        if patches.len() != speaking.len() || stops.len() != speaking.len() {
            candle_core::bail!(
                "{} patches and {} stops for {} utterances",
                patches.len(),
                stops.len(),
                speaking.len()
            );
        }
        for ((running, patch), stops) in speaking.into_iter().zip(patches).zip(stops) {
            running.finished.patches += 1;
            self.shared.generated_tokens.fetch_add(1, Ordering::Relaxed);
            let min_patches = running.job.params.min_patches;
            running.utterance.push_patch(patch, stops, min_patches);
            if running.utterance.sound_is_due(running.job.stream) {
                let samples = running.utterance.decode(self.speaker.as_ref())?;
                if samples.iter().any(|sample| !sample.is_finite()) {
                    running.failed = true;
                    continue;
                }
                let mut ready = Vec::new();
                running.joiner.push(&samples, &mut ready);
                running.hand_out(ready);
            }
        }
        Ok(())
    }

    /// Brings new rows into the caches: one of every utterance that speaks, and of prompts what a step has room for.
    fn forward(&mut self) -> Result<()> {
        let speaking = self
            .running
            .iter()
            .filter(|running| running.utterance.speaks());
        let mut room = self
            .max_batch_tokens
            .saturating_sub(speaking.count())
            .max(1);
        let (mut token_ids, mut slices, mut patches) = (vec![], vec![], vec![]);
        let (mut last_rows, mut counts) = (vec![], vec![]);
        for running in &self.running {
            let missing = running.utterance.missing_rows();
            let count = if running.utterance.speaks() {
                missing
            } else {
                missing.min(room)
            };
            counts.push(count);
            if count == 0 {
                continue;
            }
            if !running.utterance.speaks() {
                room -= count;
            }
            let rows: Rows = running
                .utterance
                .rows(count, token_ids.len(), &running.blocks)?;
            token_ids.extend(rows.token_ids);
            slices.push(rows.slice);
            patches.extend(rows.patches);
            last_rows.push(token_ids.len() as u32 - 1);
        }
        if token_ids.is_empty() {
            return Ok(());
        }
        let block_size = self.cache.block_size();
        let device = self.speaker.device();
        let batch = Batch::new(&token_ids, slices, &last_rows, block_size, device)?;
        let batch = batch.with_encoded(patches)?;
        let conditions = self.speaker.forward(&batch, &mut self.cache)?;
        let advanced = self
            .running
            .iter_mut()
            .zip(counts)
            .filter(|(_, count)| *count > 0);
        for (row, (running, count)) in advanced.enumerate() {
            let condition = conditions.narrow(0, row, 1)?;
            running.utterance.advance(count, condition);
        }
        Ok(())
    }

    /// Ends utterances that are complete, and begins the next stretches of their requests.
    fn finish_utterances(&mut self) {
        for mut running in std::mem::take(&mut self.running) {
            if running.failed {
                let message = "the model computed numbers that are not finite: its weights may be damaged, or too large for the precision";
                tracing::error!("{message}");
                self.end(running, Some(EngineError::internal(message)));
                continue;
            }
            let Some(reason) = running.utterance.ended() else {
                if running.job.overrun.load(Ordering::Acquire) {
                    self.end(running, None);
                } else {
                    self.running.push(running);
                }
                continue;
            };
            let params = &running.job.params;
            let retries = params.retry && !running.job.stream && params.temperature > 0.0;
            let before = running.utterance.patches().len();
            if retries && running.utterance.try_again() {
                tracing::debug!("{before} patches are too many for the text: trying again");
                running.forget_stretch();
                self.running.push(running);
                continue;
            }
            if reason == FinishReason::Length {
                running.finished.reason = reason;
            }
            match self.next_stretch(&mut running) {
                Ok(true) => self.running.push(running),
                Ok(false) => self.end(running, None),
                Err(error) => self.end(running, Some(EngineError::internal(error))),
            }
        }
    }

    /// Ends a stretch's sound and begins the next one; false when there is none.
    fn next_stretch(&mut self, running: &mut Running) -> Result<bool> {
        let next = running.job.stretches.pop_front();
        let mut ready = Vec::new();
        running.joiner.end_stretch(next.is_none(), &mut ready);
        running.hand_out(ready);
        running.kept = running.audio.len();
        let Some(stretch) = next else {
            running.finish();
            return Ok(false);
        };
        if running.first_stretch.is_none() {
            running.first_stretch = Some(Tensor::stack(running.utterance.patches(), 0)?);
        }
        running.utterance = self.begin(
            stretch,
            &running.job.params,
            running.first_stretch.as_ref(),
            &mut running.finished,
        );
        Ok(true)
    }

    /// Forgets a request that has ended, in whatever way.
    fn end(&mut self, running: Running, error: Option<EngineError>) {
        self.free_blocks.extend(&running.blocks);
        self.count_blocks();
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
        self.shared.record_duration(running.job.submitted.elapsed());
        if let Some(error) = error {
            send(&running.job, SpeechEvent::Failed(error));
        }
    }

    fn count_blocks(&self) {
        self.shared
            .free_blocks
            .store(self.free_blocks.len(), Ordering::Release);
    }
}

impl Running {
    /// Sends samples, or keeps them until the end.
    fn hand_out(&mut self, samples: Vec<f32>) {
        if samples.is_empty() {
            return;
        }
        if !self.job.stream {
            self.audio.extend(samples);
            return;
        }
        if self.finished.samples == 0 {
            self.finished.first_sound = self.started.elapsed();
        }
        self.finished.samples += samples.len();
        send(&self.job, SpeechEvent::Audio(samples));
    }

    /// Takes back the sound of a stretch that is spoken again.
    fn forget_stretch(&mut self) {
        self.audio.truncate(self.kept);
        self.joiner.restart_stretch();
    }

    fn finish(&mut self) {
        self.finished.computed = self.started.elapsed();
        if !self.job.stream {
            self.finished.first_sound = self.finished.computed;
            self.finished.samples = self.audio.len();
            let audio = std::mem::take(&mut self.audio);
            send(&self.job, SpeechEvent::Audio(audio));
        }
        send(&self.job, SpeechEvent::Finished(self.finished));
    }
}

/// A reader that lets its channel fill up is given up.
fn send(job: &Job, event: SpeechEvent) {
    if let Err(mpsc::error::TrySendError::Full(_)) = job.events.try_send(event) {
        job.overrun.store(true, Ordering::Release);
    }
}
