//! `aha::load`: from a name to a model that answers.

use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::resolve::{Checkpoint, at_path, resolve};
use aha_engine::{EngineOptions, Service, Task, total_memory};
use aha_models::checkpoint::quantized_type;
use aha_models::export::Export;
use aha_models::{Family, LoadError, LoadOptions};
use aha_nn::weights::{Catalog, DtypeRequest, QuantRequest, Quantization};
use candle_core::Device;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Begins to load the model that `name` means: a checkpoint's folder, a GGUF file, a hub id or an
/// alias of a model on this disk. Nothing happens before [`Loader::build`].
///
/// ```
/// # fn main() -> aha::Result<()> {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/smol");
/// let model = aha::load(path)
///     .device(aha::DeviceChoice::Cpu)
///     .dtype(aha::Dtype::F32)
///     .context_length(512)
///     .build()?;
/// assert_eq!(model.name(), "smol");
/// assert_eq!(model.context_length(), Some(512));
/// # Ok(())
/// # }
/// ```
pub fn load(name: impl Into<String>) -> Loader {
    Loader {
        name: name.into(),
        weights: None,
        device: DeviceChoice::Auto,
        dtype: DtypeRequest::Auto,
        quant: None,
        engine: EngineOptions::default(),
        progress: None,
        note: None,
        task: None,
    }
}

type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;
type Note = Arc<dyn Fn(&str) + Send + Sync>;

/// Settings of a model that is about to be loaded; made by [`load`].
#[derive(Clone)]
#[must_use = "nothing is loaded before `build`"]
pub struct Loader {
    name: String,
    weights: Option<PathBuf>,
    device: DeviceChoice,
    dtype: DtypeRequest,
    quant: Option<QuantRequest>,
    engine: EngineOptions,
    progress: Option<Progress>,
    note: Option<Note>,
    task: Option<Task>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("name", &self.name)
            .field("weights", &self.weights)
            .field("device", &self.device)
            .field("dtype", &self.dtype)
            .field("quant", &self.quant)
            .field("task", &self.task)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Loads the files at `path`; the name that [`load`] was given is then only a name.
    pub fn weights(mut self, path: impl Into<PathBuf>) -> Self {
        self.weights = Some(path.into());
        self
    }

    /// Where to compute; by default the best device of this build and machine.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// What the model shall be for, where its files and name do not tell, or tell something else: releases of chat
    /// models, embedders and rerankers often share one architecture.
    pub fn task(mut self, task: Task) -> Self {
        self.task = Some(task);
        self
    }

    /// In which precision; by default the checkpoint's, as far as the device computes it well.
    pub fn dtype(mut self, dtype: DtypeRequest) -> Self {
        self.dtype = dtype;
        self
    }

    /// Quantises the matrices of language models while they load, on the CPU; by default they are kept as
    /// [`dtype`](Self::dtype) says. With [`Quant::Auto`](QuantRequest::Auto) only where the memory is short; see
    /// [`on_note`](Self::on_note).
    pub fn quant(mut self, quant: QuantRequest) -> Self {
        self.quant = Some(quant);
        self
    }

    /// Called with a sentence about what the loader decided in the user's place; by default it goes to the log.
    pub fn on_note(mut self, note: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.note = Some(Arc::new(note));
        self
    }

