//! `aha transcribe`: recordings to text and subtitles, jobs that go on, and hours of sound in little memory.

use super::support::{Home, Ran, fixture};
use serde_json::Value;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

const RATE: u32 = 16_000;

fn model() -> String {
    fixture("glm_asr_nano/small")
}

/// A WAV file of so many seconds, silent but for a tone of two seconds at each of `utterances`. What is silent takes no
/// place on disk.
fn recording(path: &Path, seconds: u32, utterances: &[u32]) {
    let bytes = seconds * RATE * 2;
    let mut file = File::create(path).unwrap();
    let mut header = b"RIFF".to_vec();
    header.extend((36 + bytes).to_le_bytes());
    header.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    header.extend(RATE.to_le_bytes());
    header.extend((RATE * 2).to_le_bytes());
    header.extend(b"\x02\0\x10\0data");
    header.extend(bytes.to_le_bytes());
    file.write_all(&header).unwrap();
    file.set_len(44 + u64::from(bytes)).unwrap();
    let tone: Vec<u8> = (0..2 * RATE)
        .map(|at| at as f32 / RATE as f32)
        .map(|time| (12_000.0 * (time * 2800.0).sin() * (time * 9.0).sin()) as i16)
        .flat_map(i16::to_le_bytes)
        .collect();
    for &second in utterances {
        let place = 44 + u64::from(second * RATE * 2);
        file.seek(SeekFrom::Start(place)).unwrap();
        file.write_all(&tone).unwrap();
    }
}

fn transcribe(home: &Home, args: &[&str]) -> Ran {
    let model = model();
    let start = ["transcribe", "-m", &model, "-n", "4", "--cut", "energy"];
    home.run(&[&start, args].concat())
}

fn read(home: &Home, name: &str) -> String {
    std::fs::read_to_string(home.path().join(name)).unwrap()
}

/// Start and end of each cue, held to the grammar of the format.
fn cues(file: &str, is_vtt: bool) -> Vec<(f64, f64)> {
    let mut blocks = file.split("\n\n").filter(|block| !block.is_empty());
    if is_vtt {
        assert_eq!(blocks.next(), Some("WEBVTT"));
    }
    let point = if is_vtt { '.' } else { ',' };
    let seconds = |time: &str| {
        let (whole, milliseconds) = time.split_once(point).unwrap();
        let mut fields = whole.split(':').map(|field| field.parse::<f64>().unwrap());
        let mut field = || fields.next().unwrap();
        let (hours, minutes, seconds) = (field(), field(), field());
        assert!(
            minutes < 60.0 && seconds < 60.0 && milliseconds.len() == 3 && fields.next().is_none()
        );
        hours * 3600.0 + minutes * 60.0 + seconds + milliseconds.parse::<f64>().unwrap() / 1000.0
    };
    let mut found: Vec<(f64, f64)> = Vec::new();
    for (index, block) in blocks.enumerate() {
        let mut lines = block.lines();
        if !is_vtt {
            assert_eq!(lines.next(), Some((index + 1).to_string().as_str()));
        }
        let (start, end) = lines.next().unwrap().split_once(" --> ").unwrap();
        let (start, end) = (seconds(start), seconds(end));
        assert!(start < end && found.last().is_none_or(|(_, before)| *before <= start));
        assert!(
            !lines.next().unwrap().is_empty() && lines.next().is_none(),
            "{block:?}"
        );
        found.push((start, end));
    }
    found
}

#[test]
fn one_recording_goes_to_the_terminal() {
    let home = Home::new();
    recording(&home.path().join("a.wav"), 6, &[1]);
    let text = transcribe(&home, &["a.wav"]).ok();
    assert!(
        text.ends_with('\n') && text.trim().chars().count() > 1,
        "{text:?}"
    );
    let json: Value = serde_json::from_str(&transcribe(&home, &["a.wav", "--json"]).ok()).unwrap();
    assert_eq!(json["text"].as_str().unwrap().trim(), text.trim());
    assert_eq!(json["duration"], 6.0);
    let segment = &json["segments"][0];
    assert!(
        (segment["start"].as_f64().unwrap() - 1.0).abs() < 0.2,
        "{json}"
    );
    let srt = transcribe(&home, &["a.wav", "--srt"]).ok();
    assert_eq!(cues(&srt, false).len(), 1);
    let silent = home.path().join("silent.wav");
    recording(&silent, 2, &[]);
    assert_eq!(transcribe(&home, &["silent.wav"]).ok(), "\n");
}

