//! Merges as files write them.

use super::super::pieces::{Pieces, VocabularyError};
use super::merges::Merge;

/// Merges of pieces by their texts, in the order in which they are joined.
pub(in super::super) struct MergeList<'p> {
    pieces: &'p Pieces,
    prefix: &'p str,
    merges: Vec<Merge>,
    whole: String,
}

impl<'p> MergeList<'p> {
    /// No merges yet. `prefix` is what the second piece of a merge begins with, and the joined one leaves out.
    pub(in super::super) fn new(pieces: &'p Pieces, prefix: &'p str) -> Self {
        Self {
            pieces,
            prefix,
            merges: Vec::new(),
            whole: String::new(),
        }
    }

    /// Adds a merge written with a space between the pieces.
    pub(in super::super) fn push_line(&mut self, line: &str) -> Result<(), VocabularyError> {
        match line.split_once(' ') {
            Some((left, right)) => self.push(left, right),
            None => Err(VocabularyError::NoPair {
                number: self.merges.len(),
                merge: line.to_owned(),
            }),
        }
    }

    /// Adds a merge.
    pub(in super::super) fn push(
        &mut self,
        left: &str,
        right: &str,
    ) -> Result<(), VocabularyError> {
        let continued = right
            .get(self.prefix.len()..)
            .filter(|rest| !rest.is_empty() && !left.is_empty())
            .ok_or_else(|| VocabularyError::NoPair {
                number: self.merges.len(),
                merge: format!("{left} {right}"),
            })?;
        self.whole.clear();
        self.whole.push_str(left);
        self.whole.push_str(continued);
        let id = |text: &str| {
            let id = self.pieces.id(text);
            id.ok_or_else(|| VocabularyError::MergeOfNoTokens {
                left: left.to_owned(),
                right: right.to_owned(),
                missing: text.to_owned(),
            })
        };
        let merge = Merge {
            left: id(left)?,
            right: id(right)?,
            whole: id(&self.whole)?,
        };
        self.merges.push(merge);
        Ok(())
    }

    pub(in super::super) fn into_merges(self) -> Vec<Merge> {
        self.merges
    }
}
