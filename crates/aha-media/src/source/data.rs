//! Data URLs and base64.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::MediaError;

/// Standard alphabet; padding may be missing, as clients often leave it out.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The bytes of a base64 data URL. The MIME type in it is not believed and not looked at.
///
/// # Errors
/// [`MediaError::TooManyBytes`] before decoding, [`MediaError::InvalidData`] for a URL without
/// comma, one that is not base64, or broken base64, [`MediaError::Empty`] for no bytes.
pub fn decode_data_url(url: &str, max_bytes: u64) -> Result<Vec<u8>, MediaError> {
    let invalid = |reason| MediaError::InvalidData {
        what: "data URL",
        reason,
    };
    let body = url
        .get(..5)
        .filter(|scheme| scheme.eq_ignore_ascii_case("data:"))
        .and_then(|_| url.get(5..))
        .ok_or_else(|| invalid("it does not begin with data:"))?;
    let (kind, data) = body
        .split_once(',')
        .ok_or_else(|| invalid("there is no comma before the data"))?;
    let encoding = kind.rsplit(';').next().unwrap_or_default().trim();
    if !encoding.eq_ignore_ascii_case("base64") {
        return Err(invalid(
            "the data must be base64 and say so before the comma",
        ));
    }
    decode(data, max_bytes, "data URL")
}

/// The bytes of base64 text: white space is skipped, the URL-safe alphabet is understood and
/// padding may be missing.
///
/// # Errors
/// [`MediaError::TooManyBytes`] before decoding, [`MediaError::InvalidData`] for broken base64,
/// [`MediaError::Empty`] for no bytes.
pub fn decode_base64(text: &str, max_bytes: u64) -> Result<Vec<u8>, MediaError> {
    decode(text, max_bytes, "base64 text")
}

fn decode(text: &str, max_bytes: u64, what: &'static str) -> Result<Vec<u8>, MediaError> {
    let significant = |byte: &u8| !byte.is_ascii_whitespace() && *byte != b'=';
    let digits = text.bytes().filter(significant).count() as u64;
    let bytes = digits / 4 * 3 + (digits % 4).saturating_sub(1);
    if digits == 0 {
        return Err(MediaError::Empty { what });
    }
    if bytes > max_bytes {
        return Err(MediaError::TooManyBytes {
            what,
            bytes,
            limit: max_bytes,
        });
    }
    let escaped = text.contains('%');
    let text = if escaped {
        percent_encoding::percent_decode_str(text).collect()
    } else {
        text.as_bytes().to_vec()
    };
    let mut digits = Vec::with_capacity(text.len());
    for byte in text.into_iter().filter(|byte| !byte.is_ascii_whitespace()) {
        digits.push(match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        });
    }
    ENGINE.decode(&digits).map_err(|_| MediaError::InvalidData {
        what,
        reason: "the base64 is broken",
    })
}
