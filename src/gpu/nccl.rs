//! Sums over the GPUs of several ranks, by NVIDIA's library NCCL, which is looked for when it is needed.
//!
//! A collective is a node of a captured step like any kernel: it waits for whatever writes what it sums. Collectives wait for each other
//! in the order in which they are asked for, which is the same on all ranks.

use super::{
    Gpu, Span,
    arena::{ALIGN, Memory},
};
use crate::{
    DType, Error, Result,
    ranks::{Ranks, host},
};
use cudarc::driver::{CudaContext, sys::CUstream};
use libloading::Library;
use serde_json::json;
use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_void},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// The oldest version whose collectives can be captured.
const OLDEST: c_int = 21_000;

type Code = c_int;
type Comm = *mut c_void;

/// `ncclUniqueId`: where the ranks of one communicator meet.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// The functions of NCCL that are called here, with the signatures of nccl.h.
struct Nccl {
    version: c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> Code,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CUstream) -> Code,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CUstream) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    abort: unsafe extern "C" fn(Comm) -> Code,
    destroy: unsafe extern "C" fn(Comm) -> Code,
    async_error: unsafe extern "C" fn(Comm, *mut Code) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    _library: Library,
}

const SUM: c_int = 0;

fn load() -> std::result::Result<Nccl, String> {
    // SAFETY: NCCL does nothing when it is opened.
    let library = ["libnccl.so.2", "libnccl.so"].into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
    let library = library.ok_or(
        "NVIDIA's library NCCL was not found (libnccl.so.2), and several GPUs need it; install it, or `pip install nvidia-nccl-cu13` and \
         put the folder of libnccl.so.2 into LD_LIBRARY_PATH",
    )?;
    let missing = |e: libloading::Error| format!("this libnccl.so.2 cannot be used ({e}); install NCCL 2.10 or newer");
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the signature is that of nccl.h, and the library is kept.
            *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(missing)?
        };
    }
    let get_version: unsafe extern "C" fn(*mut c_int) -> Code = function!("ncclGetVersion");
    let mut version = 0;
    // SAFETY: the place is valid.
    if unsafe { get_version(&mut version) } != 0 || version < OLDEST {
        return Err(format!(
            "the NCCL that was found (version number {version}) is too old; install NCCL 2.10 or newer"
        ));
    }
    Ok(Nccl {
        version,
        unique_id: function!("ncclGetUniqueId"),
        init_rank: function!("ncclCommInitRank"),
        all_reduce: function!("ncclAllReduce"),
        broadcast: function!("ncclBroadcast"),
        group_start: function!("ncclGroupStart"),
        group_end: function!("ncclGroupEnd"),
        abort: function!("ncclCommAbort"),
        destroy: function!("ncclCommDestroy"),
        async_error: function!("ncclCommGetAsyncError"),
        error_string: function!("ncclGetErrorString"),
        _library: library,
    })
}

fn nccl() -> Result<&'static Nccl> {
    static LOADED: OnceLock<std::result::Result<Nccl, String>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(|why| Error::Ranks(why.clone()))
}

impl Nccl {
    fn check(&self, doing: &str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the text belongs to the library.
        let said = unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy();
        Err(Error::Ranks(format!("NCCL failed {doing}: {said} (error {code}); NCCL_DEBUG=WARN makes it say more")))
    }
}

/// A communicator. It is let go of once, in an orderly way or not.
struct Communicator {
    comm: Comm,
    gone: AtomicBool,
}

// SAFETY: NCCL asks that a communicator be used by one thread at a time, but for its abortion, which any thread may ask for.
unsafe impl Send for Communicator {}
unsafe impl Sync for Communicator {}

