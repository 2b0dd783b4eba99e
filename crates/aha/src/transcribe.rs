//! Speech to text.

use crate::error::Result;
use crate::model::Model;
use crate::params::GenerationParams;
use aha_engine::{
    Cutting, Engine, RecordingError, RecordingEvent, RecordingRequest, RecordingStream, Segment,
    Service, Task, TranscriptionOptions,
};
use aha_media::audio::AudioSource;

/// Wishes for a transcript. What is left open is decided by the model.
#[derive(Debug, Clone, Default)]
pub struct TranscriptionParams {
    /// Language, context, hotwords.
    pub options: TranscriptionOptions,
    /// Where long recordings are cut; [`Cutting::Speech`] gives segments with times.
    pub cutting: Cutting,
    /// How tokens are chosen and when an answer ends. The limit of tokens is that of a segment.
    pub generation: GenerationParams,
    /// Segments that are decoded at once; 0 is the default, 8.
    pub parallel: usize,
}

/// A transcript with its segments.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Transcribed {
    /// The text.
    pub text: String,
    /// The language, where the caller or the model names it.
    pub language: Option<String>,
    /// The pieces in order, with times in seconds.
    pub segments: Vec<Segment>,
    /// Length of the recording in seconds.
    pub seconds: f64,
    /// Whether the text of a segment was cut at the limit of tokens.
    pub truncated: bool,
}

impl Model {
    /// The transcript of a recording of any length; blocks until it is made. A path is read as it is decoded, so hours of
    /// sound take no more memory than minutes.
    ///
    /// ```no_run
    /// use aha::{AudioSource, TranscriptionParams};
    ///
    /// # fn main() -> aha::Result<()> {
    /// let model = aha::load("Qwen/Qwen3-ASR-0.6B").build()?;
    /// let talk = std::path::Path::new("talk.mp3");
    /// let transcribed = model.transcribe(talk, &TranscriptionParams::default())?;
    /// println!("{}", transcribed.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model recognises no speech, [`crate::Error::Recording`] when the recording cannot be
    /// heard, a wish cannot be met or the engine fails.
    ///
    /// # Panics
    /// Never, but the thread stands still meanwhile: async code awaits [`RecordingStream::next`].
    pub fn transcribe(
        &self,
        source: impl Into<AudioSource>,
        params: &TranscriptionParams,
    ) -> Result<Transcribed> {
        let mut stream = self.transcribe_stream(source, params)?;
        let mut segments = Vec::new();
        while let Some(event) = stream.blocking_next() {
            match event? {
                RecordingEvent::Text { .. } => {}
                RecordingEvent::Segment(segment) => segments.push(segment),
                RecordingEvent::Finished(whole) => {
                    return Ok(Transcribed {
                        text: whole.transcript.text,
                        language: whole.transcript.language,
                        segments,
                        seconds: whole.seconds,
                        truncated: whole.truncated,
                    });
                }
            }
        }
        Err(RecordingError::from(aha_engine::EngineError::ShuttingDown).into())
    }

    /// The same event by event. Dropping the stream cancels the rest.
    ///
    /// # Errors
    /// As [`Model::transcribe`].
    pub fn transcribe_stream(
        &self,
        source: impl Into<AudioSource>,
        params: &TranscriptionParams,
    ) -> Result<RecordingStream> {
        let engine = self.transcription_engine()?;
        let own = RecordingRequest::new(engine);
        let wishes = params
            .generation
            .request(aha_engine::Prompt::default(), &own.sampling);
        let request = RecordingRequest {
            options: params.options.clone(),
            cutting: params.cutting.clone(),
            sampling: wishes.sampling,
            stop: wishes.stop,
            parallel: match params.parallel {
                0 => own.parallel,
                parallel => parallel,
            },
            ..own
        };
        Ok(RecordingStream::start(engine, source, request)?)
    }

    /// The engine of a speech recogniser.
    fn transcription_engine(&self) -> Result<&Engine> {
        match self.service() {
            Service::Text(engine) if engine.transcriber().is_some() => Ok(engine),
            _ => Err(self.is_not_for(Task::Transcribe)),
        }
    }
}
