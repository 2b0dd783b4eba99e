//! Checkpoints as quantised GGUF files, which llama.cpp and its relatives read, too.
//!
//! A file says and holds what this crate reads back: the recipes, the names and the order of rows are those of loading.
//! So a model answers alike from the file and from the checkpoint that is quantised while it loads.

mod metadata;

use crate::checkpoint::{Checkpoint, Format, LoadOptions, quantized_type};
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use crate::registry::Family;
use crate::{lfm2, llama, qwen3};
use aha_nn::weights::gguf::{GgufWriter, NewTensor, Value};
use aha_nn::weights::{
    Catalog, LanguagePart, LoadedTensor, MatrixRole, NameMap, QuantReport, Quantization,
    StoredType, Transform,
};
use std::path::Path;

/// What a family says of a checkpoint that becomes a GGUF file.
#[derive(Debug)]
pub(crate) struct ExportModel {
    /// `general.architecture`.
    pub(crate) architecture: &'static str,
    /// From the names in the checkpoint to those of the format. Rows that loading puts in order from there are put out of
    /// order to there.
    pub(crate) names: NameMap,
    /// Keys of the architecture's own, which count before those of all decoders.
    pub(crate) keys: Vec<(&'static str, Value)>,
    /// The architecture's name for its pre-tokenizer, where it has one.
    pub(crate) pre: Option<&'static str>,
    /// All other hyper-parameters.
    pub(crate) decoder: DecoderConfig,
}

type Describe = fn(&Checkpoint) -> Result<ExportModel, LoadError>;

/// Families that can be written, by their slugs.
const FAMILIES: [(&str, Describe); 3] = [
    (llama::FAMILY.slug, llama::export),
    (qwen3::FAMILY.slug, qwen3::export),
    (lfm2::FAMILY.slug, lfm2::export),
];

/// A GGUF file that can be written.
#[derive(Debug)]
pub struct Export {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Planned>,
    report: QuantReport,
    source_bytes: u64,
}

#[derive(Debug)]
struct Planned {
    info: NewTensor,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A tensor of the checkpoint.
    Stored(LoadedTensor),
    /// Values that the checkpoint has in its configuration.
    Computed(Vec<f32>),
}

impl Export {
    /// Decides what the file of `checkpoint` holds; `options` tell its name and what it is for. No tensor is read yet.
    ///
    /// # Errors
    /// [`LoadError::Export`] when the format cannot hold the model; [`LoadError::Quantize`] when its matrices are quantised
    /// already; faults of the checkpoint.
    pub fn plan(
        checkpoint: &Checkpoint,
        recipe: Quantization,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let family = Family::of(checkpoint, options)?;
        let Some((_, describe)) = FAMILIES.iter().find(|(slug, _)| *slug == family.slug) else {
            return Err(LoadError::Export {
                path: checkpoint.path().to_owned(),
                reason: format!(
                    "the family {} cannot be written as GGUF; those that can are {}",
                    family.slug,
                    FAMILIES.map(|(slug, _)| slug).join(", ")
                ),
            });
        };
        let catalog = match checkpoint.format() {
            Format::Folder { .. } => Catalog::open(checkpoint.path())?,
            Format::Gguf(file) => file.catalog().clone(),
        };
        if let Some(found) = quantized_type(&catalog) {
            return Err(LoadError::Quantize {
                path: checkpoint.path().to_owned(),
                reason: format!(
                    "its matrices are quantised already ({found}), and a second time would lose more: take the original checkpoint or a file in F32, F16 or BF16"
                ),
            });
        }
        let mut plan = Plan {
            checkpoint,
            catalog: &catalog,
            recipe,
            tensors: Vec::new(),
            report: QuantReport::default(),
        };
        let metadata = match checkpoint.format() {
            Format::Folder { .. } => {
                let model = describe(checkpoint)?;
                plan.add_release(&model)?;
                metadata::of_folder(checkpoint, &model, recipe, options.name.as_deref())?
            }
            Format::Gguf(file) => {
                plan.add_gguf();
                metadata::of_gguf(&file.metadata, recipe)
            }
        };
        Ok(Self {
            metadata,
            tensors: plan.tensors,
            report: plan.report,
            source_bytes: catalog.total_bytes(),
        })
    }

    /// How many matrices become what.
    pub fn report(&self) -> &QuantReport {
        &self.report
    }

