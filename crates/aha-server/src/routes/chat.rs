//! `POST /chat/completions`.

use crate::answer::{ChatAnswer, GatheredMessage, Generations, refusal};
use crate::context::{Deadline, longest, server_timing};
use crate::error::ApiError;
use crate::limits::JsonBody;
use crate::media::Gathering;
use crate::sse::{self, Chunks, StreamLimits};
use crate::state::AppState;
use crate::types::chat::{ChatRequest, Reasoning};
use crate::types::response::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, Chunk, Completion,
    CompletionTokensDetails, Envelope, FinishReasonName, Usage,
};
use aha_engine::{
    Chat, Engine, Event, GenerationRequest, OutputParams, Prompt, TextProcessor, Timings,
};
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};

/// A request whose model is found and has room for it, and whose media are still to be read.
struct Draft {
    model: String,
    engine: Engine,
    request: ChatRequest,
    media: Gathering,
}

impl Draft {
    fn read(state: &AppState, body: &[u8]) -> Result<Self, ApiError> {
        let mut request = ChatRequest::parse(body, state.options.max_choices)?;
        let model = state.models.find(request.model.as_deref())?;
        let engine = model.text_engine()?;
        // A full queue refuses before the work of media, templates and tokenising.
        engine
            .check_room()
            .map_err(|error| refusal(error, request.n, "n"))?;
        let parts = std::mem::take(&mut request.media);
        let media = Gathering::open(parts, engine.processor(), &state.options.media)?;
        Ok(Self {
            model: model.id().to_owned(),
            engine,
            request,
            media,
        })
    }

    fn finish(mut self, state: &AppState) -> Result<Prepared, ApiError> {
        let processor = self.engine.processor();
        let chat = &mut self.request.chat;
        self.media
            .insert(chat, processor, &state.options.media, &state.reader)?;
        let prompt = prepare(processor, chat)?;
        Ok(Prepared {
            model: self.model,
            engine: self.engine,
            request: self.request,
            prompt,
        })
    }
}

/// How far a request is after its body was read.
enum Read {
    Prepared(Box<Prepared>),
    Draft(Box<Draft>),
}

/// A request whose prompt is ready.
struct Prepared {
    model: String,
    engine: Engine,
    request: ChatRequest,
    prompt: Prompt,
}

impl Prepared {
    fn answers(&self) -> Vec<ChatAnswer> {
        let in_place = self.request.reasoning == Reasoning::InPlace;
        let answer = |_| {
            let processor = self.engine.processor();
            let parser = processor.output_parser(&self.request.chat, &self.prompt, in_place);
            ChatAnswer::new(parser, self.request.reasoning)
        };
        (0..self.request.n).map(answer).collect()
    }

    fn submit(self) -> Result<Generations, ApiError> {
        let Self {
            engine,
            request,
            prompt,
            ..
        } = self;
        let output = OutputParams {
            kept_tokens: engine.processor().parsed_tokens(&request.chat),
            ..request.output.clone()
        };
        let requests = (0..request.n).map(|choice| GenerationRequest {
            prompt: prompt.clone(),
            sampling: request
                .sampling
                .resolve(&engine.defaults().sampling, choice),
            stop: request.stop.clone(),
            output: output.clone(),
        });
        Generations::submit(&engine, requests).map_err(|error| refusal(error, request.n, "n"))
    }
}

/// Renders and tokenises a conversation, unless the template would leave its tools out.
pub(crate) fn prepare(processor: &TextProcessor, chat: &Chat) -> Result<Prompt, ApiError> {
    let prompt = processor.prepare(chat)?;
    if let Some(template) = processor.template()
        && !chat.tools.is_empty()
        && !template.text().contains("tools")
    {
        // Checkpoints may have a second template for chats with tools: the prompt tells.
        let without_tools = Chat {
            tools: Vec::new(),
            ..chat.clone()
        };
        let special_tokens = processor.tokenizer().special_tokens();
        if template.render(&without_tools, special_tokens)? == prompt.text {
            return Err(ApiError::unsupported(
                "tools",
                "this model's chat template ignores 'tools': describe them in a message, or choose a model that knows tools",
            ));
        }
    }
    Ok(prompt)
}

