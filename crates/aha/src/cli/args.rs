//! Arguments that several commands share.

use super::failure::{Failure, Outcome};
use super::speak::SpeechWishes;
use super::units::{between, positive, positive_or_empty};
use aha::hub::{HubConfig, HubError};
use aha::{
    DeviceChoice, Dtype, EngineOptions, GenerationParams, Loader, Media, MediaWishes, Model,
    NgramWindow, PixelLimits, Quant, Task,
};
use clap::{ArgGroup, Args, ValueEnum};
use std::path::PathBuf;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What a variable says that may be empty.
type Count = Option<usize>;
type JsonObject = serde_json::Map<String, serde_json::Value>;

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Where to compute: auto, cpu, cuda[:N] or metal
    #[arg(long, global = true, value_name = "DEVICE", default_value_t)]
    pub(crate) device: DeviceChoice,
    /// Precision of the weights: auto (the checkpoint's), f32, bf16 or f16
    #[arg(long, global = true, value_name = "TYPE", default_value_t)]
    pub(crate) dtype: Dtype,
    /// Quantise matrices while loading, on the CPU: q8_0, q6_k, q5_k_m, q4_k_m, q4_0 or auto (only
    /// where the memory is short)
    #[arg(long, global = true, value_name = "TYPE", conflicts_with = "dtype")]
    pub(crate) quant: Option<Quant>,
    /// Threads that compute [default: one a core]
    #[arg(long, global = true, value_name = "N", env = "AHA_THREADS", value_parser = positive_or_empty)]
    pub(crate) threads: Option<Count>,
    /// Give each of these threads a core of its own (Linux; worth it where nothing else runs)
    #[arg(long, global = true)]
    pub(crate) pin_cores: bool,
    /// Log level (off, error, warn, info, debug, trace) or filter (aha_engine=debug)
    #[arg(long, global = true, value_name = "LEVEL", env = "AHA_LOG")]
    pub(crate) log: Option<String>,
    /// How the log is written: text or json
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t = LogFormat::Text,
        hide_possible_values = true
    )]
    pub(crate) log_format: LogFormat,
    /// Open no connection to a model hub (also AHA_OFFLINE=1)
    #[arg(long, global = true)]
    pub(crate) offline: bool,
}

impl GlobalArgs {
    /// The environment's settings for hubs and store, with the options of the command line.
    pub(crate) fn hub_config(&self) -> Result<HubConfig, HubError> {
        let mut config = HubConfig::from_env()?;
        config.offline |= self.offline;
        Ok(config)
    }
}

/// A model by its name, with or without the flag.
#[derive(Debug, Clone, Args)]
#[group(id = "named", required = true, multiple = false)]
pub(crate) struct NamedModel {
    /// Hub id (Qwen/Qwen3-0.6B) or alias (qwen3-0.6b)
    #[arg(value_name = "MODEL", value_parser = not_empty)]
    name: Option<String>,
    /// The same as a flag
    #[arg(short, long, value_name = "MODEL", value_parser = not_empty)]
    model: Option<String>,
}

impl NamedModel {
    pub(crate) fn name(&self) -> &str {
        let given = self.name.as_deref().or(self.model.as_deref());
        // The parser lets neither nor both pass.
        given.unwrap_or_default()
    }
}

/// Where a model is.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("which").required(true).multiple(true))]
pub(crate) struct ModelPlace {
    /// Hub id (Qwen/Qwen3-0.6B), alias (qwen3-0.6b) or path; with a path below, only the name
    #[arg(short, long, value_name = "MODEL", value_parser = not_empty, group = "which")]
    pub(crate) model: Option<String>,
    /// Folder of the checkpoint (config.json, tokenizer.json, *.safetensors)
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "gguf_path",
        group = "which"
    )]
    pub(crate) weight_path: Option<PathBuf>,
    /// GGUF file, which holds weights, tokenizer and template
    #[arg(long, value_name = "FILE", group = "which")]
    pub(crate) gguf_path: Option<PathBuf>,
}

/// Which model.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) place: ModelPlace,
    /// What the model is for: chat, embed, rerank, transcribe, speak or matte [default: what its files or name say]
    #[arg(long, value_name = "TASK")]
    pub(crate) task: Option<Task>,
}

/// A model whose name may also stand alone.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct NamedModelArgs {
    /// Hub id (Qwen/Qwen3-0.6B), alias (qwen3-0.6b) or path
    #[arg(
        value_name = "MODEL",
        group = "which",
        conflicts_with_all = ["model", "weight_path", "gguf_path"]
    )]
    name: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
}

impl NamedModelArgs {
    /// The model, by whichever name was given.
    pub(crate) fn into_model(self) -> ModelArgs {
        let mut model = self.model;
        model.place.model = self.name.or(model.place.model);
        model
    }
}

impl ModelArgs {
    /// The path, where one is given.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        let ModelPlace {
            weight_path,
            gguf_path,
            ..
        } = &self.place;
        weight_path.as_ref().or(gguf_path.as_ref())
    }

    /// A loader of that model.
    pub(crate) fn loader(&self) -> Loader {
        let loader = aha::load(self.place.model.clone().unwrap_or_default());
        let loader = match self.task {
            Some(task) => loader.task(task),
            None => loader,
        };
        match self.path() {
            Some(path) => loader.weights(path),
            None => loader,
        }
    }
}

