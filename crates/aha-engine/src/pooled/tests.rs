use super::*;
use crate::embedding::Embedder;
use candle_core::Device;
use std::sync::atomic::AtomicUsize;

/// Gives each sequence its length and first token, and misbehaves when asked.
struct Echo {
    batches: Arc<Mutex<Vec<Vec<usize>>>>,
    /// Batches that may run; more wait.
    permits: Arc<(Mutex<usize>, std::sync::Condvar)>,
    calls: AtomicUsize,
}

const FAIL: u32 = 90;
const PANIC: u32 = 91;
const NAN: u32 = 92;

impl Embedder for Echo {
    fn embedding_size(&self) -> usize {
        2
    }

    fn vocab_size(&self) -> usize {
        100
    }

    fn context_length(&self) -> usize {
        50
    }

    fn embed(&self, batch: &PooledBatch<'_>) -> Result<Tensor> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (permits, changed) = &*self.permits;
        let mut permits = permits.lock().unwrap();
        while *permits == 0 {
            permits = changed.wait(permits).unwrap();
        }
        *permits -= 1;
        drop(permits);
        let lengths = batch.requests.iter().map(ExactSizeIterator::len).collect();
        self.batches.lock().unwrap().push(lengths);
        let has = |token| batch.sequences.iter().any(|s| s.contains(&token));
        if has(FAIL) {
            candle_core::bail!("asked to fail");
        }
        assert!(!has(PANIC), "asked to panic");
        let rows: Vec<f32> = batch
            .sequences
            .iter()
            .flat_map(|s| {
                [
                    s.len() as f32,
                    if has(NAN) { f32::NAN } else { s[0] as f32 },
                ]
            })
            .collect();
        Tensor::from_vec(rows, (batch.sequences.len(), 2), &Device::Cpu)
    }
}

struct Setup {
    engine: PooledEngine,
    batches: Arc<Mutex<Vec<Vec<usize>>>>,
    permits: Arc<(Mutex<usize>, std::sync::Condvar)>,
}

impl Setup {
    /// An engine whose batches hold 40 tokens.
    fn new(permits: usize, queue_limit: usize) -> Self {
        let batches = Arc::default();
        let permits = Arc::new((Mutex::new(permits), std::sync::Condvar::new()));
        let echo = Echo {
            batches: Arc::clone(&batches),
            permits: Arc::clone(&permits),
            calls: AtomicUsize::new(0),
        };
        let options = EngineOptions {
            max_batch_tokens: 10,
            queue_limit,
            ..EngineOptions::default()
        };
        Self {
            engine: PooledEngine::start(Pooled::Embed(Box::new(echo)), &options).unwrap(),
            batches,
            permits,
        }
    }

    fn permit(&self, batches: usize) {
        *self.permits.0.lock().unwrap() += batches;
        self.permits.1.notify_all();
    }

    /// Waits until requests run (or none do).
    fn wait_for(&self, running: usize, waiting: usize) {
        for _ in 0..1000 {
            let status = self.engine.status();
            if (status.running, status.waiting) == (running, waiting) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{:?}", self.engine.status());
    }
}

#[test]
fn answers_keep_the_order_and_batches_the_limit() {
    let setup = Setup::new(1000, 10);
    let sequences: Vec<Vec<u32>> = (1..=30).map(|n| vec![n; n as usize]).collect();
    let output = setup.engine.submit(sequences).unwrap().blocking_wait();
    let rows = output.unwrap().rows;
    assert!(
        rows.iter()
            .zip(1..)
            .all(|(row, n)| *row == [n as f32, n as f32])
    );
    let batches = setup.batches.lock().unwrap().clone();
    let mut next = 1;
    for batch in batches {
        assert_eq!(batch.len(), 1);
        let tokens: usize = (next..next + batch[0]).sum();
        assert!(tokens <= 40 || batch[0] == 1);
        next += batch[0];
    }
    assert_eq!(next, 31);
    let nothing = setup.engine.submit(Vec::new()).unwrap().blocking_wait();
    assert!(nothing.unwrap().rows.is_empty());
    setup.wait_for(0, 0);
}

#[test]
fn a_short_request_does_not_wait_for_a_long_one() {
    let setup = Setup::new(0, 10);
    let first = setup.engine.submit(vec![vec![1]]).unwrap();
    setup.wait_for(1, 0);
    let long = setup.engine.submit(vec![vec![2; 4]; 100]).unwrap();
    let short = setup.engine.submit(vec![vec![3; 4]; 2]).unwrap();
    setup.permit(2);
    assert_eq!(first.blocking_wait().unwrap().rows, [[1.0, 1.0]]);
    assert_eq!(short.blocking_wait().unwrap().rows.len(), 2);
    assert_eq!(setup.batches.lock().unwrap()[1], [8, 2]);
    setup.permit(1000);
    assert_eq!(long.blocking_wait().unwrap().rows.len(), 100);
}

#[test]
fn a_dropped_receiver_stops_the_work_and_frees_the_queue() {
    let setup = Setup::new(0, 2);
    let first = setup.engine.submit(vec![vec![1; 40]; 1000]).unwrap();
    setup.wait_for(1, 0);
    let waiting = [(); 2].map(|()| setup.engine.submit(vec![vec![2]]).unwrap());
    let refused = setup.engine.submit(vec![vec![3]]).unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { .. }));
    assert!(setup.engine.check_room().is_err());
    drop(first);
    drop(waiting);
    setup.permit(1);
    setup.wait_for(0, 0);
    assert_eq!(setup.batches.lock().unwrap().len(), 1);
    setup.permit(1);
    let next = setup.engine.submit(vec![vec![4]]).unwrap();
    assert_eq!(next.blocking_wait().unwrap().rows, [[1.0, 4.0]]);
}

#[test]
fn faults_and_panics_end_their_batch_only() {
    let setup = Setup::new(1000, 10);
    for token in [FAIL, PANIC, NAN] {
        let failed = setup.engine.submit(vec![vec![token]]).unwrap();
        let error = failed.blocking_wait().unwrap_err();
        assert!(matches!(error, EngineError::Internal { .. }), "{error}");
        let next = setup.engine.submit(vec![vec![5, 6]]).unwrap();
        assert_eq!(next.blocking_wait().unwrap().rows, [[2.0, 5.0]]);
    }
    assert_eq!(setup.engine.status().panics, 1);
    setup.wait_for(0, 0);
}

#[test]
fn impossible_sequences_are_refused_before_the_queue() {
    let setup = Setup::new(1000, 10);
    for bad in [vec![], vec![100], vec![1; 51]] {
        let error = setup.engine.submit(vec![vec![1], bad]).unwrap_err();
        assert!(matches!(error, EngineError::InvalidRequest { .. }));
    }
    setup.wait_for(0, 0);
}

#[test]
fn a_shutdown_answers_everybody() {
    let setup = Setup::new(0, 10);
    let running = setup.engine.submit(vec![vec![1; 40]; 3]).unwrap();
    setup.wait_for(1, 0);
    let waiting = setup.engine.submit(vec![vec![1]]).unwrap();
    let engine = setup.engine.clone();
    let stopping = std::thread::spawn(move || engine.shutdown());
    std::thread::sleep(Duration::from_millis(20));
    setup.permit(1);
    stopping.join().unwrap();
    for pending in [running, waiting] {
        assert_eq!(pending.blocking_wait(), Err(EngineError::ShuttingDown));
    }
    let late = setup.engine.submit(vec![vec![1]]).unwrap_err();
    assert_eq!(late, EngineError::ShuttingDown);
    assert!(setup.engine.status().stuck);
}
