//! Rotary position embeddings (arXiv 2104.09864) and their scalings for long contexts.

use crate::batch::Batch;
use crate::ragged::SequenceBounds;
pub use crate::rotation::Rotation;
use crate::rotation::{RotationForm, Table};
use candle_core::{DType, Device, Result};
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
    /// xdrope: the base is multiplied by `alpha^(d / (d - 2))`, for `d` rotated values of a head.
    pub alpha: Option<f64>,
    /// Share of a head that is rotated, where the config keeps it here.
    pub partial_rotary_factor: Option<f64>,
    /// Frequencies that turn with each axis (time, height, width), of models that see media.
    pub mrope_section: Option<[usize; 3]>,
    /// The axes take turns instead of lying side by side.
    #[serde(default)]
    pub mrope_interleaved: bool,
    /// xdrope: half the values of a head that turn with each of four axes.
    pub xdrope_section: Option<[usize; 4]>,
}

impl RopeScaling {
    /// Kind of scaling by either name.
    pub fn kind(&self) -> RopeType {
        self.rope_type.or(self.legacy_type).unwrap_or_default()
    }

    /// Which frequencies turn with which axis, where there are several.
    pub fn sections(&self) -> Option<RopeSections> {
        if let Some(section) = self.xdrope_section {
            return Some(RopeSections::Values(section));
        }
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
    /// Four axes side by side over the values of a head, twice as many values each: the two values of a pair may turn
    /// with different axes (XD-RoPE of HunyuanOCR, arXiv 2511.19575).
    Values([usize; 4]),
}

impl RopeSections {
    /// Axis of frequency `index`, or of value `index` where each value has its own.
    fn axis(self, index: usize) -> usize {
        match self {
            Self::Chunked([time, height, _]) if index < time + height => usize::from(index >= time),
            Self::Chunked(_) => 2,
            Self::Interleaved(section) => {
                let axis = index % 3;
                if index < 3 * section[axis] { axis } else { 0 }
            }
            Self::Values(section) => {
                let mut end = 0;
                let holds = |half: &usize| {
                    end += 2 * half;
                    index < end
                };
                section.iter().position(holds).unwrap_or(3)
            }
        }
    }
}

/// Which two values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RopePairing {
    /// Value i and value i + half.
    #[default]
    HalfSplit,
    /// Neighbours: values 2i and 2i + 1 (GLM).
    Interleaved,
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
    /// A larger base, whatever the length, and four axes.
    XdRope,
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
    pairing: RopePairing,
}

