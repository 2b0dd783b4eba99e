//! `POST /completions`.

use super::chat::render;
use crate::answer::{Generations, TextAnswer, refusal};
use crate::context::{Deadline, longest, server_timing};
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::sse::{self, Chunks, StreamLimits};
use crate::state::AppState;
use crate::types::completion::{CompletionRequest, PromptInput};
use crate::types::response::{
    Chunk, Completion, Envelope, FinishReasonName, TextChoice, TextLogprobs, Usage,
};
use aha_engine::{Engine, Event, GenerationRequest, Prompt, StopParams, Timings};
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};

/// A request whose prompts are ready. Answer `i` belongs to prompt `i / n`.
struct Prepared {
    model: String,
    engine: Engine,
    request: CompletionRequest,
    prompts: Vec<Prompt>,
}

impl Prepared {
    fn read(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let mut request = CompletionRequest::parse(body, state.options.max_choices)?;
        let model = state.models.find(request.model.as_deref())?;
        let engine = model.text_engine()?;
        // A full queue refuses before the work of templates and tokenising.
        let answers = request.prompts.len() * request.n;
        let param = counted(request.n);
        engine
            .check_room()
            .map_err(|error| refusal(error, answers, param))?;
        let processor = engine.processor();
        let prepare = |input| match input {
            PromptInput::Text(text) => processor.prepare_text(&text),
            PromptInput::Tokens(ids) => Ok(processor.prepare_tokens(ids)),
        };
        let inputs = std::mem::take(&mut request.prompts);
        let prompts = inputs.into_iter().map(prepare).collect::<Result<_, _>>()?;
        Ok(Self {
            model: model.id().to_owned(),
            engine,
            request,
            prompts,
        })
    }

    /// What stands before each answer: its prompt, or nothing.
    fn echoes(&self) -> Vec<String> {
        let echo = |prompt: &Prompt| {
            if self.request.echo {
                prompt.text.clone()
            } else {
                String::new()
            }
        };
        self.prompts
            .iter()
            .flat_map(|prompt| vec![echo(prompt); self.request.n])
            .collect()
    }

    fn submit(self) -> Result<Generations, ApiError> {
        let Self {
            engine,
            request,
            prompts,
            ..
        } = self;
        let context_length = engine.context_length();
        let requests = prompts.iter().flat_map(|prompt| {
            let room = context_length.saturating_sub(prompt.token_ids.len());
            let length = request.stop.max_tokens;
            let length = length.unwrap_or_else(|| request.default_length(room));
            let (request, engine) = (&request, &engine);
            (0..request.n).map(move |choice| GenerationRequest {
                prompt: prompt.clone(),
                sampling: request
                    .sampling
                    .resolve(&engine.defaults().sampling, choice),
                stop: StopParams {
                    max_tokens: Some(length),
                    ..request.stop.clone()
                },
                output: request.output.clone(),
            })
        });
        let answers = prompts.len() * request.n;
        Generations::submit(&engine, requests)
            .map_err(|error| refusal(error, answers, counted(request.n)))
    }
}

/// The field that makes the answers many.
fn counted(n: usize) -> &'static str {
    if n > 1 { "n" } else { "prompt" }
}

/// Continues texts.
pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(deadline): Extension<Deadline>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let prepared = state
        .prepare(move || Prepared::read(&shared, &body))
        .await?;
    let answers = Answers {
        echoes: prepared.echoes(),
        n: prepared.request.n,
        logprobs: prepared.request.output.logprobs.is_some(),
    };
    let streaming = prepared.request.streaming;
    let envelope = Envelope::new("cmpl", "text_completion", &prepared.model);
    let generations = prepared.submit()?;
    if !streaming.stream {
        let (completion, timings) = answers.gather(envelope, generations).await?;
        return Ok((server_timing(&timings), Json(completion)).into_response());
    }
    let chunks = TextChunks {
        envelope,
        texts: answers.texts(),
        answers,
        include_usage: streaming.include_usage,
        usage: Usage::default(),
    };
    let limits = StreamLimits {
        deadline,
        shutdown: state.shutdown.clone(),
        keep_alive: state.options.sse_keep_alive,
    };
    Ok(sse::respond(chunks, generations, limits))
}

