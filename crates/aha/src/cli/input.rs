//! What `-i` may name: a text, standard input, a file.

use super::failure::{Failure, Outcome};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

/// More text than any context holds.
const LARGEST_INPUT: u64 = 16 << 20;

/// One `-i`, as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Text(String),
    Stdin,
    File(PathBuf),
}

impl Source {
    fn parse(argument: &str) -> Self {
        match argument {
            "-" => Self::Stdin,
            _ => match argument.strip_prefix('@') {
                // `@@name` is the text `@name`.
                Some(text) if text.starts_with('@') => Self::Text(text.to_owned()),
                Some(path) => Self::File(path.into()),
                None => match argument.strip_prefix("file://") {
                    Some(path) => Self::File(path.into()),
                    None => Self::Text(argument.to_owned()),
                },
            },
        }
    }

    fn read(self) -> Outcome<String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Stdin => read_text(io::stdin().lock(), "standard input"),
            Self::File(path) => {
                let shown = path.display().to_string();
                let file = open(&path).map_err(|error| cannot_read(&shown, &error))?;
                read_text(file, &shown)
            }
        }
    }
}

/// Joins all inputs to one prompt, with an empty line between them. Without any, a pipe on
/// standard input is read.
pub(crate) fn read_all(arguments: &[String]) -> Outcome<String> {
    if arguments.is_empty() {
        if io::stdin().is_terminal() {
            return Err(Failure::usage(
                "there is no input: give a text with -i, a file with -i @FILE, or a pipe",
            ));
        }
        return Source::Stdin.read();
    }
    once(arguments)?;
    let texts: Vec<String> = arguments
        .iter()
        .map(|argument| Source::parse(argument).read())
        .collect::<Outcome<_>>()?;
    Ok(texts.join("\n\n"))
}

/// Reads every input for itself. Without any, a pipe on standard input is read.
pub(crate) fn read_each(arguments: &[String]) -> Outcome<Vec<String>> {
    if arguments.len() < 2 {
        return read_all(arguments).map(|text| vec![text]);
    }
    once(arguments)?;
    arguments
        .iter()
        .map(|argument| Source::parse(argument).read())
        .collect()
}

fn once(arguments: &[String]) -> Outcome {
    if arguments.iter().filter(|argument| *argument == "-").count() > 1 {
        return Err(Failure::usage(
            "standard input can be read only once: '-i -' is given twice",
        ));
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    Ok(file)
}

fn cannot_read(what: &str, error: &io::Error) -> Failure {
    Failure::message(format!("cannot read {what}: {error}"))
}

fn read_text(source: impl Read, what: &str) -> Outcome<String> {
    let mut bytes = Vec::new();
    source
        .take(LARGEST_INPUT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot_read(what, &error))?;
    if bytes.len() as u64 > LARGEST_INPUT {
        let limit = LARGEST_INPUT >> 20;
        return Err(Failure::message(format!(
            "cannot read {what}: it is longer than {limit} MiB"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::message(format!(
            "cannot read {what}: it is no UTF-8 text (byte {at})"
        ))
    })?;
    // The end of the last line belongs to the file, not to the prompt.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_texts_files_and_standard_input() {
        for (argument, source) in [
            ("-", Source::Stdin),
            ("hello", Source::Text("hello".into())),
            ("", Source::Text(String::new())),
            ("@a.txt", Source::File("a.txt".into())),
            ("@@mention", Source::Text("@mention".into())),
            ("file:///home/a", Source::File("/home/a".into())),
        ] {
            assert_eq!(Source::parse(argument), source, "{argument}");
        }
    }

    #[test]
    fn texts_must_be_short_enough_and_unicode() {
        assert_eq!(read_text(&b"a\r\nb\r\n"[..], "x").unwrap(), "a\r\nb");
        assert_eq!(read_text(&b"a\n\n"[..], "x").unwrap(), "a\n");
        assert!(
            matches!(read_text(&b"ab\xff"[..], "x"), Err(Failure::Message(text))
            if text == "cannot read x: it is no UTF-8 text (byte 2)")
        );
        let long = io::repeat(b'a').take(LARGEST_INPUT + 1);
        assert!(
            matches!(read_text(long, "x"), Err(Failure::Message(text)) if text.contains("16 MiB"))
        );
    }
}
