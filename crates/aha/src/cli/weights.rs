//! What a checkpoint weighs: for `aha show` and `aha bench`.

use super::failure::Outcome;
use aha::{Dtype, Quantization};
use aha_nn::weights::{Catalog, LanguagePart, MatrixRole, StoredType};
use std::collections::BTreeMap;
use std::path::Path;

/// Names of the table that a step reads single rows of, by format.
const EMBEDDINGS: [&str; 2] = ["embed_tokens.weight", "token_embd.weight"];
/// Names of the output head; where it is missing, the embedding takes its place.
const HEADS: [&str; 2] = ["lm_head.weight", "output.weight"];

/// Sizes of a checkpoint's tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightsSummary {
    pub(crate) tensors: usize,
    pub(crate) parameters: u64,
    pub(crate) bytes: u64,
    /// Bytes by type, the largest first.
    pub(crate) types: Vec<(StoredType, u64)>,
    /// The matrices that every step reads as a whole.
    read: Vec<Matrix>,
}

/// One matrix, as far as its size goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Matrix {
    role: MatrixRole,
    parameters: u64,
    cols: usize,
    bytes: u64,
}

impl Matrix {
    /// Bytes that it takes when it is quantised.
    fn quantized(&self, recipe: Quantization) -> u64 {
        let block_type = recipe.choose(self.role, self.cols).block_type();
        block_type.map_or(self.bytes, |kind| {
            self.parameters / kind.block_size() as u64 * kind.block_bytes() as u64
        })
    }
}

impl WeightsSummary {
    pub(crate) fn of(path: &Path) -> Outcome<Self> {
        let catalog = Catalog::open(path).map_err(aha::LoadError::from)?;
        let has_head = catalog
            .names()
            .any(|name| HEADS.iter().any(|head| name.ends_with(head)));
        let mut summary = Self {
            tensors: 0,
            parameters: 0,
            bytes: 0,
            types: Vec::new(),
            read: Vec::new(),
        };
        let mut types = BTreeMap::<StoredType, u64>::new();
        for tensor in catalog.names().filter_map(|name| catalog.load(name)) {
            let parameters: u64 = tensor.shape().iter().map(|&size| size as u64).product();
            let bytes = tensor.byte_len() as u64;
            summary.tensors += 1;
            summary.parameters += parameters;
            summary.bytes += bytes;
            *types.entry(tensor.stored()).or_default() += bytes;
            let embedding = EMBEDDINGS.iter().any(|name| tensor.name().ends_with(name));
            if let [_, .., cols] = *tensor.shape()
                && !(embedding && has_head)
            {
                let name = tensor.name();
                let part = if embedding || HEADS.iter().any(|head| name.ends_with(head)) {
                    LanguagePart::Output
                } else {
                    LanguagePart::Layers
                };
                let module = name.strip_suffix(".weight").unwrap_or(name);
                summary.read.push(Matrix {
                    role: MatrixRole::of(part, module, name, &catalog),
                    parameters,
                    cols,
                    bytes,
                });
            }
        }
        summary.types = types.into_iter().collect();
        summary
            .types
            .sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Ok(summary)
    }

    /// Bytes of weights that one step of generation has to read at this precision.
    pub(crate) fn bytes_per_step(&self, dtype: Dtype, recipe: Option<Quantization>) -> u64 {
        let bytes = |matrix: &Matrix| match (recipe, dtype) {
            (Some(recipe), _) => matrix.quantized(recipe),
            (None, Dtype::Auto) => matrix.bytes,
            (None, Dtype::F32) => matrix.parameters * 4,
            (None, Dtype::Bf16 | Dtype::F16) => matrix.parameters * 2,
        };
        self.read.iter().map(bytes).sum()
    }

    /// The type of most bytes.
    pub(crate) fn main_type(&self) -> &'static str {
        self.types
            .first()
            .map_or("none", |(stored, _)| stored.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(fixture: &str) -> WeightsSummary {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        WeightsSummary::of(&Path::new(root).join(fixture)).unwrap()
    }

    #[test]
    fn a_tied_embedding_is_read_as_the_head_and_an_untied_one_is_not() {
        // 537 tokens of 72 values; per layer q, k, v, o and three products of the MLP.
        let tied = summary("llama/smol");
        let layer = 72 * 72 * 2 + 72 * 24 * 2 + 72 * 144 * 3;
        let f32_bytes = tied.bytes_per_step(Dtype::F32, None);
        assert_eq!(f32_bytes, (3 * layer + 537 * 72) * 4);
        assert_eq!(tied.bytes_per_step(Dtype::Bf16, None) * 2, f32_bytes);
        assert!(tied.parameters * 4 > f32_bytes, "norms are no matrices");
        let untied = summary("qwen3/untied-yarn");
        let read = untied.bytes_per_step(Dtype::F32, None) / 4;
        assert!(untied.parameters - read > 10_000, "{untied:?}");
    }

    #[test]
    fn quantised_matrices_count_as_what_they_become() {
        // Rows of 64 values, or of 128: one byte and a sixteenth each; no recipe finds more in them.
        let untied = summary("qwen3/untied-yarn");
        let parameters = untied.bytes_per_step(Dtype::F32, None) / 4;
        for recipe in Quantization::ALL {
            let bytes = untied.bytes_per_step(Dtype::Auto, Some(recipe));
            assert!(bytes <= parameters * 34 / 32, "{recipe}: {bytes}");
        }
    }
}
