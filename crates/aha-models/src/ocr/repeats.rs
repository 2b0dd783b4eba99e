//! Answers that end in a loop.

/// Shorter answers are left alone: documents repeat themselves, too.
const SHORTEST: usize = 8000;
/// As many repetitions are a loop.
const REPETITIONS: usize = 10;

/// `text` without the repetitions at its end but for the first, where a long text ends in a loop: the rule that
/// HunyuanOCR's reference applies to its answers.
pub(crate) fn without_repeated_end(text: &str) -> &str {
    // Where characters begin, and the end.
    let starts: Vec<usize> = text
        .char_indices()
        .map(|(at, _)| at)
        .chain([text.len()])
        .collect();
    let count = starts.len() - 1;
    if count < SHORTEST {
        return text;
    }
    let from_end = |characters: usize| starts[count - characters];
    for length in 2..=count / REPETITIONS {
        let piece = &text[from_end(length)..];
        let repetitions = (1..=count / length)
            .take_while(|times| {
                let start = from_end(times * length);
                text[start..].starts_with(piece)
            })
            .count();
        if repetitions >= REPETITIONS {
            return &text[..from_end((repetitions - 1) * length)];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text without repetitions.
    fn varied(count: usize) -> String {
        (0..count)
            .map(|i| char::from_u32(0x4e00 + (i * i % 20_011) as u32).unwrap())
            .collect()
    }

    #[test]
    fn loops_at_the_end_of_long_texts_are_cut_to_one_round() {
        let text = varied(8000) + &"表 a|".repeat(12);
        assert_eq!(without_repeated_end(&text), varied(8000) + "表 a|");
        let few = varied(8000) + &"表 a|".repeat(9);
        assert_eq!(without_repeated_end(&few), few);
        let all = "ab".repeat(5000);
        assert_eq!(without_repeated_end(&all), "ab");
    }

    #[test]
    fn short_texts_and_repetitions_inside_are_kept() {
        let short = "ab".repeat(100);
        assert_eq!(without_repeated_end(&short), short);
        let inside = "ab".repeat(100) + &varied(9000);
        assert_eq!(without_repeated_end(&inside), inside);
    }
}
