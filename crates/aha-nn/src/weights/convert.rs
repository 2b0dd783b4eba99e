//! Conversion of stored values to `f32`, and gathering of rows.

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::catalog::{element_count, tensor_bytes};
use super::error::{Result, WeightsError};
use super::stored::StoredType;
use crate::linear::gguf_kind;

/// Values converted by one task: large enough to amortise it, small enough to spread, whole blocks of
/// every type.
const TASK_VALUES: usize = 1 << 16;

/// Half floats converted at once, so that the conversion instruction works on vectors.
const HALF_BATCH: usize = 256;

pub(super) fn to_f32(
    name: &str,
    stored: StoredType,
    shape: &[usize],
    bytes: &[u8],
) -> Result<Vec<f32>> {
    let error = |reason: String| WeightsError::Unconvertible {
        tensor: name.to_owned(),
        stored: stored.name(),
        reason,
    };
    let decode = decoder(stored)
        .ok_or_else(|| error("only floating-point and quantised values become f32".to_owned()))?;
    let elements =
        element_count(shape).filter(|_| tensor_bytes(stored, shape) == Some(bytes.len()));
    let Some(elements) = elements else {
        return Err(error(format!(
            "{} bytes are not the size of shape {shape:?}",
            bytes.len()
        )));
    };
    let task_bytes = TASK_VALUES / stored.block_size() * stored.block_bytes();
    let mut values = vec![0f32; elements];
    values
        .par_chunks_mut(TASK_VALUES)
        .zip(bytes.par_chunks(task_bytes))
        .try_for_each(|(values, bytes)| decode(bytes, values))?;
    Ok(values)
}

/// Values as blocks of type `to`. Each task decodes its share of them only: there is never an f32 copy of all.
pub(super) fn to_blocks(
    name: &str,
    stored: StoredType,
    shape: &[usize],
    bytes: &[u8],
    to: StoredType,
) -> Result<Vec<u8>> {
    let error = |reason: String| WeightsError::Unconvertible {
        tensor: name.to_owned(),
        stored: stored.name(),
        reason,
    };
    let (Some(decode), Some(kind)) = (decoder(stored), gguf_kind(to)) else {
        return Err(error(format!("it cannot become {to}")));
    };
    let fits = tensor_bytes(stored, shape) == Some(bytes.len());
    let Some(size) = tensor_bytes(to, shape).filter(|_| fits) else {
        return Err(error(format!(
            "{} bytes of shape {shape:?} are no whole blocks of {to}",
            bytes.len()
        )));
    };
    let task_bytes = TASK_VALUES / stored.block_size() * stored.block_bytes();
    let task_blocks = TASK_VALUES / to.block_size() * to.block_bytes();
    let mut blocks = vec![0; size];
    blocks
        .par_chunks_mut(task_blocks)
        .zip(bytes.par_chunks(task_bytes))
        .try_for_each_init(Vec::new, |values, (blocks, bytes)| {
            values.resize(blocks.len() / to.block_bytes() * to.block_size(), 0.0);
            decode(bytes, values)?;
            aha_kernels::quantize_gguf(kind, values, blocks)
                .map_err(|reason| error(reason.to_string()))
        })?;
    Ok(blocks)
}

pub(super) fn gather_rows(
    name: &str,
    stored: StoredType,
    shape: &[usize],
    bytes: &[u8],
    source_row: impl Fn(usize) -> usize,
) -> Result<Vec<u8>> {
    let error = |reason: String| WeightsError::Unconvertible {
        tensor: name.to_owned(),
        stored: stored.name(),
        reason,
    };
    let Some((&rows, rest)) = shape.split_first() else {
        return Err(error("a scalar has no rows".to_owned()));
    };
    let row_bytes = match element_count(rest).and_then(|row| stored.bytes_for(row)) {
        Some(row_bytes) if row_bytes.checked_mul(rows) == Some(bytes.len()) => row_bytes,
        _ => {
            return Err(error(format!(
                "rows of shape {shape:?} are not whole blocks"
            )));
        }
    };
    let mut gathered = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let source = source_row(row);
        let start = source.checked_mul(row_bytes);
        let end = start.and_then(|start| start.checked_add(row_bytes));
        match start
            .zip(end)
            .and_then(|(start, end)| bytes.get(start..end))
        {
            Some(bytes) => gathered.extend_from_slice(bytes),
            None => return Err(error(format!("row {source} is not among the {rows} rows"))),
        }
    }
    Ok(gathered)
}

