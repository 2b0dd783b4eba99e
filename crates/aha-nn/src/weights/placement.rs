//! Where tensors live and in which precision they are kept.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use super::quantize::Quantization;
use super::stored::StoredType;

/// How matrix weights are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// In the type of the checkpoint, quantised or not.
    #[default]
    Stored,
    /// Converted to single precision.
    F32,
    /// Converted to half precision.
    F16,
    /// Converted to bfloat16.
    Bf16,
}

/// The device of a model and the types it computes in.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Where tensors live.
    pub device: Device,
    /// The type of activations and of small tensors (norms, biases, convolutions).
    pub dtype: DType,
    /// How matrix weights are kept.
    pub weights: Precision,
}

/// The precision that a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DtypeRequest {
    /// What suits device and checkpoint.
    #[default]
    Auto,
    /// Everything in single precision: what parity with a reference is measured in.
    F32,
    /// Matrix weights in bfloat16.
    Bf16,
    /// Matrix weights in half precision.
    F16,
}

impl DtypeRequest {
    /// Every word that parses, with its meaning, for help texts.
    pub const WORDS: [&'static str; 4] = ["auto", "f32", "bf16", "f16"];
}

impl fmt::Display for DtypeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// A word that names no precision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision `{0}`; use one of auto, f32, bf16, f16")]
pub struct UnknownDtype(String);

impl FromStr for DtypeRequest {
    type Err = UnknownDtype;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(UnknownDtype(word.to_owned())),
        }
    }
}

impl Placement {
    /// Single precision on the CPU: exact, and what tests compute in.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            weights: Precision::Stored,
        }
    }

    /// Decides the precision from the user's wish, the device and the type that most of the checkpoint is
    /// `stored` in (none where that is unknown); the sentence says what was taken and why.
    ///
    /// On the CPU activations are always f32, since products accumulate in f32 there and a narrower type
    /// would only cost conversions; the wish decides how matrix weights are kept. On accelerators
    /// activations and weights share a type, the checkpoint's own unless asked otherwise.
    pub fn resolve(
        requested: DtypeRequest,
        device: &Device,
        stored: Option<StoredType>,
        quantization: Option<Quantization>,
    ) -> (Self, String) {
        let name = device_name(device);
        let (dtype, weights, why) = if device.is_cpu() {
            let (weights, kept) = match requested {
                DtypeRequest::Auto if let Some(recipe) = quantization => (
                    Precision::Stored,
                    format!("quantised ({recipe}) in language models, others kept as stored"),
                ),
                DtypeRequest::Auto => (Precision::Stored, "kept as stored".to_owned()),
                DtypeRequest::F32 => (Precision::F32, "converted to f32 as asked".to_owned()),
                DtypeRequest::Bf16 => (Precision::Bf16, "converted to bf16 as asked".to_owned()),
                DtypeRequest::F16 => (Precision::F16, "converted to f16 as asked".to_owned()),
            };
            (
                DType::F32,
                weights,
                format!(
                    "weights are {kept}; activations are f32, as always there{}",
                    rounding(
                        weights,
                        quantization.map(Quantization::main_type).or(stored)
                    )
                ),
            )
        } else {
            match requested {
                DtypeRequest::F32 => (
                    DType::F32,
                    Precision::F32,
                    "everything is f32 as asked".into(),
                ),
                DtypeRequest::Bf16 => (
                    DType::BF16,
                    Precision::Bf16,
                    "everything is bf16 as asked".into(),
                ),
                DtypeRequest::F16 => (
                    DType::F16,
                    Precision::F16,
                    "everything is f16 as asked".into(),
                ),
                DtypeRequest::Auto => {
                    let (dtype, why) = match stored {
                        Some(StoredType::F16) => (DType::F16, "because the weights are stored so"),
                        Some(StoredType::F32 | StoredType::F64) => {
                            (DType::F32, "because the weights are stored so")
                        }
                        Some(StoredType::Bf16) => {
                            (DType::BF16, "because the weights are stored so")
                        }
                        _ => (DType::BF16, "the usual type of accelerators"),
                    };
                    let kept = format!(
                        "weights are kept as stored; activations are {}, {why}",
                        dtype.as_str()
                    );
                    (dtype, Precision::Stored, kept)
                }
            }
        };
        (
            Self {
                device: device.clone(),
                dtype,
                weights,
            },
            format!("On the {name}, {why}."),
        )
    }
}

/// What the CPU's products do to their activations for the speed of their instructions, to be said behind how
/// weights are kept.
fn rounding(weights: Precision, stored: Option<StoredType>) -> &'static str {
    let bf16 = match weights {
        Precision::Stored => stored == Some(StoredType::Bf16),
        precision => precision == Precision::Bf16,
    };
    if bf16 && aha_kernels::instruction_set().rounds_to_bf16() {
        ", rounded to bf16 where they meet the weights"
    } else if weights == Precision::Stored && stored.is_some_and(StoredType::is_quantized) {
        ", rounded to eight bits (with a scale for 32 values) where they meet the weights"
    } else {
        ""
    }
}

fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "CPU",
        Device::Cuda(_) => "CUDA device",
        Device::Metal(_) => "Metal device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_always_computes_in_f32() {
        for (word, weights) in [
            ("auto", Precision::Stored),
            ("f32", Precision::F32),
            ("bf16", Precision::Bf16),
            ("f16", Precision::F16),
        ] {
            let requested: DtypeRequest = word.parse().unwrap();
            assert_eq!(requested.to_string(), word);
            let stored = Some(StoredType::Bf16);
            let (placement, why) = Placement::resolve(requested, &Device::Cpu, stored, None);
            assert_eq!((placement.dtype, placement.weights), (DType::F32, weights));
            assert!(why.contains("CPU") && why.contains("f32"), "{why}");
        }
        let why = |requested, stored, quantization| {
            Placement::resolve(requested, &Device::Cpu, Some(stored), quantization).1
        };
        let quantised = why(DtypeRequest::Auto, StoredType::Q4K, None);
        assert!(quantised.contains("eight bits"), "{quantised}");
        let exact = why(DtypeRequest::F32, StoredType::Q4K, None);
        assert!(!exact.contains("rounded"), "{exact}");
        let recipe = Some(Quantization::Q6K);
        let loading = why(DtypeRequest::Auto, StoredType::Bf16, recipe);
        assert!(
            loading.contains("q6_k") && loading.contains("eight bits"),
            "{loading}"
        );
        let error = "int8".parse::<DtypeRequest>().unwrap_err().to_string();
        assert!(error.contains("int8") && error.contains("bf16"), "{error}");
    }
}
