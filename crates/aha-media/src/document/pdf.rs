//! PDF: its pages as images, and their text layers.

use super::bombs::{check_bytes, check_stream, large_image};
use super::guard::{WatchedBytes, check_deadline, guarded};
use super::text::{Glyphs, TextLayer};
use super::{DocumentError, DocumentLimits, PageScale};
use crate::MediaError;
use crate::image::{Channels, Image, malformed};
use hayro::hayro_interpret::{Context, InterpreterCache, InterpreterSettings, interpret_page};
use hayro::hayro_syntax::object::Object;
use hayro::hayro_syntax::page::Page;
use hayro::hayro_syntax::{DecryptionError, LoadPdfError, Pdf};
use hayro::kurbo::{Affine, Rect};
use hayro::vello_cpu::color::palette::css::WHITE;
use hayro::vello_cpu::{Pixmap, RasterizerSettings, RenderContext, Resources, TargetInit};
use hayro::{RenderCache, RenderSettings, render_into};
use std::fmt;
use std::sync::Arc;

/// Bytes in which `%PDF-` must stand; some programs write something before it.
const HEAD: usize = 1024;

/// Whether the bytes are a PDF.
pub(super) fn is_pdf(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(HEAD)];
    head.windows(5).any(|window| window == b"%PDF-")
}

/// A PDF that is open; cheap to clone.
#[derive(Clone)]
pub(super) struct PdfFile {
    pdf: Arc<Pdf>,
    limits: DocumentLimits,
}

impl fmt::Debug for PdfFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PdfFile").finish_non_exhaustive()
    }
}

impl PdfFile {
    pub(super) fn open(bytes: Arc<[u8]>, limits: DocumentLimits) -> Result<Self, MediaError> {
        let pdf = guarded("opening the document", limits.open_time, move || {
            check_bytes(&bytes, limits.stream_bytes)?;
            let pdf = Pdf::new(Arc::new(WatchedBytes(bytes))).map_err(refusal)?;
            if pdf.pages().is_empty() {
                return Err(DocumentError::NoPages.into());
            }
            for object in pdf.objects() {
                check_deadline();
                if let Object::Stream(stream) = object {
                    check_stream(&stream, &limits)?;
                }
            }
            Ok(pdf)
        })?;
        Ok(Self {
            pdf: Arc::new(pdf),
            limits,
        })
    }

    pub(super) fn limit_images(&mut self, limits: &DocumentLimits) {
        self.limits.image = limits.image;
    }

    pub(super) fn pages(&self) -> usize {
        self.pdf.pages().len()
    }

    pub(super) fn render(&self, index: usize, scale: PageScale) -> Result<Image, MediaError> {
        let file = self.clone();
        guarded(
            format!("page {}", index + 1),
            self.limits.page_time,
            move || {
                let page = file.page(index)?;
                let [width, height] = pixels(page, index, scale, &file.limits)?;
                // Cheap beside the drawing, and finds images that are too large before they are unpacked.
                file.read(page, scale)?;
                draw(page, scale, width, height)
            },
        )
    }

    pub(super) fn text(&self, index: usize, scale: PageScale) -> Result<TextLayer, MediaError> {
        let file = self.clone();
        guarded(
            format!("page {}", index + 1),
            self.limits.page_time,
            move || Ok(file.read(file.page(index)?, scale)?.into_layer()),
        )
    }

    /// Width and height of a page in pixels.
    pub(super) fn size(&self, index: usize, scale: PageScale) -> Result<[u32; 2], MediaError> {
        let [width, height] = pixels(self.page(index)?, index, scale, &self.limits)?;
        Ok([width.into(), height.into()])
    }

    fn page(&self, index: usize) -> Result<&Page<'_>, MediaError> {
        let pages = self.pages();
        let page = index + 1;
        let found = self.pdf.pages().get(index);
        found.ok_or_else(|| DocumentError::NoSuchPage { page, pages }.into())
    }

    /// Goes through a page without drawing it.
    fn read<'a>(&self, page: &'a Page<'a>, scale: PageScale) -> Result<Glyphs, MediaError> {
        let (width, height) = page.render_dimensions();
        let cache = InterpreterCache::new();
        let mut context = Context::new(
            transform(page, scale),
            Rect::new(
                0.0,
                0.0,
                f64::from(width) * scale.0,
                f64::from(height) * scale.0,
            ),
            &cache,
            page.xref(),
            InterpreterSettings::default(),
        );
        let mut glyphs = Glyphs::default();
        interpret_page(page, &mut context, &mut glyphs);
        if glyphs.largest_image > self.limits.image_pixels {
            return Err(large_image(&self.limits));
        }
        Ok(glyphs)
    }
}

/// From the page's space to pixels, upright.
fn transform(page: &Page<'_>, scale: PageScale) -> Affine {
    Affine::scale(scale.0) * Affine::new(page.initial_transform(true).as_coeffs())
}

/// Width and height in pixels, if they are within the limits.
fn pixels(
    page: &Page<'_>,
    index: usize,
    scale: PageScale,
    limits: &DocumentLimits,
) -> Result<[u16; 2], MediaError> {
    let (width, height) = page.render_dimensions();
    let points = [f64::from(width), f64::from(height)];
    // A rounding error must not add a column.
    let side = |points: f64| (points * scale.0 - 1e-3).ceil().max(1.0);
    let [across, down] = points.map(side);
    let largest_side = limits.image.max_side.min(u16::MAX.into());
    let fits = |side: f64| side <= f64::from(largest_side);
    if fits(across) && fits(down) && across * down <= limits.image.max_pixels as f64 {
        return Ok([across as u16, down as u16]);
    }
    let by_area = (limits.image.max_pixels as f64 / (points[0] * points[1])).sqrt();
    let by_side = f64::from(largest_side) / points[0].max(points[1]);
    let millimetres = points.map(|points| points / 72.0 * 25.4);
    Err(DocumentError::PageTooLarge {
        page: index + 1,
        width: millimetres[0],
        height: millimetres[1],
        dpi: scale.dpi(),
        limit: limits.image.max_pixels,
        side: largest_side,
        fits: (by_area.min(by_side) * 72.0).floor(),
    }
    .into())
}

/// Draws a page on white.
fn draw<'a>(
    page: &'a Page<'a>,
    scale: PageScale,
    width: u16,
    height: u16,
) -> Result<Image, MediaError> {
    let mut context = RenderContext::new(width, height);
    render_into(
        page,
        &RenderCache::new(),
        &InterpreterSettings::default(),
        &RenderSettings::default(),
        &mut context,
        transform(page, scale),
    );
    context.flush();
    let mut pixmap = Pixmap::new(width, height);
    let on_white = RasterizerSettings {
        target_init: TargetInit::Clear(WHITE),
        ..RasterizerSettings::default()
    };
    context.render_with(&mut pixmap, &mut Resources::default(), on_white);
    // On white nothing is left transparent.
    let (pixels, _) = pixmap.data_as_u8_slice().as_chunks::<4>();
    let samples = pixels
        .iter()
        .flat_map(|&[red, green, blue, _]| [red, green, blue]);
    Image::new(
        width.into(),
        height.into(),
        Channels::Rgb,
        samples.collect(),
    )
}

fn refusal(error: LoadPdfError) -> MediaError {
    match error {
        LoadPdfError::Decryption(DecryptionError::PasswordProtected) => {
            DocumentError::Encrypted.into()
        }
        LoadPdfError::Decryption(_) => DocumentError::UnsupportedEncryption.into(),
        LoadPdfError::Invalid => malformed("PDF")("neither a table of objects nor a page"),
    }
}
