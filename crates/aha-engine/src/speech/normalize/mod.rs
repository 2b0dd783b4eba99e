//! Numbers, dates, times, money and units as words, in English and Chinese: an option for models that were trained on
//! words.
//!
//! The language is Chinese when the text has Chinese characters, else English. Phonemes in braces (`{HH AH0}`) are left
//! alone.

mod chinese;
mod english;
mod number;

use number::{Number, Scanner};

/// How one language reads what a scanner finds.
trait Reader {
    /// A number as it stands, without a unit.
    fn number(&self, number: &Number) -> String;
    /// `value` of a unit, by its symbol; `None` for symbols that are no units.
    fn measure(&self, number: &Number, unit: &str) -> Option<String>;
    /// An amount of money.
    fn money(&self, number: &Number, symbol: char) -> Option<String>;
    /// Month and day are valid.
    fn date(&self, year: u32, month: u32, day: u32) -> String;
    /// Hour and minute are valid.
    fn time(&self, hour: u32, minute: u32, second: Option<u32>) -> String;
    /// A number with an ending such as `st` or `th`, where the language has such.
    fn ordinal(&self, number: &Number, ending: &str) -> Option<String>;
    /// A number that is a year by what follows it, where the language writes so.
    fn year_follows(&self, _number: &Number, _next: Option<char>) -> Option<String> {
        None
    }
    /// What stands between words.
    fn space(&self) -> &'static str;
}

/// Marks that speech models have rarely seen, and what they stand for.
const MARKS: [(char, &str); 12] = [
    ('\u{2018}', "'"),
    ('\u{2019}', "'"),
    ('\u{201C}', "\""),
    ('\u{201D}', "\""),
    ('\u{2013}', "-"),
    ('\u{2014}', ", "),
    ('\u{2026}', "..."),
    ('\u{00A0}', " "),
    ('\u{200B}', ""),
    ('\u{FEFF}', ""),
    ('\u{00AD}', ""),
    ('\u{2212}', "-"),
];

/// The text with all that is written in digits and signs in words.
pub fn normalize_text(text: &str) -> String {
    let is_chinese = text
        .chars()
        .any(|character| ('\u{4E00}'..='\u{9FFF}').contains(&character));
    if is_chinese {
        return read(text, &chinese::Chinese);
    }
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match MARKS.iter().find(|(mark, _)| *mark == character) {
            Some((_, meaning)) => plain.push_str(meaning),
            None => plain.push(character),
        }
    }
    read(&plain, &english::English)
}

fn read(text: &str, reader: &impl Reader) -> String {
    let mut out = String::with_capacity(text.len());
    let mut scanner = Scanner::new(text);
    while let Some(next) = scanner.peek() {
        if next == '{' {
            out.push_str(scanner.through('}'));
            continue;
        }
        // Digits inside a word (`H2O`, `mp3`) belong to it.
        let inside = out
            .chars()
            .next_back()
            .is_some_and(|last| last.is_ascii_alphabetic());
        let words = if inside {
            None
        } else {
            spoken(&mut scanner, reader)
        };
        match words {
            Some(words) => {
                let touches = |last: char| last.is_ascii_alphanumeric();
                if out.chars().next_back().is_some_and(touches) {
                    out.push_str(reader.space());
                }
                out.push_str(&words);
                if scanner
                    .peek()
                    .is_some_and(|next| next.is_ascii_alphanumeric())
                {
                    out.push_str(reader.space());
                }
            }
            None => out.push_str(scanner.word()),
        }
    }
    out
}

/// The words of what begins here, if it is something to be read; the scanner is then behind it.
fn spoken(scanner: &mut Scanner<'_>, reader: &impl Reader) -> Option<String> {
    if let Some((year, month, day)) = scanner.date() {
        return Some(reader.date(year, month, day));
    }
    if let Some((hour, minute, second)) = scanner.time() {
        return Some(reader.time(hour, minute, second));
    }
    let before = scanner.position();
    if let Some(symbol) = scanner.take_if(|symbol| "$€£¥￥".contains(symbol)) {
        let words = scanner
            .number()
            .and_then(|number| reader.money(&number, symbol));
        if words.is_none() {
            scanner.reset(before);
        }
        return words;
    }
    let number = scanner.number()?;
    if let Some(words) = reader.year_follows(&number, scanner.peek()) {
        return Some(words);
    }
    let behind = scanner.position();
    let ending = scanner.letters();
    if !ending.is_empty()
        && let Some(words) = reader.ordinal(&number, ending)
    {
        return Some(words);
    }
    scanner.reset(behind);
    scanner.skip_space();
    let unit = scanner.unit();
    if !unit.is_empty()
        && let Some(words) = reader.measure(&number, unit)
    {
        return Some(words);
    }
    scanner.reset(behind);
    Some(reader.number(&number))
}

