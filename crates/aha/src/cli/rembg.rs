//! `aha rembg`: pictures in, their foreground out.

use super::Context;
use super::args::{ModelArgs, ModelPlace};
use super::failure::{Failure, Outcome};
use super::jobs::{Item, JobArgs, Meter, Outputs, Plan, Product, find_inputs, has_ending, run};
use super::units::between;
use aha::image::{Background, Image, ImageEncoding, Limits, decode, encode, parse_color, sniff};
use aha::{MattingEngine, Model, Task};
use aha_media::video::{self, Ffmpeg, FrameRate, FrameSampling};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Inputs are pictures, clips, and folders of them. One picture becomes the file OUT; several, or a
folder, become files of their names in the folder OUT. Of a clip each frame becomes a picture in a
folder of the clip's name, for which ffmpeg is needed; of an animated GIF or WebP the first frame is
taken.

Pictures keep their size. Like the reference, the EXIF orientation is left out of account: a photo
that only its EXIF data turn comes out as it is stored. --upright turns it first.

What is done is kept in OUT.journal: a job that was stopped goes on when it is started again.
Pictures that failed are told at the end, and tried again with --retry-failed. The exit status is 0
only if all came.

Examples:
  aha rembg photo.jpg -m briaai/RMBG-2.0 -o cutout.png
  aha rembg products/ -m rmbg2 -o cut/ --bg white
  aha rembg portrait.jpg -m rmbg2 -o beach.webp --bg beach.jpg
  aha rembg clip.mp4 -m rmbg2 -o frames/ --mask --fps 5";

/// Endings of the pictures and clips in folders.
const PICTURES: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];
const CLIPS: [&str; 6] = ["mp4", "mov", "mkv", "webm", "avi", "m4v"];

/// Pictures are read and written while the model works on another; more would wait in memory.
const PARALLEL: usize = 4;
const MOST_JOBS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Png,
    Webp,
}

impl From<Format> for ImageEncoding {
    fn from(format: Format) -> Self {
        match format {
            Format::Png => Self::Png,
            Format::Webp => Self::WebP,
        }
    }
}

/// What is made of the masks.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct CutoutArgs {
    /// Write the mask alone, white where the foreground is
    #[arg(long)]
    mask: bool,
    /// Put the foreground on a colour (white, #ff8800) or a picture (a file)
    #[arg(long, value_name = "COLOR|IMAGE", conflicts_with = "mask")]
    bg: Option<String>,
    /// Turn pictures upright by their EXIF orientation first
    #[arg(long)]
    upright: bool,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Rembg {
    /// Pictures, clips, and folders of them
    #[arg(value_name = "INPUT", required = true)]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelPlace,
    /// Where the pictures go: a file for one picture, else a folder
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    #[command(flatten)]
    cutout: CutoutArgs,
    /// What is written: png or webp, both without loss [default: what the name of OUT says, else png]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Format>,
    /// Frames of a clip that are taken a second [default: all]
    #[arg(long, value_name = "N", value_parser = between(0.001, 1000.0))]
    fps: Option<f32>,
    #[command(flatten)]
    job: JobArgs,
}

impl Rembg {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let is_wanted = |path: &Path| has_ending(path, &PICTURES) || has_ending(path, &CLIPS);
        let inputs = find_inputs(&self.inputs, &self.output, "pictures or clips", is_wanted)?;
        let encoding: ImageEncoding = self.format().into();
        let finish = Finish::new(&self.cutout, encoding)?;
        let outputs = Outputs::plan(&self.output, &self.inputs, &inputs, encoding.name())?;

        let model = load(&self.model, context)?;
        let weights = model
            .path()
            .canonicalize()
            .unwrap_or(model.path().to_owned());
        let plan = Plan {
            command: "rembg",
            options: format!(
                "{} {} {finish:?} {:?}",
                weights.display(),
                context.global.dtype,
                self.fps
            ),
            outputs: &outputs,
            parallel: self.job.jobs.unwrap_or(PARALLEL).min(MOST_JOBS),
            unit: "images/s",
            retry_failed: self.job.retry_failed,
            restart: self.job.restart,
        };
        let work = Work {
            engine: model.matting_engine()?.clone(),
            finish,
            limits: Limits::default(),
            ffmpeg: Ffmpeg::find(),
            sampling: match self.fps {
                None => FrameSampling::ALL,
                Some(fps) => FrameSampling {
                    rate: FrameRate::PerSecond(fps.into()),
                    min_frames: 1,
                    max_frames: usize::MAX,
                    ..FrameSampling::ALL
                },
            },
            names: outputs.names.clone(),
        };
        let items = inputs.iter().enumerate().map(|(index, input)| Item {
            id: input.name.display().to_string(),
            path: input.path.clone(),
            part: String::new(),
            index,
        });
        let report = run(
            context,
            &plan,
            items.collect(),
            move |item: &Item, meter: &Meter| work.input(item, meter),
            |_, _| Ok(()),
        )?;
        report.finish()
    }

    fn format(&self) -> Format {
        let named = self.output.extension().and_then(|ending| {
            Format::from_str(&ending.to_string_lossy(), true)
                .ok()
                .filter(|_| !self.output.is_dir())
        });
        self.format.or(named).unwrap_or(Format::Png)
    }
}

