//! What a checkpoint weighs: for `aha show` and `aha bench`.

use super::failure::Outcome;
use aha::{Dtype, Quantization};
use aha_nn::weights::{Catalog, LanguagePart, MatrixRole, StoredType};
use std::collections::BTreeMap;
use std::path::Path;

/// Names of the table that a step reads single rows of, by format.
const EMBEDDINGS: [&str; 2] = ["embed_tokens.weight", "token_embd.weight"];
/// Name of the output head; where it is missing, the embedding takes its place. GGUF files have it at the top, and other
/// tensors whose names end alike (`blk.0.attn_output.weight`).
const HEAD: &str = "lm_head.weight";
const GGUF_HEAD: &str = "output.weight";
/// Parts of names of what text does not pass through: encoders of pictures and sound with their projectors, and heads
/// that guess several tokens ahead.
const BESIDE: [&str; 9] = [
    "visual.",
    "vision_",
    "vit.",
    "sam_model.",
    "qwen2_model.",
    "audio_",
    "projector.",
    "mlp_AR.",
    "mtp.",
];
/// Parts of names of experts, of which a token meets a few.
const EXPERTS: [&str; 2] = [".experts.", "_exps."];

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
    /// Parameters of the matrices that each token is multiplied with: those of the layers, of which experts, and those
    /// of the output head.
    layers: u64,
    experts: u64,
    head: u64,
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
        let has_head = catalog.names().any(is_head);
        let mut summary = Self {
            tensors: 0,
            parameters: 0,
            bytes: 0,
            types: Vec::new(),
            read: Vec::new(),
            layers: 0,
            experts: 0,
            head: 0,
        };
        let mut types = BTreeMap::<StoredType, u64>::new();
        for tensor in catalog.names().filter_map(|name| catalog.load(name)) {
            let parameters: u64 = tensor.shape().iter().map(|&size| size as u64).product();
            let bytes = tensor.byte_len() as u64;
            summary.tensors += 1;
            summary.parameters += parameters;
            summary.bytes += bytes;
            *types.entry(tensor.stored()).or_default() += bytes;
            let name = tensor.name();
            let ends_with = |names: &[&str]| names.iter().any(|end| name.ends_with(end));
            let contains = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
            let embedding = ends_with(&EMBEDDINGS);
            let [_, .., cols] = *tensor.shape() else {
                continue;
            };
            if (embedding && has_head) || contains(&BESIDE) {
                continue;
            }
            let part = if embedding || is_head(name) {
                summary.head += parameters;
                LanguagePart::Output
            } else {
                summary.layers += parameters;
                if contains(&EXPERTS) {
                    summary.experts += parameters;
                }
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

    /// Operations of a prompt of `tokens` tokens in products with weights, a product and its sum being two: each token
    /// passes the layers (and a share of their experts), the last one the head as well.
    pub(crate) fn prompt_flops(&self, tokens: usize, expert_share: f64) -> f64 {
        let layers = (self.layers - self.experts) as f64 + self.experts as f64 * expert_share;
        2.0 * (layers * tokens as f64 + self.head as f64)
    }

    /// The same of one token that is generated.
    pub(crate) fn step_flops(&self, expert_share: f64) -> f64 {
        self.prompt_flops(1, expert_share)
    }

    /// The type of most bytes.
    pub(crate) fn main_stored(&self) -> Option<StoredType> {
        self.types.first().map(|(stored, _)| *stored)
    }

    /// The name of the type of most bytes.
    pub(crate) fn main_type(&self) -> &'static str {
        self.main_stored().map_or("none", StoredType::name)
    }
}

fn is_head(name: &str) -> bool {
    name.ends_with(HEAD) || name == GGUF_HEAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn summary(fixture: &str) -> WeightsSummary {
        WeightsSummary::of(&path(fixture)).unwrap()
    }

    fn path(fixture: &str) -> PathBuf {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
        Path::new(root).join(fixture)
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
        let flops = 2 * (5 * 3 * layer + 537 * 72);
        assert_eq!(tied.prompt_flops(5, 1.0), flops as f64);
        assert_eq!(tied.step_flops(1.0), f32_bytes as f64 / 2.0);
        let untied = summary("qwen3/untied-yarn");
        let read = untied.bytes_per_step(Dtype::F32, None) / 4;
        assert!(untied.parameters - read > 10_000, "{untied:?}");
    }

    #[test]
    fn other_tensors_that_end_as_a_head_of_a_gguf_does_are_none() {
        // `blk.0.attn_output.weight` is no head: the embedding is, of 537 tokens.
        let tied = summary("gguf/lfm2.gguf");
        let catalog = Catalog::open(&path("gguf/lfm2.gguf")).unwrap();
        assert!(
            catalog
                .names()
                .any(|name| name.ends_with("attn_output.weight"))
        );
        let [rows, cols] = catalog.shape("token_embd.weight").unwrap() else {
            panic!("the embedding is a matrix")
        };
        assert_eq!(tied.head, (rows * cols) as u64);
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

    #[test]
    fn towers_are_not_read_and_experts_count_by_their_share() {
        let experts = summary("deepseek_ocr/small");
        let read = experts.bytes_per_step(Dtype::F32, None) / 4;
        assert_eq!(experts.layers + experts.head, read);
        assert!(read < experts.parameters, "{experts:?}");
        assert!(
            experts.experts > 0 && experts.experts < experts.layers,
            "{experts:?}"
        );
        let saved = experts.prompt_flops(7, 1.0) - experts.prompt_flops(7, 0.25);
        assert_eq!(saved, 2.0 * 7.0 * 0.75 * experts.experts as f64);
    }
}
