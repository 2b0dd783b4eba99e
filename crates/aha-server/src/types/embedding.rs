//! `POST /embeddings`.

use crate::error::ApiError;
use crate::types::fields::{Fields, token_ids, wrong_type};
use crate::types::rerank::{Usage, truncate};
use aha_engine::{EmbeddingInput, EmbeddingOptions};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// OpenAI's limit of inputs in a request.
const MOST_INPUTS: usize = 2048;

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncodingFormat {
    /// As numbers.
    Float,
    /// As base64 of little-endian f32 values.
    Base64,
}

/// A request for embeddings, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EmbeddingRequest {
    pub(crate) model: Option<String>,
    /// At least one.
    pub(crate) inputs: Vec<EmbeddingInput>,
    pub(crate) options: EmbeddingOptions,
    pub(crate) format: EncodingFormat,
}

impl EmbeddingRequest {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        let format = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => EncodingFormat::Float,
            Some("base64") => EncodingFormat::Base64,
            Some(other) => {
                let shown: String = other.chars().take(100).collect();
                return Err(ApiError::invalid(
                    "encoding_format",
                    format!("'encoding_format' must be 'float' or 'base64', not '{shown}'"),
                ));
            }
        };
        Ok(Self {
            model: fields.string("model")?,
            inputs: inputs(fields)?,
            options: EmbeddingOptions {
                prompt_name: fields.string("prompt_name")?,
                instruct: fields.string("instruct")?,
                truncate: truncate(fields)?,
                dimensions: fields.count("dimensions", 1..=usize::MAX)?,
            },
            format,
        })
    }
}

/// A string, token ids, or an array of either.
fn inputs(fields: &mut Fields) -> Result<Vec<EmbeddingInput>, ApiError> {
    const PATH: &str = "input";
    let expected = "a string, token ids, or an array of either";
    let inputs = match fields.take(PATH) {
        None => return Err(ApiError::missing(PATH, "'input' is missing")),
        Some(Value::String(text)) => vec![EmbeddingInput::Text(text)],
        Some(Value::Array(values)) if values.first().is_some_and(Value::is_number) => {
            vec![EmbeddingInput::Tokens(token_ids(&values, PATH)?)]
        }
        Some(Value::Array(values)) => {
            if values.len() > MOST_INPUTS {
                let found = values.len();
                return Err(ApiError::invalid(
                    PATH,
                    format!("'input' has {found} elements; {MOST_INPUTS} are the most"),
                ));
            }
            let input = |(index, value): (usize, Value)| {
                let path = format!("{PATH}[{index}]");
                match value {
                    Value::String(text) => Ok(EmbeddingInput::Text(text)),
                    Value::Array(ids) => token_ids(&ids, &path).map(EmbeddingInput::Tokens),
                    other => Err(wrong_type(&path, "a string or token ids", &other)),
                }
            };
            values
                .into_iter()
                .enumerate()
                .map(input)
                .collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type(PATH, expected, &other)),
    };
    if inputs.is_empty() {
        return Err(ApiError::invalid(
            PATH,
            "'input' must hold at least one element",
        ));
    }
    Ok(inputs)
}

/// One vector as it travels.
#[derive(Debug, PartialEq)]
pub(crate) struct Vector {
    pub(crate) values: Vec<f32>,
    pub(crate) format: EncodingFormat,
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.format {
            EncodingFormat::Float => self.values.serialize(serializer),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
                serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

/// One vector in its place.
#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingObject {
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Vector,
    /// Set where the end of the input was cut off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) truncated: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingResponse {
    pub(crate) object: &'static str,
    pub(crate) data: Vec<EmbeddingObject>,
    pub(crate) model: String,
    pub(crate) usage: Usage,
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_engine::Truncate;
    use serde_json::json;

    fn parse(body: Value) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn inputs_have_four_shapes() {
        let inputs = |input: Value| parse(json!({"input": input})).map(|request| request.inputs);
        let text = |text: &str| EmbeddingInput::Text(text.into());
        let tokens = |ids: &[u32]| EmbeddingInput::Tokens(ids.into());
        assert_eq!(inputs(json!("a")).unwrap(), [text("a")]);
        assert_eq!(inputs(json!(["a", ""])).unwrap(), [text("a"), text("")]);
        assert_eq!(inputs(json!([1, 2])).unwrap(), [tokens(&[1, 2])]);
        assert_eq!(
            inputs(json!([[1], [2, 3]])).unwrap(),
            [tokens(&[1]), tokens(&[2, 3])]
        );
        for (bad, param) in [
            (json!(null), "input"),
            (json!([]), "input"),
            (json!(3), "input"),
            (json!({"text": "a"}), "input"),
            (json!(vec!["a"; 2049]), "input"),
            (json!([1, "a"]), "input[1]"),
            (json!(["a", 1]), "input[1]"),
            (json!([[1], [-1]]), "input[1][0]"),
        ] {
            let error = inputs(bad.clone()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{bad}");
        }
        assert_eq!(inputs(json!(vec!["a"; 2048])).unwrap().len(), 2048);
    }

    #[test]
    fn wishes_are_read() {
        let request = parse(
            json!({"input": "a", "model": "m", "dimensions": 32, "instruct": "find",
            "encoding_format": "base64", "truncate": true, "user": "u", "later": 1}),
        )
        .unwrap();
        assert_eq!(request.format, EncodingFormat::Base64);
        assert_eq!(request.options.dimensions, Some(32));
        assert_eq!(request.options.truncate, Truncate::ToLimit);
        for bad in [
            json!({"encoding_format": "int8"}),
            json!({"dimensions": 0}),
            json!({"dimensions": "32"}),
            json!({"prompt_name": 3}),
        ] {
            let mut body = bad.clone();
            body["input"] = json!("a");
            assert!(parse(body).is_err(), "{bad}");
        }
    }

    #[test]
    fn vectors_travel_as_numbers_or_as_their_bytes() {
        let vector = |format| Vector {
            values: vec![0.5, -1.25e-8],
            format,
        };
        let float = serde_json::to_value(vector(EncodingFormat::Float)).unwrap();
        assert_eq!(float[0], 0.5);
        let text = serde_json::to_value(vector(EncodingFormat::Base64)).unwrap();
        let bytes = BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap();
        assert_eq!(bytes[..4], 0.5_f32.to_le_bytes());
        assert_eq!(bytes[4..], (-1.25e-8_f32).to_le_bytes());
    }
}
