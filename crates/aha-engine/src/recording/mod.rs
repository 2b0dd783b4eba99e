//! Whole recordings to transcripts: cut into pieces, which are decoded together.
//!
//! ```text
//! file ─▶ decode, resample, cut (a thread) ─▶ prompts ─▶ engine: some at once ─▶ texts in order ─▶ Transcription
//! ```
//!
//! Memory does not grow with the recording: the thread is at most a piece ahead, and only so many pieces are in flight
//! as the request allows. What grows is the text.

mod cutting;

pub use cutting::Cutting;

use crate::engine::{Engine, Generation};
use crate::error::EngineError;
use crate::event::{Event, FinishReason, Finished, TokenEvent, Usage};
use crate::media::{Media, MediaContent};
use crate::request::{GenerationRequest, OutputParams, Prompt, SamplingParams, StopParams};
use crate::transcription::{
    AudioInput, Transcriber, Transcript, TranscriptionOptions, needs_space,
};
use aha_media::audio::{AudioError, AudioSource, DecodeOptions};
use cutting::{Cutter, Piece};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces of one recording that are decoded at once unless told otherwise.
pub const DEFAULT_PARALLEL: usize = 8;
/// Pieces that are prepared while all that may be are in flight.
const AHEAD: usize = 1;
/// How often a recording under way looks for a place in a full queue.
const QUEUE_POLL: Duration = Duration::from_millis(50);

/// Why a recording has no transcript.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be heard.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The model refuses it, or fails.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What is asked of a recording.
#[derive(Debug, Clone)]
pub struct RecordingRequest {
    /// Language, context, words.
    pub options: TranscriptionOptions,
    /// Where it is cut.
    pub cutting: Cutting,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When the answer to a piece ends; without `max_tokens` as the model has it.
    pub stop: StopParams,
    /// Log-probabilities, as those of the tokens of [`Segment`]s.
    pub logprobs: Option<usize>,
    /// Pieces that are decoded at once, at least 1.
    pub parallel: usize,
    /// Limits of the sound.
    pub decode: DecodeOptions,
}

impl RecordingRequest {
    /// The model's own ways.
    pub fn new(engine: &Engine) -> Self {
        Self {
            options: TranscriptionOptions::default(),
            cutting: Cutting::default(),
            sampling: engine.defaults().sampling.clone(),
            stop: StopParams::default(),
            logprobs: None,
            parallel: DEFAULT_PARALLEL,
            decode: DecodeOptions::default(),
        }
    }
}

/// A piece of a recording and what was said in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
    /// What was said; empty for silence.
    pub transcript: Transcript,
    /// The tokens of the answer, with their log-probabilities where they were asked for.
    pub tokens: Vec<TokenEvent>,
    /// Whether the answer was cut at the limit of tokens.
    pub truncated: bool,
}

impl Segment {
    /// Mean log-probability of the tokens; none without tokens or log-probabilities.
    pub fn average_logprob(&self) -> Option<f32> {
        let known = self
            .tokens
            .iter()
            .filter_map(|token| token.logprob.as_ref());
        let (count, sum) = known.fold((0u32, 0.0), |(count, sum), token| {
            (count + 1, sum + f64::from(token.logprob))
        });
        (count > 0).then(|| (sum / f64::from(count)) as f32)
    }
}

/// A whole transcript.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcription {
    /// The text and the language.
    pub transcript: Transcript,
    /// Length of the recording in seconds.
    pub seconds: f64,
    /// Tokens of all pieces.
    pub usage: Usage,
    /// Whether the text of a piece was cut at the limit of tokens.
    pub truncated: bool,
}

/// What comes while a recording is transcribed.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordingEvent {
    /// More of the text. Together they are the text of the whole, but for what the model's own rules mend at the end of a
    /// piece (repetitions).
    Text {
        /// The text.
        delta: String,
        /// The tokens that brought it.
        tokens: Vec<TokenEvent>,
    },
    /// A piece is done; pieces come in order.
    Segment(Segment),
    /// The end; nothing follows.
    Finished(Transcription),
}

