//! A checkpoint on disk: a folder in the release's layout, or one GGUF file.

use aha_engine::{GenerationDefaults, Task};
use aha_nn::weights::Weights;
use aha_nn::weights::gguf::{GgufFile, Metadata, Value as GgufValue};
use aha_nn::weights::{
    Catalog, DtypeRequest, NameMap, Placement, Quantization, StoredType, Unpacked,
};
use candle_core::Device;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::error::LoadError;

/// Called while weights load, with the bytes done and the bytes in all.
pub type ProgressCallback = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Where and how a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// Where the tensors go.
    pub device: Device,
    /// In which precision.
    pub dtype: DtypeRequest,
    /// How the matrices of language models are quantised while they load; none keeps them in that precision.
    pub quant: Option<Quantization>,
    /// Told about the progress of loading.
    pub progress: Option<ProgressCallback>,
    /// What the model shall be for; by default what the checkpoint says, see [`crate::task`].
    pub task: Option<Task>,
    /// What the user calls the model: names of releases tell tasks that configurations leave open.
    pub name: Option<String>,
    /// Where matrices are listed that may stay in their files for now; without, all are packed while they load.
    pub unpacked: Option<Unpacked>,
}

impl Default for LoadOptions {
    /// On the CPU, in the precision that the checkpoint and the device agree on.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DtypeRequest::Auto,
            quant: None,
            progress: None,
            task: None,
            name: None,
            unpacked: None,
        }
    }
}

impl std::fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("device", &self.device)
            .field("dtype", &self.dtype)
            .field("quant", &self.quant)
            .finish()
    }
}

/// How the checkpoint is kept.
#[derive(Debug, Clone)]
pub enum Format {
    /// A folder with config.json (or config.yaml), a tokenizer and weights.
    Folder {
        /// The parsed configuration.
        config: Value,
    },
    /// One GGUF file, which holds everything.
    Gguf(Arc<GgufFile>),
}

/// An opened checkpoint whose weights are not loaded yet.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
}

const CONFIG: &str = "config.json";
/// The same of releases that FunASR reads.
const YAML_CONFIG: &str = "config.yaml";
/// Where configurations of several models in one keep the language model's.
const TEXT_CONFIG: &str = "text_config";
/// Control tokens that end an answer wherever they are. A GGUF has room for one end of sequence; of a release that
/// lists the tokenizer's and the chat's, converters keep either, and without the other answers would run on.
const END_TEXTS: [&str; 3] = ["</s>", "<|im_end|>", "<|endoftext|>"];
/// No released configuration comes near; a larger file is not one.
const LARGEST_JSON: u64 = 64 << 20;

