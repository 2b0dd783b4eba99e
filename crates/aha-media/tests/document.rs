//! Documents: rendering against poppler, text layers, limits, and files that nobody should send.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "support/pdf.rs"]
mod pdf;

use aha_media::MediaError;
use aha_media::document::{Document, DocumentError, DocumentLimits, PageSelection, is_document};
use aha_media::image::{Channels, Image, Limits, decode};
use pdf::{Page, Pdf};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/documents");
    std::fs::read(folder.join(name)).unwrap()
}

fn open(bytes: impl Into<Vec<u8>>) -> Document {
    Document::open(bytes.into(), &DocumentLimits::default()).unwrap()
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T, MediaError>) -> DocumentError {
    match result {
        Err(MediaError::Document(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn pixel(image: &Image, x: u32, y: u32) -> [u8; 3] {
    let at = x as usize * 3;
    image.row(y)[at..at + 3].try_into().unwrap()
}

/// The mean difference of samples.
fn difference(one: &Image, other: &Image) -> f64 {
    assert_eq!((one.width(), one.height()), (other.width(), other.height()));
    let pairs = one.samples().iter().zip(other.samples());
    let sum: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / one.samples().len() as f64
}

#[test]
fn pages_look_as_poppler_renders_them() {
    for (name, pages, most) in [("plain", 3, 4.0), ("rotated", 1, 4.0), ("cropped", 1, 4.0)] {
        let document = open(fixture(&format!("{name}.pdf")));
        assert_eq!(document.pages(), pages);
        for page in 0..pages {
            let png = fixture(&format!("{name}-{}.png", page + 1));
            let expected = decode(&png, &Limits::default()).unwrap().upright();
            let image = document.render(page, 72.0).unwrap();
            assert_eq!(image.channels(), Channels::Rgb);
            assert_eq!(
                document.size(page, 72.0).unwrap(),
                [image.width(), image.height()]
            );
            let apart = difference(&image, &expected);
            println!("{name}, page {}: {apart:.2} of 255 apart", page + 1);
            assert!(apart < most, "{name} {page}: {apart}");
        }
    }
}

#[test]
fn rotation_and_crop_box_put_corners_where_readers_see_them() {
    // Red at the top left of an upright page, green at the bottom right.
    let content = "1 0 0 rg 0 180 20 20 re f 0 1 0 rg 180 0 20 20 re f";
    let page = |entries: &str| {
        let page = Page {
            entries: entries.to_owned(),
            ..Page::drawing(content)
        };
        open(Pdf::of(&[page]).bytes()).render(0, 72.0).unwrap()
    };
    let (red, green, white) = ([255, 0, 0], [0, 255, 0], [255, 255, 255]);
    let upright = page("");
    assert_eq!((upright.width(), upright.height()), (200, 200));
    assert_eq!(pixel(&upright, 5, 5), red);
    assert_eq!(pixel(&upright, 195, 195), green);
    assert_eq!(pixel(&upright, 100, 100), white);
    let turned = page("/Rotate 90");
    assert_eq!(
        (pixel(&turned, 195, 5), pixel(&turned, 5, 195)),
        (red, green)
    );
    let turned = page("/Rotate -90");
    assert_eq!(
        (pixel(&turned, 5, 195), pixel(&turned, 195, 5)),
        (red, green)
    );
    let cropped = page("/CropBox [10 100 60 200]");
    assert_eq!((cropped.width(), cropped.height()), (50, 100));
    assert_eq!(
        (pixel(&cropped, 5, 5), pixel(&cropped, 15, 5)),
        (red, white)
    );
    let larger = open(Pdf::of(&[Page::drawing(content)]).bytes());
    let larger = larger.render(0, 144.0).unwrap();
    assert_eq!((larger.width(), pixel(&larger, 35, 35)), (400, red));
}

#[test]
fn text_layers_read_in_their_order_with_places() {
    let document = open(fixture("plain.pdf"));
    let layer = document.text(0, 144.0).unwrap().unwrap();
    assert!(layer.is_usable());
    let texts: Vec<&str> = layer
        .blocks
        .iter()
        .map(|block| block.text.as_str())
        .collect();
    assert_eq!(
        texts,
        [
            "Quarterly report 2026",
            "The quick brown fox jumps over the lazy dog, again\nand again, until the page has two lines of \
             text.\nNumbers: 1,234.56 and 7/8; signs: & < > \"quoted\".",
            "monospace 0123456789",
            "left column line 0\nleft column line 1\nleft column line 2\nleft column line 3",
            "right column line 0\nright column line 1\nright column line 2\nright column line 3",
        ]
    );
    // The title begins 40 points from the left, its baseline 60 below the top, at two pixels a point.
    let [left, top, right, bottom] = layer.blocks[0].bbox;
    assert!(
        (79.0..83.0).contains(&left) && (420.0..560.0).contains(&right),
        "{left} {right}"
    );
    assert!(
        (80.0..100.0).contains(&top) && (120.0..132.0).contains(&bottom),
        "{top} {bottom}"
    );
    // Drawings and pictures have none.
    assert!(!document.text(1, 144.0).unwrap().unwrap().is_usable());
    let rotated = open(fixture("rotated.pdf")).text(0, 72.0).unwrap().unwrap();
    assert!(rotated.text().starts_with("Quarterly report 2026"));
    assert_eq!(open(fixture("plain-1.png")).text(0, 72.0).unwrap(), None);
}

#[test]
fn text_that_is_filled_and_stroked_is_read_once() {
    let page = Page::drawing("BT 2 Tr /F1 20 Tf 20 100 Td (Bold) Tj ET");
    let layer = open(Pdf::of(&[page]).bytes())
        .text(0, 72.0)
        .unwrap()
        .unwrap();
    assert_eq!((layer.text().as_str(), layer.glyphs), ("Bold", 4));
}

#[test]
fn passwords_are_told_and_mere_restrictions_are_not() {
    let error = refusal(Document::open(
        fixture("locked.pdf"),
        &DocumentLimits::default(),
    ));
    assert!(matches!(error, DocumentError::Encrypted), "{error}");
    let restricted = open(fixture("restricted.pdf"));
    assert!(
        restricted
            .text(0, 72.0)
            .unwrap()
            .unwrap()
            .text()
            .starts_with("Quarterly report")
    );
}

#[test]
fn broken_files_are_mended_or_refused() {
    let whole = Pdf::of(&[Page::text(&["first"]), Page::text(&["second"])]).bytes();
    // Without the table of objects they are still found.
    let table = whole.windows(4).position(|bytes| bytes == b"xref").unwrap();
    let mended = open(&whole[..table]);
    assert_eq!(mended.pages(), 2);
    assert_eq!(mended.text(1, 72.0).unwrap().unwrap().text(), "second");
    // Something before it, as servers leave it.
    let late = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &whole].concat();
    assert_eq!(open(late).pages(), 2);
    for bytes in [
        &b"%PDF-1.7\n"[..],
        b"%PDF-1.7\nxref\n0 1\ntrailer <<>>\nstartxref\n9\n%%EOF",
    ] {
        let result = Document::open(bytes, &DocumentLimits::default());
        let is_refused = matches!(
            &result,
            Err(MediaError::Malformed { format: "PDF", .. }
                | MediaError::Document(DocumentError::NoPages))
        );
        assert!(is_refused, "{result:?}");
    }
    let result = Document::open(Vec::new(), &DocumentLimits::default());
    assert!(matches!(result, Err(MediaError::Empty { .. })));
    for (bytes, told) in [
        (
            &b"<html>"[..],
            "HTML is not supported as a document; send PDF",
        ),
        (
            b"plain text",
            "the document is in no known format; send PDF",
        ),
    ] {
        let error = Document::open(bytes, &DocumentLimits::default()).unwrap_err();
        assert!(error.to_string().starts_with(told), "{error}");
    }
    // Cut anywhere: never a panic, never a wait.
    for end in (0..whole.len()).step_by(37) {
        if let Ok(document) = Document::open(&whole[..end], &DocumentLimits::default()) {
            let _ = document.render(0, 72.0);
        }
    }
}

#[test]
fn a_document_without_pages_is_refused() {
    let error = refusal(Document::open(
        Pdf::of(&[]).bytes(),
        &DocumentLimits::default(),
    ));
    assert!(matches!(error, DocumentError::NoPages), "{error}");
}

#[test]
fn scripts_are_not_run() {
    let script = "/OpenAction << /S /JavaScript /JS (app.alert\\(1\\); while\\(1\\);) >>";
    let document = open(Pdf::with(&[Page::text(&["safe"])], script).bytes());
    assert_eq!(document.text(0, 72.0).unwrap().unwrap().text(), "safe");
}

#[test]
fn a_giant_page_is_refused_with_a_resolution_that_fits() {
    let page = Page {
        // 10 m by 10 m.
        size: [28346.5, 28346.5],
        ..Page::drawing("1 0 0 rg 0 0 28346 28346 re f")
    };
    let document = open(Pdf::of(&[page]).bytes());
    let error = refusal(document.render(0, 200.0));
    let DocumentError::PageTooLarge { page, fits, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(page, 1);
    assert!((20.0..21.0).contains(&fits), "{fits}");
    assert!(
        error.to_string().contains("10000 x 10000 mm") || error.to_string().contains("10000 x"),
        "{error}"
    );
    let small = DocumentLimits {
        image: Limits {
            max_pixels: 1000,
            ..Limits::default()
        },
        ..DocumentLimits::default()
    };
    let document = Document::open(fixture("plain.pdf"), &small).unwrap();
    assert!(matches!(
        refusal(document.render(0, 72.0)),
        DocumentError::PageTooLarge { .. }
    ));
    for dpi in [0.0, -5.0, f32::NAN, f32::INFINITY, 17.0, 1201.0] {
        assert!(matches!(
            refusal(document.render(0, dpi)),
            DocumentError::InvalidDpi { .. }
        ));
    }
}

#[test]
fn ten_thousand_pages_open_quickly_and_count_against_the_limit() {
    let pages = vec![Page::text(&["a page"]); 10_000];
    let bytes = Pdf::of(&pages).bytes();
    let started = Instant::now();
    let document = open(bytes.clone());
    assert_eq!(document.pages(), 10_000);
    assert_eq!(
        document.text(9_999, 72.0).unwrap().unwrap().text(),
        "a page"
    );
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    let limits = DocumentLimits {
        max_pages: 100,
        ..DocumentLimits::default()
    };
    let document = Document::open(bytes, &limits).unwrap();
    let all = refusal(document.select(&PageSelection::default()));
    assert!(matches!(
        all,
        DocumentError::TooManyPages {
            pages: 10_000,
            limit: 100
        }
    ));
    let some = document.select(&"9901-".parse().unwrap()).unwrap();
    assert_eq!((some.len(), some[0]), (100, 9900));
    let none = refusal(document.render(10_000, 72.0));
    assert!(matches!(
        none,
        DocumentError::NoSuchPage { page: 10_001, .. }
    ));
}

#[test]
fn a_hostile_page_ends_at_its_time_limit() {
    // Forms that draw ten forms each, twelve deep: more than the age of the world.
    let mut pdf = Pdf::of(&[Page::drawing("/X0 Do")]);
    let first = 4 + 2;
    for level in 0..12 {
        let next = first + level + 1;
        let entries = format!(
            "/Type /XObject /Subtype /Form /BBox [0 0 200 200] /Resources << /XObject << /X {next} 0 R >> >>"
        );
        pdf.stream(&entries, "/X Do ".repeat(10).as_bytes());
    }
    pdf.stream(
        "/Type /XObject /Subtype /Form /BBox [0 0 9 9]",
        b"0 0 5 5 re f",
    );
    let limits = DocumentLimits {
        page_time: Duration::from_millis(300),
        ..DocumentLimits::default()
    };
    let document = Document::open(pdf.bytes(), &limits).unwrap();
    let started = Instant::now();
    for _ in 0..6 {
        // More often than threads may be left over: each has to end.
        let error = refusal(document.render(0, 72.0));
        assert!(matches!(error, DocumentError::Timeout { .. }), "{error}");
        assert!(
            error.to_string().starts_with("page 1 took more than 0.3 s"),
            "{error}"
        );
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(matches!(
        refusal(document.text(0, 72.0)),
        DocumentError::Timeout { .. }
    ));
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_unpacks_without_end_is_refused_before_it_is_unpacked() {
    let limits = DocumentLimits {
        stream_bytes: 8 << 20,
        ..DocumentLimits::default()
    };
    let is_bomb = |pdf: &Pdf| {
        let error = refusal(Document::open(pdf.bytes(), &limits));
        assert!(matches!(error, DocumentError::Bomb { .. }), "{error}");
    };
    let zeros = deflated(&vec![b' '; 16 << 20]);
    let mut once = Pdf::of(&[Page::drawing("/X0 Do")]);
    once.stream(
        "/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Filter /FlateDecode",
        &zeros,
    );
    is_bomb(&once);
    let twice = deflated(&zeros);
    let mut nested = Pdf::of(&[Page::drawing("")]);
    nested.stream("/Filter [/FlateDecode /FlateDecode]", &twice);
    is_bomb(&nested);
    let mut image = Pdf::of(&[Page::drawing("")]);
    image.stream(
        "/Type /XObject /Subtype /Image /Width 60000 /Height 60000 /BitsPerComponent 1 /ColorSpace /DeviceGray",
        b"x",
    );
    is_bomb(&image);
    // Within the limit it is a page like any other.
    let mut fine = Pdf::of(&[Page::drawing("/X0 Do")]);
    fine.stream(
        "/Type /XObject /Subtype /Form /BBox [0 0 200 200] /Filter /FlateDecode",
        &deflated(b"1 0 0 rg 0 0 200 200 re f"),
    );
    let document = Document::open(fine.bytes(), &limits).unwrap();
    assert_eq!(
        pixel(&document.render(0, 72.0).unwrap(), 100, 100),
        [255, 0, 0]
    );
    let small = DocumentLimits {
        max_bytes: 100,
        ..DocumentLimits::default()
    };
    assert!(matches!(
        Document::open(fine.bytes(), &small),
        Err(MediaError::TooManyBytes { limit: 100, .. })
    ));
}

#[test]
fn images_inside_the_content_are_counted_too() {
    let inline = "q 100 0 0 100 0 0 cm BI /W 60000 /H 60000 /BPC 1 /CS /G ID x EI Q";
    let document = open(Pdf::of(&[Page::drawing(inline)]).bytes());
    assert!(matches!(
        refusal(document.render(0, 72.0)),
        DocumentError::Bomb { .. }
    ));
}

fn tiff(sizes: &[[u32; 2]]) -> Vec<u8> {
    use tiff::encoder::{TiffEncoder, colortype::Gray8};
    let mut file = std::io::Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut file).unwrap();
    for (page, &[width, height]) in sizes.iter().enumerate() {
        let samples = vec![page as u8 * 50; (width * height) as usize];
        encoder
            .write_image::<Gray8>(width, height, &samples)
            .unwrap();
    }
    file.into_inner()
}

#[test]
fn images_are_documents_and_tiffs_have_pages() {
    let document = open(tiff(&[[4, 3], [5, 2], [1, 1]]));
    assert_eq!(document.pages(), 3);
    assert_eq!(document.size(1, 300.0).unwrap(), [5, 2]);
    let page = document.render(1, 300.0).unwrap();
    assert_eq!((page.width(), page.height(), page.row(0)[0]), (5, 2, 50));
    assert!(matches!(
        refusal(document.render(3, 72.0)),
        DocumentError::NoSuchPage { page: 4, pages: 3 }
    ));
    let single = open(fixture("plain-1.png"));
    assert_eq!(
        (single.pages(), single.render(0, 72.0).unwrap().width()),
        (1, 420)
    );
    assert!(is_document(&fixture("plain.pdf")) && is_document(&tiff(&[[1, 1]])));
    assert!(!is_document(b"text") && !is_document(b""));
}
