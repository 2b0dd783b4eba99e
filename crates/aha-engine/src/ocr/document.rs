//! The pages of a document put together: as Markdown, HTML, JSON or plain text.

use super::html;
use super::{OcrBlock, OcrKind, markdown};
use aha_media::MediaError;
use aha_media::document::Document;
use aha_media::image::{crop, encode_png};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the text of a page was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageSource {
    /// A model read the page's image.
    Model,
    /// The document holds the text itself.
    TextLayer,
}

/// A page of a document that was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OcrPage {
    /// Number in the document, from 1.
    pub page: usize,
    /// Width of the image that the places are on, in pixels.
    pub width: u32,
    /// Its height.
    pub height: u32,
    /// Where the text is from.
    pub source: PageSource,
    /// Whether the model's answer was cut at the limit of tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Its parts in reading order.
    pub blocks: Vec<OcrBlock>,
}

impl OcrPage {
    /// Pictures on the page: their index among the parts, and left, top, width and height in whole pixels.
    pub fn figures(&self) -> impl Iterator<Item = (usize, [u32; 4])> {
        let bound = |at: f32, side: u32| (at.clamp(0.0, side as f32)) as u32;
        let blocks = self.blocks.iter().enumerate();
        blocks.filter_map(move |(index, block)| {
            let [left, top, right, bottom] =
                block.bbox.filter(|_| block.kind == OcrKind::Figure)?;
            let [left, right] = [left.floor(), right.ceil()].map(|x| bound(x, self.width));
            let [top, bottom] = [top.floor(), bottom.ceil()].map(|y| bound(y, self.height));
            let size = [right.saturating_sub(left), bottom.saturating_sub(top)];
            (size[0] > 0 && size[1] > 0).then_some((index, [left, top, size[0], size[1]]))
        })
    }

    /// The name of the file that holds the picture at `index` among the parts.
    pub fn figure_name(&self, index: usize) -> String {
        format!("page-{}-figure-{}.png", self.page, index + 1)
    }

    /// The pictures on the page as PNG files, with their names; `document` is rendered again where there are any.
    ///
    /// # Errors
    /// As [`Document::render`].
    pub fn cut_figures(
        &self,
        document: &Document,
        dpi: f32,
    ) -> Result<Vec<(String, Vec<u8>)>, MediaError> {
        let mut figures = self.figures().peekable();
        if figures.peek().is_none() {
            return Ok(Vec::new());
        }
        let page = document.render(self.page - 1, dpi)?;
        figures
            .map(|(index, [left, top, width, height])| {
                let part = crop(&page, left, top, width, height)?;
                Ok((self.figure_name(index), encode_png(&part)?))
            })
            .collect()
    }

    /// The page as Markdown; pictures are links into `assets`, and left out without it.
    pub fn markdown(&self, assets: Option<&str>) -> String {
        let cut: Vec<usize> = self.figures().map(|(index, _)| index).collect();
        markdown(&self.blocks, |index, block| match assets {
            Some(folder) if cut.contains(&index) => {
                let name = self.figure_name(index);
                let about = block.text.replace(['[', ']', '\n'], " ");
                format!("![{}](<{folder}/{name}>)", about.trim())
            }
            _ => block.text.trim().to_owned(),
        })
    }

    /// The page as JSON: its size, and its parts as `{page, kind, bbox, text, confidence?}`.
    pub fn json(&self, assets: Option<&str>) -> Value {
        let cut: Vec<usize> = self.figures().map(|(index, _)| index).collect();
        let blocks = self.blocks.iter().enumerate().map(|(index, block)| Placed {
            page: self.page,
            block,
            image: assets
                .filter(|_| cut.contains(&index))
                .map(|folder| format!("{folder}/{}", self.figure_name(index))),
        });
        let mut value = json!({
            "page": self.page,
            "width": self.width,
            "height": self.height,
            "source": self.source,
        });
        if self.truncated {
            value["truncated"] = true.into();
        }
        value["blocks"] = json!(blocks.collect::<Vec<_>>());
        value
    }

