//! Damaged, lying and oversized input: a typed error or what could be decoded, never a panic, and
//! no memory for what a header only claims.

use aha_media::audio::{
    AudioError, AudioLimits, DecodeOptions, LogMelConfig, LogMelExtractor, ResampleMethod,
    decode_mono,
};

use crate::support::{Random, Wav, decode, decode_with, fixture, native, signal};

fn limited(limits: AudioLimits) -> DecodeOptions {
    DecodeOptions { limits, ..native() }
}

#[test]
fn files_without_samples_are_told() {
    assert!(matches!(decode(&[]).err(), Some(AudioError::UnknownFormat)));
    assert!(matches!(
        decode(b"<html>not audio</html>").err(),
        Some(AudioError::UnknownFormat)
    ));
    let empty = Wav::new(1, 16, vec![]).bytes();
    assert!(matches!(
        decode(&empty).err(),
        Some(AudioError::NoAudio { .. })
    ));
    // The header alone, at every length.
    for length in 12..empty.len() {
        let error = decode(&empty[..length]).err();
        assert!(
            matches!(
                error,
                Some(
                    AudioError::NoAudio { .. }
                        | AudioError::Malformed { .. }
                        | AudioError::NeedsFfmpeg { .. }
                )
            ),
            "{length}: {error:?}"
        );
    }
    let video = decode(&fixture("silent_video.mp4")).err();
    assert!(
        matches!(video, Some(AudioError::NoAudio { format: "MP4", .. })),
        "{video:?}"
    );
}

#[test]
fn sizes_in_headers_may_lie() {
    let samples = signal(1000, 4, 40);
    let honest = Wav::pcm16(&samples).bytes();
    for (name, riff, data) in [
        ("endless", u32::MAX, u32::MAX),
        ("RIFF too small", 40, 2000),
        ("RIFF zero", 4, 2000),
        ("data too large", 2036, 1 << 30),
    ] {
        let mut bytes = honest.clone();
        bytes[4..8].copy_from_slice(&riff.to_le_bytes());
        bytes[40..44].copy_from_slice(&data.to_le_bytes());
        match decode(&bytes) {
            Ok(decoded) => assert_eq!(decoded.samples, samples, "{name}"),
            Err(error) => assert!(
                matches!(
                    error,
                    AudioError::Malformed { .. }
                        | AudioError::TooLong { .. }
                        | AudioError::NeedsFfmpeg { .. }
                ),
                "{name}: {error:?}"
            ),
        }
    }
    // What a program that writes to a pipe leaves behind must be readable.
    let mut endless = honest.clone();
    endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    endless[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode(&endless).unwrap().samples, samples);
    // A file that ends early gives what it has, and says so.
    let cut = decode(&honest[..1044]).unwrap();
    assert_eq!(cut.samples, samples[..500]);
    // An odd block size, no channels, no rate.
    for (at, value) in [(32, 3u8), (22, 0), (34, 7), (24, 0)] {
        let mut bytes = honest.clone();
        bytes[at] = value;
        bytes[at + 1] = 0;
        if let Ok(decoded) = decode(&bytes) {
            assert!(decoded.samples.iter().all(|x| x.is_finite()), "byte {at}");
        }
    }
}

#[test]
fn claims_are_checked_before_anything_is_decoded() {
    let mut wav = Wav::pcm16(&[0.0; 64]);
    wav.rate = 655_350;
    wav.channels = 8;
    let error = decode(&wav.bytes()).err();
    assert!(
        matches!(
            error,
            Some(AudioError::RateOutOfRange { rate: 655_350, .. })
        ),
        "{error:?}"
    );
    wav.rate = 16_000;
    wav.channels = 32;
    let error = decode(&wav.bytes()).err();
    assert!(
        matches!(
            error,
            Some(AudioError::TooManyChannels { channels: 32, .. })
        ),
        "{error:?}"
    );
    // A header that claims ten hours, with a second behind it: what is there is what counts.
    let mut long = Wav::pcm16(&[0.0; 16_000]).bytes();
    long[4..8].copy_from_slice(&(36 + 2 * 16_000 * 36_000u32).to_le_bytes());
    long[40..44].copy_from_slice(&(2 * 16_000 * 36_000u32).to_le_bytes());
    let decoded = decode(&long).unwrap();
    assert_eq!((decoded.frames(), decoded.damage), (16_000, (0, true)));
    // Less is allowed: refused before a sample is read.
    let options = limited(AudioLimits {
        max_seconds: 0.5,
        ..Default::default()
    });
    let reader = aha_media::audio::AudioReader::open(&long[..], &options);
    assert!(matches!(reader.err(), Some(AudioError::TooLong { .. })));
    let options = limited(AudioLimits {
        max_bytes: 10_000,
        ..Default::default()
    });
    let error = decode_with(&long, &options).err();
    assert!(
        matches!(error, Some(AudioError::TooManyBytes { limit: 10_000, .. })),
        "{error:?}"
    );
}

