//! What an op sees of a GPU: memory from the step's arena, and `Gpu::launch`. Behind it the driver, NVRTC and its cache, the arena
//! and graph capture. All `unsafe` of the CUDA backend is in this file and its folder.
//!
//! Errors of the device are *sticky*: ops do not return them. The first one is kept, everything after it is skipped, and
//! `Gpu::check` hands it over; whoever starts a step asks at its end. So an op stays plain, and nothing panics when memory runs out.

mod arena;
mod cache;
mod compile;
mod event;
mod graph;
mod launch;
mod nccl;
mod open;
mod request;

pub(crate) use arena::Block;
pub(crate) use event::Event;
pub(crate) use graph::Graph;
pub(crate) use open::{count, is_expected};
pub(crate) use request::args;
pub use request::{Arg, GraphSize, Launch, Span};

use crate::{DType, Error, MathMode, Result};
use arena::{Arena, Memory};
use cudarc::driver::{CudaContext, CudaModule, CudaStream, DriverError, result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicBool},
};

/// One stream on one card, the kernels loaded on it, and the memory of the current step.
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    dtype: DType,
    math: MathMode,
    naive: bool,
    /// "NVIDIA H100 80GB HBM3, driver 13.0".
    description: String,
    target: compile::Target,
    /// What [`Gpu::constant`] has sent, by its bits.
    constants: Mutex<HashMap<Vec<u64>, Block>>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<(&'static str, &'static str), launch::Loaded>>,
    /// The clock outside of graphs: always 0.
    still: Memory,
    /// Whether a captured kernel waits for those only whose results it needs.
    parallel: AtomicBool,
    /// The other GPUs that work on the same update.
    peers: nccl::Slot,
    state: Mutex<State>,
}

/// What changes while ops run.
struct State {
    arena: Arena,
    /// Nested step scopes.
    depth: usize,
    /// The step that is being captured.
    recording: Option<graph::Recording>,
    /// The clock that random numbers and counters read.
    clock: Span,
    error: Option<Error>,
    /// The op at work, for messages.
    op: &'static str,
    /// Kernels launched since the device was opened.
    launches: u64,
}

impl Gpu {
    /// The number type of kernels and tensors.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// How matrix products treat their operands.
    pub(crate) fn math(&self) -> MathMode {
        self.math
    }

    /// Whether every optimised kernel is replaced by its plain twin (`DOOD_CUDA_NAIVE=1` when the device was opened).
    pub(crate) fn naive(&self) -> bool {
        self.naive
    }

    /// Name of the card, version of the driver, and whether the kernels are the plain ones.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Names the op at work, for messages.
    pub(crate) fn enter(&self, op: &'static str) {
        self.state().op = op;
    }

    /// The clock: two words that count the replays of the graph that is being captured, else two zeros.
    pub(crate) fn clock(&self) -> Span {
        self.state().clock
    }

    /// Kernels launched so far.
    pub(crate) fn launches(&self) -> u64 {
        self.state().launches
    }

    /// Device memory held by the arena, in bytes.
    pub(crate) fn arena_bytes(&self) -> usize {
        self.state().arena.bytes()
    }

    /// Keeps the first error; later ones are its consequences.
    fn fail(&self, error: Error) {
        self.state().error.get_or_insert(error);
    }

    fn fail_driver(&self, doing: &str, error: DriverError) {
        let op = self.state().op;
        self.fail(Error::Device(format!("the GPU failed {doing} (op {op}): {error}")));
    }

    /// Whether an error is waiting to be asked for.
    pub(crate) fn failed(&self) -> bool {
        self.state().error.is_some()
    }

    /// Waits for everything that was launched, and hands over the first error since the last call.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::DeviceMemory`].
    pub(crate) fn check(&self) -> Result<()> {
        self.wait();
        let error = self.state().error.take();
        // What happened to another GPU says more than its consequences here.
        self.check_peers()?;
        error.map_or(Ok(()), Err)
    }

    /// Waits for everything that was launched.
    pub(crate) fn wait(&self) {
        let state = self.state();
        if state.error.is_some() || state.recording.is_some() {
            return;
        }
        drop(state);
        if let Err(e) = self.bound().and_then(|()| self.stream.synchronize()) {
            self.fail_driver("while kernels ran", e);
        }
    }

    /// Opens a step: until the matching [`Gpu::end_step`], memory comes from the arena.
    pub(crate) fn begin_step(&self) {
        let mut state = self.state();
        if state.depth == 0 && state.recording.is_none() {
            state.arena.rewind();
        }
        state.depth += 1;
    }

    /// Closes a step. Its memory is used again when the tensors in it are gone.
    pub(crate) fn end_step(&self) {
        self.state().depth -= 1;
    }

    /// Memory for `n` numbers: of the arena inside a step, its own outside.
    pub(crate) fn alloc(&self, n: usize) -> Block {
        let bytes = (n * self.dtype.bytes()).max(1).next_multiple_of(arena::ALIGN);
        let mut state = self.state();
        if state.error.is_some() {
            state.arena.count(bytes);
            return Block::nowhere();
        }
        let (inside, capturing) = (state.depth > 0, state.recording.is_some());
        if inside && let Some(block) = state.arena.place(bytes) {
            drop(state);
            return self.poisoned(block);
        }
        let op = state.op;
        drop(state);
        if capturing {
            self.fail(Error::Device(format!(
                "the op {op} asked for {bytes} bytes of device memory that the step before did not need, while the step was captured: \
                 its sizes must not change"
            )));
            return Block::nowhere();
        }
        let size = if inside { self.state().arena.chunk_for(bytes) } else { bytes };
        match Memory::new(&self.context, size) {
            Ok(memory) => {
                let block = if inside { self.state().arena.grow(memory, bytes) } else { Block::own(memory) };
                self.poisoned(block)
            }
            Err(_) => {
                self.fail(self.out_of_memory(op, size));
                self.state().arena.count(bytes);
                Block::nowhere()
            }
        }
    }

