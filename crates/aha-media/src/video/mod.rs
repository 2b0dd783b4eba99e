//! Video: frames from animations, lists of images, and from containers by an installed ffmpeg.

mod container;
mod ffmpeg;
mod sampling;

pub use container::{VideoFormat, sniff};
pub use ffmpeg::Ffmpeg;
pub use sampling::{FrameRate, FrameSampling, Spacing};

use crate::MediaError;
use crate::image::{Image, Limits, decode_guarded, gif, webp_animation};

/// What is known about a clip, and which of its frames were taken.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoMetadata {
    /// Frames of the whole clip.
    pub total_frames: usize,
    /// Frames a second of the whole clip, where known.
    pub fps: Option<f64>,
    /// Width of every frame in pixels.
    pub width: u32,
    /// Height of every frame in pixels.
    pub height: u32,
    /// The frames taken, from zero; one index may come twice.
    pub frame_indices: Vec<usize>,
}

impl VideoMetadata {
    /// How long the clip is in seconds, where known.
    #[must_use]
    pub fn duration(&self) -> Option<f64> {
        self.fps.map(|fps| self.total_frames as f64 / fps)
    }

    /// When each frame taken is shown, in seconds; `fps` stands in where the clip has no rate.
    #[must_use]
    pub fn timestamps(&self, default_fps: f64) -> Vec<f64> {
        let fps = self.fps.unwrap_or(default_fps);
        let indices = self.frame_indices.iter();
        indices.map(|&index| index as f64 / fps).collect()
    }

    /// The middle between the first and the last time of each group of `size` frames, the last
    /// frame repeated until the groups are full: the times that Qwen3-VL writes into its prompt.
    #[must_use]
    pub fn group_timestamps(&self, size: usize, default_fps: f64) -> Vec<f64> {
        let times = self.timestamps(default_fps);
        let groups = times.chunks(size.max(1));
        groups
            .filter_map(|group| Some((group.first()? + group.last()?) / 2.0))
            .collect()
    }

    /// Frames a second among the frames taken; `default_fps` where the clip has no rate.
    #[must_use]
    pub fn sampled_fps(&self, default_fps: f64) -> f64 {
        match self.fps {
            Some(fps) if self.total_frames > 0 => {
                self.frame_indices.len() as f64 / self.total_frames as f64 * fps
            }
            _ => default_fps,
        }
    }
}

/// The frames taken from a clip, all RGB and of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Video {
    /// One image for each of [`VideoMetadata::frame_indices`].
    pub frames: Vec<Image>,
    /// Where they come from.
    pub metadata: VideoMetadata,
}

impl Video {
    /// A clip that came as single images, with the rate at which they were taken, if known. Alpha
    /// is dropped.
    ///
    /// # Errors
    /// [`MediaError::Empty`] without frames, [`MediaError::FrameSize`] when sizes differ,
    /// [`MediaError::TooManyFrames`] and [`MediaError::TooManyVideoPixels`],
    /// [`MediaError::InvalidSampling`] for a rate that is not positive.
    pub fn from_images(
        images: Vec<Image>,
        fps: Option<f64>,
        limits: &Limits,
    ) -> Result<Self, MediaError> {
        let Some(first) = images.first() else {
            return Err(MediaError::Empty { what: "video" });
        };
        let (width, height) = (first.width(), first.height());
        if images.len() > limits.max_frames {
            return Err(too_many_frames(limits));
        }
        limits.check_video(images.len(), width, height)?;
        sampling::check_rate(fps)?;
        for (index, image) in images.iter().enumerate() {
            if (image.width(), image.height()) != (width, height) {
                return Err(MediaError::FrameSize {
                    index,
                    width: image.width(),
                    height: image.height(),
                    first_width: width,
                    first_height: height,
                });
            }
        }
        let metadata = VideoMetadata {
            total_frames: images.len(),
            fps,
            width,
            height,
            frame_indices: (0..images.len()).collect(),
        };
        let frames = images.into_iter().map(Image::into_rgb_dropping_alpha);
        Ok(Self {
            frames: frames.collect(),
            metadata,
        })
    }

    /// Fewer of the frames, chosen as from the whole clip.
    ///
    /// # Errors
    /// As [`FrameSampling::indices`].
    pub fn sampled(&self, sampling: &FrameSampling) -> Result<Self, MediaError> {
        let chosen = sampling.indices(self.frames.len(), self.metadata.fps)?;
        let frames = chosen.iter().map(|&index| self.frames[index].clone());
        let metadata = VideoMetadata {
            frame_indices: chosen
                .iter()
                .map(|&index| self.metadata.frame_indices[index])
                .collect(),
            ..self.metadata.clone()
        };
        Ok(Self {
            frames: frames.collect(),
            metadata,
        })
    }
}