/// The values of a strided view, one after the other: `bytes` begins at its first element, `strides` counts elements.
pub(super) fn gather_strided(
    name: &str,
    stored: StoredType,
    shape: &[usize],
    strides: &[usize],
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let error = |reason: &str| WeightsError::Unconvertible {
        tensor: name.to_owned(),
        stored: stored.name(),
        reason: reason.to_owned(),
    };
    if stored.is_quantized() {
        return Err(error("blocks of quantised values have no strides"));
    }
    let (Some((&inner, outer)), Some((&inner_stride, outer_strides))) =
        (shape.split_last(), strides.split_last())
    else {
        return Ok(bytes.to_vec());
    };
    let size = tensor_bytes(stored, shape).ok_or_else(|| error("its size overflows"))?;
    let item = stored.block_bytes();
    let mut gathered = Vec::with_capacity(size);
    let mut index = vec![0; outer.len()];
    while gathered.len() < size {
        let row: usize = index.iter().zip(outer_strides).map(|(i, s)| i * s).sum();
        for column in 0..inner {
            let start = (row + column * inner_stride) * item;
            match bytes.get(start..start + item) {
                Some(value) => gathered.extend_from_slice(value),
                None => return Err(error("its strides lead out of its bytes")),
            }
        }
        for (position, &size) in index.iter_mut().zip(outer).rev() {
            *position += 1;
            if *position < size {
                break;
            }
            *position = 0;
        }
    }
    Ok(gathered)
}

type Decoder = Box<dyn Fn(&[u8], &mut [f32]) -> Result<()> + Sync>;

fn decoder(stored: StoredType) -> Option<Decoder> {
    if let Some(dtype) = stored.ggml_dtype() {
        return Some(Box::new(move |bytes, values| {
            dequantize(dtype, bytes, values)
        }));
    }
    Some(match stored {
        StoredType::F64 => each(|bytes| f64::from_le_bytes(bytes) as f32),
        StoredType::F32 => each(f32::from_le_bytes),
        StoredType::F16 => Box::new(|bytes, values| {
            decode_f16(bytes, values);
            Ok(())
        }),
        StoredType::Bf16 => {
            each(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
        }
        StoredType::F8E4M3 => each(|[byte]| f8_e4m3_to_f32(byte)),
        // The upper byte of an IEEE half float.
        StoredType::F8E5M2 => each(|[byte]| f16::from_le_bytes([0, byte]).to_f32()),
        _ => return None,
    })
}

fn each<const N: usize>(decode: impl Fn([u8; N]) -> f32 + Sync + 'static) -> Decoder {
    Box::new(move |bytes, values| {
        for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *value = decode(bytes);
        }
        Ok(())
    })
}

fn decode_f16(bytes: &[u8], values: &mut [f32]) {
    let mut batch = [f16::ZERO; HALF_BATCH];
    for (values, bytes) in values
        .chunks_mut(HALF_BATCH)
        .zip(bytes.chunks(2 * HALF_BATCH))
    {
        for (half, &bytes) in batch.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(bytes);
        }
        batch[..values.len()].convert_to_f32_slice(values);
    }
}

