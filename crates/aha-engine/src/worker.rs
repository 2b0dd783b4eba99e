//! The engine's thread: takes requests, runs steps, sends events.

use crate::active::{Active, Choice, Progress};
use crate::encoders::Encoders;
use crate::engine::{EngineOptions, Shared};
use crate::error::EngineError;
use crate::generator::Generator;
use crate::media::MediaEncoder;
use crate::request::Prompt;
use crate::sampler::NoChoice;
use crate::scheduler::{BlockPool, Plan, Scheduler, SequenceId, StatePool};
use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, CacheSpec};
use aha_nn::weights::Unpacked;
use candle_core::{Device, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// Of a step's time, what packing matrices behind it may take, and at most so much, so that no token waits long for it.
const PACKING_SHARE: u32 = 8;
const PACKING_TIME: Duration = Duration::from_millis(20);

/// How long nothing must be asked for before matrices are packed: a program that asks once ends sooner.
const PATIENCE: Duration = Duration::from_millis(200);

/// What the handles send to the thread.
pub(crate) enum Command {
    Submit(Box<Active>),
    Shutdown,
}

/// Queues a prompt; whether others may share its blocks depends on its length.
fn enqueue(scheduler: &mut Scheduler, spec: &CacheSpec, id: SequenceId, prompt: &Prompt) {
    let longest = spec.shareable_prompt_len;
    let shareable = longest.is_none_or(|longest| prompt.token_ids.len() <= longest);
    scheduler.add(id, prompt, shareable);
}

/// Sizes of the cache, decided once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheSize {
    /// Blocks of keys and values.
    pub(crate) num_blocks: usize,
    /// Recurrent states that are kept for prompts that begin alike; `None` for models without such state.
    pub(crate) snapshots: Option<usize>,
}

impl CacheSize {
    fn allocate(
        &self,
        spec: &CacheSpec,
        options: &EngineOptions,
        device: &Device,
    ) -> Result<Cache> {
        let states = self
            .snapshots
            .map_or(0, |kept| kept + options.max_sequences);
        Cache::new(spec, self.num_blocks, options.block_size, states, device)
    }

    fn scheduler(&self, options: &EngineOptions) -> Scheduler {
        let pool = BlockPool::new(self.num_blocks, options.block_size, options.prefix_cache);
        let states = self
            .snapshots
            .map(|kept| StatePool::new(options.max_sequences, kept));
        Scheduler::new(
            pool,
            states,
            options.max_batch_tokens,
            options.max_sequences,
        )
    }
}

/// Tells the handles that the thread is gone, however it ends.
pub(crate) struct Alive(pub(crate) Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
    }
}

/// Everything that the engine's thread owns.
pub(crate) struct Worker {
    generator: Box<dyn Generator>,
    encoders: Encoders,
    unpacked: Unpacked,
    spec: CacheSpec,
    size: CacheSize,
    cache: Cache,
    /// Memory for a step's logits.
    logits: Vec<f32>,
    scheduler: Scheduler,
    options: EngineOptions,
    active: HashMap<SequenceId, Active>,
    next_id: SequenceId,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
}

impl Worker {
    pub(crate) fn new(
        generator: Box<dyn Generator>,
        encoder: Option<Box<dyn MediaEncoder>>,
        unpacked: Unpacked,
        size: CacheSize,
        options: EngineOptions,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let spec = generator.cache_spec();
        let cache = size.allocate(&spec, &options, generator.device())?;
        let scheduler = size.scheduler(&options);
        let worker = Self {
            encoders: Encoders::new(encoder, options.encoder_cache_bytes),
            generator,
            unpacked,
            spec,
            size,
            cache,
            logits: Vec::new(),
            scheduler,
            options,
            active: HashMap::new(),
            next_id: 0,
            commands,
            shared,
        };
        worker.publish_status();
        Ok(worker)
    }

    /// Serves until every handle is gone or a shutdown is asked for.
    pub(crate) fn run(mut self) {
        let _alive = Alive(self.shared.clone());
        while self.receive() {
            self.drop_cancelled();
            if !self.scheduler.is_idle() {
                let start = Instant::now();
                self.step();
                if !self.scheduler.is_idle() {
                    self.pack_for((start.elapsed() / PACKING_SHARE).min(PACKING_TIME));
                }
            }
            self.publish_status();
        }
        for active in self.active.values() {
            active.fail(EngineError::ShuttingDown);
        }
    }

