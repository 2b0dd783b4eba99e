//! Which pages of a document: `3-9,12,20-`.

use super::DocumentError;
use crate::MediaError;
use std::str::FromStr;

/// Pages to read, in the order of the document. All, unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSelection {
    /// First and last page from 1; without a last one, to the end. None means all.
    ranges: Vec<(usize, Option<usize>)>,
}

impl PageSelection {
    /// The pages of a document of `pages` pages, from 0, each once.
    ///
    /// # Errors
    /// [`DocumentError::NoSuchPage`] for a page behind the end, [`DocumentError::TooManyPages`] above `limit`.
    pub fn resolve(&self, pages: usize, limit: usize) -> Result<Vec<usize>, MediaError> {
        let mut chosen = vec![self.ranges.is_empty(); pages];
        for &(first, last) in &self.ranges {
            let last = last.unwrap_or(pages.max(first));
            let page = if first > pages { first } else { last };
            let Some(range) = chosen.get_mut(first - 1..last) else {
                return Err(DocumentError::NoSuchPage { page, pages }.into());
            };
            range.fill(true);
        }
        let chosen: Vec<usize> = (0..pages).filter(|&page| chosen[page]).collect();
        if chosen.len() > limit {
            let pages = chosen.len();
            return Err(DocumentError::TooManyPages { pages, limit }.into());
        }
        Ok(chosen)
    }
}

impl FromStr for PageSelection {
    type Err = MediaError;

    fn from_str(text: &str) -> Result<Self, MediaError> {
        let range = |part: &str| {
            let number = |text: &str| text.trim().parse().ok().filter(|&page| page > 0);
            let (first, last) = match part.split_once('-') {
                None => (number(part)?, Some(number(part)?)),
                Some((first, last)) if last.trim().is_empty() => (number(first)?, None),
                Some((first, last)) => (number(first)?, Some(number(last)?)),
            };
            (last.is_none_or(|last| last >= first)).then_some((first, last))
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        let invalid = || DocumentError::InvalidSelection {
            text: text.chars().take(64).collect(),
        };
        Ok(Self {
            ranges: ranges.ok_or_else(invalid)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str, pages: usize) -> Result<Vec<usize>, String> {
        let selection: PageSelection = text
            .parse()
            .map_err(|error: MediaError| error.to_string())?;
        selection
            .resolve(pages, 100)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn pages_are_numbers_and_ranges_from_one() {
        assert_eq!(chosen("3", 5).unwrap(), [2]);
        assert_eq!(chosen(" 4-5, 1,4", 5).unwrap(), [0, 3, 4]);
        assert_eq!(chosen("4-", 5).unwrap(), [3, 4]);
        assert_eq!(PageSelection::default().resolve(2, 2).unwrap(), [0, 1]);
        for wrong in [
            "",
            "0",
            "a",
            "3-1",
            "1-2-3",
            "-2",
            "1,,2",
            "99999999999999999999",
        ] {
            assert!(
                chosen(wrong, 5).unwrap_err().contains("3-9,12,20-"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn pages_behind_the_end_and_too_many_are_refused() {
        for (text, page) in [
            ("6", "page 6"),
            ("2-7", "page 7"),
            ("8-", "page 8"),
            ("18446744073709551615-", "page 184"),
        ] {
            let error = chosen(text, 5).unwrap_err();
            assert!(error.contains(page) && error.contains("5 pages"), "{error}");
        }
        assert!(
            chosen("1-101", 200)
                .unwrap_err()
                .contains("more than the limit of 100")
        );
        assert!(chosen("5-", 200).unwrap_err().contains("196 pages"));
    }
}