/// Answers a conversation.
pub(crate) async fn create(
    State(state): State<AppState>,
    Extension(deadline): Extension<Deadline>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let read = move || {
        let draft = Draft::read(&shared, &body)?;
        // At once where nothing has to be fetched: files that wait for their turn would fill the memory.
        if draft.media.is_here() {
            let prepared = draft.finish(&shared)?;
            return Ok(Read::Prepared(Box::new(prepared)));
        }
        Ok(Read::Draft(Box::new(draft)))
    };
    let prepared = match state.prepare(read).await? {
        Read::Prepared(prepared) => *prepared,
        Read::Draft(mut draft) => {
            draft.media = draft.media.fetch(&state).await?;
            let shared = state.clone();
            state.prepare(move || draft.finish(&shared)).await?
        }
    };
    let answers = prepared.answers();
    let logprobs = prepared.request.output.logprobs.is_some();
    let streaming = prepared.request.streaming;
    let model = prepared.model.clone();
    let generations = prepared.submit()?;
    if streaming.stream {
        let chunks = ChatChunks {
            envelope: Envelope::new("chatcmpl", "chat.completion.chunk", &model),
            answers,
            include_usage: streaming.include_usage,
            usage: Usage::default(),
        };
        let limits = StreamLimits {
            deadline,
            shutdown: state.shutdown.clone(),
            keep_alive: state.options.sse_keep_alive,
        };
        return Ok(sse::respond(chunks, generations, limits));
    }
    let envelope = Envelope::new("chatcmpl", "chat.completion", &model);
    let (completion, timings) = gather(envelope, answers, generations, logprobs).await?;
    Ok((server_timing(&timings), Json(completion)).into_response())
}

/// Waits for all answers.
async fn gather(
    envelope: Envelope,
    mut answers: Vec<ChatAnswer>,
    mut generations: Generations,
    logprobs: bool,
) -> Result<(Completion<ChatChoice>, Timings), ApiError> {
    let mut messages: Vec<_> = answers.iter().map(|_| GatheredMessage::default()).collect();
    let mut reasons = vec![None; answers.len()];
    let mut usage = Usage::default();
    let mut timings = Timings::default();
    while let Some((choice, event)) = generations.next().await {
        let step = answers[choice].step(event)?;
        messages[choice].add(step.deltas, step.logprobs);
        if let Some((reason, finished)) = step.finished {
            usage.add(&finished.usage, choice == 0);
            timings = longest(timings, &finished.timings);
            reasons[choice] = Some(reason);
        }
    }
    usage.completion_tokens_details = Some(reasoning_tokens(&answers));
    let choices = messages
        .into_iter()
        .zip(reasons)
        .enumerate()
        .map(|(index, (message, reason))| {
            let finish_reason =
                reason.ok_or_else(|| ApiError::internal("an answer ended without a reason"))?;
            let (message, logprobs) = message.finish(logprobs);
            Ok(ChatChoice {
                index,
                message,
                logprobs,
                finish_reason,
            })
        })
        .collect::<Result<_, ApiError>>()?;
    Ok((
        Completion {
            envelope,
            choices,
            usage,
        },
        timings,
    ))
}

fn reasoning_tokens(answers: &[ChatAnswer]) -> CompletionTokensDetails {
    CompletionTokensDetails {
        reasoning_tokens: answers.iter().map(ChatAnswer::reasoning_tokens).sum(),
    }
}

/// A chat's answer in chunks.
struct ChatChunks {
    envelope: Envelope,
    answers: Vec<ChatAnswer>,
    include_usage: bool,
    usage: Usage,
}

impl ChatChunks {
    fn chunk(&self, choices: &[ChatChunkChoice]) -> String {
        let usage = self.include_usage.then_some(None);
        render(&Chunk {
            envelope: &self.envelope,
            choices,
            usage,
        })
    }

    fn delta(
        &self,
        index: usize,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReasonName>,
    ) -> String {
        self.chunk(&[ChatChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        }])
    }
}

impl Chunks for ChatChunks {
    fn opening(&mut self) -> Vec<String> {
        let role = |index| {
            let delta = ChatDelta {
                role: Some("assistant"),
                content: Some(String::new()),
                ..ChatDelta::default()
            };
            self.delta(index, delta, None, None)
        };
        (0..self.answers.len()).map(role).collect()
    }

    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<String>, ApiError> {
        let mut step = self.answers[choice].step(event)?;
        let mut logprobs = (!step.logprobs.is_empty()).then_some(ChatLogprobs {
            content: step.logprobs,
            refusal: None,
        });
        // A token whose text is held back still has its log-probabilities.
        if step.deltas.is_empty() && logprobs.is_some() {
            step.deltas.push(ChatDelta {
                content: Some(String::new()),
                ..ChatDelta::default()
            });
        }
        let mut chunks: Vec<_> = step
            .deltas
            .into_iter()
            .map(|delta| self.delta(choice, delta, logprobs.take(), None))
            .collect();
        if let Some((reason, finished)) = step.finished {
            self.usage.add(&finished.usage, choice == 0);
            chunks.push(self.delta(choice, ChatDelta::default(), None, Some(reason)));
        }
        Ok(chunks)
    }

