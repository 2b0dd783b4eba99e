//! `aha bench`: prompt processing and generation, in the shape of llama-bench.

use super::Context;
use super::args::ModelArgs;
use super::console;
use super::failure::{Failure, Outcome};
use super::markdown::{Align, table};
use super::show::count;
use super::units::{bytes, positive};
use super::weights::WeightsSummary;
use aha::{Engine, EngineOptions, Model, Quant};
use aha_engine::{Event, GenerationRequest, SamplingParams, StopParams};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

const AFTER_HELP: &str = "\
Tests: pp512 computes a prompt of 512 tokens; tg128 generates 128 tokens after a prompt of one;
tg128 x4 does so for four requests at once and counts the tokens of all. Greedy, random prompts,
no prefix cache.

Percent of bandwidth: every step of generation reads all weight matrices once. Their bytes times
the steps of a second, divided by the bytes that the same threads read from memory in a second
(the best of five passes over 512 MiB, measured before the tests). Reads of the cache are left out,
so that the true share is a little higher. On the CPU only.

Examples:
  aha bench -m qwen3-0.6b
  aha bench --gguf-path model.gguf -p 512,2048 -n 64 -r 5 --threads 4
  aha bench -m ./checkpoint -p 0 --batch 1,8 -o json";

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
    bandwidth_share: Option<f64>,
}

impl Bench {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let tests = self.tests();
        if tests.is_empty() {
            return Err(Failure::usage(
                "there is nothing to measure: -p and -n are both 0",
            ));
        }
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
        let weights = WeightsSummary::of(model.path())?;
        let threads = rayon::current_num_threads();
        let bandwidth = model
            .device()
            .is_cpu()
            .then(|| aha_kernels::measure_read_bandwidth(threads))
            .filter(|bandwidth| *bandwidth > 0.0);
        let mut results = Vec::new();
        for test in tests {
            results.push(self.run(test, &model, &weights, bandwidth, context)?);
        }
        match self.output {
            Format::Json => console::print_json(&results),
            Format::Md => console::print(&markdown(&results, bandwidth, threads)),
        }
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

    fn run(
        &self,
        test: Test,
        model: &Model,
        weights: &WeightsSummary,
        bandwidth: Option<f64>,
        context: &Context,
    ) -> Outcome<Measurement> {
        // Page faults, packed buffers and clocks are out of the way after one round.
        test.measure(model.engine()?, 0)?;
        let mut samples = Vec::new();
        for round in 1..=self.repetitions {
            let time = test.measure(model.engine()?, round)?;
            samples.push(test.tokens() as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE));
            tracing::info!(
                "{test}: {round} of {}: {:.2} tokens/s",
                self.repetitions,
                samples[round - 1]
            );
        }
        let (mean, stddev) = mean_and_deviation(&samples);
        let (prompt_tokens, generated_tokens, batch) = test.shape();
        let (dtype, quant) = (context.global.dtype, context.global.quant);
        let recipe = match quant {
            Some(Quant::Recipe(recipe)) => Some(recipe),
            Some(Quant::Auto) | None => None,
        };
        let bandwidth_share = bandwidth
            // What `auto` chose is not known here.
            .filter(|_| quant != Some(Quant::Auto) && matches!(test, Test::Generate { .. }))
            .map(|bandwidth| {
                let read = weights.bytes_per_step(dtype, recipe) as f64;
                mean / batch as f64 * read / bandwidth
            });
        Ok(Measurement {
            model: model.name().to_owned(),
            size_bytes: weights.bytes,
            parameters: weights.parameters,
            stored_type: weights.main_type(),
            dtype: quant.map_or_else(|| dtype.to_string(), |quant| quant.to_string()),
            device: device_name(model),
            instruction_set: format!("{:?}", aha_kernels::instruction_set()),
            threads: rayon::current_num_threads(),
            test: test.to_string(),
            prompt_tokens,
            generated_tokens,
            batch,
            tokens_per_second: mean,
            stddev,
            samples,
            bandwidth_bytes_per_second: bandwidth,
            bandwidth_share,
        })
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

fn markdown(results: &[Measurement], bandwidth: Option<f64>, threads: usize) -> String {
    let headings = [
        ("model", Align::Left),
        ("size", Align::Right),
        ("params", Align::Right),
        ("stored", Align::Left),
        ("dtype", Align::Left),
        ("device", Align::Left),
        ("threads", Align::Right),
        ("test", Align::Right),
        ("t/s", Align::Right),
        ("% of bandwidth", Align::Right),
    ];
    let row = |result: &Measurement| {
        vec![
            result.model.clone(),
            bytes(result.size_bytes),
            count(result.parameters),
            result.stored_type.to_owned(),
            result.dtype.clone(),
            result.device.to_owned(),
            result.threads.to_string(),
            result.test.clone(),
            format!("{:.2} ± {:.2}", result.tokens_per_second, result.stddev),
            result
                .bandwidth_share
                .map_or_else(String::new, |share| format!("{:.0}", share * 100.0)),
        ]
    };
    let rows: Vec<_> = results.iter().map(row).collect();
    let mut text = table(&headings, &rows);
    if let Some(bandwidth) = bandwidth {
        text += &format!(
            "\nMemory bandwidth: {:.1} GB/s read by {threads} threads (the best of five passes over \
             512 MiB).\n",
            bandwidth / 1e9
        );
    }
    text
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
