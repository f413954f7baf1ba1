//! What is asked of a GPU: kernels and their arguments; and how much of it a captured step is.

use crate::kernels::common::{SIZES, TABLE};

/// A stretch of device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Of its first byte.
    pub address: u64,
    /// How long it is.
    pub bytes: usize,
}

impl Span {
    /// A null pointer.
    pub const NONE: Span = Span { address: 0, bytes: 0 };

    /// Whether some byte is in both.
    pub(crate) fn meets(self, other: Span) -> bool {
        self.address < other.address + other.bytes as u64 && other.address < self.address + self.bytes as u64
    }
}

/// A kernel argument, by value. Shapes and constants go by value too: nothing is uploaded for a launch.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// `const REAL*`.
    In(Span),
    /// `REAL*`.
    Out(Span),
    /// `const unsigned char*`.
    Bytes(Span),
    /// `const unsigned*`.
    Words(Span),
    /// `unsigned*`.
    WordsOut(Span),
    /// `int`.
    Int(i32),
    /// `unsigned`.
    Word(u32),
    /// `const __grid_constant__ Table`: inputs whose number is known at run time; the places beyond them are null pointers.
    Table([Span; TABLE]),
    /// `const __grid_constant__ SizeList`: more sizes than one wants to name one by one; zeros in the places beyond them.
    Sizes([i32; SIZES]),
    /// `u64`.
    Wide(u64),
    /// `REAL`, converted to the device's number type.
    Real(f64),
}

impl Arg {
    /// Whether it is a null pointer to an output: a gradient that nobody wants.
    pub fn is_null(self) -> bool {
        matches!(self, Arg::Out(Span::NONE))
    }

    /// A table of inputs, `TABLE` at most.
    #[track_caller]
    pub fn table(inputs: impl IntoIterator<Item = Span>) -> Self {
        let mut spans = [Span::NONE; TABLE];
        inputs.into_iter().enumerate().for_each(|(i, span)| spans[i] = span);
        Arg::Table(spans)
    }

    /// A list of sizes, `SIZES` at most.
    #[track_caller]
    pub fn sizes(sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut all = [0; SIZES];
        sizes.into_iter().enumerate().for_each(|(i, size)| all[i] = int(size));
        Arg::Sizes(all)
    }

    /// How a kernel declares it.
    #[cfg(feature = "cuda")]
    pub(super) fn declaration(self) -> &'static str {
        match self {
            Arg::In(_) => "const REAL*",
            Arg::Out(_) => "REAL*",
            Arg::Bytes(_) => "const unsigned char*",
            Arg::Words(_) => "const unsigned*",
            Arg::WordsOut(_) => "unsigned*",
            Arg::Int(_) => "int",
            Arg::Word(_) => "unsigned",
            Arg::Table(_) => "const __grid_constant__ Table",
            Arg::Sizes(_) => "const __grid_constant__ SizeList",
            Arg::Wide(_) => "u64",
            Arg::Real(_) => "REAL",
        }
    }
}

impl From<usize> for Arg {
    #[track_caller]
    fn from(n: usize) -> Self {
        Arg::Int(int(n))
    }
}

#[track_caller]
fn int(size: usize) -> i32 {
    i32::try_from(size).expect("a size passed to a kernel is below 2^31")
}

/// A list of [`Arg`](crate::extend::Arg)s: a tensor is an input, a `usize` an `int`; everything else says what it is.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::gpu::Arg::from($arg)),*] };
}
pub(crate) use args;

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    pub(super) grid: [usize; 3],
    pub(super) threads: usize,
    pub(super) shared: usize,
}

impl Launch {
    /// One thread per element; a kernel strides on where there are more elements than threads.
    pub fn elements(n: usize) -> Self {
        const MOST: usize = 4096;
        Launch::grid([n.div_ceil(256).min(MOST), 1, 1], 256)
    }

    /// One block of `threads` threads per row.
    pub fn rows(n: usize, threads: usize) -> Self {
        Launch::grid([n, 1, 1], threads)
    }

    /// Blocks of `threads` threads (along x).
    pub fn grid(grid: [usize; 3], threads: usize) -> Self {
        Launch { grid, threads, shared: 0 }
    }

    /// With `bytes` of dynamic shared memory per block.
    pub fn shared(self, bytes: usize) -> Self {
        Launch { shared: bytes, ..self }
    }
}

/// How much a captured step has to do, and how much of it one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphSize {
    /// Kernels, copies and fills.
    pub nodes: usize,
    /// The most of them that wait for each other in a row.
    pub longest_chain: usize,
    /// Bytes of memory that they are given, to read or to write: about what a card moves, if nothing stays in its caches.
    pub bytes: usize,
}