#[test]
fn a_folder_goes_on_where_it_was() {
    let home = Home::new();
    std::fs::create_dir_all(home.path().join("talks/day two")).unwrap();
    recording(&home.path().join("talks/one.wav"), 8, &[1, 5]);
    recording(&home.path().join("talks/day two/two.WAV"), 5, &[2]);
    std::fs::write(home.path().join("talks/notes.txt"), "no recording").unwrap();
    std::fs::write(home.path().join("talks/broken.mp3"), "no recording either").unwrap();
    let all = ["talks", "-o", "texts", "--srt", "--txt", "--vtt"];
    let ran = transcribe(&home, &all);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err.contains("broken.mp3") && ran.err.contains("2 of 3 done"),
        "{}",
        ran.err
    );
    assert_eq!(cues(&read(&home, "texts/one.srt"), false).len(), 2);
    assert_eq!(cues(&read(&home, "texts/one.vtt"), true).len(), 2);
    assert!(read(&home, "texts/day two/two.txt").trim().chars().count() > 1);
    // What is there is not done again, what is missing is.
    let kept = read(&home, "texts/one.srt");
    std::fs::remove_file(home.path().join("texts/one.srt")).unwrap();
    std::fs::remove_file(home.path().join("talks/broken.mp3")).unwrap();
    let ran = transcribe(&home, &all);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("1 known from before"), "{}", ran.err);
    assert_eq!(read(&home, "texts/one.srt"), kept);
}

#[test]
fn what_cannot_be_is_told_before_the_model_loads() {
    let home = Home::new();
    recording(&home.path().join("a.wav"), 2, &[0]);
    let told = transcribe(&home, &["a.wav", "--srt", "--txt"]).failed(1);
    assert!(told.contains("-o DIR"), "{told}");
    let told = transcribe(&home, &["nowhere.wav"]).failed(1);
    assert!(told.contains("nowhere.wav"), "{told}");
    let told = transcribe(&home, &["a.wav", "--context", "no.txt"]).failed(1);
    assert!(told.contains("no.txt"), "{told}");
    let told = transcribe(&home, &["a.wav", "--hotword", "Ada"]).failed(1);
    assert!(told.contains("hotwords"), "{told}");
    let chat = fixture("qwen3/sharded");
    let told = home.run(&["transcribe", "-m", &chat, "a.wav"]).failed(1);
    assert!(told.contains("transcribe"), "{told}");
}

/// The most memory that the process had, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

#[test]
#[cfg(target_os = "linux")]
fn three_hours_take_little_memory_and_give_valid_subtitles() {
    use std::process::Stdio;
    let home = Home::new();
    let utterances: Vec<u32> = (0..60).map(|index| 30 + index * 180).collect();
    recording(&home.path().join("hours.wav"), 3 * 3600, &utterances);
    let model = model();
    let args = [
        "transcribe",
        "hours.wav",
        "-m",
        &model,
        "-n",
        "4",
        "--cut",
        "energy",
        "--srt",
        "--vtt",
        "-o",
        "out",
        "--cache-tokens",
        "8192",
    ];
    let mut command = home.command(&args);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let ran = Ran::ended(child);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(peak > 0 && peak < 400 << 20, "{} MiB", peak >> 20);
    let srt = cues(&read(&home, "out/hours.srt"), false);
    assert_eq!(srt.len(), utterances.len());
    for ((start, end), second) in srt.iter().zip(&utterances) {
        let wanted = f64::from(*second);
        assert!(
            (start - wanted).abs() < 0.3 && (end - wanted - 2.0).abs() < 0.3,
            "{start} {end}"
        );
    }
    assert_eq!(cues(&read(&home, "out/hours.vtt"), true), srt);
}
