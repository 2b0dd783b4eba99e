//! Times the front end and the encoder of a speech recogniser on a recording, for `benches/speech.py`.
//!
//! ```text
//! speech_encoder CHECKPOINT RECORDING ROUNDS
//! ```
//!
//! Prints one line of JSON: seconds of each round. The weights are computed in f32.
#![allow(clippy::print_stdout, reason = "what an example is for")]

use aha_engine::{EncoderInput, LoadedModel, MediaReader};
use aha_models::LoadOptions;
use aha_nn::weights::DtypeRequest;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, recording, rounds] = arguments.as_slice() else {
        return Err("usage: speech_encoder CHECKPOINT RECORDING ROUNDS".into());
    };
    let options = LoadOptions {
        dtype: DtypeRequest::F32,
        ..LoadOptions::default()
    };
    let LoadedModel::Text(model) = aha_models::load(Path::new(checkpoint), &options)? else {
        return Err("the checkpoint is no recogniser".into());
    };
    let media = model.processor.media().ok_or("the model hears nothing")?;
    let encoder = model.encoder.ok_or("the model has no encoder")?;
    let bytes = std::fs::read(recording)?;
    let heard = MediaReader::default().audio(&bytes, &media.audio_input())?;
    let (mut front_end, mut encoding, mut tokens) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds.parse::<usize>()? {
        let started = Instant::now();
        let processed = media.process(&heard)?;
        front_end.push(started.elapsed().as_secs_f64());
        let inputs: Vec<&EncoderInput> = processed.inputs.iter().collect();
        let started = Instant::now();
        let encoded = encoder.encode(&inputs)?;
        encoding.push(started.elapsed().as_secs_f64());
        tokens = encoded.iter().map(|rows| rows.dim(0).unwrap_or(0)).sum();
    }
    println!("{{\"front_end\": {front_end:?}, \"encoder\": {encoding:?}, \"tokens\": {tokens}}}");
    Ok(())
}
