//! Sizes that the release keeps in code, and a checkpoint only in the shapes of its tensors.

use crate::error::LoadError;
use aha_nn::weights::Weights;

/// The size of one dimension of a tensor.
pub(super) fn dim(weights: &Weights, name: &str, axis: usize) -> Result<usize, LoadError> {
    let key = || format!("{}.{name}", weights.prefix());
    let Some(shape) = weights.shape(name) else {
        return Err(LoadError::config(
            key(),
            "the checkpoint lacks the tensor, whose shape tells the model's sizes; take the files of one BiRefNet \
             release (RMBG-2.0 or a relative with a Swin backbone)",
        ));
    };
    match shape.get(axis) {
        Some(0) | None => Err(LoadError::config(
            key(),
            format!("its shape {shape:?} has nothing in dimension {axis}"),
        )),
        Some(size) => Ok(*size),
    }
}

/// How many parts `prefix.0`, `prefix.1` … hold a tensor `name`.
pub(super) fn count(weights: &Weights, prefix: &str, name: &str) -> usize {
    (0..)
        .take_while(|index| weights.contains(&format!("{prefix}.{index}.{name}")))
        .count()
}
