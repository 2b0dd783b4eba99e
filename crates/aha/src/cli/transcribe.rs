//! `aha transcribe`: recordings in, text and subtitles out.

use super::Context;
use super::answer::Sink;
use super::args::{EngineArgs, ModelArgs, ModelPlace};
use super::failure::{Failure, Outcome};
use super::jobs::{
    Input, Item, JobArgs, Meter, Outputs, Plan, Product, find_inputs, has_ending, run,
};
use super::units::positive;
use aha::subtitles::{Cue, srt, vtt};
use aha::{
    Cutting, EngineOptions, GenerationParams, Model, RecordingEvent, Segment, Task, Transcription,
    TranscriptionOptions, TranscriptionParams, VadMethod, VadOptions,
};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Inputs are recordings (WAV, MP3, FLAC, Ogg, Opus, M4A), films, and folders of them, of any length.
Without -o the text of one recording goes to the terminal. With -o each recording becomes the files
that are asked for, under its own name in the folder DIR.

What is done is kept in DIR.journal, file by file: a job that was stopped goes on when it is started
again. Times are those of the speech that is found, cut into segments of at most 30 seconds.

Examples:
  aha transcribe talk.mp3 -m Qwen/Qwen3-ASR-0.6B
  aha transcribe lectures/ -m qwen3-asr-1.7b --srt --txt -o texts/
  aha transcribe call.wav -m glm-asr-nano --json --language en --context names.txt -o texts/";

/// Recordings that are worked on at once unless told otherwise: the segments of each are decoded together already.
const DEFAULT_JOBS: usize = 1;
/// Most recordings at once.
const MOST_JOBS: usize = 16;
/// Segments of one recording that are decoded at once.
const DEFAULT_PARALLEL: usize = 8;

/// What may lie in a folder of recordings.
const ENDINGS: [&str; 22] = [
    "wav", "mp3", "flac", "ogg", "oga", "opus", "m4a", "m4b", "aac", "aif", "aiff", "caf", "wma",
    "amr", "mp4", "m4v", "mkv", "mka", "mov", "webm", "avi", "ts",
];

/// How speech is told from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cut {
    /// A small network that knows speech
    Vad,
    /// The level above the noise: faster, and every loud sound is speech
    Energy,
    /// Only where a recording is longer than the model hears at once
    Long,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Transcribe {
    /// Recordings, films, and folders of them
    #[arg(value_name = "FILE", required = true)]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelPlace,
    /// Folder for the results [default: the terminal, for one recording and one format]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Write the text (the default)
    #[arg(long)]
    txt: bool,
    /// Write subtitles as SubRip
    #[arg(long)]
    srt: bool,
    /// Write subtitles as WebVTT
    #[arg(long)]
    vtt: bool,
    /// Write text, language and segments with times as JSON
    #[arg(long)]
    json: bool,
    /// Language that is spoken: a name or a code, as far as the model takes it [default: it finds out]
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<String>,
    /// File with text that helps: names, terms, what was said before
    #[arg(long, value_name = "FILE")]
    context: Option<PathBuf>,
    /// A word that is likely to be said; may be repeated
    #[arg(long = "hotword", value_name = "WORD")]
    hotwords: Vec<String>,
    /// Whether numbers and dates are written as in print: true or false
    #[arg(long, value_name = "BOOL")]
    itn: Option<bool>,
    /// Where recordings are cut: vad, energy or long [default: vad; long where no times are asked for]
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = true)]
    cut: Option<Cut>,
    /// Segments of a recording that are decoded at once
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = DEFAULT_PARALLEL)]
    parallel: usize,
    /// Most tokens of a segment's text [default: what the model has]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What a recording becomes, by the ending of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Txt,
    Srt,
    Vtt,
    Json,
}

