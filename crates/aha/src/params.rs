//! What a caller may ask of a generation, over the defaults of the checkpoint.

use aha_engine::{
    Chat, GenerationRequest, Media, Message, NgramWindow, OutputParams, Part, Prompt,
    SamplingParams, StopParams,
};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Wishes for one generation. What is `None` is decided by the checkpoint's
/// generation_config.json, else by OpenAI's defaults.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationParams {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens whose probability reaches this.
    pub top_p: Option<f32>,
    /// Drop tokens less probable than this share of the most probable one.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that were seen; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted once from the logits of tokens in the answer.
    pub presence_penalty: Option<f32>,
    /// Subtracted for each occurrence in the answer.
    pub frequency_penalty: Option<f32>,
    /// No n-gram of so many tokens occurs twice in prompt and answer together; 0 is off.
    pub no_repeat_ngram_size: Option<usize>,
    /// The same among the latest tokens only, with exceptions (`vllm_xargs` over HTTP).
    pub ngram_window: Option<NgramWindow>,
    /// The same seed gives the same answer.
    pub seed: Option<u64>,
    /// Most tokens to generate; `None` is up to the end of the context.
    pub max_tokens: Option<usize>,
    /// Least tokens to generate.
    pub min_tokens: usize,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Go on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: Option<bool>,
    /// How the model's own preparation treats pictures, clips and recordings that say nothing themselves
    /// ([`Media::with_settings`]).
    pub mm_processor_kwargs: Map<String, Value>,
    /// A system message before the prompt; for [`crate::GenerateModel`] only.
    pub system: Option<String>,
    /// Switches the thinking of models whose template has the switch.
    pub thinking: Option<bool>,
    /// Leave `<think>…</think>` in the text instead of telling it apart.
    pub keep_reasoning: bool,
}

impl GenerationParams {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self {
            temperature: Some(0.0),
            ..Self::default()
        }
    }

    /// The conversation that a plain prompt stands for.
    pub(crate) fn chat(&self, prompt: &str) -> Chat {
        let system = self.system.iter().map(|text| Message::text("system", text));
        let messages = system.chain([Message::text("user", prompt)]).collect();
        Chat {
            messages,
            ..Chat::default()
        }
    }

    /// Hands the wishes about thinking and media to the chat template and the media, unless those have their own.
    pub(crate) fn apply_to(&self, chat: &mut Chat) {
        let parts = chat.messages.iter_mut().flat_map(|turn| &mut turn.content);
        for part in parts {
            if let Part::Media(media) = part
                && media.settings().is_empty()
            {
                let settings = self.mm_processor_kwargs.clone();
                *media = Arc::new(Media::clone(media).with_settings(settings));
            }
        }
        if let Some(thinking) = self.thinking {
            chat.template_kwargs
                .entry("enable_thinking")
                .or_insert(Value::Bool(thinking));
        }
    }

    pub(crate) fn request(&self, prompt: Prompt, defaults: &SamplingParams) -> GenerationRequest {
        let sampling = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            no_repeat_ngram_size: self
                .no_repeat_ngram_size
                .unwrap_or(defaults.no_repeat_ngram_size),
            ngram_window: self
                .ngram_window
                .clone()
                .or_else(|| defaults.ngram_window.clone()),
            logit_bias: defaults.logit_bias.clone(),
            seed: self.seed.or(defaults.seed),
        };
        let stop = StopParams {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
            stop_token_ids: Vec::new(),
            ignore_eos: self.ignore_eos,
        };
        GenerationRequest {
            prompt,
            sampling,
            stop,
            output: OutputParams {
                skip_special_tokens: self.skip_special_tokens,
                ..OutputParams::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkpoint_decides_what_the_caller_leaves_open() {
        let defaults = SamplingParams {
            temperature: 0.6,
            top_k: 20,
            ..SamplingParams::default()
        };
        let params = GenerationParams {
            top_k: Some(5),
            seed: Some(7),
            ..Default::default()
        };
        let request = params.request(Prompt::default(), &defaults);
        assert_eq!(request.sampling.temperature, 0.6);
        assert_eq!(
            (request.sampling.top_k, request.sampling.seed),
            (5, Some(7))
        );
    }

    #[test]
    fn settings_reach_media_that_have_none() {
        let settings = |size: u32| {
            let map = serde_json::json!({ "base_size": size });
            map.as_object().cloned().unwrap()
        };
        let media = Media::new(
            aha_engine::MediaContent::Audio {
                samples: Vec::new(),
                sample_rate: 16_000,
            },
            1,
        );
        let own = media.clone().with_settings(settings(512));
        let mut chat = Chat::of(Message::new("user").with_media(media).with_media(own));
        let params = GenerationParams {
            mm_processor_kwargs: settings(640),
            ..Default::default()
        };
        params.apply_to(&mut chat);
        let sizes: Vec<_> = chat.messages[0]
            .media()
            .map(|media| media.setting::<u32>("base_size").unwrap())
            .collect();
        assert_eq!(sizes, [Some(640), Some(512)]);
    }

    #[test]
    fn thinking_reaches_the_template_unless_the_chat_says_otherwise() {
        let params = GenerationParams {
            thinking: Some(false),
            ..Default::default()
        };
        let mut chat = params.chat("hi");
        params.apply_to(&mut chat);
        assert_eq!(chat.template_kwargs["enable_thinking"], Value::Bool(false));
        chat.template_kwargs["enable_thinking"] = Value::Bool(true);
        params.apply_to(&mut chat);
        assert_eq!(chat.template_kwargs["enable_thinking"], Value::Bool(true));
    }
}
