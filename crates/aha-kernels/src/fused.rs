//! Sums of products for kernels whose bodies share their source.

/// `a * b + c`, rounded once with `FUSED`: only where the processor has an instruction for that, which libraries
/// emulate slowly otherwise.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
