//! Clips: which frames are taken, from animations, lists of images, and through ffmpeg.

use std::time::Duration;

use aha_media::MediaError;
use aha_media::image::{Channels, Limits, decode};
use aha_media::video::{Ffmpeg, FrameRate, FrameSampling, Spacing, Video, read};
use serde_json::Value;

use crate::support::{bytes, hash, hash_words, number, pattern, records};

#[test]
fn frames_are_chosen_like_the_references() {
    let mut compared = 0;
    for record in records("sampling.json") {
        let total = number(&record["total"]) as usize;
        let fps = record["fps"].as_f64();
        let rate = match (record["rate"].as_f64(), record["count"].as_u64()) {
            (Some(rate), _) => FrameRate::PerSecond(rate),
            (None, count) => FrameRate::Count(count.unwrap() as usize),
        };
        for (key, multiple_of, spacing) in [
            ("qwen3_vl", 1, Spacing::FirstToLast),
            ("qwen2_vl", 2, Spacing::Steps),
        ] {
            let expected = &record[key];
            if expected.is_null() {
                continue;
            }
            let sampling = FrameSampling {
                rate,
                multiple_of,
                spacing,
                ..FrameSampling::QWEN3_VL
            };
            let chosen = sampling.indices(total, fps).unwrap();
            if expected.is_array() {
                assert_eq!(&Value::from(chosen), expected, "{key} of {record}");
            } else {
                assert_eq!(
                    chosen.len(),
                    number(&expected["len"]) as usize,
                    "{key} of {record}"
                );
                let own = hash_words(chosen.iter().map(|&index| index as u32));
                assert_eq!(own, expected["hash"], "{key} of {record}");
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn senseless_samplings_are_errors() {
    let sampling = FrameSampling::QWEN3_VL;
    assert!(matches!(
        sampling.indices(0, None).unwrap_err(),
        MediaError::Empty { .. }
    ));
    for rate in [
        FrameRate::PerSecond(0.0),
        FrameRate::PerSecond(f64::NAN),
        FrameRate::Count(0),
        FrameRate::Count(usize::MAX),
    ] {
        let error = FrameSampling { rate, ..sampling }
            .indices(10, None)
            .unwrap_err();
        assert!(
            matches!(error, MediaError::InvalidSampling { .. }),
            "{rate:?}: {error:?}"
        );
    }
    assert!(sampling.indices(10, Some(-1.0)).is_err());
    let huge = FrameRate::PerSecond(1e300);
    let chosen = FrameSampling {
        rate: huge,
        ..sampling
    }
    .indices(100_000, Some(1.0));
    assert_eq!(chosen.unwrap().len(), 768);
    let even = FrameSampling::QWEN2_5_VL;
    assert_eq!(even.indices(1, Some(30.0)).unwrap(), [0]);
    assert_eq!(even.indices(7, Some(2.0)).unwrap().len(), 6);
}

#[test]
fn animations_are_drawn_like_in_pillow() {
    for record in records("animations.json") {
        let name = record["file"].as_str().unwrap();
        if name.ends_with(".tif") {
            continue;
        }
        let bytes = bytes(&format!("media/{name}"));
        let video = read(&bytes, &FrameSampling::ALL, &Limits::default(), None).unwrap();
        let frames: Vec<_> = video
            .frames
            .iter()
            .map(|frame| hash(frame.samples()))
            .collect();
        assert_eq!(Value::from(frames), record["frames"], "{name}");
        let seconds = record["duration_ms"].as_f64().unwrap() / 1000.0;
        let own = video.metadata.duration().unwrap();
        assert!((own - seconds).abs() < 1e-9, "{name}: {own} s");
        assert_eq!(video.metadata.width, number(&record["width"]), "{name}");

        let first = decode(&bytes, &Limits::default()).unwrap().upright();
        assert_eq!(first.into_rgb_dropping_alpha(), video.frames[0], "{name}");

        let two = FrameSampling {
            rate: FrameRate::Count(2),
            ..FrameSampling::QWEN3_VL
        };
        let ends = read(&bytes, &two, &Limits::default(), None).unwrap();
        assert_eq!(ends.frames.first(), video.frames.first(), "{name}");
        assert_eq!(ends.frames.last(), video.frames.last(), "{name}");
        assert_eq!(ends.metadata.total_frames, video.frames.len(), "{name}");
    }
}

#[test]
fn limits_hold_for_clips() {
    let clip = bytes("media/clip.gif");
    let few = Limits {
        max_frames: 3,
        ..Limits::default()
    };
    let error = read(&clip, &FrameSampling::ALL, &few, None).unwrap_err();
    assert!(matches!(error, MediaError::TooManyFrames { limit: 3, .. }));
    let little = Limits {
        max_video_pixels: 13 * 9 * 4 - 1,
        ..Limits::default()
    };
    for name in ["media/clip.gif", "media/clip.webp"] {
        let little = Limits {
            max_video_pixels: 13 * 9 * 3 - 1,
            ..little
        };
        let error = read(&bytes(name), &FrameSampling::ALL, &little, None).unwrap_err();
        assert!(
            matches!(error, MediaError::TooManyVideoPixels { .. }),
            "{name}: {error:?}"
        );
    }
    let short = Limits {
        max_video_bytes: 10,
        ..Limits::default()
    };
    let error = read(&clip, &FrameSampling::ALL, &short, None).unwrap_err();
    assert!(matches!(error, MediaError::TooManyBytes { .. }));
}

#[test]
fn a_list_of_images_is_a_clip() {
    let image = |mask| pattern(6, 4, Channels::Rgba, mask);
    let limits = Limits::default();
    let video = Video::from_images((0..5).map(image).collect(), Some(2.0), &limits).unwrap();
    assert_eq!(video.metadata.total_frames, 5);
    assert_eq!(video.frames[1], image(1).into_rgb_dropping_alpha());
    assert_eq!(video.metadata.timestamps(24.0), [0.0, 0.5, 1.0, 1.5, 2.0]);
    assert_eq!(video.metadata.group_timestamps(2, 24.0), [0.25, 1.25, 2.0]);
    assert!((video.metadata.sampled_fps(24.0) - 2.0).abs() < 1e-12);

    let three = FrameSampling {
        rate: FrameRate::Count(3),
        ..FrameSampling::QWEN3_VL
    };
    let fewer = video.sampled(&three).unwrap();
    assert_eq!(fewer.metadata.frame_indices, [0, 2, 4]);
    assert_eq!(fewer.frames[1], video.frames[2]);
    assert!((fewer.metadata.sampled_fps(24.0) - 1.2).abs() < 1e-12);

    assert!(Video::from_images(Vec::new(), None, &limits).is_err());
    let uneven = vec![image(0), pattern(5, 4, Channels::Rgb, 0)];
    let error = Video::from_images(uneven, None, &limits).unwrap_err();
    assert!(matches!(error, MediaError::FrameSize { index: 1, .. }));
    assert!(Video::from_images(vec![image(0)], Some(0.0), &limits).is_err());
}

#[test]
fn other_files_are_named_and_ffmpeg_is_asked_for() {
    let limits = Limits::default();
    let mp4 = b"\0\0\0\x18ftypisom\0\0\0\0rest";
    let error = read(mp4, &FrameSampling::ALL, &limits, None).unwrap_err();
    assert!(matches!(error, MediaError::FfmpegMissing { format: "MP4" }));
    assert!(error.to_string().contains("install ffmpeg"), "{error}");
    let error = read(&bytes("media/rgb.png"), &FrameSampling::ALL, &limits, None).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("PNG is not supported as a video"),
        "{error}"
    );
    let error = read(
        b"#EXTM3U\nfile:///etc/passwd",
        &FrameSampling::ALL,
        &limits,
        None,
    );
    assert!(matches!(
        error.unwrap_err(),
        MediaError::UnknownFormat { .. }
    ));
}

#[test]
fn a_program_is_found_only_in_absolute_folders() {
    assert!(Ffmpeg::find_in("relative:.".as_ref()).is_none());
    let folder = std::env::temp_dir();
    let path = std::env::join_paths([folder.join("no such folder")]).unwrap();
    assert!(Ffmpeg::find_in(&path).is_none());
    let error = Ffmpeg::at(folder.join("no such program"));
    let error = read(
        b"\0\0\0\x18ftypisom",
        &FrameSampling::ALL,
        &Limits::default(),
        Some(&error),
    );
    assert!(matches!(
        error.unwrap_err(),
        MediaError::FfmpegNotRunnable { .. }
    ));
}

/// A program that answers like ffmpeg would.
#[cfg(unix)]
mod imitation {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    const MP4: &[u8] = b"\0\0\0\x18ftypisom\0\0\0\0";

    struct Imitation {
        folder: tempfile::TempDir,
    }

    impl Imitation {
        fn new(probe: &str, frames: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let script = format!(
                "#!/bin/sh\necho \"$@\" >> {}/calls\ncase \"$*\" in\n*framecrc*) {probe} ;;\n*) \
                 {frames} ;;\nesac\n",
                folder.path().display()
            );
            let program = folder.path().join("ffmpeg");
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
            Self { folder }
        }

        fn program(&self) -> Ffmpeg {
            Ffmpeg::find_in(self.folder.path().as_os_str()).unwrap()
        }

        fn calls(&self) -> String {
            std::fs::read_to_string(self.folder.path().join("calls")).unwrap()
        }
    }

    /// Ten frames at 5 a second.
    const PROBE: &str = "printf '#tb 0: 1/10\\n#dimensions 0: 2x1\\n'; \
                         for n in 0 1 2 3 4 5 6 7 8 9; do \
                         echo \"0, $((n * 2)), $((n * 2)), 2, 100, 0x1234\"; done";
    const FRAMES: &str = "printf 'P6\\n2 1\\n255\\nabcdefP6\\n2 1\\n255\\nghijkl'";

    fn sampling(count: usize) -> FrameSampling {
        FrameSampling {
            rate: FrameRate::Count(count),
            ..FrameSampling::QWEN3_VL
        }
    }

    #[test]
    fn frames_come_through_the_pipe() {
        let imitation = Imitation::new(PROBE, FRAMES);
        let limits = Limits::default();
        let video = read(MP4, &sampling(2), &limits, Some(&imitation.program())).unwrap();
        assert_eq!(video.metadata.total_frames, 10);
        assert_eq!(video.metadata.fps, Some(5.0));
        assert_eq!(video.metadata.frame_indices, [0, 9]);
        assert_eq!(video.frames[0].samples(), b"abcdef");
        assert_eq!(video.frames[1].samples(), b"ghijkl");
        let calls = imitation.calls();
        assert!(calls.contains("select='(eq(n,0)+eq(n,9))'"), "{calls}");
        assert!(calls.contains("-f mov -i"), "the reader is forced: {calls}");
    }

    #[test]
    fn an_early_end_shortens_the_clip() {
        let imitation = Imitation::new(PROBE, FRAMES);
        let limits = Limits::default();
        let video = read(MP4, &sampling(3), &limits, Some(&imitation.program())).unwrap();
        assert_eq!(video.metadata.frame_indices.len(), 2);
    }

    #[test]
    fn limits_and_failures_are_errors() {
        let limits = Limits::default();
        let failing = |probe: &str, frames: &str, limits: &Limits| {
            let imitation = Imitation::new(probe, frames);
            let program = imitation.program();
            read(MP4, &sampling(2), limits, Some(&program)).unwrap_err()
        };
        let few = Limits {
            max_frames: 9,
            ..limits
        };
        let error = failing(PROBE, FRAMES, &few);
        assert!(
            matches!(error, MediaError::TooManyFrames { .. }),
            "{error:?}"
        );
        let small = Limits {
            max_pixels: 1,
            ..limits
        };
        let error = failing(PROBE, FRAMES, &small);
        assert!(
            matches!(error, MediaError::TooManyPixels { .. }),
            "{error:?}"
        );
        let little = Limits {
            max_video_pixels: 3,
            ..limits
        };
        let error = failing(PROBE, FRAMES, &little);
        assert!(
            matches!(error, MediaError::TooManyVideoPixels { .. }),
            "{error:?}"
        );
        let silent = "echo 'Stream map 0:V:0 matches no streams.' >&2; exit 1";
        let error = failing(silent, FRAMES, &limits);
        assert!(
            matches!(error, MediaError::NoVideoTrack { .. }),
            "{error:?}"
        );
        let error = failing("echo /secret/path: broken >&2; exit 1", FRAMES, &limits);
        assert!(matches!(error, MediaError::Malformed { .. }), "{error:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
        let old = "case \"$*\" in *fps_mode*) echo \"Unrecognized option 'fps_mode'.\" >&2; exit 1;; \
                   *) printf 'P6\\n2 1\\n255\\nabcdefP6\\n2 1\\n255\\nghijkl';; esac";
        let imitation = Imitation::new(PROBE, old);
        let video = read(MP4, &sampling(2), &limits, Some(&imitation.program())).unwrap();
        assert_eq!(video.frames.len(), 2, "an older ffmpeg");
        for frames in [
            "exit 1",
            "printf 'P6\\n2 1\\n255\\nabc'",
            "printf 'P5\\n2 1\\n255\\n'",
        ] {
            let error = failing(PROBE, frames, &limits);
            assert!(
                matches!(error, MediaError::Malformed { .. }),
                "{frames}: {error:?}"
            );
        }
        let error = failing(PROBE, "printf 'P6\\n90000 90000\\n255\\n'", &limits);
        assert!(
            matches!(error, MediaError::TooManyPixels { .. }),
            "{error:?}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let imitation = Imitation::new("exec sleep 60", FRAMES);
        let program = imitation.program().with_timeout(Duration::from_millis(200));
        let start = Instant::now();
        let error = read(MP4, &sampling(2), &Limits::default(), Some(&program)).unwrap_err();
        assert!(
            matches!(error, MediaError::VideoTimeout { .. }),
            "{error:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

/// With a real ffmpeg, if this machine has one: it makes a clip, and reads it through this crate.
#[test]
#[allow(clippy::print_stderr, reason = "a skipped test says why")]
fn a_real_ffmpeg_reads_what_it_wrote() {
    let Some(ffmpeg) = Ffmpeg::find() else {
        eprintln!("skipped: there is no ffmpeg on PATH");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    // More than ffmpeg takes in one sum, and more than go into one argument.
    for (name, seconds, taken) in [("many.mp4", "40", 768), ("most.mp4", "60", 1200)] {
        let clip = folder.path().join(name);
        let source = format!("testsrc=duration={seconds}:size=16x16:rate=30");
        let made = std::process::Command::new(ffmpeg.program())
            .args([
                "-nostdin",
                "-loglevel",
                "error",
                "-f",
                "lavfi",
                "-i",
                &source,
            ])
            .args(["-c:v", "mpeg4"])
            .arg(&clip)
            .status()
            .unwrap();
        assert!(made.success(), "{name}");
        let sampling = FrameSampling {
            rate: FrameRate::Count(taken),
            max_frames: taken,
            ..FrameSampling::QWEN3_VL
        };
        let bytes = std::fs::read(&clip).unwrap();
        let video = read(&bytes, &sampling, &limits, Some(&ffmpeg)).unwrap();
        assert_eq!(video.frames.len(), taken, "{name}");
        let last = FrameSampling {
            rate: FrameRate::Count(2),
            ..sampling
        };
        let ends = read(&bytes, &last, &limits, Some(&ffmpeg)).unwrap();
        assert!(ends.frames.last() == video.frames.last(), "{name}");
        assert!(ends.frames.first() == video.frames.first(), "{name}");
    }
    for (name, codec) in [
        ("clip.mp4", "mpeg4"),
        ("clip.mkv", "mpeg4"),
        ("clip.avi", "mjpeg"),
    ] {
        let clip = folder.path().join(name);
        let made = std::process::Command::new(ffmpeg.program())
            .args(["-nostdin", "-loglevel", "error", "-f", "lavfi"])
            .args(["-i", "testsrc=duration=3:size=64x48:rate=10", "-c:v", codec])
            .arg(&clip)
            .status()
            .unwrap();
        assert!(made.success(), "{name}");
        let bytes = std::fs::read(&clip).unwrap();
        let all = read(&bytes, &FrameSampling::ALL, &limits, Some(&ffmpeg)).unwrap();
        assert_eq!(all.frames.len(), 30, "{name}");
        let fps = all.metadata.fps.unwrap();
        assert!((fps - 10.0).abs() < 0.01, "{name}: {fps}");
        let some = read(&bytes, &FrameSampling::QWEN3_VL, &limits, Some(&ffmpeg)).unwrap();
        let chosen = &some.metadata.frame_indices;
        assert_eq!(chosen, &[0, 6, 12, 17, 23, 29], "{name}");
        for (frame, &index) in some.frames.iter().zip(chosen) {
            let is_same = frame == &all.frames[index];
            assert!(is_same, "{name}: frame {index} is another");
        }
    }
}
