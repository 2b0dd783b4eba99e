//! The view of a checkpoint that layers load from.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::catalog::{Catalog, CheckpointFile, element_count, locate};
use super::error::{LISTED_MISMATCHES, MismatchReport, Result, TensorMismatch, WeightsError};
use super::gguf::GgufFile;
use super::names::{NameMap, Transform};
use super::placement::{Placement, Precision};
use super::quantize::{LanguagePart, MatrixRole, QuantReport, Quantization};
use super::stored::StoredType;
use super::tensor::LoadedTensor;
use super::unpacked::Unpacked;

/// Missing tensors after which construction stops at once: a configuration that asks for a million layers
/// must not have them built.
const MOST_MISMATCHES: usize = 10_000;

/// Where tensors come from, where they go and in which precision.
///
/// A view stands at a prefix of the names, as a layer stands in a model; [`Weights::pp`] descends. Cloning
/// is cheap.
///
/// Tensors that are missing or have another shape do not stop construction: they are recorded, a zero tensor
/// stands in, and [`Weights::finish`] reports them together. So a wrong checkpoint costs one attempt to
/// understand, not one a tensor.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
    placement: Arc<Placement>,
    prefix: String,
    quantization: Option<Quantization>,
    part: Option<LanguagePart>,
    unpacked: Option<Unpacked>,
}

struct Shared {
    catalog: Catalog,
    names: NameMap,
    state: Mutex<State>,
    progress: Mutex<Option<Progress>>,
}

type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

#[derive(Default)]
struct State {
    /// Names in the file of the tensors that were asked for.
    read: BTreeSet<String>,
    bytes_loaded: u64,
    mismatches: MismatchReport,
    unexpected_logged: bool,
    quantized: QuantReport,
}

impl Weights {
    /// Opens a checkpoint as [`Catalog::open`] does; the tensors of a GGUF file are found under the names of
    /// [`NameMap::for_gguf`].
    ///
    /// # Errors
    /// The faults of the files; missing tensors show only in [`Weights::finish`].
    pub fn open(path: &Path, placement: Placement) -> Result<Self> {
        let catalog = match locate(path)? {
            CheckpointFile::Gguf(file) => {
                let file = Arc::new(GgufFile::open(&file)?);
                let names = NameMap::for_gguf(&file.metadata)?;
                return Ok(Self::from_gguf(file, names, placement));
            }
            CheckpointFile::Safetensors(_)
            | CheckpointFile::Index(_)
            | CheckpointFile::Pickle(_) => Catalog::open(path)?,
        };
        Ok(Self::from_catalog(catalog, NameMap::identity(), placement))
    }

    /// The tensors of a GGUF file, found under the names of `names`.
    pub fn from_gguf(file: Arc<GgufFile>, names: NameMap, placement: Placement) -> Self {
        Self::from_catalog(file.catalog().clone(), names, placement)
    }

    /// The tensors of a catalog, found under the names of `names`.
    pub fn from_catalog(catalog: Catalog, names: NameMap, placement: Placement) -> Self {
        let mismatches = MismatchReport {
            path: catalog.path().to_owned(),
            ..MismatchReport::default()
        };
        Self {
            shared: Arc::new(Shared {
                catalog,
                names,
                state: Mutex::new(State {
                    mismatches,
                    ..State::default()
                }),
                progress: Mutex::new(None),
            }),
            placement: Arc::new(placement),
            prefix: String::new(),
            quantization: None,
            part: None,
            unpacked: None,
        }
    }

    /// Calls `callback(bytes_loaded, bytes_total)` as tensors are taken. Tensors that nobody asks for count
    /// as loaded when [`Weights::finish`] succeeds.
    #[must_use]
    pub fn on_progress(self, callback: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        *lock(&self.shared.progress) = Some(Arc::new(callback));
        self
    }

    /// The view one level down: `weights.pp("model").pp("layers.0")`. An empty prefix is this view.
    #[must_use]
    pub fn pp(&self, prefix: impl Display) -> Self {
        Self {
            prefix: self.full_name(&prefix.to_string()),
            ..self.clone()
        }
    }

