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
use aha::{EngineOptions, Model, Task};
use clap::{Args, ValueEnum};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
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

/// Pages that are worked on at once unless told otherwise.
const DEFAULT_JOBS: usize = 4;

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
        // What can be wrong with inputs and outputs is found before the time that a model takes.
        let inputs = find_inputs(&self.inputs, &self.output, "documents", is_document)?;
        let format = self.format();
        let outputs = Outputs::plan(&self.output, &self.inputs, &inputs, format.ending())?;
        let parallel = self.job.jobs.unwrap_or(DEFAULT_JOBS).min(MOST_JOBS);
        let model = self.load(context, parallel)?;
        let (task, prompt) = (self.task.as_deref(), self.prompt.as_deref());
        let reader = PageReader::new(model.engine()?, task, prompt, self.max_tokens)?;
        let asked = reader.task().clone();

        let limits = DocumentLimits::default();
        let selection = self.pages.clone().unwrap_or_default();
        let pages = Pages::find(&inputs, &selection, &limits);
        let weights = model.path().canonicalize();
        let weights = weights.unwrap_or_else(|_| model.path().to_owned());
        let (tokens, dpi, prefer_text) = (self.max_tokens, self.dpi, self.prefer_text);
        let plan = Plan {
            command: "ocr",
            options: format!(
                "{} {} {asked:?} {tokens:?} {dpi} {prefer_text}",
                weights.display(),
                context.global.dtype,
            ),
            outputs: &outputs,
            parallel,
            unit: "pages/s",
            retry_failed: self.job.retry_failed,
            restart: self.job.restart,
        };
        let work = Work {
            reader,
            read: ReadOptions { dpi, prefer_text },
            selection,
            limits,
            inputs: inputs.iter().map(|input| input.path.clone()).collect(),
            assets: outputs.names.iter().map(|name| assets_of(name)).collect(),
            open: Mutex::default(),
        };
        let writer = Writer {
            inputs: &inputs,
            outputs: &outputs,
            pages: &pages,
            format,
            model: model.name(),
            task: asked.name,
        };
        let report = run(
            context,
            &plan,
            pages.items.clone(),
            move |item: &Item, meter: &Meter| work.page(item, meter),
            |index, results| writer.came(index, results),
        )?;
        let is_cut = |page: &&OcrPage| page.truncated;
        let cut = report.results.iter().flatten().filter(is_cut).count();
        if cut > 0 {
            note(&format!(
                "cut at the limit of tokens, perhaps incomplete: {cut} of the pages"
            ));
        }
        report.finish()
    }

    fn load(&self, context: &Context, parallel: usize) -> Outcome<Model> {
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
        Ok(model)
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

/// The pages of all documents.
struct Pages {
    items: Vec<Item>,
    /// The page of each item, from 0; none for a document that could not be opened, which is told when its turn comes.
    numbers: Vec<Option<usize>>,
    /// The items of each document.
    ranges: Vec<Range<usize>>,
}

impl Pages {
    fn find(inputs: &[Input], selection: &PageSelection, limits: &DocumentLimits) -> Self {
        let mut pages = Self {
            items: Vec::new(),
            numbers: Vec::new(),
            ranges: Vec::new(),
        };
        for (index, input) in inputs.iter().enumerate() {
            let chosen = open(&input.path, limits).and_then(|document| {
                let chosen = document.select(selection);
                chosen.map_err(|error| error.to_string())
            });
            let first = pages.items.len();
            match chosen {
                Ok(chosen) => chosen
                    .into_iter()
                    .for_each(|page| pages.push(index, input, Some(page), page.to_string())),
                // Why there is none may depend on those that were asked for.
                Err(_) => pages.push(index, input, None, format!("{selection:?}")),
            }
            pages.ranges.push(first..pages.items.len());
        }
        pages
    }

    fn push(&mut self, index: usize, input: &Input, page: Option<usize>, part: String) {
        let name = input.name.display();
        self.items.push(Item {
            id: page.map_or_else(|| name.to_string(), |page| format!("{name}#{}", page + 1)),
            path: input.path.clone(),
            part,
            index,
        });
        self.numbers.push(page);
    }
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

/// What is done with a page.
struct Work {
    reader: PageReader,
    read: ReadOptions,
    selection: PageSelection,
    limits: DocumentLimits,
    inputs: Vec<PathBuf>,
    /// Folder of the pictures of each input, below the root of the outputs.
    assets: Vec<PathBuf>,
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
    pages: &'a Pages,
    format: DocumentFormat,
    model: &'a str,
    task: &'a str,
}

impl Writer<'_> {
    /// Hears that the page of item `index` came.
    fn came(&self, index: usize, results: &[Option<Result<OcrPage, String>>]) -> Outcome {
        let document = self.pages.items[index].index;
        let range = self.pages.ranges[document].clone();
        let numbers = &self.pages.numbers[range.clone()];
        let mut pages = Vec::with_capacity(range.len());
        for (result, number) in results[range].iter().zip(numbers) {
            match (result, number) {
                (Some(result), Some(page)) => {
                    pages.push((page + 1, result.as_ref().map_err(String::as_str)));
                }
                // A document that could not be opened, or one that is not complete.
                _ => return Ok(()),
            }
        }
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
