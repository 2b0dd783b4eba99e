//! The engine of models that give one row of numbers a sequence: embeddings and relevance scores.
//!
//! One thread a model. Requests reach it by channel; each answer has a channel of its own, whose dropped receiver is
//! the cancellation. A batch takes sequences of all waiting requests in turn, so that a long job does not hold up a
//! short one; sequences lie end to end without padding, so their order costs nothing and answers keep that of the
//! request.

use crate::embedding::Embedder;
use crate::engine::{EngineOptions, EngineStatus, Shared, join};
use crate::error::EngineError;
use crate::rerank::Reranker;
use crate::worker::Alive;
use candle_core::{DType, Result, Tensor};
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A pass keeps nothing for later, so it may be this much longer than a step of a generator, between whose tokens
/// people wait.
const BATCH_FACTOR: usize = 4;

/// The sequences of one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledBatch<'a> {
    /// Token ids of each sequence; none is empty.
    pub sequences: Vec<&'a [u32]>,
    /// Neighbours that belong to one request, in order: they may begin alike.
    pub requests: Vec<Range<usize>>,
}

impl PooledBatch<'_> {
    /// Tokens of all sequences.
    pub fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.len()).sum()
    }
}

/// What runs on the thread.
pub(crate) enum Pooled {
    Embed(Box<dyn Embedder>),
    Rerank(Box<dyn Reranker>),
}

impl Pooled {
    fn vocab_size(&self) -> usize {
        match self {
            Self::Embed(model) => model.vocab_size(),
            Self::Rerank(model) => model.vocab_size(),
        }
    }

    fn context_length(&self) -> usize {
        match self {
            Self::Embed(model) => model.context_length(),
            Self::Rerank(model) => model.context_length(),
        }
    }

    /// One row a sequence, `[sequences, width]`.
    fn run(&self, batch: &PooledBatch<'_>) -> Result<Tensor> {
        match self {
            Self::Embed(model) => model.embed(batch),
            Self::Rerank(model) => model.score(batch)?.unsqueeze(1),
        }
    }
}

/// One request on the thread.
struct Job {
    sequences: Vec<Vec<u32>>,
    /// Sequences that were taken into a batch.
    taken: usize,
    rows: Vec<Vec<f32>>,
    sender: oneshot::Sender<std::result::Result<PooledOutput, EngineError>>,
    submitted: Instant,
    started: Option<Instant>,
}

enum Command {
    Submit(Box<Job>),
    Shutdown,
}

/// Everything that one request gave.
#[derive(Debug, Clone, PartialEq)]
pub struct PooledOutput {
    /// One row a sequence, in the order of the request.
    pub rows: Vec<Vec<f32>>,
    /// Time in the queue.
    pub queued: Duration,
    /// Time from the first batch to the last.
    pub computed: Duration,
}

/// Handle to the thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct PooledEngine {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    vocab_size: usize,
    context_length: usize,
    queue_limit: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// An answer that is being computed. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct PendingRows(oneshot::Receiver<std::result::Result<PooledOutput, EngineError>>);

impl PendingRows {
    pub(crate) async fn wait(self) -> std::result::Result<PooledOutput, EngineError> {
        self.0.await.unwrap_or(Err(EngineError::ShuttingDown))
    }

    pub(crate) fn blocking_wait(self) -> std::result::Result<PooledOutput, EngineError> {
        self.0
            .blocking_recv()
            .unwrap_or(Err(EngineError::ShuttingDown))
    }
}

