//! Rotary position embeddings (arXiv 2104.09864) and their scalings for long contexts.

use crate::batch::Batch;
use crate::ragged::SequenceBounds;
use candle_core::{DType, Device, Result, Tensor};
use serde::Deserialize;

/// `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5) of a config.json.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct RopeScaling {
    /// Kind of scaling.
    pub rope_type: Option<RopeType>,
    /// The same under its older name; some configs have both.
    #[serde(rename = "type")]
    pub legacy_type: Option<RopeType>,
    /// Base of the frequencies, where the config keeps it here.
    pub rope_theta: Option<f64>,
    /// How much longer than the trained context the new one is.
    pub factor: Option<f64>,
    /// Context length that the model was trained with.
    pub original_max_position_embeddings: Option<usize>,
    /// llama3: wavelengths longer than `original / low_freq_factor` are interpolated.
    pub low_freq_factor: Option<f64>,
    /// llama3: wavelengths shorter than `original / high_freq_factor` are kept.
    pub high_freq_factor: Option<f64>,
    /// yarn: rotations above which a dimension is kept (default 32).
    pub beta_fast: Option<f64>,
    /// yarn: rotations below which a dimension is interpolated (default 1).
    pub beta_slow: Option<f64>,
    /// yarn, longrope: factor on cos and sin; by default yarn's is `0.1 ln(factor) + 1`, longrope's
    /// `sqrt(1 + ln(max_position_embeddings / original) / ln(original))`.
    pub attention_factor: Option<f64>,
    /// yarn: weights of the logarithm in numerator and denominator of the factor on cos and sin.
    pub mscale: Option<f64>,
    /// See `mscale`.
    pub mscale_all_dim: Option<f64>,
    /// yarn: round the correction range to whole dimensions (default true).
    pub truncate: Option<bool>,
    /// longrope: divisors of the frequencies `[rotary_dim / 2]` of models whose context is the trained one.
    pub short_factor: Option<Vec<f64>>,
    /// longrope: the divisors of models whose context is longer than `original_max_position_embeddings`.
    pub long_factor: Option<Vec<f64>>,
    /// Share of a head that is rotated, where the config keeps it here.
    pub partial_rotary_factor: Option<f64>,
    /// Frequencies that turn with each axis (time, height, width), of models that see media.
    pub mrope_section: Option<[usize; 3]>,
    /// The axes take turns instead of lying side by side.
    #[serde(default)]
    pub mrope_interleaved: bool,
}

impl RopeScaling {
    /// Kind of scaling by either name.
    pub fn kind(&self) -> RopeType {
        self.rope_type.or(self.legacy_type).unwrap_or_default()
    }

    /// Which frequencies turn with which axis, where there are several.
    pub fn sections(&self) -> Option<RopeSections> {
        let section = self.mrope_section?;
        Some(if self.mrope_interleaved {
            RopeSections::Interleaved(section)
        } else {
            RopeSections::Chunked(section)
        })
    }
}

/// Which frequencies turn with which axis of a position (M-RoPE, arXiv 2409.12191).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeSections {
    /// Time, height and width side by side, as many frequencies each.
    Chunked([usize; 3]),
    /// Time, height and width in turn, until the height's and the width's frequencies are used up; then time.
    Interleaved([usize; 3]),
}

impl RopeSections {
    /// Axis of frequency `index`.
    fn axis(self, index: usize) -> usize {
        match self {
            Self::Chunked([time, height, _]) if index < time + height => usize::from(index >= time),
            Self::Chunked(_) => 2,
            Self::Interleaved(section) => {
                let axis = index % 3;
                if index < 3 * section[axis] { axis } else { 0 }
            }
        }
    }
}

/// Kinds of rope scaling that the checkpoints name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// No scaling. `mrope` is its name in configs that mean several axes.
    #[default]
    #[serde(alias = "mrope")]
    Default,
    /// Positions divided by `factor`.
    Linear,
    /// NTK-aware: the base grows with the length of the sequence beyond the trained context.
    Dynamic,
    /// Interpolation by parts (arXiv 2309.00071).
    Yarn,
    /// Llama 3's interpolation of long wavelengths.
    Llama3,
    /// One divisor a frequency, from one of two lists (arXiv 2402.13753).
    LongRope,
}

