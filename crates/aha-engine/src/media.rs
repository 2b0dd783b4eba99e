//! Pictures, clips and recordings on their way from a message to a model.
//!
//! A face decodes bytes to [`Media`]. A family's [`MediaProcessor`] turns them into what its encoder takes
//! ([`EncoderInput`]) and says what stands in the prompt. The engine runs the [`MediaEncoder`] once for each input,
//! keeps the result by content, and lays it in the place of the prompt's placeholder tokens.

use crate::error::EngineError;
use crate::transcription::AudioInput;
use aha_media::image::{DecodedImage, Image};
use aha_media::video::FrameSampling;
use aha_nn::batch::AxisPositions;
use candle_core::{Result, Tensor};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, OnceLock};

/// Identity of a content: equal contents have equal hashes within one process.
///
/// 128 bits under two random keys, so that equal hashes mean equal contents even against a client that tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(u64, u64);

impl ContentHash {
    /// Hash of anything: bytes of a file, or what a processor did to it.
    pub fn of(content: impl Hash) -> Self {
        static KEYS: OnceLock<(RandomState, RandomState)> = OnceLock::new();
        let keys = KEYS.get_or_init(|| (RandomState::new(), RandomState::new()));
        Self(keys.0.hash_one(&content), keys.1.hash_one(&content))
    }
}

/// Kinds of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A still picture.
    Image,
    /// Frames in time.
    Video,
    /// A recording.
    Audio,
}

impl MediaKind {
    /// The kind's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

impl fmt::Display for MediaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a request asks of a picture's size, over the model's own limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PixelLimits {
    /// Smaller pictures are enlarged to as many pixels.
    pub min_pixels: Option<u64>,
    /// Larger pictures are shrunk to as many pixels.
    pub max_pixels: Option<u64>,
}

/// A decoded content.
pub enum MediaContent {
    /// A still picture.
    Image {
        /// The picture as it was stored.
        image: DecodedImage,
        /// What the request asks of its size.
        limits: PixelLimits,
    },
    /// Frames in time, all of one size.
    Video {
        /// The sampled frames.
        frames: Vec<Image>,
        /// Second at which each frame stands.
        timestamps: Vec<f64>,
        /// Frames a second among the sampled ones, where they are evenly spaced.
        fps: f64,
        /// What the request asks of their size.
        limits: PixelLimits,
    },
    /// A recording of one channel.
    Audio {
        /// Samples, full scale at 1.
        samples: Vec<f32>,
        /// Samples a second.
        sample_rate: u32,
    },
}

/// A picture, clip or recording of a message; cheap to clone.
#[derive(Clone)]
pub struct Media {
    content: Arc<MediaContent>,
    settings: Arc<Map<String, Value>>,
    hash: ContentHash,
}

impl Media {
    /// A content; `source` is what it was decoded from (a file's bytes and the options of decoding): equal sources are
    /// taken for equal contents.
    pub fn new(content: MediaContent, source: impl Hash) -> Self {
        Self {
            hash: ContentHash::of(source),
            content: Arc::new(content),
            settings: Arc::default(),
        }
    }

    /// The same, to be prepared by a family's own settings (`mm_processor_kwargs`), which become part of its identity.
    #[must_use]
    pub fn with_settings(mut self, settings: Map<String, Value>) -> Self {
        if !settings.is_empty() {
            // In whatever order the client named them.
            let mut named: Vec<(&String, String)> = settings
                .iter()
                .map(|(name, value)| (name, value.to_string()))
                .collect();
            named.sort_unstable();
            self.hash = ContentHash::of((self.hash, named));
            self.settings = Arc::new(settings);
        }
        self
    }

    /// What the request sets of the family's own preparation, by the names that the family's
    /// [`MediaProcessor::settings`] lists.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// One of the settings, `None` where the request leaves it to the model.
    ///
    /// Errors when it has another type.
    pub fn setting<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> std::result::Result<Option<T>, EngineError> {
        let Some(value) = self.settings.get(name) else {
            return Ok(None);
        };
        T::deserialize(value).map(Some).map_err(|error| {
            EngineError::invalid(
                format!("mm_processor_kwargs.{name}"),
                format!("`mm_processor_kwargs.{name}` cannot be used: {error}"),
            )
        })
    }

