//! From the bytes of files to [`Media`].

use crate::media::{Media, MediaContent, MediaKind, MediaProcessor, PixelLimits};
use crate::transcription::AudioInput;
use aha_media::MediaError;
use aha_media::audio::{DecodeOptions, MonoReader, is_audio};
use aha_media::image::{self, Limits};
use aha_media::video::{self, Ffmpeg, FrameRate, FrameSampling, Video};
use std::hash::{Hash, Hasher};
use std::path::Path;

/// Frames a second of a list of pictures that comes without a rate: that at which clips are sampled.
const DEFAULT_LIST_FPS: f64 = 2.0;

/// What a request asks of the preparation of a picture or clip; what is `None` is the model's own.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MediaWishes {
    /// The size of pictures and frames.
    pub pixels: PixelLimits,
    /// Frames a second: those to take of a clip, or those of a list of pictures.
    pub fps: Option<f64>,
    /// Frames to take of a clip.
    pub num_frames: Option<usize>,
    /// Most frames to take at `fps`.
    pub max_frames: Option<usize>,
    /// Dots an inch of a document's pages.
    pub dpi: Option<f32>,
}

impl MediaWishes {
    /// A model's way of choosing frames, with these wishes over it.
    pub fn sampling(&self, own: FrameSampling) -> FrameSampling {
        let rate = match (self.num_frames, self.fps) {
            (Some(count), _) => FrameRate::Count(count),
            (None, Some(fps)) => FrameRate::PerSecond(fps),
            (None, None) => own.rate,
        };
        let max_frames = self.max_frames.unwrap_or(own.max_frames);
        FrameSampling {
            rate,
            max_frames,
            min_frames: own.min_frames.min(max_frames),
            ..own
        }
    }
}

/// Decodes files within limits. What a file is, its bytes say: names and declared types are not looked at.
#[derive(Debug, Clone)]
pub struct MediaReader {
    /// How much one file may cost.
    pub limits: Limits,
    /// What reads video containers.
    pub ffmpeg: Option<Ffmpeg>,
    /// How much a recording may cost, and what reads formats that are not decoded here.
    pub audio: DecodeOptions,
}

impl Default for MediaReader {
    /// The default limits, and the `ffmpeg` of `PATH`.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            ffmpeg: Ffmpeg::find(),
            audio: DecodeOptions::default(),
        }
    }
}

impl MediaReader {
    /// What the bytes are: a picture (also an animated one), a clip, or a recording.
    ///
    /// # Errors
    /// [`MediaError::UnknownFormat`] and [`MediaError::UnsupportedFormat`] for none of them.
    pub fn kind(bytes: &[u8]) -> Result<MediaKind, MediaError> {
        match image::sniff(bytes) {
            Ok(_) => Ok(MediaKind::Image),
            Err(error) => match video::sniff(bytes) {
                Ok(_) => Ok(MediaKind::Video),
                Err(_) if is_audio(bytes) => Ok(MediaKind::Audio),
                Err(_) => Err(error),
            },
        }
    }

    /// A picture, a clip or a recording, whichever the bytes are; clips are sampled by `sampling`, recordings as
    /// speech models hear them.
    ///
    /// # Errors
    /// Those of [`kind`](Self::kind), [`image`](Self::image), [`video`](Self::video) and [`audio`](Self::audio).
    pub fn read(&self, bytes: &[u8], sampling: &FrameSampling) -> Result<Media, MediaError> {
        match Self::kind(bytes)? {
            MediaKind::Video => self.video(bytes, sampling, PixelLimits::default()),
            MediaKind::Audio => self.audio(bytes, &AudioInput::SPEECH),
            MediaKind::Image => self.image(bytes, PixelLimits::default()),
        }
    }

    /// A file of a known kind as a model takes it.
    ///
    /// # Errors
    /// Those of [`image`](Self::image), [`video`](Self::video) and [`audio`](Self::audio).
    pub fn read_for(
        &self,
        processor: &dyn MediaProcessor,
        kind: MediaKind,
        bytes: &[u8],
        wishes: &MediaWishes,
    ) -> Result<Media, MediaError> {
        match kind {
            MediaKind::Image => self.image(bytes, wishes.pixels),
            MediaKind::Video => {
                let sampling = wishes.sampling(processor.frame_sampling());
                self.video(bytes, &sampling, wishes.pixels)
            }
            MediaKind::Audio => self.audio(bytes, &processor.audio_input()),
        }
    }

    /// A picture; of an animation its first frame.
    ///
    /// # Errors
    /// As [`image::decode`].
    pub fn image(&self, bytes: &[u8], limits: PixelLimits) -> Result<Media, MediaError> {
        let image = image::decode(bytes, &self.limits)?;
        let content = MediaContent::Image { image, limits };
        Ok(Media::new(content, (bytes, limits)))
    }

    /// A clip, of which `sampling` chooses the frames.
    ///
    /// # Errors
    /// As [`video::read`].
    pub fn video(
        &self,
        bytes: &[u8],
        sampling: &FrameSampling,
        limits: PixelLimits,
    ) -> Result<Media, MediaError> {
        let clip = video::read(bytes, sampling, &self.limits, self.ffmpeg.as_ref())?;
        let times = clip.metadata.timestamps(sampling.default_fps);
        let source = (bytes, Times(&times));
        Ok(clip_media(clip, sampling.default_fps, limits, source))
    }