/// A config that asks for a scaling it does not describe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "rope_scaling of type {rope_type:?}: `{key}` {reason}: correct the checkpoint's config.json"
)]
pub struct RopeConfigError {
    rope_type: RopeType,
    key: &'static str,
    reason: String,
}

/// Frequencies of a model's rotary embedding: `inv_freq[i] = theta^(-2i / rotary_dim)`, scaled.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inv_freq: Vec<f32>,
    /// Factor on cos and sin (yarn, longrope), else 1.
    attention_scaling: f32,
    dynamic: Option<DynamicNtk>,
    sections: Option<RopeSections>,
}

/// What dynamic scaling needs to recompute the frequencies of a longer sequence.
#[derive(Debug, Clone)]
struct DynamicNtk {
    theta: f64,
    factor: f64,
    original_len: usize,
    rotary_dim: usize,
}

/// Cosines and sines of a batch's positions, `[tokens, rotary_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

/// Cosines and sines in the making, token after token.
#[derive(Default)]
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

fn frequencies(theta: f64, rotary_dim: usize) -> Vec<f64> {
    (0..rotary_dim / 2)
        .map(|i| theta.powf(-((2 * i) as f64) / rotary_dim as f64))
        .collect()
}

impl RotaryEmbedding {
    /// Frequencies for heads of which `rotary_dim` values are rotated.
    ///
    /// `max_position_embeddings` stands in for `original_max_position_embeddings` where a scaling leaves it out.
    pub fn new(
        rotary_dim: usize,
        theta: f64,
        scaling: Option<&RopeScaling>,
        max_position_embeddings: usize,
    ) -> std::result::Result<Self, RopeConfigError> {
        let plain = frequencies(theta, rotary_dim);
        let mut rotary = Self {
            inv_freq: Vec::new(),
            attention_scaling: 1.0,
            dynamic: None,
            sections: scaling.and_then(RopeScaling::sections),
        };
        let Some(scaling) = scaling else {
            rotary.inv_freq = plain.iter().map(|f| *f as f32).collect();
            return Ok(rotary);
        };
        let rope_type = scaling.kind();
        let wrong = |key, reason: String| RopeConfigError {
            rope_type,
            key,
            reason,
        };
        let need =
            |value: Option<f64>, key| value.ok_or_else(|| wrong(key, "is missing".to_owned()));
        let original_len = scaling
            .original_max_position_embeddings
            .unwrap_or(max_position_embeddings);
        let scaled = match rope_type {
            RopeType::Default => plain,
            RopeType::Linear => {
                let factor = need(scaling.factor, "factor")?;
                plain.iter().map(|f| f / factor).collect()
            }
            RopeType::Dynamic => {
                let factor = need(scaling.factor, "factor")?;
                rotary.dynamic = Some(DynamicNtk {
                    theta,
                    factor,
                    original_len,
                    rotary_dim,
                });
                plain
            }
            RopeType::Yarn => {
                let trained = scaling.original_max_position_embeddings;
                let ratio =
                    trained.map(|trained| max_position_embeddings as f64 / trained.max(1) as f64);
                let factor = need(scaling.factor.or(ratio), "factor")?;
                rotary.attention_scaling = yarn_attention_factor(scaling, factor) as f32;
                yarn(&plain, theta, factor, original_len, scaling)
            }
            RopeType::Llama3 => {
                let factor = need(scaling.factor, "factor")?;
                let low = need(scaling.low_freq_factor, "low_freq_factor")?;
                let high = need(scaling.high_freq_factor, "high_freq_factor")?;
                plain
                    .iter()
                    .map(|f| llama3(*f, factor, low, high, original_len as f64))
                    .collect()
            }
            RopeType::LongRope => {
                // The length of the model's context decides, never a sequence's: keys in the cache stay valid.
                let (key, factors) = if max_position_embeddings > original_len {
                    ("long_factor", &scaling.long_factor)
                } else {
                    ("short_factor", &scaling.short_factor)
                };
                let factors = factors.as_deref().unwrap_or_default();
                if factors.len() != plain.len() {
                    let reason = format!(
                        "has {} numbers, but {} frequencies need one each",
                        factors.len(),
                        plain.len()
                    );
                    return Err(wrong(key, reason));
                }
                if let Some(factor) = factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
                    return Err(wrong(key, format!("holds {factor}, which divides nothing")));
                }
                let scale =
                    longrope_attention_factor(scaling, max_position_embeddings, original_len);
                if !scale.is_finite() {
                    let reason = format!("{original_len} is no length to extend from");
                    return Err(wrong("original_max_position_embeddings", reason));
                }
                rotary.attention_scaling = scale as f32;
                plain.iter().zip(factors).map(|(f, by)| f / by).collect()
            }
        };
        rotary.inv_freq = scaled.iter().map(|f| *f as f32).collect();
        Ok(rotary)
    }

    /// Divides every frequency by its own factor `[rotary_dim / 2]`: how GGUF files carry Llama 3's scaling.
    pub fn divided_by(mut self, factors: &[f32]) -> Self {
        for (inv_freq, factor) in self.inv_freq.iter_mut().zip(factors) {
            *inv_freq /= factor;
        }
        self
    }

    /// Longest prompt whose keys do not depend on its length; `None` where they never do.
    pub fn length_independent_up_to(&self) -> Option<usize> {
        self.dynamic.as_ref().map(|dynamic| dynamic.original_len)
    }

    /// Cosines and sines for the new tokens of a batch, in the activation type.
    pub fn rotation(&self, batch: &Batch, dtype: DType, device: &Device) -> Result<Rotation> {
        let mut angles = Angles::default();
        for sequence in batch.sequences() {
            for position in sequence.positions() {
                let axes = match &sequence.axes {
                    Some(axes) => axes.at(position),
                    None => [position as u32; 3],
                };
                self.push_angles(sequence.prompt_len, position, axes, &mut angles);
            }
        }
        self.rotation_by(angles, dtype, device)
    }

    /// Cosines and sines for whole sequences, whose positions count from 0.
    pub fn rotation_within(
        &self,
        bounds: &SequenceBounds,
        dtype: DType,
        device: &Device,
    ) -> Result<Rotation> {
        let mut angles = Angles::default();
        for range in bounds.ranges() {
            for position in 0..range.len() {
                self.push_angles(range.len(), position, [position as u32; 3], &mut angles);
            }
        }
        self.rotation_by(angles, dtype, device)
    }

    /// The angles of one token at `axes`, the one at `position` in a sequence whose prompt has `prompt_len` tokens.
    fn push_angles(&self, prompt_len: usize, position: usize, axes: [u32; 3], angles: &mut Angles) {
        let longer = self.frequencies_of(prompt_len, position);
        let inv_freq = longer.as_ref().unwrap_or(&self.inv_freq);
        for (index, inv_freq) in inv_freq.iter().enumerate() {
            let axis = self.sections.map_or(0, |sections| sections.axis(index));
            let (s, c) = (axes[axis] as f32 * inv_freq).sin_cos();
            angles.cos.push(c * self.attention_scaling);
            angles.sin.push(s * self.attention_scaling);
        }
    }

    fn rotation_by(&self, angles: Angles, dtype: DType, device: &Device) -> Result<Rotation> {
        let half = self.inv_freq.len();
        let shape = (angles.cos.len() / half.max(1), half);
        Ok(Rotation {
            cos: Tensor::from_vec(angles.cos, shape, device)?.to_dtype(dtype)?,
            sin: Tensor::from_vec(angles.sin, shape, device)?.to_dtype(dtype)?,
        })
    }

    /// Dynamic scaling as the reference applies it: a prompt is rotated for its whole length, a generated token for
    /// the length that the sequence has with it. Neither depends on how the prompt was cut into chunks.
    fn frequencies_of(&self, prompt_len: usize, position: usize) -> Option<Vec<f32>> {
        let dynamic = self.dynamic.as_ref()?;
        let length = prompt_len.max(position + 1);
        if length <= dynamic.original_len {
            return None;
        }
        let dim = dynamic.rotary_dim as f64;
        let grown =
            dynamic.factor * length as f64 / dynamic.original_len as f64 - (dynamic.factor - 1.0);
        let theta = dynamic.theta * grown.powf(dim / (dim - 2.0));
        Some(
            frequencies(theta, dynamic.rotary_dim)
                .iter()
                .map(|f| *f as f32)
                .collect(),
        )
    }
}