/// Reads the frames that `sampling` chooses. The container is taken from the bytes: GIF and
/// animated WebP are read here, MP4, MOV, WebM, MKV and AVI by `ffmpeg`.
///
/// # Errors
/// [`MediaError::FfmpegMissing`] for those without `ffmpeg`, [`MediaError::UnknownFormat`] and
/// [`MediaError::UnsupportedFormat`] for other bytes, the limits' errors before frames are kept,
/// [`MediaError::Malformed`], [`MediaError::NoVideoTrack`], [`MediaError::VideoTimeout`], and those
/// of [`FrameSampling::indices`].
pub fn read(
    bytes: &[u8],
    sampling: &FrameSampling,
    limits: &Limits,
    ffmpeg: Option<&Ffmpeg>,
) -> Result<Video, MediaError> {
    limits.check_video_bytes(bytes.len() as u64)?;
    let format = sniff(bytes)?;
    match format {
        VideoFormat::Gif => decode_guarded(format.name(), || read_gif(bytes, sampling, limits)),
        VideoFormat::WebP => decode_guarded(format.name(), || read_webp(bytes, sampling, limits)),
        _ => ffmpeg
            .ok_or(MediaError::FfmpegMissing {
                format: format.name(),
            })?
            .read(bytes, format, sampling, limits),
    }
}

fn read_gif(bytes: &[u8], sampling: &FrameSampling, limits: &Limits) -> Result<Video, MediaError> {
    let timing = gif::timing(bytes, limits)?;
    let fps = rate(timing.frames, timing.duration_ms);
    let mut animation = gif::Animation::open(bytes, limits)?;
    collect(timing.frames, fps, sampling, limits, || {
        animation.next_frame()
    })
}

fn read_webp(bytes: &[u8], sampling: &FrameSampling, limits: &Limits) -> Result<Video, MediaError> {
    let Some(mut animation) = webp_animation::Animation::open(bytes, limits)? else {
        let image = crate::image::decode(bytes, limits)?.upright();
        return Video::from_images(vec![image], None, limits);
    };
    let frames = animation.frame_count();
    let fps = rate(frames, animation.duration_ms());
    collect(frames, fps, sampling, limits, || animation.next_frame())
}

/// Frames a second of frames shown for a time; none where the file gives no time.
fn rate(frames: usize, duration_ms: u64) -> Option<f64> {
    (duration_ms > 0).then(|| frames as f64 * 1000.0 / duration_ms as f64)
}

/// Walks through a clip and keeps the frames chosen.
fn collect(
    total: usize,
    fps: Option<f64>,
    sampling: &FrameSampling,
    limits: &Limits,
    mut next: impl FnMut() -> Result<Option<Image>, MediaError>,
) -> Result<Video, MediaError> {
    let indices = sampling.indices(total, fps)?;
    let mut chosen = indices.iter().peekable();
    let mut kept = Vec::with_capacity(indices.len());
    for index in 0..total {
        if chosen.peek().is_none() {
            break;
        }
        let Some(frame) = next()? else { break };
        if index == 0 {
            limits.check_video(indices.len(), frame.width(), frame.height())?;
        }
        let frame = frame.into_rgb_dropping_alpha();
        while chosen.next_if_eq(&&index).is_some() {
            kept.push(frame.clone());
        }
    }
    finish(kept, indices, total, fps)
}

/// The clip of the frames kept. A container may promise a few frames more than it holds: the
/// indices are cut to what came, and nothing at all is an error.
fn finish(
    frames: Vec<Image>,
    mut indices: Vec<usize>,
    total: usize,
    fps: Option<f64>,
) -> Result<Video, MediaError> {
    let Some(first) = frames.first() else {
        return Err(MediaError::Empty { what: "video" });
    };
    if frames.len() < indices.len() {
        tracing::warn!(
            chosen = indices.len(),
            found = frames.len(),
            "the video ends before the last frame chosen"
        );
        indices.truncate(frames.len());
    }
    let metadata = VideoMetadata {
        total_frames: total,
        fps,
        width: first.width(),
        height: first.height(),
        frame_indices: indices,
    };
    Ok(Video { frames, metadata })
}

fn too_many_frames(limits: &Limits) -> MediaError {
    MediaError::TooManyFrames {
        what: "video",
        unit: "frames",
        limit: limits.max_frames,
    }
}
