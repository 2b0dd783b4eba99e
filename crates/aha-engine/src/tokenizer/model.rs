//! The part of a tokenizer that turns words into tokens, as the library's pipeline asks for it.

use super::bpe::{Bpe, BpeParts};
use super::coding::PieceCoding;
use super::pieces::{PieceList, Pieces, VocabularyError};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{ModelWrapper, Token};

/// A model before it is known how its pieces stand for bytes.
pub(super) enum ModelParts {
    Bpe(BpeParts),
    Library(ModelWrapper),
}

/// Byte-pair encoding of our own, or another model of the library.
pub(super) enum Model {
    Bpe(Bpe),
    Library { model: ModelWrapper, pieces: Pieces },
}

impl Model {
    pub(super) fn new(parts: ModelParts, coding: PieceCoding) -> Result<Self, VocabularyError> {
        let model = match parts {
            ModelParts::Bpe(parts) => return Ok(Self::Bpe(Bpe::new(parts, coding))),
            ModelParts::Library(model) => model,
        };
        let mut list = PieceList::default();
        for (text, id) in tokenizers::Model::get_vocab(&model) {
            list.push(id, &text)?;
        }
        Ok(Self::Library {
            pieces: Pieces::new(list)?.coded(coding),
            model,
        })
    }

    pub(super) fn pieces(&self) -> &Pieces {
        match self {
            Self::Bpe(model) => model.pieces(),
            Self::Library { pieces, .. } => pieces,
        }
    }
}

impl tokenizers::Model for Model {
    type Trainer = TrainerWrapper;

    /// Ids alone: [`Tokenizer::encode`](super::Tokenizer::encode) asks for nothing else, and the library throws texts and offsets
    /// away (`encode_fast`).
    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Bpe(model) => {
                let ids = model.encode(word)?.into_iter();
                Ok(ids
                    .map(|id| Token::new(id, String::new(), (0, 0)))
                    .collect())
            }
            Self::Library { model, .. } => model.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.pieces().id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.pieces().text(id).map(Into::into)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let pieces = self.pieces();
        let ids = 0..pieces.len() as u32;
        ids.filter_map(|id| Some((pieces.text(id)?.into_owned(), id)))
            .collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.pieces().count()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("tokenizers are not saved in the library's formats".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match self {
            Self::Bpe(_) => BpeTrainer::default().into(),
            Self::Library { model, .. } => model.get_trainer(),
        }
    }
}
