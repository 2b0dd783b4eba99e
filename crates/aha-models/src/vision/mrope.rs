//! Positions of text and media on the axes of M-RoPE (arXiv 2409.12191).

use aha_engine::{EncoderInput, MediaSpan};
use aha_nn::batch::AxisPositions;

/// Positions (time, height, width) of a prompt of `len` tokens: text counts on all axes; a picture that begins at p
/// has its rows and columns counted from p, and what follows begins after the largest position. `merge` patches along
/// a side are a token; `clock` says how far from p a clip's step lies in time.
pub fn mrope_positions(
    len: usize,
    spans: &[MediaSpan],
    merge: usize,
    clock: impl Fn(&EncoderInput, usize) -> u32,
) -> AxisPositions {
    let mut positions: Vec<[u32; 3]> = Vec::with_capacity(len);
    let mut next = 0;
    for span in spans {
        let text = (span.start - positions.len()) as u32;
        positions.extend((next..next + text).map(|at| [at; 3]));
        next += text;
        let [steps, rows, columns] = span.input.grid;
        let (rows, columns) = (rows / merge, columns / merge);
        let mut end = next;
        for step in 0..steps {
            let time = next + clock(&span.input, step);
            for row in 0..rows as u32 {
                for column in 0..columns as u32 {
                    positions.push([time, next + row, next + column]);
                }
            }
            end = end.max(time + 1);
        }
        next = end.max(next + rows.max(columns) as u32);
    }
    let text = (len - positions.len()) as u32;
    positions.extend((next..next + text).map(|at| [at; 3]));
    AxisPositions::new(positions)
}
