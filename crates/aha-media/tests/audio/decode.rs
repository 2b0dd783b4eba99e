//! Formats: rates, channels, lengths and samples.

use aha_media::audio::{MonoReader, ResampleMethod, decode_mono, downmix, normalize_peak};

use crate::support::{Wav, decode, fixture, floats, largest_difference, native, signal, snr};

#[test]
fn integer_samples_are_divided_by_full_scale() {
    let u8s = Wav::new(1, 8, vec![0, 128, 255, 64]);
    let s16 = Wav::new(
        1,
        16,
        [i16::MIN, 0, i16::MAX, 1].map(i16::to_le_bytes).concat(),
    );
    let s24 = Wav::new(1, 24, vec![0, 0, 0x80, 0, 0, 0, 0xff, 0xff, 0x7f, 1, 0, 0]);
    let s32 = Wav::new(
        1,
        32,
        [i32::MIN, 0, 1 << 30, 256].map(i32::to_le_bytes).concat(),
    );
    let cases: [(Wav, [f32; 4]); 4] = [
        (u8s, [-1.0, 0.0, 127.0 / 128.0, -0.5]),
        (s16, [-1.0, 0.0, 32_767.0 / 32_768.0, 1.0 / 32_768.0]),
        (
            s24,
            [-1.0, 0.0, 8_388_607.0 / 8_388_608.0, 1.0 / 8_388_608.0],
        ),
        (s32, [-1.0, 0.0, 0.5, 256.0 / 2_147_483_648.0]),
    ];
    for (mut wav, expected) in cases {
        for extensible in [false, true] {
            wav.extensible = extensible;
            let decoded = decode(&wav.bytes()).unwrap();
            assert_eq!(
                decoded.samples, expected,
                "{} bits, extensible {extensible}",
                wav.bits
            );
            assert_eq!((decoded.rate, decoded.channels), (16_000, 1));
        }
    }
}

#[test]
fn float_samples_pass_unchanged() {
    let values = [0.25f32, -1.5, 3.0, 1e-30];
    let single = Wav::new(3, 32, values.map(f32::to_le_bytes).concat());
    assert_eq!(decode(&single.bytes()).unwrap().samples, values);
    let double = Wav::new(3, 64, values.map(|x| f64::from(x).to_le_bytes()).concat());
    assert_eq!(decode(&double.bytes()).unwrap().samples, values);
}

#[test]
fn companded_samples_follow_g711() {
    // The smallest and largest magnitudes of both laws and signs, as 16-bit values.
    let mu = Wav::new(7, 8, vec![0xff, 0x7f, 0x80, 0x00]);
    let expected = [0.0, 0.0, 32_124.0, -32_124.0].map(|x| x / 32_768.0);
    assert_eq!(decode(&mu.bytes()).unwrap().samples, expected);
    let a = Wav::new(6, 8, vec![0xd5, 0x55, 0xaa, 0x2a]);
    let expected = [8.0, -8.0, 32_256.0, -32_256.0].map(|x| x / 32_768.0);
    assert_eq!(decode(&a.bytes()).unwrap().samples, expected);
}

#[test]
fn lossy_codecs_give_what_libsndfile_gives() {
    // Encoder delay and padding are cut where the file tells them.
    for (name, rate, frames, tolerance) in [
        ("vorbis.ogg", 44_100, 11_025, 1e-6),
        ("lame.mp3", 44_100, 11_025, 3e-6),
        ("opus.ogg", 48_000, 12_001, 1e-4),
    ] {
        let decoded = decode(&fixture(name)).unwrap();
        assert_eq!(
            (decoded.rate, decoded.channels, decoded.frames()),
            (rate, 2, frames),
            "{name}"
        );
        let expected = floats(&format!("{name}.f32"));
        let difference = largest_difference(&decoded.mono()[..expected.len()], &expected);
        assert!(difference < tolerance, "{name}: {difference}");
    }
}

#[test]
fn containers_and_video_give_their_sound() {
    // All hold the sound of vorbis.ogg; encoders differ, and in what they put around it.
    let original = decode(&fixture("vorbis.ogg")).unwrap().mono();
    let original =
        aha_media::audio::resample(&original, 44_100, 8_000, ResampleMethod::SoxrHq).unwrap();
    for (name, rate, channels) in [
        ("aac.m4a", 44_100, 2),
        ("aac.aac", 44_100, 2),
        ("alac.m4a", 16_000, 1),
        ("opus.webm", 48_000, 2),
        ("opus.mp4", 48_000, 2),
        ("video.mp4", 44_100, 2),
        ("video.mkv", 44_100, 2),
        ("adpcm.wav", 8_000, 1),
        ("s16.aiff", 8_000, 1),
    ] {
        let bytes = fixture(name);
        let decoded = decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((decoded.rate, decoded.channels), (rate, channels), "{name}");
        let sound = decode_mono(bytes, 8_000, ResampleMethod::SoxrHq, &native()).unwrap();
        // At the best shift within 70 ms, the sounds agree.
        let compared = 1400;
        let best = (0..560)
            .filter(|shift| shift + compared <= sound.len())
            .map(|shift| snr(&sound[shift..shift + compared], &original[..compared]))
            .fold(f64::MIN, f64::max);
        assert!(best > 6.0, "{name}: {best} dB");
    }
}

#[test]
fn blocks_join_to_the_whole() {
    for name in ["vorbis.ogg", "speech_like_16k.flac", "aac.m4a"] {
        for method in [ResampleMethod::SoxrHq, ResampleMethod::Torchaudio] {
            let whole = decode(&fixture(name)).unwrap();
            let whole =
                aha_media::audio::resample(&whole.mono(), whole.rate, 22_050, method).unwrap();
            let mut reader = MonoReader::open(fixture(name), 22_050, method, &native()).unwrap();
            let mut joined = Vec::new();
            while let Some(block) = reader.next_block().unwrap() {
                assert!(block.len() < 20_000);
                joined.extend_from_slice(block);
            }
            assert_eq!(joined, whole, "{name}");
            assert_eq!(reader.samples() as usize, whole.len());
            assert_eq!(reader.next_block().unwrap(), None);
        }
    }
}

#[test]
fn files_are_read_like_bytes() {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/audio/speech_like_16k.flac");
    let from_file = decode_mono(path, 16_000, ResampleMethod::SoxrHq, &native()).unwrap();
    assert_eq!(
        from_file,
        decode(&fixture("speech_like_16k.flac")).unwrap().samples
    );
}

#[test]
fn channels_are_averaged_before_conversion() {
    let mut out = Vec::new();
    downmix(&[0.5, -0.25, 1.0, 0.0, 0.0, 0.75], 3, &mut out);
    assert_eq!(out, [1.25 / 3.0, 0.25]);
    let mono = signal(500, 1, 50);
    let stereo: Vec<f32> = mono.iter().flat_map(|&x| [x, x]).collect();
    let mut wav = Wav::pcm16(&stereo);
    wav.channels = 2;
    assert_eq!(decode(&wav.bytes()).unwrap().mono(), mono);
}

#[test]
fn peaks_above_one_are_scaled_and_quiet_sound_is_not() {
    let mut loud = [0.5, -2.0, f32::NAN, 1.0, f32::INFINITY];
    normalize_peak(&mut loud);
    assert_eq!(loud, [0.25, -1.0, 0.0, 0.5, 1.0]);
    let mut quiet = [0.5, -0.1];
    normalize_peak(&mut quiet);
    assert_eq!(quiet, [0.5, -0.1]);
}
