//! Cutting a long text where a speaker would breathe.

/// Longest stretch that is spoken at once: what models of speech were trained on, about twenty seconds.
const LONGEST: usize = 240;
/// Ideographs and syllables stand for whole words' worth of sound.
const WIDE: usize = 3;
/// Shortest stretch that is left alone: short texts are spoken worse.
const SHORTEST: usize = 40;

/// Abbreviations whose full stop ends no sentence.
const ABBREVIATIONS: [&str; 18] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "no", "fig", "e.g", "i.e",
    "a.m", "p.m", "u.s", "approx",
];

/// The text in stretches that are spoken one after the other: whole sentences as far as they fit, else clauses, else
/// words. A text that is short enough comes back as it is; otherwise nothing but white space at the cuts is lost.
pub fn split_text(text: &str) -> Vec<String> {
    if weight(text) <= LONGEST {
        return vec![text.to_owned()];
    }
    let pieces = divide(
        text,
        &[sentence_ends, clause_ends, word_ends, character_ends],
    );
    let mut stretches: Vec<String> = Vec::new();
    for piece in pieces {
        match stretches.last_mut() {
            Some(last) if weight(last) + weight(piece) <= LONGEST => last.push_str(piece),
            _ => stretches.push(piece.to_owned()),
        }
    }
    // The last stretch shares what the one before has too much of only by joining it, where both are near the limit.
    if let [.., before, last] = stretches.as_mut_slice()
        && weight(last) < SHORTEST
    {
        before.push_str(&std::mem::take(last));
        stretches.pop();
    }
    stretches
        .iter()
        .map(|stretch| stretch.trim().to_owned())
        .filter(|stretch| stretch.chars().any(char::is_alphanumeric))
        .collect()
}

/// Pieces of at most [`LONGEST`], cut by the first of `rules` that suffices.
fn divide<'a>(text: &'a str, rules: &[fn(&str) -> Vec<usize>]) -> Vec<&'a str> {
    let Some((rule, finer)) = rules.split_first() else {
        return vec![text];
    };
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in rule(text).into_iter().chain([text.len()]) {
        let piece = &text[start..end];
        start = end;
        if weight(piece) > LONGEST {
            pieces.extend(divide(piece, finer));
        } else if !piece.is_empty() {
            pieces.push(piece);
        }
    }
    pieces
}

/// Offsets behind the marks that end sentences, closing quotes and white space included.
fn sentence_ends(text: &str) -> Vec<usize> {
    ends(text, |before, mark, after| match mark {
        '。' | '！' | '？' | '…' | '；' | '\n' | '।' | '؟' => true,
        '!' | '?' | ';' => after.is_none_or(|next| !next.is_alphanumeric()),
        '.' => after.is_none_or(char::is_whitespace) && !abbreviates(before),
        _ => false,
    })
}

fn clause_ends(text: &str) -> Vec<usize> {
    ends(text, |_, mark, after| match mark {
        '，' | '、' | '：' | '—' => true,
        ',' | ':' | ')' => after.is_none_or(char::is_whitespace),
        _ => false,
    })
}

fn word_ends(text: &str) -> Vec<usize> {
    ends(text, |_, mark, after| {
        mark.is_whitespace() && after.is_some_and(|next| !next.is_whitespace())
    })
}

/// Before every character that would make a piece too long.
fn character_ends(text: &str) -> Vec<usize> {
    let (mut offsets, mut sum) = (Vec::new(), 0);
    for (offset, character) in text.char_indices() {
        sum += width(character);
        if sum > LONGEST {
            offsets.push(offset);
            sum = width(character);
        }
    }
    offsets
}

/// Offsets behind the marks that `is_end` takes (told the text before, the mark, and what follows) and behind
/// quotes, brackets, further marks and white space that belong to them.
fn ends(text: &str, is_end: impl Fn(&str, char, Option<char>) -> bool) -> Vec<usize> {
    let mut offsets = Vec::new();
    let mut characters = text.char_indices().peekable();
    while let Some((offset, mark)) = characters.next() {
        let after = characters.peek().map(|(_, next)| *next);
        let closed = after.filter(|next| !is_closing(*next)).or_else(|| {
            // A quote between the mark and the white space does not hide the end.
            text[offset + mark.len_utf8()..]
                .chars()
                .find(|next| !is_closing(*next))
        });
        if !is_end(&text[..offset], mark, closed) {
            continue;
        }
        while let Some((_, next)) = characters.peek()
            && (is_closing(*next) || next.is_whitespace() || is_mark(*next))
        {
            characters.next();
        }
        offsets.push(characters.peek().map_or(text.len(), |(offset, _)| *offset));
    }
    offsets
}

fn is_closing(character: char) -> bool {
    matches!(
        character,
        '"' | '\'' | ')' | ']' | '”' | '’' | '」' | '』' | '）' | '》' | '】'
    )
}

fn is_mark(character: char) -> bool {
    matches!(character, '.' | '!' | '?' | '。' | '！' | '？' | '…')
}

fn abbreviates(before: &str) -> bool {
    let word = before
        .rsplit(|character: char| character.is_whitespace() || character == '(')
        .next()
        .unwrap_or_default();
    let mut letters = word.chars();
    let initial =
        matches!((letters.next(), letters.next()), (Some(only), None) if only.is_uppercase());
    initial || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}

fn weight(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn width(character: char) -> usize {
    let wide = matches!(character,
        '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7AF}'
        | '\u{20000}'..='\u{2FA1F}');
    if wide { WIDE } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(text: &str) -> String {
        text.split_whitespace().collect()
    }

    #[test]
    fn short_texts_are_left_alone_and_long_ones_lose_nothing() {
        assert_eq!(split_text("  Hello.  World. "), ["  Hello.  World. "]);
        let english =
            "Dr. Smith paid 3.14 dollars, i.e. too much. \"Was it?\" he asked (again). ".repeat(9);
        let chinese = "今天天气很好，我们一起去公园散步吧。你好，世界！他说：“走吗？”".repeat(9);
        for text in [
            english,
            chinese,
            "word ".repeat(200),
            "长".repeat(500),
            "x".repeat(1000),
        ] {
            let stretches = split_text(&text);
            assert!(stretches.len() > 1);
            assert_eq!(letters(&stretches.concat()), letters(&text));
            for stretch in &stretches {
                assert!(weight(stretch) <= LONGEST + SHORTEST, "{stretch}");
                assert!(!stretch.is_empty() && stretch.trim() == stretch);
            }
        }
    }

    #[test]
    fn cuts_lie_behind_sentences() {
        let sentence =
            "The quick brown fox, e.g. ours, met Mr. J. Hare at 10.30 and said: \"Well, well!\" ";
        for stretch in split_text(&sentence.repeat(8)) {
            assert!(
                stretch.starts_with("The quick") && stretch.ends_with("well!\""),
                "{stretch}"
            );
        }
        let sentence = "这是一个很长的句子，里面有逗号，也有“引号。”";
        for stretch in split_text(&sentence.repeat(12)) {
            assert!(
                stretch.starts_with("这是") && stretch.ends_with("。”"),
                "{stretch}"
            );
        }
        // Where a sentence is too long, at its clauses.
        let clauses = "one two three four five six seven eight nine ten, ".repeat(12);
        for stretch in split_text(&clauses) {
            assert!(
                stretch.starts_with("one") && stretch.ends_with("ten,"),
                "{stretch}"
            );
        }
    }
}