impl Communicator {
    fn abort(&self) {
        if !self.gone.swap(true, Relaxed)
            && let Ok(nccl) = nccl()
        {
            // SAFETY: it was not let go of before.
            unsafe { (nccl.abort)(self.comm) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !*self.gone.get_mut()
            && let Ok(nccl) = nccl()
        {
            // SAFETY: it was not let go of before.
            unsafe { (nccl.destroy)(self.comm) };
        }
    }
}

/// The other GPUs that work on the same update.
pub(crate) struct Peers {
    ranks: Arc<Ranks>,
    comm: Arc<Communicator>,
    /// What every collective writes, so that they wait for each other.
    order: Memory,
}

impl Peers {
    /// How many GPUs there are, with this one.
    pub fn count(&self) -> usize {
        self.ranks.count()
    }

    /// The number of this one.
    pub fn rank(&self) -> usize {
        self.ranks.rank()
    }

    /// What NCCL has found out while nobody asked.
    fn check(&self) -> Result<()> {
        self.ranks.check()?;
        let (nccl, mut code) = (nccl()?, 0);
        if self.comm.gone.load(Relaxed) {
            return Ok(());
        }
        // SAFETY: the communicator lives, and the place is valid.
        let asked = unsafe { (nccl.async_error)(self.comm.comm, &mut code) };
        let well = nccl.check("when it was asked how it goes", asked);
        let well = well.and_then(|()| nccl.check("while numbers went from GPU to GPU", code));
        // Mostly because another rank is gone, which shows a moment later.
        let until = Instant::now() + Duration::from_secs(3);
        while well.is_err() && Instant::now() < until {
            self.ranks.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        well
    }
}

/// Calls of NCCL may wait for other ranks, which may not come: so they are made by a thread that is left behind then.
fn with_patience<T: Send + 'static>(ranks: &Ranks, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (to, from) = mpsc::channel();
    std::thread::spawn(move || to.send(work()));
    loop {
        match from.recv_timeout(Duration::from_millis(20)) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => ranks.check()?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Ranks("NCCL has ended its thread".into())),
        }
    }
}

impl Gpu {
    /// Makes this GPU one of those of `ranks`: from here on [`Gpu::all_reduce`] sums over all of them. All ranks call this at once.
    ///
    /// # Errors
    /// [`Error::Ranks`] without NCCL, for two ranks on one GPU, and for what NCCL says.
    pub(crate) fn join(&self, ranks: &Arc<Ranks>) -> Result<()> {
        self.check_cards(ranks)?;
        ranks.agree(&json!({ "NCCL": nccl()?.version }))?;
        let id = ranks.broadcast(|| {
            let (nccl, mut id) = (nccl()?, UniqueId([0; 128]));
            // SAFETY: the place is valid.
            nccl.check("to make a meeting point", unsafe { (nccl.unique_id)(&mut id) })?;
            Ok(id.0.to_vec())
        })?;
        let id =
            UniqueId(id.try_into().map_err(|_| Error::Ranks("rank 0 has sent something else than NCCL's id".into()))?);
        let (context, count, rank): (Arc<CudaContext>, _, _) = (self.context.clone(), ranks.count(), ranks.rank());
        let comm = with_patience(ranks, move || {
            let nccl = nccl()?;
            context.bind_to_thread().map_err(|e| Error::Device(format!("the GPU cannot be used: {e}")))?;
            let mut comm: Comm = std::ptr::null_mut();
            // SAFETY: the place is valid, and the GPU is that of this thread.
            let code = unsafe { (nccl.init_rank)(&mut comm, count as c_int, id, rank as c_int) };
            nccl.check("to connect the GPUs", code)?;
            Ok(Arc::new(Communicator { comm, gone: AtomicBool::new(false) }))
        })?;
        let aborted = comm.clone();
        ranks.on_failure(move || aborted.abort());
        let order = Memory::new(&self.context, ALIGN).map_err(|_| self.out_of_memory("join", ALIGN))?;
        *self.peers_slot() = Some(Arc::new(Peers { ranks: ranks.clone(), comm, order }));
        Ok(())
    }

    /// Makes this GPU one alone again.
    pub(crate) fn part(&self) {
        *self.peers_slot() = None;
    }

