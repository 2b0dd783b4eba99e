//! Reading pages: a question that stays the same, asked of one page after the other.

use super::{OcrBlock, OcrKind, OcrModel, OcrPage, OcrTask, PageSize, PageSource};
use crate::engine::{Engine, Generation};
use crate::error::EngineError;
use crate::event::{Event, FinishReason, Timings, Usage};
use crate::media::{ContentHash, Media, MediaContent, MediaKind};
use crate::request::{GenerationRequest, SamplingParams};
use aha_media::MediaError;
use aha_media::document::{Document, TextLayer};
use aha_media::image::{DecodedImage, Image};
use std::sync::Arc;

/// What a model is asked about pages. Cheap to clone; pages may be asked about on several threads, and are batched.
#[derive(Debug, Clone)]
pub struct PageReader {
    engine: Engine,
    task: Arc<OcrTask>,
    /// Reads the answers of the family's own tasks; the answer to a prompt is a text.
    model: Option<Arc<dyn OcrModel>>,
    max_tokens: Option<usize>,
}

/// Why a page could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The image does not fit the model.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The request was refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl PageReader {
    /// Asks by a task's name, or by a prompt of one's own; by neither, the model's first task. The answer to a page ends
    /// after `max_tokens`, by default at the end of the context.
    ///
    /// # Errors
    /// For a model that takes no images, a task that it does not have, task and prompt together, and neither where the
    /// model has no tasks.
    pub fn new(
        engine: &Engine,
        task: Option<&str>,
        prompt: Option<&str>,
        max_tokens: Option<usize>,
    ) -> Result<Self, EngineError> {
        let processor = engine.processor();
        processor.check_takes(MediaKind::Image, "model")?;
        let (task, model) = match (task, prompt, processor.ocr()) {
            (Some(_), Some(_), _) => {
                let message = "a task has its own prompt: give a task or a prompt, not both";
                return Err(EngineError::invalid("prompt", message));
            }
            (None, Some(prompt), _) => {
                let mut task = OcrTask::new("prompt", "", prompt);
                // The checkpoint's own rules against repetition, but always the most probable token.
                task.sampling = SamplingParams {
                    temperature: 0.0,
                    ..engine.defaults().sampling.clone()
                };
                (task, None)
            }
            (name, None, Some(model)) => {
                let task = match name {
                    Some(name) => model.task(name)?,
                    None => first(model.as_ref())?,
                };
                (task.clone(), Some(model.clone()))
            }
            (name, None, None) => {
                let param = if name.is_some() { "task" } else { "prompt" };
                let message =
                    "this model has no OCR tasks: say in a prompt what it shall do with a page";
                return Err(EngineError::invalid(param, message));
            }
        };
        Ok(Self {
            engine: engine.clone(),
            task: Arc::new(task),
            model,
            max_tokens,
        })
    }

    /// What is asked: all that an answer depends on besides the page.
    pub fn task(&self) -> &OcrTask {
        &self.task
    }

    /// The engine that answers.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Brings a page before the model and begins the answer. Takes processor time; does not wait for the engine.
    ///
    /// # Errors
    /// When the image does not fit the model, prompt and page do not fit the context, or too many requests wait.
    pub fn submit(&self, page: Image) -> Result<PageAnswer, PageError> {
        let size = PageSize {
            width: page.width(),
            height: page.height(),
        };
        let image = match &self.model {
            Some(model) => model.page_image(&self.task, page)?,
            None => page,
        };
        let source = ContentHash::of((image.width(), image.channels(), image.samples()));
        let content = MediaContent::Image {
            image: DecodedImage::of(image),
            limits: self.task.pixels,
        };
        let media = Media::new(content, (source, self.task.pixels));
        let media = media.with_settings(self.task.media_kwargs.clone());
        let processor = self.engine.processor();
        let chat = self.task.chat(media);
        let prompt = processor.prepare(&chat)?;
        let mut stop = self.task.stop.clone();
        stop.max_tokens = self.max_tokens.or(stop.max_tokens);
        let generation = self.engine.submit(GenerationRequest {
            prompt,
            sampling: self.task.sampling.clone(),
            stop,
            output: self.task.output.clone(),
        })?;
        Ok(PageAnswer {
            generation,
            reader: self.clone(),
            size,
            text: String::new(),
        })
    }

    /// Begins to read a page (from 0) of a document: takes its text layer if that is wished for and there is a usable one,
    /// else renders the page and submits it.
    ///
    /// # Errors
    /// As [`Document::render`] and [`submit`](Self::submit).
    pub fn begin(
        &self,
        document: &Document,
        index: usize,
        options: ReadOptions,
    ) -> Result<Reading, PageError> {
        if options.prefer_text
            && let Some(layer) = document.text(index, options.dpi)?
            && layer.is_usable()
        {
            let [width, height] = document.size(index, options.dpi)?;
            let size = PageSize { width, height };
            return Ok(Reading::Done(of_layer(index, size, layer)));
        }
        let answer = self.submit(document.render(index, options.dpi)?)?;
        Ok(Reading::Answer(index, answer))
    }

    /// Reads a page of a document and waits for it; for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), and what the engine failed with.
    pub fn read(
        &self,
        document: &Document,
        index: usize,
        options: ReadOptions,
    ) -> Result<OcrPage, PageError> {
        match self.begin(document, index, options)? {
            Reading::Done(page) => Ok(page),
            Reading::Answer(index, answer) => Ok(answer.blocking_finish()?.into_page(index)),
        }
    }

    fn blocks(&self, text: &str, size: PageSize) -> Vec<OcrBlock> {
        match &self.model {
            Some(model) => model.parse(&self.task, text, size),
            None if text.trim().is_empty() => Vec::new(),
            None => vec![OcrBlock::new(OcrKind::Text, text.trim())],
        }
    }
}

