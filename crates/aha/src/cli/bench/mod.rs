//! `aha bench`: prompt processing and generation, in the shape of llama-bench.

mod bounds;
mod peer;

use self::bounds::{Bound, Bounds, Kept, Shares};
use self::peer::{Peer, Wanted};
use super::Context;
use super::args::ModelArgs;
use super::console;
use super::failure::{Failure, Outcome};
use super::markdown::{Align, table};
use super::memory::Shape;
use super::show::count;
use super::units::{bytes, positive};
use super::weights::WeightsSummary;
use aha::{Engine, EngineOptions, Model};
use aha_engine::{Event, GenerationRequest, SamplingParams, StopParams};
use aha_models::Checkpoint;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

const AFTER_HELP: &str = r#"Tests: pp512 computes a prompt of 512 tokens; tg128 generates 128 tokens after a prompt of one;
tg128 x4 does so for four requests at once and counts the tokens of all. Greedy, random prompts,
no prefix cache.

Percent of bound: what the test needs at least, as a share of what the same threads can do, which is
measured before and after the tests, the larger counting; of the two bounds the one that leaves less
room. On the CPU only.
  bandwidth   every step of generation reads all weight matrices once: their bytes times the
              steps of a second, against the bytes read from memory in a second (at one, four or
              eight places at a time, the best stretch of 512 MiB). Reads of the cache are left out.
  arithmetic  two operations for each parameter of the layers and each token, for each parameter
              of the output head and each token that it is asked for (of a prompt, one), and for
              each value of a key and a value that a token sees; against multiply-adds in registers.

--compare runs the command of a peer, llama-bench or what prints as it does, in turn with our
rounds: first the peer, then we, then we, then the peer. -p, -n and -t are ours where the command
has none; -r is 1 a round. Quotation marks in the command keep words together.

Examples:
  aha bench -m qwen3-0.6b
  aha bench --gguf-path model.gguf -p 512,2048 -n 64 -r 5 --threads 4
  aha bench -m ./checkpoint -p 0 --batch 1,8 -o json
  aha bench --gguf-path model.gguf --batch 1 --compare "llama-bench -m model.gguf -fa 1""#;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// Lengths of prompts to compute; 0 leaves the test out
    #[arg(
        short = 'p',
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "512"
    )]
    prompt: Vec<usize>,
    /// Numbers of tokens to generate; 0 leaves the test out
    #[arg(
        short = 'n',
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "128"
    )]
    generate: Vec<usize>,
    /// Numbers of requests that generate at once
    #[arg(
        short,
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1,4,16",
        value_parser = positive
    )]
    batch: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value = "3", value_parser = positive)]
    repetitions: usize,
    /// Tokens that one step computes at most
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_batch_tokens, value_parser = positive)]
    max_batch_tokens: usize,
    /// Command of a peer to measure in turn with us: "llama-bench -m model.gguf"
    #[arg(long, value_name = "COMMAND")]
    compare: Option<String>,
    /// How to print the results: md (a markdown table) or json
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t = Format::Md,
        hide_possible_values = true
    )]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A markdown table
    Md,
    /// A JSON array
    Json,
}

/// One line of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Prompt(usize),
    Generate { tokens: usize, batch: usize },
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt(tokens) => write!(f, "pp{tokens}"),
            Self::Generate { tokens, batch: 1 } => write!(f, "tg{tokens}"),
            Self::Generate { tokens, batch } => write!(f, "tg{tokens} x{batch}"),
        }
    }
}

impl Test {
    /// Prompt tokens and generated tokens of a request, and the number of requests.
    fn shape(self) -> (usize, usize, usize) {
        match self {
            Self::Prompt(tokens) => (tokens, 1, 1),
            Self::Generate { tokens, batch } => (1, tokens, batch),
        }
    }

    /// Tokens that count.
    fn tokens(self) -> usize {
        match self {
            Self::Prompt(tokens) => tokens,
            Self::Generate { tokens, batch } => tokens * batch,
        }
    }

    /// Cache tokens that its requests need, with a block to spare for each.
    fn cache_tokens(self, block_size: usize) -> usize {
        let (prompt, generated, batch) = self.shape();
        let length = prompt.saturating_add(generated).saturating_add(block_size);
        length.next_multiple_of(block_size).saturating_mul(batch)
    }

