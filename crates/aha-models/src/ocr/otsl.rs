//! Tables in OTSL (arXiv 2305.03393) to HTML.

/// What a token makes of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell<'a> {
    /// A cell of its own, perhaps empty.
    Own(&'a str),
    /// Part of the cell to its left, above it, or both.
    Merged { left: bool, up: bool },
}

const END_OF_ROW: &str = "<nl>";

/// The cell that begins at the start of `text`, and what is behind its token.
fn cell(text: &str) -> Option<(Cell<'_>, &str)> {
    let merged = |left, up| Cell::Merged { left, up };
    let kinds = [
        ("<fcel>", Cell::Own("")),
        ("<ecel>", Cell::Own("")),
        ("<lcel>", merged(true, false)),
        ("<ucel>", merged(false, true)),
        ("<xcel>", merged(true, true)),
    ];
    kinds
        .into_iter()
        .find_map(|(token, kind)| Some((kind, text.strip_prefix(token)?)))
}

/// The first token at or after the start of `text`.
fn next_token(text: &str) -> Option<usize> {
    text.match_indices('<')
        .map(|(at, _)| at)
        .find(|at| cell(&text[*at..]).is_some() || text[*at..].starts_with(END_OF_ROW))
}

/// The rows of a table, and what stands before it.
fn rows(text: &str) -> (&str, Vec<Vec<Cell<'_>>>) {
    let Some(first) = next_token(text) else {
        return (text, Vec::new());
    };
    let mut rows = vec![Vec::new()];
    let mut rest = &text[first..];
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(END_OF_ROW) {
            rows.push(Vec::new());
            // Nothing but white space belongs between rows.
            rest = &after[next_token(after).unwrap_or(after.len())..];
        } else if let Some((kind, after)) = cell(rest) {
            let end = next_token(after).unwrap_or(after.len());
            let row = rows.last_mut();
            if let Some(row) = row {
                row.push(match kind {
                    Cell::Own(_) => Cell::Own(after[..end].trim()),
                    merged @ Cell::Merged { .. } => merged,
                });
            }
            rest = &after[end..];
        } else {
            break;
        }
    }
    rows.retain(|row| !row.is_empty());
    (&text[..first], rows)
}

/// An answer in OTSL as an HTML table; what is no OTSL stays as it is.
pub(crate) fn html_of_otsl(answer: &str) -> String {
    let (before, rows) = rows(answer);
    if rows.is_empty() {
        return answer.trim().to_owned();
    }
    let mut html = before.trim().to_owned();
    if !html.is_empty() {
        html.push('\n');
    }
    html.push_str("<table>");
    let mut taken: Vec<Vec<bool>> = rows.iter().map(|row| vec![false; row.len()]).collect();
    for (r, row) in rows.iter().enumerate() {
        html.push_str("<tr>");
        for (c, cell) in row.iter().enumerate() {
            if taken[r][c] {
                continue;
            }
            let is_merged = |r: usize, c: usize, wanted: fn(bool, bool) -> bool| {
                matches!(rows.get(r).and_then(|row| row.get(c)),
                    Some(Cell::Merged { left, up }) if wanted(*left, *up))
            };
            let free = |taken: &[Vec<bool>], c: usize| !taken[r].get(c).copied().unwrap_or(true);
            let columns = (c + 1..row.len())
                .take_while(|at| is_merged(r, *at, |left, up| left && !up) && free(&taken, *at))
                .count()
                + 1;
            let height = (r + 1..rows.len())
                .take_while(|at| is_merged(*at, c, |left, up| up && !left))
                .count()
                + 1;
            for (at, row) in taken.iter_mut().enumerate().skip(r).take(height) {
                for (column, taken) in row.iter_mut().enumerate().skip(c).take(columns) {
                    *taken |= (at, column) == (r, c) || is_merged(at, column, |_, _| true);
                }
            }
            html.push_str("<td");
            for (name, span) in [("rowspan", height), ("colspan", columns)] {
                if span > 1 {
                    html.push_str(&format!(" {name}=\"{span}\""));
                }
            }
            html.push('>');
            // A merged cell without one to merge with is an empty one.
            if let Cell::Own(text) = cell {
                escape(text, &mut html);
            }
            html.push_str("</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</table>");
    html
}

fn escape(text: &str, html: &mut String) {
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            other => html.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_span_what_is_merged_into_them() {
        let html = html_of_otsl(
            "<fcel>Head<lcel><fcel>C<nl>\n<fcel>a<fcel>b<ucel><nl><fcel>big<lcel><fcel>1<nl><ucel><xcel><ecel><nl>",
        );
        assert_eq!(
            html,
            "<table><tr><td colspan=\"2\">Head</td><td rowspan=\"2\">C</td></tr>\
             <tr><td>a</td><td>b</td></tr>\
             <tr><td rowspan=\"2\" colspan=\"2\">big</td><td>1</td></tr><tr><td></td></tr></table>"
        );
    }

    #[test]
    fn text_is_escaped_and_other_tags_are_text() {
        assert_eq!(
            html_of_otsl("<fcel>a < b & <b>c</b><nl>"),
            "<table><tr><td>a &lt; b &amp; &lt;b&gt;c&lt;/b&gt;</td></tr></table>"
        );
    }

    #[test]
    fn broken_tables_lose_no_cell() {
        // Cut off in a row; merged cells with nothing to merge with; a caption before.
        assert_eq!(
            html_of_otsl("Table 1\n<lcel><fcel>x<nl><ucel><ucel><fcel>y"),
            "Table 1\n<table><tr><td rowspan=\"2\"></td><td rowspan=\"2\">x</td></tr><tr><td>y</td></tr></table>"
        );
        assert_eq!(html_of_otsl(" no table "), "no table");
        assert_eq!(html_of_otsl("<nl>"), "<nl>");
        assert_eq!(html_of_otsl(""), "");
    }
}