impl Checkpoint {
    /// Opens a checkpoint folder, a folder that holds one GGUF file, or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let not_one = |reason: &str| LoadError::NotACheckpoint {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        if path.is_file() {
            if path
                .extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
            {
                return Self::open_gguf(path);
            }
            return Err(not_one(
                "it is a file, but not a .gguf; give the folder that holds config.json",
            ));
        }
        if !path.is_dir() {
            return Err(not_one("there is no such file or folder"));
        }
        // GGUF repositories often carry the source's config.json beside the file that has everything.
        let ggufs = files_with_extension(path, "gguf")?;
        let only_gguf = ggufs.len() == 1 && files_with_extension(path, "safetensors")?.is_empty();
        if path.join(CONFIG).is_file() && !only_gguf {
            let config = read_json(&path.join(CONFIG))?;
            refuse_quantised(&config, &path.join(CONFIG))?;
            return Ok(Self {
                path: path.to_owned(),
                format: Format::Folder { config },
            });
        }
        match ggufs.as_slice() {
            [] if path.join(YAML_CONFIG).is_file() => Ok(Self {
                path: path.to_owned(),
                format: Format::Folder {
                    config: read_yaml(&path.join(YAML_CONFIG))?,
                },
            }),
            [] => Err(not_one(
                "the folder holds neither config.json nor a .gguf file",
            )),
            [file] => Self::open_gguf(file),
            several => Err(not_one(&format!(
                "the folder holds {} .gguf files; name one of them: {}",
                several.len(),
                several
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, LoadError> {
        let file = GgufFile::open(path)?;
        if file
            .metadata
            .unsigned("split.count")?
            .is_some_and(|count| count > 1)
        {
            return Err(LoadError::config(
                "split.count",
                "the GGUF is one of several parts: join them with llama-gguf-split --merge first",
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            format: Format::Gguf(Arc::new(file)),
        })
    }

    fn config_path(&self) -> PathBuf {
        let json = self.path.join(CONFIG);
        let yaml = self.path.join(YAML_CONFIG);
        if !json.is_file() && yaml.is_file() {
            return yaml;
        }
        json
    }

    /// The path of a file or folder inside the checkpoint that `key` of the configuration names.
    pub fn inner_path(&self, key: &str, name: &str) -> Result<PathBuf, LoadError> {
        let inner = Path::new(name);
        let stays = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if name.is_empty() || !inner.components().all(stays) {
            let reason = format!("`{name}` is no path inside the checkpoint");
            return Err(LoadError::config(key, reason));
        }
        Ok(self.path.join(inner))
    }

    /// The text of such a file.
    pub fn inner_text(&self, key: &str, name: &str) -> Result<String, LoadError> {
        read_small(&self.inner_path(key, name)?)
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is kept.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The names by which the registry finds the family: `architectures` and `model_type` of config.json, or
    /// `general.architecture` of a GGUF.
    pub fn architecture(&self) -> Result<Architecture, LoadError> {
        match &self.format {
            Format::Folder { config } => {
                #[derive(Deserialize)]
                struct Names {
                    #[serde(default)]
                    architectures: Option<Vec<String>>,
                    model_type: Option<String>,
                    /// What VoxCPM calls it.
                    architecture: Option<String>,
                }
                let names: Names = parse(config, &self.config_path())?;
                // Its first release does not say what it is.
                let unnamed = || {
                    config
                        .get("dit_config")
                        .is_some()
                        .then(|| "voxcpm".to_owned())
                };
                Ok(Architecture::Config {
                    architectures: names.architectures.unwrap_or_default(),
                    model_type: names
                        .model_type
                        .or(names.architecture)
                        .or_else(unnamed)
                        .unwrap_or_default(),
                })
            }
            Format::Gguf(file) => {
                let name = file.metadata.text("general.architecture")?.ok_or_else(|| {
                    LoadError::config(
                        "general.architecture",
                        "the GGUF does not say what model it holds",
                    )
                })?;
                Ok(Architecture::Gguf(name.to_owned()))
            }
        }
    }

    /// The family's configuration: config.json read as `C`, or built from a GGUF's metadata and tensors.
    pub fn config<C: DeserializeOwned>(
        &self,
        from_gguf: impl FnOnce(&GgufFile) -> Result<C, LoadError>,
    ) -> Result<C, LoadError> {
        match &self.format {
            Format::Folder { config } => parse(config, &self.config_path()),
            Format::Gguf(file) => from_gguf(file),
        }
    }

    /// Other keys of config.json than a decoder's: what the parts besides the language model need. A GGUF has none.
    pub fn config_keys<C: DeserializeOwned>(&self) -> Result<C, LoadError> {
        self.config(|_| {
            Err(LoadError::config(
                "general.architecture",
                "GGUF files of this family hold the language model alone: take the release for other input than text",
            ))
        })
    }

    /// A JSON file beside config.json, if it is there.
    pub fn json<C: DeserializeOwned>(&self, file: &str) -> Result<Option<C>, LoadError> {
        let path = self.path.join(file);
        if !path.is_file() {
            return Ok(None);
        }
        parse(&read_json(&path)?, &path).map(Some)
    }

    /// As [`Checkpoint::config`], of the language model inside a release of several: the object `text_config` where
    /// there is one, else config.json itself.
    pub fn text_config<C: DeserializeOwned>(
        &self,
        from_gguf: impl FnOnce(&GgufFile) -> Result<C, LoadError>,
    ) -> Result<C, LoadError> {
        const TIED: &str = "tie_word_embeddings";
        let Format::Folder { config } = &self.format else {
            return self.config(from_gguf);
        };
        let Some(Value::Object(text)) = config.get(TEXT_CONFIG) else {
            return self.config(from_gguf);
        };
        let mut text = text.clone();
        // Some releases say it of the whole model only.
        if let (false, Some(tied)) = (text.contains_key(TIED), config.get(TIED)) {
            text.insert(TIED.to_owned(), tied.clone());
        }
        parse(&Value::Object(text), &self.config_path())
    }

    /// The view on the weights that layers load from; `names` maps the release's tensor names to a GGUF's.
    pub fn weights(&self, names: NameMap, options: &LoadOptions) -> Result<Weights, LoadError> {
        self.weights_named(NameMap::identity(), names, options)
    }

    /// The same for a release that has names of its own for what other families have too: `release` maps the common
    /// names to those of the release, `gguf` to a GGUF's.
    pub fn weights_named(
        &self,
        release: NameMap,
        gguf: NameMap,
        options: &LoadOptions,
    ) -> Result<Weights, LoadError> {
        let weights = match &self.format {
            Format::Folder { .. } => {
                Weights::from_catalog(Catalog::open(&self.path)?, release, Placement::cpu())
            }
            Format::Gguf(file) => Weights::from_gguf(file.clone(), gguf, Placement::cpu()),
        };
        self.place(weights, options)
    }

    /// The weights in the first of `files` that the folder holds, for releases that keep parts of a model apart (a
    /// codec) or have files of their own (`audiovae.safetensors`, else `audiovae.pth`).
    pub fn weights_of(&self, files: &[&str], options: &LoadOptions) -> Result<Weights, LoadError> {
        let file = files
            .iter()
            .map(|file| self.path.join(file))
            .find(|file| file.is_file())
            .ok_or_else(|| LoadError::NotACheckpoint {
                path: self.path.clone(),
                reason: format!("the folder holds none of: {}", files.join(", ")),
            })?;
        let catalog = Catalog::open(&file)?;
        let weights = Weights::from_catalog(catalog, NameMap::identity(), Placement::cpu());
        // Language models are in the main file.
        let as_stored = LoadOptions {
            quant: None,
            ..options.clone()
        };
        self.place(weights, &as_stored)
    }

    /// The weights where and in the precision that `options` ask for.
    fn place(&self, weights: Weights, options: &LoadOptions) -> Result<Weights, LoadError> {
        let stored = weights.catalog().main_type();
        let (placement, explanation) =
            Placement::resolve(options.dtype, &options.device, stored, options.quant);
        tracing::info!("{explanation}");
        let mut weights = weights.with_placement(placement);
        if let Some(unpacked) = &options.unpacked {
            weights = weights.with_unpacked(unpacked.clone());
        }
        if let Some(recipe) = options.quant {
            self.check_quantizable(weights.catalog(), options)?;
            weights = weights.with_quantization(recipe);
        }
        Ok(match &options.progress {
            Some(progress) => {
                let progress = progress.clone();
                weights.on_progress(move |done, total| progress(done, total))
            }
            None => weights,
        })
    }

    /// Refuses what quantising while loading cannot do, or would do twice.
    fn check_quantizable(&self, catalog: &Catalog, options: &LoadOptions) -> Result<(), LoadError> {
        let error = |reason: String| LoadError::Quantize {
            path: self.path.clone(),
            reason,
        };
        if options.dtype != DtypeRequest::Auto {
            let dtype = options.dtype;
            return Err(error(format!(
                "the precision {dtype} was asked for, too, and a matrix has only one: leave one of the two away"
            )));
        }
        if !options.device.is_cpu() {
            return Err(error(
                "quantising while loading works on the CPU only: choose that device, or write a GGUF file with `aha quantize` first".to_owned(),
            ));
        }
        match quantized_type(catalog) {
            Some(found) => Err(error(format!(
                "its matrices are quantised already ({found}), and a second time would lose more: load it as it is, or take the original checkpoint"
            ))),
            None => Ok(()),
        }
    }

    /// What generation_config.json says of sampling, as a GGUF file says it.
    pub(crate) fn sampling_keys(&self) -> Result<Vec<(String, GgufValue)>, LoadError> {
        let own: GenerationConfig = self.json("generation_config.json")?.unwrap_or_default();
        let float = |value: Option<f32>| value.map(|value| GgufValue::Float(value.into()));
        let keys = [
            ("temp", float(own.temperature)),
            (
                "top_k",
                own.top_k.map(|top_k| GgufValue::Signed(top_k.max(0))),
            ),
            ("top_p", float(own.top_p)),
            ("min_p", float(own.min_p)),
            ("penalty_repeat", float(own.repetition_penalty)),
        ];
        let keys = keys.into_iter();
        let known =
            keys.filter_map(|(name, value)| Some((format!("general.sampling.{name}"), value?)));
        Ok(known.collect())
    }

    /// What the checkpoint says about generation.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, LoadError> {
        match &self.format {
            Format::Folder { config } => {
                let path = self.path.join("generation_config.json");
                let own: GenerationConfig = if path.is_file() {
                    parse(&read_json(&path)?, &path)?
                } else {
                    GenerationConfig::default()
                };
                let eos = |config| -> Result<Option<OneOrMany>, LoadError> {
                    let keys: EosKey = parse(config, &self.config_path())?;
                    Ok(keys.eos_token_id)
                };
                let text = config.get(TEXT_CONFIG).map(eos).transpose()?.flatten();
                Ok(own.defaults(eos(config)?.or(text)))
            }
            Format::Gguf(file) => {
                let mut eos = Vec::new();
                for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
                    let id = file.metadata.unsigned(&format!("tokenizer.ggml.{key}"))?;
                    eos.extend(id.and_then(|id| u32::try_from(id).ok()));
                }
                eos.extend(control_tokens(&file.metadata, &END_TEXTS)?);
                let mut seen = HashSet::new();
                eos.retain(|id| seen.insert(*id));
                let own = GenerationConfig::from_gguf(&file.metadata)?;
                Ok(own.defaults(Some(OneOrMany::Many(eos))))
            }
        }
    }
}

/// A quantised type among the stored ones; none where all are plain numbers.
pub fn quantized_type(catalog: &Catalog) -> Option<StoredType> {
    catalog
        .names()
        .filter_map(|name| catalog.load(name))
        .map(|tensor| tensor.stored())
        .find(|stored| stored.is_quantized())
}

/// What a checkpoint calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Architecture {
    /// From config.json.
    Config {
        /// `architectures`, most specific first.
        architectures: Vec<String>,
        /// `model_type`.
        model_type: String,
    },
    /// `general.architecture` of a GGUF.
    Gguf(String),
}

/// One id or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct EosKey {
    eos_token_id: Option<OneOrMany>,
}

/// The keys of generation_config.json that sampling takes its defaults from.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    eos_token_id: Option<OneOrMany>,
}

