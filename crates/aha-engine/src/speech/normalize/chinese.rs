//! Chinese characters of numbers.

use super::Reader;
use super::number::Number;

const DIGITS: [char; 10] = ['零', '一', '二', '三', '四', '五', '六', '七', '八', '九'];
const PLACES: [&str; 4] = ["", "十", "百", "千"];
const MYRIADS: [&str; 4] = ["", "万", "亿", "万亿"];
const UNITS: [(&str, &str); 27] = [
    ("km", "公里"),
    ("m", "米"),
    ("cm", "厘米"),
    ("mm", "毫米"),
    ("km/h", "公里每小时"),
    ("m/s", "米每秒"),
    ("m²", "平方米"),
    ("km²", "平方公里"),
    ("m³", "立方米"),
    ("kg", "公斤"),
    ("g", "克"),
    ("mg", "毫克"),
    ("L", "升"),
    ("l", "升"),
    ("ml", "毫升"),
    ("s", "秒"),
    ("ms", "毫秒"),
    ("min", "分钟"),
    ("h", "小时"),
    ("°C", "摄氏度"),
    ("℃", "摄氏度"),
    ("°F", "华氏度"),
    ("°", "度"),
    ("Hz", "赫兹"),
    ("kHz", "千赫兹"),
    ("MHz", "兆赫兹"),
    ("kW", "千瓦"),
];
const MONEY: [(char, &str); 5] = [
    ('$', "美元"),
    ('€', "欧元"),
    ('£', "英镑"),
    ('¥', "元"),
    ('￥', "元"),
];

pub(super) struct Chinese;

impl Reader for Chinese {
    fn number(&self, number: &Number) -> String {
        value(number)
    }

    fn measure(&self, number: &Number, unit: &str) -> Option<String> {
        match unit {
            "%" => return Some(format!("百分之{}", value(number))),
            "‰" => return Some(format!("千分之{}", value(number))),
            _ => {}
        }
        let (_, name) = UNITS.iter().find(|(symbol, _)| *symbol == unit)?;
        Some(format!("{}{name}", value(number)))
    }

    fn money(&self, number: &Number, symbol: char) -> Option<String> {
        let (_, name) = MONEY.iter().find(|(of, _)| *of == symbol)?;
        Some(format!("{}{name}", value(number)))
    }

    fn date(&self, year: u32, month: u32, day: u32) -> String {
        let year = digits(&year.to_string());
        format!(
            "{year}年{}月{}日",
            cardinal(month.into()),
            cardinal(day.into())
        )
    }

    fn time(&self, hour: u32, minute: u32, second: Option<u32>) -> String {
        let two = |value: u32| {
            let words = cardinal(value.into());
            if value < 10 {
                format!("零{words}")
            } else {
                words
            }
        };
        let mut words = format!("{}点", cardinal(hour.into()));
        if minute > 0 || second.is_some() {
            words.push_str(&format!("{}分", two(minute)));
        }
        if let Some(second) = second {
            words.push_str(&format!("{}秒", two(second)));
        }
        words
    }

    fn ordinal(&self, _number: &Number, _ending: &str) -> Option<String> {
        None
    }

    fn year_follows(&self, number: &Number, next: Option<char>) -> Option<String> {
        let is_year = next == Some('年') && number.whole.len() == 4 && number.fraction.is_empty();
        is_year.then(|| digits(&number.whole))
    }

    fn space(&self) -> &'static str {
        ""
    }
}

fn value(number: &Number) -> String {
    let mut words = match number.amount() {
        Some(amount) => cardinal(amount),
        None => digits(&number.whole),
    };
    if !number.fraction.is_empty() {
        words.push('点');
        words.push_str(&digits(&number.fraction));
    }
    if number.negative {
        words.insert(0, '负');
    }
    words
}

fn digits(digits: &str) -> String {
    digits
        .bytes()
        .filter_map(|digit| DIGITS.get(usize::from(digit.wrapping_sub(b'0'))))
        .collect()
}

fn cardinal(value: u64) -> String {
    if value == 0 {
        return DIGITS[0].to_string();
    }
    let mut words = String::new();
    let groups = [1_000_000_000_000, 100_000_000, 10_000, 1];
    for (index, scale) in groups.into_iter().enumerate() {
        let group = value / scale % 10_000;
        if group == 0 {
            continue;
        }
        // A gap between places is one zero, however wide.
        if !words.is_empty() && group < 1000 {
            words.push(DIGITS[0]);
        }
        words.push_str(&myriad(group));
        words.push_str(MYRIADS[groups.len() - 1 - index]);
    }
    // Ten to nineteen, alone or of a larger unit, are read without their one.
    match words.strip_prefix("一十") {
        Some(rest) => format!("十{rest}"),
        None => words,
    }
}

/// A number below 10,000.
fn myriad(value: u64) -> String {
    let mut words = String::new();
    let mut gap = false;
    for place in (0..PLACES.len()).rev() {
        let digit = value / 10_u64.pow(place as u32) % 10;
        if digit == 0 {
            gap = !words.is_empty();
            continue;
        }
        if gap {
            words.push(DIGITS[0]);
            gap = false;
        }
        words.push(DIGITS[digit as usize]);
        words.push_str(PLACES[place]);
    }
    words
}