    /// The prefix of this view, without a dot at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Device and precision.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The same view with another placement, for parts of a model that compute in a precision of their own.
    #[must_use]
    pub fn with_placement(&self, placement: Placement) -> Self {
        Self {
            placement: Arc::new(placement),
            ..self.clone()
        }
    }

    /// The same view, whose matrices are quantised by a recipe as far as they belong to a language model; see
    /// [`Weights::of_part`].
    #[must_use]
    pub fn with_quantization(&self, recipe: Quantization) -> Self {
        Self {
            quantization: Some(recipe),
            ..self.clone()
        }
    }

    /// The same view, whose matrices belong to this part of a language model.
    #[must_use]
    pub fn of_part(&self, part: LanguagePart) -> Self {
        Self {
            part: Some(part),
            ..self.clone()
        }
    }

    /// The same view, whose matrices stay in their files as far as the kernels read them there, and are listed in
    /// `unpacked`.
    #[must_use]
    pub fn with_unpacked(&self, unpacked: Unpacked) -> Self {
        Self {
            unpacked: Some(unpacked),
            ..self.clone()
        }
    }

    /// Where matrices that stay in their files are listed, if any may.
    pub(crate) fn unpacked(&self) -> Option<&Unpacked> {
        self.unpacked.as_ref()
    }

    /// The block type that the matrix `name`, stored as `stored` in rows of `cols` values, is to be quantised to; none
    /// where it stays as it is. Counts it for the report.
    pub(crate) fn block_type(
        &self,
        name: &str,
        stored: StoredType,
        cols: usize,
    ) -> Option<StoredType> {
        let (recipe, part) = self.quantization.zip(self.part)?;
        // A part with a precision of its own has it for a reason.
        if self.placement.weights != Precision::Stored || !stored.is_float() {
            return None;
        }
        let (file_name, _) = self.shared.names.resolve(&self.full_name(name));
        let role = MatrixRole::of(part, &self.prefix, &file_name, &self.shared.catalog);
        let choice = recipe.choose(role, cols);
        lock(&self.shared.state).quantized.count(choice);
        choice.block_type()
    }

    /// Where tensors go.
    pub fn device(&self) -> &Device {
        &self.placement.device
    }

    /// The type of activations, norms, biases and convolutions.
    pub fn dtype(&self) -> DType {
        self.placement.dtype
    }

