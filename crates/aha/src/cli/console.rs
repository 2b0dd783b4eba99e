//! What is written to the terminal: answers, notes, errors, progress.

use super::failure::{Failure, Outcome};
use clap::builder::styling::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// Writes `error: …` to standard error.
pub(crate) fn error(text: &str) {
    bars().suspend(|| {
        // Nobody is left to tell when this fails.
        let _ = writeln!(anstream::stderr(), "{ERROR}error:{ERROR:#} {text}");
    });
}

/// Writes a line beside the answer, to standard error.
pub(crate) fn note(text: &str) {
    bars().suspend(|| {
        let _ = writeln!(anstream::stderr(), "{DIM}{text}{DIM:#}");
    });
}

/// Writes a whole text to standard output.
pub(crate) fn print(text: &str) -> Outcome {
    let mut output = anstream::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Failure::output("standard output", &error))
}

/// Writes a value as indented JSON to standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::message(format!("cannot write JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Whether the user sees standard error.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// What the model thinks, dimmed on standard error; silent where nobody sees it.
pub(crate) struct Thoughts {
    shown: bool,
    open: bool,
}

impl Thoughts {
    pub(crate) fn new() -> Self {
        Self {
            shown: stderr_is_terminal(),
            open: false,
        }
    }

    pub(crate) fn write(&mut self, text: &str) {
        if self.shown {
            self.open = true;
            let _ = write!(anstream::stderr(), "{DIM}{}{DIM:#}", printable(text));
        }
    }

    /// Separates the thoughts from what follows.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(anstream::stderr(), "\n");
        }
    }
}

/// A model's text as a terminal may get it: without the control characters that could move the
/// cursor, set titles or worse.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && !matches!(c, '\n' | '\t') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// All bars of this process, which the log and the notes have to step around.
fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    // The target hides bars where standard error is no terminal.
    BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
}

/// A bar over bytes.
pub(crate) fn byte_bar(total: u64, with_rate: bool) -> ProgressBar {
    let template = if with_rate {
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{msg} {wide_bar} {bytes}/{total_bytes}"
    };
    let bar = bars().add(ProgressBar::new(total));
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A bar over things.
pub(crate) fn count_bar(total: u64) -> ProgressBar {
    let bar = bars().add(ProgressBar::new(total));
    match ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} {per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A bar over the items of a job, whose rate is told in the job's own unit.
pub(crate) fn job_bar(total: u64) -> ProgressBar {
    let bar = bars().add(ProgressBar::new(total));
    match ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The progress of loading weights: appears when it begins and vanishes when it is done.
pub(crate) struct LoadBar(Arc<OnceLock<ProgressBar>>);

impl LoadBar {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) fn callback(&self) -> impl Fn(u64, u64) + Send + Sync + 'static {
        let bar = Arc::clone(&self.0);
        move |done, total| {
            let bar = bar.get_or_init(|| byte_bar(total, false).with_message("loading"));
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn finish(&self) {
        if let Some(bar) = self.0.get() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Where the log goes: standard error, a line at a time, around the bars.
#[derive(Debug, Default)]
pub(crate) struct LogLine(Vec<u8>);

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.0);
        bars().suspend(|| {
            let _ = anstream::stderr().write_all(&line);
        });
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn answers_cannot_steer_the_terminal() {
        assert_eq!(
            super::printable("a\u{1b}]0;title\u{7}b\tc\nd"),
            "a\u{fffd}]0;title\u{fffd}b\tc\nd"
        );
        assert_eq!(super::printable("é 中 🙂"), "é 中 🙂");
    }
}
