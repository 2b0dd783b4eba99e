//! Rate conversion against soxr and torchaudio.

use aha_media::audio::{AudioError, ResampleMethod, Resampler, resample};

use crate::support::{Random, floats, largest_difference, signal, snr};

#[test]
fn soxr_is_matched() {
    // The first two ratios take soxr one filter, the others two.
    for (from, to, count) in [
        (8_000, 16_000, 800),
        (48_000, 16_000, 2205),
        (44_100, 16_000, 2205),
        (11_025, 16_000, 1000),
        (22_050, 24_000, 1000),
    ] {
        let reference = floats(&format!("resample_soxr_{from}_{to}.f32"));
        let input = &signal(2205, 7, 100)[..count];
        let ours = resample(input, from, to, ResampleMethod::SoxrHq).unwrap();
        assert_eq!(ours.len(), reference.len(), "{from} to {to}");
        // Where a signal starts or ends with a jump, soxr's own samples are not those of its filter.
        let inner = 6..ours.len() - 2;
        let quality = snr(&ours[inner.clone()], &reference[inner]);
        // Its second filter differs a little upwards.
        let least = if from % 3675 == 0 && to > from {
            80.0
        } else {
            110.0
        };
        assert!(quality > least, "{from} to {to}: {quality} dB");
    }
}

#[test]
fn torchaudio_is_matched() {
    for (from, to, count, method, name) in [
        (
            44_100,
            16_000,
            2205,
            ResampleMethod::Torchaudio,
            "torchaudio",
        ),
        (
            11_025,
            16_000,
            1000,
            ResampleMethod::Torchaudio,
            "torchaudio",
        ),
        (
            16_000,
            44_100,
            800,
            ResampleMethod::TorchaudioFunctional,
            "functional",
        ),
    ] {
        let reference = floats(&format!("resample_{name}_{from}_{to}.f32"));
        let ours = resample(&signal(2205, 7, 100)[..count], from, to, method).unwrap();
        assert_eq!(ours.len(), reference.len(), "{from} to {to}");
        let difference = largest_difference(&ours, &reference);
        assert!(difference < 5e-7, "{from} to {to}: {difference}");
    }
}

#[test]
fn every_cutting_gives_the_same_bits() {
    let input = signal(9000, 21, 90);
    let mut random = Random(5);
    for method in [
        ResampleMethod::SoxrHq,
        ResampleMethod::Torchaudio,
        ResampleMethod::TorchaudioFunctional,
    ] {
        // The last rate has no divisor in common: its taps are computed one by one.
        for (from, to) in [
            (44_100, 16_000),
            (16_000, 48_000),
            (16_000, 16_000),
            (44_101, 16_000),
        ] {
            let input = if from == 44_101 {
                &input[..2000]
            } else {
                &input[..]
            };
            let whole = resample(input, from, to, method).unwrap();
            let mut resampler = Resampler::new(from, to, method).unwrap();
            // Twice: a converter is as new after the end.
            for _ in 0..2 {
                let mut joined = Vec::new();
                let mut rest = input;
                while !rest.is_empty() {
                    let (block, after) = rest.split_at(random.below(700).min(rest.len()));
                    resampler.push(block, &mut joined);
                    rest = after;
                }
                resampler.finish(&mut joined);
                assert_eq!(joined, whole, "{from} to {to}, {method:?}");
            }
        }
    }
}

#[test]
fn a_tone_survives_and_what_lies_above_does_not() {
    let tone = |rate: u32, hz: f64| -> Vec<f32> {
        (0..rate)
            .map(|i| (std::f64::consts::TAU * hz * f64::from(i) / f64::from(rate)).sin() as f32)
            .collect()
    };
    let kept = resample(
        &tone(48_000, 6000.0),
        48_000,
        16_000,
        ResampleMethod::SoxrHq,
    )
    .unwrap();
    assert!(snr(&kept[2000..14_000], &tone(16_000, 6000.0)[2000..14_000]) > 110.0);
    let gone = resample(
        &tone(48_000, 9000.0),
        48_000,
        16_000,
        ResampleMethod::SoxrHq,
    )
    .unwrap();
    assert!(gone[2000..14_000].iter().all(|x| x.abs() < 2e-6));
}

#[test]
fn short_and_odd_inputs_work() {
    for method in [ResampleMethod::SoxrHq, ResampleMethod::Torchaudio] {
        assert!(resample(&[], 8_000, 16_000, method).unwrap().is_empty());
        assert_eq!(resample(&[1.0], 8_000, 16_000, method).unwrap().len(), 2);
        assert_eq!(
            resample(&[1.0; 10], 192_000, 16_000, method).unwrap().len(),
            1
        );
        assert_eq!(
            resample(&[0.5; 100], 383_987, 1_009, method).unwrap().len(),
            1
        );
    }
    for (from, to) in [(0, 16_000), (16_000, 0), (u32::MAX, 16_000)] {
        let error = Resampler::new(from, to, ResampleMethod::SoxrHq).err();
        assert!(matches!(error, Some(AudioError::InvalidOption { .. })));
    }
}
