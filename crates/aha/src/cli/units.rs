//! Numbers as people write and read them.

use std::time::Duration;

/// A parser of numbers within limits, for clap.
pub(crate) fn between(least: f32, most: f32) -> impl Fn(&str) -> Result<f32, String> + Clone {
    move |text| match text.parse::<f32>() {
        Ok(value) if value >= least && value <= most => Ok(value),
        _ => Err(format!("a number between {least} and {most} is wanted")),
    }
}

/// A number of things of which there must be at least one, for clap.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(value) if value > 0 => Ok(value),
        _ => Err("a whole number of at least 1 is wanted".to_owned()),
    }
}

/// The same for options that a variable may set: an empty variable is as good as none.
pub(crate) fn positive_or_empty(text: &str) -> Result<Option<usize>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    positive(text).map(Some)
}

/// Bytes (at least one), with an optional unit: `1048576`, `512K`, `32MiB`, `2G` (powers of 1024).
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let wrong = || "a size such as 1048576, 512K, 32M or 2G is wanted".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(wrong()),
    };
    let number: usize = number.parse().map_err(|_| wrong())?;
    let size = number.checked_mul(1 << shift).filter(|&size| size > 0);
    size.ok_or_else(wrong)
}

/// Seconds, with fractions.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "a number of seconds is wanted, such as 30 or 0.5".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    // A century, so that adding it to a clock cannot overflow.
    if !(0.0..=3.2e9).contains(&seconds) {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Bytes in the largest unit that leaves at least 1.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let decimals = if unit == "B" || value >= 100.0 { 0 } else { 1 };
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A time span in its two largest units.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Tokens a second; 0 where no time passed.
pub(crate) fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, size) in [
            ("7", 7),
            ("7b", 7),
            ("512K", 512 << 10),
            ("32MiB", 32 << 20),
            ("2g", 2 << 30),
        ] {
            assert_eq!(parse_bytes(text), Ok(size), "{text}");
        }
        for text in [
            "",
            "0",
            "0K",
            "K",
            "-1",
            "1.5M",
            "1 M",
            "9T",
            "99999999999999999G",
        ] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "inf", "NaN", "1e300", "1s"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_are_at_least_one() {
        assert_eq!(positive("1"), Ok(1));
        for text in ["", "0", "-1", "1.5", "many", "99999999999999999999"] {
            assert!(positive(text).is_err(), "{text}");
        }
        assert_eq!(positive_or_empty(""), Ok(None));
        assert_eq!(positive_or_empty("2"), Ok(Some(2)));
        assert!(positive_or_empty("0").is_err());
    }

    #[test]
    fn numbers_keep_within_their_limits() {
        let parse = between(0.0, 2.0);
        assert_eq!(parse("0.7"), Ok(0.7));
        for text in ["-0.1", "2.1", "NaN", "hot"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_spans_are_written_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(144_811_456), "138 MiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(span(Duration::from_secs(59)), "59s");
        assert_eq!(span(Duration::from_secs(3725)), "1h 2m");
        assert_eq!(span(Duration::from_secs(200_000)), "2d 7h");
    }
}