    /// Once.
    fn measure(self, engine: &Engine, round: usize) -> Outcome<Duration> {
        let (prompt, generated, batch) = self.shape();
        let vocab_size = engine.processor().tokenizer().vocab_size();
        let requests: Vec<_> = (0..batch)
            .map(|number| {
                request(
                    engine,
                    prompt_tokens(prompt, round * batch + number, vocab_size),
                    generated,
                )
            })
            .collect();
        let started = Instant::now();
        let generations: Vec<_> = requests
            .into_iter()
            .map(|request| engine.submit(request))
            .collect::<Result<_, _>>()?;
        for mut generation in generations {
            loop {
                match generation.blocking_next() {
                    Some(Event::Token(_)) => {}
                    Some(Event::Failed(error)) => return Err(error.into()),
                    Some(Event::Finished(_)) | None => break,
                }
            }
        }
        Ok(started.elapsed())
    }
}

fn request(engine: &Engine, tokens: Vec<u32>, generated: usize) -> GenerationRequest {
    GenerationRequest {
        prompt: engine.processor().prepare_tokens(tokens),
        sampling: SamplingParams::greedy(),
        stop: StopParams {
            max_tokens: Some(generated),
            ignore_eos: true,
            ..StopParams::default()
        },
        ..GenerationRequest::default()
    }
}

/// Tokens without a pattern, other ones for every `stream`, the same ones in every run.
fn prompt_tokens(count: usize, stream: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = (stream as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab_size.max(1) as u64) as u32
    };
    (0..count).map(|_| next()).collect()
}

/// One test's result, with everything that it depends on.
#[derive(Debug, Serialize)]
struct Measurement {
    model: String,
    size_bytes: u64,
    parameters: u64,
    stored_type: &'static str,
    dtype: String,
    device: &'static str,
    instruction_set: String,
    threads: usize,
    test: String,
    prompt_tokens: usize,
    generated_tokens: usize,
    batch: usize,
    tokens_per_second: f64,
    stddev: f64,
    samples: Vec<f64>,
    bandwidth_bytes_per_second: Option<f64>,
    /// The part of that bandwidth that reading the weights takes.
    bandwidth_share: Option<f64>,
    /// What was multiplied and added to find the next number.
    arithmetic: Option<&'static str>,
    operations_per_second: Option<f64>,
    /// The part of those operations that the test needs.
    arithmetic_share: Option<f64>,
    /// The bound that leaves less room.
    bound: Option<Bound>,
    peer_tokens_per_second: Option<f64>,
    peer_stddev: Option<f64>,
    peer_samples: Vec<f64>,
    /// Ours by the peer's.
    ratio: Option<f64>,
}

/// What all lines of a run share.
struct Run {
    name: String,
    device: &'static str,
    threads: usize,
    kept: Kept,
    weights: WeightsSummary,
    shape: Shape,
    bounds: Option<Bounds>,
    peer: Option<Peer>,
}

