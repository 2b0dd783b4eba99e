//! Voice activity against the Silero package, and the ways of splitting.

use aha_media::audio::{
    AudioError, AudioSegment, MonoReader, QuietCuts, ResampleMethod, Segment, SegmentReader,
    SileroVad, VAD_FRAME, VadMethod, VadOptions, VadStream, split, split_at_quiet,
};

use crate::support::{Random, decode, fixture, floats, largest_difference, native, signal};

fn speech() -> Vec<f32> {
    decode(&fixture("speech_like_16k.flac")).unwrap().samples
}

#[test]
fn probabilities_are_those_of_the_package() {
    let mut samples = speech();
    samples.resize(samples.len().next_multiple_of(VAD_FRAME), 0.0);
    let expected = floats("silero_probabilities.f32");
    let mut vad = SileroVad::new();
    for _ in 0..2 {
        let ours: Vec<f32> = samples
            .as_chunks::<VAD_FRAME>()
            .0
            .iter()
            .map(|frame| vad.probability(frame))
            .collect();
        let difference = largest_difference(&ours, &expected);
        assert!(difference < 1e-4, "{difference}");
        vad.reset();
    }
}

#[test]
fn segments_are_those_of_the_package() {
    let expected = String::from_utf8(fixture("segments_speech.txt")).unwrap();
    let found: String = split(&speech(), &VadOptions::default())
        .unwrap()
        .iter()
        .map(|segment| format!("{} {}\n", segment.start, segment.end))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_stream_finds_what_the_whole_has() {
    // Speech again and again, so that there is something to be early about.
    let samples = speech().repeat(4);
    for options in [
        VadOptions::default(),
        VadOptions {
            method: VadMethod::Energy,
            ..Default::default()
        },
        VadOptions {
            max_segment_seconds: 0.6,
            padding_ms: 100,
            ..Default::default()
        },
    ] {
        let whole = split(&samples, &options).unwrap();
        assert!(whole.len() >= 2, "{whole:?}");
        let mut random = Random(3);
        let mut stream = VadStream::new(&options).unwrap();
        let (mut found, mut rest, mut given) = (Vec::new(), &samples[..], 0);
        while !rest.is_empty() {
            let (block, after) = rest.split_at(random.below(3000).min(rest.len()));
            let (earliest, known) = (stream.earliest(), found.len());
            stream.push(block, &mut found);
            given += block.len() as u64;
            // Nothing begins before what was promised, and nothing ends in the future.
            assert!(
                found[known..]
                    .iter()
                    .all(|new| new.start >= earliest && new.end <= given)
            );
            rest = after;
        }
        assert!(found.len() + 1 >= whole.len());
        stream.finish(&mut found);
        assert_eq!(found, whole);
        for pair in whole.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?}");
        }
    }
}

#[test]
fn segments_come_with_their_sound() {
    let samples = speech();
    for method in [VadMethod::Silero, VadMethod::Energy] {
        let options = VadOptions {
            method,
            max_segment_seconds: 1.0,
            ..Default::default()
        };
        let reader = MonoReader::open(
            fixture("speech_like_16k.flac"),
            16_000,
            ResampleMethod::SoxrHq,
            &native(),
        )
        .unwrap();
        let mut reader = SegmentReader::new(reader, &options).unwrap();
        let mut found = Vec::new();
        while let Some(AudioSegment {
            segment,
            samples: sound,
        }) = reader.next_segment().unwrap()
        {
            assert_eq!(sound, samples[segment.start as usize..segment.end as usize]);
            assert!(sound.len() <= 17_000);
            found.push(segment);
        }
        assert_eq!(found, split(&samples, &options).unwrap());
        assert!(!found.is_empty());
        assert_eq!(reader.next_segment().unwrap(), None);
    }
}

