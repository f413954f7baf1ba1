//! Device memory. Inside a step it comes from a bump arena, which is used again from the start in the next step: the n-th allocation
//! of a step has the same address in every step, which is all that a captured graph needs.

use super::Span;
use cudarc::driver::{CudaContext, DriverError, result};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

/// Every allocation starts on a multiple of this many bytes.
pub(super) const ALIGN: usize = 256;
/// What the arena asks the driver for at least.
const CHUNK: usize = 64 << 20;

/// `DOOD_CUDA_ALLOC=each` gives every tensor memory of its own, so that tools which watch the bounds of allocations see a kernel that
/// leaves its tensor.
static EACH: LazyLock<bool> = LazyLock::new(|| std::env::var("DOOD_CUDA_ALLOC").is_ok_and(|v| v == "each"));

/// A piece of device memory that is given back when nobody uses it any more.
pub(super) struct Memory {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Memory {
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the memory is used through its address only, and freed once, below.
        let address = unsafe { result::malloc_sync(bytes)? };
        Ok(Memory { address, bytes, context: context.clone() })
    }

    pub fn span(&self) -> Span {
        Span { address: self.address, bytes: self.bytes }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let freed = Freed { address: self.address, context: self.context.clone() };
        let mut put_off = put_off();
        match &mut *put_off {
            PutOff { captures: 0, .. } => {
                drop(put_off);
                freed.free();
            }
            PutOff { later, .. } => later.push(freed),
        }
    }
}

/// Memory that nobody uses any more.
struct Freed {
    address: u64,
    context: Arc<CudaContext>,
}

impl Freed {
    fn free(self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: freed once; the driver waits for kernels that still use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// To free memory would spoil a capture, so it is put off to its end.
#[derive(Default)]
struct PutOff {
    captures: usize,
    later: Vec<Freed>,
}

fn put_off() -> MutexGuard<'static, PutOff> {
    static PUT_OFF: Mutex<PutOff> = Mutex::new(PutOff { captures: 0, later: vec![] });
    PUT_OFF.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// As long as it is there, no memory is freed.
pub(super) struct NothingFreed(());

impl NothingFreed {
    pub fn new() -> Self {
        put_off().captures += 1;
        NothingFreed(())
    }
}

impl Drop for NothingFreed {
    fn drop(&mut self) {
        let mut put_off = put_off();
        put_off.captures -= 1;
        let later = if put_off.captures == 0 { std::mem::take(&mut put_off.later) } else { vec![] };
        drop(put_off);
        later.into_iter().for_each(Freed::free);
    }
}

/// Where one tensor's numbers are, and what keeps them there.
pub(crate) struct Block {
    span: Span,
    _keep: Option<Arc<Memory>>,
}

impl Block {
    /// After an error: nothing will be launched on it.
    pub(super) fn nowhere() -> Self {
        Block { span: Span::NONE, _keep: None }
    }

    pub(super) fn own(memory: Memory) -> Self {
        Block { span: memory.span(), _keep: Some(Arc::new(memory)) }
    }

    pub fn span(&self) -> Span {
        self.span
    }

    pub fn address(&self) -> u64 {
        self.span.address
    }
}

struct Chunk {
    memory: Arc<Memory>,
    used: usize,
}

/// Chunks of device memory, filled from the front.
#[derive(Default)]
pub(super) struct Arena {
    chunks: Vec<Chunk>,
    /// The allocations of the current step, in order.
    sizes: Vec<usize>,
}

impl Arena {
    /// Starts over. Chunks in which a tensor still lives stay as they are.
    pub fn rewind(&mut self) {
        self.sizes.clear();
        for chunk in &mut self.chunks {
            if Arc::strong_count(&chunk.memory) == 1 {
                chunk.used = 0;
            }
        }
    }

    /// Room for `bytes` in the chunks there are.
    pub fn place(&mut self, bytes: usize) -> Option<Block> {
        let fits = |c: &&mut Chunk| match *EACH {
            true => c.used == 0 && c.memory.bytes == bytes,
            false => c.used + bytes <= c.memory.bytes,
        };
        let chunk = self.chunks.iter_mut().find(fits)?;
        let address = chunk.memory.address + chunk.used as u64;
        chunk.used += bytes;
        self.sizes.push(bytes);
        Some(Block { span: Span { address, bytes }, _keep: Some(chunk.memory.clone()) })
    }

    /// The size of the chunk to add for an allocation of `bytes`.
    pub fn chunk_for(&self, bytes: usize) -> usize {
        if *EACH { bytes } else { bytes.max(CHUNK) }
    }

    /// Adds a chunk, and places `bytes` in it.
    pub fn grow(&mut self, memory: Memory, bytes: usize) -> Block {
        self.chunks.push(Chunk { memory: Arc::new(memory), used: 0 });
        self.place(bytes).expect("a chunk that was made for it")
    }

    /// Notes an allocation that could not be made.
    pub fn count(&mut self, bytes: usize) {
        self.sizes.push(bytes);
    }

    /// Bytes asked for in this step.
    pub fn asked(&self) -> usize {
        self.sizes.iter().sum()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|c| c.memory.bytes).sum()
    }

    /// An empty arena with room for just the allocations of this one's current step.
    pub fn alike(&self, context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let sizes = if *EACH { self.sizes.clone() } else { vec![self.asked().max(ALIGN)] };
        let chunk = |bytes| Ok(Chunk { memory: Arc::new(Memory::new(context, bytes)?), used: 0 });
        Ok(Arena { chunks: sizes.into_iter().map(chunk).collect::<Result<_, DriverError>>()?, sizes: vec![] })
    }
}
