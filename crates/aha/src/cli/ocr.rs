//! `aha ocr`: documents in, Markdown out.

use super::Context;
use super::args::{EngineArgs, ModelArgs, ModelPlace};
use super::console::note;
use super::failure::{Failure, Outcome};
use super::jobs::{
    Input, Item, JobArgs, Meter, Outputs, Plan, Product, find_inputs, has_ending, run,
    write_atomically,
};
use super::units::{between, positive};
use aha::ocr::{
    Document, DocumentFormat, DocumentLimits, OcrDocument, OcrPage, PageReader, PageSelection,
    ReadOptions,
};
use aha::{EngineOptions, Task};
use clap::{Args, ValueEnum};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const AFTER_HELP: &str = "\
Inputs are PDFs, images and TIFFs of several pages, and folders of them. One input becomes the file
OUT; several, or a folder, become files of their names in the folder OUT. Pictures that the model
finds on a page are cut out into a folder NAME_assets beside the file.

What is done is kept in OUT.journal, page by page: a job that was stopped goes on when it is started
again. Pages that failed are told at the end, and tried again with --retry-failed. The exit status
is 0 only if all pages came.

Examples:
  aha ocr scan.pdf -m PaddlePaddle/PaddleOCR-VL -o scan.md
  aha ocr book.pdf --pages 3-9,12 -m zai-org/GLM-OCR -o book.html --format html
  aha ocr inbox/ photo.jpg -m deepseek-ai/DeepSeek-OCR --jobs 8 -o texts/
  aha ocr invoice.png -m qwen2.5-vl-3b --prompt \"Write down the table as Markdown.\" -o invoice.md";

/// Pages in one batch of the engine at most.
const MOST_JOBS: usize = 64;

/// Documents that stay open: pages come in their order, so few are in use at once.
const OPEN_DOCUMENTS: usize = 4;

/// What a document becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Md,
    Html,
    Json,
    Txt,
}

