//! `Q4_K` and `Q5_K`: eight groups of 32 values, each `scale * code - minimum`.

use super::{NESTED, nearest, put_half, side_by_side};

const GROUPS: usize = 8;
const PLACES: usize = 32;
/// Scales and minima of groups are codes of six bits.
const NESTED_LEVELS: f32 = 63.0;

type Lanes = [f32; GROUPS];

/// The widths that are tried: `first + step * n` codes more than there are, for `n` up to `steps`.
struct Search {
    /// The largest code.
    levels: f32,
    first: f32,
    step: f32,
    steps: u8,
}

const Q4_K: Search = Search {
    levels: 15.0,
    first: -1.0,
    step: 0.1,
    steps: 20,
};

const Q5_K: Search = Search {
    levels: 31.0,
    first: -0.5,
    step: 0.1,
    steps: 15,
};

/// `out`: two half floats, twelve bytes of scales and minima, 128 bytes of codes.
#[inline(always)]
pub(super) fn q4_k(values: &[f32; NESTED], out: &mut [u8]) {
    let codes = encode(values, &Q4_K, out);
    pack_halves(&codes, &mut out[16..144]);
}

/// As `Q4_K`, with 32 bytes of fifth bits before the codes' other four.
#[inline(always)]
pub(super) fn q5_k(values: &[f32; NESTED], out: &mut [u8]) {
    let codes = encode(values, &Q5_K, out);
    let (fifth, halves) = out[16..176].split_at_mut(PLACES);
    for (place, byte) in fifth.iter_mut().enumerate() {
        *byte = (0..GROUPS).fold(0, |bits, group| {
            bits | (codes[group * PLACES + place] >> 4) << group
        });
    }
    pack_halves(&codes, halves);
}

/// Low four bits: a byte holds a value of an even group and one of the group behind it.
#[inline(always)]
fn pack_halves(codes: &[u8; NESTED], out: &mut [u8]) {
    for (pair, out) in codes
        .chunks_exact(2 * PLACES)
        .zip(out.chunks_exact_mut(PLACES))
    {
        let (low, high) = pair.split_at(PLACES);
        for ((byte, low), high) in out.iter_mut().zip(low).zip(high) {
            *byte = low & 15 | high << 4;
        }
    }
}

/// Writes factors, scales and minima; gives the codes.
#[inline(always)]
fn encode(values: &[f32; NESTED], search: &Search, out: &mut [u8]) -> [u8; NESTED] {
    let (scales, minima) = fit(&side_by_side(values), search);
    let largest = |lanes: &Lanes| lanes.iter().copied().fold(0.0, f32::max);
    let (largest_scale, largest_minimum) = (largest(&scales), largest(&minima));
    let nested = |lanes: &Lanes, largest: f32| {
        let inverse = if largest > 0.0 {
            NESTED_LEVELS / largest
        } else {
            0.0
        };
        lanes.map(|lane| nearest(inverse * lane).clamp(0.0, NESTED_LEVELS) as u8)
    };
    let (scales, minima) = (
        nested(&scales, largest_scale),
        nested(&minima, largest_minimum),
    );
    let scale = put_half(out, 0, largest_scale / NESTED_LEVELS);
    let minimum = put_half(out, 2, largest_minimum / NESTED_LEVELS);
    pack_scales(&scales, &minima, &mut out[4..16]);

    // Codes for the scales as they are now, rounded.
    let mut codes = [0; NESTED];
    for (group, (codes, values)) in codes
        .chunks_exact_mut(PLACES)
        .zip(values.chunks_exact(PLACES))
        .enumerate()
    {
        let scale = scale * f32::from(scales[group]);
        let minimum = minimum * f32::from(minima[group]);
        if scale > 0.0 {
            for (code, value) in codes.iter_mut().zip(values) {
                *code = nearest(((value + minimum) / scale).clamp(0.0, search.levels)) as u8;
            }
        }
    }
    codes
}

/// Six bits each: the high two of groups four to seven lie above the six of groups zero to three.
#[inline(always)]
fn pack_scales(scales: &[u8; GROUPS], minima: &[u8; GROUPS], out: &mut [u8]) {
    for group in 0..4 {
        let (scale, minimum) = (scales[group + 4], minima[group + 4]);
        out[group] = scales[group] | scale >> 4 << 6;
        out[group + 4] = minima[group] | minimum >> 4 << 6;
        out[group + 8] = scale & 15 | minimum << 4;
    }
}

