//! The handle to a model's engine thread: submitting requests, reading events, watching the state.

use crate::active::{Active, EventSender};
use crate::error::EngineError;
use crate::event::Event;
use crate::memory::available_memory;
use crate::model::{GenerationDefaults, Task, TextModel};
use crate::processor::TextProcessor;
use crate::request::GenerationRequest;
use crate::transcription::Transcriber;
use crate::worker::{CacheSize, Command, Worker};
use aha_nn::cache::Cache;
use candle_core::Device;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events that may wait for a slow reader before its request is cancelled.
const EVENT_BUFFER: usize = 4096;
/// Size of the cache on accelerators, whose free memory is not known here, unless another one is asked for.
const ACCELERATOR_CACHE_BYTES: usize = 4 << 30;
/// Tokens that the cache holds even where memory is scarce.
const LEAST_CACHE_TOKENS: usize = 1024;
/// Recurrent states kept for each sequence that may run.
const SNAPSHOTS_PER_SEQUENCE: usize = 4;
/// A step that takes longer means that the engine hangs.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// Sizes of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens that one step computes at most; longer prompts are cut into chunks.
    pub max_batch_tokens: usize,
    /// Sequences that run at once.
    pub max_sequences: usize,
    /// Requests that may wait; more are refused as [`EngineError::Overloaded`].
    pub queue_limit: usize,
    /// Longest sequence, where it shall be shorter than the model's own.
    pub context_length: Option<usize>,
    /// Tokens that the cache holds; by default what a quarter of the free memory holds (4 GiB on accelerators), and
    /// no more than all sequences can use.
    pub cache_tokens: Option<usize>,
    /// Tokens in a cache block.
    pub block_size: usize,
    /// Keep finished blocks for prompts that begin alike.
    pub prefix_cache: bool,
    /// Bytes of encoded media that are kept for later steps, turns and requests.
    pub encoder_cache_bytes: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_batch_tokens: 512,
            max_sequences: 64,
            queue_limit: 256,
            context_length: None,
            cache_tokens: None,
            block_size: 16,
            prefix_cache: true,
            encoder_cache_bytes: 512 << 20,
        }
    }
}

impl EngineOptions {
    /// Refuses sizes that no engine can work with.
    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        for (name, value) in [
            ("max_batch_tokens", self.max_batch_tokens),
            ("max_sequences", self.max_sequences),
            ("queue_limit", self.queue_limit),
            ("block_size", self.block_size),
            ("context_length", self.context_length.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(EngineError::invalid(
                    name,
                    format!("`{name}` must be at least 1"),
                ));
            }
        }
        if !self.block_size.is_multiple_of(Cache::PAGE) {
            return Err(EngineError::invalid(
                "block_size",
                format!("`block_size` must be a multiple of {}", Cache::PAGE),
            ));
        }
        Ok(())
    }
}

