//! Images and video frames: decoding, limits and resizing.
