//! `aha run`: one prompt, one answer.

use super::Context;
use super::answer::{Sink, tell};
use super::args::{EngineArgs, MediaArgs, ModelArgs, SamplingArgs};
use super::console::{note, print_json};
use super::embed::EmbeddingArgs;
use super::failure::{Failure, Outcome};
use super::input::{self, Input};
use super::jobs::write_atomically;
use super::rembg::{CutoutArgs, Finish, read_file};
use super::rows::{Format, Rows, write};
use super::speak::{SpeechWishes, VoiceArgs, speak};
use super::units::rate;
use aha::image::Limits;
use aha::{Chat, ChatStream, Ended, EngineOptions, FinishReason, Message, Model, Task};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const AFTER_HELP: &str = "\
An embedder prints a vector (JSON) for each -i, or writes them to a .npy, .jsonl or .parquet file;
a reranker takes the first -i as the query and orders the others; a model that speaks writes sound;
one for background removal takes the file of a picture and writes another. With other models, all -i
make one prompt, pictures and clips (the path of a file) in their places between the texts: the
answer goes to standard output; what the model thinks before it, dimmed, to standard error
when that is a terminal.

Examples:
  aha run -m qwen3-0.6b -i \"Why is the sky blue?\"
  aha run -m Qwen/Qwen3-VL-2B-Instruct -i \"What is this?\" -i cat.jpg
  aha run -m ./checkpoint -i \"Summarise this:\" -i @report.txt -o summary.txt
  git diff | aha run -m qwen3-4b -i \"Review this change:\" -i -
  aha run -m qwen3-embedding-0.6b -i \"a text\" -i \"another\" -o vectors.npy
  aha run -m qwen3-reranker-0.6b -i \"What is gravity?\" -i \"A force.\" -i \"A river.\"
  aha run -m rmbg2 -i photo.jpg -o cutout.png
  aha run --gguf-path base.gguf --raw -i \"Once upon a time\" -n 100 -t 0.8 --seed 1";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Run {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt: a text, @FILE, file://FILE, a picture's or clip's path, or - for standard input; may be repeated
    #[arg(short, long, value_name = "INPUT")]
    input: Vec<String>,
    /// Write the answer to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the text as it stands, without the chat template
    #[arg(long)]
    raw: bool,
    /// Tell token counts, rates and times on standard error
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    embedding: EmbeddingArgs,
    #[command(flatten)]
    voice: VoiceArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Run {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        // A model that is not here yet has to come before it can be asked what it is for.
        let (loader, bar) = context.loader(&self.model)?;
        let task = loader.family()?.task;
        bar.finish();
        match task {
            Task::Chat | Task::Transcribe => self.answer(context),
            Task::Embed => self.embed(context),
            Task::Rerank => self.rerank(context),
            Task::Matte => self.cut_out(context),
            Task::Speak => self.speak(context),
        }
    }

    /// Prints or writes a vector for each input.
    fn embed(self, context: &Context) -> Outcome {
        let texts = input::read_each(&self.input)?;
        let target = self.output.clone().filter(|path| path.as_os_str() != "-");
        let format = target.as_deref().map(Format::of).transpose()?;
        let (loader, bar) = context.loader(&self.model)?;
        let model = loader.engine_options(self.engine.options()).build()?;
        bar.finish();
        let vectors = model.embed(&texts, &self.embedding.options())?;
        let (Some(path), Some(format)) = (target, format) else {
            return print_json(&vectors);
        };
        write(format, &path, &texts, &Rows(&vectors))
    }

    /// Prints the documents, which are all inputs but the first, by how well they answer it.
    fn rerank(self, context: &Context) -> Outcome {
        let texts = input::read_each(&self.input)?;
        let Some((query, documents)) = texts.split_first().filter(|(_, rest)| !rest.is_empty())
        else {
            return Err(Failure::usage(
                "a reranker needs a query and documents: give one -i for the query, then one for each document",
            ));
        };
        let (loader, bar) = context.loader(&self.model)?;
        let model = loader.engine_options(self.engine.options()).build()?;
        bar.finish();
        let ranked = model.rerank(query, documents, self.embedding.instruct.as_deref())?;
        let table = super::rerank::table(&ranked, documents);
        let mut sink = Sink::open(self.output.clone())?;
        sink.begin()?;
        sink.write(&table)
    }

    /// Writes a picture without its background.
    fn cut_out(self, context: &Context) -> Outcome {
        let [picture] = self.input.as_slice() else {
            return Err(Failure::usage(
                "a model for background removal takes one picture: give its file with -i (several: aha rembg)",
            ));
        };
        let path = picture.strip_prefix('@').unwrap_or(picture);
        let path = Path::new(path.strip_prefix("file://").unwrap_or(path));
        let Some(output) = &self.output else {
            return Err(Failure::usage(
                "say where the picture goes: -o FILE, or -o - for a pipe",
            ));
        };
        let to_pipe = output.as_os_str() == "-";
        let ending = output.extension().unwrap_or_default().to_string_lossy();
        let encoding = ending.to_lowercase().parse().unwrap_or_default();
        let failed = |error: String| {
            Failure::message(format!(
                "cannot remove the background: {}: {error}",
                path.display()
            ))
        };
        let limits = Limits::default();
        let finish = Finish::new(&CutoutArgs::default(), encoding)?;
        let bytes = read_file(path, limits.max_bytes).map_err(failed)?;
        let picture = finish.read(&bytes, &limits).map_err(failed)?;
        let (loader, bar) = context.loader(&self.model)?;
        let model = loader.engine_options(self.engine.options()).build()?;
        bar.finish();
        let file = finish
            .cut(model.matting_engine()?, picture)
            .map_err(failed)?;
        let written = if to_pipe {
            std::io::stdout().lock().write_all(&file)
        } else {
            write_atomically(output, &file)
        };
        written.map_err(|error| Failure::output(&output.display().to_string(), &error))
    }

    /// Speaks all inputs, and writes the sound.
    fn speak(self, context: &Context) -> Outcome {
        let text = input::read_all(&self.input)?;
        let Some(output) = &self.output else {
            return Err(Failure::usage(
                "a model that speaks needs a place for the sound: name a file with -o, or - for a pipe",
            ));
        };
        let wishes = SpeechWishes {
            verbose: self.verbose,
            ..self.sampling.speech()
        };
        let engine = self.engine.options();
        speak(
            context,
            &self.model,
            engine,
            &text,
            output,
            &self.voice,
            wishes,
        )
    }

    /// Prints or writes the answer to a prompt.
    fn answer(self, context: &Context) -> Outcome {
        let prompt = input::read_parts(&self.input)?;
        // Opened before the time that a model takes, emptied only after it.
        let mut sink = Sink::open(self.output.clone())?;
        let started = Instant::now();
        let (loader, bar) = context.loader(&self.model)?;
        let options = EngineOptions {
            max_sequences: 1,
            ..self.engine.options()
        };
        let model = loader.engine_options(options).build()?;
        bar.finish();
        let loading = started.elapsed();
        let stream = self.ask(&model, prompt)?;
        sink.begin()?;
        let told = context
            .runtime
            .block_on(tell(stream, &mut sink, &context.signals))?;
        let ended = told.end.map_err(Failure::Stopped)?;
        if self.verbose {
            report(&ended, loading, started.elapsed());
        }
        Ok(())
    }

    fn ask(&self, model: &Model, prompt: Vec<Input>) -> Outcome<ChatStream> {
        let params = self.media.set(self.sampling.params());
        if self.raw {
            return Ok(model.complete(&only_text(prompt, "--raw continues text alone")?, &params)?);
        }
        if !model.has_chat_template() {
            if self.system.is_some() {
                return Err(Failure::message(format!(
                    "cannot use --system: {}: the model has no chat template",
                    model.name()
                )));
            }
            let text = only_text(prompt, "the model has no chat template")?;
            note("the model has no chat template: it continues the text as it stands (--raw)");
            return Ok(model.complete(&text, &params)?);
        }
        let mut question = Message::new("user");
        for part in prompt {
            question = match part {
                Input::Text(text) => question.with_text(text),
                Input::Media { name, bytes } => {
                    question.with_media(self.media.read(model, &name, &bytes)?)
                }
            };
        }
        let system = self.system.iter().map(|text| Message::text("system", text));
        let messages = system.chain([question]).collect();
        Ok(model.chat(
            Chat {
                messages,
                ..Chat::default()
            },
            &params,
        )?)
    }
}

