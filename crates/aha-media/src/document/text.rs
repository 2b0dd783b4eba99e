//! The text layer of a PDF page: what its fonts say that it reads, and where.
//!
//! Glyphs come in the order of the content, which producers write in reading order; they are put together to lines and
//! blocks by their places.

use super::guard::check_deadline;
use hayro::hayro_interpret::font::{Glyph, GlyphRun};
use hayro::hayro_interpret::hayro_cmap::{BfString, WritingMode};
use hayro::hayro_interpret::{
    BlendMode, ClipPath, Device, DrawMode, DrawProps, Image, ImageDrawProps, SoftMask,
};
use hayro::kurbo::{Affine, BezPath, Point, Vec2};

/// Glyphs of a page: more are no page that anybody reads.
const MAX_GLYPHS: usize = 1_000_000;

/// A gap of this share of the text's size is a space.
const SPACE: f64 = 0.15;

/// A gap of this many times the text's size is a new column or cell.
const FAR: f64 = 2.5;

/// Baselines this share of the text's size apart are still one line.
const SAME_LINE: f64 = 0.4;

/// Baselines this many times the text's size apart are still one block.
const NEXT_LINE: f64 = 1.75;

/// Lines of text that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct TextBlock {
    /// The text, with the breaks of its lines.
    pub text: String,
    /// Left, top, right and bottom in pixels of the page as it is rendered.
    pub bbox: [f32; 4],
}

/// The text of a page as its fonts tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextLayer {
    /// Blocks in the order of the content.
    pub blocks: Vec<TextBlock>,
    /// Glyphs that are shown.
    pub glyphs: usize,
    /// Those of them whose characters are not known.
    pub unknown: usize,
}

impl TextLayer {
    /// Whether the layer says what the page reads: it has text, and nearly all glyphs have characters.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.blocks.is_empty() && self.unknown * 10 <= self.glyphs
    }

    /// All blocks, an empty line between them.
    #[must_use]
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self
            .blocks
            .iter()
            .map(|block| block.text.as_str())
            .collect();
        texts.join("\n\n")
    }
}

/// A glyph on the page.
#[derive(Clone)]
struct Placed {
    text: String,
    origin: Point,
    /// The way that the text runs, of length 1.
    along: Vec2,
    /// Font size in pixels.
    size: f64,
    /// To the next glyph, in pixels.
    advance: f64,
}

/// A device that keeps the glyphs and draws nothing. It also hears the deadline.
#[derive(Default)]
pub(super) struct Glyphs {
    placed: Vec<Placed>,
    count: usize,
    unknown: usize,
    /// Where the last run began.
    last_run: Option<Affine>,
    /// Pixels of the largest image that is drawn, as it is stored.
    pub(super) largest_image: u64,
}

impl<'a> Device<'a> for Glyphs {
    fn draw_path(&mut self, _: &BezPath, _: DrawProps<'a>, _: &DrawMode) {
        check_deadline();
    }

    fn push_clip_path(&mut self, _: &ClipPath) {
        check_deadline();
    }

    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'a>>, _: BlendMode) {}

    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, mode: &DrawMode) {
        check_deadline();
        let place = run
            .glyphs()
            .first()
            .map(|first| props.transform * first.transform());
        // Text that is filled and stroked comes twice.
        if std::mem::replace(&mut self.last_run, place) == place
            && matches!(mode, DrawMode::Stroke(_))
        {
            return;
        }
        let vertical = run.writing_mode() == WritingMode::Vertical;
        for glyph in run.glyphs() {
            self.count += 1;
            if self.placed.len() < MAX_GLYPHS {
                self.place(glyph, props.transform * glyph.transform(), vertical);
            }
        }
    }

    fn draw_image(&mut self, image: Image<'a, '_>, _: ImageDrawProps<'a>) {
        check_deadline();
        let pixels = u64::from(image.width()) * u64::from(image.height());
        self.largest_image = self.largest_image.max(pixels);
    }

    fn pop_clip(&mut self) {}

    fn pop_transparency_group(&mut self) {}
}

impl Glyphs {
    /// `to_page` leads from the glyph's space, 1000 units to the em, to pixels.
    fn place(&mut self, glyph: &Glyph<'_>, to_page: Affine, vertical: bool) {
        let text = match glyph.as_unicode() {
            Some(BfString::Char(character)) => character.to_string(),
            Some(BfString::String(text)) => text,
            None => {
                self.unknown += 1;
                return;
            }
        };
        let [a, b, c, d, x, y] = to_page.as_coeffs();
        let way = if vertical {
            -Vec2::new(c, d)
        } else {
            Vec2::new(a, b)
        };
        let unit = way.hypot();
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        if text.is_empty() || !unit.is_normal() || !x.is_finite() || !y.is_finite() {
            return;
        }
        let units = match glyph {
            Glyph::Outline(outline) => outline.advance_width(),
            Glyph::Type3(glyph) => glyph.advance_width(),
        };
        self.placed.push(Placed {
            text,
            origin: Point::new(x, y),
            along: way / unit,
            size: unit * EM,
            advance: unit * units.map_or(EM / 2.0, f64::from),
        });
    }