    /// Writes the file at `path`, tensor by tensor. `go_on` is told the bytes read of all before each; when it says no, the
    /// file is left incomplete and the result is false.
    ///
    /// # Errors
    /// [`LoadError::Weights`] when a tensor cannot be read or quantised, or the file cannot be written.
    pub fn write(
        &self,
        path: &Path,
        mut go_on: impl FnMut(u64, u64) -> bool,
    ) -> Result<bool, LoadError> {
        let infos = self.tensors.iter().map(|tensor| tensor.info.clone());
        let mut writer = GgufWriter::create(path, &self.metadata, infos.collect())?;
        let mut done = 0;
        for Planned { info, source } in &self.tensors {
            if !go_on(done, self.source_bytes) {
                return Ok(false);
            }
            match source {
                Source::Computed(values) => writer.tensor(&f32_bytes(values))?,
                Source::Stored(tensor) => {
                    if info.stored == tensor.stored() {
                        writer.tensor(&tensor.bytes()?)?;
                    } else if info.stored.is_quantized() {
                        writer.tensor(&tensor.to_blocks(info.stored)?)?;
                    } else {
                        writer.tensor(&f32_bytes(&tensor.to_f32()?))?;
                    }
                    // What was written is not read again.
                    tensor.release();
                    done += tensor.byte_len() as u64;
                }
            }
        }
        writer.finish()?;
        Ok(true)
    }
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// What is being decided.
struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    catalog: &'a Catalog,
    recipe: Quantization,
    tensors: Vec<Planned>,
    report: QuantReport,
}

impl Plan<'_> {
    /// The tensors of a release's folder under their names in the format.
    fn add_release(&mut self, model: &ExportModel) -> Result<(), LoadError> {
        let tied = model.decoder.tie_word_embeddings;
        if let Some(divisors) = metadata::rope_divisors(&model.decoder)? {
            self.tensors.push(Planned {
                info: NewTensor {
                    name: metadata::ROPE_DIVISORS.to_owned(),
                    stored: StoredType::F32,
                    shape: vec![divisors.len()],
                },
                source: Source::Computed(divisors),
            });
        }
        for tensor in self
            .catalog
            .names()
            .filter_map(|name| self.catalog.load(name))
        {
            let own = tensor.name().to_owned();
            // Neither is needed: a copy of the embedding, and what the configuration tells, too.
            if tied && own == "lm_head.weight" || own.ends_with(".rotary_emb.inv_freq") {
                continue;
            }
            let (mut name, mut transform) = model.names.resolve(&own);
            if name == own {
                // Checkpoints that were saved without a head lack the prefix.
                let prefixed = format!("model.{own}");
                (name, transform) = model.names.resolve(&prefixed);
                if name == prefixed {
                    return Err(LoadError::Export {
                        path: self.checkpoint.path().to_owned(),
                        reason: format!(
                            "the tensor `{own}` has no name in files of the architecture {}",
                            model.architecture
                        ),
                    });
                }
            }
            let tensor = match transform {
                Transform::None => tensor,
                Transform::UnpermuteRope { heads } => tensor.with_heads_interleaved(heads)?,
            };
            self.add(name, tensor, !tied);
        }
        Ok(())
    }

    /// The tensors of a GGUF file, which keep their names.
    fn add_gguf(&mut self) {
        let has_output = self.catalog.contains(OUTPUT);
        for tensor in self
            .catalog
            .names()
            .filter_map(|name| self.catalog.load(name))
        {
            self.add(tensor.name().to_owned(), tensor, has_output);
        }
    }

    fn add(&mut self, name: String, tensor: LoadedTensor, has_output: bool) {
        // The format leaves out dimensions of 1, as filters of depthwise convolutions have them.
        let mut shape = tensor.shape().to_vec();
        if shape.len() > 2 {
            shape.retain(|&size| size != 1);
        }
        let stored = match (part_of(&name, has_output), shape.as_slice()) {
            (Some(part), [_, cols]) => self.matrix_type(part, &name, &tensor, *cols),
            // Norms, biases and filters take little room, and readers want them exact.
            _ => StoredType::F32,
        };
        self.tensors.push(Planned {
            info: NewTensor {
                name,
                stored,
                shape: shape.clone(),
            },
            source: Source::Stored(tensor.with_shape(&shape)),
        });
    }

    fn matrix_type(
        &mut self,
        part: LanguagePart,
        name: &str,
        tensor: &LoadedTensor,
        cols: usize,
    ) -> StoredType {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let role = MatrixRole::of(part, module, tensor.name(), self.catalog);
        let choice = self.recipe.choose(role, cols);
        self.report.count(choice);
        choice.block_type().unwrap_or(match tensor.stored() {
            kept @ (StoredType::F16 | StoredType::Bf16) => kept,
            _ => StoredType::F32,
        })
    }
}

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// The part of the model that a matrix of this name belongs to; none for what is no matrix.
fn part_of(name: &str, has_output: bool) -> Option<LanguagePart> {
    match name {
        OUTPUT => Some(LanguagePart::Output),
        EMBEDDING if has_output => Some(LanguagePart::Embedding),
        EMBEDDING => Some(LanguagePart::Output),
        _ => {
            let in_layer = name.starts_with("blk.") && name.ends_with(".weight");
            (in_layer && !name.ends_with(".conv.weight")).then_some(LanguagePart::Layers)
        }
    }
}
