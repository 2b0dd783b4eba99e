//! A picture while it is decoded: its components with what is known of them.

use super::Result;
use super::idct;
use rayon::prelude::*;

/// One component: brightness, a colour difference, an ink.
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks of it in a unit of interleaved scans, across and down.
    pub(super) sampling: (usize, usize),
    /// Number of its quantisation table.
    pub(super) table: usize,
    /// The table, row by row, once a scan has begun; it may change for later ones.
    pub(super) quantization: [u16; 64],
    pub(super) begun: bool,
    /// Its own samples, across and down.
    pub(super) size: (usize, usize),
    /// Blocks that cover them, across and down.
    pub(super) own_blocks: (usize, usize),
    /// Blocks in memory, across and down: whole units.
    blocks: (usize, usize),
    /// Coefficients of all blocks, in progressive pictures.
    coefficients: Vec<[i16; 64]>,
    /// Samples of all blocks, row by row.
    pub(super) samples: Vec<u8>,
}

impl Component {
    /// Where the samples of a block begin, and samples in a row.
    pub(super) fn sample_place(&self, column: usize, row: usize) -> (usize, usize) {
        let stride = self.stride();
        (row * 8 * stride + column * 8, stride)
    }

    /// Samples in a row in memory.
    pub(super) fn stride(&self) -> usize {
        self.blocks.0 * 8
    }

    pub(super) fn coefficients_at(
        &mut self,
        (column, row): (usize, usize),
    ) -> Result<&mut [i16; 64]> {
        let index = row * self.blocks.0 + column;
        self.coefficients
            .get_mut(index)
            .ok_or_else(|| "a block lies outside".into())
    }

    /// Samples of a row of its own size; rows beyond its edges are those at the edges.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        let start = row.min(self.size.1 - 1) * self.stride();
        &self.samples[start..start + self.size.0]
    }
}

/// The frame header, and the components.
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// Largest sampling of all components.
    pub(super) most: (usize, usize),
    /// Units of interleaved scans, across and down.
    pub(super) units: (usize, usize),
}

impl Frame {
    /// Lays out components of these ids, samplings and tables; memory is allocated here.
    pub(super) fn new(
        (width, height): (usize, usize),
        progressive: bool,
        mut components: Vec<(u8, (usize, usize), usize)>,
    ) -> Result<Self> {
        if let [(_, sampling, _)] = components.as_mut_slice() {
            // Alone it is not interleaved, whatever its sampling.
            *sampling = (1, 1);
        }
        let most = components
            .iter()
            .fold((1, 1), |most: (usize, usize), (_, sampling, _)| {
                (most.0.max(sampling.0), most.1.max(sampling.1))
            });
        let units = (width.div_ceil(8 * most.0), height.div_ceil(8 * most.1));
        let components = components
            .into_iter()
            .map(|(id, sampling, table)| {
                if most.0 % sampling.0 != 0 || most.1 % sampling.1 != 0 {
                    return Err("fractional sampling is not supported".into());
                }
                let size = (
                    (width * sampling.0).div_ceil(most.0),
                    (height * sampling.1).div_ceil(most.1),
                );
                let blocks = (units.0 * sampling.0, units.1 * sampling.1);
                let count = blocks.0 * blocks.1;
                Ok(Component {
                    id,
                    sampling,
                    table,
                    quantization: [0; 64],
                    begun: false,
                    size,
                    own_blocks: (size.0.div_ceil(8), size.1.div_ceil(8)),
                    blocks,
                    coefficients: vec![[0; 64]; if progressive { count } else { 0 }],
                    samples: vec![128; count * 64],
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            width,
            height,
            progressive,
            components,
            most,
            units,
        })
    }

    /// Coefficients to samples, in progressive pictures: once all scans are read.
    pub(super) fn finish(&mut self) {
        for component in &mut self.components {
            let (stride, across) = (component.stride(), component.blocks.0);
            let quantization = component.quantization;
            let coefficients = std::mem::take(&mut component.coefficients);
            component
                .samples
                .par_chunks_mut(stride * 8)
                .zip(coefficients.par_chunks(across))
                .for_each(|(samples, blocks)| {
                    for (column, block) in blocks.iter().enumerate() {
                        idct::block(block, &quantization, samples, column * 8, stride);
                    }
                });
        }
    }
}