    /// The content.
    pub fn content(&self) -> &MediaContent {
        &self.content
    }

    /// Its kind.
    pub fn kind(&self) -> MediaKind {
        match *self.content {
            MediaContent::Image { .. } => MediaKind::Image,
            MediaContent::Video { .. } => MediaKind::Video,
            MediaContent::Audio { .. } => MediaKind::Audio,
        }
    }

    /// Its identity.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Seconds of sound that it holds in memory; 0 for anything but recordings.
    pub fn seconds(&self) -> f64 {
        match &*self.content {
            MediaContent::Audio {
                samples,
                sample_rate,
            } => samples.len() as f64 / f64::from((*sample_rate).max(1)),
            MediaContent::Image { .. } | MediaContent::Video { .. } => 0.0,
        }
    }

    /// Pixels that it holds in memory; 0 for recordings.
    pub fn pixels(&self) -> u64 {
        let area = |image: &Image| u64::from(image.width()) * u64::from(image.height());
        match &*self.content {
            MediaContent::Image { image, .. } => area(image.stored()),
            MediaContent::Video { frames, .. } => frames.iter().map(area).sum(),
            MediaContent::Audio { .. } => 0,
        }
    }
}

impl PartialEq for Media {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.hash == other.hash
    }
}

impl fmt::Debug for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Media")
            .field("kind", &self.kind())
            .field("hash", &self.hash)
            .finish()
    }
}

/// What an encoder reads.
#[derive(Debug, Clone, PartialEq)]
pub enum EncoderContent {
    /// Pictures of the size that the encoder takes, one for a still.
    Frames(Vec<Image>),
    /// Numbers, for example a spectrogram, in a shape that processor and encoder agree on.
    Features {
        /// Values, row by row.
        values: Vec<f32>,
        /// Dimensions, slowest first.
        shape: Vec<usize>,
    },
}

/// One piece of media as an encoder reads it: a picture, one tile of it, some frames of a clip, a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderInput {
    /// What is read.
    pub content: EncoderContent,
    /// Patches in time, height and width, or whatever else the family's positions need.
    pub grid: [usize; 3],
    /// Seconds from one step in time to the next; 0 for stills.
    pub step_seconds: f64,
    /// Tokens of the prompt whose embeddings it gives.
    pub num_tokens: usize,
    /// Identity of content and processing.
    pub hash: ContentHash,
}

/// What a processor makes of one medium.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessedMedia {
    /// Stands in the prompt instead of the mark that the template writes: holds a placeholder token for every token
    /// of the inputs, in their order.
    pub text: String,
    /// What the encoder reads.
    pub inputs: Vec<EncoderInput>,
}

/// A family's way from media to prompt and encoder. Works without a device or a lock.
pub trait MediaProcessor: fmt::Debug + Send + Sync {
    /// What the chat template writes where a medium of that kind stands; `None` when the model does not take the
    /// kind.
    fn mark(&self, kind: MediaKind) -> Option<&str>;

    /// The tokens whose embeddings encoders give.
    fn placeholder_tokens(&self) -> &[u32];

    /// Which frames of a clip the model sees, where the request does not choose.
    fn frame_sampling(&self) -> FrameSampling {
        FrameSampling::QWEN3_VL
    }

    /// Names of `mm_processor_kwargs` that [`process`](Self::process) reads from [`Media::settings`]; requests with
    /// others are refused.
    fn settings(&self) -> &[&str] {
        &[]
    }

    /// How the model hears recordings.
    fn audio_input(&self) -> AudioInput {
        AudioInput::SPEECH
    }

    /// Prepares a medium. Errors say what is wrong with it.
    fn process(&self, media: &Media) -> std::result::Result<ProcessedMedia, EngineError>;

    /// Positions of a prompt of `len` tokens with media at `spans`, where they are not the plain count.
    fn positions(&self, len: usize, spans: &[MediaSpan]) -> Option<AxisPositions> {
        let _ = (len, spans);
        None
    }
}

