//! The local diffusion transformer, which makes a patch of noise, and the solver of its flow.
//!
//! Conditional flow matching (arXiv 2210.02747) by Euler's method, with classifier-free guidance in the form CFG-Zero*
//! (arXiv 2503.18886): the unconditional velocity is scaled onto the conditional one, and the first step stands still.

use crate::decoder::EncoderStack;
use crate::error::LoadError;
use aha_engine::PatchInput;
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{self, Weights};
use candle_core::{DType, Device, Module, Result, Tensor};
use std::f32::consts::FRAC_PI_2;
use std::sync::{Arc, Mutex, PoisonError};

use super::config::VoxCpmConfig;

/// Times run from 1 to 0, but the sines of the time embedding turn as if from 1000.
const TIME_SCALE: f32 = 1000.0;
const SLOWEST_SINE: f64 = 10_000.0;
/// Share of the steps that stand still at the start.
const STILL_SHARE: f64 = 0.04;
/// Keeps the projection finite where the unconditional velocity is zero.
const EPSILON: f64 = 1e-8;
/// Schedules that are kept: requests rarely ask for other numbers of steps than their neighbours.
const KEPT_SCHEDULES: usize = 8;

/// `x -> time` embedding: linear, SiLU, linear.
#[derive(Debug)]
struct TimeMlp {
    first: Linear,
    second: Linear,
}