/// A recording that is being transcribed. Dropping it cancels everything.
pub struct RecordingStream {
    engine: Engine,
    request: RecordingRequest,
    transcriber: Arc<dyn Transcriber>,
    /// Until the recording is at its end.
    pieces: Option<mpsc::Receiver<Result<Ready, RecordingError>>>,
    /// A piece that found no place in the engine's queue.
    held: Option<Ready>,
    /// In the order of the recording.
    running: VecDeque<Running>,
    events: VecDeque<RecordingEvent>,
    texts: Vec<Transcript>,
    /// The last character that was told.
    tail: String,
    /// Whether text of the first piece under way was told.
    in_piece: bool,
    usage: Usage,
    truncated: bool,
    heard: Arc<AtomicU64>,
    sample_rate: u32,
    ended: bool,
}

impl std::fmt::Debug for RecordingStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingStream")
            .field("running", &self.running.len())
            .field("done", &self.texts.len())
            .finish_non_exhaustive()
    }
}

/// A piece on its way to the engine.
struct Ready {
    start: f64,
    end: f64,
    /// None for silence, which no model is asked about.
    prompt: Option<Prompt>,
}

/// A piece that the engine has.
struct Running {
    start: f64,
    end: f64,
    /// None for silence.
    generation: Option<Generation>,
    raw: String,
    /// Bytes of its text that were told, without what stands before the first word.
    told: usize,
    tokens: Vec<TokenEvent>,
    told_tokens: usize,
    finished: Option<Finished>,
}

impl RecordingStream {
    /// Begins to decode a recording. What is wrong with it, or with the request, comes with the first event.
    ///
    /// # Errors
    /// When the model recognises no speech, its queue is full, or no thread can start.
    pub fn start(
        engine: &Engine,
        source: impl Into<AudioSource>,
        request: RecordingRequest,
    ) -> Result<Self, EngineError> {
        let transcriber = engine
            .shared_transcriber()
            .ok_or_else(|| EngineError::invalid("model", "this model recognises no speech"))?;
        engine.check_room()?;
        let media = engine.processor().media();
        let input = media.map_or(AudioInput::SPEECH, |media| media.audio_input());
        let (sender, receiver) = mpsc::channel(AHEAD);
        let heard = Arc::new(AtomicU64::new(0));
        let feeder = Feeder {
            engine: engine.clone(),
            transcriber: transcriber.clone(),
            options: request.options.clone(),
            cutting: request.cutting.clone(),
            decode: request.decode.clone(),
            input,
            heard: heard.clone(),
            sender,
        };
        let source = source.into();
        std::thread::Builder::new()
            .name("aha-recording".to_owned())
            .spawn(move || feeder.run(source))
            .map_err(EngineError::internal)?;
        Ok(Self {
            engine: engine.clone(),
            request,
            transcriber,
            pieces: Some(receiver),
            held: None,
            running: VecDeque::new(),
            events: VecDeque::new(),
            texts: Vec::new(),
            tail: String::new(),
            in_piece: false,
            usage: Usage::default(),
            truncated: false,
            heard,
            sample_rate: input.sample_rate,
            ended: false,
        })
    }

    /// Seconds that were decoded so far: ahead of the text by the pieces in flight.
    pub fn heard_seconds(&self) -> f64 {
        self.heard.load(Ordering::Relaxed) as f64 / f64::from(self.sample_rate)
    }