impl GenerationConfig {
    /// What newer converters take over from generation_config.json.
    fn from_gguf(metadata: &Metadata) -> Result<Self, LoadError> {
        let float = |name: &str| -> Result<Option<f32>, LoadError> {
            let value = metadata.float(&format!("general.sampling.{name}"))?;
            Ok(value.map(|value| value as f32))
        };
        Ok(Self {
            temperature: float("temp")?,
            top_k: metadata
                .unsigned("general.sampling.top_k")?
                .and_then(|top_k| i64::try_from(top_k).ok()),
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repetition_penalty: float("penalty_repeat")?,
            eos_token_id: None,
        })
    }

    fn defaults(self, model_eos: Option<OneOrMany>) -> GenerationDefaults {
        let mut defaults = GenerationDefaults {
            eos_token_ids: self
                .eos_token_id
                .or(model_eos)
                .map(OneOrMany::into_vec)
                .unwrap_or_default(),
            ..GenerationDefaults::default()
        };
        let sampling = &mut defaults.sampling;
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        // Negative numbers and 0 are both in use for "off".
        sampling.top_k = self
            .top_k
            .map_or(sampling.top_k, |top_k| usize::try_from(top_k).unwrap_or(0));
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self
            .repetition_penalty
            .unwrap_or(sampling.repetition_penalty);
        defaults
    }
}