impl Rotation {
    /// Rotation by given angles `[tokens, half]`, of heads whose first `2 * half` values are rotated.
    pub fn from_angles(angles: &[f32], half: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (angles.len() / half.max(1), half);
        let tensor = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
        };
        Ok(Self {
            cos: tensor(f32::cos)?,
            sin: tensor(f32::sin)?,
        })
    }

    /// Rotates `x` `[tokens, heads, head_dim]` with the half-split pairing (i, i + rotary_dim / 2); values of a head
    /// beyond `rotary_dim` pass unchanged.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, head_dim) = x.dims3()?;
        let half = self.cos.dim(1)?;
        let rotary_dim = 2 * half;
        // One batch entry a token lets Candle's kernel run in parallel over tokens.
        let cos = self.cos.reshape((tokens, 1, half))?;
        let sin = self.sin.reshape((tokens, 1, half))?;
        let rotate = |x: &Tensor, dim: usize| {
            let x = x.contiguous()?.reshape((tokens, 1, heads, dim))?;
            candle_nn::rotary_emb::rope_thd(&x, &cos, &sin)?.reshape((tokens, heads, dim))
        };
        if rotary_dim == head_dim {
            return rotate(x, head_dim);
        }
        let rotated = rotate(&x.narrow(2, 0, rotary_dim)?, rotary_dim)?;
        Tensor::cat(
            &[rotated, x.narrow(2, rotary_dim, head_dim - rotary_dim)?],
            2,
        )
    }
}

