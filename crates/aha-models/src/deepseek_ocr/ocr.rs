//! What DeepSeek-OCR and DeepSeek-OCR-2 can be asked by name, and how their answers are read.

use aha_engine::tokenizer::Tokenizer;
use aha_engine::{NgramWindow, OcrBlock, OcrKind, OcrModel, OcrTask, PageSize};

/// Coordinates run from 0 to this over a page.
const FULL: f32 = 999.0;
/// Tokens among which the release's serving code looks for repeated n-grams.
const WINDOW: usize = 90;
/// Tokens that tables repeat.
const CELL_TAGS: [&str; 2] = ["<td>", "</td>"];

const DOCUMENT: &str = "<|grounding|>Convert the document to markdown.";

/// Names, what they give, and the prompts of the releases. A document comes with the places of its parts by either
/// name.
const TASKS: [(&str, &str, &str); 5] = [
    (
        "markdown",
        "a page as Markdown, tables as HTML, its parts with their places",
        DOCUMENT,
    ),
    ("grounding", "the same", DOCUMENT),
    ("ocr", "plain text", "Free OCR."),
    (
        "spotting",
        "pieces of text with their places",
        "<|grounding|>OCR this image.",
    ),
    ("chart", "what a figure or chart shows", "Parse the figure."),
];

/// Tasks of both releases.
#[derive(Debug)]
pub struct DeepseekOcr {
    tasks: Vec<OcrTask>,
}

impl DeepseekOcr {
    /// The tasks. Their answers hold no n-gram of `ngram_size` twice within a window; tags of table cells are free.
    pub fn new(tokenizer: &Tokenizer, ngram_size: usize, vocab_size: usize) -> Self {
        let cells = CELL_TAGS.iter().filter_map(|tag| tokenizer.token_id(tag));
        let ban = NgramWindow {
            ngram_size,
            window_size: WINDOW,
            whitelist_token_ids: cells.filter(|id| (*id as usize) < vocab_size).collect(),
        };
        let tasks = TASKS.into_iter().map(|(name, about, prompt)| {
            let mut task = OcrTask::new(name, about, prompt);
            task.sampling.ngram_window = Some(ban.clone());
            task.output.skip_special_tokens = Some(false);
            task
        });
        Self {
            tasks: tasks.collect(),
        }
    }
}

impl OcrModel for DeepseekOcr {
    fn tasks(&self) -> &[OcrTask] {
        &self.tasks
    }

    fn parse(&self, task: &OcrTask, answer: &str, page: PageSize) -> Vec<OcrBlock> {
        let form = Form {
            page,
            labels_are_kinds: task.prompt == DOCUMENT,
            plain: match task.name {
                "chart" => OcrKind::Chart,
                _ => OcrKind::Text,
            },
        };
        form.parts(answer)
    }
}

/// How an answer is read.
#[derive(Debug, Clone, Copy)]
struct Form {
    page: PageSize,
    /// What has a place is named by its kind, as in documents, and not by its text.
    labels_are_kinds: bool,
    /// The kind of what has no other.
    plain: OcrKind,
}

impl Form {
    /// The parts of an answer that names each by `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2]]<|/det|>`, followed by
    /// its text.
    fn parts(self, answer: &str) -> Vec<OcrBlock> {
        let mut blocks = Vec::new();
        let mut rest = answer;
        let mut kind = None;
        loop {
            let next = next_reference(rest);
            let text = written(next.as_ref().map_or(rest, |next| next.before));
            match kind.take() {
                Some((OcrKind::Figure, boxes)) => {
                    blocks.push(self.around(OcrBlock::new(OcrKind::Figure, ""), boxes));
                    self.push_plain(&mut blocks, text);
                }
                Some((kind, boxes)) if !text.is_empty() => {
                    blocks.push(self.around(OcrBlock::new(kind, text), boxes));
                }
                _ => self.push_plain(&mut blocks, text),
            }
            let Some(next) = next else {
                return blocks;
            };
            rest = next.after;
            kind = kind_of(next.label)
                .filter(|_| self.labels_are_kinds)
                .map(|kind| (kind, next.boxes.clone()));
            if kind.is_none() {
                // A name of what was looked for: a part for each place.
                let named = || OcrBlock::new(self.plain, next.label.trim());
                if next.boxes.is_empty() {
                    self.push_plain(&mut blocks, named().text);
                }
                blocks.extend(
                    next.boxes
                        .iter()
                        .map(|found| self.around(named(), vec![*found])),
                );
            }
        }
    }

    fn push_plain(self, blocks: &mut Vec<OcrBlock>, text: String) {
        if !text.is_empty() {
            blocks.push(OcrBlock::new(self.plain, text));
        }
    }

    /// A part in the box around all `boxes`.
    fn around(self, block: OcrBlock, boxes: Vec<[f32; 4]>) -> OcrBlock {
        let around = boxes
            .into_iter()
            .reduce(|[left, top, right, bottom], other| {
                [
                    left.min(other[0]),
                    top.min(other[1]),
                    right.max(other[2]),
                    bottom.max(other[3]),
                ]
            });
        let Some([left, top, right, bottom]) = around else {
            return block;
        };
        let corners = [[left, top], [right, bottom]].map(|corner| self.page.point(corner, FULL));
        block.at(corners.to_vec())
    }
}

/// A text as Markdown: trimmed, and with the two symbols that the release's code writes out.
fn written(text: &str) -> String {
    text.trim()
        .replace("\\coloneqq", ":=")
        .replace("\\eqqcolon", "=:")
}