/// A vision tower or audio encoder with its projector.
pub trait MediaEncoder: Send + Sync {
    /// Encodes inputs together, as one batch of variable lengths. Returns `[num_tokens, width]` for each; see
    /// [`aha_nn::batch::EncodedRows`] for the width.
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>>;
}

/// Where an encoder's output stands in a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaSpan {
    /// First of its tokens.
    pub start: usize,
    /// What it is of.
    pub kind: MediaKind,
    /// What is encoded.
    pub input: Arc<EncoderInput>,
}

impl MediaSpan {
    /// Its tokens in the prompt.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.input.num_tokens
    }
}

/// An input with the kind of the medium that it is of.
pub(crate) type KindInput = (MediaKind, EncoderInput);

/// Replaces the marks in a rendered prompt by the processors' texts; returns the text and all inputs in order. Stops at
/// the medium with which they have more tokens than a context of `context_length` holds: pictures that small files ask
/// to be enlarged would fill the memory otherwise.
pub(crate) fn expand_marks(
    text: &str,
    processor: &dyn MediaProcessor,
    media: &[Arc<Media>],
    context_length: usize,
) -> std::result::Result<(String, Vec<KindInput>), EngineError> {
    let mut tokens = 0usize;
    let mut expanded = String::with_capacity(text.len());
    let mut inputs = Vec::new();
    let mut rest = text;
    // Templates keep the order of media of one kind, but some write all pictures of a turn before its clips.
    let mut left: Vec<&Arc<Media>> = media.iter().collect();
    loop {
        let next = [MediaKind::Image, MediaKind::Video, MediaKind::Audio]
            .into_iter()
            .filter_map(|kind| {
                let mark = processor.mark(kind)?;
                Some((rest.find(mark)?, kind, mark))
            })
            .min_by_key(|(at, _, mark)| (*at, std::cmp::Reverse(mark.len())));
        let Some((at, kind, mark)) = next else {
            break;
        };
        let Some(index) = left.iter().position(|media| media.kind() == kind) else {
            return Err(EngineError::invalid(
                "messages",
                format!(
                    "a text holds {mark:?}, with which the model marks where a {kind} stands: remove it from the text"
                ),
            ));
        };
        let processed = processor.process(left.remove(index))?;
        let own = processed.inputs.iter().map(|input| input.num_tokens);
        tokens = tokens.saturating_add(own.sum());
        if tokens > context_length {
            return Err(EngineError::ContextLengthExceeded {
                context_length,
                prompt_tokens: tokens,
                completion_tokens: 1,
            });
        }
        expanded.push_str(&rest[..at]);
        expanded.push_str(&processed.text);
        inputs.extend(processed.inputs.into_iter().map(|input| (kind, input)));
        rest = &rest[at + mark.len()..];
    }
    expanded.push_str(rest);
    if let Some(media) = left.first() {
        return Err(EngineError::invalid(
            "messages",
            format!(
                "the chat template left a {} out: this model takes none in that role or place",
                media.kind()
            ),
        ));
    }
    Ok((expanded, inputs))
}