/// The "fn" variant: no infinities, one NaN pattern, largest value 448.
fn f8_e4m3_to_f32(byte: u8) -> f32 {
    let magnitude = match byte & 0x7f {
        0x7f => f32::NAN,
        bits if bits < 8 => f32::from(bits) * 2f32.powi(-9),
        bits => f32::from_bits((u32::from(bits) << 20) + ((127 - 7) << 23)),
    };
    if byte & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

fn dequantize(dtype: GgmlDType, bytes: &[u8], values: &mut [f32]) -> Result<()> {
    let blocks = dtype.from_data(aligned(bytes, &mut Vec::new()).into());
    match blocks.dequantize(values.len())? {
        CpuStorage::F32(dequantized) if dequantized.len() == values.len() => {
            values.copy_from_slice(&dequantized);
            Ok(())
        }
        _ => Err(candle_core::Error::msg("dequantisation gave no f32 values").into()),
    }
}

/// The dequantiser insists on blocks aligned like their widest field; files need not align them.
fn aligned<'a>(bytes: &'a [u8], buffer: &'a mut Vec<u8>) -> &'a [u8] {
    const ALIGNMENT: usize = align_of::<f32>();
    if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
        return bytes;
    }
    buffer.resize(bytes.len() + ALIGNMENT, 0);
    let start = buffer.as_ptr().addr().next_multiple_of(ALIGNMENT) - buffer.as_ptr().addr();
    let copy = &mut buffer[start..start + bytes.len()];
    copy.copy_from_slice(bytes);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_every_width_become_f32() {
        let wanted = [0.0f32, 1.0, -2.5, 448.0, 0.001953125];
        let stored: [(StoredType, Vec<u8>); 6] = [
            (
                StoredType::F64,
                wanted
                    .iter()
                    .flat_map(|&v| f64::from(v).to_le_bytes())
                    .collect(),
            ),
            (
                StoredType::F32,
                wanted.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
            (
                StoredType::F16,
                wanted
                    .iter()
                    .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                    .collect(),
            ),
            (
                StoredType::Bf16,
                wanted
                    .iter()
                    .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
                    .collect(),
            ),
            (StoredType::F8E4M3, vec![0x00, 0x38, 0xc2, 0x7e, 0x01]),
            (StoredType::F8E5M2, vec![0x00, 0x3c, 0xc1, 0x5f, 0x18]),
        ];
        for (stored, bytes) in stored {
            let values = to_f32("t", stored, &[5], &bytes).unwrap();
            for (value, wanted) in values.iter().zip(wanted) {
                assert_eq!(*value, wanted, "{stored}");
            }
        }
        assert!(f8_e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn many_tasks_and_odd_tails_keep_the_order() {
        let count = 2 * TASK_VALUES + HALF_BATCH + 7;
        let bytes: Vec<u8> = (0..count)
            .flat_map(|i| f16::from_f32((i % 2048) as f32).to_le_bytes())
            .collect();
        let values = to_f32("t", StoredType::F16, &[count], &bytes).unwrap();
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(i, &v)| v == (i % 2048) as f32)
        );
    }

    #[test]
    fn blocks_of_many_tasks_are_those_of_the_whole() {
        let shape = [5, TASK_VALUES / 2 + 256];
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5)
            .collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (to, kind) in [
            (StoredType::Q8_0, aha_kernels::WeightKind::Q8_0),
            (StoredType::Q4K, aha_kernels::WeightKind::Q4K),
        ] {
            let blocks = to_blocks("t", StoredType::F32, &shape, &bytes, to).unwrap();
            let mut whole = vec![0; blocks.len()];
            aha_kernels::quantize_gguf(kind, &values, &mut whole).unwrap();
            assert!(blocks == whole, "{to}");
        }
        assert!(to_blocks("t", StoredType::F32, &[2, 16], &[0; 128], StoredType::Q8_0).is_err());
        assert!(to_blocks("t", StoredType::I64, &[32], &[0; 256], StoredType::Q8_0).is_err());
        assert!(to_blocks("t", StoredType::F32, &[32], &[0; 128], StoredType::F16).is_err());
        let nan = [f32::NAN; 32].map(f32::to_le_bytes).concat();
        let error = to_blocks("t", StoredType::F32, &[32], &nan, StoredType::Q8_0).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }

    #[test]
    fn integers_wrong_sizes_and_absent_rows_are_refused() {
        assert!(to_f32("t", StoredType::I64, &[1], &[0; 8]).is_err());
        assert!(to_f32("t", StoredType::F32, &[2], &[0; 4]).is_err());
        assert!(to_f32("t", StoredType::Q8_0, &[2, 16], &[0; 34]).is_err());
        assert!(gather_rows("t", StoredType::F32, &[2, 1], &[0; 8], |_| 2).is_err());
        assert!(gather_rows("t", StoredType::F32, &[2, 1], &[0; 8], |_| usize::MAX).is_err());
    }
}
