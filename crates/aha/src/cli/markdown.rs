//! Tables, for people and for markdown.

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Columns under aligned headings, two spaces apart; without trailing spaces.
pub(crate) fn columns(headings: &[&str], rows: &[Vec<String>]) -> String {
    let widths = widths(headings, rows);
    let heading = headings
        .iter()
        .map(|heading| (*heading).to_owned())
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| pad(cell, *width, Align::Left));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A markdown table whose source is aligned, too.
pub(crate) fn table(headings: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let names: Vec<&str> = headings.iter().map(|(name, _)| *name).collect();
    let widths = widths(&names, rows);
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let padded = |row: Vec<&str>| {
        let cells = row.into_iter().zip(&widths).zip(headings);
        cells
            .map(|((cell, width), (_, align))| pad(cell, *width, *align))
            .collect()
    };
    let rule = widths
        .iter()
        .zip(headings)
        .map(|(width, (_, align))| match align {
            Align::Left => "-".repeat(*width),
            Align::Right => format!("{}:", "-".repeat(width - 1)),
        });
    let mut text = line(padded(names)) + &line(rule.collect());
    for row in rows {
        text += &line(padded(row.iter().map(String::as_str).collect()));
    }
    text
}

fn widths(headings: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let width = |column: usize, heading: &str| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        // The rule of a right-aligned column takes two characters.
        cells.chain([heading.chars().count(), 2]).max().unwrap_or(2)
    };
    headings
        .iter()
        .enumerate()
        .map(|(column, heading)| width(column, heading))
        .collect()
}

fn pad(cell: &str, width: usize, align: Align) -> String {
    match align {
        Align::Left => format!("{cell:<width$}"),
        Align::Right => format!("{cell:>width$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = vec![
            vec!["long name".to_owned(), "1".to_owned()],
            vec!["b".into(), "20.5".into()],
        ];
        assert_eq!(
            columns(&["NAME", "N"], &rows),
            "NAME       N\nlong name  1\nb          20.5\n"
        );
        assert_eq!(
            table(&[("name", Align::Left), ("n", Align::Right)], &rows),
            "| name      |    n |\n| --------- | ---: |\n| long name |    1 |\n| b         | 20.5 |\n"
        );
    }
}