#[test]
fn what_is_decoded_counts_too() {
    // Neither stream says how long it is before it is read to its end.
    for name in ["opus.ogg", "aac.aac", "opus.webm", "lame.mp3"] {
        let options = limited(AudioLimits {
            max_seconds: 0.1,
            ..Default::default()
        });
        let error = decode_with(&fixture(name), &options).err();
        assert!(
            matches!(error, Some(AudioError::TooLong { .. })),
            "{name}: {error:?}"
        );
    }
}

#[test]
fn large_pictures_in_tags_are_skipped() {
    let mp3 = fixture("lame.mp3");
    let size = 40usize << 20;
    let mut tagged = b"ID3\x04\x00\x00".to_vec();
    tagged.extend([21, 14, 7, 0].map(|shift| (size >> shift & 0x7f) as u8));
    tagged.resize(10 + size, 0xff);
    tagged.extend(&mp3);
    let start = std::time::Instant::now();
    assert_eq!(
        decode(&tagged).unwrap().samples,
        decode(&mp3).unwrap().samples
    );
    assert!(start.elapsed().as_secs() < 5);
    // A tag that claims more than there is.
    let mut lying = tagged[..10].to_vec();
    lying.extend(&mp3);
    assert!(matches!(
        decode(&lying).err(),
        Some(AudioError::UnknownFormat)
    ));
}

const FILES: [&str; 14] = [
    "aac.aac",
    "aac.m4a",
    "adpcm.wav",
    "alac.m4a",
    "lame.mp3",
    "opus.mp4",
    "opus.ogg",
    "opus.webm",
    "s16.aiff",
    "silent_video.mp4",
    "video.mkv",
    "video.mp4",
    "vorbis.ogg",
    "wma.wma",
];

#[test]
fn truncated_files_end_well() {
    let flac = fixture("speech_like_16k.flac")[..9000].to_vec();
    for (name, bytes) in FILES
        .map(|name| (name, fixture(name)))
        .into_iter()
        .chain([("flac", flac)])
    {
        let whole = decode(&bytes).map_or(0, |decoded| decoded.frames());
        let step = bytes.len().div_ceil(60);
        for length in (0..bytes.len()).step_by(step) {
            if let Ok(decoded) = decode(&bytes[..length]) {
                assert!(decoded.frames() <= whole.max(1), "{name} cut at {length}");
            }
        }
    }
}

#[test]
fn flipped_bits_end_well() {
    let mut random = Random(99);
    let options = limited(AudioLimits {
        max_seconds: 600.0,
        ..Default::default()
    });
    let wav = Wav::pcm16(&signal(200, 1, 30)).bytes();
    let flac = fixture("speech_like_16k.flac")[..9000].to_vec();
    for (name, bytes) in FILES
        .map(|name| (name, fixture(name)))
        .into_iter()
        .chain([("flac", flac), ("wav", wav)])
    {
        for round in 0..120 {
            let mut damaged = bytes.clone();
            // Headers decide more than samples: half of the flips go there.
            let reach = if round % 2 == 0 {
                damaged.len().min(300)
            } else {
                damaged.len()
            };
            for _ in 0..1 + round % 4 {
                let at = random.below(reach);
                damaged[at] ^= 1 << random.below(8);
            }
            match decode_with(&damaged, &options) {
                Ok(decoded) => assert!(decoded.channels > 0 && decoded.rate > 0, "{name}"),
                Err(error) => assert!(error.to_string().len() < 400, "{name}: {error}"),
            }
        }
    }
}

#[test]
fn odd_samples_make_finite_features() {
    let mut samples = signal(3000, 8, 60);
    samples[100] = f32::NAN;
    samples[200] = f32::INFINITY;
    samples[300] = f32::NEG_INFINITY;
    samples[400] = f32::MIN_POSITIVE / 4.0;
    let wav = Wav::new(
        3,
        32,
        samples.iter().flat_map(|x| x.to_le_bytes()).collect(),
    )
    .bytes();
    let decoded = decode_mono(wav, 16_000, ResampleMethod::SoxrHq, &native()).unwrap();
    let mel = LogMelExtractor::new(LogMelConfig::default())
        .unwrap()
        .extract(&decoded)
        .unwrap();
    assert!(mel.data.iter().all(|x| x.is_finite()));
    let silence = LogMelExtractor::new(LogMelConfig::default())
        .unwrap()
        .extract(&[0.0; 1600])
        .unwrap();
    // All at the floor of 1e-10.
    assert!(silence.data.iter().all(|&x| x == -1.5));
}
