//! Which matrices of a language model become which quantised blocks.
//!
//! The recipes are those that users of GGUF files know by name. Not all matrices bear the same loss: the output
//! head and, in half of the layers, what reads values and what leads back from the MLP get more bits.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::catalog::Catalog;
use super::stored::StoredType;

/// What all matrices of nested scales need of their rows.
const NESTED_BLOCK: usize = 256;
/// Share of the memory that the weights may take before `auto` quantises them, in percent.
const AUTO_PERCENT: u64 = 60;

/// A recipe: the block types of a model's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// `Q8_0` throughout.
    Q8_0,
    /// `Q6_K` throughout.
    Q6K,
    /// `Q5_K`, and `Q6_K` where more bits matter.
    Q5KM,
    /// `Q4_K`, and `Q6_K` where more bits matter.
    Q4KM,
    /// `Q4_0`, and `Q6_K` for the output head.
    Q4_0,
}

impl Quantization {
    /// All recipes, the most exact one first.
    pub const ALL: [Self; 5] = [Self::Q8_0, Self::Q6K, Self::Q5KM, Self::Q4KM, Self::Q4_0];

    /// The name that users know.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5KM => "q5_k_m",
            Self::Q4KM => "q4_k_m",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The number of the recipe in `general.file_type` of GGUF files.
    pub fn gguf_file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
        }
    }

    /// The type of most matrices.
    pub fn main_type(self) -> StoredType {
        match self {
            Self::Q8_0 => StoredType::Q8_0,
            Self::Q6K => StoredType::Q6K,
            Self::Q5KM => StoredType::Q5K,
            Self::Q4KM => StoredType::Q4K,
            Self::Q4_0 => StoredType::Q4_0,
        }
    }

    /// What becomes of a matrix with rows of `cols` values.
    pub fn choose(self, role: MatrixRole, cols: usize) -> MatrixChoice {
        let wanted = self.wanted(role);
        if cols > 0 && cols.is_multiple_of(wanted.block_size()) {
            MatrixChoice::Wanted(wanted)
        } else if cols > 0 && cols.is_multiple_of(StoredType::Q8_0.block_size()) {
            MatrixChoice::Fallback
        } else {
            MatrixChoice::Kept
        }
    }

    fn wanted(self, role: MatrixRole) -> StoredType {
        let mixed = matches!(self, Self::Q4KM | Self::Q5KM);
        match role {
            MatrixRole::Output if self != Self::Q8_0 => StoredType::Q6K,
            MatrixRole::Sensitive(place) if mixed && place.gets_more_bits() => StoredType::Q6K,
            MatrixRole::QueryKeyValue if self == Self::Q4KM => StoredType::Q5K,
            MatrixRole::QueryKeyValue if self == Self::Q5KM => StoredType::Q6K,
            _ => self.main_type(),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a user asks for: a recipe, or to choose one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantRequest {
    /// A recipe only if the memory is short of the weights as they are stored.
    Auto,
    /// This recipe.
    Recipe(Quantization),
}

impl QuantRequest {
    /// The recipe for weights of `parameters` values that take `stored` bytes, on a machine with `memory` bytes; the
    /// sentence says why. None leaves them as stored.
    ///
    /// `Auto` takes the first of as stored, `q8_0` and `q4_k_m` that needs at most 60 % of the memory, else `q4_k_m`:
    /// caches, activations and others need some, too.
    pub fn decide(
        self,
        parameters: u64,
        stored: u64,
        memory: u64,
    ) -> (Option<Quantization>, String) {
        let Self::Recipe(recipe) = self else {
            return Self::automatic(parameters, stored, memory);
        };
        (
            Some(recipe),
            format!("matrices are quantised to {recipe} as asked"),
        )
    }

    fn automatic(parameters: u64, stored: u64, memory: u64) -> (Option<Quantization>, String) {
        let room = memory / 100 * AUTO_PERCENT;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let fits = |recipe: Quantization| {
            let main = recipe.main_type();
            let bytes = main.bytes_for(main.block_size()).unwrap_or(0) as u64;
            (parameters / main.block_size() as u64).saturating_mul(bytes) <= room
        };
        let shown = format!(
            "{:.1} GiB of weights, {:.1} GiB of memory",
            gib(stored),
            gib(memory)
        );
        if stored <= room {
            return (
                None,
                format!(
                    "auto: weights are kept as stored, for they fit in {AUTO_PERCENT} % of the memory ({shown})"
                ),
            );
        }
        let recipe = if fits(Quantization::Q8_0) {
            Quantization::Q8_0
        } else {
            Quantization::Q4KM
        };
        (
            Some(recipe),
            format!(
                "auto: matrices are quantised to {recipe}, for as stored they do not fit in {AUTO_PERCENT} % of the memory ({shown})"
            ),
        )
    }
}

impl fmt::Display for QuantRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Recipe(recipe) => recipe.fmt(f),
        }
    }
}

