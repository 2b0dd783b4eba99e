//! Weight files and the view of them that every layer loads from.
//!
//! ```text
//! *.safetensors ─┐
//! *.index.json  ─┼─▶ Catalog (name ─▶ type, shape, byte range of a mapping) ─▶ Weights ─▶ layers
//! *.gguf        ─┤                                                  NameMap ──┘
//! *.pt *.pth *.bin ┘
//! ```
//!
//! Opening a checkpoint maps its files and checks every number in their headers; no tensor is copied until
//! a layer asks for it. Files are untrusted: sizes are compared with what the file holds before anything is
//! allocated, and every fault is an error that names file, place and reason.

mod catalog;
mod convert;
mod error;
pub mod gguf;
pub mod mapped;
mod names;
pub mod pickle;
mod placement;
mod quantize;
mod reader;
pub mod safetensors;
mod stored;
mod tensor;
mod unpacked;
mod view;

pub use catalog::Catalog;
pub use error::{Location, MismatchReport, Result, TensorMismatch, WeightsError};
pub use names::{NameMap, Transform};
pub use placement::{DtypeRequest, Placement, Precision};
pub use quantize::{
    LanguagePart, LayerPlace, MatrixChoice, MatrixRole, QuantReport, QuantRequest, Quantization,
    UnknownQuantization,
};
pub use reader::Reader;
pub use stored::StoredType;
pub use tensor::{LoadedTensor, StoredTensor};
pub use unpacked::Unpacked;
pub use view::Weights;
