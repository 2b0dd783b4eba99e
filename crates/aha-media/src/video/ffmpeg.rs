//! An installed ffmpeg as a decoder: bytes go in by a temporary file, frames come out by a pipe.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{FrameSampling, Video, VideoFormat, finish, too_many_frames};
use crate::MediaError;
use crate::image::{Channels, Image, Limits};

/// How long both passes over a clip may take together.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that are moved at once.
const CHUNK: usize = 64 << 10;
/// Most frames that are picked by an argument of ffmpeg; systems limit the length of arguments.
const MAX_SELECTED: usize = 1024;
/// Bytes of ffmpeg's complaints that are kept for the log.
const MAX_STDERR: u64 = 8 << 10;

/// An ffmpeg program.
#[derive(Clone, Debug)]
pub struct Ffmpeg {
    program: PathBuf,
    timeout: Duration,
}

/// What the first pass learns without decoding anything.
struct Probe {
    frames: usize,
    fps: Option<f64>,
}

impl Ffmpeg {
    /// The `ffmpeg` on PATH, if there is one.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::find_in(&std::env::var_os("PATH")?)
    }

    /// The `ffmpeg` in the first folder of `path` (in the form of the PATH variable) that has one.
    #[must_use]
    pub fn find_in(path: &OsStr) -> Option<Self> {
        let name = format!("ffmpeg{}", std::env::consts::EXE_SUFFIX);
        std::env::split_paths(path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(&name))
            .find(|program| program.is_file())
            .map(Self::at)
    }

    /// The program at a path.
    #[must_use]
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// The same with another limit on the time that one clip may take (60 s by default).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn read(
        &self,
        bytes: &[u8],
        format: VideoFormat,
        sampling: &FrameSampling,
        limits: &Limits,
    ) -> Result<Video, MediaError> {
        let deadline = Instant::now() + self.timeout;
        let mut file = tempfile::NamedTempFile::new().map_err(|source| MediaError::Io {
            what: "making a temporary file for the video",
            source,
        })?;
        file.write_all(bytes).map_err(|source| MediaError::Io {
            what: "writing the video to a temporary file",
            source,
        })?;
        let clip = Clip {
            ffmpeg: self,
            path: file.path(),
            format,
            limits,
            deadline,
        };
        let probe = clip.probe()?;
        let indices = sampling.indices(probe.frames, probe.fps)?;
        let frames = clip.frames(&indices)?;
        finish(frames, indices, probe.frames, probe.fps)
    }
}

/// One clip being read.
struct Clip<'a> {
    ffmpeg: &'a Ffmpeg,
    path: &'a Path,
    format: VideoFormat,
    limits: &'a Limits,
    deadline: Instant,
}