/// A word that names no recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown quantisation `{0}`; use one of auto, q8_0, q6_k, q5_k_m, q4_k_m, q4_0")]
pub struct UnknownQuantization(String);

impl FromStr for QuantRequest {
    type Err = UnknownQuantization;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        // Files write them in capitals.
        let lower = word.to_ascii_lowercase();
        if lower == "auto" {
            return Ok(Self::Auto);
        }
        Quantization::ALL
            .into_iter()
            .find(|recipe| recipe.name() == lower)
            .map(Self::Recipe)
            .ok_or_else(|| UnknownQuantization(word.to_owned()))
    }
}

/// The part of a language model that a matrix belongs to. What belongs to none is never quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanguagePart {
    /// The token embedding, where the output head is another matrix.
    Embedding,
    /// The output head, be it a matrix of its own or the embedding.
    Output,
    /// The layers.
    Layers,
}

/// What a matrix does, as far as recipes care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixRole {
    /// The output head.
    Output,
    /// Reads the values of attention, or leads back from the MLP: where a loss shows most.
    Sensitive(LayerPlace),
    /// Queries, keys and values in one matrix.
    QueryKeyValue,
    /// Anything else.
    Other,
}

/// Names of modules, in models and in GGUF files, where a loss shows most.
const SENSITIVE: [&str; 4] = ["v_proj", "down_proj", "attn_v", "ffn_down"];
const QUERY_KEY_VALUE: [&str; 2] = ["qkv_proj", "attn_qkv"];

impl MatrixRole {
    /// The role of module `path` in a model, whose tensor is `file_name` of `catalog`.
    pub fn of(part: LanguagePart, path: &str, file_name: &str, catalog: &Catalog) -> Self {
        let module = path.rsplit('.').next().unwrap_or_default();
        match part {
            LanguagePart::Output => Self::Output,
            LanguagePart::Embedding => Self::Other,
            LanguagePart::Layers if SENSITIVE.contains(&module) => {
                LayerPlace::of(file_name, catalog).map_or(Self::Other, Self::Sensitive)
            }
            LanguagePart::Layers if QUERY_KEY_VALUE.contains(&module) => Self::QueryKeyValue,
            LanguagePart::Layers => Self::Other,
        }
    }
}

/// Place of a layer among those that have the same matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPlace {
    /// Layers before it.
    pub before: usize,
    /// Layers in all.
    pub of: usize,
}

impl LayerPlace {
    /// The place of the layer that the first number in a tensor's name tells.
    fn of(name: &str, catalog: &Catalog) -> Option<Self> {
        let (beginning, layer, end) = split_at_number(name)?;
        let mut place = Self { before: 0, of: 0 };
        for other in catalog.names() {
            if let Some((first, number, last)) = split_at_number(other)
                && (first, last) == (beginning, end)
            {
                place.of += 1;
                place.before += usize::from(number < layer);
            }
        }
        Some(place)
    }

    /// The first and last eighth of the layers, and every third between them.
    fn gets_more_bits(self) -> bool {
        let eighth = self.of / 8;
        self.before < eighth || self.before >= 7 * self.of / 8 || (self.before - eighth) % 3 == 2
    }
}