fn llama3(inv_freq: f64, factor: f64, low: f64, high: f64, original_len: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / inv_freq;
    if wavelength > original_len / low {
        inv_freq / factor
    } else if wavelength < original_len / high {
        inv_freq
    } else {
        let smooth = (original_len / wavelength - low) / (high - low);
        (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
    }
}

/// Factor on cos and sin: section 3.4 of arXiv 2309.00071, with the weights that DeepSeek's configs add.
fn yarn_attention_factor(scaling: &RopeScaling, factor: f64) -> f64 {
    let grown = |weight: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * weight * factor.ln() + 1.0
        }
    };
    scaling
        .attention_factor
        .unwrap_or_else(|| match (scaling.mscale, scaling.mscale_all_dim) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => grown(one) / grown(all),
            _ => grown(1.0),
        })
}

/// Factor on cos and sin that keeps the entropy of attention over a longer context (arXiv 2402.13753, section 3.3).
fn longrope_attention_factor(
    scaling: &RopeScaling,
    max_position_embeddings: usize,
    original_len: usize,
) -> f64 {
    let original = original_len as f64;
    scaling.attention_factor.unwrap_or_else(|| {
        (1.0 + (max_position_embeddings as f64 / original).ln() / original.ln()).sqrt()
    })
}

