//! `POST /rerank` in the shape of Jina and Cohere, and `POST /score` in vLLM's.

use crate::error::ApiError;
use crate::types::fields::{Fields, wrong_type};
use aha_engine::Truncate;
use serde::Serialize;
use serde_json::Value;

/// Cohere's limit of documents in a request.
const MOST_DOCUMENTS: usize = 10_000;

/// What becomes of texts that are too long: `truncate` (true, false, or Cohere's END and NONE) and
/// `truncate_prompt_tokens` (a number of tokens, or -1 for the model's limit).
pub(crate) fn truncate(fields: &mut Fields) -> Result<Truncate, ApiError> {
    let wish = match fields.take("truncate") {
        None => Truncate::Release,
        Some(Value::Bool(true)) => Truncate::ToLimit,
        Some(Value::Bool(false)) => Truncate::Never,
        Some(Value::String(word)) if word.eq_ignore_ascii_case("end") => Truncate::ToLimit,
        Some(Value::String(word)) if word.eq_ignore_ascii_case("none") => Truncate::Never,
        Some(Value::String(_)) => {
            return Err(ApiError::unsupported(
                "truncate",
                "'truncate' must be true, false, 'END' or 'NONE'",
            ));
        }
        Some(other) => return Err(wrong_type("truncate", "true or false", &other)),
    };
    let most = i128::from(u32::MAX);
    match fields.integer("truncate_prompt_tokens", -1..=most)? {
        None => Ok(wish),
        Some(-1) => Ok(Truncate::ToLimit),
        Some(0) => Err(ApiError::invalid(
            "truncate_prompt_tokens",
            "'truncate_prompt_tokens' must be -1 (the model's limit) or at least 1",
        )),
        Some(tokens) => Ok(Truncate::To(usize::try_from(tokens).unwrap_or(usize::MAX))),
    }
}

/// A request to order documents, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RerankRequest {
    pub(crate) model: Option<String>,
    pub(crate) query: String,
    /// At least one.
    pub(crate) documents: Vec<String>,
    pub(crate) instruct: Option<String>,
    pub(crate) truncate: Truncate,
    pub(crate) top_n: usize,
    pub(crate) return_documents: bool,
}

impl RerankRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        let query = fields
            .string("query")?
            .ok_or_else(|| ApiError::missing("query", "'query' is missing"))?;
        let documents = fields
            .array("documents")?
            .ok_or_else(|| ApiError::missing("documents", "'documents' is missing"))?;
        check_count("documents", documents.len())?;
        let documents = texts(documents, "documents")?;
        Ok(Self {
            model: fields.string("model")?,
            query,
            instruct: instruct(fields)?,
            truncate: truncate(fields)?,
            top_n: fields
                .count("top_n", 1..=usize::MAX)?
                .unwrap_or(documents.len()),
            return_documents: fields.boolean("return_documents")?.unwrap_or(true),
            documents,
        })
    }
}

/// A request to score pairs of texts, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScoreRequest {
    pub(crate) model: Option<String>,
    /// At least one; a single query stands for all documents.
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) instruct: Option<String>,
    pub(crate) truncate: Truncate,
}

impl ScoreRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        let mut side = |name: &str| match fields.take(name) {
            None => Err(ApiError::missing(name, format!("'{name}' is missing"))),
            Some(Value::Array(values)) => {
                check_count(name, values.len())?;
                texts(values, name)
            }
            Some(single) => texts(vec![single], name),
        };
        let (mut queries, documents) = (side("text_1")?, side("text_2")?);
        if let [query] = queries.as_slice() {
            queries = vec![query.clone(); documents.len()];
        }
        if queries.len() != documents.len() {
            return Err(ApiError::invalid(
                "text_2",
                format!(
                    "'text_1' and 'text_2' must be as many, or 'text_1' a single one; found {} and {}",
                    queries.len(),
                    documents.len()
                ),
            ));
        }
        Ok(Self {
            model: fields.string("model")?,
            pairs: queries.into_iter().zip(documents).collect(),
            instruct: instruct(fields)?,
            truncate: truncate(fields)?,
        })
    }
}

/// The task in words, under the names of this server and of others.
fn instruct(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    match fields.string("instruct")? {
        Some(instruct) => Ok(Some(instruct)),
        None => fields.string("instruction"),
    }
}

fn check_count(name: &str, count: usize) -> Result<(), ApiError> {
    if (1..=MOST_DOCUMENTS).contains(&count) {
        return Ok(());
    }
    Err(ApiError::invalid(
        name,
        format!("'{name}' must hold between 1 and {MOST_DOCUMENTS} elements, not {count}"),
    ))
}

