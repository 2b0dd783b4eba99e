//! Which pixels of a picture are foreground: the contract with the model, and its engine.
//!
//! One thread a model computes one picture at a time, since a picture alone keeps all cores busy and fills memory by
//! the gigabyte. Requests reach it by channel; each answer has a channel of its own, whose dropped receiver is the
//! cancellation, which the model looks for between its layers.

use crate::engine::{EngineOptions, EngineStatus, Shared, join};
use crate::error::EngineError;
use crate::worker::Alive;
use aha_media::image::Image;
use candle_core::{Result, Tensor};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A model that tells the foreground of a picture from its background.
pub trait Matter: Send + Sync {
    /// Brings a picture of any size and channels to what [`alpha`](Self::alpha) takes. Runs on the thread of whoever
    /// asks.
    ///
    /// # Errors
    /// When the picture cannot be resized.
    fn prepare(&self, picture: &Image) -> std::result::Result<Image, EngineError>;

    /// The share of the foreground in each pixel of a prepared picture, `[height, width]`, between 0 and 1.
    ///
    /// # Errors
    /// When the computation fails, and, in whatever words, when `cancelled` says so.
    fn alpha(&self, prepared: &Image, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Tensor>;

    /// The mask in the size of the picture: one channel, 255 where everything is foreground.
    ///
    /// # Errors
    /// When the shares have another shape than [`alpha`](Self::alpha) gives, or cannot be resized.
    fn mask(
        &self,
        alpha: &Tensor,
        width: u32,
        height: u32,
    ) -> std::result::Result<Image, EngineError>;
}

/// A loaded model for background removal.
pub struct MattingModel {
    /// The tensors, and what stands between them and pictures.
    pub matter: Arc<dyn Matter>,
}

impl fmt::Debug for MattingModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MattingModel").finish_non_exhaustive()
    }
}

/// What a picture's foreground is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matte {
    /// One channel of the picture's size, 255 where everything is foreground.
    pub mask: Image,
    /// Time in the queue.
    pub queued: Duration,
    /// Time that the model took.
    pub computed: Duration,
}

/// One picture on the thread.
struct Job {
    picture: Image,
    /// Width and height of the mask.
    size: (u32, u32),
    sender: oneshot::Sender<std::result::Result<Matte, EngineError>>,
    submitted: Instant,
}

enum Command {
    Submit(Box<Job>),
    Shutdown,
}

