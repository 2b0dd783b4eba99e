//! Normally distributed noise from a seed.

use candle_core::{Device, Result, Tensor};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// A request's own stream of random numbers.
#[derive(Debug, Clone)]
pub(super) struct NoiseSource {
    random: Xoshiro256PlusPlus,
    temperature: f32,
}

impl NoiseSource {
    pub(super) fn new(seed: u64, temperature: f32) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            temperature,
        }
    }

    /// Values `[rows, columns]` of standard deviation `temperature`.
    pub(super) fn draw(&mut self, rows: usize, columns: usize, device: &Device) -> Result<Tensor> {
        let mut values = vec![0f32; rows * columns];
        if self.temperature > 0.0 {
            for pair in values.chunks_mut(2) {
                // Box and Muller; 1 - u keeps the logarithm finite.
                let (u, angle) = (self.uniform(), self.uniform() * std::f64::consts::TAU);
                let radius = (-2.0 * (1.0 - u).ln()).sqrt() * f64::from(self.temperature);
                for (value, part) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
                    *value = (radius * part) as f32;
                }
            }
        }
        Tensor::from_vec(values, (rows, columns), device)
    }

    /// In 0..1.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_normal_and_a_seed_repeats_it() {
        let draw = |seed, temperature| -> Vec<f32> {
            let mut source = NoiseSource::new(seed, temperature);
            let values = source.draw(101, 99, &Device::Cpu).unwrap();
            values.flatten_all().unwrap().to_vec1().unwrap()
        };
        let values = draw(7, 0.5);
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / count;
        let outside = values.iter().filter(|x| x.abs() > 1.0).count() as f32 / count;
        assert!(
            mean.abs() < 0.02 && (variance - 0.25).abs() < 0.01,
            "{mean} {variance}"
        );
        assert!((outside - 0.0455).abs() < 0.01, "{outside}");
        assert_eq!(values, draw(7, 0.5));
        assert_ne!(values, draw(8, 0.5));
        assert!(draw(7, 0.0).iter().all(|x| *x == 0.0));
    }
}