impl Bench {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let tests = self.tests();
        if tests.is_empty() {
            return Err(Failure::usage(
                "there is nothing to measure: -p and -n are both 0",
            ));
        }
        let peer = self.compare.as_deref().map(|command| {
            let wanted = Wanted {
                prompt: &self.prompt,
                generate: &self.generate,
                threads: rayon::current_num_threads(),
            };
            Peer::new(command, wanted)
        });
        let peer = peer.transpose()?;
        let (loader, bar) = context.loader(&self.model)?;
        let options = self.options(&tests);
        let wanted = options.context_length.unwrap_or_default();
        let model = loader.engine_options(options).build()?;
        bar.finish();
        let room = model.context_length().unwrap_or_default();
        if room < wanted {
            return Err(Failure::message(format!(
                "cannot measure: {}: a test needs {wanted} tokens, the context has {room}",
                model.name()
            )));
        }
        let kept = Kept {
            dtype: context.global.dtype,
            quant: context.global.quant,
        };
        let mut run = Run::new(&model, kept, peer)?;
        let samples = self.samples(&tests, &model, run.peer.as_mut())?;
        // What memory gives changes meanwhile where others use it, too.
        run.bounds = run.bounds.map(|before| match run.measure_bounds(&model) {
            Some(after) => before.larger(after),
            None => before,
        });
        let results: Vec<_> = tests
            .iter()
            .zip(samples)
            .map(|(test, samples)| run.measurement(*test, samples))
            .collect();
        match self.output {
            Format::Json => console::print_json(&results),
            Format::Md => console::print(&run.markdown(&results)),
        }
    }

    /// Tokens a second of each test and round, in turn with the peer's.
    fn samples(
        &self,
        tests: &[Test],
        model: &Model,
        mut peer: Option<&mut Peer>,
    ) -> Outcome<Vec<Vec<f64>>> {
        while model.engine()?.status().unpacked > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Page faults, packed buffers and clocks are out of the way after one round.
        for test in tests {
            test.measure(model.engine()?, 0)?;
        }
        let mut samples = vec![Vec::new(); tests.len()];
        for round in 1..=self.repetitions {
            // What changes in the course of a run shall not always meet the same one first.
            let peer_first = round % 2 == 1;
            if let Some(peer) = peer.as_deref_mut().filter(|_| peer_first) {
                peer.measure()?;
                peer.check(tests)?;
            }
            for (test, samples) in tests.iter().zip(&mut samples) {
                let time = test.measure(model.engine()?, round)?;
                let rate = test.tokens() as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE);
                samples.push(rate);
                tracing::info!(
                    "{test}: {round} of {}: {rate:.2} tokens/s",
                    self.repetitions
                );
            }
            if let Some(peer) = peer.as_deref_mut().filter(|_| !peer_first) {
                peer.measure()?;
            }
        }
        Ok(samples)
    }

    fn tests(&self) -> Vec<Test> {
        let prompts = self
            .prompt
            .iter()
            .copied()
            .filter(|&tokens| tokens > 0)
            .map(Test::Prompt);
        let generations = self.generate.iter().copied().filter(|&tokens| tokens > 0);
        let batches = generations.flat_map(|tokens| {
            self.batch
                .iter()
                .map(move |&batch| Test::Generate { tokens, batch })
        });
        prompts.chain(batches).collect()
    }

    /// An engine that is just large enough.
    fn options(&self, tests: &[Test]) -> EngineOptions {
        let defaults = EngineOptions::default();
        let most = |size: fn(Test) -> usize| tests.iter().copied().map(size).max().unwrap_or(1);
        let batch = most(|test| test.shape().2);
        let cache = tests
            .iter()
            .map(|test| test.cache_tokens(defaults.block_size))
            .max();
        EngineOptions {
            max_batch_tokens: self.max_batch_tokens,
            max_sequences: batch,
            queue_limit: batch.max(defaults.queue_limit),
            context_length: Some(most(|test| test.shape().0 + test.shape().1)),
            cache_tokens: cache,
            prefix_cache: false,
            ..defaults
        }
    }
}

impl Run {
    fn new(model: &Model, kept: Kept, peer: Option<Peer>) -> Outcome<Self> {
        let mut run = Self {
            name: model.name().to_owned(),
            device: device_name(model),
            threads: rayon::current_num_threads(),
            kept,
            shape: Shape::of(&Checkpoint::open(model.path())?),
            weights: WeightsSummary::of(model.path())?,
            bounds: None,
            peer,
        };
        run.bounds = run.measure_bounds(model);
        Ok(run)
    }

    /// None where the model is on another device, whose limits are not known.
    fn measure_bounds(&self, model: &Model) -> Option<Bounds> {
        let stored = self.weights.main_stored();
        let is_cpu = model.device().is_cpu();
        is_cpu
            .then(|| Bounds::measure(self.kept, stored, self.threads))
            .flatten()
    }

    fn measurement(&self, test: Test, samples: Vec<f64>) -> Measurement {
        let (mean, stddev) = mean_and_deviation(&samples);
        let (prompt_tokens, generated_tokens, batch) = test.shape();
        let seconds = test.tokens() as f64 / mean;
        let shares = self.bounds.map_or_else(Shares::default, |bounds| {
            bounds.shares(test, seconds, &self.weights, &self.shape, self.kept)
        });
        let peer_samples = match &self.peer {
            Some(peer) => peer.samples(test),
            None => Vec::new(),
        };
        let peer = (!peer_samples.is_empty()).then(|| mean_and_deviation(&peer_samples));
        Measurement {
            model: self.name.clone(),
            size_bytes: self.weights.bytes,
            parameters: self.weights.parameters,
            stored_type: self.weights.main_type(),
            dtype: self.kept.to_string(),
            device: self.device,
            instruction_set: format!("{:?}", aha_kernels::instruction_set()),
            threads: self.threads,
            test: test.to_string(),
            prompt_tokens,
            generated_tokens,
            batch,
            tokens_per_second: mean,
            stddev,
            samples,
            bandwidth_bytes_per_second: self.bounds.map(|bounds| bounds.bandwidth),
            bandwidth_share: shares.bandwidth,
            arithmetic: self.bounds.map(|bounds| bounds.arithmetic.name()),
            operations_per_second: self.bounds.map(|bounds| bounds.operations),
            arithmetic_share: shares.arithmetic,
            bound: shares.nearest().map(|(bound, _)| bound),
            peer_tokens_per_second: peer.map(|(mean, _)| mean),
            peer_stddev: peer.map(|(_, stddev)| stddev),
            peer_samples,
            ratio: peer.map(|(peer, _)| mean / peer),
        }
    }
}