/// The one text of a prompt; `why` says why there can be nothing else.
fn only_text(prompt: Vec<Input>, why: &str) -> Outcome<String> {
    let mut text = String::new();
    for part in prompt {
        match part {
            Input::Text(part) => text += &part,
            Input::Media { name, .. } => {
                return Err(Failure::message(format!("cannot use {name}: {why}")));
            }
        }
    }
    Ok(text)
}

/// Token counts, rates and times.
fn report(ended: &Ended, loading: Duration, total: Duration) {
    let (usage, times) = (&ended.usage, &ended.timings);
    let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    // The first token comes out of the prompt's last step.
    let decoded = usage.completion_tokens.saturating_sub(1);
    let end = match ended.reason {
        FinishReason::Stop => "the model ended it",
        FinishReason::Length => "cut at the limit of tokens",
    };
    let line = |name: &str, time: Duration, tokens: usize, rate: f64, remark: &str| {
        let seconds = time.as_secs_f64();
        note(&format!(
            "{name}  {seconds:8.2} s  {tokens:6} tokens  {rate:9.1} tokens/s  ({remark})"
        ));
    };
    note(&format!("load    {:8.2} s", loading.as_secs_f64()));
    let cached = format!("{} from the cache", usage.cached_tokens);
    line(
        "prompt",
        times.prefill,
        usage.prompt_tokens,
        rate(computed, times.prefill),
        &cached,
    );
    line(
        "answer",
        times.decode,
        usage.completion_tokens,
        rate(decoded, times.decode),
        end,
    );
    note(&format!("total   {:8.2} s", total.as_secs_f64()));
}
