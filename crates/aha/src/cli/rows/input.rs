//! Texts out of files: a line each, a JSON value each, or a column of a table.

use crate::cli::failure::{Failure, Outcome};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The field or column that is read where none is named.
const DEFAULT_FIELD: &str = "text";

/// All texts of a file, by its ending: `.txt`, `.jsonl` or `.csv`. Every line or record is one text, the empty ones
/// included: rows of the output are those of the input.
pub(in crate::cli) fn read_texts(path: &Path, field: Option<&str>) -> Outcome<Vec<String>> {
    let shown = path.display();
    let failed =
        |error: &dyn std::fmt::Display| Failure::message(format!("cannot read {shown}: {error}"));
    let ending = path
        .extension()
        .map(|ending| ending.to_string_lossy().to_lowercase());
    let file = File::open(path).map_err(|error| failed(&error))?;
    let texts = match ending.as_deref() {
        Some("txt") if field.is_none() => lines(file).collect::<Result<_, _>>(),
        Some("txt") => Err("a .txt file has no fields".to_owned()),
        Some("jsonl" | "ndjson") => from_json_lines(file, field),
        Some("csv") => from_csv(file, field),
        _ => Err("the name must end in .txt, .jsonl or .csv".to_owned()),
    };
    let texts = texts.map_err(|error| failed(&error))?;
    if texts.is_empty() {
        return Err(failed(&"it holds no texts"));
    }
    Ok(texts)
}

fn lines(source: impl Read) -> impl Iterator<Item = Result<String, String>> {
    let lines = BufReader::new(source).lines().enumerate();
    lines.map(|(number, line)| line.map_err(|error| format!("line {}: {error}", number + 1)))
}

fn from_json_lines(source: impl Read, field: Option<&str>) -> Result<Vec<String>, String> {
    let name = field.unwrap_or(DEFAULT_FIELD);
    lines(source)
        .enumerate()
        .map(|(number, line)| {
            let at = |problem: &str| format!("line {}: {problem}", number + 1);
            let value = serde_json::from_str(&line?).map_err(|error| at(&error.to_string()))?;
            match value {
                Value::String(text) if field.is_none() => Ok(text),
                Value::Object(mut object) => match object.remove(name) {
                    Some(Value::String(text)) => Ok(text),
                    Some(_) => Err(at(&format!("`{name}` is no string"))),
                    None => Err(at(&format!(
                        "there is no `{name}`; name the field with --field"
                    ))),
                },
                _ => Err(at("it is neither an object nor a string")),
            }
        })
        .collect()
}

fn from_csv(source: impl Read, field: Option<&str>) -> Result<Vec<String>, String> {
    let mut reader = csv::Reader::from_reader(source);
    let headers = reader.headers().map_err(|error| error.to_string())?.clone();
    let name = field.unwrap_or(DEFAULT_FIELD);
    let column = match headers.iter().position(|header| header == name) {
        Some(column) => column,
        None if field.is_none() && headers.len() == 1 => 0,
        None => {
            let known: Vec<&str> = headers.iter().collect();
            return Err(format!(
                "there is no column `{name}`; name one with --column: {}",
                known.join(", ")
            ));
        }
    };
    reader
        .records()
        .map(|record| {
            let record = record.map_err(|error| error.to_string())?;
            Ok(record.get(column).unwrap_or_default().to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &str, field: Option<&str>) -> Result<Vec<String>, String> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(name);
        std::fs::write(&path, content).unwrap();
        read_texts(&path, field).map_err(|failure| match failure {
            Failure::Message(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn files_of_three_kinds_hold_texts() {
        assert_eq!(
            read("a.txt", "one\n\ntwo\r\n", None).unwrap(),
            ["one", "", "two"]
        );
        assert_eq!(
            read("a.jsonl", "{\"text\": \"one\"}\n\"two\"\n", None).unwrap(),
            ["one", "two"]
        );
        assert_eq!(
            read("a.jsonl", "{\"body\": \"é\"}\n", Some("body")).unwrap(),
            ["é"]
        );
        let table = "id,text\n1,\"one, and\nmore\"\n2,two\n";
        assert_eq!(
            read("a.csv", table, None).unwrap(),
            ["one, and\nmore", "two"]
        );
        assert_eq!(read("a.csv", table, Some("id")).unwrap(), ["1", "2"]);
        assert_eq!(read("a.CSV", "title\none\n", None).unwrap(), ["one"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (name, content, field, wanted) in [
            ("a.txt", "", None, "no texts"),
            ("a.txt", "x", Some("f"), "no fields"),
            ("a.pdf", "x", None, ".jsonl"),
            ("a.jsonl", "\"a\"\n{", None, "line 2"),
            ("a.jsonl", "{\"body\": \"a\"}", None, "--field"),
            ("a.jsonl", "{\"text\": 3}", None, "no string"),
            ("a.jsonl", "3", None, "line 1"),
            ("a.csv", "id,body\n1,a\n", None, "id, body"),
            ("a.csv", "id,text\n1\n", None, "fields"),
        ] {
            let message = read(name, content, field).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        }
        assert!(read_texts(Path::new("/nowhere.txt"), None).is_err());
    }
}
