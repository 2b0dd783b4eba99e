//! What can go wrong with documents.

use std::time::Duration;

/// Every error of documents that images do not have. The messages are safe to show to a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// A password is needed to read it.
    #[error("the PDF is encrypted with a password; remove the password and send it again")]
    Encrypted,
    /// An encryption that cannot be undone, with or without a password.
    #[error("the PDF is encrypted in a way that is not supported; save it without encryption")]
    UnsupportedEncryption,
    /// The document has no page.
    #[error("the document has no pages")]
    NoPages,
    /// A page that is not there.
    #[error("page {page} was asked for, and the document has {}", count(*pages))]
    NoSuchPage {
        /// The page asked for, from 1.
        page: usize,
        /// Pages of the document.
        pages: usize,
    },
    /// A list of pages that cannot be read.
    #[error(
        "the pages {text:?} cannot be read: write numbers and ranges from 1, such as 3-9,12,20-"
    )]
    InvalidSelection {
        /// The list.
        text: String,
    },
    /// More pages than allowed.
    #[error("{pages} pages were asked for, more than the limit of {limit}; choose some of them")]
    TooManyPages {
        /// Pages asked for.
        pages: usize,
        /// The limit.
        limit: usize,
    },
    /// A resolution outside the limits.
    #[error("a resolution of {dpi} DPI is not possible; choose {least} to {most}")]
    InvalidDpi {
        /// The resolution asked for.
        dpi: f32,
        /// The lowest one.
        least: f32,
        /// The highest one.
        most: f32,
    },
    /// A page that would be too many pixels.
    #[error(
        "page {page} is {width:.0} x {height:.0} mm, which at {dpi} DPI is more than the limit of {limit} pixels or \
         {side} a side; choose at most {fits:.0} DPI"
    )]
    PageTooLarge {
        /// The page, from 1.
        page: usize,
        /// Its width in millimetres.
        width: f64,
        /// Its height in millimetres.
        height: f64,
        /// The resolution.
        dpi: f32,
        /// The limit of pixels.
        limit: u64,
        /// The limit of pixels of a side.
        side: u32,
        /// The highest resolution at which it fits.
        fits: f64,
    },
    /// Something inside that is small as it is stored and huge when it is read.
    #[error("{what} of the PDF is larger than the limit of {limit} {unit} when it is unpacked")]
    Bomb {
        /// `a stream` or `an image`.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// `bytes` or `pixels`.
        unit: &'static str,
    },
    /// Reading took too long.
    #[error("{what} took more than {} s; the document may be broken or hostile", limit.as_secs_f32())]
    Timeout {
        /// What was done, such as `opening the document`.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// Pages that ran into their time limits still hold the processor.
    #[error("too many pages that took too long are still being stopped; try again later")]
    Busy,
}

fn count(pages: usize) -> String {
    match pages {
        1 => "one page".to_owned(),
        pages => format!("{pages} pages"),
    }
}
