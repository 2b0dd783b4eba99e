//! What the speech models share: front ends, positions, and the way of recordings into prompts.

mod features;
mod languages;
mod positions;
mod prompt;
mod recording;

pub use features::FeatureReader;
pub use languages::{language_name, language_names};
pub use positions::sinusoids;
pub use prompt::{recogniser, transcription_prompt};
pub use recording::{FeatureExtractorConfig, fault, samples};
