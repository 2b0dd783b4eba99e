//! The release's template around query and document.

use aha_engine::embedding::PreparedInput;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{EngineError, RerankProcessor};

/// Before the pair: the system's turn and the beginning of the user's.
const PREFIX: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";

/// Behind it: the assistant's turn, with nothing thought.
const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// The task where a request names none.
const INSTRUCT: &str = "Given a web search query, retrieve relevant passages that answer the query";

/// Tokens of a whole pair in the release's procedure.
const MAX_LENGTH: usize = 8192;

/// Tokenizer and template; prefix, pair and suffix are tokenised apart, as the release does.
#[derive(Debug)]
pub(super) struct Qwen3RerankProcessor {
    tokenizer: Tokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    max_length: usize,
}

impl Qwen3RerankProcessor {
    /// `positions` is how long the model's sequences may be.
    pub(super) fn new(tokenizer: Tokenizer, positions: usize) -> Result<Self, EngineError> {
        let prefix = tokenizer.encode(PREFIX, false)?;
        let suffix = tokenizer.encode(SUFFIX, false)?;
        let max_length = positions.min(MAX_LENGTH);
        if prefix.len() + suffix.len() >= max_length {
            return Err(EngineError::internal(format!(
                "{max_length} positions leave no room beside the template"
            )));
        }
        Ok(Self {
            tokenizer,
            prefix,
            suffix,
            max_length,
        })
    }
}

impl RerankProcessor for Qwen3RerankProcessor {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn max_length(&self) -> usize {
        self.max_length
    }

    fn takes_instruct(&self) -> bool {
        true
    }

    fn prepare(
        &self,
        query: &str,
        document: &str,
        instruct: Option<&str>,
        max_length: usize,
    ) -> Result<PreparedInput, EngineError> {
        let instruct = instruct.unwrap_or(INSTRUCT);
        let around = self.prefix.len() + self.suffix.len();
        let room = max_length.min(self.max_length).saturating_sub(around);
        let before = format!("<Instruct>: {instruct}\n<Query>: {query}\n<Document>: ");
        let mut body = self
            .tokenizer
            .encode(&format!("{before}{document}"), true)?;
        let truncated = body.len() > room;
        if truncated {
            // The end is cut off. It must not reach the query: then no document would be left to judge.
            let least = self.tokenizer.encode(&before, true)?.len();
            if least >= room {
                return Err(EngineError::invalid(
                    "query",
                    format!(
                        "the query and its instruction have {least} tokens, which leaves nothing of the {room} for a document: shorten them"
                    ),
                ));
            }
            body.truncate(room);
        }
        let token_ids = [self.prefix.as_slice(), &body, &self.suffix].concat();
        Ok(PreparedInput {
            token_ids,
            truncated,
        })
    }
}