/// A model for background removal.
fn load(place: &ModelPlace, context: &Context) -> Outcome<Model> {
    let model = ModelArgs {
        place: place.clone(),
        task: Some(Task::Matte),
    };
    let (loader, bar) = context.loader(&model)?;
    let model = loader.build()?;
    bar.finish();
    Ok(model)
}

/// What is made of a mask.
#[derive(Debug, Clone)]
pub(super) struct Finish {
    mask: bool,
    background: Option<Background>,
    upright: bool,
    encoding: ImageEncoding,
}

impl Finish {
    /// Reads the background picture, if there is one.
    pub(super) fn new(args: &CutoutArgs, encoding: ImageEncoding) -> Outcome<Self> {
        Ok(Self {
            mask: args.mask,
            background: args.bg.as_deref().map(background).transpose()?,
            upright: args.upright,
            encoding,
        })
    }

    /// The picture in a file, as it shall be worked on.
    pub(super) fn read(&self, bytes: &[u8], limits: &Limits) -> Result<Image, String> {
        let decoded = decode(bytes, limits).map_err(|error| error.to_string())?;
        Ok(if self.upright {
            decoded.upright()
        } else {
            decoded.as_stored()
        })
    }

    /// The file that comes of a picture.
    pub(super) fn cut(&self, engine: &MattingEngine, picture: Image) -> Result<Vec<u8>, String> {
        let pending = engine.submit(&picture).map_err(|error| error.to_string())?;
        let mask = pending.blocking_wait().map_err(|error| error.to_string())?;
        let mask = mask.mask;
        let image = match &self.background {
            _ if self.mask => Ok(mask),
            None => picture.with_alpha(&mask),
            Some(background) => background.behind(picture, &mask),
        };
        image
            .and_then(|image| encode(&image, self.encoding))
            .map_err(|error| error.to_string())
    }
}

/// A colour, or the picture in a file.
fn background(text: &str) -> Outcome<Background> {
    let path = Path::new(text);
    match parse_color(text) {
        Ok(color) => Ok(Background::Color(color)),
        Err(_) if path.is_file() => {
            let limits = Limits::default();
            read_file(path, limits.max_bytes)
                .and_then(|bytes| decode(&bytes, &limits).map_err(|error| error.to_string()))
                .map(|decoded| Background::Picture(decoded.upright()))
                .map_err(|error| Failure::message(format!("cannot use --bg {text}: {error}")))
        }
        Err(error) => Err(Failure::message(format!(
            "cannot use --bg: {error}, or the file of a picture"
        ))),
    }
}

/// The bytes of a file that is not larger than the limit.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    let length = path.metadata().map_err(failed)?.len();
    if length > limit {
        return Err(format!(
            "it has {length} bytes, more than the limit of {limit}"
        ));
    }
    std::fs::read(path).map_err(failed)
}

/// What is done with an input.
struct Work {
    engine: MattingEngine,
    finish: Finish,
    limits: Limits,
    ffmpeg: Option<Ffmpeg>,
    sampling: FrameSampling,
    /// The file of each input below the root of the outputs.
    names: Vec<PathBuf>,
}

impl Work {
    /// The value is the number of pictures that came of the input.
    fn input(&self, item: &Item, meter: &Meter) -> Result<Product<usize>, String> {
        let bytes = read_file(&item.path, self.limits.max_video_bytes)?;
        let name = &self.names[item.index];
        // What a file is, its bytes say.
        if sniff(&bytes).is_err() && video::sniff(&bytes).is_ok() {
            return self.frames(&bytes, name, meter);
        }
        let picture = self.finish.read(&bytes, &self.limits)?;
        let file = self.finish.cut(&self.engine, picture)?;
        meter.advance(1.0);
        Ok(Product {
            value: 1,
            files: vec![(name.clone(), file)],
        })
    }

    /// A picture for each frame, in the folder of the clip's name.
    fn frames(&self, bytes: &[u8], name: &Path, meter: &Meter) -> Result<Product<usize>, String> {
        let clip = video::read(bytes, &self.sampling, &self.limits, self.ffmpeg.as_ref())
            .map_err(|error| error.to_string())?;
        let folder = name.with_extension("");
        let mut files = Vec::with_capacity(clip.frames.len());
        for (index, frame) in clip.frames.into_iter().enumerate() {
            let file = self.finish.cut(&self.engine, frame)?;
            let place = format!("{:06}.{}", index + 1, self.finish.encoding.name());
            files.push((folder.join(place), file));
            meter.advance(1.0);
        }
        Ok(Product {
            value: files.len(),
            files,
        })
    }
}
