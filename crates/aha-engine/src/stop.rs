//! Stop strings in a stream of text.

/// Watches a stream for stop strings. Text that could be the beginning of one is held back, and the stop string itself
/// never comes out. The match that is complete first counts (of several that end together, the longest), so that the
/// answer does not depend on how the text was cut into pieces.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Watches for `stops`; empty ones never match.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .cloned()
            .collect();
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece of text. Gives the text that is final, and the stop string if one was met: everything
    /// after it is dropped, and nothing more comes out.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        if self.stopped {
            return (String::new(), None);
        }
        if self.stops.is_empty() {
            return (text.to_owned(), None);
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, Some(stop));
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| unfinished(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The text that was still held back, which is now known not to be a stop string.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start and text of the match that ends first; of several, the longest.
    fn first_match(&self) -> Option<(usize, String)> {
        self.stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop.as_str())
                    .map(|start| (start + stop.len(), start, stop))
            })
            .min()
            .map(|(_, start, stop)| (start, stop.clone()))
    }
}

/// Bytes at the end of `text` that are the beginning, but not all, of `pattern`. They are whole characters: both texts
/// are, and a match of bytes begins and ends where their characters do.
pub(crate) fn unfinished(text: &str, pattern: &str) -> usize {
    let longest = text.len().min(pattern.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&length| text.as_bytes().ends_with(&pattern.as_bytes()[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng, SeedableRng};

    fn run(stops: &[String], pieces: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops);
        let mut text = String::new();
        for piece in pieces {
            let (more, stop) = matcher.push(piece);
            text.push_str(&more);
            if stop.is_some() {
                assert_eq!(matcher.push("more"), (String::new(), None));
                assert_eq!(matcher.flush(), "");
                return (text, stop);
            }
        }
        text.push_str(&matcher.flush());
        (text, None)
    }

    /// The definition: the first position at which the text so far ends with a stop string.
    fn naive(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in (1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let longest = stops
                .iter()
                .filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()))
                .max_by_key(|stop| stop.len());
            if let Some(stop) = longest {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn any_split_equals_the_search_in_the_whole() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut below = |bound: usize| (rng.next_u64() % bound as u64) as usize;
        let alphabet = ["a", "b", "é", "你", "\n", "🙂"];
        let mut stopped = 0;
        for _ in 0..20_000 {
            let mut random_text = |longest: usize| {
                (0..below(longest))
                    .map(|_| alphabet[below(alphabet.len())])
                    .collect::<String>()
            };
            let text = random_text(14);
            let stops: Vec<String> = (0..3).map(|_| random_text(5)).collect();
            let mut pieces = Vec::new();
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let mut cut = below(rest.len() + 1);
                while !rest.is_char_boundary(cut) {
                    cut += 1;
                }
                pieces.push(&rest[..cut]);
                rest = &rest[cut..];
            }
            let result = run(&stops, &pieces);
            stopped += usize::from(result.1.is_some());
            assert_eq!(result, naive(&stops, &text), "{stops:?} in {pieces:?}");
        }
        assert!(
            (2_000..19_000).contains(&stopped),
            "{stopped} of 20000 texts had a stop string"
        );
    }

    #[test]
    fn a_shorter_match_inside_a_longer_one_is_complete_first() {
        let stops = ["abcd".to_owned(), "bc".to_owned()];
        assert_eq!(
            run(&stops, &["abcd"]),
            ("a".to_owned(), Some("bc".to_owned()))
        );
        assert_eq!(
            run(&stops, &["ab", "cd"]),
            ("a".to_owned(), Some("bc".to_owned()))
        );
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut matcher = StopMatcher::new(&["###".to_owned()]);
        for (piece, expected) in [("ab#", "ab"), ("#", ""), ("x", "##x"), ("y##", "y")] {
            assert_eq!(matcher.push(piece), (expected.to_owned(), None));
        }
        assert_eq!(matcher.push("#z"), (String::new(), Some("###".to_owned())));
    }

    #[test]
    fn without_stop_strings_text_passes() {
        let mut matcher = StopMatcher::new(&[String::new()]);
        assert_eq!(matcher.push("abc").0, "abc");
        assert_eq!(matcher.flush(), "");
    }
}
