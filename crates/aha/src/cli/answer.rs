//! An answer on its way to the user: standard output, a pipe or a file.

use super::console::{Thoughts, printable};
use super::failure::{Failure, Outcome};
use super::signals::{Signal, Signals};
use aha::{ChatEvent, ChatStream, Ended};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

/// Where an answer goes.
pub(crate) struct Sink {
    target: Target,
    name: String,
    /// The last text ended its line.
    line_ended: bool,
}

enum Target {
    Terminal,
    Pipe,
    File(File),
}

impl Sink {
    /// Standard output.
    pub(crate) fn stdout() -> Self {
        let target = if io::stdout().is_terminal() {
            Target::Terminal
        } else {
            Target::Pipe
        };
        Self {
            target,
            name: "standard output".to_owned(),
            line_ended: true,
        }
    }

    /// A file, which keeps its content until [`Sink::begin`]; without a path or with `-`,
    /// standard output.
    pub(crate) fn open(path: Option<PathBuf>) -> Outcome<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            return Ok(Self::stdout());
        };
        let name = path.display().to_string();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Failure::message(format!("cannot write to {name}: {error}")))?;
        Ok(Self {
            target: Target::File(file),
            name,
            line_ended: true,
        })
    }

    /// Makes room for the answer.
    pub(crate) fn begin(&mut self) -> Outcome {
        match &self.target {
            // Only a regular file has a length to reset; a device or a named pipe has none.
            Target::File(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => file
                .set_len(0)
                .map_err(|error| Failure::output(&self.name, &error)),
            _ => Ok(()),
        }
    }

    pub(crate) fn write(&mut self, text: &str) -> Outcome {
        if text.is_empty() {
            return Ok(());
        }
        self.line_ended = text.ends_with('\n');
        let put = |output: &mut dyn Write, text: &str| {
            output
                .write_all(text.as_bytes())
                .and_then(|()| output.flush())
        };
        match &mut self.target {
            Target::Terminal => put(&mut io::stdout().lock(), &printable(text)),
            Target::Pipe => put(&mut io::stdout().lock(), text),
            Target::File(file) => put(file, text),
        }
        .map_err(|error| Failure::output(&self.name, &error))
    }

    /// Ends the last line.
    fn end(&mut self) -> Outcome {
        if self.line_ended {
            Ok(())
        } else {
            self.write("\n")
        }
    }
}

/// What was told of an answer.
pub(crate) struct Told {
    /// Its text, as far as it came.
    pub(crate) content: String,
    /// The thoughts before it.
    pub(crate) reasoning: String,
    /// How it ended: by itself, or by a signal of the user's.
    pub(crate) end: Result<Ended, Signal>,
}

/// Writes an answer as it comes, until its end or the first signal, which cancels it.
pub(crate) async fn tell(
    mut stream: ChatStream,
    sink: &mut Sink,
    signals: &Signals,
) -> Outcome<Told> {
    let mut guard = signals.guard();
    let mut thoughts = Thoughts::new();
    let (mut content, mut reasoning) = (String::new(), String::new());
    let end = loop {
        let event = tokio::select! {
            event = stream.next() => event,
            signal = guard.signalled() => break Ok(Err(signal)),
        };
        match event {
            Some(Ok(ChatEvent::Content(text))) => {
                thoughts.end();
                sink.write(&text)?;
                content.push_str(&text);
            }
            Some(Ok(ChatEvent::Reasoning(text))) => {
                thoughts.write(&text);
                reasoning.push_str(&text);
            }
            Some(Ok(ChatEvent::Finished(ended))) => break Ok(Ok(ended)),
            // No tools are offered, so there are no calls.
            Some(Ok(_)) => {}
            Some(Err(error)) => break Err(error.into()),
            None => break Err(Failure::message("the answer broke off")),
        }
    };
    thoughts.end();
    sink.end()?;
    Ok(Told {
        content,
        reasoning,
        end: end?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_the_answer_with_its_last_line_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.txt");
        std::fs::write(&path, "an older and longer answer").unwrap();
        let mut sink = Sink::open(Some(path.clone())).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "an older and longer answer"
        );
        sink.begin().unwrap();
        sink.write("new").unwrap();
        sink.write("").unwrap();
        sink.end().unwrap();
        sink.end().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        let missing = folder.path().join("no/such/folder.txt");
        assert!(matches!(
            Sink::open(Some(missing)),
            Err(Failure::Message(_))
        ));
    }
}
