//! Reading a JSON object field by field, with errors that name the field's path.
//!
//! Three rules hold everywhere: unknown fields are ignored, `null` is the same as absent, and a
//! wrong type is an error that says what was expected and what was found.

use crate::error::ApiError;
use serde_json::{Map, Number, Value};
use std::ops::RangeInclusive;

/// A JSON object being read; its path is empty for the request itself.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// Parses a request body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid_json(format!("the body is not JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self {
                map,
                path: String::new(),
            }),
            other => Err(ApiError::invalid_json(format!(
                "the body must be a JSON object, not {}",
                kind(&other)
            ))),
        }
    }

    /// An object inside a request, at `path`.
    pub(crate) fn of(value: Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(wrong_type(&path, "an object", &other)),
        }
    }

    /// The fields that are left, at the same path.
    pub(crate) fn part(&mut self) -> Self {
        Self {
            map: std::mem::take(&mut self.map),
            path: self.path.clone(),
        }
    }

    /// The path of a field of this object, as errors name it.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Whether the field is there and not null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes the field out, whatever its type.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map
            .get_mut(name)
            .map(Value::take)
            .filter(|value| !value.is_null())
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path(name), "true or false", &other)),
        }
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(&self.path(name), "an object", &other)),
        }
    }

    /// A number within `range`.
    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        number_in(&value, &self.path(name), range).map(Some)
    }

    /// An integer within `range`; `16.0` counts as one.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let path = self.path(name);
        let Some(number) = as_number(&value) else {
            return Err(wrong_type(&path, "an integer", &value));
        };
        let Some(integer) = as_integer(number) else {
            return Err(ApiError::wrong_type(
                &path,
                format!("'{path}' must be an integer, not {number}"),
            ));
        };
        if range.contains(&integer) {
            Ok(Some(integer))
        } else {
            Err(out_of_range(&path, number, range.start(), range.end()))
        }
    }

    /// A count within `range`.
    pub(crate) fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let bound = |value: usize| i128::try_from(value).unwrap_or(i128::MAX);
        let found = self.integer(name, bound(*range.start())..=bound(*range.end()))?;
        Ok(found.and_then(|value| usize::try_from(value).ok()))
    }

    /// What was not taken yet, without nulls.
    pub(crate) fn rest(&mut self) -> Map<String, Value> {
        let mut rest = std::mem::take(&mut self.map);
        rest.retain(|_, value| !value.is_null());
        rest
    }

    /// An array of token ids.
    pub(crate) fn token_ids(&mut self, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
        let path = self.path(name);
        self.array(name)?
            .map(|values| token_ids(&values, &path))
            .transpose()
    }
}

/// A number within `range`.
pub(crate) fn number_in(
    value: &Value,
    path: &str,
    range: RangeInclusive<f64>,
) -> Result<f64, ApiError> {
    let Some(number) = as_number(value) else {
        return Err(wrong_type(path, "a number", value));
    };
    match number.as_f64() {
        Some(found) if range.contains(&found) => Ok(found),
        _ => Err(out_of_range(path, number, range.start(), range.end())),
    }
}

/// Token ids out of an array's values.
pub(crate) fn token_ids(values: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let token_id = |(index, value): (usize, &Value)| {
        as_number(value)
            .and_then(as_integer)
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| wrong_type(&format!("{path}[{index}]"), "a token id", value))
    };
    values.iter().enumerate().map(token_id).collect()
}

/// The error for a value of another type than expected.
pub(crate) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::wrong_type(
        path,
        format!("'{path}' must be {expected}, not {}", kind(found)),
    )
}

fn out_of_range(
    path: &str,
    found: &Number,
    least: &dyn std::fmt::Display,
    most: &dyn std::fmt::Display,
) -> ApiError {
    ApiError::invalid(
        path,
        format!("'{path}' must lie between {least} and {most}, not {found}"),
    )
}

fn as_number(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => Some(number),
        _ => None,
    }
}

/// The integer that a JSON number is, if it is one.
fn as_integer(number: &Number) -> Option<i128> {
    if let Some(value) = number.as_i64() {
        return Some(value.into());
    }
    if let Some(value) = number.as_u64() {
        return Some(value.into());
    }
    // Beyond 2^53 a float names no single integer.
    number
        .as_f64()
        .filter(|value| value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0)
        .map(|value| value as i128)
}

/// A JSON type in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of(value, String::new()).unwrap()
    }

    #[test]
    fn null_is_absent_and_unknown_fields_stay_unread() {
        let mut read = fields(json!({"a": null, "b": true, "later": {"x": 1}}));
        assert_eq!(read.boolean("a").unwrap(), None);
        assert_eq!(read.boolean("b").unwrap(), Some(true));
        assert_eq!(read.string("c").unwrap(), None);
    }

    #[test]
    fn wrong_types_name_the_path_and_both_types() {
        let mut read = Fields::of(json!({"content": 3}), "messages[2]".into()).unwrap();
        let error = read.string("content").unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("messages[2].content"));
        assert_eq!(
            error.body.message,
            "'messages[2].content' must be a string, not a number"
        );
        assert_eq!(error.body.code, Some("invalid_type"));
    }

    #[test]
    fn integers_are_whole_and_within_range() {
        let read = |value: Value| fields(json!({"n": value})).integer("n", 0..=10);
        assert_eq!(read(json!(7)).unwrap(), Some(7));
        assert_eq!(read(json!(7.0)).unwrap(), Some(7));
        for bad in [
            json!(7.5),
            json!("7"),
            json!(true),
            json!(11),
            json!(-1),
            json!(u64::MAX),
            json!(1e300),
        ] {
            assert_eq!(
                read(bad.clone()).unwrap_err().body.param.as_deref(),
                Some("n"),
                "{bad}"
            );
        }
    }

    #[test]
    fn token_ids_name_the_element_at_fault() {
        assert_eq!(
            token_ids(&[json!(1), json!(2)], "tokens").unwrap(),
            vec![1, 2]
        );
        for bad in [json!(-1), json!(5_000_000_000_u64), json!("a"), json!(0.5)] {
            let error = token_ids(&[json!(1), bad], "tokens").unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some("tokens[1]"));
        }
    }

    #[test]
    fn bodies_that_are_not_json_objects_are_refused() {
        let deep = "[".repeat(100_000);
        let bodies: [&[u8]; 8] = [
            b"",
            b"{",
            b"[]",
            b"\xff\xfe",
            b"{\"a\": \"\xff\"}",
            b"{\"a\": \"\\ud800\"}",
            b"{\"a\": 1e999}",
            deep.as_bytes(),
        ];
        for body in bodies {
            let error = Fields::parse(body).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert_eq!(error.body.code, Some("invalid_json"));
        }
    }
}
