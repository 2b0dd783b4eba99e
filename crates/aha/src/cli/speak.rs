//! `aha speak`: a text as sound.

use super::Context;
use super::args::{EngineArgs, ModelArgs};
use super::console::note;
use super::failure::{Failure, Outcome};
use super::input;
use super::units::{between, positive};
use aha::hub::Store;
use aha::{
    AudioEncoder, AudioFormat, EncodeOptions, EngineOptions, FinishReason, Model, Speech,
    SpeechEvent, SpeechFinished, SpeechParams, SpeechRequest, Voice, VoiceStore, normalize_text,
};
use clap::Args;
use std::fs::File;
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const AFTER_HELP: &str = "\
Without a voice every text is spoken by another one; --seed repeats it. A reference (--ref) is a
recording of a few seconds, --ref-text what it says. `--voice` takes a name stored by the server
(POST /v1/audio/voices). Long texts are cut at their sentences and spoken in one voice.

Examples:
  aha speak \"Hello, world!\" -m voxcpm1.5 -o hello.wav
  aha speak @letter.txt -m voxcpm1.5 --ref me.wav --ref-text \"What I say in it.\" -o letter.mp3
  aha speak \"你好，世界！\" -m voxcpm-0.5b --format wav -o - | aplay";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Speak {
    /// The text: as it is, @FILE, file://FILE, or - for standard input [default: a pipe on standard input]
    #[arg(value_name = "TEXT")]
    text: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Where the sound goes: a file, or - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Scale of the noise that the voice is made of; 0 always gives the same
    #[arg(short, long, value_name = "T", value_parser = between(0.0, 10.0), allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// The same seed gives the same speech
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Most patches of sound of a stretch of text [default: what its length allows]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    voice: VoiceArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Tell lengths and times on standard error
    #[arg(short, long)]
    verbose: bool,
}

/// What a speech sounds like; shared with `aha run`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Speech")]
pub(crate) struct VoiceArgs {
    /// A stored voice by its name
    #[arg(long, value_name = "NAME", conflicts_with = "reference")]
    voice: Option<String>,
    /// A recording to sound like
    #[arg(
        long = "ref",
        value_name = "FILE",
        requires = "ref_text",
        id = "reference"
    )]
    reference: Option<PathBuf>,
    /// What the recording says
    #[arg(long, value_name = "TEXT", requires = "reference")]
    ref_text: Option<String>,
    /// Form of the sound: wav, mp3, flac, opus or pcm [default: what the file's name says, else wav]
    #[arg(long, value_name = "FORMAT", value_parser = format_of)]
    format: Option<AudioFormat>,
    /// Weight of text and reference against free speech
    #[arg(long, value_name = "X", value_parser = between(0.0, 100.0), allow_negative_numbers = true)]
    cfg_value: Option<f32>,
    /// Steps of the solver a patch: fewer are faster and rougher
    #[arg(long, value_name = "N", value_parser = positive)]
    inference_timesteps: Option<usize>,
    /// No end before more than this many patches
    #[arg(long, value_name = "N")]
    min_len: Option<usize>,
    /// Read numbers, dates and units as words first
    #[arg(long)]
    normalize: bool,
}

/// What `aha run` and `aha speak` both know besides the voice.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpeechWishes {
    pub(crate) temperature: Option<f32>,
    pub(crate) seed: Option<u64>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) verbose: bool,
}

impl Speak {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let text = input::read_all(&self.text)?;
        let wishes = SpeechWishes {
            temperature: self.temperature,
            seed: self.seed,
            max_tokens: self.max_tokens,
            verbose: self.verbose,
        };
        speak(
            context,
            &self.model,
            self.engine.options(),
            &text,
            &self.output,
            &self.voice,
            wishes,
        )
    }
}

/// Speaks a text into a file or a pipe.
pub(crate) fn speak(
    context: &Context,
    model: &ModelArgs,
    engine: EngineOptions,
    text: &str,
    output: &Path,
    voice: &VoiceArgs,
    wishes: SpeechWishes,
) -> Outcome {
    // Everything that can be wrong is found before the time that a model takes.
    let format = voice.format_for(output)?;
    let mut target = Target::open(output)?;
    let (loader, bar) = context.loader(model)?;
    let engine = EngineOptions {
        max_sequences: 1,
        ..engine
    };
    let model = loader.engine_options(engine).build()?;
    bar.finish();
    let text = if voice.normalize {
        normalize_text(text)
    } else {
        text.to_owned()
    };
    let request = SpeechRequest {
        voice: voice.voice(context, &model)?,
        params: voice.params(wishes),
        // A pipe has a reader who waits; a file can be spoken again when it went wrong.
        stream: target.is_pipe(),
        ..SpeechRequest::new(text)
    };
    let sample_rate = model.speech_engine()?.format().sample_rate;
    let speech = model.start_speech(request)?;
    let finished =
        context
            .runtime
            .block_on(write(speech, sample_rate, format, &mut target, context))?;
    if finished.reason == FinishReason::Length {
        note("the speech was cut at the longest that its text may take: it may be incomplete");
    }
    if wishes.verbose {
        report(&finished, sample_rate);
    }
    Ok(())
}