    /// Takes all commands that are there, waiting for one when there is nothing else to do. False ends the thread.
    fn receive(&mut self) -> bool {
        let (mut patience, mut is_tidy) = (PATIENCE, false);
        while self.scheduler.is_idle() {
            let received = match is_tidy {
                true => self.commands.recv().map_err(RecvTimeoutError::from),
                false => self.commands.recv_timeout(patience),
            };
            match received {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    patience = Duration::ZERO;
                    is_tidy = self.tidy_up();
                }
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.scheduler.is_idle(),
            }
        }
    }

    /// Packs matrices that are still read from their files, one or more, for about so long.
    fn pack_for(&self, time: Duration) {
        let start = Instant::now();
        while !self.unpacked.is_empty() {
            self.pack_next();
            if start.elapsed() >= time {
                return;
            }
        }
    }

    /// Does one of the things that wait until nothing is asked. True once there is no more of them.
    fn tidy_up(&self) -> bool {
        if self.unpacked.is_empty() {
            aha_kernels::give_back_memory();
            return true;
        }
        self.pack_next();
        self.publish_status();
        false
    }

    /// Packs a matrix that is still read from its file.
    fn pack_next(&self) {
        if let Err(error) = self.unpacked.pack_next() {
            tracing::warn!(%error, "weights are read from their files from now on");
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        let active = match command {
            Command::Submit(active) => active,
            Command::Shutdown => return false,
        };
        let id = self.next_id;
        self.next_id += 1;
        enqueue(&mut self.scheduler, &self.spec, id, active.prompt());
        self.active.insert(id, *active);
        true
    }

    fn drop_cancelled(&mut self) {
        let cancelled: Vec<SequenceId> = self
            .active
            .iter()
            .filter(|(_, active)| active.is_cancelled())
            .map(|(id, _)| *id)
            .collect();
        for id in cancelled {
            tracing::debug!(id, "cancelled: the receiver is gone");
            self.retire(id);
        }
    }

    /// Forgets a request that has ended, in whatever way.
    fn retire(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        if let Some(active) = self.active.remove(&id) {
            if !active.is_admitted() {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            self.shared.record_duration(active.age());
        }
    }

    /// Runs one batch. A fault in it, even a panic, ends the requests of this batch and nothing else.
    fn step(&mut self) {
        let plan = self.scheduler.plan();
        // Before the queue's counter goes down: a request is seen waiting or running at any moment.
        self.publish_status();
        for id in &plan.admitted {
            let cached_tokens = self.scheduler.cached_tokens(*id);
            if let Some(active) = self.active.get_mut(id) {
                active.admit(cached_tokens);
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                self.shared
                    .prompt_tokens
                    .fetch_add(active.prompt().token_ids.len() as u64, Ordering::Relaxed);
            }
        }
        self.shared.begin_step();
        let result = catch_unwind(AssertUnwindSafe(|| {
            if plan.generates() {
                self.compute(&plan)
            } else {
                // Inside the pool, a prompt's parallel loops start without handing work from thread to thread.
                rayon::scope(|_| self.compute(&plan))
            }
        }));
        self.shared.end_step();
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "a step failed");
                self.fail(&plan, &EngineError::internal(error));
            }
            Err(_) => {
                tracing::error!("a step panicked; the cache is rebuilt");
                self.shared.panics.fetch_add(1, Ordering::Relaxed);
                self.recover();
            }
        }
    }

    fn compute(&mut self, plan: &Plan) -> Result<()> {
        self.cache.copy_states(&plan.restored)?;
        let mut logits = std::mem::take(&mut self.logits);
        self.forward(plan, &mut logits)?;
        let kept = self.scheduler.complete(plan);
        self.cache.copy_states(&kept)?;
        let chosen = self.choose(plan, &logits);
        self.logits = logits;
        for (id, choice) in chosen {
            let Some(active) = self.active.get_mut(&id) else {
                continue;
            };
            let progress = match choice {
                Ok(choice) => {
                    self.shared.generated_tokens.fetch_add(1, Ordering::Relaxed);
                    let token = choice.token;
                    let progress = active.deliver(choice);
                    if progress == Progress::Continues {
                        self.scheduler.push_token(id, token);
                    }
                    progress
                }
                Err(error) => {
                    active.fail(error.into());
                    Progress::Ended
                }
            };
            if progress == Progress::Ended {
                self.retire(id);
            }
        }
        Ok(())
    }

    /// Each sequence's next token by its row of `logits`, rows laid end to end.
    fn choose(
        &mut self,
        plan: &Plan,
        logits: &[f32],
    ) -> Vec<(SequenceId, std::result::Result<Choice, NoChoice>)> {
        let vocab_size = self.generator.vocab_size();
        let mut rows: HashMap<SequenceId, &[f32]> = plan
            .scheduled
            .iter()
            .filter_map(|scheduled| {
                let row = scheduled.logits?;
                Some((
                    scheduled.id,
                    logits.get(row * vocab_size..(row + 1) * vocab_size)?,
                ))
            })
            .collect();
        let mut choosing: Vec<_> = self
            .active
            .iter_mut()
            .filter_map(|(id, active)| Some((*id, active, rows.remove(id)?)))
            .collect();
        if let [(id, active, row)] = &mut choosing[..] {
            return vec![(*id, active.choose(row))];
        }
        // Choosing from a large vocabulary takes long enough to be worth all cores.
        choosing
            .into_par_iter()
            .map(|(id, active, row)| (id, active.choose(row)))
            .collect()
    }

    /// Runs the model; `logits` becomes those of the rows asked for, one after another.
    fn forward(&mut self, plan: &Plan, logits: &mut Vec<f32>) -> Result<()> {
        let sequences = plan
            .scheduled
            .iter()
            .map(|scheduled| scheduled.slice.clone())
            .collect();
        let batch = Batch::new(
            &plan.token_ids,
            sequences,
            &plan.logit_rows,
            self.options.block_size,
            self.generator.device(),
        )?;
        let active = &self.active;
        let encoded = self.encoders.rows(&plan.scheduled, |part| {
            active
                .get(&part.id)
                .map_or(&[], |active| active.prompt().media.as_slice())
        })?;
        let batch = batch.with_encoded(encoded)?;
        self.generator.forward_into(&batch, &mut self.cache, logits)
    }

    fn fail(&mut self, plan: &Plan, error: &EngineError) {
        for scheduled in &plan.scheduled {
            if let Some(active) = self.active.get(&scheduled.id) {
                active.fail(error.clone());
            }
            self.retire(scheduled.id);
        }
    }

    /// After a panic nothing of the step can be trusted: all running requests end, the queue starts over on a fresh
    /// cache.
    fn recover(&mut self) {
        let error = EngineError::internal("the model failed while computing this request");
        let started: Vec<SequenceId> = self
            .active
            .iter()
            .filter(|(_, active)| active.is_admitted())
            .map(|(id, _)| *id)
            .collect();
        for id in started {
            if let Some(active) = self.active.get(&id) {
                active.fail(error.clone());
            }
            self.retire(id);
        }
        let device = self.generator.device();
        let rebuilt = self.size.allocate(&self.spec, &self.options, device);
        self.scheduler = self.size.scheduler(&self.options);
        let mut waiting: Vec<SequenceId> = self.active.keys().copied().collect();
        match rebuilt {
            Ok(cache) => self.cache = cache,
            Err(error) => {
                tracing::error!(%error, "the cache could not be rebuilt");
                for id in waiting.drain(..) {
                    self.retire(id);
                }
            }
        }
        waiting.sort_unstable();
        for id in waiting {
            if let Some(active) = self.active.get(&id) {
                enqueue(&mut self.scheduler, &self.spec, id, active.prompt());
            }
        }
    }

    fn publish_status(&self) {
        let pool = self.scheduler.pool();
        let shared = &self.shared;
        let store = |place: &AtomicUsize, value| place.store(value, Ordering::Release);
        store(&shared.unpacked, self.unpacked.len());
        store(&shared.free_blocks, pool.available());
        store(&shared.cached_blocks, pool.evictable());
        store(&shared.total_blocks, pool.total());
        if let Some(states) = self.scheduler.states() {
            store(&shared.free_states, states.available());
            store(&shared.kept_states, states.kept());
            store(&shared.total_states, states.total());
        }
        let preemptions = self.scheduler.preemptions();
        shared.preemptions.store(preemptions, Ordering::Release);
        // Last: who sees nothing running sees the blocks that are free since.
        store(&shared.running, self.scheduler.running());
    }
}
