//! What Qwen3-ASR's answers say: the language, the text, and how runaway repetitions are mended.

use aha_engine::Transcript;

/// Stands between the language and the text.
pub(super) const TEXT_TAG: &str = "<asr_text>";
const LANGUAGE: &str = "language ";
/// Repetitions from which a pattern is taken for a runaway; a single character must exceed it.
const RUNAWAY: usize = 20;
/// Longest pattern that is looked for, in characters.
const LONGEST_PATTERN: usize = 20;

/// Reads an answer. `forced` is the language that opened it, in which case all of it is text.
pub(super) fn parse(raw: &str, forced: Option<&str>) -> Transcript {
    let mended = mend_repetitions(raw.trim());
    if let Some(language) = forced {
        return Transcript {
            text: mended,
            language: Some(language.to_owned()),
        };
    }
    let Some((head, text)) = mended.split_once(TEXT_TAG) else {
        return Transcript {
            text: mended,
            language: None,
        };
    };
    Transcript {
        text: text.trim().to_owned(),
        language: language(head),
    }
}

/// The language that the part before the tag names.
fn language(head: &str) -> Option<String> {
    if head.to_lowercase().contains("language none") {
        return None;
    }
    let name = head.lines().find_map(|line| {
        let line = line.trim();
        let opening = line.get(..LANGUAGE.len())?;
        let rest = line.get(LANGUAGE.len()..)?.trim();
        opening.eq_ignore_ascii_case(LANGUAGE).then_some(rest)
    })?;
    let mut characters = name.chars();
    let first = characters.next()?;
    Some(first.to_uppercase().collect::<String>() + &characters.as_str().to_lowercase())
}

/// Characters repeated more than [`RUNAWAY`] times in a row, and then patterns repeated at least so often, become one.
fn mend_repetitions(text: &str) -> String {
    let mut characters = Vec::with_capacity(text.len());
    for run in text.chars().collect::<Vec<_>>().chunk_by(|a, b| a == b) {
        let kept = if run.len() > RUNAWAY { 1 } else { run.len() };
        characters.extend_from_slice(&run[..kept]);
    }
    let mut mended = String::with_capacity(text.len());
    let mut rest = characters.as_slice();
    while let Some((first, behind)) = rest.split_first() {
        match runaway(rest) {
            Some((pattern, length)) => {
                mended.extend(pattern);
                rest = &rest[length..];
            }
            None => {
                mended.push(*first);
                rest = behind;
            }
        }
    }
    mended
}

/// The shortest pattern that `text` begins with as often as a runaway does, and the length of all its repetitions.
/// The reference does not look for any in the last characters.
fn runaway(text: &[char]) -> Option<(&[char], usize)> {
    if text.len() < 2 * RUNAWAY {
        return None;
    }
    (1..=LONGEST_PATTERN.min(text.len() / RUNAWAY)).find_map(|width| {
        let pattern = &text[..width];
        let repeated = text
            .chunks_exact(width)
            .take_while(|piece| piece == &pattern)
            .count();
        (repeated >= RUNAWAY).then_some((pattern, repeated * width))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_as_the_release_reads_them() {
        for (raw, forced, language, text) in [
            (
                "language English<asr_text>Hello there.",
                None,
                Some("English"),
                "Hello there.",
            ),
            (
                "language chinese\n<asr_text>你好",
                None,
                Some("Chinese"),
                "你好",
            ),
            (
                "plain text without tag ",
                None,
                None,
                "plain text without tag",
            ),
            ("", None, None, ""),
            ("language None<asr_text>", None, None, ""),
            ("language None<asr_text> noise", None, None, "noise"),
            (
                "\nlanguage  yue \nfoo<asr_text> a<asr_text>b ",
                None,
                Some("Yue"),
                "a<asr_text>b",
            ),
            ("x<asr_text>y", None, None, "y"),
            (" hi ", Some("French"), Some("French"), "hi"),
        ] {
            let found = parse(raw, forced);
            assert_eq!(
                (found.language.as_deref(), found.text.as_str()),
                (language, text),
                "{raw:?}"
            );
        }
    }

    #[test]
    fn runaways_become_one() {
        let twenty = "o".repeat(20);
        for (text, expected) in [
            ("n".to_owned() + &"o".repeat(21), "no".to_owned()),
            (twenty.clone(), twenty),
            ("ha".repeat(30) + " end", "ha end".to_owned()),
            ("abc ".repeat(19), "abc ".repeat(19)),
            ("好的，".repeat(24), "好的，".to_owned()),
            // Two runaways, one behind the other.
            (
                "ab".repeat(20) + &"xyz".repeat(25) + "!",
                "abxyz!".to_owned(),
            ),
        ] {
            assert_eq!(mend_repetitions(&text), expected);
        }
    }
}