impl VoiceArgs {
    fn format_for(&self, output: &Path) -> Outcome<AudioFormat> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        match output.extension().and_then(|ending| ending.to_str()) {
            Some(ending) => format_of(ending).map_err(|error| {
                Failure::usage(format!("{}: {error}; or say --format", output.display()))
            }),
            None => Ok(AudioFormat::WavPcm16),
        }
    }

    fn params(&self, wishes: SpeechWishes) -> SpeechParams {
        let default = SpeechParams::default();
        SpeechParams {
            temperature: wishes.temperature.unwrap_or(default.temperature),
            seed: wishes.seed,
            max_patches: wishes.max_tokens,
            guidance: self.cfg_value.unwrap_or(default.guidance),
            steps: self.inference_timesteps.unwrap_or(default.steps),
            min_patches: self.min_len.unwrap_or(default.min_patches),
            ..default
        }
    }

    fn voice(&self, context: &Context, model: &Model) -> Outcome<Option<Voice>> {
        if let (Some(file), Some(text)) = (&self.reference, &self.ref_text) {
            return Ok(Some(model.voice(file, text)?));
        }
        let Some(name) = self
            .voice
            .as_ref()
            .filter(|name| *name != aha::DEFAULT_VOICE)
        else {
            return Ok(None);
        };
        let store = Store::open(None, &context.global.hub_config()?)?;
        let voices = VoiceStore::new(store.voices());
        let voice = voices
            .load(name, model.speech_engine()?, &aha::DecodeOptions::default())
            .map_err(|error| Failure::message(format!("cannot use --voice: {error}")))?;
        Ok(Some(voice))
    }
}

fn format_of(name: &str) -> Result<AudioFormat, String> {
    match name.to_ascii_lowercase().as_str() {
        "wav" => Ok(AudioFormat::WavPcm16),
        "mp3" => Ok(AudioFormat::Mp3),
        "flac" => Ok(AudioFormat::Flac),
        "opus" | "ogg" => Ok(AudioFormat::Opus),
        "pcm" | "raw" => Ok(AudioFormat::Pcm16),
        _ => Err("the format must be wav, mp3, flac, opus or pcm".to_owned()),
    }
}

/// Where sound goes.
enum Target {
    Pipe,
    File { file: File, name: String },
}

impl Target {
    /// A file keeps its content until there is sound.
    fn open(path: &Path) -> Outcome<Self> {
        if path.as_os_str() == "-" {
            if io::stdout().is_terminal() {
                return Err(Failure::usage(
                    "standard output is a terminal: pipe the sound to a player, or name a file with -o",
                ));
            }
            return Ok(Self::Pipe);
        }
        let name = path.display().to_string();
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| Failure::message(format!("cannot write to {name}: {error}")))?;
        Ok(Self::File { file, name })
    }

    fn is_pipe(&self) -> bool {
        matches!(self, Self::Pipe)
    }

    fn begin(&mut self) -> Outcome {
        match self {
            // Only a regular file has a length to reset; a device or a named pipe has none.
            Self::File { file, name } if file.metadata().is_ok_and(|meta| meta.is_file()) => file
                .set_len(0)
                .map_err(|error| Failure::output(name, &error)),
            _ => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome {
        match self {
            Self::Pipe => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)
                    .and_then(|()| out.flush())
                    .map_err(|error| Failure::output("standard output", &error))
            }
            Self::File { file, name } => file
                .write_all(bytes)
                .map_err(|error| Failure::output(name, &error)),
        }
    }

    /// Writes over what is there already: lengths in headers.
    fn patch(&mut self, offset: u64, bytes: &[u8]) -> Outcome {
        let Self::File { file, name } = self else {
            return Ok(());
        };
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Ok(());
        }
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.write_all(bytes))
            .map_err(|error| Failure::output(name, &error))
    }
}

/// Writes the sound as it comes, until its end or the first signal, which cancels it.
async fn write(
    mut speech: Speech,
    sample_rate: u32,
    format: AudioFormat,
    target: &mut Target,
    context: &Context,
) -> Outcome<SpeechFinished> {
    let mut guard = context.signals.guard();
    let options = EncodeOptions {
        format,
        sample_rate,
        channels: 1,
        bitrate: None,
    };
    let failed = |error: aha::AudioError| Failure::message(format!("cannot encode: {error}"));
    let mut bytes = Vec::new();
    let mut encoder = AudioEncoder::new(options, &mut bytes).map_err(failed)?;
    let mut begun = false;
    loop {
        let event = tokio::select! {
            event = speech.next() => event,
            signal = guard.signalled() => return Err(Failure::Stopped(signal)),
        };
        match event {
            Some(SpeechEvent::Audio(samples)) => {
                if !begun {
                    target.begin()?;
                    begun = true;
                }
                encoder.push(&samples, &mut bytes).map_err(failed)?;
                target.write(&bytes)?;
                bytes.clear();
            }
            Some(SpeechEvent::Finished(finished)) => {
                let patches = encoder.finish(&mut bytes).map_err(failed)?;
                target.write(&bytes)?;
                for patch in patches {
                    target.patch(patch.offset, &patch.bytes)?;
                }
                return Ok(finished);
            }
            Some(SpeechEvent::Failed(error)) => return Err(aha::Error::from(error).into()),
            None => return Err(Failure::message("the speech broke off")),
        }
    }
}

/// Lengths and times.
fn report(finished: &SpeechFinished, sample_rate: u32) {
    let seconds = finished.samples as f64 / f64::from(sample_rate.max(1));
    let computed = finished.computed.as_secs_f64();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    note(&format!(
        "{seconds:.2} s of sound in {computed:.2} s ({:.2} s a second), the first after {:.0} ms, {} patches",
        computed / seconds.max(1e-9),
        milliseconds(finished.first_sound),
        finished.patches
    ));
}
