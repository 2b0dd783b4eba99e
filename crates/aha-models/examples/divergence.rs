//! What quantisation changes in a model's predictions: `cargo run --release -p aha-models --example divergence -- FILE`.
//!
//! FILE is a GGUF file of the Llama architecture. Its weights as f32 are what all else is held to: at every token of a
//! fixed text, how far the distribution of the next one is from theirs (Kullback-Leibler divergence in nats).
#![allow(clippy::print_stdout, reason = "the table is the result")]

use aha_engine::Generator;
use aha_engine::tokenizer::Tokenizer;
use aha_models::{Checkpoint, LoadOptions, llama};
use aha_nn::batch::{Batch, SequenceSlice};
use aha_nn::cache::Cache;
use aha_nn::weights::gguf::{GgufFile, GgufWriter, NewTensor};
use aha_nn::weights::{LoadedTensor, Quantization, StoredTensor, StoredType};
use candle_core::{D, DType, Device, Tensor};
use std::error::Error;
use std::path::{Path, PathBuf};

const TEXT: &str = include_str!("divergence.txt");
const BLOCK: usize = 16;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let Some(path) = std::env::args().nth(1).map(PathBuf::from) else {
        return Err("give a GGUF file of the Llama architecture".into());
    };
    let file = GgufFile::open(&path)?;
    let ids = Tokenizer::from_gguf(&file.metadata)?.encode(TEXT, true)?;
    let copy = std::env::temp_dir().join(format!("aha-divergence-{}.gguf", std::process::id()));
    let measured = measure(&file, &ids, &copy);
    let _ = std::fs::remove_file(&copy);
    measured
}

fn measure(file: &GgufFile, ids: &[u32], copy: &Path) -> Outcome {
    write_f32(file, copy, LoadedTensor::to_f32)?;
    let baseline = log_probabilities(copy, None, ids)?;
    println!(
        "{} tokens; perplexity of the baseline {:.2}\n",
        ids.len(),
        perplexity(&baseline, ids)?
    );
    println!("| weights | KL divergence, mean | largest | same first choice | perplexity |");
    println!("|---|---:|---:|---:|---:|");
    for recipe in Quantization::ALL {
        let found = log_probabilities(copy, Some(recipe), ids)?;
        row(&format!("`--quant {recipe}`"), &baseline, &found, ids)?;
    }
    // Types by themselves. Blocks go on over the ends of rows, which need not be whole numbers of them.
    for to in [
        StoredType::Q8_0,
        StoredType::Q6K,
        StoredType::Q5K,
        StoredType::Q4K,
        StoredType::Q4_0,
    ] {
        write_f32(file, copy, |tensor| {
            let values = tensor.to_f32()?;
            if tensor.shape().len() < 2 || values.len() % to.block_size() != 0 {
                return Ok(values);
            }
            let flat = tensor.clone().with_shape(&[values.len()]);
            let blocks = flat.to_blocks(to)?;
            let quantized = StoredTensor {
                name: tensor.name().to_owned(),
                stored: to,
                shape: vec![values.len()],
                bytes: &blocks,
            };
            quantized.to_f32()
        })?;
        let found = log_probabilities(copy, None, ids)?;
        row(&format!("all matrices {to}"), &baseline, &found, ids)?;
    }
    Ok(())
}

/// The same file with all values in f32, as `values` gives them.
fn write_f32(
    file: &GgufFile,
    path: &Path,
    values: impl Fn(&LoadedTensor) -> aha_nn::weights::Result<Vec<f32>>,
) -> Outcome {
    let metadata: Vec<_> = file
        .metadata
        .keys()
        .filter_map(|key| Some((key.to_owned(), file.metadata.get(key)?.clone())))
        .collect();
    let catalog = file.catalog();
    let tensors: Vec<_> = catalog
        .names()
        .filter_map(|name| catalog.load(name))
        .collect();
    let infos = tensors.iter().map(|tensor| NewTensor {
        name: tensor.name().to_owned(),
        stored: StoredType::F32,
        shape: tensor.shape().to_vec(),
    });
    let mut writer = GgufWriter::create(path, &metadata, infos.collect())?;
    for tensor in &tensors {
        let bytes: Vec<u8> = values(tensor)?
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        writer.tensor(&bytes)?;
    }
    Ok(writer.finish()?)
}

/// Logarithms of the probabilities of the next token behind each, `[tokens, vocab_size]`.
fn log_probabilities(path: &Path, quant: Option<Quantization>, ids: &[u32]) -> Outcome<Tensor> {
    let options = LoadOptions {
        quant,
        ..LoadOptions::default()
    };
    let decoder = llama::decoder(&Checkpoint::open(path)?, &options)?;
    let sequence = SequenceSlice {
        query_start: 0,
        query_len: ids.len(),
        context_len: ids.len(),
        prompt_len: ids.len(),
        blocks: (0..ids.len().div_ceil(BLOCK) as u32).collect(),
        state_slot: 0,
        axes: None,
    };
    let (blocks, device) = (sequence.blocks.len(), Device::Cpu);
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let batch = Batch::new(ids, vec![sequence], &rows, BLOCK, &device)?;
    let mut cache = Cache::new(&decoder.cache_spec(), blocks, BLOCK, 1, &device)?;
    let logits = decoder.forward(&batch, &mut cache)?.to_dtype(DType::F32)?;
    Ok(candle_nn::ops::log_softmax(&logits, D::Minus1)?)
}

fn row(name: &str, baseline: &Tensor, found: &Tensor, ids: &[u32]) -> Outcome {
    let divergence = (baseline.exp()? * (baseline - found)?)?.sum(D::Minus1)?;
    let divergence: Vec<f32> = divergence.to_vec1()?;
    let mean = divergence
        .iter()
        .map(|&value| f64::from(value))
        .sum::<f64>()
        / ids.len() as f64;
    let largest = divergence.iter().copied().fold(0.0, f32::max);
    let same = baseline
        .argmax(D::Minus1)?
        .eq(&found.argmax(D::Minus1)?)?
        .to_dtype(DType::F32)?
        .mean_all()?
        .to_scalar::<f32>()?;
    println!(
        "| {name} | {mean:.5} | {largest:.3} | {:.1} % | {:.2} |",
        same * 100.0,
        perplexity(found, ids)?
    );
    Ok(())
}

/// How many tokens the model hesitates between, on average over the text.
fn perplexity(log_probabilities: &Tensor, ids: &[u32]) -> Outcome<f64> {
    let next = Tensor::new(&ids[1..], &Device::Cpu)?.unsqueeze(1)?;
    let behind = log_probabilities.narrow(0, 0, ids.len() - 1)?;
    let mean = behind.gather(&next, 1)?.mean_all()?.to_scalar::<f32>()?;
    Ok(f64::from(-mean).exp())
}
