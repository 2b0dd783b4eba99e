//! The way out for formats without a decoder here: an installed ffmpeg program, run as a child
//! process that is told to decode the first audio track and nothing else.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::error::{AudioError, Result};
use super::container::Shape;
use super::limits::AudioLimits;
use super::source::AudioSource;

/// Whether and how ffmpeg may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FfmpegOptions {
    /// Off: formats that need it are refused.
    pub enabled: bool,
    /// The program; `ffmpeg` is looked for on the PATH.
    pub program: PathBuf,
    /// How long it may go without giving any sound.
    pub stall_timeout: Duration,
}

impl Default for FfmpegOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            program: "ffmpeg".into(),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// Demuxers that ffmpeg may use: media files. Playlists, scripts and devices are not among them,
/// because they make it open other files and addresses.
const DEMUXERS: &str = "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,\
                        matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,\
                        ogg,tta,w64,wav,wv";
const BLOCK_BYTES: usize = 1 << 16;

/// A running decoder process.
pub(super) struct Ffmpeg {
    child: Child,
    blocks: Option<Receiver<std::io::Result<Vec<u8>>>>,
    workers: Vec<JoinHandle<()>>,
    errors: Option<JoinHandle<String>>,
    format: String,
    options: FfmpegOptions,
    shape: Shape,
    /// Bytes of a sample frame that was split between two blocks.
    rest: Vec<u8>,
}

impl Ffmpeg {
    /// Starts the program on a source and reads the header of what it sends.
    pub(super) fn start(
        source: &AudioSource,
        format: &str,
        options: &FfmpegOptions,
        limits: &AudioLimits,
    ) -> Result<Self> {
        let missing = |detail: String| AudioError::NeedsFfmpeg {
            format: format.into(),
            detail,
        };
        if !options.enabled {
            return Err(missing(" because its use is switched off".into()));
        }
        let mut command = Command::new(&options.program);
        command.args(["-nostdin", "-hide_banner", "-v", "error"]);
        command.args([
            "-protocol_whitelist",
            "file,pipe,cache",
            "-format_whitelist",
            DEMUXERS,
        ]);
        match source {
            AudioSource::Path(path) => {
                // The prefix keeps a name with a colon or a leading dash from meaning anything else.
                let mut input = std::ffi::OsString::from("file:");
                input.push(path);
                command.arg("-i").arg(input).stdin(Stdio::null());
            }
            AudioSource::Bytes(_) => {
                // The cache makes the pipe seekable, which MP4 with its index at the end needs.
                command.args(["-i", "cache:pipe:0"]).stdin(Stdio::piped());
            }
        }
        command.args([
            "-map",
            "0:a:0",
            "-vn",
            "-sn",
            "-dn",
            "-c:a",
            "pcm_f32le",
            "-f",
            "wav",
        ]);
        command
            .args(["-bitexact", "pipe:1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing(format!(" as {}", options.program.display())),
            _ => AudioError::Io {
                what: "starting ffmpeg".into(),
                source: error,
            },
        })?;
        let mut workers = Vec::new();
        if let (AudioSource::Bytes(bytes), Some(mut stdin)) = (source, child.stdin.take()) {
            let bytes = std::sync::Arc::clone(bytes);
            // A decoder that has seen enough closes the pipe: that is not this thread's to report.
            workers.push(std::thread::spawn(move || {
                let _ = stdin.write_all(&bytes);
            }));
        }
        let errors = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stderr.take(64 << 10).read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        let (sender, blocks) = sync_channel(4);
        if let Some(mut stdout) = child.stdout.take() {
            workers.push(std::thread::spawn(move || {
                loop {
                    let mut block = vec![0; BLOCK_BYTES];
                    let message = match stdout.read(&mut block) {
                        Ok(0) => return,
                        Ok(read) => {
                            block.truncate(read);
                            Ok(block)
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                        Err(error) => Err(error),
                    };
                    let failed = message.is_err();
                    if sender.send(message).is_err() || failed {
                        return;
                    }
                }
            }));
        }
        let mut running = Self {
            child,
            blocks: Some(blocks),
            workers,
            errors,
            format: format.into(),
            options: options.clone(),
            shape: Shape {
                rate: 0,
                channels: 0,
            },
            rest: Vec::new(),
        };
        running.shape = running.read_header()?;
        limits.check_stream(running.shape.rate, running.shape.channels)?;
        Ok(running)
    }

    /// The next samples, interleaved; `None` at the end.
    pub(super) fn next(&mut self, out: &mut Vec<f32>) -> Result<Option<Shape>> {
        out.clear();
        let frame = 4 * self.shape.channels;
        while out.is_empty() {
            if self.rest.len() < frame {
                match self.receive()? {
                    Some(block) => self.rest.extend_from_slice(&block),
                    None => {
                        self.check_exit()?;
                        return Ok(None);
                    }
                }
            }
            let whole = self.rest.len() / frame * frame;
            out.extend(
                self.rest[..whole]
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            );
            self.rest.drain(..whole);
        }
        Ok(Some(self.shape))
    }

    fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(blocks) = &self.blocks else {
            return Ok(None);
        };
        match blocks.recv_timeout(self.options.stall_timeout) {
            Ok(Ok(block)) => Ok(Some(block)),
            Ok(Err(source)) => Err(AudioError::Io {
                what: "reading from ffmpeg".into(),
                source,
            }),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(AudioError::FfmpegTimedOut {
                format: self.format.clone(),
                waited: self.options.stall_timeout,
            }),
        }
    }