impl Clip<'_> {
    /// Counts frames and time by copying packets to nowhere.
    fn probe(&self) -> Result<Probe, MediaError> {
        let mut running = self.start(&["-c", "copy", "-f", "framecrc", "-"])?;
        let mut frames = 0;
        let mut tick = None;
        let (mut first, mut end) = (i64::MAX, i64::MIN);
        let mut line = String::new();
        loop {
            line.clear();
            let read = (&mut running.output).take(4096).read_line(&mut line);
            if read.map_err(|error| self.failure(error))? == 0 {
                break;
            }
            if let Some(text) = line.strip_prefix("#tb 0:") {
                tick = parse_fraction(text);
            } else if let Some(text) = line.strip_prefix("#dimensions 0:") {
                if let Some((width, height)) = parse_size(text) {
                    self.limits.check_pixels(width, height)?;
                }
            } else if let Some((start, length)) = parse_packet(&line) {
                frames += 1;
                first = first.min(start);
                end = end.max(start.saturating_add(length));
                if frames > self.limits.max_frames {
                    return Err(too_many_frames(self.limits));
                }
            }
        }
        let complaints = running.finish(self)?;
        if frames == 0 {
            return Err(if complaints.contains("matches no streams") {
                MediaError::NoVideoTrack {
                    format: self.format.name(),
                }
            } else {
                self.malformed(complaints)
            });
        }
        let seconds = tick.map(|tick| end.saturating_sub(first) as f64 * tick);
        Ok(Probe {
            frames,
            fps: seconds
                .filter(|&seconds| seconds > 0.0)
                .map(|seconds| frames as f64 / seconds),
        })
    }

    /// Decodes the clip and takes the frames of `indices`, which ascend.
    fn frames(&self, indices: &[usize]) -> Result<Vec<Image>, MediaError> {
        let (frames, complaints) = self.try_frames(indices, ["-fps_mode", "passthrough"])?;
        if !frames.is_empty() {
            return Ok(frames);
        }
        // The option has its name since ffmpeg 5.1.
        if !complaints.contains("fps_mode") {
            return Err(self.malformed(complaints));
        }
        let (frames, complaints) = self.try_frames(indices, ["-vsync", "0"])?;
        if frames.is_empty() {
            return Err(self.malformed(complaints));
        }
        Ok(frames)
    }

    /// Decodes with an option that keeps ffmpeg from repeating frames where their times have gaps.
    /// With no frames come the complaints.
    fn try_frames(
        &self,
        indices: &[usize],
        no_repeats: [&str; 2],
    ) -> Result<(Vec<Image>, String), MediaError> {
        let mut distinct = indices.to_vec();
        distinct.dedup();
        let last = distinct.last().map_or(0, |last| last + 1);
        // A few frames are picked by ffmpeg; of many, all come and the others are passed over here.
        let (filter, coming) = if distinct.len() <= MAX_SELECTED {
            (format!("select='{}'", selection(&distinct)), distinct)
        } else {
            ("null".to_owned(), (0..last).collect())
        };
        let mut chosen = indices.iter().peekable();
        let [name, value] = no_repeats;
        let mut running = self.start(&[
            "-vf",
            &filter,
            name,
            value,
            "-c:v",
            "ppm",
            "-pix_fmt",
            "rgb24",
            "-f",
            "image2pipe",
            "-",
        ])?;
        let mut frames: Vec<Image> = Vec::with_capacity(indices.len());
        for index in &coming {
            let Some((width, height)) = self.frame_header(&mut running.output)? else {
                break;
            };
            let (width, height) = self.limits.check_pixels(width, height)?;
            if let Some(first) = frames.first() {
                if (first.width(), first.height()) != (width, height) {
                    return Err(MediaError::FrameSize {
                        index: *index,
                        width,
                        height,
                        first_width: first.width(),
                        first_height: first.height(),
                    });
                }
            } else {
                self.limits.check_video(indices.len(), width, height)?;
            }
            let mut samples = vec![0; width as usize * height as usize * 3];
            running
                .output
                .read_exact(&mut samples)
                .map_err(|error| self.failure(error))?;
            let frame = Image::new(width, height, Channels::Rgb, samples)?;
            while chosen.next_if_eq(&index).is_some() {
                frames.push(frame.clone());
            }
        }
        let complaints = if frames.is_empty() {
            running.finish(self)?
        } else {
            String::new()
        };
        Ok((frames, complaints))
    }

    /// The header of the next picture (`P6`, width, height, 255), or `None` at the end.
    fn frame_header(&self, output: &mut impl BufRead) -> Result<Option<(u64, u64)>, MediaError> {
        let mut words: Vec<String> = Vec::with_capacity(4);
        while words.len() < 4 {
            let mut line = String::new();
            let read = output.take(64).read_line(&mut line);
            if read.map_err(|error| self.failure(error))? == 0 {
                return if words.is_empty() {
                    Ok(None)
                } else {
                    Err(self.malformed("a picture ends in its header".to_owned()))
                };
            }
            words.extend(line.split_ascii_whitespace().map(str::to_owned));
        }
        match words.as_slice() {
            [magic, width, height, depth] if magic == "P6" && depth == "255" => {
                match (width.parse(), height.parse()) {
                    (Ok(width), Ok(height)) => Ok(Some((width, height))),
                    _ => Err(self.malformed("a picture has no size".to_owned())),
                }
            }
            _ => Err(self.malformed("a picture has an unknown header".to_owned())),
        }
    }

    /// Starts ffmpeg on the clip with the arguments of its output.
    fn start(&self, output: &[&str]) -> Result<Running, MediaError> {
        let mut command = Command::new(&self.ffmpeg.program);
        command
            .args(["-nostdin", "-hide_banner", "-loglevel", "error"])
            .args(["-threads", "2", "-max_pixels"])
            .arg(self.limits.max_pixels.to_string())
            .args(["-protocol_whitelist", "file,pipe"])
            .args(["-f", self.format.demuxer(), "-i"])
            .arg(self.path)
            // Without attached pictures, which are streams of video to ffmpeg.
            .args(["-map", "0:V:0", "-an", "-sn", "-dn"])
            .args(output)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let unable = |source| MediaError::FfmpegNotRunnable {
            program: self.ffmpeg.program.clone(),
            source,
        };
        let mut child = command.spawn().map_err(unable)?;
        let pipes = (child.stdout.take(), child.stderr.take());
        let (Some(mut stdout), Some(stderr)) = pipes else {
            return Err(unable(io::Error::other("it has no pipes")));
        };
        let (sender, receiver) = sync_channel(8);
        std::thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK];
                match stdout.read(&mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => chunk.truncate(read),
                }
                if sender.send(chunk).is_err() {
                    break;
                }
            }
        });
        let complaints = std::thread::spawn(move || read_complaints(stderr));
        let output = Output {
            receiver,
            deadline: self.deadline,
            chunk: Vec::new(),
            at: 0,
        };
        Ok(Running {
            child,
            output: BufReader::new(output),
            complaints: Some(complaints),
        })
    }

    fn failure(&self, error: io::Error) -> MediaError {
        if error.kind() == io::ErrorKind::TimedOut {
            return MediaError::VideoTimeout {
                limit: self.ffmpeg.timeout,
            };
        }
        MediaError::Malformed {
            format: self.format.name(),
            source: error.into(),
        }
    }

    fn malformed(&self, reason: String) -> MediaError {
        MediaError::Malformed {
            format: self.format.name(),
            source: reason.into(),
        }
    }
}