fn yarn(
    plain: &[f64],
    theta: f64,
    factor: f64,
    original_len: usize,
    scaling: &RopeScaling,
) -> Vec<f64> {
    let rotary_dim = (2 * plain.len()) as f64;
    let dimension_of = |rotations: f64| {
        rotary_dim * (original_len as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln()
            / (2.0 * theta.ln())
    };
    let mut low = dimension_of(scaling.beta_fast.unwrap_or(32.0));
    let mut high = dimension_of(scaling.beta_slow.unwrap_or(1.0));
    if scaling.truncate.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    low = low.max(0.0);
    high = high.min(rotary_dim - 1.0);
    if low == high {
        high += 0.001;
    }
    plain
        .iter()
        .enumerate()
        .map(|(i, f)| {
            let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * interpolated + f * (1.0 - interpolated)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaling(json: &str) -> RopeScaling {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn linear_divides_every_frequency() {
        let plain = RotaryEmbedding::new(8, 1e4, None, 64).unwrap();
        let linear = RotaryEmbedding::new(
            8,
            1e4,
            Some(&scaling(r#"{"type":"linear","factor":4.0}"#)),
            64,
        )
        .unwrap();
        for (a, b) in plain.inv_freq.iter().zip(&linear.inv_freq) {
            assert!((a / 4.0 - b).abs() < 1e-9);
        }
    }

    #[test]
    fn the_kind_may_have_either_name_or_both() {
        for json in [
            r#"{"type":"linear","factor":4.0}"#,
            r#"{"rope_type":"linear","factor":4.0}"#,
            r#"{"type":"linear","rope_type":"linear","factor":4.0}"#,
        ] {
            assert_eq!(scaling(json).kind(), RopeType::Linear, "{json}");
        }
    }

    #[test]
    fn sections_say_which_axis_turns_a_frequency() {
        let axes = |sections: RopeSections, count| -> String {
            let name = |index| ["t", "h", "w"][sections.axis(index)];
            (0..count).map(name).collect()
        };
        assert_eq!(axes(RopeSections::Chunked([2, 3, 1]), 6), "tthhhw");
        assert_eq!(axes(RopeSections::Interleaved([4, 2, 2]), 8), "thwthwtt");
        assert_eq!(axes(RopeSections::Interleaved([2, 1, 1]), 4), "thwt");
    }

    #[test]
    fn a_scaling_without_its_factor_is_refused() {
        let error = RotaryEmbedding::new(8, 1e4, Some(&scaling(r#"{"rope_type":"yarn"}"#)), 64)
            .unwrap_err();
        assert!(error.to_string().contains("factor"), "{error}");
    }

    #[test]
    fn longrope_takes_its_list_by_the_length_of_the_context() {
        let json = r#"{"type":"longrope","short_factor":[1.0,2.0],"long_factor":[4.0,8.0],
            "original_max_position_embeddings":16}"#;
        let made = |max| RotaryEmbedding::new(4, 1e4, Some(&scaling(json)), max).unwrap();
        assert_eq!(made(16).inv_freq, [1.0, 0.005]);
        assert_eq!(made(16).attention_scaling, 1.0);
        assert_eq!(made(64).inv_freq, [0.25, 0.00125]);
        // sqrt(1 + ln 4 / ln 16)
        assert!((made(64).attention_scaling - 1.5f32.sqrt()).abs() < 1e-7);
        assert_eq!(made(64).length_independent_up_to(), None);
    }

    #[test]
    fn longrope_lists_must_fit_the_frequencies() {
        for (json, key) in [
            (
                r#"{"type":"longrope","long_factor":[1.0,1.0]}"#,
                "short_factor",
            ),
            (
                r#"{"type":"longrope","short_factor":[1.0]}"#,
                "short_factor",
            ),
            (
                r#"{"type":"longrope","short_factor":[1.0,0.0]}"#,
                "short_factor",
            ),
            (
                r#"{"type":"longrope","long_factor":[1.0,1.0],"original_max_position_embeddings":1}"#,
                "original_max_position_embeddings",
            ),
        ] {
            let error = RotaryEmbedding::new(4, 1e4, Some(&scaling(json)), 64).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn dynamic_keeps_short_sequences_and_stretches_long_ones() {
        let json = r#"{"rope_type":"dynamic","factor":2.0,"original_max_position_embeddings":16}"#;
        let rotary = RotaryEmbedding::new(8, 1e4, Some(&scaling(json)), 64).unwrap();
        assert!(rotary.frequencies_of(16, 15).is_none());
        let long = rotary.frequencies_of(32, 0).unwrap();
        // theta' = 1e4 * (2 * 32 / 16 - 1)^(8 / 6) = 1e4 * 3^(4/3); inv_freq[1] = theta'^(-1/4)
        let want = (1e4 * 3f64.powf(4.0 / 3.0)).powf(-0.25);
        assert!((f64::from(long[1]) - want).abs() < 1e-7);
        assert_eq!(long, rotary.frequencies_of(20, 31).unwrap());
    }
}
