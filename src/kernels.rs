//! The text of every kernel, and the numbers that kernels and host have to agree on: they are said here, for both.

pub(crate) mod pointwise;

use crate::{DType, files::hex};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A module of constants for each kernel file or header, and the table of them that is printed in front of its text as `#define`s.
macro_rules! defines {
    ($($(#[$about:meta])* $file:ident { $($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)* })*) => {
        $($(#[$about])* pub(crate) mod $file {
            $($(#[$doc])* pub(crate) const $name: $type = $value;)*
        })*
        const DEFINES: &[(&str, &[(&str, f64)])] = &[$((stringify!($file), &[$((stringify!($name), $file::$name as f64)),*])),*];
    };
}

defines! {
    /// What every kernel may use.
    common {
        /// Places in a table of inputs.
        TABLE: usize = 8;
        /// Places in a list of sizes.
        SIZES: usize = 32;
    }
    /// Matrix products.
    gemm {
        /// How operands are rounded.
        F32: usize = crate::MathMode::F32 as usize;
        TF32: usize = crate::MathMode::Tf32 as usize;
        BF16: usize = crate::MathMode::Bf16 as usize;
        /// What follows a linear map.
        TANH: usize = 1;
        RELU: usize = 2;
        /// Rows, columns and inner elements of the tiles that a block computes from a stage.
        THIN_M: usize = 16;
        THIN_N: usize = 16;
        THIN_K: usize = 128;
        SMALL_M: usize = 32;
        SMALL_N: usize = 32;
        SMALL_K: usize = 64;
        LARGE_M: usize = 64;
        LARGE_N: usize = 128;
        LARGE_K: usize = 16;
        /// What rows of staged operands, and of the result's tile, have more in shared memory, for the sake of its banks.
        STAGE_PAD: usize = 8;
        TILE_PAD: usize = 4;
    }
    /// The two convolutions.
    conv_pair {
        /// Numbers of channels that a block has at a time, and columns in a strip.
        INS: usize = 8;
        OUTS: usize = 16;
        STRIP: usize = 4;
        /// Elements from one row to the next in shared memory: of x, of z₁, of a or z₂ with tensor cores and without.
        X_ROW: usize = 56;
        Z1_ROW: usize = 60;
        TENSOR_ROW: usize = 56;
        PLAIN_ROW: usize = 52;
        /// Elements from one tap to the next of packed weights: a little more than the channels.
        OUT_STEP: usize = 20;
        IN_STEP: usize = 12;
        /// Nine taps, rounded up.
        TAPS: usize = 12;
    }
    /// Strokes in the shared memory of one block.
    render_stroke {
        /// Threads of the block.
        THREADS: usize = 512;
        /// The largest image, and the most control points.
        MOST_SIDE: usize = 64;
        MOST_POINTS: usize = 32;
    }
    /// The update.
    adam {
        /// How much of the mean of gradients survives an update, and of the mean of their squares; added to the root of the latter.
        BETA1: f64 = 0.9;
        BETA2: f64 = 0.999;
        EPS: f64 = 1e-8;
        /// Half a turn, for the fall of the rates.
        PI: f64 = std::f64::consts::PI;
    }
    /// The learning signal.
    nvil {
        /// How much of the running statistics survives a step.
        DECAY: f64 = 0.8;
    }
}

/// CUDA C++ with kernels, and what messages call it.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct Kernels {
    name: &'static str,
    /// That of `kernels/<name>.cu` if there is none.
    text: Option<&'static str>,
}

impl Kernels {
    /// Kernels of a program's own. Their text begins where `kernels/common.cuh` ends: `KERNEL`, `REAL`, `put` and all else in it are there.
    ///
    /// # Safety
    /// Each of them, launched with the arguments that it declares and the sizes that the caller passes, reads and writes nothing but the
    /// tensors among these.
    pub const unsafe fn new(name: &'static str, text: &'static str) -> Self {
        Kernels { name, text: Some(text) }
    }

    /// Those of `kernels/<file>.cu`.
    #[cfg(feature = "cuda")]
    pub(crate) fn own(file: &'static str) -> Self {
        Kernels { name: file, text: None }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// What no other kernels have.
    #[cfg(feature = "cuda")]
    pub(crate) fn key(self) -> &'static str {
        self.text.unwrap_or(self.name)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn text(self) -> Option<Cow<'static, str>> {
        self.text.map(Cow::from).or_else(|| source(self.name))
    }
}

/// The text of a file: that in the folder `DOOD_KERNELS` where it is set, so that a kernel can be changed without building anything.
fn text(name: &str, ending: &str, all: &[(&str, &'static str)]) -> Option<Cow<'static, str>> {
    if let Some(folder) = std::env::var_os("DOOD_KERNELS") {
        let path = std::path::Path::new(&folder).join(format!("{name}.{ending}"));
        return std::fs::read_to_string(path).ok().map(Cow::from);
    }
    all.iter().find(|(known, _)| *known == name).map(|(_, text)| Cow::from(*text))
}

/// The text of `kernels/<file>.cu`.
pub fn source(file: &str) -> Option<Cow<'static, str>> {
    text(file, "cu", SOURCES)
}

/// What tells these kernels from those of another build.
pub(crate) fn digest() -> String {
    let mut hash = Sha256::new();
    let all =
        SOURCES.iter().map(|(name, _)| source(name)).chain(HEADERS.iter().map(|(name, _)| text(name, "cuh", HEADERS)));
    all.flatten().for_each(|text| hash.update(text.as_bytes()));
    hex(&hash.finalize()[..6])
}

/// What NVRTC is given: the text of a kernel file after the constants that it shares with the host and what all files share, and with
/// another header in the place where its first line includes one.
pub fn assemble(file: &str, text: &str) -> String {
    let header = |name: &str| self::text(name, "cuh", HEADERS).unwrap_or_default();
    let included = text.strip_prefix("#include \"").and_then(|rest| rest.split_once(".cuh\"\n"));
    let mut all = String::new();
    for (owner, defines) in DEFINES {
        if *owner == "common" || *owner == file || included.is_some_and(|(name, _)| name == *owner) {
            defines
                .iter()
                .for_each(|(name, value)| all += &format!("#define {name} {value:?}\n").replace(".0\n", "\n"));
        }
    }
    all += &format!("#line 1 \"kernels/common.cuh\"\n{}\n", header("common"));
    if file == "pointwise" {
        all += &pointwise::text();
    }
    match included {
        None => all += &format!("#line 1 \"kernels/{file}.cu\"\n{text}\n"),
        Some((name, rest)) => {
            all +=
                &format!("#line 1 \"kernels/{name}.cuh\"\n{}\n#line 2 \"kernels/{file}.cu\"\n{rest}\n", header(name));
        }
    }
    all
}

/// NVRTC's options for an architecture (`sm_90a`, or `compute_90` for PTX) and a number type.
pub fn options(architecture: &str, dtype: DType) -> Vec<String> {
    let real = if dtype == DType::F32 { "float" } else { "double" };
    // Source lines let compute-sanitizer and the profilers say where; they cost nothing at run time.
    let architecture = format!("--gpu-architecture={architecture}");
    vec!["--std=c++17".into(), "--generate-line-info".into(), format!("-DREAL={real}"), architecture]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_constants_stand_in_front_of_a_kernel_and_of_no_other() {
        let text = |file: &str| assemble(file, &source(file).unwrap());
        for line in ["#define TABLE 8\n", "#define BETA1 0.9\n", "#define EPS 1e-8\n"] {
            assert!(text("adam").contains(line), "{line}");
        }
        assert!(text("linear").contains("#define LARGE_N 128\n") && !text("linear").contains("#define BETA1"));
        // A constant that a kernel file defines itself would not be the host's.
        for (owner, defines) in DEFINES {
            let header = format!("#include \"{owner}.cuh\"\n");
            let given = |name: &str, text: &str| *owner == "common" || *owner == name || text.starts_with(&header);
            for (name, all) in SOURCES.iter().chain(HEADERS).filter(|(name, text)| given(name, text)) {
                let again = |define: &str| all.lines().any(|line| line.starts_with(&format!("#define {define} ")));
                assert!(
                    !defines.iter().any(|(define, _)| again(define)),
                    "kernels/{name} defines what {owner} is given"
                );
            }
        }
    }

    #[test]
    fn every_constant_is_used_by_the_kernels_it_is_given_to() {
        for (owner, defines) in DEFINES {
            let texts: String =
                SOURCES.iter().chain(HEADERS).filter(|(name, _)| name == owner).map(|(_, text)| *text).collect();
            for (name, _) in *defines {
                assert!(texts.contains(name), "kernels/{owner} does not use {name}");
            }
        }
    }
}