/// What is known about the answers before they come.
struct Answers {
    echoes: Vec<String>,
    n: usize,
    logprobs: bool,
}

impl Answers {
    fn texts(&self) -> Vec<TextAnswer> {
        self.echoes
            .iter()
            .map(|echo| TextAnswer::after(echo))
            .collect()
    }

    /// Whether the answer is the one that counts its prompt's tokens.
    fn counts_prompt(&self, choice: usize) -> bool {
        choice.is_multiple_of(self.n)
    }

    /// Waits for all answers.
    async fn gather(
        self,
        envelope: Envelope,
        mut generations: Generations,
    ) -> Result<(Completion<TextChoice>, Timings), ApiError> {
        let mut texts = self.texts();
        let mut usage = Usage::default();
        let mut timings = Timings::default();
        let choice = |(index, echo): (usize, &String)| TextChoice {
            index,
            text: echo.clone(),
            logprobs: self.logprobs.then(TextLogprobs::default),
            finish_reason: None,
        };
        let mut choices: Vec<_> = self.echoes.iter().enumerate().map(choice).collect();
        while let Some((index, event)) = generations.next().await {
            let step = texts[index].step(event)?;
            let choice = &mut choices[index];
            choice.text.push_str(&step.text);
            if let (Some(all), Some(new)) = (&mut choice.logprobs, step.logprobs) {
                all.append(new);
            }
            if let Some((reason, finished)) = step.finished {
                usage.add(&finished.usage, self.counts_prompt(index));
                timings = longest(timings, &finished.timings);
                choice.finish_reason = Some(reason);
            }
        }
        Ok((
            Completion {
                envelope,
                choices,
                usage,
            },
            timings,
        ))
    }
}

/// Plain completions in chunks.
struct TextChunks {
    envelope: Envelope,
    answers: Answers,
    texts: Vec<TextAnswer>,
    include_usage: bool,
    usage: Usage,
}

impl TextChunks {
    fn chunk(
        &self,
        index: usize,
        text: String,
        logprobs: Option<TextLogprobs>,
        finish_reason: Option<FinishReasonName>,
    ) -> String {
        let choices = &[TextChoice {
            index,
            text,
            logprobs,
            finish_reason,
        }];
        let usage = self.include_usage.then_some(None);
        render(&Chunk {
            envelope: &self.envelope,
            choices,
            usage,
        })
    }
}

impl Chunks for TextChunks {
    fn opening(&mut self) -> Vec<String> {
        let echoes = self.answers.echoes.iter().enumerate();
        echoes
            .filter(|(_, echo)| !echo.is_empty())
            .map(|(index, echo)| self.chunk(index, echo.clone(), None, None))
            .collect()
    }

    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<String>, ApiError> {
        let step = self.texts[choice].step(event)?;
        let reason = step.finished.map(|(reason, finished)| {
            self.usage
                .add(&finished.usage, self.answers.counts_prompt(choice));
            reason
        });
        if step.text.is_empty() && step.logprobs.is_none() && reason.is_none() {
            return Ok(Vec::new());
        }
        Ok(vec![self.chunk(choice, step.text, step.logprobs, reason)])
    }