/// The kind of a document's part by its label.
fn kind_of(label: &str) -> Option<OcrKind> {
    Some(match label.trim() {
        "text" | "list" | "reference" | "code" => OcrKind::Text,
        "title" | "sub_title" | "doc_title" => OcrKind::Title,
        "image_caption" | "figure_caption" | "table_caption" | "chart_caption" => OcrKind::Caption,
        "table_footnote" | "image_footnote" | "footnote" => OcrKind::Footnote,
        "header" => OcrKind::Header,
        "footer" | "page_number" => OcrKind::Footer,
        "table" => OcrKind::Table,
        "equation" | "formula" | "isolate_formula" => OcrKind::Formula,
        "chart" => OcrKind::Chart,
        "seal" => OcrKind::Seal,
        "image" | "figure" => OcrKind::Figure,
        _ => return None,
    })
}

/// A name with its places, and the texts around it.
struct Reference<'a> {
    before: &'a str,
    label: &'a str,
    boxes: Vec<[f32; 4]>,
    after: &'a str,
}

/// The first whole `<|ref|>…<|/ref|><|det|>…<|/det|>` of a text.
fn next_reference(text: &str) -> Option<Reference<'_>> {
    const OPEN: &str = "<|ref|>";
    text.match_indices(OPEN).find_map(|(at, _)| {
        let (label, rest) = text[at + OPEN.len()..].split_once("<|/ref|>")?;
        let (places, after) = rest
            .trim_start()
            .strip_prefix("<|det|>")?
            .split_once("<|/det|>")?;
        if label.contains(OPEN) {
            return None;
        }
        Some(Reference {
            before: &text[..at],
            label,
            boxes: boxes(places),
            after,
        })
    })
}

/// `[[x1, y1, x2, y2], …]`; nothing where it is something else.
fn boxes(text: &str) -> Vec<[f32; 4]> {
    serde_json::from_str(text.trim()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize {
        width: 1998,
        height: 999,
    };

    fn read(labels_are_kinds: bool, answer: &str) -> Vec<(OcrKind, Option<[f32; 4]>, String)> {
        let form = Form {
            page: PAGE,
            labels_are_kinds,
            plain: OcrKind::Text,
        };
        let parts = form.parts(answer).into_iter();
        parts
            .map(|block| (block.kind, block.bbox, block.text))
            .collect()
    }

    fn parsed(answer: &str) -> Vec<(OcrKind, Option<[f32; 4]>, String)> {
        read(true, answer)
    }

    #[test]
    fn a_document_is_its_parts_with_their_places() {
        let answer = "<|ref|>title<|/ref|><|det|>[[10, 20, 110, 40]]<|/det|>\n# 标题\n\n\
                      <|ref|>image<|/ref|><|det|>[[0, 100, 999, 999]]<|/det|>\n\n\
                      <|ref|>table<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n<table><tr><td>a</td></tr></table>\n\
                      <|ref|>equation<|/ref|><|det|>[[1, 2, 3, 4], [5, 1, 6, 9]]<|/det|>\n\\[a \\coloneqq b\\]";
        let parts = parsed(answer);
        assert_eq!(
            parts[0],
            (
                OcrKind::Title,
                Some([20.0, 20.0, 220.0, 40.0]),
                "# 标题".to_owned()
            )
        );
        assert_eq!(
            parts[1],
            (
                OcrKind::Figure,
                Some([0.0, 100.0, 1998.0, 999.0]),
                String::new()
            )
        );
        assert_eq!(parts[2].0, OcrKind::Table);
        assert_eq!(parts[2].2, "<table><tr><td>a</td></tr></table>");
        assert_eq!(
            parts[3],
            (
                OcrKind::Formula,
                Some([2.0, 1.0, 12.0, 9.0]),
                "\\[a := b\\]".to_owned()
            )
        );
        assert_eq!(parts.len(), 4);
    }

    #[test]
    fn names_that_are_no_kinds_are_the_text_at_each_place() {
        let answer = "<|ref|>Total 42<|/ref|><|det|>[[0, 0, 10, 10], [20, 0, 30, 10]]<|/det|>\n\
                      <|ref|>text<|/ref|><|det|>[[1, 1, 2, 2]]<|/det|> behind";
        let parts = read(false, answer);
        let texts: Vec<&str> = parts.iter().map(|part| part.2.as_str()).collect();
        assert_eq!(texts, ["Total 42", "Total 42", "text", "behind"]);
        assert_eq!(parts[1].1, Some([40.0, 0.0, 60.0, 10.0]));
        let document = parsed(answer);
        let texts: Vec<&str> = document.iter().map(|part| part.2.as_str()).collect();
        assert_eq!(texts, ["Total 42", "Total 42", "behind"]);
        assert_eq!(document[2].1, Some([2.0, 1.0, 4.0, 2.0]));
    }

    #[test]
    fn what_is_outside_the_format_is_kept_as_text() {
        let text = |answer: &str| {
            let parts = parsed(answer);
            assert!(parts.iter().all(|part| part.1.is_none()), "{parts:?}");
            parts.into_iter().map(|part| part.2).collect::<Vec<_>>()
        };
        assert_eq!(text(" plain \n"), ["plain"]);
        assert_eq!(text(""), [""; 0]);
        assert_eq!(text("a <|ref|>b<|/ref|> c"), ["a <|ref|>b<|/ref|> c"]);
        assert_eq!(
            text("<|ref|>b<|/ref|><|det|>[[1, 2"),
            ["<|ref|>b<|/ref|><|det|>[[1, 2"]
        );
        assert_eq!(
            text("<|ref|>text<|/ref|><|det|>[[1, x]]<|/det|> kept"),
            ["kept"]
        );
        let cut =
            parsed("before <|ref|>text<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|> in <|ref|>te");
        assert_eq!(cut[0].2, "before");
        assert_eq!(cut[1].2, "in <|ref|>te");
        assert_eq!(cut[1].1, Some([0.0, 0.0, 1998.0, 999.0]));
    }
}
