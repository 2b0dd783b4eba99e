//! Reading tokenizer.json and vocab.json in one pass, without a tree of the whole file.

use super::bpe::{BpeOptions, BpeParts, Merge, MergeList};
use super::model::ModelParts;
use super::pieces::{PieceList, Pieces};
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper,
};

/// A tokenizer.json, but for its truncation and padding, which are not followed.
#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    pub(super) version: Option<String>,
    #[serde(default)]
    pub(super) added_tokens: Vec<ListedToken>,
    #[serde(flatten)]
    pub(super) steps: Steps,
    pub(super) model: ModelParts,
}

/// What a tokenizer does before and after its model.
#[derive(Default, Deserialize)]
pub(super) struct Steps {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) post_processor: Option<PostProcessorWrapper>,
    pub(super) decoder: Option<DecoderWrapper>,
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
pub(super) struct ListedToken {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

impl<'de> Deserialize<'de> for ModelParts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ModelVisitor)
    }
}

const KINDS: &[&str] = &["BPE", "WordPiece", "WordLevel", "Unigram"];

struct ModelVisitor;

impl<'de> Visitor<'de> for ModelVisitor {
    type Value = ModelParts;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ModelParts, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value: Value = map.next_value()?;
            // Files begin with the type. Where they do not, the fields are collected first.
            if fields.is_empty() && key == "type" && value == "BPE" {
                return BpeVisitor.visit_map(map).map(ModelParts::Bpe);
            }
            fields.insert(key, value);
        }
        let kind = fields.get("type").and_then(Value::as_str);
        // Old files do not name the type.
        if kind == Some("BPE") || (kind.is_none() && fields.contains_key("merges")) {
            let parts = fields.into_deserializer().deserialize_map(BpeVisitor);
            return parts.map(ModelParts::Bpe).map_err(Error::custom);
        }
        if let Some(unknown) = kind.filter(|kind| !KINDS.contains(kind)) {
            return Err(Error::unknown_variant(unknown, KINDS));
        }
        ModelWrapper::deserialize(Value::Object(fields))
            .map(ModelParts::Library)
            .map_err(Error::custom)
    }
}

struct BpeVisitor;

impl<'de> Visitor<'de> for BpeVisitor {
    type Value = BpeParts;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a byte-pair encoding")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BpeParts, A::Error> {
        let mut options = BpeOptions::default();
        let mut pieces: Option<Pieces> = None;
        let mut merges = None;
        let mut early_merges: Option<Value> = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "unk_token" => options.unknown = map.next_value()?,
                "fuse_unk" => options.fuse_unknown = or_default(&mut map)?,
                "byte_fallback" => options.byte_fallback = or_default(&mut map)?,
                "ignore_merges" => options.ignore_merges = or_default(&mut map)?,
                "continuing_subword_prefix" => {
                    options.prefix = or_default(&mut map)?;
                    if merges.is_some() && !options.prefix.is_empty() {
                        return Err(Error::custom("it stands behind the merges that need it"));
                    }
                }
                "end_of_word_suffix" => options.suffix = or_default(&mut map)?,
                "dropout" => {
                    if or_default::<f64, A>(&mut map)? != 0.0 {
                        let reason = "dropout is not supported: it makes token ids random";
                        return Err(Error::custom(reason));
                    }
                }
                "vocab" => pieces = Some(map.next_value::<Vocabulary>()?.0),
                "merges" => match &pieces {
                    Some(pieces) => {
                        let list = MergeList::new(pieces, &options.prefix);
                        merges = Some(map.next_value_seed(MergesSeed(list))?);
                    }
                    None => early_merges = Some(map.next_value()?),
                },
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let pieces = pieces.ok_or_else(|| Error::missing_field("vocab"))?;
        if let Some(early) = early_merges {
            let seed = MergesSeed(MergeList::new(&pieces, &options.prefix));
            merges = Some(seed.deserialize(early).map_err(Error::custom)?);
        }
        Ok(BpeParts {
            merges: merges.ok_or_else(|| Error::missing_field("merges"))?,
            pieces,
            options,
        })
    }
}

/// A value, or its default where the file has `null`.
fn or_default<'de, T, A>(map: &mut A) -> Result<T, A::Error>
where
    T: Default + Deserialize<'de>,
    A: MapAccess<'de>,
{
    Ok(map.next_value::<Option<T>>()?.unwrap_or_default())
}

/// An object of ids by text.
pub(super) struct Vocabulary(pub(super) Pieces);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VocabularyVisitor)
    }
}

struct VocabularyVisitor;

impl<'de> Visitor<'de> for VocabularyVisitor {
    type Value = Vocabulary;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("token ids by their texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
        let mut list = PieceList::default();
        while let Some((text, id)) = map.next_entry::<Text<'de>, u32>()? {
            list.push(id, &text.0).map_err(Error::custom)?;
        }
        Pieces::new(list).map(Vocabulary).map_err(Error::custom)
    }
}

/// A string, where it lies in the file if nothing in it is escaped.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads an array of merges.
struct MergesSeed<'p>(MergeList<'p>);

impl<'de> DeserializeSeed<'de> for MergesSeed<'_> {
    type Value = Vec<Merge>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Merge>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergesSeed<'_> {
    type Value = Vec<Merge>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Merge>, A::Error> {
        let mut merges = self.0;
        while let Some(merge) = list.next_element::<WrittenMerge<'de>>()? {
            let added = match merge {
                // The first line of merges.txt may have come with the others.
                WrittenMerge::Line(line) if line.starts_with("#version") => Ok(()),
                WrittenMerge::Line(line) => merges.push_line(&line),
                WrittenMerge::Pair(left, right) => merges.push(&left, &right),
            };
            added.map_err(Error::custom)?;
        }
        Ok(merges.into_merges())
    }
}

/// A merge in either way of writing it.
enum WrittenMerge<'a> {
    Line(Cow<'a, str>),
    Pair(Cow<'a, str>, Cow<'a, str>),
}

impl<'de> Deserialize<'de> for WrittenMerge<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = WrittenMerge<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("two pieces, in a list or with a space between them")
    }

    fn visit_borrowed_str<E: Error>(self, line: &'de str) -> Result<Self::Value, E> {
        Ok(WrittenMerge::Line(Cow::Borrowed(line)))
    }

    fn visit_str<E: Error>(self, line: &str) -> Result<Self::Value, E> {
        Ok(WrittenMerge::Line(Cow::Owned(line.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
        let mut piece = |place| {
            let text: Option<Text<'de>> = pair.next_element()?;
            text.ok_or_else(|| Error::invalid_length(place, &self))
        };
        let (left, right) = (piece(0)?, piece(1)?);
        match pair.next_element::<IgnoredAny>()? {
            Some(_) => Err(Error::invalid_length(3, &self)),
            None => Ok(WrittenMerge::Pair(left.0, right.0)),
        }
    }
}