impl Format {
    fn ending(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
            Self::Json => "json",
        }
    }

    fn write(self, whole: &Transcription, segments: &[Segment]) -> String {
        let cue = |segment: &Segment| Cue {
            start: segment.start,
            end: segment.end,
            text: segment.transcript.text.clone(),
        };
        match self {
            Self::Txt => format!("{}\n", whole.transcript.text),
            Self::Srt => srt(&segments.iter().map(cue).collect::<Vec<_>>()),
            Self::Vtt => vtt(&segments.iter().map(cue).collect::<Vec<_>>()),
            Self::Json => {
                let segment = |segment: &Segment| {
                    json!({
                        "start": segment.start,
                        "end": segment.end,
                        "text": segment.transcript.text,
                        "language": segment.transcript.language,
                        "truncated": segment.truncated,
                    })
                };
                let file = json!({
                    "text": whole.transcript.text,
                    "language": whole.transcript.language,
                    "duration": whole.seconds,
                    "segments": segments.iter().map(segment).collect::<Vec<_>>(),
                });
                format!("{file:#}\n")
            }
        }
    }
}

impl Transcribe {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        // What can be wrong with inputs and outputs is found before the time that a model takes.
        let formats = self.formats();
        let params = self.params(&formats)?;
        let nowhere = Path::new("");
        let output = self.output.as_deref();
        let inputs = find_inputs(
            &self.inputs,
            output.unwrap_or(nowhere),
            "recordings",
            |path| has_ending(path, &ENDINGS),
        )?;
        let Some(output) = output else {
            let ([input], [format]) = (inputs.as_slice(), formats.as_slice()) else {
                return Err(Failure::message(
                    "several recordings or formats need a folder: name one with -o DIR",
                ));
            };
            let model = self.load(context)?;
            return to_terminal(&model, input, *format, &params);
        };
        // Several formats make several files, so that the output is a folder always.
        std::fs::create_dir_all(output).map_err(|error| {
            Failure::message(format!("cannot make {}: {error}", output.display()))
        })?;
        let plan_of =
            |format: &Format| Outputs::plan(output, &self.inputs, &inputs, format.ending());
        let outputs: Vec<Outputs> = formats.iter().map(plan_of).collect::<Outcome<_>>()?;
        let model = self.load(context)?;
        let weights = model.path().canonicalize();
        let weights = weights.unwrap_or_else(|_| model.path().to_owned());
        let plan = Plan {
            command: "transcribe",
            options: format!(
                "{} {} {params:?} {formats:?}",
                weights.display(),
                context.global.dtype
            ),
            outputs: &outputs[0],
            parallel: self.job.jobs.unwrap_or(DEFAULT_JOBS).min(MOST_JOBS),
            unit: "x real time",
            retry_failed: self.job.retry_failed,
            restart: self.job.restart,
        };
        let items = inputs.iter().enumerate().map(|(index, input)| Item {
            id: input.name.display().to_string(),
            path: input.path.clone(),
            part: String::new(),
            index,
        });
        let names: Vec<Vec<PathBuf>> = outputs
            .iter()
            .map(|outputs| outputs.names.clone())
            .collect();
        let work = move |item: &Item, meter: &Meter| {
            let (whole, segments) = transcribe(&model, &item.path, &params, meter)?;
            let file = |(format, names): (&Format, &Vec<PathBuf>)| {
                let text = format.write(&whole, &segments);
                (names[item.index].clone(), text.into_bytes())
            };
            Ok(Product {
                value: whole.truncated,
                files: formats.iter().zip(&names).map(file).collect(),
            })
        };
        let report = run(context, &plan, items.collect(), work, |_, _| Ok(()))?;
        let cut = report.results.iter().flatten().filter(|cut| **cut).count();
        if cut > 0 {
            super::console::note(&format!(
                "{cut} recordings have segments that were cut at the limit of tokens: they may be incomplete"
            ));
        }
        report.finish()
    }

    fn formats(&self) -> Vec<Format> {
        let asked = [
            (self.txt, Format::Txt),
            (self.srt, Format::Srt),
            (self.vtt, Format::Vtt),
            (self.json, Format::Json),
        ];
        let asked: Vec<Format> = asked
            .into_iter()
            .filter_map(|(asked, format)| asked.then_some(format))
            .collect();
        if asked.is_empty() {
            vec![Format::Txt]
        } else {
            asked
        }
    }

    fn params(&self, formats: &[Format]) -> Outcome<TranscriptionParams> {
        let context = self.context.as_ref().map(|path| {
            std::fs::read_to_string(path).map_err(|error| {
                Failure::message(format!("cannot read {}: {error}", path.display()))
            })
        });
        let speech = |method| {
            Cutting::Speech(VadOptions {
                method,
                ..VadOptions::default()
            })
        };
        let has_times = formats.iter().any(|format| *format != Format::Txt);
        Ok(TranscriptionParams {
            options: TranscriptionOptions {
                language: self.language.clone(),
                context: context.transpose()?,
                hotwords: self.hotwords.clone(),
                itn: self.itn,
            },
            cutting: match self.cut {
                Some(Cut::Vad) => speech(VadMethod::Silero),
                Some(Cut::Energy) => speech(VadMethod::Energy),
                Some(Cut::Long) => Cutting::Long,
                None if has_times => speech(VadMethod::Silero),
                None => Cutting::Long,
            },
            generation: GenerationParams {
                max_tokens: self.max_tokens,
                ..GenerationParams::default()
            },
            parallel: self.parallel,
        })
    }

    fn load(&self, context: &Context) -> Outcome<Model> {
        let model = ModelArgs {
            place: self.model.clone(),
            task: Some(Task::Transcribe),
        };
        let (loader, bar) = context.loader(&model)?;
        let jobs = self.job.jobs.unwrap_or(DEFAULT_JOBS).min(MOST_JOBS);
        let options = EngineOptions {
            max_sequences: self.parallel.saturating_mul(jobs).min(64),
            ..self.engine.options()
        };
        let model = loader.engine_options(options).build()?;
        bar.finish();
        Ok(model)
    }
}

