//! Times what a picture costs before the language model: decoding, resizing and cutting of a photo, and the vision
//! tower of a Qwen3-VL checkpoint. `benches/vision.py` makes the files and holds the times to those of Pillow and
//! PyTorch.
//!
//! ```text
//! vision CHECKPOINT PHOTO PICTURE ROUNDS FEATURES
//! ```
//!
//! Prints seconds of each round as one line of JSON, and writes the picture's features to the file FEATURES.

use aha_engine::{ContentHash, EncoderContent, EncoderInput, MediaEncoder};
use aha_media::MediaError;
use aha_media::image::{
    Filter, Image, Limits, Normalization, PatchLayout, PatchOrder, PatchSizing, Resampler, decode,
    patches, resize, smart_resize,
};
use aha_models::{Checkpoint, LoadOptions, qwen3vl};
use aha_nn::weights::{DtypeRequest, NameMap};
use candle_core::Tensor;
use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// The release's patches and pixel areas.
const PATCH_SIZE: u32 = 16;
const MERGE_SIZE: u32 = 2;
const PIXELS: (u64, u64) = (65_536, 16_777_216);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, photo, picture, rounds, features] = arguments.as_slice() else {
        return Err("usage: vision CHECKPOINT PHOTO PICTURE ROUNDS FEATURES".into());
    };
    let rounds: usize = rounds.parse()?;
    let photo = std::fs::read(photo)?;
    let preparing: Vec<Vec<f64>> = (0..rounds)
        .map(|_| prepare(&photo))
        .collect::<Result<_, _>>()?;

    let options = LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    };
    let checkpoint = Checkpoint::open(Path::new(checkpoint))?;
    let weights = checkpoint.weights(NameMap::identity(), &options)?;
    let tower = qwen3vl::vision_tower(&checkpoint, &weights)?;
    let picture = decode(&std::fs::read(picture)?, &Limits::default())?;
    let input = encoder_input(picture.upright().into_rgb_dropping_alpha());
    let mut seconds = Vec::with_capacity(rounds);
    let mut output: Option<Tensor> = None;
    for _ in 0..rounds {
        let began = Instant::now();
        output = tower.encode(&[&input])?.pop();
        seconds.push(began.elapsed().as_secs_f64());
    }
    if let Some(output) = output {
        let named = [("features", output)].into_iter().collect();
        candle_core::safetensors::save::<&str, _>(&named, features)?;
    }
    let times = json!({"preparing": preparing, "tower": seconds});
    writeln!(std::io::stdout(), "{times}")?;
    Ok(())
}

/// Seconds of decoding, resizing, and normalising and cutting into patches.
fn prepare(photo: &[u8]) -> Result<Vec<f64>, MediaError> {
    let mut seconds = Vec::new();
    let mut began = Instant::now();
    let mut lap = || {
        seconds.push(began.elapsed().as_secs_f64());
        began = Instant::now();
    };
    let image = decode(photo, &Limits::default())?
        .upright()
        .into_rgb_dropping_alpha();
    lap();
    let sizing = PatchSizing::image(PATCH_SIZE * MERGE_SIZE, PIXELS.0, PIXELS.1);
    let (width, height) = smart_resize(image.width(), image.height(), &sizing)?;
    let image = resize(&image, width, height, Filter::Bicubic, Resampler::Torch)?;
    lap();
    let order = PatchOrder {
        patch_size: PATCH_SIZE,
        merge_size: MERGE_SIZE,
        temporal_patch_size: 2,
        layout: PatchLayout::ChannelFirst,
    };
    let normalization = Normalization::fused(1.0 / 255.0, [0.5; 3], [0.5; 3])?;
    patches(&[image], &order, &normalization)?;
    lap();
    Ok(seconds)
}

/// A picture of the encoder's own size.
fn encoder_input(picture: Image) -> EncoderInput {
    let side = |pixels: u32| (pixels / PATCH_SIZE) as usize;
    let (rows, columns) = (side(picture.height()), side(picture.width()));
    EncoderInput {
        content: EncoderContent::Frames(vec![picture]),
        grid: [1, rows, columns],
        step_seconds: 0.0,
        num_tokens: rows * columns / (MERGE_SIZE * MERGE_SIZE) as usize,
        hash: ContentHash::of("picture"),
    }
}
