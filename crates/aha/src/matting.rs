//! Pictures without their background: the blocking face of matting models.

use crate::error::Result;
use crate::model::Model;
use aha_engine::{EngineError, MattingEngine, Service, Task};
use aha_media::image::Image;

impl Model {
    /// The picture with its foreground's mask as alpha: RGBA of the same size, the colours as they were. Blocks until
    /// it is computed.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use aha::image::{Limits, decode, encode_png};
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/rmbg2/windows6");
    /// # let photo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/rmbg2/windows6/media/small.png");
    /// let model = aha::load(path).build()?;
    /// let picture = decode(&std::fs::read(photo)?, &Limits::default())?.upright();
    /// let cutout = model.remove_background(picture)?;
    /// let file = encode_png(&cutout)?;
    /// assert_eq!((cutout.width(), cutout.height()), (90, 60));
    /// # assert!(!file.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model is for something else, [`crate::Error::Engine`] when too many requests
    /// wait or the picture cannot be resized.
    ///
    /// # Panics
    /// Inside an async runtime: there, await [`Model::matting_engine`].
    pub fn remove_background(&self, picture: Image) -> Result<Image> {
        let mask = self.foreground_mask(&picture)?;
        let cutout = picture.with_alpha(&mask);
        Ok(cutout.map_err(EngineError::internal)?)
    }

    /// The mask alone: one channel of the picture's size, 255 where everything is foreground.
    ///
    /// # Errors
    /// As [`Model::remove_background`].
    ///
    /// # Panics
    /// As [`Model::remove_background`].
    pub fn foreground_mask(&self, picture: &Image) -> Result<Image> {
        let pending = self.matting_engine()?.submit(picture)?;
        Ok(pending.blocking_wait()?.mask)
    }

    /// The engine below [`Model::remove_background`]: masks to await, the state of the queue.
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model is for something else.
    pub fn matting_engine(&self) -> Result<&MattingEngine> {
        match self.service() {
            Service::Matte(engine) => Ok(engine),
            _ => Err(self.is_not_for(Task::Matte)),
        }
    }
}