/// An expression of ffmpeg that is true for these frames. It is a balanced tree, because ffmpeg limits
/// the depth of an expression.
fn selection(indices: &[usize]) -> String {
    match indices {
        [] => "0".to_owned(),
        [index] => format!("eq(n,{index})"),
        _ => {
            let (left, right) = indices.split_at(indices.len() / 2);
            format!("({}+{})", selection(left), selection(right))
        }
    }
}

/// A process that ends with this value, whatever happens.
struct Running {
    child: Child,
    output: BufReader<Output>,
    complaints: Option<JoinHandle<String>>,
}

impl Running {
    /// Waits for the end of the output, and answers what ffmpeg complained about.
    fn finish(mut self, clip: &Clip<'_>) -> Result<String, MediaError> {
        io::copy(&mut self.output, &mut io::sink()).map_err(|error| clip.failure(error))?;
        let complaints = self.complaints.take().and_then(|thread| thread.join().ok());
        Ok(complaints.unwrap_or_default())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is no error worth telling.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The standard output of a process, with an end to patience.
struct Output {
    receiver: Receiver<Vec<u8>>,
    deadline: Instant,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            self.chunk = match self.receiver.recv_timeout(left) {
                Ok(chunk) => chunk,
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
            };
            self.at = 0;
        }
        let length = buffer.len().min(self.chunk.len() - self.at);
        buffer[..length].copy_from_slice(&self.chunk[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Reads all of the error output, so that ffmpeg never waits, and keeps the beginning.
fn read_complaints(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let read = (&mut stderr).take(MAX_STDERR).read_to_end(&mut kept);
    let rest = io::copy(&mut stderr, &mut io::sink());
    if let Err(error) = read.and(rest.map(|_| 0)) {
        tracing::debug!(%error, "the error output of ffmpeg could not be read");
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// `1/12800` as a number of seconds.
fn parse_fraction(text: &str) -> Option<f64> {
    let (above, below) = text.trim().split_once('/')?;
    let (above, below): (f64, f64) = (above.parse().ok()?, below.parse().ok()?);
    (above > 0.0 && below > 0.0).then(|| above / below)
}

/// `640x480`.
fn parse_size(text: &str) -> Option<(u64, u64)> {
    let (width, height) = text.trim().split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// Time and length of a packet from `stream, dts, pts, duration, size, checksum`.
fn parse_packet(line: &str) -> Option<(i64, i64)> {
    let mut fields = line.split(',').map(str::trim);
    if fields.next()? != "0" {
        return None;
    }
    let (_, start, length) = (fields.next()?, fields.next()?, fields.next()?);
    Some((start.parse().ok()?, length.parse().unwrap_or(0)))
}
