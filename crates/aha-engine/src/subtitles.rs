//! Transcripts with times as SubRip and WebVTT files.

use std::fmt::Write;

/// A line of text and when it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Cue {
    /// Seconds from the start of the recording.
    pub start: f64,
    /// Seconds from the start of the recording.
    pub end: f64,
    /// What is shown.
    pub text: String,
}

/// A SubRip file (`.srt`). Cues without text are left out.
pub fn srt<'a>(cues: impl IntoIterator<Item = &'a Cue>) -> String {
    let mut file = String::new();
    for (number, cue, text) in shown(cues) {
        let (start, end) = times(cue, ',');
        let _ = write!(file, "{number}\n{start} --> {end}\n{text}\n\n");
    }
    file
}

/// A WebVTT file (`.vtt`). Cues without text are left out.
pub fn vtt<'a>(cues: impl IntoIterator<Item = &'a Cue>) -> String {
    let mut file = "WEBVTT\n\n".to_owned();
    for (_, cue, text) in shown(cues) {
        let (start, end) = times(cue, '.');
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        let _ = write!(file, "{start} --> {end}\n{text}\n\n");
    }
    file
}

/// Cues with text, numbered from 1. Text is one line: an empty one would end the cue.
fn shown<'a>(
    cues: impl IntoIterator<Item = &'a Cue>,
) -> impl Iterator<Item = (usize, &'a Cue, String)> {
    let one_line = |cue: &Cue| cue.text.split_whitespace().collect::<Vec<_>>().join(" ");
    cues.into_iter()
        .map(move |cue| (cue, one_line(cue)))
        .filter(|(_, text)| !text.is_empty())
        .enumerate()
        .map(|(index, (cue, text))| (index + 1, cue, text))
}

/// Start and end to the millisecond; a cue is shown for one at least.
fn times(cue: &Cue, point: char) -> (String, String) {
    let milliseconds = |seconds: f64| (seconds.max(0.0) * 1000.0).round() as u64;
    let start = milliseconds(cue.start);
    let end = milliseconds(cue.end).max(start + 1);
    (time(start, point), time(end, point))
}

fn time(milliseconds: u64, point: char) -> String {
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    format!(
        "{:02}:{:02}:{:02}{point}{rest:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cue(start: f64, end: f64, text: &str) -> Cue {
        Cue {
            start,
            end,
            text: text.to_owned(),
        }
    }

    #[test]
    fn cues_are_numbered_and_timed() {
        let cues = [
            cue(0.0, 1.25, "Hello"),
            cue(2.0, 3.0, " \n"),
            cue(3599.9996, 36_000.5, "two\n\nlines"),
        ];
        assert_eq!(
            srt(&cues),
            "1\n00:00:00,000 --> 00:00:01,250\nHello\n\n2\n01:00:00,000 --> 10:00:00,500\ntwo lines\n\n"
        );
        assert_eq!(
            vtt(&cues),
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nHello\n\n01:00:00.000 --> 10:00:00.500\ntwo lines\n\n"
        );
        assert_eq!(srt(&[]), "");
    }

    #[test]
    fn text_cannot_break_the_file() {
        let cues = [cue(1.0, 1.0, "a --> b & <i>")];
        assert_eq!(
            vtt(&cues),
            "WEBVTT\n\n00:00:01.000 --> 00:00:01.001\na --&gt; b &amp; &lt;i&gt;\n\n"
        );
        assert!(srt(&cues).contains("\n00:00:01,000 --> 00:00:01,001\n"));
    }
}
