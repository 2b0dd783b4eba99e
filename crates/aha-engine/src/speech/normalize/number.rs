//! Finding numbers, dates and times in a text.

/// Digits beyond which a whole number is a name, not an amount.
const MOST_DIGITS: usize = 15;
/// Digits from which a number without separators is read digit by digit: telephone numbers, keys.
const NAME_FROM: usize = 10;

/// A number as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) negative: bool,
    /// The digits before the point.
    pub(super) whole: String,
    /// Those behind it.
    pub(super) fraction: String,
    /// Whether thousands were set apart.
    pub(super) grouped: bool,
}

impl Number {
    /// The value before the point; `None` where the digits are a name to be read one by one.
    pub(super) fn amount(&self) -> Option<u64> {
        let is_name = self.whole.len() > MOST_DIGITS
            || (self.whole.len() > 1 && self.whole.starts_with('0'))
            || (!self.grouped && self.fraction.is_empty() && self.whole.len() >= NAME_FROM);
        if is_name {
            None
        } else {
            self.whole.parse().ok()
        }
    }

    /// Whether it is exactly one.
    pub(super) fn is_one(&self) -> bool {
        !self.negative && self.whole == "1" && self.fraction.is_empty()
    }
}

/// A place in a text.
pub(super) struct Scanner<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn reset(&mut self, position: usize) {
        self.position = position;
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn take_if(&mut self, is_it: impl Fn(char) -> bool) -> Option<char> {
        let next = self.peek().filter(|next| is_it(*next))?;
        self.position += next.len_utf8();
        Some(next)
    }

    fn take_while(&mut self, is_it: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|next| !is_it(next)).unwrap_or(rest.len());
        self.position += end;
        &rest[..end]
    }

    /// Everything up to and with `end`, or to the end of the text.
    pub(super) fn through(&mut self, end: char) -> &'a str {
        let rest = self.rest();
        let length = rest.find(end).map_or(rest.len(), |at| at + end.len_utf8());
        self.position += length;
        &rest[..length]
    }

    /// What is not read: a word with its digits, or a single other character.
    pub(super) fn word(&mut self) -> &'a str {
        let start = self.position;
        if self
            .take_while(|next| next.is_ascii_alphanumeric())
            .is_empty()
        {
            self.take_if(|_| true);
        }
        &self.text[start..self.position]
    }

    pub(super) fn letters(&mut self) -> &'a str {
        self.take_while(|next| next.is_ascii_alphabetic())
    }

    /// The characters that units are written in.
    pub(super) fn unit(&mut self) -> &'a str {
        self.take_while(|next| next.is_ascii_alphabetic() || "%°℃℉µμΩ/²³‰".contains(next))
    }

    pub(super) fn skip_space(&mut self) {
        self.take_if(|next| next == ' ');
    }

    fn digits(&mut self) -> &'a str {
        self.take_while(|next| next.is_ascii_digit())
    }

    /// A number with its sign, separators and fraction; nothing is taken when there is none.
    pub(super) fn number(&mut self) -> Option<Number> {
        let start = self.position;
        // A dash behind a digit or a letter joins, it does not subtract.
        let joins = self.text[..start]
            .chars()
            .next_back()
            .is_some_and(|before| before.is_ascii_alphanumeric());
        let negative = !joins && self.take_if(|next| next == '-').is_some();
        let mut whole = self.digits().to_owned();
        if whole.is_empty() {
            self.reset(start);
            return None;
        }
        let mut grouped = false;
        while whole.len() <= 3 || grouped {
            let before = self.position;
            let group = self.take_if(|next| next == ',').map(|_| self.digits());
            match group {
                Some(group) if group.len() == 3 => {
                    whole.push_str(group);
                    grouped = true;
                }
                _ => {
                    self.reset(before);
                    break;
                }
            }
        }
        let before = self.position;
        let fraction = match self.take_if(|next| next == '.') {
            Some(_) => self.digits(),
            None => "",
        };
        if fraction.is_empty() {
            self.reset(before);
        }
        Some(Number {
            negative,
            whole,
            fraction: fraction.to_owned(),
            grouped,
        })
    }

    /// `2024-11-28` or `2024/11/28`.
    pub(super) fn date(&mut self) -> Option<(u32, u32, u32)> {
        self.all_or_nothing(|scanner| {
            let year = scanner.exactly(4..=4)?;
            let separator = scanner.take_if(|next| next == '-' || next == '/')?;
            let month = scanner.exactly(1..=2)?;
            scanner.take_if(|next| next == separator)?;
            let day = scanner.exactly(1..=2)?;
            let valid = (1..=12).contains(&month) && (1..=31).contains(&day);
            valid.then_some((year, month, day))
        })
    }

    /// `9:05`, `14:30` or `14:30:59`.
    pub(super) fn time(&mut self) -> Option<(u32, u32, Option<u32>)> {
        self.all_or_nothing(|scanner| {
            let hour = scanner.exactly(1..=2)?;
            scanner.take_if(|next| next == ':')?;
            let minute = scanner.exactly(2..=2)?;
            let second = match scanner.take_if(|next| next == ':') {
                Some(_) => Some(scanner.exactly(2..=2)?),
                None => None,
            };
            let valid = hour < 24 && minute < 60 && second.is_none_or(|second| second < 60);
            valid.then_some((hour, minute, second))
        })
    }

    fn all_or_nothing<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let start = self.position;
        let found = read(self);
        if found.is_none() {
            self.reset(start);
        }
        found
    }

    /// A number of so many digits, no more.
    fn exactly(&mut self, count: std::ops::RangeInclusive<usize>) -> Option<u32> {
        let digits = self.digits();
        count.contains(&digits.len()).then(|| digits.parse().ok())?
    }
}
