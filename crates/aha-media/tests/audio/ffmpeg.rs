//! The way through an ffmpeg program, which here is a script that plays its part.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aha_media::audio::{AudioError, AudioLimits, DecodeOptions, FfmpegOptions};

use crate::support::{Wav, decode, decode_with, fixture, signal};

struct Fake {
    folder: tempfile::TempDir,
}

impl Fake {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ffmpeg");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("ffmpeg")
    }

    fn options(&self) -> DecodeOptions {
        DecodeOptions {
            ffmpeg: FfmpegOptions {
                enabled: true,
                program: self.program(),
                stall_timeout: Duration::from_secs(20),
            },
            ..Default::default()
        }
    }
}

/// What ffmpeg sends down a pipe: sizes unknown, a chunk before the samples.
fn piped_wav(samples: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut wav = Wav::new(3, 32, data);
    wav.channels = 2;
    wav.rate = 44_100;
    wav.extensible = true;
    let mut bytes = wav.bytes();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let data = bytes.windows(4).position(|four| four == b"data").unwrap();
    bytes[data + 4..data + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes.splice(data..data, *b"LIST\x04\x00\x00\x00INFO");
    bytes
}

#[test]
fn foreign_formats_go_through_the_program() {
    let samples = signal(40_000, 3, 70);
    let fake = Fake::new("cat > /dev/null; cat \"$(dirname \"$0\")/out.wav\"");
    std::fs::write(fake.folder.path().join("out.wav"), piped_wav(&samples)).unwrap();
    let decoded = decode_with(&fixture("wma.wma"), &fake.options()).unwrap();
    assert_eq!((decoded.rate, decoded.channels), (44_100, 2));
    assert_eq!(decoded.samples, samples);
    let mut options = fake.options();
    options.limits = AudioLimits {
        max_seconds: 0.2,
        ..Default::default()
    };
    let error = decode_with(&fixture("wma.wma"), &options).err();
    assert!(
        matches!(error, Some(AudioError::TooLong { .. })),
        "{error:?}"
    );
}

#[test]
fn a_missing_program_is_named() {
    let error = decode(&fixture("wma.wma")).err().unwrap();
    assert!(matches!(error, AudioError::NeedsFfmpeg { .. }));
    assert!(error.to_string().contains("switched off"), "{error}");
    let mut options = Fake::new("").options();
    options.ffmpeg.program = "no-such-program-here".into();
    let error = decode_with(&fixture("wma.wma"), &options).err().unwrap();
    let words = error.to_string();
    assert!(
        words.contains("install ffmpeg") && words.contains("no-such-program-here"),
        "{words}"
    );
}

#[test]
fn failures_are_told_without_its_words() {
    let fake = Fake::new("cat > /dev/null; echo '0x7ffd1234 secret' >&2; exit 1");
    let error = decode_with(&fixture("wma.wma"), &fake.options())
        .err()
        .unwrap();
    assert!(matches!(error, AudioError::Ffmpeg { .. }), "{error:?}");
    assert!(!error.to_string().contains("secret"));
    let fake =
        Fake::new("cat > /dev/null; echo \"Stream map '0:a:0' matches no streams.\" >&2; exit 1");
    let error = decode_with(&fixture("wma.wma"), &fake.options()).err();
    assert!(
        matches!(error, Some(AudioError::NoAudio { .. })),
        "{error:?}"
    );
}

#[test]
fn a_program_that_hangs_is_ended() {
    let fake = Fake::new("echo $$ > \"$(dirname \"$0\")/pid\"; exec sleep 600");
    let mut options = fake.options();
    options.ffmpeg.stall_timeout = Duration::from_millis(300);
    let start = Instant::now();
    let error = decode_with(&fixture("wma.wma"), &options).err();
    assert!(
        matches!(error, Some(AudioError::FfmpegTimedOut { .. })),
        "{error:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    let pid = std::fs::read_to_string(fake.folder.path().join("pid")).unwrap();
    assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists());
}
