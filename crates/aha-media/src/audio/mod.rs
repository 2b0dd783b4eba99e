//! Sound: decoding, resampling and front ends.