    /// The glyphs put together.
    pub(super) fn into_layer(self) -> TextLayer {
        let mut blocks: Vec<Block> = Vec::new();
        for glyph in &self.placed {
            let goes_on = blocks.last_mut().is_some_and(|block| block.takes(glyph));
            if !goes_on {
                blocks.push(Block::of(glyph));
            }
        }
        let blocks = blocks.into_iter().filter_map(Block::finish).collect();
        TextLayer {
            blocks,
            glyphs: self.count,
            unknown: self.unknown,
        }
    }
}

/// Units of a glyph's space in a font's size.
const EM: f64 = 1000.0;

/// A block that grows.
struct Block {
    text: String,
    bbox: [f64; 4],
    /// Where its current line begins, and where the next glyph of it would stand.
    line: Point,
    end: Point,
    along: Vec2,
    size: f64,
}

impl Block {
    fn of(glyph: &Placed) -> Self {
        let Point { x, y } = glyph.origin;
        let mut block = Self {
            text: String::new(),
            bbox: [x, y, x, y],
            line: glyph.origin,
            end: glyph.origin,
            along: glyph.along,
            size: glyph.size,
        };
        block.push(glyph);
        block
    }

    /// Adds the glyph if it goes on with the line or begins the next one.
    fn takes(&mut self, glyph: &Placed) -> bool {
        let size = self.size.max(glyph.size);
        // Across the text: positive is the next line, in pixels that grow downwards.
        let across = Vec2::new(-self.along.y, self.along.x);
        let gap = glyph.origin - self.end;
        let (ahead, below) = (gap.dot(self.along), gap.dot(across));
        let is_same_way = self.along.dot(glyph.along) > 0.99;
        let is_same_line = below.abs() < SAME_LINE * size && ahead > -size && ahead < FAR * size;
        let from_start = (glyph.origin - self.line).dot(self.along);
        let is_next_line = (SAME_LINE * size..NEXT_LINE * size).contains(&below)
            && from_start.abs() < 4.0 * FAR * size
            && self.size.min(glyph.size) > 0.75 * size;
        if !is_same_way || !(is_same_line || is_next_line) {
            return false;
        }
        if is_same_line {
            let ends_with_space = self.text.ends_with(char::is_whitespace);
            if ahead > SPACE * size && !ends_with_space && !glyph.text.starts_with(' ') {
                self.text.push(' ');
            }
        } else {
            self.text.truncate(self.text.trim_end().len());
            self.text.push('\n');
            self.line = glyph.origin;
        }
        self.push(glyph);
        true
    }

    fn push(&mut self, glyph: &Placed) {
        self.text.push_str(&glyph.text);
        self.size = glyph.size;
        self.end = glyph.origin + glyph.along * glyph.advance;
        let up = Vec2::new(glyph.along.y, -glyph.along.x) * glyph.size;
        // Most of a letter stands above its baseline, a fifth hangs below.
        for corner in [glyph.origin - up * 0.2, self.end + up * 0.8] {
            let [left, top, right, bottom] = self.bbox;
            self.bbox = [
                left.min(corner.x),
                top.min(corner.y),
                right.max(corner.x),
                bottom.max(corner.y),
            ];
        }
    }

    fn finish(self) -> Option<TextBlock> {
        let text = self.text.trim();
        (!text.is_empty()).then(|| TextBlock {
            text: text.to_owned(),
            bbox: self.bbox.map(|side| side as f32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(layer: &mut Glyphs, text: &str, x: f64, y: f64, size: f64) {
        for (index, character) in text.chars().enumerate() {
            layer.count += 1;
            layer.placed.push(Placed {
                text: character.to_string(),
                origin: Point::new(x + index as f64 * size / 2.0, y),
                along: Vec2::new(1.0, 0.0),
                size,
                advance: size / 2.0,
            });
        }
    }

    #[test]
    fn glyphs_become_lines_and_blocks() {
        let mut glyphs = Glyphs::default();
        line(&mut glyphs, "Title", 10.0, 20.0, 20.0);
        line(&mut glyphs, "one", 10.0, 60.0, 10.0);
        // A word beside it without a space of its own, then the next line.
        line(&mut glyphs, "two", 30.0, 60.0, 10.0);
        line(&mut glyphs, "three", 10.0, 72.0, 10.0);
        // A second column.
        line(&mut glyphs, "four", 200.0, 60.0, 10.0);
        let layer = glyphs.into_layer();
        assert!(layer.is_usable());
        assert_eq!(layer.text(), "Title\n\none two\nthree\n\nfour");
        let [left, top, right, bottom] = layer.blocks[1].bbox;
        assert_eq!((left, right), (10.0, 45.0));
        assert!(top < 53.0 && (72.0..76.0).contains(&bottom));
    }

    #[test]
    fn layers_without_characters_are_not_usable() {
        assert!(!TextLayer::default().is_usable());
        let mut glyphs = Glyphs::default();
        line(&mut glyphs, "abcdefghi", 0.0, 0.0, 10.0);
        (glyphs.count, glyphs.unknown) = (11, 2);
        assert!(!glyphs.into_layer().is_usable());
        let mut spaces = Glyphs::default();
        line(&mut spaces, "   ", 0.0, 0.0, 10.0);
        assert!(!spaces.into_layer().is_usable());
    }
}
