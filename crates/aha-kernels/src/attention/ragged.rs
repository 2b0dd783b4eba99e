//! Attention among the tokens of sequences that are computed at once.

use super::call::{Bias, Call, Output, Places, Rows, Seen, Sequence};
use super::grid::GridBias;
use crate::error::{check_len, checked_mul};
use crate::{InstructionSet, KernelError, instruction_set};

/// Attention of each token over its own sequence, where nothing is cached: encoders of text, images
/// and sound.
///
/// The tokens of all sequences lie end to end. Scores are computed in `f32` with a running softmax
/// over tiles of keys: the matrix of scores never exists. Query heads share key and value heads in
/// equal groups. The result for a token has the same bits whatever other sequences stand beside its own.
#[derive(Debug, Clone, Copy)]
pub struct RaggedAttention<'a> {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Values a head, in queries, keys and values alike.
    pub head_dim: usize,
    /// Factor of the scores before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a token sees only those up to itself, instead of its whole sequence.
    pub causal: bool,
    /// With `causal`: the first tokens of a sequence, which all see each other.
    pub prefix: usize,
    /// Addends of the scores, for sequences that are grids.
    pub bias: Option<GridBias<'a>>,
    /// Sequence `i` has the tokens `cu_seqlens[i]..cu_seqlens[i + 1]`: begins with 0, never falls and ends
    /// with the number of tokens.
    pub cu_seqlens: &'a [u32],
}

impl RaggedAttention<'_> {
    /// Computes the attention of all tokens.
    ///
    /// `q` has rows of `num_heads * head_dim` values, `k` and `v` of `num_kv_heads * head_dim`;
    /// `out` is `[tokens, num_heads * head_dim]`.
    ///
    /// # Errors
    /// When a slice does not fit the shapes, or `cu_seqlens` does not cut the tokens into sequences.
    pub fn forward(
        &self,
        q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.forward_on(instruction_set(), q, k, v, out)
    }

    /// [`RaggedAttention::forward`] on a given instruction set, for tests and measurements.
    ///
    /// # Errors
    /// As [`RaggedAttention::forward`], and when the processor lacks the instruction set.
    pub fn forward_on(
        &self,
        set: InstructionSet,
        q: Rows<'_>,
        k: Rows<'_>,
        v: Rows<'_>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let set = set.require()?;
        self.check(q, k, v, out)?;
        let seen = if self.causal {
            Seen::Prefix(self.prefix)
        } else {
            Seen::All
        };
        let sequence = |index: usize| {
            let bounds = [self.cu_seqlens[index], self.cu_seqlens[index + 1]];
            let (start, len) = (bounds[0] as usize, (bounds[1] - bounds[0]) as usize);
            Sequence {
                query_start: start,
                query_len: len,
                context_len: len,
                places: Places::Rows { k, v, start },
                seen,
            }
        };
        Call {
            set,
            num_heads: self.num_heads,
            group: self.num_heads / self.num_kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            num_sequences: self.cu_seqlens.len().saturating_sub(1),
            sequence: &sequence,
            q,
            rotation: None,
            new: None,
            bias: self.bias.map(Bias::Grid),
            out: Output::new(out),
        }
        .run();
        Ok(())
    }

    fn check(&self, q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, out: &[f32]) -> Result<(), KernelError> {
        for (argument, value) in [
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
        ] {
            if value == 0 {
                return Err(KernelError::Zero { argument });
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(KernelError::NotMultiple {
                argument: "num_heads",
                value: self.num_heads,
                of: self.num_kv_heads,
            });
        }
        let first = self.cu_seqlens.first().copied().unwrap_or(0);
        check_len("cu_seqlens[0]", 0, first as usize)?;
        if let Some(pair) = self.cu_seqlens.windows(2).find(|pair| pair[1] < pair[0]) {
            return Err(KernelError::OutOfRange {
                argument: "cu_seqlens",
                value: pair[0] as usize,
                maximum: pair[1] as usize,
            });
        }
        let tokens = self.cu_seqlens.last().copied().unwrap_or(0) as usize;
        let query_row = checked_mul(self.num_heads, self.head_dim)?;
        let key_row = checked_mul(self.num_kv_heads, self.head_dim)?;
        check_len("out", checked_mul(tokens, query_row)?, out.len())?;
        for (argument, rows, width) in [("q", q, query_row), ("k", k, key_row), ("v", v, key_row)] {
            rows.check(argument, tokens, width)?;
        }
        match &self.bias {
            Some(bias) => self.check_bias(bias, tokens),
            None => Ok(()),
        }
    }

    fn check_bias(&self, bias: &GridBias<'_>, tokens: usize) -> Result<(), KernelError> {
        for (argument, value) in [("bias.height", bias.height), ("bias.width", bias.width)] {
            if value == 0 {
                return Err(KernelError::Zero { argument });
            }
        }
        let grid = bias
            .tokens()
            .ok_or(KernelError::Memory { bytes: usize::MAX })?;
        for bounds in self.cu_seqlens.windows(2) {
            let length = (bounds[1] - bounds[0]) as usize;
            if length > 0 {
                check_len("tokens of a grid", grid, length)?;
            }
        }
        let row = checked_mul(self.num_heads, bias.terms_per_head())?;
        bias.terms.check("bias.terms", tokens, row)
    }
}

impl Rows<'_> {
    pub(crate) fn check(
        &self,
        argument: &'static str,
        rows: usize,
        width: usize,
    ) -> Result<(), KernelError> {
        if self.stride < width {
            return Err(KernelError::OutOfRange {
                argument: "row length",
                value: width,
                maximum: self.stride,
            });
        }
        let least = match rows.checked_sub(1) {
            None => 0,
            Some(before) => checked_mul(before, self.stride)?
                .checked_add(width)
                .ok_or(KernelError::Memory { bytes: usize::MAX })?,
        };
        if self.values.len() < least {
            return Err(KernelError::Length {
                argument,
                expected: least,
                actual: self.values.len(),
            });
        }
        Ok(())
    }
}