#[cfg(test)]
mod tests {
    use super::normalize_text;

    #[test]
    fn english_is_read_in_words() {
        for (text, words) in [
            (
                "I have 3 cats and 21 fish.",
                "I have three cats and twenty-one fish.",
            ),
            (
                "0 1 10 11 100 101 999",
                "zero one ten eleven one hundred one hundred one nine hundred ninety-nine",
            ),
            (
                "1,234,567 people",
                "one million two hundred thirty-four thousand five hundred sixty-seven people",
            ),
            ("12345", "twelve thousand three hundred forty-five"),
            ("pi is 3.14", "pi is three point one four"),
            ("-5 degrees", "minus five degrees"),
            ("a range 5-6", "a range five-six"),
            (
                "In 1984, not 2005 or 1900.",
                "In nineteen eighty-four, not two thousand five or nineteen hundred.",
            ),
            (
                "on 2024-11-28",
                "on November twenty-eighth, twenty twenty-four",
            ),
            ("at 14:30 or 9:05", "at fourteen thirty or nine oh five"),
            ("8:00", "eight o'clock"),
            ("50% of 2.5 kg", "fifty percent of two point five kilograms"),
            (
                "1 km, 1km/h, 20 °C",
                "one kilometer, one kilometer per hour, twenty degrees Celsius",
            ),
            (
                "$1 $3.50 £20",
                "one dollar three dollars fifty twenty pounds",
            ),
            (
                "the 1st, 2nd, 3rd, 12th and 21st",
                "the first, second, third, twelfth and twenty-first",
            ),
            (
                "call 0123456789",
                "call zero one two three four five six seven eight nine",
            ),
            ("H2O and mp3", "H2O and mp3"),
            ("{HH AH0 L OW1} 2", "{HH AH0 L OW1} two"),
            ("\u{201C}Hi\u{201D}\u{2014}it\u{2019}s", "\"Hi\", it's"),
            ("No digits.", "No digits."),
            (
                "99:99 2024-13-01 $x",
                "ninety-nine:ninety-nine twenty twenty-four-thirteen-zero one $x",
            ),
            (
                "3 in the room, 5 m away",
                "three in the room, five meters away",
            ),
        ] {
            assert_eq!(normalize_text(text), words, "{text}");
        }
    }

    #[test]
    fn chinese_is_read_in_characters() {
        for (text, words) in [
            ("我有3只猫", "我有三只猫"),
            ("共12345人", "共一万二千三百四十五人"),
            (
                "数10、110、1001、10010",
                "数十、一百一十、一千零一、一万零一十",
            ),
            ("两个数100000000和20000", "两个数一亿和二万"),
            ("圆周率是3.14", "圆周率是三点一四"),
            ("零下-5度", "零下负五度"),
            ("2024年11月28日", "二零二四年十一月二十八日"),
            ("日期2024-11-28", "日期二零二四年十一月二十八日"),
            ("14:30开会，9:05结束", "十四点三十分开会，九点零五分结束"),
            ("8:00到", "八点到"),
            ("增长15.5%", "增长百分之十五点五"),
            (
                "跑了5km，重2.5kg，20°C",
                "跑了五公里，重二点五公斤，二十摄氏度",
            ),
            ("花了¥35和$3.5", "花了三十五元和三点五美元"),
            ("电话13800138000", "电话一三八零零一三八零零零"),
            ("第1名", "第一名"),
            ("{ni3}{hao3}你好2", "{ni3}{hao3}你好二"),
            ("你好，世界！", "你好，世界！"),
        ] {
            assert_eq!(normalize_text(text), words, "{text}");
        }
    }

    #[test]
    fn whatever_is_written_ends() {
        for text in [
            "",
            "{",
            "{1",
            "$",
            "-",
            "1.",
            "1.2.3",
            ":",
            "1:",
            "9".repeat(100_000).as_str(),
            "1-",
            "%",
            "5 %",
        ] {
            let words = normalize_text(text);
            assert!(words.is_empty() == text.is_empty());
        }
    }
}