impl TimeMlp {
    fn load(weights: &Weights, width: usize) -> weights::Result<Self> {
        let layer = |name| Linear::load(&weights.pp(name), width, width, true);
        Ok(Self {
            first: layer("linear_1")?,
            second: layer("linear_2")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = Activation::Silu.forward(&self.first.forward(x)?)?;
        self.second.forward(&hidden)
    }
}

/// What every solution in a number of steps goes through.
#[derive(Debug)]
struct Schedule {
    /// How far each step goes.
    deltas: Vec<f64>,
    /// Embedding of the time before each step, `[steps, width]`.
    times: Tensor,
    /// Steps that stand still.
    still: usize,
}

/// The estimator of velocities with its solver.
#[derive(Debug)]
pub struct LocalDit {
    in_proj: Linear,
    cond_proj: Linear,
    out_proj: Linear,
    time_mlp: TimeMlp,
    delta_time_mlp: TimeMlp,
    decoder: EncoderStack,
    patch_size: usize,
    feat_dim: usize,
    width: usize,
    dtype: DType,
    device: Device,
    schedules: Mutex<Vec<(usize, Arc<Schedule>)>>,
}

impl LocalDit {
    /// Loads `estimator`.
    pub fn load(weights: &Weights, config: &VoxCpmConfig) -> std::result::Result<Self, LoadError> {
        let estimator = weights.pp("estimator");
        let dit = config.local_dit()?;
        let (width, feat_dim) = (dit.attention.hidden_size, config.feat_dim);
        let linear = |name, from, to| Linear::load(&estimator.pp(name), from, to, true);
        Ok(Self {
            in_proj: linear("in_proj", feat_dim, width)?,
            cond_proj: linear("cond_proj", feat_dim, width)?,
            out_proj: linear("out_proj", width, feat_dim)?,
            time_mlp: TimeMlp::load(&estimator.pp("time_mlp"), width)?,
            delta_time_mlp: TimeMlp::load(&estimator.pp("delta_time_mlp"), width)?,
            decoder: EncoderStack::load_encoder(&estimator.pp("decoder"), &dit)?,
            patch_size: config.patch_size,
            feat_dim,
            width,
            dtype: weights.dtype(),
            device: weights.device().clone(),
            schedules: Mutex::new(Vec::new()),
        })
    }

    /// Width of the condition on the language models.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The patches that the inputs' noise flows to under `conditions` `[inputs, width]`.
    pub fn solve(&self, conditions: &Tensor, inputs: &[PatchInput]) -> Result<Vec<Tensor>> {
        let mut patches: Vec<Option<Tensor>> = vec![None; inputs.len()];
        // Those with as many steps and guidance (or without) go together; usually that is all.
        let kind = |input: &PatchInput| (input.steps, input.guidance != 1.0);
        while let Some(first) = patches.iter().position(Option::is_none) {
            let group: Vec<usize> = (first..inputs.len())
                .filter(|index| kind(&inputs[*index]) == kind(&inputs[first]))
                .collect();
            let rows: Vec<u32> = group.iter().map(|index| *index as u32).collect();
            let conditions =
                conditions.index_select(&Tensor::new(rows, conditions.device())?, 0)?;
            let members: Vec<&PatchInput> = group.iter().map(|index| &inputs[*index]).collect();
            let solved = self.solve_group(&conditions, &members)?;
            for (row, index) in group.into_iter().enumerate() {
                patches[index] = Some(solved.get(row)?);
            }
        }
        Ok(patches.into_iter().flatten().collect())
    }

    /// The same for inputs of one number of steps, `[inputs, patch_size, feat_dim]`.
    fn solve_group(&self, conditions: &Tensor, inputs: &[&PatchInput]) -> Result<Tensor> {
        let (count, guided) = (inputs.len(), inputs[0].guidance != 1.0);
        let stacked = |part: fn(&PatchInput) -> &Tensor| {
            Tensor::stack(
                &inputs.iter().map(|input| part(input)).collect::<Vec<_>>(),
                0,
            )
        };
        let mut x = stacked(|input| &input.noise)?;
        let previous = self.project(&self.cond_proj, &stacked(|input| &input.previous)?)?;
        let conditions = conditions.unsqueeze(1)?;
        let (conditions, previous) = if guided {
            // Only what the language models say is left out, not the patch before.
            let absent = conditions.zeros_like()?;
            (
                Tensor::cat(&[&conditions, &absent], 0)?,
                Tensor::cat(&[&previous, &previous], 0)?,
            )
        } else {
            (conditions, previous)
        };
        let guidance: Vec<f32> = inputs.iter().map(|input| input.guidance).collect();
        let guidance = Tensor::from_vec(guidance, (count, 1, 1), &self.device)?;
        let sequences = conditions.dim(0)?;
        let bounds = SequenceBounds::from_lengths(vec![1 + 2 * self.patch_size; sequences])?;
        let rotation = self.decoder.rotation(&bounds)?;
        let schedule = self.schedule(inputs[0].steps)?;
        for (step, delta) in schedule.deltas.iter().enumerate().skip(schedule.still) {
            let head = conditions.broadcast_add(&schedule.times.get(step)?)?;
            let patch = self.project(&self.in_proj, &x)?;
            let patch = if guided {
                Tensor::cat(&[&patch, &patch], 0)?
            } else {
                patch
            };
            let tokens = Tensor::cat(&[&head, &previous, &patch], 1)?.flatten(0, 1)?;
            let hidden = self.decoder.forward(tokens, &rotation, &bounds)?;
            let velocity = self.velocity(&hidden, sequences)?;
            let velocity = if guided {
                guide(
                    &velocity.narrow(0, 0, count)?,
                    &velocity.narrow(0, count, count)?,
                    &guidance,
                )?
            } else {
                velocity
            };
            x = (x - (velocity * *delta)?)?;
        }
        Ok(x)
    }

    /// Velocities `[sequences, patch_size, feat_dim]`: the last positions of each sequence.
    fn velocity(&self, hidden: &Tensor, sequences: usize) -> Result<Tensor> {
        let patch_size = self.patch_size;
        let patches = hidden
            .reshape((sequences, 1 + 2 * patch_size, self.width))?
            .narrow(1, 1 + patch_size, patch_size)?
            .contiguous()?
            .reshape((sequences * patch_size, self.width))?;
        self.out_proj
            .forward(&patches)?
            .reshape((sequences, patch_size, self.feat_dim))
    }

    /// A projection of patches `[count, patch_size, feat_dim]` to `[count, patch_size, width]`.
    fn project(&self, layer: &Linear, patches: &Tensor) -> Result<Tensor> {
        let count = patches.dim(0)?;
        layer
            .forward(&patches.flatten(0, 1)?)?
            .reshape((count, self.patch_size, self.width))
    }

    fn schedule(&self, steps: usize) -> Result<Arc<Schedule>> {
        let mut kept = self
            .schedules
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, schedule)) = kept.iter().find(|(of, _)| *of == steps) {
            return Ok(schedule.clone());
        }
        let (times, deltas) = euler_steps(steps);
        let embedded = self.time_mlp.forward(&self.sines(&times)?)?;
        // Every step is embedded as of length 0, which is not nothing: the cosines of 0 are 1.
        let no_delta = self.delta_time_mlp.forward(&self.sines(&[0.0])?)?;
        let schedule = Arc::new(Schedule {
            deltas: deltas.into_iter().map(f64::from).collect(),
            times: embedded.broadcast_add(&no_delta)?,
            still: ((steps + 1) as f64 * STILL_SHARE).max(1.0) as usize,
        });
        if kept.len() >= KEPT_SCHEDULES {
            kept.remove(0);
        }
        kept.push((steps, schedule.clone()));
        Ok(schedule)
    }

    /// Sines, then cosines of `times` at frequencies from 1 to 1/10000, `[times, width]`.
    fn sines(&self, times: &[f32]) -> Result<Tensor> {
        let half = self.width / 2;
        let step = (SLOWEST_SINE.ln() / (half - 1) as f64) as f32;
        let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * -step).exp()).collect();
        let mut values = Vec::with_capacity(times.len() * self.width);
        for time in times {
            let angles = frequencies
                .iter()
                .map(|frequency| TIME_SCALE * time * frequency);
            values.extend(angles.clone().map(f32::sin));
            values.extend(angles.map(f32::cos));
        }
        Tensor::from_vec(values, (times.len(), self.width), &self.device)?.to_dtype(self.dtype)
    }
}