/// What the handles and the thread both see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) alive: AtomicBool,
    pub(crate) running: AtomicUsize,
    pub(crate) waiting: AtomicUsize,
    pub(crate) free_blocks: AtomicUsize,
    pub(crate) cached_blocks: AtomicUsize,
    pub(crate) total_blocks: AtomicUsize,
    pub(crate) free_states: AtomicUsize,
    pub(crate) kept_states: AtomicUsize,
    pub(crate) total_states: AtomicUsize,
    pub(crate) preemptions: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) unpacked: AtomicUsize,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    steps: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` at which the running step began, plus one; 0 between steps.
    step_began: AtomicU64,
    /// Moving average of a request's time, in milliseconds.
    average_request: AtomicU64,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            alive: AtomicBool::new(true),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            free_blocks: AtomicUsize::new(0),
            cached_blocks: AtomicUsize::new(0),
            total_blocks: AtomicUsize::new(0),
            free_states: AtomicUsize::new(0),
            kept_states: AtomicUsize::new(0),
            total_states: AtomicUsize::new(0),
            preemptions: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            unpacked: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            started: Instant::now(),
            step_began: AtomicU64::new(0),
            average_request: AtomicU64::new(1000),
        }
    }

    pub(crate) fn begin_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.step_began.store(
            self.started.elapsed().as_millis() as u64 + 1,
            Ordering::Release,
        );
    }

    pub(crate) fn end_step(&self) {
        self.step_began.store(0, Ordering::Release);
    }

    pub(crate) fn record_duration(&self, duration: Duration) {
        let old = self.average_request.load(Ordering::Relaxed);
        self.average_request.store(
            (old * 7 + duration.as_millis() as u64) / 8,
            Ordering::Relaxed,
        );
    }

    /// Whether a request would find a place in a queue of `limit`, of which `at_once` are served together.
    pub(crate) fn check_room(&self, limit: usize, at_once: usize) -> Result<(), EngineError> {
        let waiting = self.waiting.load(Ordering::Acquire);
        if !self.alive.load(Ordering::Acquire) {
            Err(EngineError::ShuttingDown)
        } else if waiting >= limit {
            Err(self.overloaded(waiting, at_once))
        } else {
            Ok(())
        }
    }

    /// Takes a place in the queue, or says that there is none.
    pub(crate) fn enter_queue(&self, limit: usize, at_once: usize) -> Result<(), EngineError> {
        self.check_room(limit, at_once)?;
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel);
        if waiting >= limit {
            self.leave_queue();
            return Err(self.overloaded(waiting, at_once));
        }
        Ok(())
    }

    pub(crate) fn leave_queue(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    fn overloaded(&self, waiting: usize, at_once: usize) -> EngineError {
        let average = self.average_request.load(Ordering::Relaxed);
        let rounds = waiting.div_ceil(at_once.max(1)) as u64;
        EngineError::Overloaded {
            waiting,
            retry_after_seconds: (average * rounds).div_ceil(1000).clamp(1, 600),
        }
    }

    pub(crate) fn status(&self) -> EngineStatus {
        EngineStatus {
            running: self.running.load(Ordering::Acquire),
            waiting: self.waiting.load(Ordering::Acquire),
            free_blocks: self.free_blocks.load(Ordering::Acquire),
            cached_blocks: self.cached_blocks.load(Ordering::Relaxed),
            total_blocks: self.total_blocks.load(Ordering::Relaxed),
            free_states: self.free_states.load(Ordering::Acquire),
            kept_states: self.kept_states.load(Ordering::Relaxed),
            total_states: self.total_states.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
            preemptions: self.preemptions.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            unpacked: self.unpacked.load(Ordering::Relaxed),
            stuck: self.stuck(),
        }
    }

    fn stuck(&self) -> bool {
        let began = self.step_began.load(Ordering::Acquire);
        let now = self.started.elapsed().as_millis() as u64;
        !self.alive.load(Ordering::Acquire)
            || (began > 0 && now.saturating_sub(began) > STUCK_AFTER.as_millis() as u64)
    }
}

/// A look at the engine's state; never waits for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStatus {
    /// Sequences being computed.
    pub running: usize,
    /// Requests that wait for their first step.
    pub waiting: usize,
    /// Cache blocks that can be given out.
    pub free_blocks: usize,
    /// Those among them whose content may be used again.
    pub cached_blocks: usize,
    /// All cache blocks.
    pub total_blocks: usize,
    /// Slots of recurrent states that no running sequence holds; 0 for models without such state.
    pub free_states: usize,
    /// Those among them that keep a state for prompts that begin alike.
    pub kept_states: usize,
    /// All slots of recurrent states.
    pub total_states: usize,
    /// Steps so far.
    pub steps: u64,
    /// Prompt tokens of all admitted requests.
    pub prompt_tokens: u64,
    /// Tokens generated for all requests.
    pub generated_tokens: u64,
    /// Sequences that had to give their blocks back and start over.
    pub preemptions: u64,
    /// Steps that panicked.
    pub panics: u64,
    /// Matrices that are still read from their files; they are packed while nothing runs, and between steps.
    pub unpacked: usize,
    /// The thread is gone, or a step takes so long that it must hang.
    pub stuck: bool,
}

/// Handle to one model's engine thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    commands: std_mpsc::Sender<Command>,
    shared: Arc<Shared>,
    processor: TextProcessor,
    defaults: GenerationDefaults,
    transcriber: Option<Arc<dyn Transcriber>>,
    task: Task,
    vocab_size: usize,
    context_length: usize,
    options: EngineOptions,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("context_length", &self.inner.context_length)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Allocates the cache and starts the thread.
    ///
    /// Errors when the cache cannot hold a single sequence of reasonable length.
    pub fn start(model: TextModel, mut options: EngineOptions) -> Result<Self, EngineError> {
        options.validate()?;
        let task = model.task();
        let TextModel {
            generator,
            encoder,
            processor,
            defaults,
            transcriber,
            unpacked,
        } = model;
        let spec = generator.cache_spec();
        let bytes_per_token = spec.bytes_per_token();
        // What packing will take is spoken for.
        let available = available_memory().saturating_sub(unpacked.bytes());
        let snapshots = state_snapshots(
            &mut options,
            available,
            spec.bytes_per_state(),
            generator.device(),
        );
        let own_context = generator.context_length();
        let mut context_length = options
            .context_length
            .map_or(own_context, |asked| asked.min(own_context));
        let num_blocks = cache_blocks(
            &options,
            available,
            bytes_per_token,
            context_length,
            generator.device(),
        )?;
        let capacity = num_blocks * options.block_size;
        if capacity < context_length {
            tracing::warn!(
                "the cache holds {capacity} tokens, so sequences are limited to {capacity} of the model's {own_context}"
            );
            context_length = capacity;
        }
        tracing::info!(
            "cache: {num_blocks} blocks of {} tokens, {} MiB when full, keys and values in {}; context {context_length}",
            options.block_size,
            (capacity * bytes_per_token) >> 20,
            spec.kv_dtype().map_or("no type", |dtype| dtype.as_str())
        );
        let (commands, receiver) = std_mpsc::channel();
        let shared = Arc::new(Shared::new());
        let vocab_size = generator.vocab_size();
        let worker = Worker::new(
            generator,
            encoder,
            unpacked,
            CacheSize {
                num_blocks,
                snapshots,
            },
            options.clone(),
            receiver,
            shared.clone(),
        )?;
        let thread = std::thread::Builder::new()
            .name("aha-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(EngineError::internal)?;
        Ok(Self {
            inner: Arc::new(Inner {
                commands,
                shared,
                processor: processor.with_context_length(context_length),
                defaults,
                transcriber,
                task,
                vocab_size,
                context_length,
                options,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Tokenizer, chat template and parsers of the model.
    pub fn processor(&self) -> &TextProcessor {
        &self.inner.processor
    }

    /// What the checkpoint says about generation.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.inner.defaults
    }

    /// What the model is for.
    pub fn task(&self) -> Task {
        self.inner.task
    }

    /// The way from recordings to transcripts, where the model recognises speech.
    pub fn transcriber(&self) -> Option<&dyn Transcriber> {
        self.inner.transcriber.as_deref()
    }

    pub(crate) fn shared_transcriber(&self) -> Option<Arc<dyn Transcriber>> {
        self.inner.transcriber.clone()
    }

    /// Tokens that prompt and answer may have together.
    pub fn context_length(&self) -> usize {
        self.inner.context_length
    }

    /// Queues a request and returns its events. Never waits.
    ///
    /// Errors when a value is out of range, the prompt does not fit, the queue is full or the engine is stopping.
    pub fn submit(&self, request: GenerationRequest) -> Result<Generation, EngineError> {
        let inner = &self.inner;
        request.validate(inner.vocab_size)?;
        let prompt_tokens = request.prompt.token_ids.len();
        let room = inner.context_length.saturating_sub(prompt_tokens);
        let wanted = request.stop.max_tokens.unwrap_or(1).max(1);
        if wanted > room {
            return Err(EngineError::ContextLengthExceeded {
                context_length: inner.context_length,
                prompt_tokens,
                completion_tokens: wanted,
            });
        }
        let shared = &inner.shared;
        shared.enter_queue(inner.options.queue_limit, inner.options.max_sequences)?;
        let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
        let overrun = Arc::new(AtomicBool::new(false));
        let active = Active::new(
            request,
            inner.processor.shared_tokenizer(),
            &inner.defaults,
            room,
            random_seed(),
            EventSender {
                events: sender,
                overrun: overrun.clone(),
            },
        );
        if inner
            .commands
            .send(Command::Submit(Box::new(active)))
            .is_err()
        {
            shared.leave_queue();
            return Err(EngineError::ShuttingDown);
        }
        Ok(Generation {
            receiver,
            overrun,
            prompt_tokens,
            ended: false,
        })
    }

    /// Whether a request would find a place in the queue now: a cheap question before the work of preparing one.
    ///
    /// Errors like [`Engine::submit`] when the queue is full or the engine is stopping.
    pub fn check_room(&self) -> Result<(), EngineError> {
        let options = &self.inner.options;
        self.inner
            .shared
            .check_room(options.queue_limit, options.max_sequences)
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

/// Waits for an engine's thread to end; once.
pub(crate) fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("the engine's thread panicked");
    }
}

/// The events of one request. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct Generation {
    receiver: mpsc::Receiver<Event>,
    overrun: Arc<AtomicBool>,
    prompt_tokens: usize,
    ended: bool,
}

impl Generation {
    /// The next event; `None` after [`Event::Finished`] or [`Event::Failed`].
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.receiver.recv().await;
        Some(self.observe(event))
    }

    /// As [`next`](Self::next), for streams of several generations.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = std::task::ready!(self.receiver.poll_recv(context));
        Poll::Ready(Some(self.observe(event)))
    }

    /// The same for threads outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.receiver.blocking_recv();
        Some(self.observe(event))
    }

    fn observe(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| {
            Event::Failed(if self.overrun.load(Ordering::Acquire) {
                EngineError::SlowReader
            } else {
                EngineError::ShuttingDown
            })
        });
        self.ended = !matches!(event, Event::Token(_));
        event
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
}

/// Blocks of the cache: as many as asked for, else what a quarter of the `available` memory holds. More than all sequences
/// can use at full length is never taken.
pub(crate) fn cache_blocks(
    options: &EngineOptions,
    available: usize,
    bytes_per_token: usize,
    context_length: usize,
    device: &Device,
) -> Result<usize, EngineError> {
    let refused = |message| Err(EngineError::invalid("cache_tokens", message));
    let usable = context_length
        .saturating_mul(options.max_sequences)
        .saturating_add(options.block_size);
    let budget = if device.is_cpu() {
        available / 4
    } else {
        ACCELERATOR_CACHE_BYTES
    };
    let tokens = match options.cache_tokens {
        None => usable.min((budget / bytes_per_token.max(1)).max(LEAST_CACHE_TOKENS)),
        Some(tokens) => {
            let tokens = tokens.min(usable);
            let bytes = tokens.saturating_mul(bytes_per_token);
            if device.is_cpu() && bytes > available {
                return refused(format!(
                    "a cache of {tokens} tokens takes {} MiB, but only {} MiB are free: ask for at most {} tokens",
                    bytes >> 20,
                    available >> 20,
                    available / bytes_per_token.max(1)
                ));
            }
            tokens
        }
    };
    match tokens.checked_div(options.block_size) {
        None | Some(0) => refused(format!(
            "a cache of {tokens} tokens is smaller than a block of {}",
            options.block_size
        )),
        Some(blocks) => Ok(blocks),
    }
}

/// How many recurrent states to keep for prompts that begin alike; `None` for models without such state. Where memory
/// is scarce, fewer sequences run at once.
fn state_snapshots(
    options: &mut EngineOptions,
    available: usize,
    bytes_per_state: usize,
    device: &Device,
) -> Option<usize> {
    if bytes_per_state == 0 {
        return None;
    }
    let budget = if device.is_cpu() {
        available / 8
    } else {
        ACCELERATOR_CACHE_BYTES / 4
    };
    let affordable = budget / bytes_per_state;
    if affordable < options.max_sequences {
        let sequences = affordable.max(1);
        tracing::warn!(
            "each sequence needs {} MiB of recurrent state, so {sequences} run at once instead of {}",
            bytes_per_state >> 20,
            options.max_sequences
        );
        options.max_sequences = sequences;
    }
    let most = SNAPSHOTS_PER_SEQUENCE * options.max_sequences;
    Some(if options.prefix_cache {
        affordable.min(most)
    } else {
        0
    })
}

/// A seed for requests that bring none.
pub(crate) fn random_seed() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(Instant::now())
}