impl PooledEngine {
    pub(crate) fn start(
        model: Pooled,
        options: &EngineOptions,
    ) -> std::result::Result<Self, EngineError> {
        options.validate()?;
        let own_context = model.context_length();
        let context_length = options
            .context_length
            .map_or(own_context, |asked| asked.min(own_context));
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::new());
        let vocab_size = model.vocab_size();
        let worker = Worker {
            model,
            jobs: VecDeque::new(),
            batch_tokens: options.max_batch_tokens.saturating_mul(BATCH_FACTOR),
            commands: receiver,
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("aha-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(EngineError::internal)?;
        Ok(Self {
            inner: Arc::new(Inner {
                commands,
                shared,
                vocab_size,
                context_length,
                queue_limit: options.queue_limit,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Tokens that one sequence may have.
    pub(crate) fn context_length(&self) -> usize {
        self.inner.context_length
    }

    /// Ids of tokens lie below it.
    pub(crate) fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Queues sequences. Never waits.
    pub(crate) fn submit(
        &self,
        sequences: Vec<Vec<u32>>,
    ) -> std::result::Result<PendingRows, EngineError> {
        let inner = &self.inner;
        for sequence in &sequences {
            if sequence.is_empty() {
                return Err(EngineError::invalid("input", "an input has no tokens"));
            }
            if sequence.len() > inner.context_length {
                return Err(EngineError::invalid(
                    "input",
                    format!(
                        "an input has {} tokens, more than the {} of the context",
                        sequence.len(),
                        inner.context_length
                    ),
                ));
            }
            if let Some(token) = sequence
                .iter()
                .find(|token| **token as usize >= inner.vocab_size)
            {
                return Err(EngineError::invalid(
                    "input",
                    format!(
                        "token {token} is not one of the model's {}",
                        inner.vocab_size
                    ),
                ));
            }
        }
        let (sender, receiver) = oneshot::channel();
        inner.shared.enter_queue(inner.queue_limit, 1)?;
        let job = Job {
            rows: vec![Vec::new(); sequences.len()],
            sequences,
            taken: 0,
            sender,
            submitted: Instant::now(),
            started: None,
        };
        if inner.commands.send(Command::Submit(Box::new(job))).is_err() {
            inner.shared.leave_queue();
            return Err(EngineError::ShuttingDown);
        }
        Ok(PendingRows(receiver))
    }

    pub(crate) fn check_room(&self) -> std::result::Result<(), EngineError> {
        self.inner.shared.check_room(self.inner.queue_limit, 1)
    }

    pub(crate) fn status(&self) -> EngineStatus {
        self.inner.shared.status()
    }

    pub(crate) fn shutdown(&self) {
        // The thread may be gone already; then there is nobody left to tell.
        let _ = self.inner.commands.send(Command::Shutdown);
        join(&self.inner.thread);
    }
}

struct Worker {
    model: Pooled,
    /// Requests in the order of their turns.
    jobs: VecDeque<Job>,
    batch_tokens: usize,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) {
        let _alive = Alive(self.shared.clone());
        while self.receive() {
            self.drop_cancelled();
            if !self.jobs.is_empty() {
                self.step();
            }
        }
        for job in std::mem::take(&mut self.jobs) {
            self.end(job, Err(EngineError::ShuttingDown));
        }
    }

    /// Takes all commands that are there, waiting for one when there is nothing else to do. False ends the thread.
    fn receive(&mut self) -> bool {
        if self.jobs.is_empty() {
            match self.commands.recv() {
                Ok(Command::Submit(job)) => self.jobs.push_back(*job),
                Ok(Command::Shutdown) | Err(_) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::Submit(job)) => self.jobs.push_back(*job),
                Ok(Command::Shutdown) => return false,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.jobs.is_empty(),
            }
        }
    }

    fn drop_cancelled(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            if job.sender.is_closed() {
                tracing::debug!("cancelled: the receiver is gone");
                self.end(job, Err(EngineError::ShuttingDown));
            } else {
                self.jobs.push_back(job);
            }
        }
    }

    /// How many sequences of each request the next batch takes: one of each in turn until the tokens suffice, at
    /// least one in all.
    fn shares(&self) -> Vec<usize> {
        let mut shares = vec![0; self.jobs.len()];
        let mut tokens = 0_usize;
        loop {
            let mut grew = false;
            for (job, share) in self.jobs.iter().zip(&mut shares) {
                let Some(next) = job.sequences.get(job.taken + *share) else {
                    continue;
                };
                let sum = tokens.saturating_add(next.len());
                if sum > self.batch_tokens && tokens > 0 {
                    return shares;
                }
                tokens = sum;
                *share += 1;
                grew = true;
            }
            if !grew {
                return shares;
            }
        }
    }

    /// Runs one batch. A fault in it, even a panic, ends the requests of this batch and nothing else.
    fn step(&mut self) {
        let shares = self.shares();
        let mut batch = PooledBatch {
            sequences: Vec::new(),
            requests: Vec::new(),
        };
        let now = Instant::now();
        for (job, share) in self.jobs.iter_mut().zip(&shares) {
            if *share == 0 && !job.sequences.is_empty() {
                continue;
            }
            if job.started.is_none() {
                job.started = Some(now);
                // Before the queue's counter goes down: a request is seen waiting or running at any moment.
                self.shared.running.fetch_add(1, Ordering::AcqRel);
                self.shared.leave_queue();
            }
            let first = batch.sequences.len();
            let taken = &job.sequences[job.taken..job.taken + share];
            batch.sequences.extend(taken.iter().map(Vec::as_slice));
            if *share > 0 {
                batch.requests.push(first..batch.sequences.len());
            }
        }
        let tokens = batch.num_tokens() as u64;
        self.shared
            .prompt_tokens
            .fetch_add(tokens, Ordering::Relaxed);
        self.shared.begin_step();
        // Inside the pool, many small parallel loops start without handing work from thread to thread.
        let result = catch_unwind(AssertUnwindSafe(|| {
            rayon::scope(|_| rows_of(&self.model, &batch))
        }));
        self.shared.end_step();
        drop(batch);
        let mut rows = match result {
            Ok(Ok(rows)) => Ok(rows.into_iter()),
            Ok(Err(error)) => {
                tracing::error!(%error, "a batch failed");
                Err(EngineError::internal(error))
            }
            Err(_) => {
                tracing::error!("a batch panicked");
                self.shared.panics.fetch_add(1, Ordering::Relaxed);
                Err(EngineError::internal(
                    "the model failed while computing this request",
                ))
            }
        };
        for (mut job, share) in std::mem::take(&mut self.jobs).into_iter().zip(shares) {
            match &mut rows {
                Ok(rows) => {
                    for row in &mut job.rows[job.taken..job.taken + share] {
                        *row = rows.next().unwrap_or_default();
                    }
                    job.taken += share;
                    if job.taken < job.sequences.len() {
                        self.jobs.push_back(job);
                        continue;
                    }
                    let rows = std::mem::take(&mut job.rows);
                    let started = job.started.unwrap_or(now);
                    let output = PooledOutput {
                        rows,
                        queued: started - job.submitted,
                        computed: started.elapsed(),
                    };
                    self.end(job, Ok(output));
                }
                Err(error) if share > 0 => {
                    let error = error.clone();
                    self.end(job, Err(error));
                }
                Err(_) => self.jobs.push_back(job),
            }
        }
        // Who came first goes first once, then the next.
        if !self.jobs.is_empty() {
            self.jobs.rotate_left(1);
        }
    }

    /// Forgets a request that has ended, in whatever way.
    fn end(&self, job: Job, result: std::result::Result<PooledOutput, EngineError>) {
        match job.started {
            Some(_) => {
                self.shared.running.fetch_sub(1, Ordering::AcqRel);
            }
            None => self.shared.leave_queue(),
        }
        self.shared.record_duration(job.submitted.elapsed());
        // The receiver may be gone: a cancellation.
        let _ = job.sender.send(result);
    }
}

/// Rows of numbers on the host, one a sequence.
fn rows_of(model: &Pooled, batch: &PooledBatch<'_>) -> Result<Vec<Vec<f32>>> {
    if batch.sequences.is_empty() {
        return Ok(Vec::new());
    }
    let rows = model.run(batch)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    if rows.len() != batch.sequences.len() {
        candle_core::bail!(
            "{} rows for {} sequences",
            rows.len(),
            batch.sequences.len()
        );
    }
    if rows.iter().flatten().any(|value| !value.is_finite()) {
        candle_core::bail!(
            "the model computed numbers that are not finite: its weights may be damaged, or too large for the precision"
        );
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
