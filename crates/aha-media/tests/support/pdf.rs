//! PDF files that tests write themselves.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "it is a module of tests")]

/// A page.
#[derive(Clone)]
pub struct Page {
    /// Width and height in points.
    pub size: [f64; 2],
    /// Entries of its dictionary, such as `/Rotate 90`.
    pub entries: String,
    /// Operators that draw it.
    pub content: Vec<u8>,
}

impl Page {
    /// A page that says `lines`, one below the other.
    pub fn text(lines: &[&str]) -> Self {
        let shown: Vec<String> = lines.iter().map(|line| format!("({line}) Tj T*")).collect();
        Self::drawing(&format!(
            "BT /F1 14 Tf 18 TL 20 170 Td {} ET",
            shown.join(" ")
        ))
    }

    /// A page of these operators.
    pub fn drawing(content: &str) -> Self {
        Self {
            size: [200.0, 200.0],
            entries: String::new(),
            content: content.as_bytes().to_vec(),
        }
    }
}

/// A file under construction: numbered objects, of which 1 is the catalog, 2 the pages, 3 a font.
pub struct Pdf {
    objects: Vec<Vec<u8>>,
}

impl Pdf {
    /// A file of these pages.
    pub fn of(pages: &[Page]) -> Self {
        Self::with(pages, "")
    }

    /// The same with entries of the catalog.
    pub fn with(pages: &[Page], catalog: &str) -> Self {
        let kids: Vec<String> = (0..pages.len())
            .map(|page| format!("{} 0 R", 4 + 2 * page))
            .collect();
        let mut pdf = Self {
            objects: vec![
                format!("<< /Type /Catalog /Pages 2 0 R {catalog} >>").into_bytes(),
                format!(
                    "<< /Type /Pages /Kids [{}] /Count {} >>",
                    kids.join(" "),
                    pages.len()
                )
                .into_bytes(),
                b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_vec(),
            ],
        };
        for page in pages {
            let [width, height] = page.size;
            let number = pdf.objects.len() + 1;
            pdf.objects.push(
                format!(
                    "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents {} 0 R \
                     /Resources << /Font << /F1 3 0 R >> /XObject << /X0 {} 0 R >> >> {} >>",
                    number + 1,
                    4 + 2 * pages.len(),
                    page.entries
                )
                .into_bytes(),
            );
            pdf.stream("", &page.content);
        }
        pdf
    }

    /// Adds a stream and gives its number; the first one behind the pages is their XObject `X0`.
    pub fn stream(&mut self, entries: &str, body: &[u8]) -> usize {
        let head = format!("<< /Length {} {entries} >> stream\n", body.len());
        self.objects
            .push([head.as_bytes(), body, b"\nendstream"].concat());
        self.objects.len()
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"%PDF-1.7\n".to_vec();
        let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", self.objects.len() + 1);
        for (index, object) in self.objects.iter().enumerate() {
            table.push_str(&format!("{:010} 00000 n \n", bytes.len()));
            bytes.extend(format!("{} 0 obj\n", index + 1).as_bytes());
            bytes.extend(object);
            bytes.extend(b"\nendobj\n");
        }
        let start = bytes.len();
        bytes.extend(table.as_bytes());
        let trailer = format!(
            "trailer << /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n",
            self.objects.len() + 1
        );
        bytes.extend(trailer.as_bytes());
        bytes
    }
}