    fn poisoned(&self, block: Block) -> Block {
        if *POISON {
            self.fill_with(block.span(), 0xFF);
        }
        block
    }

    fn out_of_memory(&self, op: &'static str, asked: usize) -> Error {
        let (free, total) = result::mem_get_info().unwrap_or((0, 0));
        let held = self.arena_bytes();
        Error::DeviceMemory { op, asked, free, total, held, fitting: None }
    }

    /// Device memory of a failed step: what it asked for so far, whether or not it got it, and what there was to have.
    pub(crate) fn demand(&self) -> (usize, usize) {
        let free = result::mem_get_info().map_or(0, |(free, _)| free);
        let state = self.state();
        (state.arena.asked(), free + state.arena.bytes())
    }

    /// Copies `bytes` to the device.
    pub(crate) fn upload(&self, to: &Block, bytes: &[u8]) {
        self.write(to.address(), bytes);
    }

    /// Copies `bytes` to `address`.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let stream = self.stream.cu_stream();
        // SAFETY: the caller owns the memory at `address`; the copy is over before `bytes` is released.
        self.transfer("values were sent to it", || unsafe { result::memcpy_htod_async(address, bytes, stream) });
    }

    /// Reads `bytes.len()` bytes from `address`; leaves 0xFF (NaN) where that is impossible.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        bytes.fill(0xFF);
        if bytes.is_empty() {
            return;
        }
        let stream = self.stream.cu_stream();
        // SAFETY: the caller owns the memory at `address`; the copy is over before this returns.
        self.transfer("values were read back", || unsafe { result::memcpy_dtoh_async(bytes, address, stream) });
    }

    /// Makes a copy between host and device and waits for it, which a captured step may not do.
    fn transfer(&self, what: &str, copy: impl FnOnce() -> std::result::Result<(), DriverError>) {
        let state = self.state();
        if state.error.is_some() {
            return;
        }
        let (op, capturing) = (state.op, state.recording.is_some());
        drop(state);
        if capturing {
            return self.fail(Error::Device(format!("the GPU cannot capture the step: {what} (op {op})")));
        }
        if let Err(e) = self.bound().and_then(|()| copy()).and_then(|()| self.stream.synchronize()) {
            self.fail_driver(&format!("while {what}"), e);
        }
    }

    /// Copies on the device; both have the same length.
    pub(crate) fn copy(&self, to: Span, from: Span) {
        if self.failed() || to.bytes == 0 {
            return;
        }
        assert_eq!(to.bytes, from.bytes, "bytes of a copy");
        let stream = self.stream.cu_stream();
        // SAFETY: both ranges belong to live tensors of the caller.
        let copy = || unsafe { result::memcpy_dtod_async(to.address, from.address, to.bytes, stream) };
        if let Err(e) = self.submit(&[from], &[to], copy) {
            self.fail_driver("while values were copied", e);
        }
    }

    /// Sets all bytes to 0.
    pub(crate) fn clear(&self, span: Span) {
        self.fill_with(span, 0);
    }

    fn fill_with(&self, span: Span, byte: u8) {
        if self.failed() || span.bytes == 0 {
            return;
        }
        let stream = self.stream.cu_stream();
        // SAFETY: the range belongs to a live tensor of the caller.
        let fill = || unsafe { result::memset_d8_async(span.address, byte, span.bytes, stream) };
        if let Err(e) = self.submit(&[], &[span], fill) {
            self.fail_driver("while memory was cleared", e);
        }
    }

    /// Calls of the driver belong to the context of the calling thread.
    fn bound(&self) -> std::result::Result<(), DriverError> {
        self.context.bind_to_thread()
    }

    /// Numbers that never change, as an input of a kernel: sent when they are first asked for, and kept as long as the device is open.
    /// A step runs once before it is captured, so what it needs is there.
    pub(crate) fn constant(&self, values: impl IntoIterator<Item = f64>) -> Arg {
        let values: Vec<f64> = values.into_iter().collect();
        let key: Vec<u64> = values.iter().map(|x| x.to_bits()).collect();
        let mut constants = self.constants.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(block) = constants.get(&key) {
            return Arg::In(block.span());
        }
        let bytes: Vec<u8> = match self.dtype {
            DType::F32 => values.iter().flat_map(|&x| (x as f32).to_ne_bytes()).collect(),
            DType::F64 => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
        };
        let block = self.store(&bytes);
        let span = block.span();
        // What did not arrive must not be found by the next one who asks.
        if !self.failed() {
            constants.insert(key, block);
        }
        Arg::In(span)
    }

    /// Device memory with the given contents that outlives every step.
    pub(crate) fn store(&self, bytes: &[u8]) -> Block {
        let block = match Memory::new(&self.context, bytes.len().max(1).next_multiple_of(arena::ALIGN)) {
            Ok(memory) => Block::own(memory),
            Err(_) => {
                let op = self.state().op;
                self.fail(self.out_of_memory(op, bytes.len()));
                Block::nowhere()
            }
        };
        self.upload(&block, bytes);
        block
    }
}

/// `DOOD_CUDA_POISON=1` fills all memory with NaN before it is used, so that an element that nobody wrote shows.
static POISON: std::sync::LazyLock<bool> =
    std::sync::LazyLock::new(|| std::env::var_os("DOOD_CUDA_POISON").is_some_and(|v| v != "0"));
