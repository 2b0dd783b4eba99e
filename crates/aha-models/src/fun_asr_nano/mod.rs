//! Fun-ASR-Nano (0.8B): Qwen3's decoder behind the encoder of SenseVoice, released as a PyTorch file.
//!
//! Reference: `FunASRNano` of the package funasr; technical report arXiv 2509.12508.

mod config;
mod encoder;
mod processor;
mod sanm;

use crate::audio::recogniser;
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::qwen3::Qwen3Config;
use crate::registry::Family;
use aha_engine::template::ChatTemplate;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, ProcessorError, Task};
use aha_media::audio::Cmvn;
use aha_nn::weights::{NameMap, Weights};
use processor::CHAT_TEMPLATE;

pub use config::FunAsrConfig;
pub use encoder::AudioEncoder;
pub use processor::{FunAsrMedia, FunAsrTranscriber};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "fun_asr_nano",
    task: Task::Transcribe,
    architectures: &[],
    // `model` of config.yaml.
    model_types: &["FunASRNano"],
    gguf_architectures: &[],
    load,
};

/// Timestamps need these; a transcript does not.
const IGNORABLE: &[&str] = &["ctc_decoder.*", "ctc.*", "llm.lm_head.weight"];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let config: FunAsrConfig = checkpoint.config_keys()?;
    let language_model = language_model(checkpoint, &config)?;
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = decoder(&language_model, &weights)?;
    let encoder = audio_encoder(&config, &weights)?;
    weights.finish(IGNORABLE)?;
    let width = config.audio_adaptor_conf.llm_dim;
    if width != decoder.hidden_size() {
        let reason = format!(
            "{width} is not the {} of the language model",
            decoder.hidden_size()
        );
        return Err(LoadError::config("audio_adaptor_conf.llm_dim", reason));
    }
    let mut loaded = recogniser(
        &language_model,
        Box::new(decoder),
        Box::new(encoder),
        media_processor(checkpoint, config)?,
        FunAsrTranscriber,
    )?;
    if let LoadedModel::Text(text) = &mut loaded {
        // Qwen3's own template is beside the tokenizer, and is not the one that the model was trained with.
        let template = ChatTemplate::from_text(CHAT_TEMPLATE, "the template of Fun-ASR")
            .map_err(ProcessorError::from)?;
        text.processor = text.processor.clone().with_template(template);
    }
    Ok(loaded)
}

/// The folder with the language model's configuration and tokenizer.
pub fn language_model(
    checkpoint: &Checkpoint,
    config: &FunAsrConfig,
) -> Result<Checkpoint, LoadError> {
    let name = &config.llm_conf.init_param_path;
    Checkpoint::open(&checkpoint.inner_path("llm_conf.init_param_path", name)?)
}

/// Loads the tensors of the language model alone.
pub fn decoder(language_model: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config: Qwen3Config = language_model.config(Qwen3Config::from_gguf)?;
    let llm = weights.pp("llm");
    Decoder::load_at(&llm.pp("model"), &llm.pp("lm_head"), config.decoder()?)
}

/// Loads the tensors of encoder and adaptor alone.
pub fn audio_encoder(config: &FunAsrConfig, weights: &Weights) -> Result<AudioEncoder, LoadError> {
    AudioEncoder::load(weights, config)
}

/// How recordings come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
    config: FunAsrConfig,
) -> Result<impl Fn(&Tokenizer) -> Result<FunAsrMedia, LoadError> + use<>, LoadError> {
    const KEY: &str = "frontend_conf.cmvn_file";
    let cmvn = match &config.frontend_conf.cmvn_file {
        None => None,
        Some(file) => {
            let text = checkpoint.inner_text(KEY, file)?;
            let cmvn = Cmvn::from_kaldi_nnet(&text);
            Some(cmvn.map_err(|error| LoadError::config(KEY, error.to_string()))?)
        }
    };
    Ok(move |tokenizer: &Tokenizer| FunAsrMedia::new(&config, cmvn.clone(), tokenizer))
}
