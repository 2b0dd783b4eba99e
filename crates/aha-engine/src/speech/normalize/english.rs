//! English words of numbers.

use super::Reader;
use super::number::Number;

const ONES: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
const SCALES: [(u64, &str); 4] = [
    (1_000_000_000_000, "trillion"),
    (1_000_000_000, "billion"),
    (1_000_000, "million"),
    (1000, "thousand"),
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Ordinals that are not the cardinal with `th`.
const ORDINALS: [(&str, &str); 7] = [
    ("one", "first"),
    ("two", "second"),
    ("three", "third"),
    ("five", "fifth"),
    ("eight", "eighth"),
    ("nine", "ninth"),
    ("twelve", "twelfth"),
];
/// Symbol, one of it, several of it.
const UNITS: [(&str, &str, &str); 36] = [
    ("%", "percent", "percent"),
    ("‰", "per mille", "per mille"),
    ("km", "kilometer", "kilometers"),
    ("m", "meter", "meters"),
    ("cm", "centimeter", "centimeters"),
    ("mm", "millimeter", "millimeters"),
    ("km/h", "kilometer per hour", "kilometers per hour"),
    ("m/s", "meter per second", "meters per second"),
    ("mph", "mile per hour", "miles per hour"),
    ("m²", "square meter", "square meters"),
    ("km²", "square kilometer", "square kilometers"),
    ("m³", "cubic meter", "cubic meters"),
    ("kg", "kilogram", "kilograms"),
    ("g", "gram", "grams"),
    ("mg", "milligram", "milligrams"),
    ("lb", "pound", "pounds"),
    ("oz", "ounce", "ounces"),
    ("ft", "foot", "feet"),
    ("L", "liter", "liters"),
    ("l", "liter", "liters"),
    ("ml", "milliliter", "milliliters"),
    ("s", "second", "seconds"),
    ("ms", "millisecond", "milliseconds"),
    ("min", "minute", "minutes"),
    ("h", "hour", "hours"),
    ("°C", "degree Celsius", "degrees Celsius"),
    ("℃", "degree Celsius", "degrees Celsius"),
    ("°F", "degree Fahrenheit", "degrees Fahrenheit"),
    ("°", "degree", "degrees"),
    ("Hz", "hertz", "hertz"),
    ("kHz", "kilohertz", "kilohertz"),
    ("MHz", "megahertz", "megahertz"),
    ("GHz", "gigahertz", "gigahertz"),
    ("MB", "megabyte", "megabytes"),
    ("GB", "gigabyte", "gigabytes"),
    ("kW", "kilowatt", "kilowatts"),
];
const MONEY: [(char, &str, &str); 5] = [
    ('$', "dollar", "dollars"),
    ('€', "euro", "euros"),
    ('£', "pound", "pounds"),
    ('¥', "yuan", "yuan"),
    ('￥', "yuan", "yuan"),
];

pub(super) struct English;

impl Reader for English {
    fn number(&self, number: &Number) -> String {
        let is_year = |value: &u64| (1900..2100).contains(value);
        let plain = !number.negative && number.fraction.is_empty() && !number.grouped;
        match number.amount().filter(is_year).filter(|_| plain) {
            Some(value) => year(value as u32),
            None => value(number),
        }
    }

    fn measure(&self, number: &Number, unit: &str) -> Option<String> {
        let (_, one, many) = UNITS.iter().find(|(symbol, ..)| *symbol == unit)?;
        let name = if number.is_one() { one } else { many };
        Some(format!("{} {name}", value(number)))
    }

    fn money(&self, number: &Number, symbol: char) -> Option<String> {
        let (_, one, many) = MONEY.iter().find(|(of, ..)| *of == symbol)?;
        let cents = match number.fraction.len() {
            2 => number.fraction.parse().ok().filter(|cents| *cents > 0),
            _ => None,
        };
        let Some(cents) = cents else {
            let name = if number.is_one() { one } else { many };
            return Some(format!("{} {name}", value(number)));
        };
        let whole = Number {
            fraction: String::new(),
            ..number.clone()
        };
        let name = if whole.is_one() { one } else { many };
        Some(format!("{} {name} {}", value(&whole), cardinal(cents)))
    }

    fn date(&self, of: u32, month: u32, day: u32) -> String {
        let month = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
        format!("{month} {}, {}", ordinal(&cardinal(day.into())), year(of))
    }

    fn time(&self, hour: u32, minute: u32, second: Option<u32>) -> String {
        let hour = cardinal(hour.into());
        let mut words = match minute {
            0 => format!("{hour} o'clock"),
            1..10 => format!("{hour} oh {}", cardinal(minute.into())),
            _ => format!("{hour} {}", cardinal(minute.into())),
        };
        if let Some(second) = second {
            words.push_str(&format!(" and {} seconds", cardinal(second.into())));
        }
        words
    }

    fn ordinal(&self, number: &Number, ending: &str) -> Option<String> {
        let fits = matches!(ending, "st" | "nd" | "rd" | "th");
        let whole = number.fraction.is_empty() && !number.negative;
        (fits && whole).then(|| number.amount().map(|value| ordinal(&cardinal(value))))?
    }

    fn space(&self) -> &'static str {
        " "
    }
}

fn value(number: &Number) -> String {
    let mut words = match number.amount() {
        Some(amount) => cardinal(amount),
        None => digits(&number.whole),
    };
    if !number.fraction.is_empty() {
        words = format!("{words} point {}", digits(&number.fraction));
    }
    if number.negative {
        words.insert_str(0, "minus ");
    }
    words
}

fn digits(digits: &str) -> String {
    let words = digits
        .bytes()
        .filter_map(|digit| ONES.get(usize::from(digit.wrapping_sub(b'0'))).copied());
    words.collect::<Vec<_>>().join(" ")
}

fn cardinal(value: u64) -> String {
    for (scale, name) in SCALES {
        if value >= scale {
            let head = format!("{} {name}", cardinal(value / scale));
            return with_rest(head, " ", value % scale);
        }
    }
    match value {
        0..20 => ONES[value as usize].to_owned(),
        20..100 => with_rest(TENS[value as usize / 10].to_owned(), "-", value % 10),
        _ => with_rest(
            format!("{} hundred", cardinal(value / 100)),
            " ",
            value % 100,
        ),
    }
}

fn with_rest(head: String, joint: &str, rest: u64) -> String {
    if rest == 0 {
        head
    } else {
        format!("{head}{joint}{}", cardinal(rest))
    }
}

/// As years are read: 1984 in pairs, 2005 as a number.
fn year(value: u32) -> String {
    let (century, rest) = (u64::from(value / 100), u64::from(value % 100));
    match (value, rest) {
        (2000..2010, _) | (..1000, _) => cardinal(value.into()),
        (_, 0) => format!("{} hundred", cardinal(century)),
        (_, 1..10) => format!("{} oh {}", cardinal(century), cardinal(rest)),
        _ => format!("{} {}", cardinal(century), cardinal(rest)),
    }
}

/// The ordinal of a cardinal: its last word changes.
fn ordinal(cardinal: &str) -> String {
    let start = cardinal.rfind([' ', '-']).map_or(0, |at| at + 1);
    let (head, last) = cardinal.split_at(start);
    let irregular = ORDINALS.iter().find(|(word, _)| *word == last);
    let last = match (irregular, last.strip_suffix('y')) {
        (Some((_, ordinal)), _) => (*ordinal).to_owned(),
        (None, Some(stem)) => format!("{stem}ieth"),
        (None, None) => format!("{last}th"),
    };
    format!("{head}{last}")
}
