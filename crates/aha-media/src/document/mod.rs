//! Documents: PDF, TIFF of several pages and single images, page by page.
//!
//! Pages are rendered by [`hayro`](https://docs.rs/hayro). Nothing in a file is run: scripts are not read.

mod bombs;
mod error;
mod guard;
mod pdf;
mod selection;
mod text;

pub use error::DocumentError;
pub use selection::PageSelection;
pub use text::{TextBlock, TextLayer};

use crate::MediaError;
use crate::image::{self, Image, ImageFormat, Limits};
use pdf::PdfFile;
use std::sync::Arc;
use std::time::Duration;

/// Resolution at which pages are rendered unless told otherwise.
pub const DEFAULT_DPI: f32 = 200.0;

/// How much a document may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocumentLimits {
    /// Bytes of the file.
    pub max_bytes: u64,
    /// Pages that are read of one document.
    pub max_pages: usize,
    /// Sizes of a page's image.
    pub image: Limits,
    /// Pixels of an image inside a PDF.
    pub image_pixels: u64,
    /// Bytes that a stream inside a PDF may become when it is unpacked.
    pub stream_bytes: u64,
    /// Time to open a PDF.
    pub open_time: Duration,
    /// Time to read or render one page.
    pub page_time: Duration,
}

impl Default for DocumentLimits {
    /// 256 MiB, 10 000 pages of 64 Mpixel, images of 128 Mpixel and streams of 512 MiB inside; 30 s to open, 30 s a page.
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
            max_pages: 10_000,
            image: Limits::default(),
            image_pixels: 128 << 20,
            stream_bytes: 512 << 20,
            open_time: Duration::from_secs(30),
            page_time: Duration::from_secs(30),
        }
    }
}

/// Pixels a point (1/72 inch) of a page.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PageScale(f64);

impl PageScale {
    const LEAST_DPI: f32 = 18.0;
    const MOST_DPI: f32 = 1200.0;

    fn of_dpi(dpi: f32) -> Result<Self, MediaError> {
        let (least, most) = (Self::LEAST_DPI, Self::MOST_DPI);
        if (least..=most).contains(&dpi) {
            return Ok(Self(f64::from(dpi) / 72.0));
        }
        Err(DocumentError::InvalidDpi { dpi, least, most }.into())
    }

    fn dpi(self) -> f32 {
        (self.0 * 72.0) as f32
    }
}

/// A document that is open. Cheap to clone; pages may be read on several threads.
#[derive(Clone, Debug)]
pub struct Document {
    content: Content,
    limits: DocumentLimits,
}

#[derive(Clone, Debug)]
enum Content {
    Pdf(PdfFile),
    /// An image file and its pages.
    Images {
        bytes: Arc<[u8]>,
        pages: usize,
    },
}

impl Document {
    /// Whether the bytes are a PDF.
    #[must_use]
    pub fn is_pdf(bytes: &[u8]) -> bool {
        pdf::is_pdf(bytes)
    }

    /// Opens a PDF, a TIFF or another image. What a file is, its bytes say.
    ///
    /// # Errors
    /// [`MediaError::Empty`] and [`MediaError::TooManyBytes`]; those of [`image::sniff`] for other files;
    /// [`MediaError::Malformed`] and [`MediaError::Document`] for a PDF that is broken, encrypted, without pages, too slow
    /// or too large when it is unpacked.
    pub fn open(bytes: impl Into<Arc<[u8]>>, limits: &DocumentLimits) -> Result<Self, MediaError> {
        let bytes: Arc<[u8]> = bytes.into();
        let bounds = Limits {
            max_bytes: limits.max_bytes,
            ..limits.image
        };
        bounds.check_bytes("document", bytes.len() as u64)?;
        let content = if pdf::is_pdf(&bytes) {
            Content::Pdf(PdfFile::open(bytes, *limits)?)
        } else {
            let pages = image::count_pages(&bytes, &bounds).map_err(of_document)?;
            Content::Images { bytes, pages }
        };
        Ok(Self {
            content,
            limits: DocumentLimits {
                image: bounds,
                ..*limits
            },
        })
    }

    /// The same with other limits of its pages' images.
    #[must_use]
    pub fn limited(&self, limits: &DocumentLimits) -> Self {
        let mut document = self.clone();
        document.limits.image.max_pixels = limits.image.max_pixels;
        document.limits.image.max_side = limits.image.max_side;
        if let Content::Pdf(file) = &mut document.content {
            file.limit_images(&document.limits);
        }
        document
    }

    /// How many pages it has; at least one.
    #[must_use]
    pub fn pages(&self) -> usize {
        match &self.content {
            Content::Pdf(file) => file.pages(),
            Content::Images { pages, .. } => *pages,
        }
    }

    /// The pages of a selection, from 0, at most as many as the limit.
    ///
    /// # Errors
    /// As [`PageSelection::resolve`].
    pub fn select(&self, selection: &PageSelection) -> Result<Vec<usize>, MediaError> {
        selection.resolve(self.pages(), self.limits.max_pages)
    }

    /// A page (from 0) upright, on white: a PDF's at `dpi`, an image's as it is stored.
    ///
    /// # Errors
    /// [`MediaError::Document`] for a page that is not there, too large, or takes too long; those of [`image::decode`].
    pub fn render(&self, index: usize, dpi: f32) -> Result<Image, MediaError> {
        match &self.content {
            Content::Pdf(file) => file.render(index, PageScale::of_dpi(dpi)?),
            Content::Images { bytes, pages } => {
                if index >= *pages {
                    let page = index + 1;
                    let pages = *pages;
                    return Err(DocumentError::NoSuchPage { page, pages }.into());
                }
                image::decode_page(bytes, index, &self.limits.image).map(|page| page.upright())
            }
        }
    }

    /// Width and height of the image that [`render`](Self::render) gives, without rendering a PDF's page.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn size(&self, index: usize, dpi: f32) -> Result<[u32; 2], MediaError> {
        match &self.content {
            Content::Pdf(file) => file.size(index, PageScale::of_dpi(dpi)?),
            Content::Images { .. } => {
                let page = self.render(index, dpi)?;
                Ok([page.width(), page.height()])
            }
        }
    }

    /// The text layer of a PDF's page, its places in pixels at `dpi`; none for images.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn text(&self, index: usize, dpi: f32) -> Result<Option<TextLayer>, MediaError> {
        match &self.content {
            Content::Pdf(file) => file.text(index, PageScale::of_dpi(dpi)?).map(Some),
            Content::Images { .. } => Ok(None),
        }
    }
}

/// The error of an image as that of a document, which may have other formats.
fn of_document(error: MediaError) -> MediaError {
    match error {
        MediaError::UnknownFormat { .. } => MediaError::UnknownFormat {
            what: "document",
            supported: SUPPORTED,
        },
        MediaError::UnsupportedFormat { format, .. } => MediaError::UnsupportedFormat {
            format,
            what: "a document",
            supported: SUPPORTED,
        },
        other => other,
    }
}

/// The formats of documents, in words.
const SUPPORTED: &str = "PDF, TIFF, PNG, JPEG, WebP, GIF or BMP";

/// Endings of the files that [`Document::open`] reads.
pub const ENDINGS: &[&str] = &[
    "pdf", "tif", "tiff", "png", "jpg", "jpeg", "webp", "gif", "bmp",
];

/// Whether the bytes begin like a file that [`Document::open`] reads.
#[must_use]
pub fn is_document(bytes: &[u8]) -> bool {
    pdf::is_pdf(bytes) || image::sniff(bytes).is_ok_and(|_: ImageFormat| true)
}