#[test]
fn the_level_tells_sound_from_noise() {
    let options = VadOptions {
        method: VadMethod::Energy,
        min_speech_ms: 100,
        ..Default::default()
    };
    // The two sounds of the fixture lie at 0.5 to 1.9 s and 2.34 to 3.34 s.
    let found = split(&speech(), &options).unwrap();
    let heard = |from: f64, to: f64| -> f64 {
        found
            .iter()
            .map(|part| (part.end_seconds().min(to) - part.start_seconds().max(from)).max(0.0))
            .sum()
    };
    assert!(heard(0.5, 1.9) > 1.0, "{found:?}");
    assert!(heard(2.34, 3.34) > 0.35, "{found:?}");
    assert!(heard(0.0, 0.4) + heard(1.95, 2.3) < 0.15, "{found:?}");
    assert!(split(&[0.0; 32_000], &options).unwrap().is_empty());
    assert!(split(&[], &options).unwrap().is_empty());
}

#[test]
fn speech_without_a_pause_is_cut_at_the_limit() {
    // Loud throughout: the level method hears one long speech.
    let mut samples: Vec<f32> = signal(900 * 4, 4, 40).repeat(60);
    samples.splice(0..0, vec![0.0; 8000]);
    let options = VadOptions {
        method: VadMethod::Energy,
        max_segment_seconds: 3.0,
        min_silence_ms: 200,
        ..Default::default()
    };
    let found = split(&samples, &options).unwrap();
    assert!(found.len() >= 4, "{found:?}");
    for segment in &found {
        assert!(segment.end - segment.start <= 48_000 + 512, "{found:?}");
    }
}

#[test]
fn options_are_checked() {
    let wrong = [
        VadOptions {
            threshold: 0.0,
            ..Default::default()
        },
        VadOptions {
            threshold: f32::NAN,
            ..Default::default()
        },
        VadOptions {
            negative_threshold: Some(0.9),
            ..Default::default()
        },
        VadOptions {
            max_segment_seconds: 0.0,
            ..Default::default()
        },
        VadOptions {
            max_segment_seconds: f64::NAN,
            ..Default::default()
        },
    ];
    for options in wrong {
        assert!(matches!(
            split(&[], &options).err(),
            Some(AudioError::InvalidOption { .. })
        ));
    }
    let endless = VadOptions {
        max_segment_seconds: f64::INFINITY,
        ..Default::default()
    };
    assert!(split(&speech(), &endless).is_ok());
    let reader = |rate| {
        let file = fixture("speech_like_16k.flac");
        MonoReader::open(file, rate, ResampleMethod::SoxrHq, &native()).unwrap()
    };
    assert!(SegmentReader::new(reader(16_000), &endless).is_err());
    assert!(SegmentReader::new(reader(8_000), &VadOptions::default()).is_err());
}

#[test]
fn quiet_cuts_join_without_gap() {
    let samples = signal(40_000, 17, 120);
    let whole = split_at_quiet(&samples, 8_000, 1.0, 0.3, 100.0).unwrap();
    assert_eq!(whole.first().unwrap().start, 0);
    assert_eq!(whole.last().unwrap().end, 40_000);
    for pair in whole.windows(2) {
        assert_eq!(pair[0].end, pair[1].start);
        let length = pair[0].end - pair[0].start;
        assert!((5_600..=10_400).contains(&length), "{length}");
        // The signal pauses often enough for every cut to fall into a pause.
        assert_eq!(samples[pair[0].end as usize], 0.0);
    }
    let mut cuts = QuietCuts::new(8_000, 1.0, 0.3, 100.0).unwrap();
    let mut pieces = Vec::new();
    for block in samples.chunks(777) {
        cuts.push(block, &mut pieces);
    }
    cuts.finish(&mut pieces);
    let joined: Vec<f32> = pieces
        .iter()
        .flat_map(|piece| piece.samples.clone())
        .collect();
    assert_eq!(joined, samples);
    assert_eq!(
        pieces
            .iter()
            .map(|piece| piece.segment)
            .collect::<Vec<Segment>>(),
        whole
    );
    let short = split_at_quiet(&samples[..7_000], 8_000, 1.0, 0.3, 100.0).unwrap();
    assert_eq!(
        short,
        [Segment {
            start: 0,
            end: 7_000
        }]
    );
    assert!(QuietCuts::new(8_000, f64::INFINITY, 0.3, 100.0).is_err());
    assert!(QuietCuts::new(8_000, 1.0, -0.3, 100.0).is_err());
}