/// Strings, or objects with a `text`.
fn texts(values: Vec<Value>, name: &str) -> Result<Vec<String>, ApiError> {
    let text = |(index, value): (usize, Value)| {
        let path = format!("{name}[{index}]");
        match value {
            Value::String(text) => Ok(text),
            Value::Object(_) => {
                let mut fields = Fields::of(value, path)?;
                let missing = fields.path("text");
                fields
                    .string("text")?
                    .ok_or_else(|| ApiError::missing(&missing, format!("'{missing}' is missing")))
            }
            other => Err(wrong_type(
                &path,
                "a string or an object with 'text'",
                &other,
            )),
        }
    };
    values.into_iter().enumerate().map(text).collect()
}

/// Tokens of a request that generates none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}

impl Usage {
    pub(crate) fn of(prompt_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens,
        }
    }
}

/// A document in an answer.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Document {
    pub(crate) text: String,
}

/// One document's place.
#[derive(Debug, Serialize)]
pub(crate) struct RerankResult {
    /// Place in the request.
    pub(crate) index: usize,
    pub(crate) relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) document: Option<Document>,
    /// Set where the end of the document was cut off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) truncated: bool,
}

/// The answer of `POST /rerank`, best document first.
#[derive(Debug, Serialize)]
pub(crate) struct RerankResponse {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) usage: Usage,
    pub(crate) results: Vec<RerankResult>,
}

/// One pair's score.
#[derive(Debug, Serialize)]
pub(crate) struct ScoreObject {
    pub(crate) index: usize,
    pub(crate) object: &'static str,
    pub(crate) score: f32,
}

/// The answer of `POST /score`, in the order of the request.
#[derive(Debug, Serialize)]
pub(crate) struct ScoreResponse {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) data: Vec<ScoreObject>,
    pub(crate) usage: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rerank(body: Value) -> Result<RerankRequest, ApiError> {
        RerankRequest::parse(body.to_string().as_bytes())
    }

    fn score(body: Value) -> Result<ScoreRequest, ApiError> {
        ScoreRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn documents_are_strings_or_objects() {
        let request =
            rerank(json!({"query": "q", "documents": ["a", {"text": "b", "id": 7}]})).unwrap();
        assert_eq!(request.documents, ["a", "b"]);
        assert_eq!((request.top_n, request.return_documents), (2, true));
        for (body, param) in [
            (json!({"documents": ["a"]}), "query"),
            (json!({"query": "q"}), "documents"),
            (json!({"query": "q", "documents": []}), "documents"),
            (json!({"query": "q", "documents": "a"}), "documents"),
            (json!({"query": "q", "documents": ["a", 1]}), "documents[1]"),
            (
                json!({"query": "q", "documents": [{"body": "a"}]}),
                "documents[0].text",
            ),
            (
                json!({"query": "q", "documents": ["a"], "top_n": 0}),
                "top_n",
            ),
            (
                json!({"query": "q", "documents": ["a"], "instruct": 1}),
                "instruct",
            ),
            (
                json!({"query": "q", "documents": vec!["a"; 10_001]}),
                "documents",
            ),
        ] {
            let error = rerank(body.clone()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn a_single_text_meets_all_others() {
        let pairs = |one: Value, two: Value| {
            score(json!({"text_1": one, "text_2": two})).map(|request| request.pairs)
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(pairs(json!("q"), json!("a")).unwrap(), [pair("q", "a")]);
        assert_eq!(
            pairs(json!("q"), json!(["a", "b"])).unwrap(),
            [pair("q", "a"), pair("q", "b")]
        );
        assert_eq!(
            pairs(json!(["q", "r"]), json!(["a", "b"])).unwrap(),
            [pair("q", "a"), pair("r", "b")]
        );
        assert!(pairs(json!(["q", "r"]), json!("a")).is_err());
        assert!(pairs(json!(["q", "r"]), json!(["a", "b", "c"])).is_err());
        assert!(pairs(json!("q"), json!([])).is_err());
        assert!(pairs(json!(null), json!("a")).is_err());
        assert!(pairs(json!(1), json!("a")).is_err());
    }

    #[test]
    fn truncation_has_several_spellings() {
        let read = |body: Value| truncate(&mut Fields::of(body, String::new()).unwrap());
        for (body, wish) in [
            (json!({}), Truncate::Release),
            (json!({"truncate": true}), Truncate::ToLimit),
            (json!({"truncate": "END"}), Truncate::ToLimit),
            (json!({"truncate": false}), Truncate::Never),
            (json!({"truncate": "none"}), Truncate::Never),
            (json!({"truncate_prompt_tokens": -1}), Truncate::ToLimit),
            (json!({"truncate_prompt_tokens": 7}), Truncate::To(7)),
        ] {
            assert_eq!(read(body).unwrap(), wish);
        }
        for bad in [
            json!({"truncate": "START"}),
            json!({"truncate": 3}),
            json!({"truncate_prompt_tokens": 0}),
            json!({"truncate_prompt_tokens": -2}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
