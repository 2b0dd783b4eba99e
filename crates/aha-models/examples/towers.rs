//! Runs what stands around a language model, an encoder, a codec or a whole network, once for each line that it reads, for
//! `benches/towers.py`.
//!
//! ```text
//! towers vision CHECKPOINT PICTURE       the vision tower of Qwen3-VL
//! towers speech CHECKPOINT RECORDING     the audio encoder of a recogniser
//! towers codec CHECKPOINT LATENTS        the decoder of VoxCPM's audio autoencoder, for so many latents
//! towers matte CHECKPOINT PICTURE        background removal
//! ```
//!
//! Weights are taken in the types that they are stored in. Each run answers with its seconds and a number that stands
//! for what came out.

use aha_engine::{
    ContentHash, EncoderContent, EncoderInput, LoadedModel, Matter, MediaEncoder, MediaReader,
};
use aha_media::image::{Image, Limits, decode};
use aha_models::voxcpm::{VoxCpmSpeaker, audio_vae::Memory};
use aha_models::{Checkpoint, LoadOptions, qwen3vl, rmbg2};
use aha_nn::weights::NameMap;
use candle_core::{DType, Device, Tensor};
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A tower with its input, ready to run.
type Run = Box<dyn Fn() -> Outcome<Tensor>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, checkpoint, input] = arguments.as_slice() else {
        return Err("usage: towers vision|speech|codec|matte CHECKPOINT INPUT".into());
    };
    let checkpoint = Checkpoint::open(Path::new(checkpoint))?;
    let run = match kind.as_str() {
        "vision" => vision(&checkpoint, input)?,
        "speech" => speech(&checkpoint, input)?,
        "codec" => codec(&checkpoint, input.parse()?)?,
        "matte" => matte(&checkpoint, input)?,
        other => return Err(format!("{other} is no tower").into()),
    };
    let mut output = std::io::stdout();
    writeln!(output, "ready")?;
    for line in std::io::stdin().lines() {
        line?;
        let began = Instant::now();
        let result = run()?;
        let seconds = began.elapsed().as_secs_f64();
        let size = result.to_dtype(DType::F32)?.sqr()?.mean_all()?;
        writeln!(output, "{seconds} {}", size.to_scalar::<f32>()?.sqrt())?;
        output.flush()?;
    }
    Ok(())
}

fn picture(path: &str) -> Outcome<Image> {
    let picture = decode(&std::fs::read(path)?, &Limits::default())?;
    Ok(picture.upright().into_rgb_dropping_alpha())
}

fn vision(checkpoint: &Checkpoint, input: &str) -> Outcome<Run> {
    /// The release's.
    const PATCH_SIZE: u32 = 16;
    const MERGED: usize = 4;
    let weights = checkpoint.weights(NameMap::identity(), &LoadOptions::default())?;
    let tower = qwen3vl::vision_tower(checkpoint, &weights)?;
    let picture = picture(input)?;
    let side = |pixels: u32| (pixels / PATCH_SIZE) as usize;
    let (rows, columns) = (side(picture.height()), side(picture.width()));
    let input = EncoderInput {
        content: EncoderContent::Frames(vec![picture]),
        grid: [1, rows, columns],
        step_seconds: 0.0,
        num_tokens: rows * columns / MERGED,
        hash: ContentHash::of("picture"),
    };
    Ok(Box::new(move || first(tower.encode(&[&input])?)))
}

fn speech(checkpoint: &Checkpoint, input: &str) -> Outcome<Run> {
    let loaded = aha_models::load(checkpoint.path(), &LoadOptions::default())?;
    let LoadedModel::Text(model) = loaded else {
        return Err("the checkpoint is no recogniser".into());
    };
    let media = model.processor.media().ok_or("the model hears nothing")?;
    let encoder = model.encoder.ok_or("the model has no encoder")?;
    let heard = MediaReader::default().audio(&std::fs::read(input)?, &media.audio_input())?;
    let inputs = media.process(&heard)?.inputs;
    Ok(Box::new(move || {
        let inputs: Vec<&EncoderInput> = inputs.iter().collect();
        Ok(Tensor::cat(&encoder.encode(&inputs)?, 0)?)
    }))
}

fn codec(checkpoint: &Checkpoint, latents: usize) -> Outcome<Run> {
    let speaker = VoxCpmSpeaker::load(checkpoint, &LoadOptions::default())?;
    // Small waves: what the numbers are does not matter to the time.
    let width = 64;
    let values = (0..latents * width).map(|index| (index as f32 * 0.37).sin());
    let latents = Tensor::from_iter(values, &Device::Cpu)?.reshape((latents, width))?;
    Ok(Box::new(move || {
        Ok(speaker
            .autoencoder()
            .decode(&latents, &mut Memory::default())?)
    }))
}

fn matte(checkpoint: &Checkpoint, input: &str) -> Outcome<Run> {
    let model = rmbg2::network(checkpoint, &LoadOptions::default())?;
    let prepared = model.prepare(&picture(input)?)?;
    Ok(Box::new(move || Ok(model.alpha(&prepared, &|| false)?)))
}

fn first(mut outputs: Vec<Tensor>) -> Outcome<Tensor> {
    outputs.pop().ok_or_else(|| "nothing came out".into())
}
