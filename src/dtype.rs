//! The number types of tensors, and what matrix products make of them.

use crate::{Error, Result};

/// The number type of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// Single precision: the working type.
    F32,
    /// Double precision: gradient checks and references.
    F64,
}

impl DType {
    /// The size of a number.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }
}

/// How matrix products treat their operands. Sums are always formed in single precision (double on a double precision device).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MathMode {
    /// As they are.
    #[default]
    F32,
    /// Rounded to tf32 (10 bits of mantissa) for the tensor cores.
    Tf32,
    /// Rounded to bf16 (7 bits of mantissa) for the tensor cores.
    Bf16,
}

impl std::fmt::Display for MathMode {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            MathMode::F32 => "f32",
            MathMode::Tf32 => "tf32",
            MathMode::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for MathMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [MathMode::F32, MathMode::Tf32, MathMode::Bf16]
            .into_iter()
            .find(|m| m.to_string() == text)
            .ok_or_else(|| Error::Usage(format!("unknown math mode {text:?}; choose f32, tf32 or bf16")))
    }
}