    /// Reads up to the samples of a WAV header, whose sizes mean nothing in a pipe.
    fn read_header(&mut self) -> Result<Shape> {
        let mut shape = None;
        let mut at = 12;
        loop {
            while self.rest.len() < at + 8 {
                self.more_header()?;
            }
            let id = [
                self.rest[at],
                self.rest[at + 1],
                self.rest[at + 2],
                self.rest[at + 3],
            ];
            let size = u32::from_le_bytes([
                self.rest[at + 4],
                self.rest[at + 5],
                self.rest[at + 6],
                self.rest[at + 7],
            ]) as usize;
            at += 8;
            if &id == b"data" {
                self.rest.drain(..at);
                return shape.ok_or_else(|| self.failed("it sent no format"));
            }
            // No chunk that ffmpeg writes before the samples is larger than this.
            if size > BLOCK_BYTES {
                return Err(self.failed("it sent an unusual header"));
            }
            while self.rest.len() < at + size {
                self.more_header()?;
            }
            if &id == b"fmt " && size >= 16 {
                let fmt = &self.rest[at..at + size];
                let channels = usize::from(u16::from_le_bytes([fmt[2], fmt[3]]));
                let rate = u32::from_le_bytes([fmt[4], fmt[5], fmt[6], fmt[7]]);
                if channels == 0 || rate == 0 {
                    return Err(self.failed("it sent no channels"));
                }
                shape = Some(Shape { rate, channels });
            }
            at += size + size % 2;
        }
    }

    fn more_header(&mut self) -> Result<()> {
        match self.receive()? {
            Some(block) => {
                self.rest.extend_from_slice(&block);
                Ok(())
            }
            None => {
                self.check_exit()?;
                Err(self.failed("it sent no sound"))
            }
        }
    }

    /// After the last byte: did it end well? Its own words go to the log, not to the caller.
    fn check_exit(&mut self) -> Result<()> {
        self.blocks = None;
        let status = self
            .child
            .wait()
            .map_err(AudioError::io("waiting for ffmpeg"))?;
        let said = self
            .errors
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        if !said.trim().is_empty() {
            tracing::warn!(format = self.format, said = said.trim(), "ffmpeg");
        }
        if status.success() {
            return Ok(());
        }
        if said.contains("matches no streams") {
            return Err(AudioError::NoAudio {
                format: "media",
                reason: "it has no audio track",
            });
        }
        Err(self.failed("it ended with an error; its words are in the log"))
    }

    fn failed(&self, reason: &str) -> AudioError {
        AudioError::Ffmpeg {
            format: self.format.clone(),
            reason: reason.into(),
        }
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        // Both are answers to "has it ended already", which it may have.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.blocks = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}