/// Finds the runs of placeholder tokens that `inputs` fill, in order.
pub(crate) fn find_spans(
    token_ids: &[u32],
    placeholders: &[u32],
    inputs: Vec<KindInput>,
) -> std::result::Result<Vec<MediaSpan>, EngineError> {
    let is_placeholder = |index: &usize| placeholders.contains(&token_ids[*index]);
    let wanted: usize = inputs.iter().map(|(_, input)| input.num_tokens).sum();
    let found = (0..token_ids.len()).filter(is_placeholder).count();
    if found != wanted {
        return Err(EngineError::invalid(
            "messages",
            format!(
                "the prompt has {found} places for media, but the media take {wanted}: remove the model's own \
                 placeholder tokens from the texts"
            ),
        ));
    }
    let mut spans = Vec::with_capacity(inputs.len());
    let mut from = 0;
    for (kind, input) in inputs {
        let start = (from..token_ids.len()).find(is_placeholder).unwrap_or(from);
        let end = start + input.num_tokens;
        if !(start..end).all(|index| index < token_ids.len() && is_placeholder(&index)) {
            return Err(EngineError::internal(
                "the placeholders of a medium do not stand side by side",
            ));
        }
        spans.push(MediaSpan {
            start,
            kind,
            input: Arc::new(input),
        });
        from = end;
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fake;

    impl MediaProcessor for Fake {
        fn mark(&self, kind: MediaKind) -> Option<&str> {
            match kind {
                MediaKind::Image => Some("<pad>"),
                MediaKind::Audio => Some("<sound><pad>"),
                MediaKind::Video => None,
            }
        }

        fn placeholder_tokens(&self) -> &[u32] {
            &[7]
        }

        fn process(&self, media: &Media) -> std::result::Result<ProcessedMedia, EngineError> {
            Ok(ProcessedMedia {
                text: format!("[{}]", media.kind()),
                inputs: vec![input(2)],
            })
        }
    }

    fn input(num_tokens: usize) -> EncoderInput {
        EncoderInput {
            content: EncoderContent::Features {
                values: Vec::new(),
                shape: vec![0],
            },
            grid: [1, 1, num_tokens],
            step_seconds: 0.0,
            num_tokens,
            hash: ContentHash::of(num_tokens),
        }
    }

    fn picture(num_tokens: usize) -> KindInput {
        (MediaKind::Image, input(num_tokens))
    }

    fn sound() -> Arc<Media> {
        let content = MediaContent::Audio {
            samples: Vec::new(),
            sample_rate: 16_000,
        };
        Arc::new(Media::new(content, 1))
    }

    #[test]
    fn marks_are_replaced_in_order_and_must_match_the_media() {
        let (text, inputs) = expand_marks("a <sound><pad> b", &Fake, &[sound()], 2).unwrap();
        assert_eq!((text.as_str(), inputs.len()), ("a [audio] b", 1));
        let stray = expand_marks("a <pad> b", &Fake, &[sound()], 9).unwrap_err();
        assert!(stray.to_string().contains("<pad>"), "{stray}");
        let dropped = expand_marks("a b", &Fake, &[sound()], 9).unwrap_err();
        assert!(dropped.to_string().contains("audio"), "{dropped}");
        // Of three media the second is one too many, and the third is not prepared.
        let text = "<sound><pad>".repeat(3);
        let long = expand_marks(&text, &Fake, &[sound(), sound(), sound()], 3).unwrap_err();
        assert_eq!(
            long,
            EngineError::ContextLengthExceeded {
                context_length: 3,
                prompt_tokens: 4,
                completion_tokens: 1
            }
        );
    }

    #[test]
    fn spans_are_runs_of_placeholders_that_fit_exactly() {
        let spans = find_spans(
            &[1, 7, 7, 7, 2, 7],
            &[7],
            vec![picture(1), picture(2), picture(1)],
        );
        let ranges: Vec<_> = spans.unwrap().iter().map(MediaSpan::range).collect();
        assert_eq!(ranges, [1..2, 2..4, 5..6]);
        assert!(find_spans(&[1, 7, 7], &[7], vec![picture(1)]).is_err());
        assert!(find_spans(&[7, 1, 7], &[7], vec![picture(2)]).is_err());
    }

    #[test]
    fn equal_sources_are_equal_media() {
        assert_eq!(sound(), sound());
        assert_ne!(ContentHash::of("a"), ContentHash::of("b"));
    }

    #[test]
    fn settings_are_part_of_the_identity_whatever_their_order() {
        let with = |settings: Value| {
            let settings = settings.as_object().cloned().unwrap_or_default();
            Media::clone(&sound()).with_settings(settings)
        };
        let set = with(serde_json::json!({"size": 640, "crop": true}));
        assert_eq!(set, with(serde_json::json!({"crop": true, "size": 640})));
        assert_ne!(set, with(serde_json::json!({"crop": false, "size": 640})));
        assert_ne!(set, *sound());
        assert_eq!(with(serde_json::json!({})), *sound());
        assert_eq!(set.setting::<u32>("size"), Ok(Some(640)));
        assert_eq!(set.setting::<u32>("base"), Ok(None));
        let error = set.setting::<u32>("crop").unwrap_err().to_string();
        assert!(error.contains("mm_processor_kwargs.crop"), "{error}");
    }
}
