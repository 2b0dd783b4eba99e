//! What PaddleOCR-VL can be asked by name, and how its answers are read.

use crate::ocr::{html_of_otsl, spotted_lines};
use aha_engine::{OcrBlock, OcrKind, OcrModel, OcrTask, PageSize, PixelLimits};
use aha_media::MediaError;
use aha_media::image::{Filter, Image, Resampler, resize};

/// Tokens that the reference's pipeline lets an answer have.
const MAX_TOKENS: usize = 8192;
/// `min_pixels` of 1.0, which knows neither seals nor spotting; later releases allow smaller pictures.
const FIRST_MIN_PIXELS: u64 = 147_384;
/// Spotting sees pages larger than other tasks do (2048 tokens of 28 by 28 pixels), and small ones doubled.
const SPOTTING_MAX_PIXELS: u64 = 2048 * 28 * 28;
const DOUBLED_BELOW: u32 = 1500;
/// Coordinates run from 0 to this over a page (`<|LOC_0|>` to `<|LOC_1000|>`).
const FULL: f32 = 1000.0;

const SPOTTING: &str = "spotting";

/// Tasks of PaddleOCR-VL.
#[derive(Debug)]
pub struct PaddleOcr {
    tasks: Vec<OcrTask>,
}

impl PaddleOcr {
    /// The tasks of the release whose preprocessor has that `min_pixels`.
    pub fn new(min_pixels: u64) -> Self {
        let task = |name, about, prompt| {
            let mut task = OcrTask::new(name, about, prompt);
            task.stop.max_tokens = Some(MAX_TOKENS);
            task
        };
        let mut tasks = vec![
            task("ocr", "plain text", "OCR:"),
            task("table", "a table as HTML", "Table Recognition:"),
            task("formula", "a formula as LaTeX", "Formula Recognition:"),
            task(
                "chart",
                "the table that a chart shows",
                "Chart Recognition:",
            ),
        ];
        if min_pixels < FIRST_MIN_PIXELS {
            tasks.push(task("seal", "the text of a seal", "Seal Recognition:"));
            let mut spotting = task(SPOTTING, "lines of text with their corners", "Spotting:");
            spotting.output.skip_special_tokens = Some(false);
            spotting.pixels = PixelLimits {
                min_pixels: None,
                max_pixels: Some(SPOTTING_MAX_PIXELS),
            };
            tasks.push(spotting);
        }
        Self { tasks }
    }
}

impl OcrModel for PaddleOcr {
    fn tasks(&self) -> &[OcrTask] {
        &self.tasks
    }

    fn page_image(&self, task: &OcrTask, page: Image) -> Result<Image, MediaError> {
        let (width, height) = (page.width(), page.height());
        if task.name != SPOTTING || width.max(height) >= DOUBLED_BELOW {
            return Ok(page);
        }
        resize(
            &page,
            2 * width,
            2 * height,
            Filter::Lanczos,
            Resampler::Pillow,
        )
    }

    fn parse(&self, task: &OcrTask, answer: &str, page: PageSize) -> Vec<OcrBlock> {
        let kind = match task.name {
            SPOTTING => return spotted_lines(answer, page, FULL),
            "table" => return vec![OcrBlock::new(OcrKind::Table, html_of_otsl(answer))],
            "formula" => OcrKind::Formula,
            "chart" => OcrKind::Chart,
            "seal" => OcrKind::Seal,
            _ => OcrKind::Text,
        };
        vec![OcrBlock::new(kind, answer.trim())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize {
        width: 500,
        height: 200,
    };

    fn parsed(task: &str, answer: &str) -> Vec<OcrBlock> {
        let model = PaddleOcr::new(112_896);
        model.parse(model.task(task).unwrap(), answer, PAGE)
    }

    #[test]
    fn the_first_release_has_four_tasks_and_later_ones_six() {
        let names = |min_pixels| -> Vec<&str> {
            let model = PaddleOcr::new(min_pixels);
            model.tasks().iter().map(|task| task.name).collect()
        };
        assert_eq!(names(147_384), ["ocr", "table", "formula", "chart"]);
        assert_eq!(
            names(112_896),
            ["ocr", "table", "formula", "chart", "seal", "spotting"]
        );
    }

    #[test]
    fn spotting_keeps_its_places_and_sees_small_pages_doubled() {
        let model = PaddleOcr::new(112_896);
        let spotting = model.task("spotting").unwrap();
        assert_eq!(spotting.output.skip_special_tokens, Some(false));
        let side = |task: &str, side| {
            let page = Image::filled_rgb(side, 20, [255; 3]).unwrap();
            model
                .page_image(model.task(task).unwrap(), page)
                .unwrap()
                .width()
        };
        assert_eq!(side("spotting", 100), 200);
        assert_eq!(side("spotting", 1500), 1500);
        assert_eq!(side("ocr", 100), 100);
    }

    #[test]
    fn answers_are_read_by_task() {
        let spotted = parsed(
            "spotting",
            "Total<|LOC_100|><|LOC_50|><|LOC_300|><|LOC_50|><|LOC_300|><|LOC_100|><|LOC_100|><|LOC_100|>\n\
             发票<|LOC_400|><|LOC_500|><|LOC_600|><|LOC_500|><|LOC_600|><|LOC_1000|><|LOC_400|><|LOC_1000|>",
        );
        assert_eq!(spotted.len(), 2);
        assert_eq!(spotted[0].text, "Total");
        assert_eq!(spotted[0].bbox, Some([50.0, 10.0, 150.0, 20.0]));
        assert_eq!(spotted[1].text, "发票");
        assert_eq!(
            spotted[1].polygon.as_deref(),
            Some(
                &[
                    [200.0, 100.0],
                    [300.0, 100.0],
                    [300.0, 200.0],
                    [200.0, 200.0]
                ][..]
            )
        );

        let table = parsed("table", "<fcel>a<fcel>b<nl><fcel>1<ecel><nl>");
        assert_eq!(table[0].kind, OcrKind::Table);
        assert_eq!(
            table[0].text,
            "<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td></td></tr></table>"
        );
        let formula = parsed("formula", " \\[ x^2 \\] ");
        assert_eq!(
            (formula[0].kind, formula[0].text.as_str()),
            (OcrKind::Formula, "\\[ x^2 \\]")
        );
        let text = parsed("ocr", "two\nlines\n");
        assert_eq!(
            (text[0].kind, text[0].text.as_str()),
            (OcrKind::Text, "two\nlines")
        );
    }
}
