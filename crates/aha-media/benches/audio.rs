//! The work before a speech model: features of half a minute, a minute at another rate, voice
//! activity.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark has no callers"
)]

use std::hint::black_box;

use aha_media::audio::{
    FbankConfig, FbankExtractor, LogMelConfig, LogMelExtractor, ResampleMethod, VadMethod,
    VadOptions, resample, split,
};
use criterion::{Criterion, criterion_group, criterion_main};

fn noise(length: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        })
        .collect()
}

fn audio(criterion: &mut Criterion) {
    let half_minute = noise(480_000);
    let mel = LogMelExtractor::new(LogMelConfig::default()).unwrap();
    criterion.bench_function("log-mel, 128 bins, 30 s", |bench| {
        bench.iter(|| mel.extract(black_box(&half_minute)).unwrap());
    });
    let fbank = FbankExtractor::new(FbankConfig::default()).unwrap();
    criterion.bench_function("fbank, 80 bins, 30 s", |bench| {
        bench.iter(|| fbank.extract(black_box(&half_minute)).unwrap());
    });
    for rate in [44_100, 48_000] {
        let minute = noise(60 * rate as usize);
        for (name, method) in [
            ("soxr", ResampleMethod::SoxrHq),
            ("torchaudio", ResampleMethod::Torchaudio),
        ] {
            criterion.bench_function(
                &format!("resample {rate} to 16000, {name}, 60 s"),
                |bench| {
                    bench.iter(|| resample(black_box(&minute), rate, 16_000, method).unwrap());
                },
            );
        }
    }
    for (name, method) in [("silero", VadMethod::Silero), ("energy", VadMethod::Energy)] {
        let options = VadOptions {
            method,
            ..Default::default()
        };
        criterion.bench_function(&format!("voice activity, {name}, 30 s"), |bench| {
            bench.iter(|| split(black_box(&half_minute), &options).unwrap());
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = audio
}
criterion_main!(benches);