    fn text(&self) -> String {
        let texts = self.blocks.iter().map(|block| match block.kind {
            OcrKind::Table | OcrKind::Chart => html::plain(block.text.trim()),
            _ => block.text.trim().to_owned(),
        });
        let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
        texts.join("\n\n")
    }
}

#[derive(Serialize)]
struct Placed<'a> {
    page: usize,
    #[serde(flatten)]
    block: &'a OcrBlock,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
}

/// Kinds of files that a document can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentFormat {
    /// Markdown with an anchor a page (`#page-3`).
    Markdown,
    /// A page of HTML with a section a page.
    Html,
    /// The schema of [`OcrPage::json`].
    Json,
    /// The text alone; a form feed stands between pages.
    Text,
}

impl DocumentFormat {
    /// Ending of its files.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Markdown => "md",
            Self::Html => "html",
            Self::Json => "json",
            Self::Text => "txt",
        }
    }
}

/// A document whose pages were read.
#[derive(Debug, Clone)]
pub struct OcrDocument<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What read it.
    pub model: &'a str,
    /// What the model was asked: the name of a task, or `prompt`.
    pub task: &'a str,
    /// Folder of the pictures that were cut out, as links name it.
    pub assets: Option<&'a str>,
    /// The number of each page, and the page or why it could not be read.
    pub pages: Vec<(usize, Result<&'a OcrPage, &'a str>)>,
}

