//! The parts of a page: one schema for all OCR models.

use serde::{Deserialize, Serialize};

/// Width and height of a page in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl PageSize {
    /// A point whose coordinates run from 0 to `full` over the page, in pixels; points beyond an edge are moved to it.
    pub fn point(self, [x, y]: [f32; 2], full: f32) -> [f32; 2] {
        let pixel = |at: f32, side: u32| (at / full).clamp(0.0, 1.0) * side as f32;
        [pixel(x, self.width), pixel(y, self.height)]
    }
}

/// What a part of a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OcrKind {
    /// Running text, a line of it, or a whole page as Markdown.
    Text,
    /// A title or heading.
    Title,
    /// A caption of a figure or table.
    Caption,
    /// A footnote.
    Footnote,
    /// What stands at the top of every page.
    Header,
    /// What stands at the foot of every page, its number included.
    Footer,
    /// A table, as HTML or a pipe table.
    Table,
    /// A formula in LaTeX.
    Formula,
    /// A chart, as the table or diagram code that it shows.
    Chart,
    /// A seal or stamp.
    Seal,
    /// A picture.
    Figure,
}

impl OcrKind {
    /// The kind's name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Title => "title",
            Self::Caption => "caption",
            Self::Footnote => "footnote",
            Self::Header => "header",
            Self::Footer => "footer",
            Self::Table => "table",
            Self::Formula => "formula",
            Self::Chart => "chart",
            Self::Seal => "seal",
            Self::Figure => "figure",
        }
    }
}

/// A part of a page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OcrBlock {
    /// What it is.
    pub kind: OcrKind,
    /// Left, top, right and bottom in pixels of the page, where the model gives the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bbox: Option<[f32; 4]>,
    /// Corners `[x, y]` in pixels, where the model gives more than a box.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub polygon: Option<Vec<[f32; 2]>>,
    /// Its text as Markdown.
    pub text: String,
    /// How sure the model is, in 0..1, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
}

impl OcrBlock {
    /// A part whose place is not known.
    pub fn new(kind: OcrKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            bbox: None,
            polygon: None,
            text: text.into(),
            confidence: None,
        }
    }

    /// The same at `polygon`: two opposite corners are a box, more a polygon with the box around it.
    #[must_use]
    pub fn at(mut self, polygon: Vec<[f32; 2]>) -> Self {
        let Some(&[x, y]) = polygon.first() else {
            return self;
        };
        let around = |[left, top, right, bottom]: [f32; 4], &[x, y]: &[f32; 2]| {
            [left.min(x), top.min(y), right.max(x), bottom.max(y)]
        };
        self.bbox = Some(polygon.iter().fold([x, y, x, y], around));
        self.polygon = (polygon.len() > 2).then_some(polygon);
        self
    }
}

/// The parts joined to one Markdown text. `figure` writes what stands for the picture of index `i` among the parts: a
/// link to where it was cut out, or nothing.
pub fn markdown(blocks: &[OcrBlock], mut figure: impl FnMut(usize, &OcrBlock) -> String) -> String {
    let mut text = String::new();
    // Lines that a model found one by one are a paragraph's; other parts stand apart.
    let mut after_line = false;
    for (index, block) in blocks.iter().enumerate() {
        let part = match block.kind {
            OcrKind::Figure => figure(index, block),
            _ => block.text.trim().to_owned(),
        };
        if part.is_empty() {
            continue;
        }
        let is_line = block.kind == OcrKind::Text && block.polygon.is_some();
        if !text.is_empty() {
            text.push_str(if after_line && is_line { "\n" } else { "\n\n" });
        }
        text.push_str(&part);
        after_line = is_line;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize {
        width: 200,
        height: 100,
    };

    #[test]
    fn points_are_scaled_and_kept_on_the_page() {
        assert_eq!(PAGE.point([500.0, 250.0], 1000.0), [100.0, 25.0]);
        assert_eq!(PAGE.point([-1.0, 1200.0], 1000.0), [0.0, 100.0]);
    }

    #[test]
    fn two_corners_are_a_box_and_four_a_polygon() {
        let block = OcrBlock::new(OcrKind::Text, "a").at(vec![[9.0, 1.0], [2.0, 5.0]]);
        assert_eq!(block.bbox, Some([2.0, 1.0, 9.0, 5.0]));
        assert_eq!(block.polygon, None);
        let corners = vec![[1.0, 2.0], [8.0, 1.0], [9.0, 4.0], [2.0, 5.0]];
        let block = OcrBlock::new(OcrKind::Text, "a").at(corners.clone());
        assert_eq!(block.bbox, Some([1.0, 1.0, 9.0, 5.0]));
        assert_eq!(block.polygon, Some(corners));
        assert_eq!(OcrBlock::new(OcrKind::Text, "a").at(Vec::new()).bbox, None);
    }

    #[test]
    fn markdown_keeps_lines_together_and_parts_apart() {
        let line = |text: &str| OcrBlock::new(OcrKind::Text, text).at(vec![[0.0, 0.0]; 4]);
        let blocks = [
            OcrBlock::new(OcrKind::Title, "# One"),
            line("first"),
            line("second"),
            OcrBlock::new(OcrKind::Figure, ""),
            OcrBlock::new(OcrKind::Text, " "),
            OcrBlock::new(OcrKind::Table, "<table></table>"),
        ];
        let text = markdown(&blocks, |index, _| format!("![]({index}.png)"));
        assert_eq!(
            text,
            "# One\n\nfirst\nsecond\n\n![](3.png)\n\n<table></table>"
        );
    }

    #[test]
    fn json_leaves_out_what_is_not_known() {
        let json = |block: &OcrBlock| serde_json::to_string(block).unwrap();
        let mut block = OcrBlock::new(OcrKind::Footnote, "a");
        assert_eq!(json(&block), r#"{"kind":"footnote","text":"a"}"#);
        block.bbox = Some([0.0, 1.0, 2.0, 3.5]);
        assert!(json(&block).contains(r#""bbox":[0.0,1.0,2.0,3.5]"#));
    }
}
