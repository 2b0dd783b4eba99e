//! What a checkpoint weighs: for `aha show` and `aha bench`.

use super::failure::Outcome;
use aha::Dtype;
use aha_nn::weights::{Catalog, StoredType};
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
    /// Parameters and bytes of the matrices that every step reads as a whole.
    read: (u64, u64),
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
            read: (0, 0),
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
            if tensor.shape().len() > 1 && !(embedding && has_head) {
                summary.read = (summary.read.0 + parameters, summary.read.1 + bytes);
            }
        }
        summary.types = types.into_iter().collect();
        summary
            .types
            .sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Ok(summary)
    }

    /// Bytes of weights that one step of generation has to read at this precision.
    pub(crate) fn bytes_per_step(&self, dtype: Dtype) -> u64 {
        let (parameters, bytes) = self.read;
        match dtype {
            Dtype::Auto => bytes,
            Dtype::F32 => parameters * 4,
            Dtype::Bf16 | Dtype::F16 => parameters * 2,
        }
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
        assert_eq!(tied.bytes_per_step(Dtype::F32), (3 * layer + 537 * 72) * 4);
        assert_eq!(
            tied.bytes_per_step(Dtype::Bf16) * 2,
            tied.bytes_per_step(Dtype::F32)
        );
        assert!(tied.parameters > tied.read.0, "norms are no matrices");
        let untied = summary("qwen3/untied-yarn");
        assert!(untied.parameters - untied.read.0 > 10_000, "{untied:?}");
    }
}
