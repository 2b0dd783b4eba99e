//! Encoders, read back by the decoders.

use aha_media::audio::{AudioEncoder, AudioError, AudioFormat, EncodeOptions, encode};

use crate::support::{Random, decode, signal, snr};

const ALL: [AudioFormat; 7] = [
    AudioFormat::WavPcm16,
    AudioFormat::WavFloat32,
    AudioFormat::Pcm16,
    AudioFormat::PcmFloat32,
    AudioFormat::Flac,
    AudioFormat::Mp3,
    AudioFormat::Opus,
];

fn options(format: AudioFormat, sample_rate: u32, channels: usize) -> EncodeOptions {
    EncodeOptions {
        format,
        sample_rate,
        channels,
        bitrate: None,
    }
}

/// Smooth enough for lossy codecs: three tones, in 16-bit steps.
fn tones(frames: usize, rate: u32, channels: usize) -> Vec<f32> {
    (0..frames * channels)
        .map(|i| {
            let t = (i / channels) as f32 / rate as f32 * std::f32::consts::TAU;
            let shift = (i % channels) as f32;
            let value =
                (t * 220.0 + shift).sin() + (t * 740.0).sin() * 0.5 + (t * 1900.0).sin() * 0.2;
            (value * 6000.0).round() / 32_768.0
        })
        .collect()
}

#[test]
fn lossless_formats_give_back_the_same() {
    for (rate, channels) in [(16_000, 1), (44_100, 2), (48_000, 6)] {
        for frames in [1, 31, 4096, 10_007] {
            let samples = tones(frames, rate, channels);
            for format in [
                AudioFormat::WavPcm16,
                AudioFormat::WavFloat32,
                AudioFormat::Flac,
            ] {
                let decoded = decode(&encode(&samples, options(format, rate, channels)).unwrap())
                    .unwrap_or_else(|error| panic!("{format:?} {frames}: {error}"));
                assert_eq!((decoded.rate, decoded.channels), (rate, channels));
                assert_eq!(
                    decoded.samples, samples,
                    "{format:?} {rate} {channels} {frames}"
                );
                assert_eq!(decoded.damage, (0, false));
            }
        }
    }
}

#[test]
fn wav_headers_state_exact_sizes() {
    let file = encode(&[0.5; 300], options(AudioFormat::WavPcm16, 16_000, 1)).unwrap();
    assert_eq!(file.len(), 644);
    assert_eq!(file[4..8], 636u32.to_le_bytes());
    assert_eq!(file[40..44], 600u32.to_le_bytes());
    let file = encode(&[0.5; 300], options(AudioFormat::WavFloat32, 16_000, 2)).unwrap();
    assert_eq!(file.len(), 58 + 1200);
    assert_eq!(file[46..50], 150u32.to_le_bytes());
    assert_eq!(file[54..58], 1200u32.to_le_bytes());
}

#[test]
fn raw_samples_have_no_header() {
    let samples = [0.5f32, -1.0, 1.5, f32::NAN];
    let raw = encode(&samples, options(AudioFormat::Pcm16, 16_000, 1)).unwrap();
    assert_eq!(
        raw,
        [16_384i16, i16::MIN, i16::MAX, 0]
            .map(i16::to_le_bytes)
            .concat()
    );
    let raw = encode(&samples[..3], options(AudioFormat::PcmFloat32, 16_000, 1)).unwrap();
    assert_eq!(raw, [0.5f32, -1.0, 1.5].map(f32::to_le_bytes).concat());
}

#[test]
fn lossy_formats_keep_length_and_sound() {
    for (format, rate, channels, out_rate) in [
        (AudioFormat::Mp3, 16_000, 1, 16_000),
        (AudioFormat::Mp3, 44_100, 1, 44_100),
        (AudioFormat::Mp3, 48_000, 2, 48_000),
        (AudioFormat::Opus, 16_000, 1, 48_000),
        (AudioFormat::Opus, 48_000, 2, 48_000),
        (AudioFormat::Opus, 44_100, 1, 48_000),
    ] {
        for frames in [100, 30_011] {
            let samples = tones(frames, rate, channels);
            let file = encode(&samples, options(format, rate, channels)).unwrap();
            let decoded = decode(&file).unwrap();
            assert_eq!((decoded.rate, decoded.channels), (out_rate, channels));
            let length = (frames as f64 * f64::from(out_rate) / f64::from(rate)).ceil() as usize;
            assert_eq!(decoded.frames(), length, "{format:?} {rate} {channels}");
            if frames > 1000 {
                let expected = tones(length, out_rate, channels);
                let middle = 2000 * channels..(length - 2000) * channels;
                let quality = snr(&decoded.samples[middle.clone()], &expected[middle]);
                assert!(quality > 12.0, "{format:?} {rate} {channels}: {quality} dB");
            }
        }
    }
}