    /// The next event; `None` after the end or an error.
    ///
    /// May be used in `select!`: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<RecordingEvent, RecordingError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same for threads outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Result<RecordingEvent, RecordingError>> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut next = pin!(self.next());
        loop {
            match next.as_mut().poll(&mut context) {
                Poll::Ready(event) => return event,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    /// As [`next`](Self::next), for streams of streams.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<RecordingEvent, RecordingError>>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.advance(context) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => {
                    self.ended = true;
                    // Cancels what runs and ends the thread.
                    self.running.clear();
                    self.pieces = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Takes what is there; false when there is nothing before the waker is called.
    fn advance(&mut self, context: &mut Context<'_>) -> Result<bool, RecordingError> {
        let mut moved = self.take_piece(context)?;
        for running in &mut self.running {
            while running.finished.is_none()
                && let Some(generation) = &mut running.generation
                && let Poll::Ready(Some(event)) = generation.poll_next(context)
            {
                moved = true;
                running.observe(event)?;
            }
        }
        self.tell();
        if self.running.is_empty() && self.pieces.is_none() && self.held.is_none() && !self.ended {
            self.ended = true;
            self.events
                .push_back(RecordingEvent::Finished(Transcription {
                    transcript: Transcript::join(&self.texts),
                    seconds: self.heard_seconds(),
                    usage: self.usage,
                    truncated: self.truncated,
                }));
        }
        Ok(moved || !self.events.is_empty())
    }

    /// Hands the next piece to the engine, where there is room for it.
    fn take_piece(&mut self, context: &mut Context<'_>) -> Result<bool, RecordingError> {
        if self.running.len() >= self.request.parallel.max(1) {
            return Ok(false);
        }
        let ready = match (self.held.take(), &mut self.pieces) {
            (Some(held), _) => held,
            (None, None) => return Ok(false),
            (None, Some(pieces)) => match pieces.poll_recv(context) {
                Poll::Pending => return Ok(false),
                Poll::Ready(None) => {
                    self.pieces = None;
                    return Ok(true);
                }
                Poll::Ready(Some(ready)) => ready?,
            },
        };
        let generation = match &ready.prompt {
            None => None,
            Some(prompt) => match self.submit(prompt.clone()) {
                Ok(generation) => Some(generation),
                // Others were faster: the next of this recording that ends makes room.
                Err(EngineError::Overloaded { .. }) if !self.running.is_empty() => {
                    self.held = Some(ready);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            },
        };
        self.running.push_back(Running {
            start: ready.start,
            end: ready.end,
            generation,
            raw: String::new(),
            told: 0,
            tokens: Vec::new(),
            told_tokens: 0,
            finished: None,
        });
        Ok(true)
    }

    fn submit(&self, prompt: Prompt) -> Result<Generation, EngineError> {
        let room = self
            .engine
            .context_length()
            .saturating_sub(prompt.token_ids.len());
        let own = self.transcriber.default_max_tokens().min(room.max(1));
        let mut stop = self.request.stop.clone();
        stop.max_tokens = stop.max_tokens.or(Some(own));
        self.engine.submit(GenerationRequest {
            prompt,
            sampling: self.request.sampling.clone(),
            stop,
            output: OutputParams {
                logprobs: self.request.logprobs,
                skip_special_tokens: Some(true),
                ..OutputParams::default()
            },
        })
    }

    /// Tells what is new of the first piece under way, and goes on to the next where that one is done.
    fn tell(&mut self) {
        while let Some(front) = self.running.front_mut() {
            // Space at the end may be trimmed when the piece ends.
            let known = self
                .transcriber
                .text_so_far(&front.raw, &self.request.options)
                .trim();
            if front.generation.is_some() && front.finished.is_none() {
                let delta = known.get(front.told..).unwrap_or_default().to_owned();
                if delta.is_empty() {
                    return;
                }
                front.told = known.len();
                let tokens = front.untold_tokens();
                self.push_text(delta, tokens);
                return;
            }
            let told = known.get(..front.told).unwrap_or_default();
            let transcript = match front.generation {
                None => Transcript::default(),
                Some(_) => self
                    .transcriber
                    .transcript(&front.raw, &self.request.options),
            };
            let rest = transcript
                .text
                .strip_prefix(told)
                .unwrap_or_default()
                .to_owned();
            let tokens = front.untold_tokens();
            if !rest.is_empty() || !tokens.is_empty() {
                self.push_text(rest, tokens);
            }
            self.in_piece = false;
            if let Some(front) = self.running.pop_front() {
                self.finish(front, transcript);
            }
        }
    }

    fn finish(&mut self, piece: Running, transcript: Transcript) {
        let mut truncated = false;
        if let Some(finished) = &piece.finished {
            truncated = finished.reason == FinishReason::Length;
            self.usage.add(&finished.usage);
        }
        self.truncated |= truncated;
        self.texts.push(transcript.clone());
        self.events.push_back(RecordingEvent::Segment(Segment {
            start: piece.start,
            end: piece.end,
            transcript,
            tokens: piece.tokens,
            truncated,
        }));
    }

    /// Text behind what was told before, with a space where the script has one between pieces.
    fn push_text(&mut self, mut delta: String, tokens: Vec<TokenEvent>) {
        if let Some(last) = delta.chars().next_back() {
            if !self.in_piece && needs_space(&self.tail, &delta) {
                delta.insert(0, ' ');
            }
            self.in_piece = true;
            self.tail = last.to_string();
        }
        self.events
            .push_back(RecordingEvent::Text { delta, tokens });
    }
}

impl Running {
    /// The tokens that came since they were told last.
    fn untold_tokens(&mut self) -> Vec<TokenEvent> {
        let tokens = self.tokens.get(self.told_tokens..).unwrap_or_default();
        self.told_tokens = self.tokens.len();
        tokens.to_vec()
    }

    fn observe(&mut self, event: Event) -> Result<(), EngineError> {
        match event {
            Event::Token(token) => {
                self.raw.push_str(&token.text);
                self.tokens.push(token);
            }
            Event::Finished(finished) => {
                self.raw.push_str(&finished.text);
                self.finished = Some(finished);
            }
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }
}

/// The thread that turns a recording into prompts.
struct Feeder {
    engine: Engine,
    transcriber: Arc<dyn Transcriber>,
    options: TranscriptionOptions,
    cutting: Cutting,
    decode: DecodeOptions,
    input: AudioInput,
    heard: Arc<AtomicU64>,
    sender: mpsc::Sender<Result<Ready, RecordingError>>,
}

impl Feeder {
    /// Ends when the recording does, or when nobody listens any more.
    fn run(self, source: AudioSource) {
        if let Err(error) = self.feed(source) {
            // Nobody listens any more: there is nobody to tell.
            let _ = self.sender.blocking_send(Err(error));
        }
    }

    fn feed(&self, source: AudioSource) -> Result<(), RecordingError> {
        let longest = self.transcriber.piece_seconds();
        let mut cutter = Cutter::open(source, &self.input, longest, &self.cutting, &self.decode)?;
        let mut is_first = true;
        while let Some(piece) = cutter.next()? {
            self.heard.store(cutter.heard(), Ordering::Relaxed);
            let ready = self.prepare(piece)?;
            // A recording that was taken is not given up for others that came later.
            while !is_first
                && matches!(
                    self.engine.check_room(),
                    Err(EngineError::Overloaded { .. })
                )
            {
                if self.sender.is_closed() {
                    return Ok(());
                }
                std::thread::sleep(QUEUE_POLL);
            }
            is_first = false;
            if self.sender.blocking_send(Ok(ready)).is_err() {
                return Ok(());
            }
        }
        self.heard.store(cutter.heard(), Ordering::Relaxed);
        Ok(())
    }

    fn prepare(&self, piece: Piece) -> Result<Ready, EngineError> {
        let seconds = |samples: u64| samples as f64 / f64::from(self.input.sample_rate);
        let (start, end) = (seconds(piece.start), seconds(piece.end));
        if piece.is_silent() {
            return Ok(Ready {
                start,
                end,
                prompt: None,
            });
        }
        let identity: Vec<u32> = piece
            .samples
            .iter()
            .map(|sample| sample.to_bits())
            .collect();
        let content = MediaContent::Audio {
            samples: piece.samples,
            sample_rate: self.input.sample_rate,
        };
        let media = Arc::new(Media::new(content, identity));
        let prompt = self
            .transcriber
            .prepare(self.engine.processor(), media, &self.options)?;
        Ok(Ready {
            start,
            end,
            prompt: Some(prompt),
        })
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
