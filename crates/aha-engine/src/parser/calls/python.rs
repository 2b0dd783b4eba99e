//! `[name(key=value, …), …]`: calls as Python writes them, with literals for values.

use super::json::{object, string};
use super::{Call, Fault};

/// Lists and dictionaries may nest this deep.
const DEEPEST: usize = 64;

pub(super) fn parse(body: &str) -> Result<Vec<Call>, Fault> {
    let mut reader = Reader {
        rest: body,
        depth: 0,
    };
    let calls = if reader.take('[') {
        reader.items(']', Reader::call)?
    } else {
        vec![reader.call()?]
    };
    reader.skip_space();
    if reader.rest.is_empty() {
        Ok(calls)
    } else {
        Err(Fault::Malformed)
    }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// The next character after white space.
    fn peek(&mut self) -> Result<char, Fault> {
        self.skip_space();
        self.rest.chars().next().ok_or(Fault::Unfinished)
    }

    /// Takes `wanted` after white space, if it is next.
    fn take(&mut self, wanted: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), Fault> {
        if self.peek()? == wanted && self.take(wanted) {
            Ok(())
        } else {
            Err(Fault::Malformed)
        }
    }

    /// The next character, white space or not.
    fn next(&mut self) -> Result<char, Fault> {
        let next = self.rest.chars().next().ok_or(Fault::Unfinished)?;
        self.rest = &self.rest[next.len_utf8()..];
        Ok(next)
    }

    /// Items with commas in between, up to `close`; a comma may follow the last one.
    fn items<T>(
        &mut self,
        close: char,
        item: impl Fn(&mut Self) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::Malformed);
        }
        let mut items = Vec::new();
        while self.peek()? != close {
            items.push(item(self)?);
            if self.peek()? != close {
                self.expect(',')?;
            }
        }
        self.expect(close)?;
        self.depth -= 1;
        Ok(items)
    }

    /// A name as functions and parameters have it; schemas allow hyphens and dots too.
    fn name(&mut self) -> Result<&'a str, Fault> {
        let first = self.peek()?;
        if !(first.is_alphabetic() || first == '_') {
            return Err(Fault::Malformed);
        }
        let within = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let end = self.rest.find(|c| !within(c)).ok_or(Fault::Unfinished)?;
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name)
    }

    fn call(&mut self) -> Result<Call, Fault> {
        let name = self.name()?;
        self.expect('(')?;
        let arguments = self.items(')', |reader| {
            let key = reader.name()?;
            reader.expect('=')?;
            Ok((key.to_owned(), reader.value()?))
        })?;
        Ok(Call {
            name: name.to_owned(),
            arguments: entries(&arguments)?,
        })
    }

    /// A literal, as JSON text.
    fn value(&mut self) -> Result<String, Fault> {
        match self.peek()? {
            '[' => self.list(']'),
            '(' => self.list(')'),
            '{' => {
                self.expect('{')?;
                let pairs = self.items('}', |reader| {
                    let key = match reader.peek()? {
                        '"' | '\'' => reader.string()?,
                        // JSON knows no other keys: numbers become their text.
                        _ => reader.number()?,
                    };
                    reader.expect(':')?;
                    Ok((key, reader.value()?))
                })?;
                entries(&pairs)
            }
            '"' | '\'' => string(&self.string()?),
            c if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => self.number(),
            _ => match self.name()? {
                "True" | "true" => Ok("true".to_owned()),
                "False" | "false" => Ok("false".to_owned()),
                "None" | "null" => Ok("null".to_owned()),
                _ => Err(Fault::Malformed),
            },
        }
    }

    fn list(&mut self, close: char) -> Result<String, Fault> {
        self.next()?;
        let items = self.items(close, Self::value)?;
        Ok(format!("[{}]", items.join(", ")))
    }

    /// The digits as they are written, where JSON writes them so too.
    fn number(&mut self) -> Result<String, Fault> {
        self.skip_space();
        let within = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_');
        let end = self.rest.find(|c| !within(c)).ok_or(Fault::Unfinished)?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let plain = unsigned.replace('_', "");
        let number: serde_json::Result<serde_json::Number> = serde_json::from_str(&plain);
        if number.is_ok() {
            return Ok(plain);
        }
        // `.5` and `5.`, which JSON does not know; Rust's other spellings have letters of their own.
        let known = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        plain
            .parse::<f64>()
            .ok()
            .filter(|_| plain.contains('.') && plain.chars().all(known))
            .and_then(serde_json::Number::from_f64)
            .map(|number| number.to_string())
            .ok_or(Fault::Malformed)
    }

    /// A string in single, double or triple quotes.
    fn string(&mut self) -> Result<String, Fault> {
        self.skip_space();
        let close = ["\"\"\"", "'''", "\"", "'"]
            .into_iter()
            .find(|quotes| self.rest.starts_with(quotes))
            .ok_or(Fault::Malformed)?;
        self.rest = &self.rest[close.len()..];
        let mut text = String::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix(close) {
                self.rest = rest;
                return Ok(text);
            }
            match self.next()? {
                '\\' => self.escape(&mut text)?,
                other => text.push(other),
            }
        }
    }

    /// What follows a backslash; unknown escapes keep it, as in Python.
    fn escape(&mut self, text: &mut String) -> Result<(), Fault> {
        let escaped = match self.next()? {
            '\n' => return Ok(()),
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            same @ ('\\' | '\'' | '"') => same,
            octal @ '0'..='7' => {
                let mut code = octal.to_digit(8).unwrap_or_default();
                for _ in 0..2 {
                    let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    self.next()?;
                    code = code * 8 + digit;
                }
                char::from_u32(code).ok_or(Fault::Malformed)?
            }
            'x' => char::from_u32(self.hex(2)?).ok_or(Fault::Malformed)?,
            'u' => self.utf16()?,
            'U' => char::from_u32(self.hex(8)?).ok_or(Fault::Malformed)?,
            other => {
                text.push('\\');
                other
            }
        };
        text.push(escaped);
        Ok(())
    }

    fn hex(&mut self, digits: usize) -> Result<u32, Fault> {
        (0..digits).try_fold(0_u32, |code, _| {
            let digit = self.next()?.to_digit(16).ok_or(Fault::Malformed)?;
            Ok(code << 4 | digit)
        })
    }

    /// Four digits, or twice four where JSON's pairs of surrogates found their way into the text.
    fn utf16(&mut self) -> Result<char, Fault> {
        let first = self.hex(4)?;
        if let Some(single) = char::from_u32(first) {
            return Ok(single);
        }
        if self.next()? != '\\' || self.next()? != 'u' {
            return Err(Fault::Malformed);
        }
        let units = [first, self.hex(4)?].map(|unit| unit as u16);
        char::decode_utf16(units)
            .next()
            .and_then(Result::ok)
            .ok_or(Fault::Malformed)
    }
}

/// An object of entries in order; a key that comes twice is a mistake.
fn entries(pairs: &[(String, String)]) -> Result<String, Fault> {
    for (index, (key, _)) in pairs.iter().enumerate() {
        if pairs[..index].iter().any(|(known, _)| known == key) {
            return Err(Fault::Malformed);
        }
    }
    object(
        pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str())),
    )
}