/// What dynamic scaling needs to recompute the frequencies of a longer sequence.
#[derive(Debug, Clone)]
struct DynamicNtk {
    theta: f64,
    factor: f64,
    original_len: usize,
    rotary_dim: usize,
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

/// What the base is multiplied by so that the slowest frequency turns `factor` times slower and the fastest as before
/// (NTK-aware scaling).
fn stretched(factor: f64, rotary_dim: usize) -> f64 {
    let dim = rotary_dim as f64;
    factor.powf(dim / (dim - 2.0))
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
            pairing: RopePairing::default(),
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
            RopeType::XdRope => {
                let alpha = need(scaling.alpha, "alpha")?;
                let section = scaling.xdrope_section.unwrap_or_default();
                if section
                    .iter()
                    .fold(0usize, |sum, half| sum.saturating_add(*half))
                    != plain.len()
                {
                    let reason = format!("{section:?} does not add up to {}", plain.len());
                    return Err(wrong("xdrope_section", reason));
                }
                let base = theta * stretched(alpha, rotary_dim);
                if !(base.is_finite() && base > 0.0) {
                    return Err(wrong("alpha", format!("{alpha} leaves no base")));
                }
                frequencies(base, rotary_dim)
            }
        };
        rotary.inv_freq = scaled.iter().map(|f| *f as f32).collect();
        Ok(rotary)
    }

    /// Angle that each pair of values turns from one position to the next, in radians, `[rotary_dim / 2]`.
    pub fn frequencies(&self) -> &[f32] {
        &self.inv_freq
    }

    /// The same with other values of a head turning together.
    #[must_use]
    pub fn with_pairing(mut self, pairing: RopePairing) -> Self {
        self.pairing = pairing;
        self
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
        self.push_batch(batch, &mut angles);
        self.rotation_by(angles, dtype, device)
    }

    /// The same on the CPU in f32, in the memory of `rotation`.
    pub(crate) fn rotate_on_host(&self, batch: &Batch, rotation: &mut Rotation) {
        let mut angles = match std::mem::take(&mut rotation.table) {
            Table::Host { cos, sin, .. } => Angles { cos, sin },
            Table::Tensors { .. } => Angles::default(),
        };
        angles.cos.clear();
        angles.sin.clear();
        self.push_batch(batch, &mut angles);
        rotation.table = Table::Host {
            cos: angles.cos,
            sin: angles.sin,
            width: self.angles(),
        };
        rotation.form = self.form();
    }

    fn push_batch(&self, batch: &Batch, angles: &mut Angles) {
        for sequence in batch.sequences() {
            for position in sequence.positions() {
                let on = |axis| match &sequence.axes {
                    Some(axes) => axes.on(axis, position),
                    None => position as u32,
                };
                self.push_angles(sequence.prompt_len, position, on, angles);
            }
        }
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
                self.push_angles(range.len(), position, |_| position as u32, &mut angles);
            }
        }
        self.rotation_by(angles, dtype, device)
    }

    /// The angles of the token at `position` in a sequence whose prompt has `prompt_len` tokens; `on` tells its position
    /// on an axis.
    fn push_angles(
        &self,
        prompt_len: usize,
        position: usize,
        on: impl Fn(usize) -> u32,
        angles: &mut Angles,
    ) {
        let longer = self.frequencies_of(prompt_len, position);
        let inv_freq = longer.as_ref().unwrap_or(&self.inv_freq);
        for index in 0..self.angles() {
            let axis = self.sections.map_or(0, |sections| sections.axis(index));
            let (s, c) = (on(axis) as f32 * inv_freq[index % inv_freq.len()]).sin_cos();
            angles.cos.push(c * self.attention_scaling);
            angles.sin.push(s * self.attention_scaling);
        }
    }

    /// Angles of a token: one for each pair of values, or for each value.
    fn angles(&self) -> usize {
        match self.form() {
            RotationForm::Pairs(_) => self.inv_freq.len(),
            RotationForm::Values => 2 * self.inv_freq.len(),
        }
    }

    fn form(&self) -> RotationForm {
        match self.sections {
            Some(RopeSections::Values(_)) => RotationForm::Values,
            _ => RotationForm::Pairs(self.pairing),
        }
    }

    fn rotation_by(&self, angles: Angles, dtype: DType, device: &Device) -> Result<Rotation> {
        Ok(Rotation {
            table: Table::new(angles.cos, angles.sin, self.angles(), dtype, device)?,
            form: self.form(),
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
        let grown =
            dynamic.factor * length as f64 / dynamic.original_len as f64 - (dynamic.factor - 1.0);
        let theta = dynamic.theta * stretched(grown, dynamic.rotary_dim);
        Some(
            frequencies(theta, dynamic.rotary_dim)
                .iter()
                .map(|f| *f as f32)
                .collect(),
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
    use crate::batch::{AxisPositions, SequenceSlice};
    use candle_core::Tensor;
    use std::sync::Arc;

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
        let values = RopeSections::Values([2, 1, 0, 1]);
        let axes: Vec<usize> = (0..8).map(|value| values.axis(value)).collect();
        assert_eq!(axes, [0, 0, 0, 0, 1, 1, 3, 3]);
    }

    /// A rotation of two tokens with four values each, at positions of `axes`.
    fn rotation(json: &str, pairing: RopePairing, axes: Option<AxisPositions>) -> Rotation {
        let rotary = RotaryEmbedding::new(4, 100.0, Some(&scaling(json)), 64).unwrap();
        let sequence = SequenceSlice {
            query_start: 0,
            query_len: 2,
            context_len: 2,
            prompt_len: 2,
            blocks: vec![0],
            state_slot: 0,
            axes: axes.map(Arc::new),
        };
        let batch = Batch::new(&[1, 2], vec![sequence], &[1], 16, &Device::Cpu).unwrap();
        let rotary = rotary.with_pairing(pairing);
        rotary.rotation(&batch, DType::F32, &Device::Cpu).unwrap()
    }

    fn rotated(rotation: &Rotation) -> Vec<f32> {
        let x = Tensor::new(
            &[[[1f32, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]]],
            &Device::Cpu,
        );
        let rotated = rotation.apply(&x.unwrap()).unwrap();
        rotated
            .narrow(0, 1, 1)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    fn assert_near(found: &[f32], wanted: &[f32]) {
        assert_eq!(found.len(), wanted.len());
        let near = found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near, "{found:?} is not {wanted:?}");
    }

    #[test]
    fn pairs_are_halves_or_neighbours() {
        // At position 1 the frequencies 1 and 0.1 turn by as many radians.
        let ((s, c), (s1, c1)) = (1f32.sin_cos(), 0.1f32.sin_cos());
        let halves = rotation("{}", RopePairing::HalfSplit, None);
        let want = [
            c - 3.0 * s,
            2.0 * c1 - 4.0 * s1,
            3.0 * c + s,
            4.0 * c1 + 2.0 * s1,
        ];
        assert_near(&rotated(&halves), &want);
        let neighbours = rotation("{}", RopePairing::Interleaved, None);
        let want = [
            c - 2.0 * s,
            2.0 * c + s,
            3.0 * c1 - 4.0 * s1,
            4.0 * c1 + 3.0 * s1,
        ];
        assert_near(&rotated(&neighbours), &want);
    }

    #[test]
    fn xdrope_turns_each_value_of_a_pair_with_its_own_axis() {
        // Base 100 becomes 100 * 3^(4 / 2) = 900: frequencies 1 and 1 / 30.
        let json = r#"{"type":"xdrope","alpha":3.0,"xdrope_section":[1,0,1,0]}"#;
        let axes = AxisPositions::new(vec![[0, 0, 0, 0], [1, 5, 2, 7]]);
        let found = rotated(&rotation(json, RopePairing::default(), Some(axes)));
        let turn = |own: f32, partner: f32, at: f32, frequency: f32| {
            let (s, c) = (at * frequency).sin_cos();
            own * c + partner * s
        };
        let slow = 1.0 / 30.0;
        let want = [
            turn(1.0, -3.0, 1.0, 1.0),
            turn(2.0, -4.0, 1.0, slow),
            turn(3.0, 1.0, 2.0, 1.0),
            turn(4.0, 2.0, 2.0, slow),
        ];
        assert_near(&found, &want);
        for (json, key) in [
            (r#"{"type":"xdrope","xdrope_section":[1,0,1,0]}"#, "alpha"),
            (
                r#"{"type":"xdrope","alpha":3.0,"xdrope_section":[1,1,1,0]}"#,
                "xdrope_section",
            ),
            (r#"{"type":"xdrope","alpha":3.0}"#, "xdrope_section"),
            (
                r#"{"type":"xdrope","alpha":0.0,"xdrope_section":[1,0,1,0]}"#,
                "alpha",
            ),
        ] {
            let error = RotaryEmbedding::new(4, 100.0, Some(&scaling(json)), 64).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
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
