//! Places in answers.

use aha_engine::{OcrBlock, OcrKind, PageSize};

/// Numbers of a quadrilateral: x and y of four corners.
const QUAD: usize = 8;

/// Lines of an answer that puts eight location tokens `<|LOC_n|>` behind each text: x and y of its corners, from 0 to
/// `full` over the page. Text without its eight numbers is kept without a place.
pub(crate) fn spotted_lines(answer: &str, page: PageSize, full: f32) -> Vec<OcrBlock> {
    let (mut blocks, mut text, mut numbers) = (Vec::new(), String::new(), Vec::new());
    let mut rest = answer;
    while let Some((before, number, after)) = split_location(rest) {
        if !before.trim().is_empty() && !numbers.is_empty() {
            push_line(&mut blocks, &mut text, &mut numbers, (page, full));
        }
        text.push_str(before);
        numbers.push(number);
        if numbers.len() == QUAD {
            push_line(&mut blocks, &mut text, &mut numbers, (page, full));
        }
        rest = after;
    }
    if !rest.trim().is_empty() && !numbers.is_empty() {
        push_line(&mut blocks, &mut text, &mut numbers, (page, full));
    }
    text.push_str(rest);
    push_line(&mut blocks, &mut text, &mut numbers, (page, full));
    blocks
}

/// Adds what was collected of a line, if anything.
fn push_line(
    blocks: &mut Vec<OcrBlock>,
    text: &mut String,
    numbers: &mut Vec<f32>,
    (page, full): (PageSize, f32),
) {
    let corners = numbers.chunks_exact(2);
    let block = OcrBlock::new(OcrKind::Text, text.trim());
    if numbers.len() == QUAD {
        let corners = corners.map(|xy| page.point([xy[0], xy[1]], full));
        blocks.push(block.at(corners.collect()));
    } else if !block.text.is_empty() {
        blocks.push(block);
    }
    text.clear();
    numbers.clear();
}

/// The first `<|LOC_n|>`: what is before it, its number, what is behind it.
fn split_location(text: &str) -> Option<(&str, f32, &str)> {
    const OPEN: &str = "<|LOC_";
    text.match_indices(OPEN).find_map(|(at, _)| {
        let (digits, after) = text[at + OPEN.len()..].split_once("|>")?;
        let number: u16 = digits.parse().ok()?;
        Some((&text[..at], f32::from(number), after))
    })
}

/// Texts of an answer that puts the upper left and lower right corner behind each, `text(x1,y1),(x2,y2)`, from 0 to
/// `full` over the page. What follows the last place is kept without one.
pub(crate) fn boxed_texts(answer: &str, page: PageSize, full: f32) -> Vec<OcrBlock> {
    let mut blocks = Vec::new();
    let mut start = 0;
    for (at, _) in answer.match_indices('(') {
        // A place that begins inside the last one is its second corner.
        if at < start {
            continue;
        }
        let Some(([first, second], after)) = corners(&answer[at..]) else {
            continue;
        };
        let text = answer[start..at].trim();
        let corners = vec![page.point(first, full), page.point(second, full)];
        blocks.push(OcrBlock::new(OcrKind::Text, text).at(corners));
        start = answer.len() - after.len();
    }
    let left = answer[start..].trim();
    if !left.is_empty() {
        blocks.push(OcrBlock::new(OcrKind::Text, left));
    }
    blocks
}

/// `(x1,y1),(x2,y2)` at the start of `text`, and what is behind it.
fn corners(text: &str) -> Option<([[f32; 2]; 2], &str)> {
    let (first, rest) = point(text)?;
    let (second, rest) = point(rest.trim_start().strip_prefix(',')?.trim_start())?;
    Some(([first, second], rest))
}

/// `(x,y)` at the start of `text`, and what is behind it.
fn point(text: &str) -> Option<([f32; 2], &str)> {
    let (inside, rest) = text.strip_prefix('(')?.split_once(')')?;
    let (x, y) = inside.split_once(',')?;
    let number = |text: &str| text.trim().parse::<u16>().map(f32::from).ok();
    Some(([number(x)?, number(y)?], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: PageSize = PageSize {
        width: 1000,
        height: 500,
    };

    fn texts(blocks: &[OcrBlock]) -> Vec<(&str, bool)> {
        blocks
            .iter()
            .map(|block| (block.text.as_str(), block.bbox.is_some()))
            .collect()
    }

    #[test]
    fn lines_without_all_their_numbers_are_kept_without_a_place() {
        let quad = "<|LOC_0|><|LOC_0|><|LOC_10|><|LOC_0|><|LOC_10|><|LOC_9|><|LOC_0|><|LOC_9|>";
        let answer = format!("a{quad}\nb<|LOC_1|><|LOC_2|>c{quad}d<|LOC_x|>");
        let blocks = spotted_lines(&answer, PAGE, 1000.0);
        assert_eq!(
            texts(&blocks),
            [
                ("a", true),
                ("b", false),
                ("c", true),
                ("d<|LOC_x|>", false)
            ]
        );
        assert_eq!(blocks[0].bbox, Some([0.0, 0.0, 10.0, 4.5]));
        assert_eq!(texts(&spotted_lines("", PAGE, 1000.0)), []);
        assert_eq!(
            texts(&spotted_lines("cut<|LOC_1|>", PAGE, 1000.0)),
            [("cut", false)]
        );
    }

    #[test]
    fn parentheses_that_are_no_place_are_text() {
        let answer = "f(x)(10,20),(300, 40)金额(元)(1,2),(3,4) rest (5,6)";
        let blocks = boxed_texts(answer, PAGE, 1000.0);
        assert_eq!(
            texts(&blocks),
            [("f(x)", true), ("金额(元)", true), ("rest (5,6)", false)]
        );
        assert_eq!(blocks[0].bbox, Some([10.0, 10.0, 300.0, 20.0]));
    }
}
