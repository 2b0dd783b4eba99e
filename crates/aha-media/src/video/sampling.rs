//! Which frames of a clip a model sees.

use crate::MediaError;

/// How many frames are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FrameRate {
    /// This many a second, within the least and most frames of the sampling.
    PerSecond(f64),
    /// This many.
    Count(usize),
    /// All of them.
    All,
}

/// Where in the clip they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Evenly from the first frame to the last, both included, halves rounded to the even frame
    /// (Qwen3-VL, and the helper package of Qwen2.5-VL).
    FirstToLast,
    /// At even steps from the first frame on, rounded down (the Qwen2-VL processor).
    Steps,
}

/// The rule by which frames are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrameSampling {
    /// How many.
    pub rate: FrameRate,
    /// Fewest frames of [`FrameRate::PerSecond`], as far as the clip has them.
    pub min_frames: usize,
    /// Most frames of [`FrameRate::PerSecond`].
    pub max_frames: usize,
    /// The number of frames is rounded to a multiple of this, as far as the clip has them.
    pub multiple_of: usize,
    /// Where.
    pub spacing: Spacing,
    /// The rate of a clip that has none.
    pub default_fps: f64,
}

impl FrameSampling {
    /// Qwen3-VL and Qwen3.5: 2 frames a second, 4 to 768 of them.
    pub const QWEN3_VL: Self = Self {
        rate: FrameRate::PerSecond(2.0),
        min_frames: 4,
        max_frames: 768,
        multiple_of: 1,
        spacing: Spacing::FirstToLast,
        default_fps: 24.0,
    };

    /// Qwen2.5-VL as its helper package samples: 2 frames a second, an even number from 4 to 768.
    pub const QWEN2_5_VL: Self = Self {
        multiple_of: 2,
        ..Self::QWEN3_VL
    };

    /// Every frame.
    pub const ALL: Self = Self {
        rate: FrameRate::All,
        ..Self::QWEN3_VL
    };

    /// The frames taken from a clip of `total` frames, `fps` a second where known.
    ///
    /// # Errors
    /// [`MediaError::Empty`] for no frames, [`MediaError::InvalidSampling`] for a rate that is not
    /// positive, a count of zero, or a count above that of the clip where the rule forbids it.
    pub fn indices(&self, total: usize, fps: Option<f64>) -> Result<Vec<usize>, MediaError> {
        if total == 0 {
            return Err(MediaError::Empty { what: "video" });
        }
        check_rate(fps)?;
        check_rate(Some(self.default_fps))?;
        let multiple = self.multiple_of.max(1);
        let count = match self.rate {
            FrameRate::All => return Ok((0..total).collect()),
            FrameRate::Count(count) => self.fixed_count(count, multiple, total)?,
            FrameRate::PerSecond(wanted) => {
                check_rate(Some(wanted))?;
                let most = self.max_frames.min(total) / multiple * multiple;
                let exact = total as f64 / fps.unwrap_or(self.default_fps) * wanted;
                let bounded = exact
                    .max(self.min_frames as f64)
                    .min(most as f64)
                    .min(total as f64);
                // The references fail on clips shorter than a multiple; one frame is of use here.
                (bounded as usize / multiple * multiple).max(1)
            }
        };
        Ok(match self.spacing {
            Spacing::FirstToLast => first_to_last(total, count),
            Spacing::Steps => steps(total, count),
        })
    }

    fn fixed_count(
        &self,
        count: usize,
        multiple: usize,
        total: usize,
    ) -> Result<usize, MediaError> {
        let groups = crate::image::round_half_even(count as f64 / multiple as f64) as usize;
        let rounded = groups.saturating_mul(multiple);
        let may_repeat = self.spacing == Spacing::FirstToLast && multiple == 1;
        if rounded == 0 || rounded > self.max_frames.max(1) || (rounded > total && !may_repeat) {
            return Err(MediaError::InvalidSampling {
                reason: format!(
                    "{count} frames were asked for; the clip has {total} and the model takes 1 to \
                     {} in multiples of {multiple}",
                    self.max_frames
                ),
            });
        }
        Ok(rounded)
    }
}

/// Checks a rate of frames a second.
pub(super) fn check_rate(fps: Option<f64>) -> Result<(), MediaError> {
    match fps {
        Some(fps) if !(fps.is_finite() && fps > 0.0) => Err(MediaError::InvalidSampling {
            reason: format!("a rate of {fps} frames a second is not positive"),
        }),
        _ => Ok(()),
    }
}

fn first_to_last(total: usize, count: usize) -> Vec<usize> {
    let last = total - 1;
    let step = last as f64 / count.saturating_sub(1).max(1) as f64;
    (0..count)
        .map(|index| match index {
            0 => 0,
            _ if index + 1 == count => last,
            _ => (crate::image::round_half_even(index as f64 * step) as usize).min(last),
        })
        .collect()
}

fn steps(total: usize, count: usize) -> Vec<usize> {
    let step = total as f64 / count as f64;
    // Single precision, as the reference's range of floats.
    let at = |index: usize| (index as f64 * step) as f32 as usize;
    (0..count).map(|index| at(index).min(total - 1)).collect()
}