/// Handle to the thread of a model; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct MattingEngine {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    matter: Arc<dyn Matter>,
    /// Set when the thread shall end, which it may notice in the middle of a picture.
    stopping: Arc<AtomicBool>,
    queue_limit: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for MattingEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MattingEngine")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl MattingEngine {
    /// Starts the thread. Of the options, only that of the queue has a meaning here.
    ///
    /// # Errors
    /// When an option is zero or the thread cannot start.
    pub fn start(
        model: MattingModel,
        options: &EngineOptions,
    ) -> std::result::Result<Self, EngineError> {
        options.validate()?;
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::new());
        let stopping = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            matter: Arc::clone(&model.matter),
            commands: receiver,
            shared: Arc::clone(&shared),
            stopping: Arc::clone(&stopping),
        };
        let thread = std::thread::Builder::new()
            .name("aha-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(EngineError::internal)?;
        Ok(Self {
            inner: Arc::new(Inner {
                commands,
                shared,
                matter: model.matter,
                stopping,
                queue_limit: options.queue_limit,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Queues a picture of any size. Resizes it on this thread, never waits for the model.
    ///
    /// # Errors
    /// When the queue is full, the engine is stopping or the picture cannot be resized.
    pub fn submit(&self, picture: &Image) -> std::result::Result<PendingMatte, EngineError> {
        let inner = &self.inner;
        self.check_room()?;
        let prepared = inner.matter.prepare(picture)?;
        let (sender, receiver) = oneshot::channel();
        inner.shared.enter_queue(inner.queue_limit, 1)?;
        let job = Job {
            picture: prepared,
            size: (picture.width(), picture.height()),
            sender,
            submitted: Instant::now(),
        };
        if inner.commands.send(Command::Submit(Box::new(job))).is_err() {
            inner.shared.leave_queue();
            return Err(EngineError::ShuttingDown);
        }
        Ok(PendingMatte(receiver))
    }

    /// Whether a picture would find a place in the queue now.
    ///
    /// # Errors
    /// When the queue is full or the engine is stopping.
    pub fn check_room(&self) -> std::result::Result<(), EngineError> {
        self.inner.shared.check_room(self.inner.queue_limit, 1)
    }

    /// A look at the state.
    pub fn status(&self) -> EngineStatus {
        self.inner.shared.status()
    }

    /// Ends the thread: running and waiting requests fail with [`EngineError::ShuttingDown`].
    pub fn shutdown(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        // The thread may be gone already; then there is nobody left to tell.
        let _ = self.inner.commands.send(Command::Shutdown);
        join(&self.inner.thread);
    }
}

/// A mask that is being computed. Dropping it cancels the request.
#[derive(Debug)]
pub struct PendingMatte(oneshot::Receiver<std::result::Result<Matte, EngineError>>);

impl PendingMatte {
    /// The mask.
    ///
    /// # Errors
    /// When the computation failed or the engine is stopping.
    pub async fn wait(self) -> std::result::Result<Matte, EngineError> {
        self.0.await.unwrap_or(Err(EngineError::ShuttingDown))
    }

    /// The same for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn blocking_wait(self) -> std::result::Result<Matte, EngineError> {
        self.0
            .blocking_recv()
            .unwrap_or(Err(EngineError::ShuttingDown))
    }
}

struct Worker {
    matter: Arc<dyn Matter>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    fn run(self) {
        let _alive = Alive(Arc::clone(&self.shared));
        while let Ok(Command::Submit(job)) = self.commands.recv() {
            self.answer(*job);
        }
        while let Ok(Command::Submit(job)) = self.commands.try_recv() {
            self.shared.leave_queue();
            // The receiver may be gone: a cancellation.
            let _ = job.sender.send(Err(EngineError::ShuttingDown));
        }
    }

    /// Computes one picture. A fault in it, even a panic, ends its request and nothing else.
    fn answer(&self, job: Job) {
        let (sender, stopping) = (&job.sender, &self.stopping);
        let cancelled = || sender.is_closed() || stopping.load(Ordering::Acquire);
        // Before the queue's counter goes down: a request is seen waiting or running at any moment.
        self.shared.running.fetch_add(1, Ordering::AcqRel);
        self.shared.leave_queue();
        let started = Instant::now();
        let result = if cancelled() {
            Err(EngineError::ShuttingDown)
        } else {
            self.shared.begin_step();
            // Inside the pool, many small parallel loops start without handing work from thread to thread.
            let (matter, picture, size) = (&self.matter, &job.picture, job.size);
            let result = catch_unwind(AssertUnwindSafe(|| {
                rayon::scope(|_| {
                    let alpha = matter.alpha(picture, &cancelled)?;
                    matter.mask(&alpha, size.0, size.1)
                })
            }));
            self.shared.end_step();
            match result {
                _ if cancelled() => {
                    tracing::debug!("cancelled: the receiver is gone, or the engine stops");
                    Err(EngineError::ShuttingDown)
                }
                Ok(result) => result,
                Err(_) => {
                    tracing::error!("a picture panicked");
                    self.shared.panics.fetch_add(1, Ordering::Relaxed);
                    Err(EngineError::internal(
                        "the model failed while computing this request",
                    ))
                }
            }
        };
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
        self.shared.record_duration(job.submitted.elapsed());
        let result = result.map(|mask| Matte {
            mask,
            queued: started - job.submitted,
            computed: started.elapsed(),
        });
        // The receiver may be gone: a cancellation.
        let _ = job.sender.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_media::image::Channels;
    use candle_core::Device;
    use std::sync::Condvar;
    use std::sync::atomic::AtomicUsize;

    const FAIL: u8 = 90;
    const PANIC: u8 = 91;

    /// Gives each pixel its own red, once it may, and misbehaves when the first pixel asks for it.
    struct Echo {
        calls: Arc<AtomicUsize>,
        permits: Arc<(Mutex<usize>, Condvar)>,
    }

    impl Matter for Echo {
        fn prepare(&self, picture: &Image) -> std::result::Result<Image, EngineError> {
            Ok(picture.clone())
        }

        fn alpha(&self, prepared: &Image, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Tensor> {
            self.calls.fetch_add(1, Ordering::AcqRel);
            let (permits, changed) = &*self.permits;
            let mut permits = permits.lock().unwrap();
            while *permits == 0 {
                if cancelled() {
                    candle_core::bail!("cancelled");
                }
                (permits, _) = changed
                    .wait_timeout(permits, Duration::from_millis(5))
                    .unwrap();
            }
            *permits -= 1;
            drop(permits);
            let reds: Vec<f32> = prepared
                .samples()
                .iter()
                .step_by(3)
                .map(|red| f32::from(*red))
                .collect();
            if prepared.samples()[0] == FAIL {
                candle_core::bail!("asked to fail");
            }
            assert!(prepared.samples()[0] != PANIC, "asked to panic");
            let shape = (prepared.height() as usize, prepared.width() as usize);
            Tensor::from_vec(reds, shape, &Device::Cpu)
        }

        fn mask(
            &self,
            alpha: &Tensor,
            width: u32,
            height: u32,
        ) -> std::result::Result<Image, EngineError> {
            let values: Vec<f32> = alpha.flatten_all()?.to_vec1()?;
            let samples = values.iter().map(|value| *value as u8).collect();
            Image::new(width, height, Channels::Gray, samples).map_err(EngineError::internal)
        }
    }

    struct Setup {
        engine: MattingEngine,
        calls: Arc<AtomicUsize>,
        permits: Arc<(Mutex<usize>, Condvar)>,
    }

    impl Setup {
        fn new(permits: usize, queue_limit: usize) -> Self {
            let (calls, permits) = (
                Arc::default(),
                Arc::new((Mutex::new(permits), Condvar::new())),
            );
            let matter = Echo {
                calls: Arc::clone(&calls),
                permits: Arc::clone(&permits),
            };
            let options = EngineOptions {
                queue_limit,
                ..EngineOptions::default()
            };
            let model = MattingModel {
                matter: Arc::new(matter),
            };
            Self {
                engine: MattingEngine::start(model, &options).unwrap(),
                calls,
                permits,
            }
        }

        fn permit(&self, pictures: usize) {
            *self.permits.0.lock().unwrap() += pictures;
            self.permits.1.notify_all();
        }

        fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
            for _ in 0..2000 {
                if condition(self) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("{:?}", self.engine);
        }
    }

    fn picture(red: u8) -> Image {
        Image::filled_rgb(3, 2, [red, 0, 0]).unwrap()
    }

    #[test]
    fn each_request_gets_its_own_mask_in_its_size() {
        let setup = Setup::new(3, 8);
        let pending: Vec<_> = [5, 6, 7]
            .map(|red| setup.engine.submit(&picture(red)).unwrap())
            .into();
        for (red, pending) in [5, 6, 7].into_iter().zip(pending) {
            let matte = pending.blocking_wait().unwrap();
            assert_eq!((matte.mask.width(), matte.mask.height()), (3, 2));
            assert_eq!(matte.mask.samples(), [red; 6]);
        }
    }

    #[test]
    fn faults_and_panics_end_their_own_request_only() {
        let setup = Setup::new(3, 8);
        let pending: Vec<_> = [FAIL, PANIC, 7]
            .map(|red| setup.engine.submit(&picture(red)).unwrap())
            .into();
        let results: Vec<_> = pending
            .into_iter()
            .map(PendingMatte::blocking_wait)
            .collect();
        assert!(matches!(results[0], Err(EngineError::Internal { .. })));
        assert!(matches!(results[1], Err(EngineError::Internal { .. })));
        assert!(results[2].is_ok());
        assert_eq!(setup.engine.status().running, 0);
    }

    #[test]
    fn a_dropped_answer_stops_the_model_and_those_that_wait_never_start() {
        let setup = Setup::new(0, 8);
        let running = setup.engine.submit(&picture(1)).unwrap();
        setup.wait_until(|setup| setup.calls.load(Ordering::Acquire) == 1);
        let waiting = setup.engine.submit(&picture(2)).unwrap();
        let last = setup.engine.submit(&picture(3)).unwrap();
        drop((running, waiting));
        setup.wait_until(|setup| setup.calls.load(Ordering::Acquire) == 2);
        setup.permit(1);
        assert_eq!(last.blocking_wait().unwrap().mask.samples()[0], 3);
        assert_eq!(setup.calls.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_full_queue_refuses_and_counts_return_to_zero() {
        let setup = Setup::new(0, 1);
        let first = setup.engine.submit(&picture(1)).unwrap();
        setup.wait_until(|setup| setup.engine.status().running == 1);
        let second = setup.engine.submit(&picture(2)).unwrap();
        let refused = setup.engine.submit(&picture(3)).unwrap_err();
        assert!(
            matches!(refused, EngineError::Overloaded { .. }),
            "{refused}"
        );
        setup.permit(2);
        first.blocking_wait().unwrap();
        second.blocking_wait().unwrap();
        setup.wait_until(|setup| {
            let status = setup.engine.status();
            (status.running, status.waiting) == (0, 0)
        });
    }

    #[test]
    fn a_shutdown_ends_what_runs_and_what_waits() {
        let setup = Setup::new(0, 8);
        let running = setup.engine.submit(&picture(1)).unwrap();
        setup.wait_until(|setup| setup.calls.load(Ordering::Acquire) == 1);
        let waiting = setup.engine.submit(&picture(2)).unwrap();
        setup.engine.shutdown();
        assert_eq!(running.blocking_wait(), Err(EngineError::ShuttingDown));
        assert_eq!(waiting.blocking_wait(), Err(EngineError::ShuttingDown));
        let refused = setup.engine.submit(&picture(3)).unwrap_err();
        assert_eq!(refused, EngineError::ShuttingDown);
    }
}