impl From<Format> for DocumentFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Md => Self::Markdown,
            Format::Html => Self::Html,
            Format::Json => Self::Json,
            Format::Txt => Self::Text,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Ocr {
    /// PDFs, images, and folders of them
    #[arg(value_name = "INPUT", required = true)]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelPlace,
    /// Where the text goes: a file for one input, else a folder
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Pages of each document, such as 3-9,12,20- [default: all]
    #[arg(long, value_name = "PAGES")]
    pages: Option<PageSelection>,
    /// What to do, by the model's own names: ocr, markdown, table, formula, chart, spotting, … [default: its first]
    #[arg(long, value_name = "TASK", conflicts_with = "prompt")]
    task: Option<String>,
    /// What to do, in words of your own
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What a document becomes: md, html, json or txt [default: what the name of OUT says, else md]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Format>,
    /// Resolution at which pages of a PDF are rendered
    #[arg(long, value_name = "N", value_parser = between(18.0, 1200.0), default_value_t = aha::ocr::DEFAULT_DPI)]
    dpi: f32,
    /// Take a PDF's own text where a page has one, instead of reading its image
    #[arg(long)]
    prefer_text: bool,
    /// Most tokens of a page's text [default: up to the end of the context]
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Ocr {
    pub(crate) fn execute(self, context: &Context) -> Outcome {
        let limits = DocumentLimits::default();
        let inputs = find_inputs(&self.inputs, &self.output, "documents", is_document)?;
        let format = self.format();
        let outputs = Outputs::plan(&self.output, &self.inputs, &inputs, format.ending())?;
        let parallel = self.job.jobs.unwrap_or(DEFAULT_JOBS).min(MOST_JOBS);

        let model = ModelArgs {
            place: self.model.clone(),
            task: Some(Task::Chat),
        };
        let (loader, bar) = context.loader(&model)?;
        let options = EngineOptions {
            max_sequences: parallel,
            ..self.engine.options()
        };
        let model = loader.engine_options(options).build()?;
        bar.finish();
        let (task, prompt) = (self.task.as_deref(), self.prompt.as_deref());
        let reader = PageReader::new(model.engine()?, task, prompt, self.max_tokens)?;
        let asked = reader.task().clone();

        let selection = self.pages.clone().unwrap_or_default();
        let (mut items, mut documents) = (Vec::new(), Vec::new());
        for (place, input) in inputs.iter().enumerate() {
            let numbers = page_numbers(&input.path, &selection, &limits);
            documents.push(Pages::of(items.len(), &numbers));
            items.extend(items_of(place, input, &numbers, &selection));
        }
        let weights = model
            .path()
            .canonicalize()
            .unwrap_or(model.path().to_owned());
        let plan = Plan {
            command: "ocr",
            options: format!(
                "{} {} {asked:?} {:?} {} {}",
                weights.display(),
                context.global.dtype,
                self.max_tokens,
                self.dpi,
                self.prefer_text
            ),
            outputs: &outputs,
            parallel,
            unit: "pages/s",
            retry_failed: self.job.retry_failed,
            restart: self.job.restart,
        };
        let work = Work {
            reader,
            read: ReadOptions {
                dpi: self.dpi,
                prefer_text: self.prefer_text,
            },
            selection,
            limits,
            inputs: inputs.iter().map(|input| input.path.clone()).collect(),
            assets: outputs.names.iter().map(|name| assets_of(name)).collect(),
            pages: items.iter().map(|item| item.page).collect(),
            open: Mutex::default(),
        };
        let whole = Writer {
            inputs: &inputs,
            outputs: &outputs,
            format,
            model: model.name(),
            task: asked.name,
            numbers: work.pages.clone(),
        };
        let mut owners = vec![0; items.len()];
        for (document, pages) in documents.iter().enumerate() {
            owners[pages.first..pages.first + pages.count].fill(document);
        }
        let items = items.into_iter().map(|item| item.item).collect();
        let report = run(
            context,
            &plan,
            items,
            move |item: &Item, meter: &Meter| work.page(item, meter),
            |index, results| {
                let document = owners[index];
                let Pages { first, count } = documents[document];
                let results = &results[first..first + count];
                if results.iter().any(Option::is_none) {
                    return Ok(());
                }
                whole.write(document, first, results.iter().flatten())
            },
        )?;
        let is_cut = |page: &&OcrPage| page.truncated;
        let cut = report.results.iter().flatten().filter(is_cut).count();
        if cut > 0 {
            note(&format!(
                "{cut} pages were cut at the limit of tokens: they may be incomplete"
            ));
        }
        report.finish()
    }

    fn format(&self) -> DocumentFormat {
        let named = self.output.extension().and_then(|ending| {
            Format::from_str(&ending.to_string_lossy(), true)
                .ok()
                .filter(|_| !self.output.is_dir())
        });
        self.format.or(named).unwrap_or(Format::Md).into()
    }
}

const DEFAULT_JOBS: usize = 4;

/// Whether a file of a folder is a document, by its name or else by how it begins.
fn is_document(path: &Path) -> bool {
    if has_ending(path, aha::ocr::ENDINGS) {
        return true;
    }
    let mut head = [0; 1024];
    let read = |mut file: File| file.read(&mut head).ok();
    // A name with another ending says what it is.
    path.extension().is_none()
        && File::open(path)
            .ok()
            .and_then(read)
            .is_some_and(|length| aha::ocr::is_document(&head[..length]))
}

fn assets_of(name: &Path) -> PathBuf {
    let mut folder = name.file_stem().unwrap_or_default().to_owned();
    folder.push("_assets");
    name.with_file_name(folder)
}

/// Where the pages of a document are among the items.
#[derive(Debug, Clone, Copy)]
struct Pages {
    first: usize,
    count: usize,
}

impl Pages {
    fn of(first: usize, numbers: &[usize]) -> Self {
        Self {
            first,
            count: numbers.len().max(1),
        }
    }
}

/// The selected pages of a document, from 0; none where it cannot be opened, which is told when its turn comes.
fn page_numbers(path: &Path, selection: &PageSelection, limits: &DocumentLimits) -> Vec<usize> {
    open(path, limits)
        .and_then(|document| {
            document
                .select(selection)
                .map_err(|error| error.to_string())
        })
        .unwrap_or_default()
}

fn open(path: &Path, limits: &DocumentLimits) -> Result<Document, String> {
    let failed = |error: std::io::Error| format!("cannot be read: {error}");
    let length = path.metadata().map_err(failed)?.len();
    if length > limits.max_bytes {
        let limit = limits.max_bytes;
        return Err(format!(
            "it has {length} bytes, more than the limit of {limit}"
        ));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    Document::open(bytes, limits).map_err(|error| error.to_string())
}

/// An item, and the page that it is, from 0.
struct PageItem {
    item: Item,
    page: Option<usize>,
}

fn items_of(
    place: usize,
    input: &Input,
    numbers: &[usize],
    selection: &PageSelection,
) -> Vec<PageItem> {
    let item = |page: Option<usize>| {
        let name = input.name.display();
        let item = Item {
            id: match page {
                Some(page) => format!("{name}#{}", page + 1),
                None => name.to_string(),
            },
            path: input.path.clone(),
            // Why there is no page depends on those that were asked for.
            part: page.map_or_else(|| format!("{selection:?}"), |page| page.to_string()),
            index: place,
        };
        PageItem { item, page }
    };
    if numbers.is_empty() {
        return vec![item(None)];
    }
    numbers.iter().map(|&page| item(Some(page))).collect()
}

/// What is done with a page.
struct Work {
    reader: PageReader,
    read: ReadOptions,
    selection: PageSelection,
    limits: DocumentLimits,
    inputs: Vec<PathBuf>,
    /// Folder of the pictures of each input, below the root of the outputs.
    assets: Vec<PathBuf>,
    pages: Vec<Option<usize>>,
    open: Mutex<VecDeque<(usize, Document)>>,
}

impl Work {
    fn page(&self, item: &Item, meter: &Meter) -> Result<Product<OcrPage>, String> {
        let document = self.document(item.index)?;
        let Ok(page) = item.part.parse() else {
            // The document opened, so it was its pages that could not be found.
            let found = document.select(&self.selection);
            return Err(found.map_or_else(|error| error.to_string(), |_| "try again".to_owned()));
        };
        let read = self.reader.read(&document, page, self.read);
        let read = read.map_err(|error| error.to_string())?;
        let folder = &self.assets[item.index];
        let cut = read.cut_figures(&document, self.read.dpi);
        let files = cut.map_err(|error| error.to_string())?;
        meter.advance(1.0);
        Ok(Product {
            value: read,
            files: files
                .into_iter()
                .map(|(name, bytes)| (folder.join(name), bytes))
                .collect(),
        })
    }

    fn document(&self, place: usize) -> Result<Document, String> {
        let find = |open: &VecDeque<(usize, Document)>| {
            let found = open.iter().find(|(of, _)| *of == place);
            found.map(|(_, document)| document.clone())
        };
        let opened = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = find(&opened()) {
            return Ok(document);
        }
        let document = open(&self.inputs[place], &self.limits)?;
        let mut opened = opened();
        if let Some(document) = find(&opened) {
            return Ok(document);
        }
        opened.truncate(OPEN_DOCUMENTS - 1);
        opened.push_front((place, document.clone()));
        Ok(document)
    }
}

/// Writes documents whose pages are all there.
struct Writer<'a> {
    inputs: &'a [Input],
    outputs: &'a Outputs,
    format: DocumentFormat,
    model: &'a str,
    task: &'a str,
    /// The page of each item.
    numbers: Vec<Option<usize>>,
}

impl Writer<'_> {
    fn write<'r>(
        &self,
        document: usize,
        first: usize,
        results: impl Iterator<Item = &'r Result<OcrPage, String>>,
    ) -> Outcome {
        let numbers = self.numbers[first..].iter();
        let pages: Vec<_> = results
            .zip(numbers)
            .filter_map(|(result, page)| {
                let result = result.as_ref().map_err(String::as_str);
                Some(((*page)? + 1, result))
            })
            .collect();
        // Of a document that could not be opened, and of one without a page, there is nothing to write.
        if pages.iter().all(|(_, result)| result.is_err()) {
            return Ok(());
        }
        let name = &self.outputs.names[document];
        let assets = assets_of(name);
        let assets = assets.file_name().unwrap_or_default().to_string_lossy();
        let whole = OcrDocument {
            name: &self.inputs[document].name.to_string_lossy(),
            model: self.model,
            task: self.task,
            assets: Some(&assets),
            pages,
        };
        let path = self.outputs.root.join(name);
        write_atomically(&path, whole.format(self.format).as_bytes())
            .map_err(|error| Failure::output(&path.display().to_string(), &error))
    }
}