    fn peers_slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Peers>>> {
        self.peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The other GPUs that work on the same update, if there are any.
    pub(crate) fn peers(&self) -> Option<Arc<Peers>> {
        self.peers_slot().clone()
    }

    /// Whether NCCL and the other ranks are well; nothing to ask where there are none.
    pub(super) fn check_peers(&self) -> Result<()> {
        self.peers().map_or(Ok(()), |peers| peers.check())
    }

    /// Every rank has a GPU of its own.
    fn check_cards(&self, ranks: &Ranks) -> Result<()> {
        let uuid =
            self.context.uuid().map(|uuid| uuid.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect::<String>());
        let mine = json!([host(), uuid.unwrap_or_default()]).to_string();
        let all = ranks.gather(mine.into_bytes())?;
        let judged = ranks.broadcast(|| {
            let mut seen: HashMap<&[u8], usize> = HashMap::new();
            let mut why = String::new();
            for (rank, card) in all.iter().enumerate() {
                if let Some(other) = seen.insert(card, rank) {
                    let card: serde_json::Value = serde_json::from_slice(card).unwrap_or_default();
                    let host = card[0].as_str().unwrap_or("unknown");
                    why = format!(
                        "ranks {other} and {rank} are on the same GPU of host {host}: start one rank for each GPU"
                    );
                }
            }
            Ok(why.into_bytes())
        })?;
        if judged.is_empty() { Ok(()) } else { Err(Error::Ranks(String::from_utf8_lossy(&judged).into_owned())) }
    }

    /// Sums each of `spans` over all ranks, in place; one alone keeps what it has.
    pub(crate) fn all_reduce(&self, spans: &[Span]) {
        self.collective(spans, |nccl, span, kind, comm, stream| {
            let (address, count) = (span.address as *mut c_void, span.bytes / self.dtype.bytes());
            // SAFETY: the range belongs to a live tensor of the caller.
            unsafe { (nccl.all_reduce)(address, address, count, kind, SUM, comm, stream) }
        });
    }

    /// Makes `span` what it is on rank 0.
    pub(crate) fn broadcast(&self, span: Span) {
        self.collective(&[span], |nccl, span, kind, comm, stream| {
            let (address, count) = (span.address as *mut c_void, span.bytes / self.dtype.bytes());
            // SAFETY: the range belongs to a live tensor of the caller.
            unsafe { (nccl.broadcast)(address, address, count, kind, 0, comm, stream) }
        });
    }

    fn collective(&self, spans: &[Span], call: impl Fn(&Nccl, Span, c_int, Comm, CUstream) -> Code) {
        let Some(peers) = self.peers() else { return };
        if self.failed() {
            return;
        }
        let mut said = Ok(());
        let work = || {
            said = nccl().and_then(|nccl| {
                // SAFETY: a group has no arguments.
                nccl.check("to begin a group", unsafe { (nccl.group_start)() })?;
                let kind = if self.dtype == DType::F32 { 7 } else { 8 };
                let (comm, stream) = (peers.comm.comm, self.stream.cu_stream());
                let codes: Vec<Code> = spans.iter().map(|span| call(nccl, *span, kind, comm, stream)).collect();
                // SAFETY: the group was begun.
                let ended = unsafe { (nccl.group_end)() };
                codes.into_iter().chain([ended]).try_for_each(|code| nccl.check("to sum over the GPUs", code))
            });
            Ok(())
        };
        let all = [spans, &[peers.order.span()]].concat();
        let submitted = if peers.comm.gone.load(Relaxed) { Ok(()) } else { self.submit(&all, &all, work) };
        if let Err(e) = submitted {
            return self.fail_driver("to sum over the GPUs", e);
        }
        if let Err(error) = said {
            self.fail(error);
        }
    }
}

/// How the peers of a [`Gpu`] are kept.
pub(super) type Slot = Mutex<Option<Arc<Peers>>>;