    /// A recording as a model hears it: one channel at the model's rate.
    ///
    /// # Errors
    /// [`MediaError::Audio`], also for sound that is longer than the model takes.
    pub fn audio(&self, bytes: &[u8], input: &AudioInput) -> Result<Media, MediaError> {
        let mut options = self.audio.clone();
        options.limits.max_seconds = options.limits.max_seconds.min(input.max_seconds);
        let reader = MonoReader::open(bytes, input.sample_rate, input.resampling, &options)?;
        let content = MediaContent::Audio {
            samples: reader.read_to_end()?,
            sample_rate: input.sample_rate,
        };
        let heard = (input.sample_rate, input.resampling);
        Ok(Media::new(content, (bytes, heard)))
    }

    /// A clip that comes as pictures, all of which are taken, `fps` of them a second (2 where the rate is not known).
    ///
    /// # Errors
    /// As [`image::decode`] and [`Video::from_images`], before which the pixels of all are counted.
    pub fn frames(
        &self,
        files: &[impl AsRef<[u8]>],
        fps: Option<f64>,
        limits: PixelLimits,
    ) -> Result<Media, MediaError> {
        let mut images = Vec::with_capacity(files.len());
        for file in files {
            let image = image::decode(file.as_ref(), &self.limits)?.upright();
            self.limits
                .check_video(images.len() + 1, image.width(), image.height())?;
            images.push(image);
        }
        let fps = fps.unwrap_or(DEFAULT_LIST_FPS);
        let clip = Video::from_images(images, Some(fps), &self.limits)?;
        let files: Vec<&[u8]> = files.iter().map(AsRef::as_ref).collect();
        Ok(clip_media(clip, fps, limits, (files, fps.to_bits())))
    }
}

impl Media {
    /// A picture, clip or recording of a file's bytes, within the default limits.
    ///
    /// # Errors
    /// As [`MediaReader::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MediaError> {
        MediaReader::default().read(bytes, &FrameSampling::QWEN3_VL)
    }

    /// A picture, clip or recording of a file.
    ///
    /// # Errors
    /// [`MediaError::Io`], and those of [`from_bytes`](Self::from_bytes).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MediaError> {
        let bytes = std::fs::read(path).map_err(|source| MediaError::Io {
            what: "reading the media file",
            source,
        })?;
        Self::from_bytes(&bytes)
    }
}

fn clip_media(clip: Video, default_fps: f64, limits: PixelLimits, source: impl Hash) -> Media {
    let content = MediaContent::Video {
        timestamps: clip.metadata.timestamps(default_fps),
        fps: clip.metadata.sampled_fps(default_fps),
        frames: clip.frames,
        limits,
    };
    Media::new(content, (source, limits))
}

/// Times as bits, which can be hashed.
struct Times<'a>(&'a [f64]);

impl Hash for Times<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        for time in self.0 {
            time.to_bits().hash(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bitmap of 2 by 2 pixels, all of one shade.
    fn bitmap(shade: u8) -> Vec<u8> {
        let mut file = b"BM".to_vec();
        file.extend(70u32.to_le_bytes());
        file.extend([0; 4]);
        for field in [54u32, 40, 2, 2] {
            file.extend(field.to_le_bytes());
        }
        file.extend([1, 0, 24, 0]);
        file.extend([0; 24]);
        file.extend([[shade; 6].as_slice(), &[0, 0]].concat().repeat(2));
        file
    }

    #[test]
    fn bytes_decide_what_a_file_is() {
        assert_eq!(MediaReader::kind(&bitmap(1)).unwrap(), MediaKind::Image);
        assert_eq!(
            MediaReader::kind(b"\x1a\x45\xdf\xa3..").unwrap(),
            MediaKind::Video
        );
        assert!(MediaReader::kind(b"<html>").is_err());
        assert_eq!(
            Media::from_bytes(&bitmap(1)).unwrap().kind(),
            MediaKind::Image
        );
    }

    #[test]
    fn wishes_go_before_the_models_own_sampling() {
        let own = FrameSampling::QWEN3_VL;
        assert_eq!(MediaWishes::default().sampling(own), own);
        let wishes = MediaWishes {
            fps: Some(0.5),
            max_frames: Some(2),
            ..MediaWishes::default()
        };
        let sampling = wishes.sampling(own);
        assert_eq!(sampling.rate, FrameRate::PerSecond(0.5));
        assert_eq!((sampling.min_frames, sampling.max_frames), (2, 2));
        let counted = MediaWishes {
            num_frames: Some(3),
            ..wishes
        };
        assert_eq!(counted.sampling(own).rate, FrameRate::Count(3));
    }

    #[test]
    fn lists_are_clips_whose_rate_counts() {
        let reader = MediaReader::default();
        let clip = |fps| {
            let files = [bitmap(1), bitmap(2), bitmap(3)];
            reader.frames(&files, fps, PixelLimits::default()).unwrap()
        };
        let media = clip(Some(1.5));
        let MediaContent::Video {
            frames,
            timestamps,
            fps,
            ..
        } = media.content()
        else {
            panic!("no clip")
        };
        assert_eq!((frames.len(), *fps), (3, 1.5));
        assert_eq!(timestamps, &[0.0, 1.0 / 1.5, 2.0 / 1.5]);
        assert_eq!(clip(None), clip(Some(2.0)));
        assert_ne!(clip(Some(1.0)), clip(Some(2.0)));
        assert!(
            reader
                .frames(&[bitmap(1)], Some(0.0), PixelLimits::default())
                .is_err()
        );
    }

    #[test]
    fn the_pixels_of_a_list_are_counted_before_all_are_decoded() {
        let mut reader = MediaReader::default();
        reader.limits.max_video_pixels = 7;
        let files = [bitmap(1), bitmap(2), b"never read".to_vec()];
        let error = reader.frames(&files, None, PixelLimits::default());
        assert!(matches!(
            error,
            Err(MediaError::TooManyVideoPixels { frames: 2, .. })
        ));
    }
}