    /// Most tokens that prompt and answer may have together; the model's own limit stays.
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.engine.context_length = Some(tokens);
        self
    }

    /// Tokens that the cache of all requests holds; by default what a part of the free memory holds.
    pub fn cache_tokens(mut self, tokens: usize) -> Self {
        self.engine.cache_tokens = Some(tokens);
        self
    }

    /// Requests that run at once.
    pub fn max_sequences(mut self, sequences: usize) -> Self {
        self.engine.max_sequences = sequences;
        self
    }

    /// All sizes of the engine at once.
    pub fn engine_options(mut self, options: EngineOptions) -> Self {
        self.engine = options;
        self
    }

    /// Called while weights load, with the bytes done and the bytes in all.
    pub fn on_progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Finds the files without loading them.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn locate(&self) -> Result<Checkpoint> {
        let Some(path) = &self.weights else {
            return resolve(&self.name);
        };
        if !path.exists() {
            return Err(Error::NoSuchPath { path: path.clone() });
        }
        let release = aha_models::releases::find(&self.name);
        let name = if self.name.is_empty() {
            at_path(path).name
        } else {
            self.name.clone()
        };
        Ok(Checkpoint {
            name,
            path: path.clone(),
            release,
        })
    }

    /// The family of the model, which tells what it is for, without loading it.
    ///
    /// # Errors
    /// As [`Loader::locate`], and when the checkpoint is of no known architecture or of none with the task asked for.
    pub fn family(&self) -> Result<&'static Family> {
        let checkpoint = aha_models::Checkpoint::open(&self.locate()?.path)?;
        Ok(Family::of(&checkpoint, &self.naming())?)
    }

    /// What a GGUF file of the model holds, with its matrices quantised; see [`Export::write`]. Families that
    /// have a place in the format are `llama`, `qwen3` and `lfm2`.
    ///
    /// # Errors
    /// As [`Loader::family`], and when the format cannot hold the model or its matrices are quantised already.
    pub fn export(&self, recipe: Quantization) -> Result<Export> {
        let checkpoint = aha_models::Checkpoint::open(&self.locate()?.path)?;
        Ok(Export::plan(&checkpoint, recipe, &self.naming())?)
    }

    /// The options that tell what the model is for.
    fn naming(&self) -> LoadOptions {
        LoadOptions {
            task: self.task,
            name: Some(self.name.clone()).filter(|name| !name.is_empty()),
            ..LoadOptions::default()
        }
    }

    /// Refuses wishes that contradict each other before anything is opened for them.
    fn check_quant(&self, path: &Path) -> Result<()> {
        if self.quant.is_none() || matches!(self.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
            return Ok(());
        }
        let device = self.device;
        Err(LoadError::Quantize {
            path: path.to_owned(),
            reason: format!(
                "quantising while loading works on the CPU only, not on {device}: leave `--device` away, or write a GGUF file with `aha quantize` first"
            ),
        }
        .into())
    }

    /// The recipe for the matrices, if they are quantised.
    fn quantization(&self, path: &Path, device: &Device) -> Result<Option<Quantization>> {
        let auto = match self.quant {
            None => return Ok(None),
            Some(QuantRequest::Recipe(recipe)) => return Ok(Some(recipe)),
            Some(auto @ QuantRequest::Auto) => auto,
        };
        let catalog = Catalog::open(path).map_err(LoadError::from)?;
        let (recipe, why) = if !device.is_cpu() {
            let why = "auto: weights are kept as stored, as always on accelerators";
            (None, why.to_owned())
        } else if let Some(found) = quantized_type(&catalog) {
            (
                None,
                format!("auto: weights are quantised already ({found})"),
            )
        } else {
            auto.decide(catalog.elements(), catalog.total_bytes(), total_memory())
        };
        match &self.note {
            Some(note) => note(&why),
            None => tracing::info!("{why}"),
        }
        Ok(recipe)
    }

    /// Loads the model and starts its engine. Blocks until it can answer.
    ///
    /// # Errors
    /// [`Error`] says whether the model was not found, the device not usable, the checkpoint
    /// faulty or the memory too small.
    pub fn build(self) -> Result<Model> {
        let checkpoint = self.locate()?;
        let started = Instant::now();
        self.check_quant(&checkpoint.path)?;
        let device = self.device.open()?;
        let options = LoadOptions {
            device: device.clone(),
            dtype: self.dtype,
            quant: self.quantization(&checkpoint.path, &device)?,
            progress: self.progress.clone(),
            ..self.naming()
        };
        // A vocabulary is read by way of some copies, and weights may be.
        let service = aha_kernels::giving_back_memory(|| {
            let loaded = aha_models::load(&checkpoint.path, &options)?;
            Service::start(loaded, self.engine).map_err(Error::from)
        })?;
        tracing::info!(
            "{} is loaded from {} in {:.2} s",
            checkpoint.name,
            checkpoint.path.display(),
            started.elapsed().as_secs_f64()
        );
        Ok(Model::new(checkpoint, device, service))
    }
}
