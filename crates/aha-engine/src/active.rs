//! One request while it is served: its choices, its text, its receiver.

use crate::detokenizer::Detokenizer;
use crate::error::EngineError;
use crate::event::{
    Event, FinishReason, Finished, MediaTokens, Timings, TokenEvent, TokenLogprob, Usage,
};
use crate::model::GenerationDefaults;
use crate::request::{GenerationRequest, Prompt};
use crate::sampler::{NoChoice, Sampler, Scored, log_probabilities};
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// What a request's next token is, before it is turned into text.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) token: u32,
    /// The token's own log-probability and the best tokens with theirs, when asked for.
    scores: Option<(f32, Vec<Scored>)>,
}

/// Whether a request goes on after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Continues,
    Ended,
}

/// The sending half of a generation's events.
#[derive(Debug)]
pub(crate) struct EventSender {
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) overrun: Arc<AtomicBool>,
}

impl EventSender {
    /// Never waits: a reader that lets the buffer fill up is given up.
    fn send(&self, event: Event) -> Progress {
        match self.events.try_send(event) {
            Ok(()) => Progress::Continues,
            Err(TrySendError::Full(_)) => {
                self.overrun.store(true, Ordering::Release);
                Progress::Ended
            }
            Err(TrySendError::Closed(_)) => Progress::Ended,
        }
    }
}

/// The state of one request outside the scheduler.
#[derive(Debug)]
pub(crate) struct Active {
    request: GenerationRequest,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokenizer: Arc<Tokenizer>,
    sender: EventSender,
    /// Tokens that end the answer, sorted.
    end_tokens: Vec<u32>,
    max_tokens: usize,
    generated: usize,
    cached_tokens: usize,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
}

impl Active {
    /// `defaults` are the model's; `room` is how many tokens fit in the context after the prompt.
    pub(crate) fn new(
        request: GenerationRequest,
        tokenizer: Arc<Tokenizer>,
        defaults: &GenerationDefaults,
        room: usize,
        fallback_seed: u64,
        sender: EventSender,
    ) -> Self {
        let mut end_tokens = request.stop.stop_token_ids.clone();
        let mut stops = request.stop.stop.clone();
        if !request.stop.ignore_eos {
            end_tokens.extend_from_slice(&defaults.eos_token_ids);
            stops.extend_from_slice(&defaults.stop);
        }
        let skip_special_tokens = request
            .output
            .skip_special_tokens
            .unwrap_or(defaults.skip_special_tokens);
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Self {
            sampler: Sampler::new(
                request.sampling.clone(),
                &request.prompt.token_ids,
                fallback_seed,
            ),
            detokenizer: Detokenizer::new(tokenizer.clone(), skip_special_tokens)
                .keeping(request.output.kept_tokens.clone()),
            stops: StopMatcher::new(&stops),
            tokenizer,
            sender,
            end_tokens,
            max_tokens: request.stop.max_tokens.map_or(room, |most| most.min(room)),
            request,
            generated: 0,
            cached_tokens: 0,
            submitted: Instant::now(),
            admitted: None,
            first_token: None,
        }
    }

    pub(crate) fn prompt(&self) -> &Prompt {
        &self.request.prompt
    }

    /// The receiver is gone: nobody waits for the answer.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.sender.events.is_closed()
    }

    pub(crate) fn is_admitted(&self) -> bool {
        self.admitted.is_some()
    }

    pub(crate) fn admit(&mut self, cached_tokens: usize) {
        self.admitted = Some(Instant::now());
        self.cached_tokens = cached_tokens;
    }

    /// Chooses the next token from its row of logits.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Result<Choice, NoChoice> {
        let suppressed: &[u32] = if self.generated < self.request.stop.min_tokens {
            &self.end_tokens
        } else {
            &[]
        };
        let token = self.sampler.sample(logits, suppressed)?;
        let scores = self
            .request
            .output
            .logprobs
            .map(|top| log_probabilities(logits, token, top));
        Ok(Choice { token, scores })
    }

    /// Reports a chosen token and says whether the request wants another.
    pub(crate) fn deliver(&mut self, choice: Choice) -> Progress {
        self.first_token.get_or_insert_with(Instant::now);
        self.generated += 1;
        if self.end_tokens.binary_search(&choice.token).is_ok() {
            return self.finish(FinishReason::Stop, None);
        }
        let piece = self.detokenizer.push(choice.token);
        let (text, matched) = self.stops.push(&piece);
        let (logprob, top_logprobs) = match choice.scores {
            None => (None, Vec::new()),
            Some((own, top)) => (
                Some(self.named((choice.token, own))),
                top.into_iter().map(|scored| self.named(scored)).collect(),
            ),
        };
        let event = TokenEvent {
            token_id: choice.token,
            text,
            logprob,
            top_logprobs,
        };
        if self.sender.send(Event::Token(event)) == Progress::Ended {
            return Progress::Ended;
        }
        if matched.is_some() {
            self.finish(FinishReason::Stop, matched)
        } else if self.generated == self.max_tokens {
            self.finish(FinishReason::Length, None)
        } else {
            Progress::Continues
        }
    }

    fn named(&self, (token_id, logprob): Scored) -> TokenLogprob {
        let bytes = self
            .tokenizer
            .token_bytes(token_id)
            .unwrap_or_default()
            .to_vec();
        TokenLogprob {
            token_id,
            bytes,
            logprob,
        }
    }

    fn finish(&mut self, mut reason: FinishReason, mut stop: Option<String>) -> Progress {
        let mut text = String::new();
        if stop.is_none() {
            // What was held back is final now; it may still complete a stop string.
            let rest = self.detokenizer.flush();
            (text, stop) = self.stops.push(&rest);
            if stop.is_some() {
                reason = FinishReason::Stop;
            } else {
                text.push_str(&self.stops.flush());
            }
        }
        let now = Instant::now();
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        self.sender.send(Event::Finished(Finished {
            reason,
            text,
            stop,
            usage: Usage {
                prompt_tokens: self.prompt().token_ids.len(),
                cached_tokens: self.cached_tokens,
                media: MediaTokens::of(&self.prompt().media),
                completion_tokens: self.generated,
            },
            timings: Timings {
                queued: admitted - self.submitted,
                prefill: first_token - admitted,
                decode: now - first_token,
            },
        }));
        Progress::Ended
    }

    /// Ends the request with an error.
    pub(crate) fn fail(&self, error: EngineError) {
        self.sender.send(Event::Failed(error));
    }

    /// Time since the request came in.
    pub(crate) fn age(&self) -> std::time::Duration {
        self.submitted.elapsed()
    }
}