/// A name before, in and after its first part that is a number.
fn split_at_number(name: &str) -> Option<(&str, u32, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if part.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(number) = part.parse()
        {
            return Some((&name[..start], number, &name[end..]));
        }
        start = end + 1;
    }
    None
}

/// What becomes of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixChoice {
    /// The type of the recipe.
    Wanted(StoredType),
    /// `Q8_0`, since rows are no whole number of the recipe's blocks.
    Fallback,
    /// As stored, since rows are no whole number of any blocks.
    Kept,
}

impl MatrixChoice {
    /// The block type; none where the matrix stays as stored.
    pub fn block_type(self) -> Option<StoredType> {
        match self {
            Self::Wanted(stored) => Some(stored),
            Self::Fallback => Some(StoredType::Q8_0),
            Self::Kept => None,
        }
    }
}

/// How many matrices became what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuantReport {
    types: BTreeMap<StoredType, usize>,
    fallback: usize,
    kept: usize,
}

impl QuantReport {
    /// Counts one matrix.
    pub fn count(&mut self, choice: MatrixChoice) {
        match choice {
            MatrixChoice::Wanted(_) => {}
            MatrixChoice::Fallback => self.fallback += 1,
            MatrixChoice::Kept => self.kept += 1,
        }
        if let Some(stored) = choice.block_type() {
            *self.types.entry(stored).or_default() += 1;
        }
    }

    /// Matrices that were quantised.
    pub fn quantized(&self) -> usize {
        self.types.values().sum()
    }

    /// What became what: `169 matrices are quantised (Q4_K 140, Q6_K 29)`.
    pub fn summary(&self) -> String {
        let types: Vec<String> = self
            .types
            .iter()
            .map(|(stored, count)| format!("{stored} {count}"))
            .collect();
        match self.quantized() {
            0 => "no matrix is quantised".to_owned(),
            count => format!("{count} matrices are quantised ({})", types.join(", ")),
        }
    }