#[test]
fn streams_are_the_file_without_its_lengths() {
    for format in ALL {
        let samples = tones(20_011, 24_000, 2);
        let whole = encode(&samples, options(format, 24_000, 2)).unwrap();
        let mut streamed = Vec::new();
        let mut encoder = AudioEncoder::new(options(format, 24_000, 2), &mut streamed).unwrap();
        let mut random = Random(8);
        let mut rest = &samples[..];
        let mut early = 0;
        while !rest.is_empty() {
            let (block, after) = rest.split_at((2 * random.below(900)).min(rest.len()));
            encoder.push(block, &mut streamed).unwrap();
            early = streamed.len();
            rest = after;
        }
        // Bytes leave while sound comes in, not all at the end.
        assert!(
            early > whole.len() / 2,
            "{format:?}: {early} of {}",
            whole.len()
        );
        let before = streamed.clone();
        let patches = encoder.finish(&mut streamed).unwrap();
        let unpatched = streamed.clone();
        for patch in patches {
            let at = patch.offset as usize;
            streamed[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        // Opus streams carry a serial number of their own.
        if format == AudioFormat::Opus {
            assert_eq!(
                decode(&streamed).unwrap().samples,
                decode(&whole).unwrap().samples
            );
        } else if format == AudioFormat::Mp3 {
            // The file begins with a frame that tells its length.
            assert!(whole.len() > streamed.len() && whole.ends_with(&streamed));
        } else {
            assert_eq!(streamed, whole, "{format:?}");
        }
        if !matches!(format, AudioFormat::Pcm16 | AudioFormat::PcmFloat32) {
            let decoded = decode(&unpatched).unwrap();
            assert!(
                decoded.frames() >= 20_011,
                "{format:?}: {}",
                decoded.frames()
            );
            assert!(decode(&before).is_ok(), "{format:?}");
        }
    }
}

#[test]
fn high_rate_mp3_streams_too() {
    let samples = tones(44_100, 44_100, 1);
    let mut out = Vec::new();
    let mut encoder = AudioEncoder::new(options(AudioFormat::Mp3, 44_100, 1), &mut out).unwrap();
    encoder.push(&samples, &mut out).unwrap();
    assert!(out.len() > 4000, "{} bytes after a second", out.len());
    assert!(decode(&out).unwrap().frames() > 40_000);
}

#[test]
fn what_a_format_cannot_do_is_told() {
    for (format, rate, channels, bitrate) in [
        (AudioFormat::Mp3, 44_000, 1, None),
        (AudioFormat::Mp3, 44_100, 3, None),
        (AudioFormat::Mp3, 44_100, 1, Some(1_000_000)),
        (AudioFormat::Opus, 48_000, 3, None),
        (AudioFormat::Opus, 48_000, 1, Some(100)),
        (AudioFormat::Flac, 48_000, 9, None),
        (AudioFormat::Flac, 700_000, 1, None),
        (AudioFormat::WavPcm16, 16_000, 70_000, None),
    ] {
        let options = EncodeOptions {
            format,
            sample_rate: rate,
            channels,
            bitrate,
        };
        let error = encode(&[], options).err();
        assert!(
            matches!(error, Some(AudioError::EncoderUnavailable { .. })),
            "{error:?}"
        );
    }
    assert!(encode(&[], options(AudioFormat::WavPcm16, 0, 1)).is_err());
    assert!(encode(&[0.0; 3], options(AudioFormat::WavPcm16, 16_000, 2)).is_err());
    for format in ALL {
        assert!(
            encode(&[], options(format, 16_000, 1)).is_ok(),
            "{format:?}"
        );
    }
}

#[test]
fn hostile_samples_are_written_as_sound() {
    let mut samples = signal(5000, 2, 33);
    for (i, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -50.0]
        .iter()
        .enumerate()
    {
        samples[i * 500 + 7] = *value;
    }
    for format in [
        AudioFormat::WavPcm16,
        AudioFormat::Flac,
        AudioFormat::Mp3,
        AudioFormat::Opus,
    ] {
        let decoded = decode(&encode(&samples, options(format, 16_000, 1)).unwrap()).unwrap();
        assert!(
            decoded
                .samples
                .iter()
                .all(|x| x.is_finite() && x.abs() < 4.0),
            "{format:?}"
        );
    }
}
