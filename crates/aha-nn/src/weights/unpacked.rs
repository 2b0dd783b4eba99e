//! Matrices that are read from their files until there is time to pack them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aha_kernels::PackedMatrix;

use super::tensor::LoadedTensor;

/// The matrices of a model that products still read from the mapped file.
///
/// So a model answers before its weights were copied once. The kernels are a little faster with packed ones, so whoever
/// runs the model packs one after the other when there is time: no result changes. Clones share the list.
#[derive(Clone, Default)]
pub struct Unpacked(Arc<Mutex<Queue>>);

/// In the order in which they were loaded.
type Queue = VecDeque<(Arc<PackedMatrix>, LoadedTensor)>;

impl Unpacked {
    pub(crate) fn push(&self, matrix: Arc<PackedMatrix>, stored: LoadedTensor) {
        self.queue().push_back((matrix, stored));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.queue().len()
    }

    /// Whether all are packed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that packing them will take.
    pub fn bytes(&self) -> usize {
        let queue = self.queue();
        queue.iter().map(|(matrix, _)| matrix.size_in_bytes()).sum()
    }

    /// Packs the next one, on all threads, and lets the system take back its part of the file.
    ///
    /// # Errors
    /// When memory runs out. The model goes on with the file; nothing is left to pack then.
    pub fn pack_next(&self) -> candle_core::Result<()> {
        let Some((matrix, stored)) = self.queue().pop_front() else {
            return Ok(());
        };
        if let Err(error) = matrix.pack_shared(|bytes| stored.release_part(bytes)) {
            self.queue().clear();
            return Err(candle_core::Error::wrap(error));
        }
        if self.is_empty() {
            // Pages that two of them shared, too.
            let file = stored.file();
            file.release(0..file.bytes().len());
        }
        Ok(())
    }

    /// Packs all, for whoever has no better time than now.
    ///
    /// # Errors
    /// As [`Unpacked::pack_next`].
    pub fn pack_all(&self) -> candle_core::Result<()> {
        while !self.is_empty() {
            self.pack_next()?;
        }
        Ok(())
    }

    /// A panic elsewhere while the lock was held leaves a list without its first matrix, which stays in its file.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unpacked({})", self.len())
    }
}
