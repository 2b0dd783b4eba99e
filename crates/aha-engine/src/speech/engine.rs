//! The handle to a speaking model's thread.

use super::reference::KeptReferences;
use super::request::{SpeechEvent, SpeechRequest, Voice};
use super::utterance::longest;
use super::worker::{Command, Job, Reference, Sizes, Stretch, Worker};
use super::{SpeechFormat, SpeechModel, SpeechProcessor, split_text};
use crate::engine::{EngineOptions, EngineStatus, Shared, cache_blocks, join, random_seed};
use crate::error::EngineError;
use crate::memory::available_memory;
use candle_core::{Device, Tensor};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc;

/// Pieces of sound that may wait for a slow reader before its request is cancelled: a minute and more.
const EVENT_BUFFER: usize = 1024;

/// Handle to one speaking model's thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct SpeechEngine {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    model: SpeechModel,
    references: KeptReferences,
    context_length: usize,
    queue_limit: usize,
    max_utterances: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for SpeechEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpeechEngine")
            .field("format", &self.format())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl SpeechEngine {
    /// Allocates the caches and starts the thread.
    ///
    /// # Errors
    /// When an option cannot be met, memory is too small or the thread cannot start.
    pub fn start(model: SpeechModel, options: &EngineOptions) -> Result<Self, EngineError> {
        options.validate()?;
        let speaker = model.speaker.clone();
        let own_context = speaker.context_length();
        let mut context_length = options
            .context_length
            .map_or(own_context, |asked| asked.min(own_context));
        let bytes_per_token = speaker.cache_spec().bytes_per_token();
        let num_blocks = cache_blocks(
            options,
            available_memory(),
            bytes_per_token,
            context_length,
            speaker.device(),
        )?;
        let capacity = num_blocks * options.block_size;
        if capacity < context_length {
            tracing::warn!(
                "the cache holds {capacity} positions, so an utterance is limited to {capacity} of the model's {own_context}"
            );
            context_length = capacity;
        }
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::new());
        let sizes = Sizes {
            context_length,
            max_utterances: options.max_sequences,
            max_batch_tokens: options.max_batch_tokens,
            num_blocks,
            block_size: options.block_size,
        };
        let worker = Worker::new(speaker, &sizes, receiver, shared.clone())?;
        let thread = std::thread::Builder::new()
            .name("aha-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(EngineError::internal)?;
        Ok(Self {
            inner: Arc::new(Inner {
                commands,
                shared,
                model,
                references: KeptReferences::default(),
                context_length,
                queue_limit: options.queue_limit,
                max_utterances: options.max_sequences,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// The sizes of the model's sound.
    pub fn format(&self) -> SpeechFormat {
        self.inner.model.speaker.format()
    }

    /// The way from text to prompts.
    pub fn processor(&self) -> &dyn SpeechProcessor {
        self.inner.model.processor.as_ref()
    }

    /// Names what voices are encoded by.
    pub fn fingerprint(&self) -> &str {
        &self.inner.model.fingerprint
    }

    /// Where the model computes.
    pub fn device(&self) -> &Device {
        self.inner.model.speaker.device()
    }

    pub(super) fn kept_references(&self) -> &KeptReferences {
        &self.inner.references
    }

    /// Tokens and patches that one utterance may have.
    pub fn context_length(&self) -> usize {
        self.inner.context_length
    }

    /// Seconds of reference sound that fit in the context; a text has to fit beside it.
    pub fn longest_reference(&self) -> f64 {
        self.format().seconds(self.inner.context_length)
    }

    /// Encodes a reference: one channel of sound at the model's rate, and what it says. Computes on this thread.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] for sound that is empty, too long or not of numbers, and for an empty text.
    pub fn voice(&self, text: &str, samples: &[f32]) -> Result<Voice, EngineError> {
        let seconds = samples.len() as f64 / f64::from(self.format().sample_rate.max(1));
        let longest = self.longest_reference();
        let refuse = |message: String| Err(EngineError::invalid("ref_audio", message));
        if samples.is_empty() {
            return refuse("the reference audio has no sound".to_owned());
        }
        if seconds > longest {
            return refuse(format!(
                "the reference audio has {seconds:.1} s, but this model takes {longest:.1} s: cut it to a few sentences"
            ));
        }
        if samples.iter().any(|sample| !sample.is_finite()) {
            return refuse("the reference audio holds samples that are no numbers".to_owned());
        }
        check_words(text)?;
        let encode = || self.inner.model.speaker.encode(samples);
        match catch_unwind(AssertUnwindSafe(encode)) {
            Ok(latents) => Ok(Voice {
                text: text.to_owned(),
                latents: latents?,
            }),
            Err(_) => {
                self.inner.shared.panics.fetch_add(1, Ordering::Relaxed);
                Err(EngineError::internal(
                    "the model failed while encoding the reference audio",
                ))
            }
        }
    }

    /// Queues a request and returns its sound. Never waits.
    ///
    /// # Errors
    /// When a value is out of range, the text has nothing to say or does not fit, the queue is full or the engine is
    /// stopping.
    pub fn submit(&self, request: SpeechRequest) -> Result<Speech, EngineError> {
        request.params.validate()?;
        if let Some(voice) = &request.voice {
            self.check_latents(&voice.latents)?;
        }
        let (stretches, positions) = self.stretches(&request)?;
        let inner = &self.inner;
        inner
            .shared
            .enter_queue(inner.queue_limit, inner.max_utterances)?;
        let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
        let overrun = Arc::new(AtomicBool::new(false));
        let job = Job {
            stretches,
            seed: request.params.seed.unwrap_or_else(random_seed),
            params: request.params,
            stream: request.stream,
            positions,
            events: sender,
            overrun: overrun.clone(),
            submitted: Instant::now(),
        };
        if inner.commands.send(Command::Submit(Box::new(job))).is_err() {
            inner.shared.leave_queue();
            return Err(EngineError::ShuttingDown);
        }
        Ok(Speech {
            receiver,
            overrun,
            ended: false,
        })
    }

    /// Whether latents are of this model's shape.
    pub(super) fn check_latents(&self, latents: &Tensor) -> Result<(), EngineError> {
        let format = self.format();
        match latents.dims() {
            [patches, patch_size, latent_dim]
                if *patches > 0
                    && (*patch_size, *latent_dim) == (format.patch_size, format.latent_dim) =>
            {
                Ok(())
            }
            dims => Err(EngineError::invalid(
                "voice",
                format!("the voice's latents have the shape {dims:?}, which is another model's"),
            )),
        }
    }

    /// The request's stretches, and the positions that the longest of them may need.
    fn stretches(
        &self,
        request: &SpeechRequest,
    ) -> Result<(VecDeque<Stretch>, usize), EngineError> {
        let (processor, voice) = (self.processor(), request.voice.as_ref());
        let reference = voice.map(|voice| voice.text.as_str());
        // Checked as a whole: the parts that have nothing to say are left out below.
        let whole = processor.prompt(reference, &request.text)?;
        let mut texts = if request.split {
            split_text(&request.text)
        } else {
            vec![request.text.clone()]
        };
        if texts.len() < 2 {
            texts.clear();
        }
        let first_text = texts.first().cloned().unwrap_or_default();
        let mut stretches = VecDeque::new();
        let (mut positions, mut first_length) = (0, 0);
        let context = self.inner.context_length;
        let prompts = if texts.is_empty() {
            vec![whole]
        } else {
            let prompt = |(index, text): (usize, &String)| match reference {
                None if index > 0 => processor.prompt(Some(&first_text), text),
                reference => processor.prompt(reference, text),
            };
            texts
                .iter()
                .enumerate()
                .map(prompt)
                .collect::<Result<_, _>>()?
        };
        for prompt in prompts {
            let tokens = prompt.token_ids.len();
            let (reference, patches) = match voice {
                Some(voice) => (
                    Reference::Voice(voice.latents.clone()),
                    voice.latents.dims()[0],
                ),
                None if stretches.is_empty() => (Reference::None, 0),
                None => (Reference::FirstStretch, first_length),
            };
            let least = request.params.min_patches.saturating_add(2);
            let max_patches = request.params.max_patches;
            let least = least.min(longest(prompt.target_tokens, max_patches, usize::MAX));
            if tokens + patches + least > context {
                return Err(EngineError::ContextLengthExceeded {
                    context_length: context,
                    prompt_tokens: tokens + patches,
                    completion_tokens: least,
                });
            }
            let room = context - tokens - patches;
            let length = longest(prompt.target_tokens, max_patches, room);
            if stretches.is_empty() {
                first_length = length;
            }
            positions = positions.max(tokens + patches + length);
            stretches.push_back(Stretch { prompt, reference });
        }
        Ok((stretches, positions))
    }

    /// Whether a request would find a place in the queue now.
    ///
    /// # Errors
    /// As [`SpeechEngine::submit`] when the queue is full or the engine is stopping.
    pub fn check_room(&self) -> Result<(), EngineError> {
        let inner = &self.inner;
        inner
            .shared
            .check_room(inner.queue_limit, inner.max_utterances)
    }

    /// A look at the state.
    pub fn status(&self) -> EngineStatus {
        self.inner.shared.status()
    }

    /// Ends the thread: running and waiting requests fail with [`EngineError::ShuttingDown`].
    pub fn shutdown(&self) {
        // The thread may be gone already; then there is nobody left to tell.
        let _ = self.inner.commands.send(Command::Shutdown);
        join(&self.inner.thread);
    }
}

/// Refuses a reference that says nothing: the model would take its sound for the beginning of the speech.
pub(super) fn check_words(text: &str) -> Result<(), EngineError> {
    if text.trim().is_empty() {
        return Err(EngineError::invalid(
            "ref_text",
            "`ref_text` must say what the reference audio says",
        ));
    }
    Ok(())
}

/// The sound of one request. Dropping it cancels the request within one patch.
#[derive(Debug)]
pub struct Speech {
    receiver: mpsc::Receiver<SpeechEvent>,
    overrun: Arc<AtomicBool>,
    ended: bool,
}

impl Speech {
    /// The next event; `None` after [`SpeechEvent::Finished`] or [`SpeechEvent::Failed`].
    pub async fn next(&mut self) -> Option<SpeechEvent> {
        if self.ended {
            return None;
        }
        let event = self.receiver.recv().await;
        Some(self.observe(event))
    }

    /// The same for threads outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<SpeechEvent> {
        if self.ended {
            return None;
        }
        let event = self.receiver.blocking_recv();
        Some(self.observe(event))
    }

    fn observe(&mut self, event: Option<SpeechEvent>) -> SpeechEvent {
        let event = event.unwrap_or_else(|| {
            SpeechEvent::Failed(if self.overrun.load(Ordering::Acquire) {
                EngineError::SlowReader
            } else {
                EngineError::ShuttingDown
            })
        });
        self.ended = !matches!(event, SpeechEvent::Audio(_));
        event
    }
}
