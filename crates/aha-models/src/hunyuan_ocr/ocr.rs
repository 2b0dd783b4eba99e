//! What HunyuanOCR can be asked by name, and how its answers are read.

use crate::ocr::{boxed_texts, without_repeated_end};
use aha_engine::{OcrBlock, OcrKind, OcrModel, OcrTask, PageSize};

/// Tokens that the reference lets an answer have.
const MAX_TOKENS: usize = 16_384;
/// Coordinates run from 0 to this over a page.
const FULL: f32 = 1000.0;

/// Names, what they give, and the prompts of the release in Chinese, which it follows better than the English ones.
const TASKS: [(&str, &str, &str); 6] = [
    (
        "markdown",
        "a page as Markdown, tables as HTML, formulas as LaTeX",
        "提取文档图片中正文的所有信息用 markdown 格式表示，其中页眉、页脚部分忽略，表格用 html 格式表达，文档中公式用 latex \
         格式表示，按照阅读顺序组织进行解析。",
    ),
    ("ocr", "plain text", "提取图中的文字。"),
    ("table", "a table as HTML", "把图中的表格解析为 HTML。"),
    (
        "formula",
        "a formula as LaTeX",
        "识别图片中的公式，用 LaTeX 格式表示。",
    ),
    (
        "chart",
        "a flowchart as Mermaid, another chart as Markdown",
        "解析图中的图表，对于流程图使用 Mermaid 格式表示，其他图表使用 Markdown 格式表示。",
    ),
    (
        "spotting",
        "lines of text with their boxes",
        "检测并识别图片中的文字，将文本坐标格式化输出。",
    ),
];

/// Tasks of HunyuanOCR.
#[derive(Debug)]
pub struct HunyuanOcr {
    tasks: Vec<OcrTask>,
}

impl HunyuanOcr {
    /// The tasks; the first release was used with an empty turn of the system before the page.
    pub fn new(first_release: bool) -> Self {
        let tasks = TASKS.into_iter().map(|(name, about, prompt)| {
            let mut task = OcrTask::new(name, about, prompt);
            task.system = first_release.then(String::new);
            task.stop.max_tokens = Some(MAX_TOKENS);
            task
        });
        Self {
            tasks: tasks.collect(),
        }
    }
}

impl OcrModel for HunyuanOcr {
    fn tasks(&self) -> &[OcrTask] {
        &self.tasks
    }

    fn parse(&self, task: &OcrTask, answer: &str, page: PageSize) -> Vec<OcrBlock> {
        let answer = without_repeated_end(answer);
        let kind = match task.name {
            "spotting" => return boxed_texts(answer, page, FULL),
            "table" => OcrKind::Table,
            "formula" => OcrKind::Formula,
            "chart" => OcrKind::Chart,
            _ => OcrKind::Text,
        };
        vec![OcrBlock::new(kind, answer.trim())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_engine::PageSize;

    const PAGE: PageSize = PageSize {
        width: 2000,
        height: 1000,
    };

    fn parsed(task: &str, answer: &str) -> Vec<OcrBlock> {
        let model = HunyuanOcr::new(true);
        model.parse(model.task(task).unwrap(), answer, PAGE)
    }

    #[test]
    fn the_first_release_is_asked_behind_an_empty_system_turn() {
        let system = |first| HunyuanOcr::new(first).tasks()[0].system.clone();
        assert_eq!(system(true).as_deref(), Some(""));
        assert_eq!(system(false), None);
    }

    #[test]
    fn prompts_are_one_line() {
        for task in HunyuanOcr::new(false).tasks() {
            assert!(!task.prompt.contains(['\n', '\t']) && !task.prompt.contains("  "));
        }
    }

    #[test]
    fn spotted_text_has_its_box() {
        let blocks = parsed(
            "spotting",
            "发票代码(100,50),(300,80)\n金额(含税)：12.50(100,100),(400,130)",
        );
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks[0].text, "发票代码");
        assert_eq!(blocks[0].bbox, Some([200.0, 50.0, 600.0, 80.0]));
        assert_eq!(blocks[1].text, "金额(含税)：12.50");
    }

    #[test]
    fn other_answers_are_one_part_without_the_loop_at_their_end() {
        let looping = "x".repeat(100) + &"<td></td>".repeat(1000);
        let blocks = parsed("table", &looping);
        assert_eq!(blocks[0].kind, OcrKind::Table);
        assert_eq!(blocks[0].text, "x".repeat(100) + "<td></td>");
        assert_eq!(
            parsed("markdown", "# 标题\n\n正文\n")[0].text,
            "# 标题\n\n正文"
        );
    }
}