/// How pages of documents are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadOptions {
    /// Resolution at which pages of a PDF are rendered.
    pub dpi: f32,
    /// Take a PDF's own text where a page has one.
    pub prefer_text: bool,
}

/// A page that is being read.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub enum Reading {
    /// It is read: its text was in the document.
    Done(OcrPage),
    /// The number of the page, from 0, and the model's answer to it.
    Answer(usize, PageAnswer),
}

impl Reading {
    /// Waits for the page.
    ///
    /// # Errors
    /// What the engine failed with.
    pub async fn finish(self) -> Result<(OcrPage, Usage), EngineError> {
        match self {
            Self::Done(page) => Ok((page, Usage::default())),
            Self::Answer(index, answer) => {
                let read = answer.finish().await?;
                let usage = read.usage;
                Ok((read.into_page(index), usage))
            }
        }
    }
}

/// A page whose text the document holds.
fn of_layer(index: usize, size: PageSize, layer: TextLayer) -> OcrPage {
    let blocks = layer.blocks.into_iter().map(|block| {
        let [left, top, right, bottom] = block.bbox;
        let corner = |x: f32, y: f32| {
            [
                x.clamp(0.0, size.width as f32),
                y.clamp(0.0, size.height as f32),
            ]
        };
        OcrBlock::new(OcrKind::Text, block.text).at(vec![corner(left, top), corner(right, bottom)])
    });
    OcrPage {
        page: index + 1,
        width: size.width,
        height: size.height,
        source: PageSource::TextLayer,
        truncated: false,
        blocks: blocks.collect(),
    }
}

fn first(model: &dyn OcrModel) -> Result<&OcrTask, EngineError> {
    let missing = || EngineError::internal("the model lists no OCR task");
    model.tasks().first().ok_or_else(missing)
}

/// The answer to a page while it is made. Dropping it cancels the request.
#[derive(Debug)]
#[must_use = "dropping the answer cancels the request"]
pub struct PageAnswer {
    generation: Generation,
    reader: PageReader,
    size: PageSize,
    text: String,
}

/// A page that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadPage {
    /// Its parts in reading order.
    pub blocks: Vec<OcrBlock>,
    /// Width and height of the image that the places are on.
    pub size: PageSize,
    /// Whether the answer came to its end, or was cut at the limit of tokens.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
}

impl ReadPage {
    /// The same as the page `index` (from 0) of a document.
    pub fn into_page(self, index: usize) -> OcrPage {
        OcrPage {
            page: index + 1,
            width: self.size.width,
            height: self.size.height,
            source: PageSource::Model,
            truncated: self.reason == FinishReason::Length,
            blocks: self.blocks,
        }
    }
}

impl PageAnswer {
    /// Waits for the end.
    ///
    /// # Errors
    /// What the engine failed with.
    pub async fn finish(mut self) -> Result<ReadPage, EngineError> {
        loop {
            let event = self.generation.next().await;
            if let Some(page) = self.take(event)? {
                return Ok(page);
            }
        }
    }

    /// The same for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn blocking_finish(mut self) -> Result<ReadPage, EngineError> {
        loop {
            let event = self.generation.blocking_next();
            if let Some(page) = self.take(event)? {
                return Ok(page);
            }
        }
    }

    fn take(&mut self, event: Option<Event>) -> Result<Option<ReadPage>, EngineError> {
        match event {
            Some(Event::Token(token)) => {
                self.text.push_str(&token.text);
                Ok(None)
            }
            Some(Event::Finished(end)) => {
                self.text.push_str(&end.text);
                Ok(Some(ReadPage {
                    blocks: self.reader.blocks(&self.text, self.size),
                    size: self.size,
                    reason: end.reason,
                    usage: end.usage,
                    timings: end.timings,
                }))
            }
            Some(Event::Failed(error)) => Err(error),
            None => Err(EngineError::internal("the answer broke off")),
        }
    }
}