    /// What did not go as asked, and why; none where all did.
    pub fn exceptions(&self) -> Option<String> {
        let mut exceptions = Vec::new();
        if self.fallback > 0 {
            exceptions.push(format!(
                "{} of them are Q8_0 instead of the type asked for, because their rows are no multiple of {NESTED_BLOCK} values",
                self.fallback
            ));
        }
        if self.kept > 0 {
            exceptions.push(format!(
                "{} matrices stay as stored, because their rows are no multiple of {} values",
                self.kept,
                StoredType::Q8_0.block_size()
            ));
        }
        if self.quantized() + self.kept == 0 {
            exceptions.push(
                "only layers, embedding and output head of language models are, and this model has none"
                    .to_owned(),
            );
        }
        (!exceptions.is_empty()).then(|| exceptions.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(before: usize, of: usize) -> MatrixRole {
        MatrixRole::Sensitive(LayerPlace { before, of })
    }

    #[test]
    fn mixtures_give_more_bits_to_the_ends_and_every_third_layer_between() {
        let types = |recipe: Quantization, layers: usize| -> Vec<usize> {
            (0..layers)
                .filter(|&before| {
                    recipe.choose(layer(before, layers), 512)
                        == MatrixChoice::Wanted(StoredType::Q6K)
                })
                .collect()
        };
        let more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        assert_eq!(types(Quantization::Q4KM, 32), more);
        assert_eq!(types(Quantization::Q5KM, 32), more);
        assert_eq!(types(Quantization::Q4KM, 3), [2]);
        assert!(types(Quantization::Q4_0, 32).is_empty());
        assert_eq!(types(Quantization::Q6K, 4).len(), 4);
        for (recipe, role, wanted) in [
            (Quantization::Q4KM, MatrixRole::Other, StoredType::Q4K),
            (Quantization::Q5KM, MatrixRole::Other, StoredType::Q5K),
            (Quantization::Q4KM, MatrixRole::Output, StoredType::Q6K),
            (Quantization::Q4_0, MatrixRole::Output, StoredType::Q6K),
            (Quantization::Q8_0, MatrixRole::Output, StoredType::Q8_0),
            (
                Quantization::Q4KM,
                MatrixRole::QueryKeyValue,
                StoredType::Q5K,
            ),
            (
                Quantization::Q5KM,
                MatrixRole::QueryKeyValue,
                StoredType::Q6K,
            ),
            (
                Quantization::Q4_0,
                MatrixRole::QueryKeyValue,
                StoredType::Q4_0,
            ),
        ] {
            assert_eq!(recipe.choose(role, 256), MatrixChoice::Wanted(wanted));
        }
    }

    #[test]
    fn odd_rows_fall_back_and_are_told() {
        let mut report = QuantReport::default();
        for (recipe, cols, choice) in [
            (
                Quantization::Q4KM,
                512,
                MatrixChoice::Wanted(StoredType::Q4K),
            ),
            (Quantization::Q4KM, 576, MatrixChoice::Fallback),
            (Quantization::Q4KM, 72, MatrixChoice::Kept),
            (
                Quantization::Q8_0,
                576,
                MatrixChoice::Wanted(StoredType::Q8_0),
            ),
            (Quantization::Q8_0, 0, MatrixChoice::Kept),
        ] {
            let found = recipe.choose(MatrixRole::Other, cols);
            assert_eq!(found, choice, "{recipe} {cols}");
            report.count(found);
        }
        assert_eq!(
            report.summary(),
            "3 matrices are quantised (Q8_0 2, Q4_K 1)"
        );
        let told = report.exceptions().unwrap();
        assert!(
            told.starts_with("1 of them are Q8_0") && told.contains("; 2 matrices stay as stored")
        );
        let mut plain = QuantReport::default();
        assert!(plain.exceptions().unwrap().contains("has none"));
        plain.count(MatrixChoice::Wanted(StoredType::Q4K));
        assert_eq!(plain.exceptions(), None);
    }

    #[test]
    fn words_parse_and_print() {
        for recipe in Quantization::ALL {
            let request = QuantRequest::Recipe(recipe);
            assert_eq!(recipe.name().parse(), Ok(request));
            assert_eq!(recipe.name().to_uppercase().parse(), Ok(request));
            assert_eq!(request.to_string(), recipe.name());
        }
        assert_eq!("auto".parse(), Ok(QuantRequest::Auto));
        let error = "q3_k".parse::<QuantRequest>().unwrap_err().to_string();
        assert!(
            error.contains("`q3_k`") && error.contains("q4_k_m"),
            "{error}"
        );
    }

    #[test]
    fn auto_quantises_only_what_does_not_fit() {
        const GIB: u64 = 1 << 30;
        let decide = |parameters, stored| QuantRequest::Auto.decide(parameters, stored, 16 * GIB);
        let (recipe, why) = decide(4 * GIB, 8 * GIB);
        assert!(recipe.is_none() && why.contains("kept as stored"), "{why}");
        let (recipe, why) = decide(8 * GIB, 16 * GIB);
        assert_eq!(recipe, Some(Quantization::Q8_0));
        assert!(
            why.contains("16.0 GiB of weights") && why.contains("60 %"),
            "{why}"
        );
        assert_eq!(decide(13 * GIB, 26 * GIB).0, Some(Quantization::Q4KM));
        assert_eq!(decide(u64::MAX, u64::MAX).0, Some(Quantization::Q4KM));
        let asked = QuantRequest::Recipe(Quantization::Q6K).decide(1, 1, GIB);
        assert_eq!(asked.0, Some(Quantization::Q6K));
    }

    #[test]
    fn names_are_split_at_their_first_number() {
        assert_eq!(
            split_at_number("model.layers.12.mlp.experts.3.down_proj.weight"),
            Some(("model.layers.", 12, ".mlp.experts.3.down_proj.weight"))
        );
        assert_eq!(split_at_number("blk.x1.ffn"), None);
        assert_eq!(split_at_number(""), None);
    }
}