    fn closing(&mut self) -> Vec<String> {
        if !self.include_usage {
            return Vec::new();
        }
        let usage = Some(Some(self.usage));
        let last: Chunk<'_, TextChoice> = Chunk {
            envelope: &self.envelope,
            choices: &[],
            usage,
        };
        vec![render(&last)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_engine::{FinishReason, Finished, TokenEvent, TokenLogprob};
    use futures_util::stream::{self, StreamExt};
    use serde_json::{Value, json};

    fn token(text: &str, bytes: &[u8]) -> Event {
        let entry = TokenLogprob {
            token_id: 1,
            bytes: bytes.to_vec(),
            logprob: -0.5,
        };
        Event::Token(TokenEvent {
            token_id: 1,
            text: text.to_owned(),
            top_logprobs: vec![entry.clone()],
            logprob: Some(entry),
        })
    }

    fn finished(text: &str) -> Event {
        Event::Finished(Finished {
            reason: FinishReason::Length,
            text: text.to_owned(),
            stop: None,
            usage: aha_engine::Usage {
                prompt_tokens: 4,
                cached_tokens: 1,
                completion_tokens: 3,
                ..aha_engine::Usage::default()
            },
            timings: Timings::default(),
        })
    }

    /// A character over two tokens, and text that the end sets free.
    fn script() -> Vec<Event> {
        vec![
            token("", "é".as_bytes().get(..1).unwrap()),
            token("é!", b"\xa9!"),
            finished("?"),
        ]
    }

    fn generations() -> Generations {
        Generations::scripted(vec![
            stream::iter(script()).boxed(),
            stream::iter(script()).boxed(),
        ])
    }

    fn answers() -> Answers {
        Answers {
            echoes: vec!["ab".into(), "ab".into()],
            n: 2,
            logprobs: true,
        }
    }

    #[tokio::test]
    async fn whole_answers_have_openais_shape() {
        let envelope = Envelope::new("cmpl", "text_completion", "m");
        let (whole, _) = answers().gather(envelope, generations()).await.unwrap();
        let value = serde_json::to_value(whole).unwrap();
        assert!(value["id"].as_str().unwrap().starts_with("cmpl-"));
        assert_eq!(value["object"], "text_completion");
        assert_eq!(
            value["usage"],
            json!({"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10,
                   "prompt_tokens_details": {"cached_tokens": 1}})
        );
        let choice = &value["choices"][1];
        assert_eq!(choice["index"], 1);
        assert_eq!(choice["text"], "abé!?");
        assert_eq!(choice["finish_reason"], "length");
        assert_eq!(
            choice["logprobs"],
            json!({
                "tokens": ["\u{fffd}", "\u{fffd}!"],
                "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [{"\u{fffd}": -0.5}, {"\u{fffd}!": -0.5}],
                "text_offset": [2, 2],
                "content": [
                    {"token": "\u{fffd}", "logprob": -0.5, "bytes": [195], "top_logprobs": [
                        {"token": "\u{fffd}", "logprob": -0.5, "bytes": [195]}]},
                    {"token": "\u{fffd}!", "logprob": -0.5, "bytes": [169, 33], "top_logprobs": [
                        {"token": "\u{fffd}!", "logprob": -0.5, "bytes": [169, 33]}]}]
            })
        );
    }

    #[tokio::test]
    async fn chunks_say_the_same() {
        let mut chunks = TextChunks {
            envelope: Envelope::new("cmpl", "text_completion", "m"),
            texts: answers().texts(),
            answers: answers(),
            include_usage: true,
            usage: Usage::default(),
        };
        let mut told = chunks.opening();
        let mut generations = generations();
        while let Some((choice, event)) = generations.next().await {
            told.extend(chunks.event(choice, event).unwrap());
        }
        told.extend(chunks.closing());
        let told: Vec<Value> = told
            .iter()
            .map(|chunk| serde_json::from_str(chunk).unwrap())
            .collect();
        let (last, before) = told.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["total_tokens"], 10);
        let mut texts = [String::new(), String::new()];
        let mut tokens = 0;
        for chunk in before {
            assert!(chunk["usage"].is_null() && chunk.as_object().unwrap().contains_key("usage"));
            let choice = &chunk["choices"][0];
            let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
            texts[index].push_str(choice["text"].as_str().unwrap());
            tokens += choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
        }
        assert_eq!(texts, ["abé!?", "abé!?"]);
        assert_eq!(tokens, 4);
    }
}