impl OcrDocument<'_> {
    /// The whole as text of that format.
    pub fn format(&self, format: DocumentFormat) -> String {
        match format {
            DocumentFormat::Markdown => self.markdown(),
            DocumentFormat::Html => self.html(),
            DocumentFormat::Json => format!("{:#}\n", self.json()),
            DocumentFormat::Text => self.text(),
        }
    }

    /// The pages behind their anchors.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, page) in &self.pages {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("<a id=\"page-{number}\"></a>\n"));
            let content = match page {
                Ok(page) => page.markdown(self.assets),
                Err(reason) => {
                    let reason = reason.replace("--", "- ").replace(['<', '>'], " ");
                    format!("<!-- page {number} could not be read: {reason} -->")
                }
            };
            if !content.is_empty() {
                text.push_str(&format!("\n{content}\n"));
            }
        }
        text
    }

    /// `{file, model, task, pages}`; a page that could not be read has `error`.
    pub fn json(&self) -> Value {
        let pages = self.pages.iter().map(|(number, page)| match page {
            Ok(page) => page.json(self.assets),
            Err(reason) => json!({"page": number, "error": reason}),
        });
        json!({
            "file": self.name,
            "model": self.model,
            "task": self.task,
            "pages": pages.collect::<Vec<_>>(),
        })
    }

    fn html(&self) -> String {
        let title = html::escape(self.name);
        let mut text = format!(
            "<!DOCTYPE html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n</head>\n<body>\n"
        );
        for (number, page) in &self.pages {
            let content = match page {
                Ok(page) => html::of_markdown(&page.markdown(self.assets)),
                Err(reason) => format!(
                    "<p><em>Page {number} could not be read: {}</em></p>\n",
                    html::escape(reason)
                ),
            };
            text.push_str(&format!(
                "<section id=\"page-{number}\">\n{content}</section>\n"
            ));
        }
        text.push_str("</body>\n</html>\n");
        text
    }

    fn text(&self) -> String {
        let pages = self.pages.iter().map(|(_, page)| match page {
            Ok(page) => page.text() + "\n",
            Err(_) => String::new(),
        });
        pages.collect::<Vec<_>>().join("\u{c}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> OcrPage {
        let figure = OcrBlock::new(OcrKind::Figure, "").at(vec![[10.4, 20.0], [300.0, 59.6]]);
        OcrPage {
            page: 2,
            width: 200,
            height: 100,
            source: PageSource::Model,
            truncated: false,
            blocks: vec![
                OcrBlock::new(OcrKind::Title, "# One & two"),
                figure,
                OcrBlock::new(
                    OcrKind::Table,
                    "<table><tr><td>a</td><td>b</td></tr></table>",
                ),
            ],
        }
    }

    fn document<'a>(page: &'a OcrPage) -> OcrDocument<'a> {
        OcrDocument {
            name: "a <b>.pdf",
            model: "m",
            task: "ocr",
            assets: Some("a_assets"),
            pages: vec![(2, Ok(page)), (3, Err("it is --> broken"))],
        }
    }

    #[test]
    fn figures_are_cut_within_the_page() {
        let page = page();
        let figures: Vec<_> = page.figures().collect();
        assert_eq!(figures, [(1, [10, 20, 190, 40])]);
        let mut empty = page.clone();
        empty.blocks[1].bbox = Some([50.0, 50.0, 50.0, 80.0]);
        assert_eq!(empty.figures().count(), 0);
    }

    #[test]
    fn figures_are_cut_out_of_the_rendered_page() {
        use aha_media::document::DocumentLimits;
        use aha_media::image::{Channels, Image, Limits, decode};
        let samples = (0..200 * 100).map(|pixel| (pixel % 251) as u8).collect();
        let whole = Image::new(200, 100, Channels::Gray, samples).unwrap();
        let file = encode_png(&whole).unwrap();
        let document = Document::open(file, &DocumentLimits::default()).unwrap();
        let mut page = page();
        page.page = 1;
        let cut = page.cut_figures(&document, 200.0).unwrap();
        assert_eq!(cut.len(), 1);
        assert_eq!(cut[0].0, "page-1-figure-2.png");
        let figure = decode(&cut[0].1, &Limits::default()).unwrap().as_stored();
        assert_eq!(figure, crop(&whole, 10, 20, 190, 40).unwrap());
        page.blocks.remove(1);
        assert_eq!(page.cut_figures(&document, 200.0).unwrap(), []);
    }

    #[test]
    fn markdown_has_anchors_figures_and_reasons() {
        let page = page();
        assert_eq!(
            document(&page).markdown(),
            "<a id=\"page-2\"></a>\n\n# One & two\n\n![](<a_assets/page-2-figure-2.png>)\n\n\
             <table><tr><td>a</td><td>b</td></tr></table>\n\n<a id=\"page-3\"></a>\n\n\
             <!-- page 3 could not be read: it is -   broken -->\n"
        );
        assert!(!page.markdown(None).contains("figure"));
    }

    #[test]
    fn json_has_one_schema() {
        let page = page();
        let value = document(&page).json();
        assert_eq!(
            value["pages"][0]["blocks"][0],
            json!({"page": 2, "kind": "title", "text": "# One & two"})
        );
        let figure = &value["pages"][0]["blocks"][1];
        assert_eq!(figure["image"], "a_assets/page-2-figure-2.png");
        assert_eq!(figure["bbox"].as_array().unwrap().len(), 4);
        assert_eq!(
            value["pages"][1],
            json!({"page": 3, "error": "it is --> broken"})
        );
        // What a journal keeps is what it gives back.
        let kept: OcrPage = serde_json::from_str(&serde_json::to_string(&page).unwrap()).unwrap();
        assert_eq!(kept, page);
    }

    #[test]
    fn html_and_text_hold_the_same() {
        let page = page();
        let html = document(&page).format(DocumentFormat::Html);
        assert!(html.contains("<title>a &lt;b&gt;.pdf</title>"), "{html}");
        assert!(
            html.contains("<section id=\"page-2\">\n<h1>One &amp; two</h1>"),
            "{html}"
        );
        assert!(html.contains("<td>a</td><td>b</td>") && html.contains("it is --&gt; broken"));
        let text = document(&page).format(DocumentFormat::Text);
        assert_eq!(text, "# One & two\n\na\tb\n\u{c}");
    }
}
