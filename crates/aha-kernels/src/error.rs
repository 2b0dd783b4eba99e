use std::fmt;

use crate::{InstructionSet, WeightKind};

/// Why a kernel refused its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice has another length than the shapes given with it ask for.
    Length {
        /// The argument, for example `x` or `out`.
        argument: &'static str,
        /// The length that the shapes ask for.
        expected: usize,
        /// The length of the slice.
        actual: usize,
    },
    /// A size or index lies outside what the kernel accepts.
    OutOfRange {
        /// The argument, for example `row index` or `block number`.
        argument: &'static str,
        /// The value given.
        value: usize,
        /// The largest value accepted.
        maximum: usize,
    },
    /// A size must be a multiple of another one.
    NotMultiple {
        /// The argument, for example `cols` or `num_heads`.
        argument: &'static str,
        /// The value given.
        value: usize,
        /// What it must be a multiple of.
        of: usize,
    },
    /// A size that must be at least one is zero.
    Zero {
        /// The argument, for example `block_size`.
        argument: &'static str,
    },
    /// Two sequences claim the same query row.
    OverlappingQueries {
        /// The first row that both claim.
        row: usize,
    },
    /// Two tokens of a step would be cached in the same slot.
    SharedSlot {
        /// The slot.
        slot: usize,
    },
    /// Two sequences share a slot of recurrent state, or there is no such slot.
    Slot {
        /// The slot.
        slot: usize,
    },
    /// The weight kind is none that this function takes.
    Kind {
        /// The kind given.
        kind: WeightKind,
        /// The function's expectation in words.
        expected: &'static str,
    },
    /// A value cannot be encoded in blocks: it is not finite, or too large for half-float scales.
    Unencodable {
        /// Place of the value in the data given.
        index: usize,
    },
    /// This machine lacks the instruction set asked for.
    InstructionSet(InstructionSet),
    /// Threads cannot have cores of their own.
    Affinity {
        /// Why not.
        reason: String,
    },
    /// The product of sizes does not fit the address space, or memory ran out.
    Memory {
        /// Bytes asked for; `usize::MAX` when the size itself overflows.
        bytes: usize,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length {
                argument,
                expected,
                actual,
            } => write!(
                f,
                "`{argument}` has {actual} elements, but the shapes given ask for {expected}"
            ),
            Self::OutOfRange {
                argument,
                value,
                maximum,
            } => {
                write!(f, "{argument} is {value}, but may be at most {maximum}")
            }
            Self::NotMultiple {
                argument,
                value,
                of,
            } => {
                write!(f, "{argument} is {value}, but must be a multiple of {of}")
            }
            Self::Zero { argument } => write!(f, "{argument} must not be zero"),
            Self::OverlappingQueries { row } => {
                write!(
                    f,
                    "query row {row} belongs to two sequences; give each row to one"
                )
            }
            Self::SharedSlot { slot } => write!(
                f,
                "slot {slot} of the cache belongs to two tokens; give each token one of its own"
            ),
            Self::Slot { slot } => write!(
                f,
                "state slot {slot} does not exist or belongs to two sequences; give each slot to one"
            ),
            Self::Kind { kind, expected } => {
                write!(
                    f,
                    "weight kind {kind:?} is not supported here; expected {expected}"
                )
            }
            Self::Unencodable { index } => write!(
                f,
                "value {index} is not finite or beyond 65504 and cannot be quantised; keep this matrix as stored"
            ),
            Self::InstructionSet(set) => write!(
                f,
                "this processor lacks the instruction set `{}`; use `scalar`",
                set.name()
            ),
            Self::Affinity { reason } => write!(f, "threads cannot be bound to cores: {reason}"),
            Self::Memory { bytes } => write!(f, "cannot allocate {bytes} bytes"),
        }
    }
}

impl std::error::Error for KernelError {}

/// Checks that `actual` is `expected`.
pub(crate) fn check_len(
    argument: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), KernelError> {
    if expected == actual {
        Ok(())
    } else {
        Err(KernelError::Length {
            argument,
            expected,
            actual,
        })
    }
}

/// `a * b`, or the error that says it does not fit.
pub(crate) fn checked_mul(a: usize, b: usize) -> Result<usize, KernelError> {
    a.checked_mul(b)
        .ok_or(KernelError::Memory { bytes: usize::MAX })
}
