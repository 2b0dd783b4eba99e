//! What GLM-OCR can be asked by name, and how its answers are read.

use aha_engine::{OcrBlock, OcrKind, OcrModel, OcrTask, PageSize};

/// What the vendor's client sends with every request.
const MAX_TOKENS: usize = 8192;
const REPETITION_PENALTY: f32 = 1.1;

/// Tasks of GLM-OCR.
#[derive(Debug)]
pub struct GlmOcr {
    tasks: Vec<OcrTask>,
}

impl Default for GlmOcr {
    fn default() -> Self {
        let task = |name, about, prompt| {
            let mut task = OcrTask::new(name, about, prompt);
            task.stop.max_tokens = Some(MAX_TOKENS);
            task.sampling.repetition_penalty = REPETITION_PENALTY;
            task
        };
        Self {
            tasks: vec![
                task("ocr", "text", "Text Recognition:"),
                task("table", "a table as HTML", "Table Recognition:"),
                task("formula", "a formula as LaTeX", "Formula Recognition:"),
            ],
        }
    }
}

impl OcrModel for GlmOcr {
    fn tasks(&self) -> &[OcrTask] {
        &self.tasks
    }

    fn parse(&self, task: &OcrTask, answer: &str, _page: PageSize) -> Vec<OcrBlock> {
        let kind = match task.name {
            "table" => OcrKind::Table,
            "formula" => OcrKind::Formula,
            _ => OcrKind::Text,
        };
        vec![OcrBlock::new(kind, answer.trim())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_of_their_task_s_kind() {
        let model = GlmOcr::default();
        let page = PageSize {
            width: 10,
            height: 10,
        };
        for (name, answer, kind) in [
            ("ocr", "# Title\n\nText\n", OcrKind::Text),
            (
                "table",
                "<table><tr><td>1</td></tr></table>",
                OcrKind::Table,
            ),
            ("formula", "$$\nx^2\n$$", OcrKind::Formula),
        ] {
            let blocks = model.parse(model.task(name).unwrap(), answer, page);
            assert_eq!(blocks, [OcrBlock::new(kind, answer.trim())]);
        }
    }
}