fn device_name(model: &Model) -> &'static str {
    match model.device() {
        candle_core::Device::Cpu => "cpu",
        candle_core::Device::Cuda(_) => "cuda",
        candle_core::Device::Metal(_) => "metal",
    }
}

/// Mean and sample standard deviation.
fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let count = samples.len().max(1) as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

impl Measurement {
    /// The bound that leaves less room, and the percent of it.
    fn bound(&self) -> (&'static str, String) {
        let share = self.bound.and_then(|bound| match bound {
            Bound::Bandwidth => self.bandwidth_share,
            Bound::Arithmetic => self.arithmetic_share,
        });
        (
            self.bound.map_or("", Bound::name),
            share.map_or_else(String::new, |share| format!("{:.0}", share * 100.0)),
        )
    }
}

impl Run {
    fn markdown(&self, results: &[Measurement]) -> String {
        let mut headings = vec![
            ("model", Align::Left),
            ("size", Align::Right),
            ("params", Align::Right),
            ("stored", Align::Left),
            ("dtype", Align::Left),
            ("device", Align::Left),
            ("threads", Align::Right),
            ("test", Align::Right),
            ("t/s", Align::Right),
            ("% of bound", Align::Right),
            ("bound", Align::Left),
        ];
        if self.peer.is_some() {
            headings.extend([("peer t/s", Align::Right), ("ratio", Align::Right)]);
        }
        let row = |result: &Measurement| {
            let (bound, percent) = result.bound();
            let mut row = vec![
                result.model.clone(),
                bytes(result.size_bytes),
                count(result.parameters),
                result.stored_type.to_owned(),
                result.dtype.clone(),
                result.device.to_owned(),
                result.threads.to_string(),
                result.test.clone(),
                rate(result.tokens_per_second, result.stddev),
                percent,
                bound.to_owned(),
            ];
            if self.peer.is_some() {
                let peer = result.peer_tokens_per_second.zip(result.peer_stddev);
                row.push(peer.map_or_else(String::new, |(mean, stddev)| rate(mean, stddev)));
                let ratio = result.ratio;
                row.push(ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")));
            }
            row
        };
        let rows: Vec<_> = results.iter().map(row).collect();
        let mut text = table(&headings, &rows);
        let threads = self.threads;
        if let Some(bounds) = self.bounds {
            text += &format!(
                "\nMemory bandwidth: {:.1} GB/s read by {threads} threads (the best stretch of 512 MiB, \
                 before and after the tests).\nMultiply-adds: {:.0} GFLOP/s of {} by {threads} threads.\n",
                bounds.bandwidth / 1e9,
                bounds.operations / 1e9,
                bounds.arithmetic.name()
            );
        }
        if let Some(peer) = &self.peer {
            text += &format!("\nPeer: {}, in turn with ours.\n", peer.description());
        }
        text
    }
}

fn rate(mean: f64, stddev: f64) -> String {
    format!("{mean:.2} ± {stddev:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_called_as_llama_bench_calls_them() {
        assert_eq!(Test::Prompt(512).to_string(), "pp512");
        assert_eq!(
            Test::Generate {
                tokens: 128,
                batch: 1
            }
            .to_string(),
            "tg128"
        );
        assert_eq!(
            Test::Generate {
                tokens: 128,
                batch: 4
            }
            .to_string(),
            "tg128 x4"
        );
    }

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        assert_eq!(mean_and_deviation(&[4.0]), (4.0, 0.0));
        let (mean, deviation) = mean_and_deviation(&[1.0, 2.0, 3.0]);
        assert_eq!((mean, deviation), (2.0, 1.0));
    }

    #[test]
    fn prompts_differ_between_requests_and_stay_in_the_vocabulary() {
        let (one, two) = (prompt_tokens(64, 0, 500), prompt_tokens(64, 1, 500));
        assert_ne!(one, two);
        assert_eq!(one, prompt_tokens(64, 0, 500));
        assert!(one.iter().chain(&two).all(|token| *token < 500));
    }
}
