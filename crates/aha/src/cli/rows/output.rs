//! The whole of the rows as a file: NumPy's array, JSON lines or Parquet.

use super::Source;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::jobs::part_of;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

/// Rows of a Parquet row group: bounds what is held at once.
const ROW_GROUP: usize = 8192;

const SCHEMA: &str = "message embeddings {
    REQUIRED BYTE_ARRAY text (UTF8);
    REQUIRED GROUP embedding (LIST) { REPEATED GROUP list { REQUIRED FLOAT element; } }
}";

/// Kinds of output files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Format {
    /// One array `[texts, numbers]` of f32.
    Npy,
    /// An object a line: `index`, `text`, `embedding`.
    Jsonl,
    /// Columns `text` and `embedding`.
    Parquet,
}

impl Format {
    /// The format that a file's ending names.
    pub(in crate::cli) fn of(path: &Path) -> Outcome<Self> {
        let ending = path
            .extension()
            .map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("npy") => Ok(Self::Npy),
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(Failure::usage(format!(
                "cannot write {}: the name must end in .npy, .jsonl or .parquet",
                path.display()
            ))),
        }
    }
}

/// Writes all rows, beside the file first and in its place when they are complete.
pub(in crate::cli) fn write(
    format: Format,
    path: &Path,
    texts: &[String],
    rows: &impl Source,
) -> Outcome {
    let part = part_of(path);
    let shown = path.display().to_string();
    let failed = |error: io::Error| Failure::output(&shown, &error);
    let file = BufWriter::with_capacity(1 << 20, File::create(&part).map_err(failed)?);
    match format {
        Format::Npy => write_npy(file, rows, &shown)?,
        Format::Jsonl => write_jsonl(file, texts, rows, &shown)?,
        Format::Parquet => write_parquet(file, texts, rows, &shown)?,
    }
    std::fs::rename(&part, path).map_err(failed)
}

/// The head of version 1.0 of NumPy's format for an array `[rows, width]` of little-endian f32.
fn npy_head(rows: usize, width: usize) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    // The values begin at a multiple of 64 bytes, behind an end of line.
    let head = 10;
    let length = (head + text.len() + 1).next_multiple_of(64) - head;
    text = format!("{text:<0$}\n", length - 1);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

fn write_npy(mut file: impl Write, rows: &impl Source, shown: &str) -> Outcome {
    let failed = |error: io::Error| Failure::output(shown, &error);
    file.write_all(&npy_head(rows.rows(), rows.width()))
        .map_err(failed)?;
    rows.read(|row| {
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).map_err(failed)
    })?;
    file.flush().map_err(failed)
}

fn write_jsonl(mut file: impl Write, texts: &[String], rows: &impl Source, shown: &str) -> Outcome {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        index: usize,
        text: &'a str,
        embedding: &'a [f32],
    }
    let failed = |error: io::Error| Failure::output(shown, &error);
    let mut texts = texts.iter().enumerate();
    rows.read(|row| {
        let Some((index, text)) = texts.next() else {
            return Ok(());
        };
        let line = Line {
            index,
            text,
            embedding: row,
        };
        let mut line = serde_json::to_vec(&line).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        file.write_all(&line).map_err(failed)
    })?;
    file.flush().map_err(failed)
}

fn write_parquet(
    file: impl Write + Send,
    texts: &[String],
    rows: &impl Source,
    shown: &str,
) -> Outcome {
    let failed =
        |error: ParquetError| Failure::message(format!("cannot write to {shown}: {error}"));
    let schema = parse_message_type(SCHEMA).map_err(failed)?;
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema), properties).map_err(failed)?;
    let width = rows.width();
    let mut values: Vec<f32> = Vec::new();
    let mut groups = texts.chunks(ROW_GROUP);
    let mut write_group = |values: &mut Vec<f32>| -> Outcome {
        let Some(texts) = groups.next() else {
            return Ok(());
        };
        write_row_group(&mut writer, texts, values, width).map_err(failed)?;
        values.clear();
        Ok(())
    };
    rows.read(|row| {
        values.extend_from_slice(row);
        if values.len() == ROW_GROUP * width {
            write_group(&mut values)?;
        }
        Ok(())
    })?;
    if !values.is_empty() {
        write_group(&mut values)?;
    }
    writer.close().map_err(failed)?;
    Ok(())
}

fn write_row_group<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    texts: &[String],
    values: &[f32],
    width: usize,
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    if let Some(mut column) = group.next_column()? {
        let texts: Vec<ByteArray> = texts.iter().map(|text| text.as_str().into()).collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&texts, None, None)?;
        column.close()?;
    }
    if let Some(mut column) = group.next_column()? {
        // Every number is there, and the first of each row begins a new list.
        let defined = vec![1; values.len()];
        let repeated: Vec<i16> = (0..values.len())
            .map(|index| i16::from(index % width != 0))
            .collect();
        column
            .typed::<FloatType>()
            .write_batch(values, Some(&defined), Some(&repeated))?;
        column.close()?;
    }
    group.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_array_is_what_numpy_writes() {
        let head = npy_head(3, 384);
        assert_eq!(head.len() % 64, 0);
        assert_eq!(&head[..8], b"\x93NUMPY\x01\x00");
        assert_eq!(
            usize::from(head[8]) + 256 * usize::from(head[9]),
            head.len() - 10
        );
        let text = std::str::from_utf8(&head[10..]).unwrap();
        assert!(text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 384), }"));
        assert!(text.ends_with(" \n"));
    }

    #[test]
    fn endings_name_formats() {
        assert_eq!(Format::of(Path::new("a.NPY")).unwrap(), Format::Npy);
        assert_eq!(Format::of(Path::new("a.parquet")).unwrap(), Format::Parquet);
        assert!(Format::of(Path::new("a.csv")).is_err());
        assert!(Format::of(Path::new("npy")).is_err());
    }
}
