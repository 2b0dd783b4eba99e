//! Markdown of a model as HTML that nobody has to trust: of its own tags only those of tables and of plain styles stay.

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, html};

/// Tags that stay as they are written.
const KEPT: [&str; 21] = [
    "table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption", "colgroup", "col", "br", "b",
    "i", "u", "s", "sub", "sup", "strong", "em", "p", "div",
];

/// Attributes that stay, with values of digits and letters.
const KEPT_ATTRIBUTES: [&str; 3] = ["colspan", "rowspan", "align"];

/// Text that means itself.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Markdown as HTML.
pub(super) fn of_markdown(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let events = Parser::new_ext(markdown, options).map(|event| match event {
        Event::Html(text) => Event::Html(CowStr::from(kept(&text))),
        Event::InlineHtml(text) => Event::InlineHtml(CowStr::from(kept(&text))),
        Event::Start(Tag::Link {
            dest_url,
            title,
            id,
            link_type,
        }) => Event::Start(Tag::Link {
            dest_url: harmless(dest_url),
            title,
            id,
            link_type,
        }),
        Event::Start(Tag::Image {
            dest_url,
            title,
            id,
            link_type,
        }) => Event::Start(Tag::Image {
            dest_url: harmless(dest_url),
            title,
            id,
            link_type,
        }),
        other => other,
    });
    let mut text = String::new();
    html::push_html(&mut text, events);
    text
}

/// An address that runs nothing.
fn harmless(url: CowStr<'_>) -> CowStr<'_> {
    let scheme: String = url
        .chars()
        .filter(|c| !c.is_whitespace() && !c.is_control())
        .take_while(|&c| c != ':' && c != '/')
        .collect();
    let is_plain =
        !url.contains(':') || ["http", "https", "mailto"].contains(&scheme.to_lowercase().as_str());
    if is_plain
        || url
            .split_once(':')
            .is_some_and(|(head, _)| head.contains('/'))
    {
        url
    } else {
        CowStr::from("#")
    }
}

/// HTML whose tags are those that are kept; all other `<` stand for themselves.
fn kept(html: &str) -> String {
    let mut safe = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        safe.push_str(&rest[..at].replace('>', "&gt;"));
        rest = &rest[at..];
        let end = rest.find('>').map(|end| end + 1);
        match end.and_then(|end| Some((kept_tag(&rest[..end])?, end))) {
            Some((tag, end)) => {
                safe.push_str(&tag);
                rest = &rest[end..];
            }
            None => {
                safe.push_str("&lt;");
                rest = &rest[1..];
            }
        }
    }
    safe.push_str(&rest.replace('>', "&gt;"));
    safe
}

/// A tag that is kept, with the attributes that are.
fn kept_tag(tag: &str) -> Option<String> {
    let inner = tag
        .strip_prefix('<')?
        .strip_suffix('>')?
        .trim_end_matches('/');
    let (slash, inner) = match inner.strip_prefix('/') {
        Some(inner) => ("/", inner),
        None => ("", inner),
    };
    let (name, attributes) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
    let name = name.to_ascii_lowercase();
    if !KEPT.contains(&name.as_str()) {
        return None;
    }
    let mut text = format!("<{slash}{name}");
    for attribute in attributes.split_whitespace() {
        if let Some((key, value)) = attribute.split_once('=') {
            let value = value.trim_matches(['"', '\'']);
            let is_plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric());
            if is_plain && KEPT_ATTRIBUTES.contains(&key.to_ascii_lowercase().as_str()) {
                text.push_str(&format!(" {}=\"{value}\"", key.to_ascii_lowercase()));
            }
        }
    }
    text.push('>');
    Some(text)
}

/// The text of HTML tables: a line a row, a tab between cells. Other text stays as it is.
pub(super) fn plain(html: &str) -> String {
    if !html.contains("</t") {
        return html.to_owned();
    }
    let mut text = String::new();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at].replace(['\n', '\t'], " "));
        rest = &rest[at..];
        let end = rest.find('>').map_or(rest.len(), |end| end + 1);
        let tag = rest[..end].to_ascii_lowercase();
        match tag.trim_matches(['<', '>']) {
            "/td" | "/th" => text.push('\t'),
            "/tr" => {
                text.truncate(text.trim_end_matches(['\t', ' ']).len());
                text.push('\n');
            }
            _ => {}
        }
        rest = &rest[end..];
    }
    text.push_str(rest);
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"");
    text.replace("&nbsp;", " ")
        .replace("&amp;", "&")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_tags_survive() {
        let table = "<table border=1><tr><td colspan=\"2\" onclick=x>a &amp; b</td></tr></table>";
        assert_eq!(
            of_markdown(table).trim(),
            "<table><tr><td colspan=\"2\">a &amp; b</td></tr></table>"
        );
        for bad in [
            "<script>alert(1)</script>",
            "a <img src=x onerror=alert(1)> b",
            "<table><tr><td><script src=//x></script></td></tr></table>",
            "<div style=\"x\"><iframe src=x></iframe></div>",
            "<",
            "<svg/onload=alert(1)>",
        ] {
            let html = of_markdown(bad).to_lowercase();
            for tag in ["<script", "<img", "<iframe", "<svg", "style="] {
                assert!(!html.contains(tag), "{bad}: {html}");
            }
        }
        assert!(of_markdown("[x](javascript:alert(1))").contains("href=\"#\""));
        assert!(
            of_markdown("[x](JaVa\tScript:alert(1))")
                .to_lowercase()
                .find("href=\"java")
                .is_none()
        );
        assert!(
            of_markdown("[x](https://example.com/a:b)")
                .contains("href=\"https://example.com/a:b\"")
        );
        assert!(of_markdown("![](<a_assets/b c.png>)").contains("src=\"a_assets/b%20c.png\""));
    }

    #[test]
    fn markdown_becomes_elements() {
        let html = of_markdown("# A\n\n| a | b |\n|---|---|\n| 1 | <2> |\n\nx < y & z");
        assert!(
            html.contains("<h1>A</h1>") && html.contains("<td>1</td>"),
            "{html}"
        );
        assert!(html.contains("x &lt; y &amp; z"), "{html}");
    }

    #[test]
    fn tables_become_lines_of_cells() {
        let table = "<table>\n<tr><th>a</th><th>b\nc</th></tr>\n<tr><td>1 &lt; 2</td><td></td></tr></table>";
        assert_eq!(plain(table), "a\tb c\n 1 < 2");
        assert_eq!(plain("| a | b |"), "| a | b |");
    }
}
