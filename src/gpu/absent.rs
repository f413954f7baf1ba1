//! The CUDA backend of a program that was built without it (feature `cuda`): a GPU that cannot be opened. So whatever is written for
//! one need not know.

// Nobody looks at what is asked of no GPU.
#[allow(dead_code)]
mod request;

pub(crate) use request::args;
pub use request::{Arg, GraphSize, Launch, Span};

use crate::{DType, Error, MathMode, Observer, Result, kernels::Kernels, ranks::Ranks};
use std::sync::Arc;

/// There is none.
pub enum Gpu {}

/// Memory on none.
pub(crate) struct Block(Gpu);

/// A place in the work of none.
#[allow(dead_code)]
pub(crate) struct Event(Gpu);

/// A step captured on none.
pub(crate) struct Graph(Gpu);

/// GPUs beside none.
pub(crate) struct Peers(Gpu);

impl Peers {
    pub fn count(&self) -> usize {
        match self.0 {}
    }

    pub fn rank(&self) -> usize {
        match self.0 {}
    }
}

/// Methods of what does not exist.
macro_rules! absent {
    ($($name:ident($($arg:ty),*) $(-> $out:ty)?;)*) => {
        $(pub(crate) fn $name(&self, $(_: $arg),*) $(-> $out)? { match *self {} })*
    };
}

impl Gpu {
    /// # Errors
    /// Always.
    pub(crate) fn open(_ordinal: usize, _dtype: DType, _math: MathMode) -> Result<Self> {
        let why = "this program was built without it (the cargo feature `cuda`)";
        Err(Error::Device(format!("device cuda cannot be used: {why}; --device cpu runs everything")))
    }

    /// Launches nothing: there is no GPU.
    pub fn launch_from(&self, _: &Kernels, _: &'static str, _: Launch, _: &[Arg]) {
        match *self {}
    }

    absent! {
        all_reduce(&[Span]);
        alloc(usize) -> Block;
        arena_bytes() -> usize;
        broadcast(Span);
        capture(impl FnOnce()) -> Result<Graph>;
        check() -> Result<()>;
        clear(Span);
        clock() -> Span;
        compile_all(&dyn Observer);
        constant(impl IntoIterator<Item = f64>) -> Arg;
        copy(Span, Span);
        demand() -> (usize, usize);
        description() -> &str;
        dtype() -> DType;
        begin_step();
        end_step();
        enter(&'static str);
        in_a_row() -> bool;
        join(&Arc<Ranks>) -> Result<()>;
        launch(&'static str, &'static str, Launch, &[Arg]);
        launches() -> u64;
        mark() -> Event;
        math() -> MathMode;
        milliseconds(&Event, &Event) -> f64;
        naive() -> bool;
        part();
        peers() -> Option<Arc<Peers>>;
        read(u64, &mut [u8]);
        store(&[u8]) -> Block;
        upload(&Block, &[u8]);
        wait();
        write(u64, &[u8]);
    }
}

impl Block {
    pub fn address(&self) -> u64 {
        match self.0 {}
    }

    pub fn span(&self) -> Span {
        match self.0 {}
    }
}

impl Graph {
    pub fn size(&self) -> GraphSize {
        match self.0 {}
    }

    pub fn replay(&mut self, _from: u64, _times: usize) -> Result<()> {
        match self.0 {}
    }
}

/// How many cards there are: none that can be used.
pub(crate) fn count() -> Result<usize> {
    Gpu::open(0, DType::F32, MathMode::F32).map(|_| 0)
}

/// Whether a GPU should be there.
pub(crate) fn is_expected() -> bool {
    false
}