/// Scales and minima of all groups, before they are rounded.
#[inline(always)]
fn fit(x: &[Lanes; PLACES], search: &Search) -> (Lanes, Lanes) {
    let mut squares = [0.0; GROUPS];
    let (mut low, mut high) = (x[0], x[0]);
    for line in x {
        for group in 0..GROUPS {
            squares[group] += line[group] * line[group];
            low[group] = low[group].min(line[group]);
            high[group] = high[group].max(line[group]);
        }
    }
    let rms = squares.map(|square| (square / PLACES as f32).sqrt());
    let mut weights = [[0.0; GROUPS]; PLACES];
    let (mut sum_w, mut sum_x) = ([0.0; GROUPS], [0.0; GROUPS]);
    for (weights, line) in weights.iter_mut().zip(x) {
        for group in 0..GROUPS {
            weights[group] = rms[group] + line[group].abs();
            sum_w[group] += weights[group];
            sum_x[group] += weights[group] * line[group];
        }
    }
    // Minima are subtracted and have no sign: a group above zero starts at zero.
    let low = low.map(|low| low.min(0.0));

    let sums = Sums {
        x,
        weights: &weights,
        sum_w,
        sum_x,
    };
    let (mut scales, mut minima) = ([0.0; GROUPS], low);
    let inverse = per_value(search.levels, &high, &minima);
    let codes = codes(x, &inverse, &minima, search.levels);
    for group in 0..GROUPS {
        scales[group] = 1.0 / inverse[group];
    }
    let mut errors = sums.errors(&codes, &scales, &minima);
    for step in 0..=search.steps {
        let levels = search.first + search.step * f32::from(step) + search.levels;
        // From the best minimum so far, not from the lowest value: the search moves along.
        let inverse = per_value(levels, &high, &minima);
        let codes = self::codes(x, &inverse, &minima, search.levels);
        let (new_scales, new_minima, usable) = sums.least_squares(&codes);
        let new_errors = sums.errors(&codes, &new_scales, &new_minima);
        for group in 0..GROUPS {
            if usable[group] && new_errors[group] < errors[group] {
                errors[group] = new_errors[group];
                scales[group] = new_scales[group];
                minima[group] = new_minima[group];
            }
        }
    }
    for group in 0..GROUPS {
        // Values that are all the same leave no width: what the search made of them is no number.
        if high[group] <= low[group] {
            (scales[group], minima[group]) = (0.0, low[group]);
        }
        minima[group] = -minima[group];
    }
    (scales, minima)
}

/// Codes per value: `levels` of them from `low` to `high`.
#[inline(always)]
fn per_value(levels: f32, high: &Lanes, low: &Lanes) -> Lanes {
    let mut inverse = [0.0; GROUPS];
    for group in 0..GROUPS {
        inverse[group] = levels / (high[group] - low[group]);
    }
    inverse
}

#[inline(always)]
fn codes(x: &[Lanes; PLACES], inverse: &Lanes, low: &Lanes, levels: f32) -> [Lanes; PLACES] {
    let mut codes = [[0.0; GROUPS]; PLACES];
    for (codes, line) in codes.iter_mut().zip(x) {
        for group in 0..GROUPS {
            let code = nearest(inverse[group] * (line[group] - low[group]));
            codes[group] = code.clamp(0.0, levels);
        }
    }
    codes
}

/// What every trial of a block needs.
struct Sums<'a> {
    x: &'a [Lanes; PLACES],
    weights: &'a [Lanes; PLACES],
    sum_w: Lanes,
    sum_x: Lanes,
}

impl Sums<'_> {
    /// The scale and (negative) minimum that fit `codes` best, and whether there are any.
    #[inline(always)]
    fn least_squares(&self, codes: &[Lanes; PLACES]) -> (Lanes, Lanes, [bool; GROUPS]) {
        let (mut sum_l, mut sum_ll, mut sum_xl) = ([0.0; GROUPS], [0.0; GROUPS], [0.0; GROUPS]);
        for ((codes, weights), line) in codes.iter().zip(self.weights).zip(self.x) {
            for group in 0..GROUPS {
                let weighted = weights[group] * codes[group];
                sum_l[group] += weighted;
                sum_ll[group] += weighted * codes[group];
                sum_xl[group] += weighted * line[group];
            }
        }
        let (mut scales, mut minima) = ([0.0; GROUPS], [0.0; GROUPS]);
        let mut usable = [false; GROUPS];
        for group in 0..GROUPS {
            let (w, x) = (self.sum_w[group], self.sum_x[group]);
            let (l, ll, xl) = (sum_l[group], sum_ll[group], sum_xl[group]);
            let determinant = w * ll - l * l;
            usable[group] = determinant > 0.0;
            let minimum = (ll * x - l * xl) / determinant;
            (scales[group], minima[group]) = if minimum > 0.0 {
                (xl / ll, 0.0)
            } else {
                ((w * xl - x * l) / determinant, minimum)
            };
        }
        (scales, minima, usable)
    }

    /// Weighted squares of what the codes miss.
    #[inline(always)]
    fn errors(&self, codes: &[Lanes; PLACES], scales: &Lanes, minima: &Lanes) -> Lanes {
        let mut errors = [0.0; GROUPS];
        for ((codes, weights), line) in codes.iter().zip(self.weights).zip(self.x) {
            for group in 0..GROUPS {
                let missed = scales[group] * codes[group] + minima[group] - line[group];
                errors[group] += weights[group] * (missed * missed);
            }
        }
        errors
    }
}