/// Ids of the control tokens in a GGUF that have one of `texts`.
fn control_tokens(metadata: &Metadata, texts: &[&str]) -> Result<Vec<u32>, LoadError> {
    const CONTROL: i64 = 3;
    let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let types = metadata.integers("tokenizer.ggml.token_type")?;
    Ok((0..)
        .zip(tokens.iter().zip(types.unwrap_or_default()))
        .filter(|(_, (text, kind))| *kind == CONTROL && texts.contains(&text.as_str()))
        .map(|(id, _)| id)
        .collect())
}

/// Checkpoints of other quantisers keep scales beside their matrices; without them the values mean nothing.
fn refuse_quantised(config: &Value, path: &Path) -> Result<(), LoadError> {
    let Some(settings) = config
        .get("quantization_config")
        .filter(|settings| !settings.is_null())
    else {
        return Ok(());
    };
    let method = settings
        .get("quant_method")
        .and_then(Value::as_str)
        .unwrap_or("an unnamed method");
    Err(LoadError::Json {
        path: path.to_owned(),
        field: "quantization_config".to_owned(),
        reason: format!(
            "the weights are quantised by {method}, which is not supported: take the original checkpoint or a GGUF file"
        ),
    })
}

fn files_with_extension(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, LoadError> {
    let io = |source| LoadError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path
            .extension()
            .is_some_and(|found| found.eq_ignore_ascii_case(extension))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn read_json(path: &Path) -> Result<Value, LoadError> {
    serde_json::from_str(&read_small(path)?).map_err(|error| malformed(path, error))
}

/// A YAML configuration, whose `model` is what JSON ones call `model_type`.
fn read_yaml(path: &Path) -> Result<Value, LoadError> {
    let mut config =
        crate::yaml::parse(&read_small(path)?).map_err(|error| malformed(path, error))?;
    if let Some(model) = config.get("model").cloned()
        && let Some(keys) = config.as_object_mut()
    {
        keys.entry("model_type").or_insert(model);
    }
    Ok(config)
}

/// A text of no more than a configuration's size.
fn read_small(path: &Path) -> Result<String, LoadError> {
    let io = |source| LoadError::Io {
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(io)?.len();
    if length > LARGEST_JSON {
        let reason = format!("{length} bytes is too large for a configuration");
        return Err(malformed(path, reason));
    }
    fs::read_to_string(path).map_err(io)
}

fn malformed(path: &Path, reason: impl ToString) -> LoadError {
    LoadError::Json {
        path: path.to_owned(),
        field: ".".to_owned(),
        reason: reason.to_string(),
    }
}

pub(crate) fn parse<T: DeserializeOwned>(value: &Value, path: &Path) -> Result<T, LoadError> {
    serde_path_to_error::deserialize(value).map_err(|error| LoadError::Json {
        path: path.to_owned(),
        field: error.path().to_string(),
        reason: error.inner().to_string(),
    })
}
