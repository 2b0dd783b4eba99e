//! Reading documents: what an OCR model can be asked by name, and what its answers mean.
//!
//! A family lists its [`OcrTask`]s in an [`OcrModel`]. A face makes a conversation of a task and a page
//! ([`OcrTask::chat`]), generates as the task says, and has the answer read back ([`OcrModel::parse`]).
//! Prompts of one's own need none of this: they are chats.

mod block;
mod document;
mod html;
mod page;

pub use block::{OcrBlock, OcrKind, PageSize, markdown};
pub use document::{DocumentFormat, OcrDocument, OcrPage, PageSource};
pub use page::{PageAnswer, PageError, PageReader, ReadOptions, ReadPage, Reading};

use crate::chat::{Chat, Message};
use crate::error::EngineError;
use crate::media::{Media, PixelLimits};
use crate::request::{OutputParams, SamplingParams, StopParams};
use aha_media::MediaError;
use aha_media::image::Image;
use serde_json::{Map, Value};
use std::fmt;
use std::sync::Arc;

/// Which of page and prompt comes first in the user's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PagePlace {
    /// The page, then the prompt.
    #[default]
    BeforePrompt,
    /// The prompt, then the page.
    AfterPrompt,
}

/// One thing that a model can be asked to do with a page, as its reference asks it.
#[derive(Debug, Clone, PartialEq)]
pub struct OcrTask {
    /// What users call it: `ocr` (plain text), `markdown` (a whole page), `table`, `formula`, `chart`, `seal`,
    /// `spotting` (lines with their places), `grounding` (a page whose parts carry their places).
    pub name: &'static str,
    /// What it gives, in a line for help texts.
    pub about: &'static str,
    /// What the model is told.
    pub prompt: String,
    /// Where the page stands.
    pub page: PagePlace,
    /// A turn of the system before it, which may be empty.
    pub system: Option<String>,
    /// Sizes that the page is brought to, over the model's own.
    pub pixels: PixelLimits,
    /// Settings of the family's media processor (`mm_processor_kwargs`).
    pub media_kwargs: Map<String, Value>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When the answer ends.
    pub stop: StopParams,
    /// What the answer shows: tasks whose places are special tokens keep them.
    pub output: OutputParams,
}

impl OcrTask {
    /// A task that decodes greedily, without other rules.
    pub fn new(name: &'static str, about: &'static str, prompt: impl Into<String>) -> Self {
        Self {
            name,
            about,
            prompt: prompt.into(),
            page: PagePlace::default(),
            system: None,
            pixels: PixelLimits::default(),
            media_kwargs: Map::new(),
            sampling: SamplingParams::greedy(),
            stop: StopParams::default(),
            output: OutputParams::default(),
        }
    }

    /// The conversation that asks it of `page`, whose pixels are [`OcrModel::page_image`]'s and whose limits are
    /// [`pixels`](Self::pixels).
    pub fn chat(&self, page: impl Into<Arc<Media>>) -> Chat {
        let mut page = page.into();
        if !self.media_kwargs.is_empty() {
            page = Arc::new(Media::clone(&page).with_settings(self.media_kwargs.clone()));
        }
        let turn = Message::new("user");
        let turn = match self.page {
            PagePlace::BeforePrompt => turn.with_media(page).with_text(&self.prompt),
            PagePlace::AfterPrompt => turn.with_text(&self.prompt).with_media(page),
        };
        let system = self.system.iter();
        let mut messages: Vec<Message> = system.map(|text| Message::text("system", text)).collect();
        messages.push(turn);
        Chat {
            messages,
            ..Chat::default()
        }
    }
}

/// What a family of OCR models can be asked, and how its answers are read. Works without a device or a lock.
pub trait OcrModel: fmt::Debug + Send + Sync {
    /// The tasks, the default first. Never empty.
    fn tasks(&self) -> &[OcrTask];

    /// The task of that name.
    ///
    /// # Errors
    /// Names the tasks that there are.
    fn task(&self, name: &str) -> Result<&OcrTask, EngineError> {
        self.tasks()
            .iter()
            .find(|task| task.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self.tasks().iter().map(|task| task.name).collect();
                let message = format!(
                    "this model has no task {name:?}; it has {}",
                    names.join(", ")
                );
                EngineError::invalid("task", message)
            })
    }

    /// The page as the reference shows it to the model for a task, before the model's own resizing; most leave it as
    /// it is.
    ///
    /// # Errors
    /// When the page cannot be resized.
    fn page_image(&self, task: &OcrTask, page: Image) -> Result<Image, MediaError> {
        let _ = task;
        Ok(page)
    }

    /// The parts of a page in an answer to `task`, in reading order. `page` is the size of the page as it was given,
    /// before [`OcrModel::page_image`]; places are in its pixels. What the model wrote outside its own format is kept
    /// as text: no answer is an error. [`markdown`] joins the parts.
    fn parse(&self, task: &OcrTask, answer: &str, page: PageSize) -> Vec<OcrBlock>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fake(Vec<OcrTask>);

    impl OcrModel for Fake {
        fn tasks(&self) -> &[OcrTask] {
            &self.0
        }

        fn parse(&self, _: &OcrTask, answer: &str, _: PageSize) -> Vec<OcrBlock> {
            vec![OcrBlock::new(OcrKind::Text, answer)]
        }
    }

    #[test]
    fn tasks_are_found_by_name_and_others_refused_with_the_names() {
        let model = Fake(vec![
            OcrTask::new("ocr", "plain text", "OCR:"),
            OcrTask::new("table", "tables", "Table:"),
        ]);
        assert_eq!(model.task("table").unwrap().prompt, "Table:");
        let error = model.task("tables").unwrap_err().to_string();
        assert!(error.contains("ocr, table"), "{error}");
    }

    #[test]
    fn the_page_stands_where_the_task_says() {
        let media = Arc::new(Media::new(
            crate::MediaContent::Audio {
                samples: Vec::new(),
                sample_rate: 1,
            },
            "page",
        ));
        let mut task = OcrTask::new("ocr", "plain text", "read");
        let order = |task: &OcrTask| -> Vec<bool> {
            let chat = task.chat(media.clone());
            let turn = chat.messages.last().unwrap();
            let is_text = |part: &crate::Part| matches!(part, crate::Part::Text(_));
            turn.content.iter().map(is_text).collect()
        };
        assert_eq!(order(&task), [false, true]);
        task.page = PagePlace::AfterPrompt;
        task.system = Some(String::new());
        assert_eq!(order(&task), [true, false]);
        assert_eq!(task.chat(media.clone()).messages[0].role, "system");
    }
}
