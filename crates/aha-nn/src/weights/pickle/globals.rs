//! The names that a pickle of tensors may use, and what they stand for.

use super::super::stored::StoredType;

/// A Python name that the machine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`, what `state_dict()` returns.
    OrderedDict,
    /// `torch.Size`, a tuple of dimensions.
    Size,
    /// `torch._utils._rebuild_tensor_v2`: a view of a typed storage.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`: a view of bytes with the type beside it.
    RebuildTypedTensor,
    /// `torch._utils._rebuild_parameter`: a tensor that was trained.
    RebuildParameter,
    /// A class of storage; none for bytes whose type the tensor tells.
    Storage(Option<StoredType>),
    /// `torch.bfloat16` and its like.
    Dtype(StoredType),
}

impl Global {
    /// The meaning of `module.name`, if tensors need it.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "Size") => Self::Size,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTypedTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch.storage" | "torch", "UntypedStorage") => Self::Storage(None),
            ("torch", name) => match name.strip_suffix("Storage") {
                Some(class) => Self::Storage(Some(storage_type(class)?)),
                None => Self::Dtype(dtype(name)?),
            },
            _ => return None,
        })
    }
}

fn storage_type(class: &str) -> Option<StoredType> {
    Some(match class {
        "Double" => StoredType::F64,
        "Float" => StoredType::F32,
        "Half" => StoredType::F16,
        "BFloat16" => StoredType::Bf16,
        "Long" => StoredType::I64,
        "Int" => StoredType::I32,
        "Short" => StoredType::I16,
        "Char" => StoredType::I8,
        "Byte" => StoredType::U8,
        "Bool" => StoredType::Bool,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<StoredType> {
    Some(match name {
        "float64" => StoredType::F64,
        "float32" => StoredType::F32,
        "float16" => StoredType::F16,
        "bfloat16" => StoredType::Bf16,
        "float8_e4m3fn" => StoredType::F8E4M3,
        "float8_e5m2" => StoredType::F8E5M2,
        "int64" => StoredType::I64,
        "int32" => StoredType::I32,
        "int16" => StoredType::I16,
        "int8" => StoredType::I8,
        "uint64" => StoredType::U64,
        "uint32" => StoredType::U32,
        "uint16" => StoredType::U16,
        "uint8" => StoredType::U8,
        "bool" => StoredType::Bool,
        _ => return None,
    })
}