/// `s * v0 + guidance * (v1 - s * v0)`, with `s` the length of `v1` along `v0`; each `[count, patch_size, feat_dim]`.
fn guide(conditional: &Tensor, unconditional: &Tensor, guidance: &Tensor) -> Result<Tensor> {
    let dtype = conditional.dtype();
    let (v1, v0) = (
        conditional.to_dtype(DType::F32)?,
        unconditional.to_dtype(DType::F32)?,
    );
    let along = (&v1 * &v0)?.sum_keepdim((1, 2))?;
    let length = (v0.sqr()?.sum_keepdim((1, 2))? + EPSILON)?;
    let scaled = v0.broadcast_mul(&(along / length)?)?;
    let difference = (v1 - &scaled)?;
    (scaled + difference.broadcast_mul(guidance)?)?.to_dtype(dtype)
}

/// The time before each step and how far the step goes, in single precision as in the reference: the embedding
/// multiplies times by 1000, which makes their last bits visible.
///
/// Times are spaced by the sway `cos(π t / 2) - 1 + t`, which dwells near the noise.
fn euler_steps(steps: usize) -> (Vec<f32>, Vec<f32>) {
    let spacing = -1.0 / steps as f32;
    let times: Vec<f32> = (0..=steps)
        .map(|index| {
            // Counted from the nearer end.
            let time = if index < steps.div_ceil(2) {
                // Rounded once.
                spacing.mul_add(index as f32, 1.0)
            } else {
                -spacing * (steps - index) as f32
            };
            time + (cosine(FRAC_PI_2 * time) - 1.0 + time)
        })
        .collect();
    let mut time = times[0];
    let mut delta = times[0] - times[1];
    let (mut before, mut deltas) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
    for index in 0..steps {
        before.push(time);
        deltas.push(delta);
        time -= delta;
        if let Some(after) = times.get(index + 2) {
            delta = time - after;
        }
    }
    (before, deltas)
}

/// The cosine on 0..=π/2 as PyTorch's vector libraries round it: a polynomial in the distance to π/2 that is a few
/// thousandths of the last place off. Its last bit is visible in the sound, see [`euler_steps`].
fn cosine(x: f32) -> f32 {
    const SINE: [f32; 4] = [2.608_316e-6, -1.981_069e-4, 8.333_079e-3, -1.666_666e-1];
    let distance = std::f64::consts::FRAC_PI_2 - f64::from(x);
    let square = distance * distance;
    let tail = SINE.iter().fold(0.0, |sum, coefficient| {
        sum * square + f64::from(*coefficient)
    });
    (distance + distance * square * tail) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_run_from_noise_to_the_patch() {
        for steps in [1, 2, 3, 10, 50] {
            let (times, deltas) = euler_steps(steps);
            assert_eq!((times.len(), deltas.len()), (steps, steps));
            assert!((times[0] - 1.0).abs() < 1e-6);
            assert!((deltas.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert!(deltas.iter().all(|delta| *delta > 0.0));
            // The first steps are the short ones.
            assert!(deltas[0] <= deltas[steps - 1] + 1e-6);
        }
    }

    #[test]
    fn times_are_the_references_to_the_last_bit() {
        // t + (cos(π/2 t) - 1 + t) over linspace(1, 0, steps + 1) in PyTorch.
        let eight = [
            1.0,
            0.945_090_23,
            0.882_683_4,
            0.805_570_2,
            std::f32::consts::FRAC_1_SQRT_2,
            0.581_469_6,
            0.423_879_5,
            0.230_785_31,
        ];
        let (times, deltas) = euler_steps(8);
        assert_eq!(times, eight);
        assert_eq!(*deltas.last().unwrap(), times[7]);
        assert_eq!(cosine(0.196_349_55), 0.980_785_3);
        assert_eq!(cosine(0.0), 1.0);
    }

    #[test]
    fn guidance_of_one_is_the_conditional_velocity() {
        let random = || Tensor::randn(0f32, 1.0, (2, 3, 4), &Device::Cpu).unwrap();
        let (v1, v0) = (random(), random());
        let one = Tensor::ones((2, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let gap = (guide(&v1, &v0, &one).unwrap() - &v1)
            .unwrap()
            .abs()
            .unwrap();
        assert!(gap.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
        // Twice the guidance goes twice as far from the scaled unconditional one.
        let two = (&one + 1.0).unwrap();
        let zero = one.zeros_like().unwrap();
        let base = guide(&v1, &v0, &zero).unwrap();
        let expected = ((&v1 * 2.0).unwrap() - base).unwrap();
        let gap = (guide(&v1, &v0, &two).unwrap() - expected)
            .unwrap()
            .abs()
            .unwrap();
        assert!(gap.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-4);
    }
}
