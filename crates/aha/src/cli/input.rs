//! What `-i` may name: a text, standard input, a file of text, a picture, a clip or a recording.

use super::failure::{Failure, Outcome};
use aha::MediaReader;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

/// More text than any context holds.
const LARGEST_INPUT: u64 = 16 << 20;

/// The largest clip that is decoded.
const LARGEST_MEDIUM: u64 = 256 << 20;

/// Endings of pictures, clips and recordings: an argument like `cat.jpg` that names no file is a mistake, not a text.
const MEDIA_ENDINGS: [&str; 19] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "mp4", "mov", "mkv", "webm", "avi",
    "wav", "mp3", "flac", "ogg", "opus", "m4a",
];

/// What one `-i` brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Text(String),
    Media {
        /// For messages.
        name: String,
        bytes: Vec<u8>,
    },
}

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

    /// The same, but a picture's, clip's or recording's path stands for the file.
    fn parse_with_media(argument: &str) -> Outcome<Self> {
        let source = Self::parse(argument);
        if !matches!(&source, Self::Text(_)) || argument.starts_with('@') || argument.len() > 4096 {
            return Ok(source);
        }
        let path = Path::new(argument);
        if path.is_file() {
            let file = open(path).map_err(|error| cannot_read(argument, &error))?;
            let head = read_bytes(file, 4096, argument)?;
            return Ok(if is_media(&head) {
                Self::File(path.into())
            } else {
                source
            });
        }
        let ending = path.extension().and_then(|ending| ending.to_str());
        let ending = ending.unwrap_or_default().to_ascii_lowercase();
        if MEDIA_ENDINGS.contains(&ending.as_str()) && !argument.contains(char::is_whitespace) {
            return Err(Failure::message(format!(
                "cannot read {argument}: there is no such file"
            )));
        }
        Ok(source)
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

    fn read_with_media(self) -> Outcome<Input> {
        let (name, bytes) = match self {
            Self::Text(text) => return Ok(Input::Text(text)),
            Self::Stdin => {
                let name = "standard input".to_owned();
                let bytes = read_bytes(io::stdin().lock(), LARGEST_MEDIUM + 1, &name)?;
                (name, bytes)
            }
            Self::File(path) => {
                let name = path.display().to_string();
                let file = open(&path).map_err(|error| cannot_read(&name, &error))?;
                let bytes = read_bytes(file, LARGEST_MEDIUM + 1, &name)?;
                (name, bytes)
            }
        };
        if !is_media(&bytes) {
            return read_text(bytes.as_slice(), &name).map(Input::Text);
        }
        if bytes.len() as u64 > LARGEST_MEDIUM {
            let limit = LARGEST_MEDIUM >> 20;
            return Err(Failure::message(format!(
                "cannot read {name}: it is larger than {limit} MiB"
            )));
        }
        Ok(Input::Media { name, bytes })
    }
}

/// Whether bytes are a picture, clip or recording. Texts may begin like one (`BM…`), but hold no zero bytes.
fn is_media(bytes: &[u8]) -> bool {
    let is_text = !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
    !is_text && MediaReader::kind(bytes).is_ok()
}

/// Reads every input in order; texts that follow each other are one, with an empty line between them. Without any, a
/// pipe on standard input is read.
pub(crate) fn read_parts(arguments: &[String]) -> Outcome<Vec<Input>> {
    if arguments.is_empty() {
        if io::stdin().is_terminal() {
            return Err(nothing());
        }
        return Ok(vec![Source::Stdin.read_with_media()?]);
    }
    once(arguments)?;
    let mut parts: Vec<Input> = Vec::new();
    for argument in arguments {
        let next = Source::parse_with_media(argument)?.read_with_media()?;
        match (parts.last_mut(), next) {
            (Some(Input::Text(before)), Input::Text(text)) => {
                before.push_str("\n\n");
                before.push_str(&text);
            }
            (_, next) => parts.push(next),
        }
    }
    Ok(parts)
}

/// Reads one picture, clip or recording.
pub(crate) fn read_medium(path: &str) -> Outcome<Vec<u8>> {
    match Source::File(path.into()).read_with_media()? {
        Input::Media { bytes, .. } => Ok(bytes),
        Input::Text(_) => Err(Failure::message(format!(
            "cannot read {path}: it is no picture, clip or recording"
        ))),
    }
}

fn nothing() -> Failure {
    Failure::usage("there is no input: give a text with -i, a file with -i @FILE, or a pipe")
}

/// Joins all inputs to one prompt, with an empty line between them. Without any, a pipe on
/// standard input is read.
pub(crate) fn read_all(arguments: &[String]) -> Outcome<String> {
    if arguments.is_empty() {
        if io::stdin().is_terminal() {
            return Err(nothing());
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

fn read_bytes(source: impl Read, most: u64, what: &str) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    source
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot_read(what, &error))?;
    Ok(bytes)
}

fn read_text(source: impl Read, what: &str) -> Outcome<String> {
    let bytes = read_bytes(source, LARGEST_INPUT + 1, what)?;
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
    fn a_path_of_a_picture_is_the_picture_and_anything_else_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let gif = b"GIF89a\x01\0\x01\0\0\0\0;".to_vec();
        std::fs::write(path("cat.jpg"), &gif).unwrap();
        std::fs::write(
            path("bmw.txt"),
            "BMW makes cars, and this text begins like a bitmap.",
        )
        .unwrap();
        let media = || Input::Media {
            name: path("cat.jpg"),
            bytes: gif.clone(),
        };
        let read = |arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
            read_parts(&arguments)
        };
        let at = format!("@{}", path("cat.jpg"));
        for argument in [&path("cat.jpg"), &at] {
            let parts = read(&["What", "is this?", argument, "Say!"]).unwrap();
            let text = |text: &str| Input::Text(text.to_owned());
            assert_eq!(parts, [text("What\n\nis this?"), media(), text("Say!")]);
        }
        let text = read(&[&format!("@{}", path("bmw.txt"))]).unwrap();
        assert!(matches!(&text[..], [Input::Text(text)] if text.starts_with("BMW")));
        let named = read(&[&path("bmw.txt")]).unwrap();
        assert_eq!(named, [Input::Text(path("bmw.txt"))]);
        assert!(
            matches!(read(&[&path("dog.jpg")]), Err(Failure::Message(text)) if text.contains("no such file"))
        );
        assert!(read(&["what is dog.jpg"]).is_ok());
        assert_eq!(read_medium(&path("cat.jpg")).unwrap(), gif);
        assert!(read_medium(&path("bmw.txt")).is_err());
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
