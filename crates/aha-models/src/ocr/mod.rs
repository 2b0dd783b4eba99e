//! What the OCR families share: formats of their answers.

mod otsl;
mod repeats;
mod spotting;

pub(crate) use otsl::html_of_otsl;
pub(crate) use repeats::without_repeated_end;
pub(crate) use spotting::{boxed_texts, spotted_lines};
