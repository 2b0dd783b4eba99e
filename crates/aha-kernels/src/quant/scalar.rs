//! Portable decoding of single rows of packed panels.

use half::f16;

use super::{Format, Scales, UNIT};
use crate::pack::PANEL;

/// Decodes one row of a panel of `out.len()` columns.
pub(crate) fn row(format: &Format, panel: &[u8], lane: usize, out: &mut [f32]) {
    for (index, values) in out.chunks_exact_mut(UNIT).enumerate() {
        values.copy_from_slice(&unit(format, panel, index, lane));
    }
}

/// The 32 values of unit `index` of one row.
fn unit(format: &Format, panel: &[u8], index: usize, lane: usize) -> [f32; UNIT] {
    let [factors, scales, codes] = format.unit_places(index).map(|place| &panel[place..]);
    let half = |place: usize| {
        f16::from_bits(u16::from_ne_bytes([
            factors[2 * place],
            factors[2 * place + 1],
        ]))
        .to_f32()
    };
    let factor = half(lane);
    let term = if format.minima {
        half(PANEL + lane)
    } else {
        0.0
    };
    let word = |index: usize| {
        let at = 4 * (index * PANEL + lane);
        u32::from_ne_bytes([codes[at], codes[at + 1], codes[at + 2], codes[at + 3]])
    };
    let group_scale = |group: usize| match format.scales {
        Scales::Plain => (factor, -term),
        Scales::Nested { groups, shared } => {
            let group = group * groups / 2;
            let byte = scales[group * PANEL + lane];
            if shared {
                (factor * f32::from(byte & 15), term * f32::from(byte >> 4))
            } else {
                let minimum = if format.minima {
                    scales[(groups + group) * PANEL + lane]
                } else {
                    0
                };
                (
                    factor * f32::from(byte.cast_signed()),
                    term * f32::from(minimum),
                )
            }
        }
    };
    let group_scales = [group_scale(0), group_scale(1)];
    std::array::from_fn(|index| {
        let mut code = 0;
        for place in format.places(index / 4) {
            let bits = word(place.word) >> (place.shift + 8 * (index % 4));
            code |= (bits & ((1 << place.bits) - 1)) << place.low;
        }
        let code = (code.cast_signed() - format.offset()) as f32;
        let (scale, minimum) = group_scales[index / 16];
        if format.minima {
            scale * code - minimum
        } else {
            scale * code
        }
    })
}