/// The transcript of a recording; an error is told to the user.
fn transcribe(
    model: &Model,
    path: &Path,
    params: &TranscriptionParams,
    meter: &Meter,
) -> Result<(Transcription, Vec<Segment>), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let mut stream = model
        .transcribe_stream(path, params)
        .map_err(|error| text(&error))?;
    let (mut segments, mut heard) = (Vec::<Segment>::new(), 0.0);
    while let Some(event) = stream.blocking_next() {
        match event.map_err(|error| text(&error))? {
            RecordingEvent::Text { .. } => {}
            RecordingEvent::Segment(mut segment) => {
                meter.advance(segment.end - heard);
                heard = segment.end;
                // Of hours these would be most of the memory.
                segment.tokens = Vec::new();
                segments.push(segment);
            }
            RecordingEvent::Finished(whole) => {
                meter.advance((whole.seconds - heard).max(0.0));
                return Ok((whole, segments));
            }
        }
    }
    Err("the transcription ended without its end".to_owned())
}

/// Writes a text as it comes, and other formats when they are whole.
fn to_terminal(
    model: &Model,
    input: &Input,
    format: Format,
    params: &TranscriptionParams,
) -> Outcome {
    let mut sink = Sink::stdout();
    let failed = |error: &dyn std::error::Error| {
        Failure::message(format!("{}: {error}", input.name.display()))
    };
    if format != Format::Txt {
        let (whole, segments) = transcribe(model, &input.path, params, &Meter::default())
            .map_err(|error| Failure::message(format!("{}: {error}", input.name.display())))?;
        return sink.write(&format.write(&whole, &segments));
    }
    let mut stream = model.transcribe_stream(input.path.as_path(), params)?;
    while let Some(event) = stream.blocking_next() {
        if let RecordingEvent::Text { delta, .. } = event.map_err(|error| failed(&error))? {
            sink.write(&delta)?;
        }
    }
    sink.write("\n")
}
