//! The portable kernels. Sixteen lanes are a plain array, which compilers map to what the target has.

use half::{bf16, f16};

use super::{Activations, Panels, Sums};
use crate::buffer::{Line, as_f32, as_u16};
use crate::pack::{PANEL, WeightKind, bf16_index};

/// See [`super::tile`]; the panels must be `F32`.
pub(super) fn tile(x: Activations<'_>, rows: usize, w: Panels<'_>, depth: usize, sums: Sums<'_>) {
    debug_assert_eq!(w.kind, WeightKind::F32);
    for panel in 0..w.count {
        let weights = &as_f32(&w.data[panel * w.stride..])[..depth * PANEL];
        for row in 0..rows {
            let target = &mut sums.lines[panel * sums.stride + row];
            let mut lanes = if sums.accumulate {
                target.0
            } else {
                [0.0; PANEL]
            };
            for (k, weights) in weights.chunks_exact(PANEL).enumerate() {
                let value = match x {
                    Activations::Rows(data, stride) => data[row * stride + k],
                    Activations::Packed(data) => data[k * rows + row],
                };
                for (sum, weight) in lanes.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
            target.0 = lanes;
        }
    }
}

/// See [`super::decode`].
pub(super) fn decode(kind: WeightKind, panel: &[u8], start: usize, out: &mut [Line]) {
    let panel = &panel[kind.column_offset(start)..];
    match kind {
        WeightKind::F32 => {
            for (line, values) in out.iter_mut().zip(as_f32(panel).chunks_exact(PANEL)) {
                line.0.copy_from_slice(values);
            }
        }
        WeightKind::F16 => {
            for (line, words) in out.iter_mut().zip(as_u16(panel).chunks_exact(PANEL)) {
                for (value, &bits) in line.0.iter_mut().zip(words) {
                    *value = f16::from_bits(bits).to_f32();
                }
            }
        }
        _ => {
            let words = as_u16(panel);
            for (col, line) in out.iter_mut().enumerate() {
                for (lane, value) in line.0.iter_mut().enumerate() {
                    *value = bf16::from_bits(words[bf16_index(col, lane)]).to_f32();
                }
            }
        }
    }
}
