//! Languages by name and code.

/// ISO 639 codes and English names of the languages that the speech models know.
const LANGUAGES: [(&str, &str); 30] = [
    ("zh", "Chinese"),
    ("en", "English"),
    ("yue", "Cantonese"),
    ("ar", "Arabic"),
    ("de", "German"),
    ("fr", "French"),
    ("es", "Spanish"),
    ("pt", "Portuguese"),
    ("id", "Indonesian"),
    ("it", "Italian"),
    ("ko", "Korean"),
    ("ru", "Russian"),
    ("th", "Thai"),
    ("vi", "Vietnamese"),
    ("ja", "Japanese"),
    ("tr", "Turkish"),
    ("hi", "Hindi"),
    ("ms", "Malay"),
    ("nl", "Dutch"),
    ("sv", "Swedish"),
    ("da", "Danish"),
    ("fi", "Finnish"),
    ("pl", "Polish"),
    ("cs", "Czech"),
    ("fil", "Filipino"),
    ("fa", "Persian"),
    ("el", "Greek"),
    ("ro", "Romanian"),
    ("hu", "Hungarian"),
    ("mk", "Macedonian"),
];

/// All English names.
pub fn language_names() -> impl Iterator<Item = &'static str> {
    LANGUAGES.iter().map(|(_, name)| *name)
}

/// The English name for a code (`zh`, `pt-BR`) or a name in any case; `None` where it is neither.
pub fn language_name(text: &str) -> Option<&'static str> {
    let text = text.trim();
    let code = text.split(['-', '_']).next().unwrap_or(text);
    LANGUAGES
        .iter()
        .find(|(known, name)| known.eq_ignore_ascii_case(code) || name.eq_ignore_ascii_case(text))
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_in_any_case() {
        for (text, name) in [
            ("zh", Some("Chinese")),
            ("ZH-cn", Some("Chinese")),
            ("yue", Some("Cantonese")),
            (" eNGLISH ", Some("English")),
            ("pt_BR", Some("Portuguese")),
            ("Klingon", None),
            ("", None),
        ] {
            assert_eq!(language_name(text), name, "{text}");
        }
    }
}