    fn closing(&mut self) -> Vec<String> {
        if !self.include_usage {
            return Vec::new();
        }
        self.usage.completion_tokens_details = Some(reasoning_tokens(&self.answers));
        let usage = Some(Some(self.usage));
        let last: Chunk<'_, ChatChunkChoice> = Chunk {
            envelope: &self.envelope,
            choices: &[],
            usage,
        };
        vec![render(&last)]
    }
}

/// A chunk as JSON text. Our own types always have one.
pub(super) fn render<Choice: serde::Serialize>(chunk: &Chunk<'_, Choice>) -> String {
    serde_json::to_string(chunk).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aha_engine::parser::{OutputParser, ParserOptions, ToolSyntax};
    use aha_engine::{FinishReason, Finished, TokenEvent, TokenLogprob};
    use futures_util::stream::{self, StreamExt};
    use serde_json::{Value, json};

    const SCRIPT: &str = "<think>Well.</think>\n\nHi!<tool_call>\n\
                          {\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";

    fn answers(reasoning: Reasoning) -> Vec<ChatAnswer> {
        let options = ParserOptions {
            reasoning: reasoning != Reasoning::InPlace,
            starts_in_reasoning: false,
            tools: Some(ToolSyntax::Tags),
        };
        vec![ChatAnswer::new(OutputParser::new(options, &[]), reasoning)]
    }

    /// One token a character, and the last one set free by the end.
    fn generations() -> Generations {
        generations_of(SCRIPT)
    }

    fn generations_of(script: &str) -> Generations {
        let mut characters: Vec<_> = script.chars().map(String::from).collect();
        let last = characters.pop().unwrap();
        let usage = aha_engine::Usage {
            prompt_tokens: 3,
            completion_tokens: 9,
            ..aha_engine::Usage::default()
        };
        let finished = Finished {
            reason: FinishReason::Stop,
            text: last,
            stop: None,
            usage,
            timings: Timings::default(),
        };
        let token = |text: String| {
            let logprob = TokenLogprob {
                token_id: 1,
                bytes: text.clone().into_bytes(),
                logprob: -0.5,
            };
            Event::Token(TokenEvent {
                token_id: 1,
                text,
                logprob: Some(logprob),
                top_logprobs: Vec::new(),
            })
        };
        let events = characters
            .into_iter()
            .map(token)
            .chain([Event::Finished(finished)]);
        Generations::scripted(vec![stream::iter(events.collect::<Vec<_>>()).boxed()])
    }

    async fn whole(reasoning: Reasoning) -> Value {
        let envelope = Envelope::new("chatcmpl", "chat.completion", "m");
        let answers = answers(reasoning);
        let (completion, _) = gather(envelope, answers, generations(), false)
            .await
            .unwrap();
        serde_json::to_value(completion).unwrap()
    }

    #[tokio::test]
    async fn messages_have_openais_shape() {
        let value = whole(Reasoning::Separate).await;
        let choice = &value["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert!(choice["logprobs"].is_null());
        let message = &choice["message"];
        let id = message["tool_calls"][0]["id"].clone();
        assert!(id.as_str().is_some_and(|id| !id.is_empty()));
        let arguments = message["tool_calls"][0]["function"]["arguments"]
            .as_str()
            .unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(arguments).unwrap(),
            json!({"a": 1})
        );
        assert_eq!(
            *message,
            json!({"role": "assistant", "content": message["content"], "refusal": null,
                   "reasoning_content": "Well.",
                   "tool_calls": [{"id": id, "type": "function",
                                   "function": {"name": "add", "arguments": arguments}}]})
        );
        assert_eq!(message["content"].as_str().unwrap().trim(), "Hi!");
        assert!(value["usage"]["completion_tokens_details"]["reasoning_tokens"].is_u64());
    }

    #[tokio::test]
    async fn reasoning_is_hidden_or_left_in_place_on_request() {
        let hidden = whole(Reasoning::Hidden).await["choices"][0]["message"].clone();
        assert!(hidden.get("reasoning_content").is_none());
        assert_eq!(hidden["content"].as_str().unwrap().trim(), "Hi!");
        let in_place = whole(Reasoning::InPlace).await["choices"][0]["message"].clone();
        assert!(in_place.get("reasoning_content").is_none());
        assert!(
            in_place["content"]
                .as_str()
                .unwrap()
                .starts_with("<think>Well.</think>")
        );
    }

    /// The tokens that a whole answer to `script` lists, and those of its chunks.
    async fn listed(script: &str, reasoning: Reasoning) -> [String; 2] {
        let envelope = || Envelope::new("chatcmpl", "chat.completion", "m");
        let (whole, _) = gather(envelope(), answers(reasoning), generations_of(script), true)
            .await
            .unwrap();
        let mut chunks = ChatChunks {
            envelope: envelope(),
            answers: answers(reasoning),
            include_usage: false,
            usage: Usage::default(),
        };
        let mut streamed = String::new();
        let tokens = |value: &Value| {
            let entries = value["choices"][0]["logprobs"]["content"].as_array();
            let token = |entry: &Value| entry["token"].as_str().unwrap().to_owned();
            entries.into_iter().flatten().map(token).collect::<String>()
        };
        let mut generations = generations_of(script);
        while let Some((choice, event)) = generations.next().await {
            for chunk in chunks.event(choice, event).unwrap() {
                streamed.push_str(&tokens(&serde_json::from_str(&chunk).unwrap()));
            }
        }
        [tokens(&serde_json::to_value(whole).unwrap()), streamed]
    }

    #[tokio::test]
    async fn hidden_reasoning_is_not_listed_token_by_token() {
        // The last character comes with the end and has no token of its own.
        let (_, answer) = SCRIPT.split_once("</think>").unwrap();
        for (script, hidden) in [
            (SCRIPT, answer.strip_suffix('>').unwrap()),
            ("<think>\n\n</think>\n\nHi!", "\n\nHi"),
            ("<think>secret, cut", ""),
            ("<think>a</thin", ""),
            ("<think", "<thin"),
            ("plain </think> text", "plain </think> tex"),
            ("\n<b>", "\n<b"),
        ] {
            let [whole, streamed] = listed(script, Reasoning::Hidden).await;
            assert_eq!(whole, hidden, "{script}");
            assert_eq!(streamed, hidden, "{script}");
            let [whole, streamed] = listed(script, Reasoning::Separate).await;
            let all = &script[..script.len() - 1];
            assert_eq!((whole.as_str(), streamed.as_str()), (all, all));
        }
    }

    #[tokio::test]
    async fn chunks_say_the_same() {
        let mut chunks = ChatChunks {
            envelope: Envelope::new("chatcmpl", "chat.completion.chunk", "m"),
            answers: answers(Reasoning::Separate),
            include_usage: false,
            usage: Usage::default(),
        };
        let mut told = chunks.opening();
        let mut generations = generations();
        while let Some((choice, event)) = generations.next().await {
            told.extend(chunks.event(choice, event).unwrap());
        }
        assert!(chunks.closing().is_empty(), "usage was not asked for");
        let told: Vec<Value> = told
            .iter()
            .map(|chunk| serde_json::from_str(chunk).unwrap())
            .collect();
        assert!(told.iter().all(|chunk| chunk.get("usage").is_none()));
        let joined = |name: &str| {
            let delta = |chunk: &Value| {
                chunk["choices"][0]["delta"][name]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            told.iter().map(delta).collect::<String>()
        };
        let message = whole(Reasoning::Separate).await["choices"][0]["message"].clone();
        assert_eq!(joined("content"), message["content"].as_str().unwrap());
        assert_eq!(joined("reasoning_content"), "Well.");
        let calls: Vec<_> = told
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls"))
            .collect();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0][0]["index"], 0);
        assert_eq!(calls[0][0]["type"], "function");
        assert_eq!(
            calls[0][0]["function"],
            message["tool_calls"][0]["function"]
        );
        let last = &told.last().unwrap()["choices"][0];
        assert_eq!(
            (&last["finish_reason"], &last["delta"]),
            (&json!("tool_calls"), &json!({}))
        );
    }
}