    /// Every tensor of the checkpoint, whatever the prefix.
    pub fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    /// Whether the checkpoint holds a tensor of this name, in whatever shape.
    pub fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// The shape of a tensor in the file, for the rare models whose configuration does not tell.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let (file_name, _) = self.shared.names.resolve(&self.full_name(name));
        self.shared.catalog.shape(&file_name)
    }

    /// A tensor of `shape`, converted to the activation type, on the device.
    ///
    /// A missing or misshapen one is recorded, and zeros (one value, broadcast) stand in. Once anything is
    /// recorded, later calls check names and shapes only and convert nothing.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] when the file changed since it was opened, [`WeightsError::Unconvertible`],
    /// errors of the device, and [`WeightsError::Mismatch`] when too much is missing to go on.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.stored(name, shape)? {
            Some(loaded) => loaded.to_tensor(self.dtype(), self.device()),
            None => Ok(Tensor::zeros((), self.dtype(), self.device())?.broadcast_as(shape)?),
        }
    }

    /// A tensor of `shape` as it lies in the file, for layers that pack it themselves. None when something
    /// is recorded as missing or misshapen, this tensor or an earlier one: make an empty layer then.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<LoadedTensor>> {
        let name = self.full_name(name);
        if element_count(shape).is_none() {
            return Err(WeightsError::Unconvertible {
                tensor: name,
                stored: "nothing yet",
                reason: format!("the shape asked for, {shape:?}, overflows; check config.json"),
            });
        }
        let (file_name, transform) = self.shared.names.resolve(&name);
        let found = self.shared.catalog.load(&file_name);
        let fits = found
            .as_ref()
            .is_some_and(|found| self.shared.catalog.fits(found.shape(), shape));

        let mut state = lock(&self.shared.state);
        let first_time = state.read.insert(file_name.clone());
        let loaded = match found {
            Some(loaded) if fits => loaded,
            other => {
                state.record(TensorMismatch {
                    file_name: (file_name != name).then_some(file_name),
                    name,
                    expected: shape.to_vec(),
                    found: other.map(|found| found.shape().to_vec()),
                })?;
                return Ok(None);
            }
        };
        if state.mismatches.total > 0 {
            return Ok(None);
        }
        if first_time {
            state.bytes_loaded += loaded.byte_len() as u64;
        }
        let bytes_loaded = state.bytes_loaded;
        drop(state);

        loaded.file().ensure_unchanged()?;
        self.shared.report_progress(bytes_loaded);
        let loaded = loaded.with_shape(shape);
        Ok(Some(match transform {
            Transform::None => loaded,
            Transform::UnpermuteRope { heads } => loaded.with_interleaved_heads(heads)?,
        }))
    }

    /// Whether any tensor asked for was missing or misshapen.
    pub fn has_problems(&self) -> bool {
        lock(&self.shared.state).mismatches.total > 0
    }

    /// Ends loading. Tensors that nobody asked for are logged once, at debug level, but for those that
    /// `ignore` names: by their name in the file, or by its beginning (`vision_tower.*`) or end
    /// (`*.position_ids`). So is what was quantised: as a warning where it was not all as asked.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with the first ten missing or misshapen tensors and how many there are.
    pub fn finish(&self, ignore: &[&str]) -> Result<()> {
        let mut state = lock(&self.shared.state);
        if state.mismatches.total > 0 {
            return Err(WeightsError::Mismatch(state.mismatches.clone()));
        }
        if !state.unexpected_logged {
            state.unexpected_logged = true;
            if let Some(recipe) = self.quantization {
                log_report(recipe, &state.quantized);
            }
            let unexpected = self.shared.unexpected(&state, ignore);
            if !unexpected.is_empty() {
                tracing::debug!(
                    count = unexpected.len(),
                    tensors = ?unexpected,
                    "the checkpoint holds tensors that the model does not use"
                );
            }
        }
        drop(state);
        self.shared
            .report_progress(self.shared.catalog.total_bytes());
        Ok(())
    }

    /// Names in the file of tensors that nobody has asked for and `ignore` (as in [`Weights::finish`]) does
    /// not name.
    pub fn unexpected(&self, ignore: &[&str]) -> Vec<String> {
        let state = lock(&self.shared.state);
        self.shared
            .unexpected(&state, ignore)
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    fn full_name(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}.{name}", self.prefix),
        }
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.shared.catalog.path())
            .field("tensors", &self.shared.catalog.len())
            .field("prefix", &self.prefix)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn unexpected(&self, state: &State, ignore: &[&str]) -> Vec<&str> {
        self.catalog
            .names()
            .filter(|name| !state.read.contains(*name))
            .filter(|name| !ignore.iter().any(|pattern| matches_pattern(pattern, name)))
            .collect()
    }

    fn report_progress(&self, bytes_loaded: u64) {
        // Called outside the lock, so that the callback may use the view.
        let progress = lock(&self.progress).clone();
        if let Some(progress) = progress {
            progress(bytes_loaded, self.catalog.total_bytes());
        }
    }
}

impl State {
    fn record(&mut self, mismatch: TensorMismatch) -> Result<()> {
        let report = &mut self.mismatches;
        report.total += 1;
        if report.first.len() < LISTED_MISMATCHES {
            report.first.push(mismatch);
        }
        if report.total >= MOST_MISMATCHES {
            return Err(WeightsError::Mismatch(report.clone()));
        }
        Ok(())
    }
}

fn log_report(recipe: Quantization, report: &QuantReport) {
    let summary = report.summary();
    match report.exceptions() {
        Some(exceptions) => tracing::warn!("{recipe}: {summary}; {exceptions}"),
        None => tracing::info!("{recipe}: {summary}"),
    }
}

fn matches_pattern(pattern: &str, name: &str) -> bool {
    if let Some(beginning) = pattern.strip_suffix('*') {
        name.starts_with(beginning)
    } else if let Some(end) = pattern.strip_prefix('*') {
        name.ends_with(end)
    } else {
        name == pattern
    }
}

/// A panic elsewhere while the lock was held leaves counters, not broken invariants.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