/// Sizes of the engine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Most tokens of prompt and answer together [default: the model's limit]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub(crate) context_length: Option<usize>,
    /// Tokens that the cache of all requests holds [default: a quarter of the free memory]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub(crate) cache_tokens: Option<usize>,
}

impl EngineArgs {
    /// The engine's options with these sizes.
    pub(crate) fn options(&self) -> EngineOptions {
        EngineOptions {
            context_length: self.context_length,
            cache_tokens: self.cache_tokens,
            ..EngineOptions::default()
        }
    }
}

/// How an answer is made.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling (defaults: what the checkpoint says)")]
pub(crate) struct SamplingArgs {
    /// Most tokens to generate [default: up to the end of the context]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    /// 0 is greedy, higher is more varied
    #[arg(short, long, value_name = "T", value_parser = between(0.0, 100.0), allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the smallest set of tokens with this probability
    #[arg(long, value_name = "P", value_parser = between(f32::MIN_POSITIVE, 1.0), allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Drop tokens less probable than this share of the best one
    #[arg(long, value_name = "P", value_parser = between(0.0, 1.0), allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens that were used less likely; 1 is off
    #[arg(long, value_name = "X", value_parser = between(0.01, 100.0), allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// No N tokens in a row occur twice in prompt and answer; 0 is off
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,
    /// The same among the last --window-size tokens only
    #[arg(long, value_name = "N", requires = "window_size")]
    ngram_size: Option<usize>,
    /// Tokens that --ngram-size looks back
    #[arg(long, value_name = "N", requires = "ngram_size", value_parser = positive)]
    window_size: Option<usize>,
    /// Token ids that --ngram-size never bans, with commas between them
    #[arg(
        long,
        value_name = "IDS",
        requires = "ngram_size",
        value_delimiter = ','
    )]
    whitelist_token_ids: Vec<u32>,
    /// Whether special tokens are left out of the answer: true or false
    #[arg(long, value_name = "BOOL")]
    skip_special_tokens: Option<bool>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    stop: Vec<String>,
    /// Go on past the end that the model sets, up to the limit of tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Let the model think before it answers, where its template has the switch
    #[arg(long, overrides_with = "no_thinking")]
    thinking: bool,
    /// Answer without thinking, where the template has the switch
    #[arg(long, overrides_with = "thinking")]
    no_thinking: bool,
}

impl SamplingArgs {
    /// The wishes as the library takes them.
    pub(crate) fn params(&self) -> GenerationParams {
        let thinking = (self.thinking || self.no_thinking).then_some(self.thinking);
        let ngram_window =
            self.ngram_size
                .zip(self.window_size)
                .map(|(ngram_size, window_size)| NgramWindow {
                    ngram_size,
                    window_size,
                    whitelist_token_ids: self.whitelist_token_ids.clone(),
                });
        GenerationParams {
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            ngram_window,
            skip_special_tokens: self.skip_special_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            thinking,
            ..GenerationParams::default()
        }
    }
}

impl SamplingArgs {
    /// Those wishes that speech knows, too.
    pub(crate) fn speech(&self) -> SpeechWishes {
        SpeechWishes {
            temperature: self.temperature,
            seed: self.seed,
            max_tokens: self.max_tokens,
            verbose: false,
        }
    }
}

/// How pictures, clips and recordings are prepared.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Pictures and clips (defaults: the model's)")]
pub(crate) struct MediaArgs {
    /// Enlarge smaller pictures and frames to so many pixels
    #[arg(long, value_name = "N", value_parser = positive)]
    min_pixels: Option<usize>,
    /// Shrink larger pictures and frames to so many pixels
    #[arg(long, value_name = "N", value_parser = positive)]
    max_pixels: Option<usize>,
    /// Frames to take of each second of a clip
    #[arg(long, value_name = "N", value_parser = between(0.001, 1000.0), conflicts_with = "num_frames")]
    fps: Option<f32>,
    /// Frames to take of a clip
    #[arg(long, value_name = "N", value_parser = positive)]
    num_frames: Option<usize>,
    /// Settings of the model's own, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = object)]
    mm_processor_kwargs: Option<JsonObject>,
}

impl MediaArgs {
    /// Decodes a file as the model takes it; `name` is for messages.
    pub(crate) fn read(&self, model: &Model, name: &str, bytes: &[u8]) -> Outcome<Media> {
        let read = model.media(bytes, &self.wishes());
        read.map_err(|error| Failure::message(format!("cannot use {name}: {error}")))
    }

    /// The wishes as the library takes them.
    fn wishes(&self) -> MediaWishes {
        MediaWishes {
            pixels: PixelLimits {
                min_pixels: self.min_pixels.map(|pixels| pixels as u64),
                max_pixels: self.max_pixels.map(|pixels| pixels as u64),
            },
            fps: self.fps.map(f64::from),
            num_frames: self.num_frames,
            ..MediaWishes::default()
        }
    }

    /// Parameters of a generation with the model's own settings.
    pub(crate) fn set(&self, params: GenerationParams) -> GenerationParams {
        GenerationParams {
            mm_processor_kwargs: self.mm_processor_kwargs.clone().unwrap_or_default(),
            ..params
        }
    }
}

fn object(text: &str) -> Result<JsonObject, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("the text must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}
