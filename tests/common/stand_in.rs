//! A GPU for tests: the real one where there is one, else the stand-in of `tests/stand_in_driver`, which runs kernels on
//! the CPU. The stand-in is built once with g++ and opened by its path; whoever opens `libcuda.so.1` or `libnvrtc.so.13`
//! by name afterwards finds it, as a library with that name is loaded already.
//!
//! Only what the tests of a binary use is used, hence:
#![allow(dead_code)]

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The sources travel inside the test binary, so that it can be run anywhere.
const SOURCES: &[(&str, &str)] = &[
    ("interface.h", include_str!("../stand_in_driver/interface.h")),
    ("runtime.h", include_str!("../stand_in_driver/runtime.h")),
    ("executor.h", include_str!("../stand_in_driver/executor.h")),
    ("api.h", include_str!("../stand_in_driver/api.h")),
    ("cuda_on_host.h", include_str!("../stand_in_driver/cuda_on_host.h")),
    ("memory.cpp", include_str!("../stand_in_driver/memory.cpp")),
    ("executor.cpp", include_str!("../stand_in_driver/executor.cpp")),
    ("checks.cpp", include_str!("../stand_in_driver/checks.cpp")),
    ("streams.cpp", include_str!("../stand_in_driver/streams.cpp")),
    ("api.cpp", include_str!("../stand_in_driver/api.cpp")),
    ("nvrtc.cpp", include_str!("../stand_in_driver/nvrtc.cpp")),
    ("nccl.cpp", include_str!("../stand_in_nccl/nccl.cpp")),
];
const DRIVER: &str = "libcuda.so.1";
const NVRTC: &str = "libnvrtc.so.13";
/// Sums over several processes; opened by whoever needs it, by its path or with the folder in LD_LIBRARY_PATH.
pub const NCCL: &str = "libnccl.so.2";

struct StandIn {
    driver: Library,
    nvrtc: Option<Library>,
    folder: PathBuf,
}

/// Why there is no stand-in.
enum Missing {
    /// This machine lacks something: tests are skipped.
    Prerequisite(String),
    /// Its sources do not compile: tests fail.
    Broken(String),
}

static INSTALLED: OnceLock<Result<Option<StandIn>, Missing>> = OnceLock::new();

/// Makes a GPU available: the real one, else the stand-in. `Err` is one line that says what is skipped and why, for the
/// test to print and return; with `DOOD_REQUIRE_STAND_IN=1` it is a panic.
pub fn install() -> Result<(), String> {
    install_one(if has_real_gpu() { Kind::Real } else { Kind::StandIn })
}

/// The stand-in even where there is a GPU, for tests that plant faults.
pub fn install_stand_in() -> Result<(), String> {
    install_one(Kind::StandIn)?;
    if is_stand_in() { Ok(()) } else { Err(skipped("this process already uses a real GPU")) }
}

/// Lets this process find the stand-in for NCCL; one that was not opened is not there.
pub fn install_nccl() {
    static OPENED: OnceLock<Library> = OnceLock::new();
    let Some(folder) = folder() else { return };
    // SAFETY: our own library, which does nothing when it is opened.
    OPENED.get_or_init(|| unsafe { Library::open(Some(folder.join(NCCL)), RTLD_NOW | RTLD_GLOBAL) }.unwrap());
}

/// The driver without the compiler, as on a machine where only the driver is installed.
pub fn install_driver_only() -> Result<(), String> {
    install_one(Kind::DriverOnly)
}

#[derive(PartialEq)]
enum Kind {
    Real,
    StandIn,
    DriverOnly,
}

fn install_one(kind: Kind) -> Result<(), String> {
    let installed =
        INSTALLED.get_or_init(|| if kind == Kind::Real { Ok(None) } else { open(kind == Kind::StandIn).map(Some) });
    match installed {
        Ok(_) => Ok(()),
        Err(Missing::Broken(why)) => panic!("{why}"),
        Err(Missing::Prerequisite(why)) => {
            let line = skipped(why);
            assert!(env::var_os("DOOD_REQUIRE_STAND_IN").is_none_or(|v| v != "1"), "{line}");
            // Past the capture of what tests print, and once for all tests of a binary.
            static SAID: OnceLock<()> = OnceLock::new();
            SAID.get_or_init(|| drop(writeln!(std::io::stderr(), "{line}")));
            Err(line)
        }
    }
}

fn skipped(why: &str) -> String {
    format!("skipped: tests of the CUDA backend, because there is no GPU and no stand-in for one: {why}")
}

/// Whether the GPU of this process is the stand-in.
pub fn is_stand_in() -> bool {
    stand_in().is_some()
}

/// Where the stand-in and the kernels that it has compiled are.
pub fn folder() -> Option<&'static Path> {
    stand_in().map(|s| s.folder.as_path())
}

fn stand_in() -> Option<&'static StandIn> {
    INSTALLED.get()?.as_ref().ok()?.as_ref()
}

// ---- Settings ------------------------------------------------------------------------------------------------------

/// Every setting that can be changed while running, with its default; the README of the driver tells what they mean.
const DEFAULTS: &[(&str, &str)] = &[
    ("order", "forward"),
    ("eager", "0"),
    ("trace", "0"),
    ("quiet", "0"),
    ("devices", "1"),
    ("driver_version", "13000"),
    ("capability", "9.0"),
    ("memory", "4294967296"),
    ("capture", "graph"),
    ("fail_launch", "0"),
    ("init", "0"),
    ("nodes", ""),
    ("only", ""),
];

/// Changes a setting of the stand-in; of a real GPU none can be changed.
pub fn set(name: &str, value: &str) {
    let Some(stand_in) = stand_in() else { return };
    let (c_name, c_value) = (CString::new(name).unwrap(), CString::new(value).unwrap());
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
    // SAFETY: the signature is that of memory.cpp; both strings end with 0 and outlive the call.
    let understood = unsafe { stand_in.driver.get::<Set>(b"stand_in_set").unwrap()(c_name.as_ptr(), c_value.as_ptr()) };
    assert!(understood != 0, "the stand-in has no setting {name}={value}");
}

/// `forward`, `reverse`, `random` or `random:SEED`: the order of threads, blocks and independent graph nodes.
pub fn set_order(order: &str) {
    set("order", order);
}

/// Whether kernels compiled from now on have every memory access checked.
pub fn set_check(on: bool) {
    let Some(nvrtc) = stand_in().and_then(|s| s.nvrtc.as_ref()) else { return };
    // SAFETY: the signature is that of nvrtc.cpp.
    unsafe { nvrtc.get::<unsafe extern "C" fn(c_int)>(b"stand_in_set_check").unwrap()(c_int::from(on)) }
}

/// The faults that the stand-in has found in this process.
pub fn errors() -> u64 {
    count(b"stand_in_errors")
}

/// How many kernels of the graph that was made last are more urgent than others.
pub fn urgent_kernels() -> u64 {
    count(b"stand_in_urgent_kernels")
}

/// In how many ways the kernels that were launched so far want the memory of a multiprocessor to be split.
pub fn splits() -> u64 {
    count(b"stand_in_splits")
}

fn count(what: &[u8]) -> u64 {
    let Some(stand_in) = stand_in() else { return 0 };
    // SAFETY: the signatures are those of the driver's files.
    unsafe { stand_in.driver.get::<unsafe extern "C" fn() -> u64>(what).unwrap()() }
}

/// What it has said about them since the last call: a line each, with kernel, block, thread and source line.
pub fn reports() -> String {
    let Some(stand_in) = stand_in() else { return String::new() };
    let mut text = vec![0u8; 1 << 20];
    type Reports = unsafe extern "C" fn(*mut c_char, usize);
    // SAFETY: the signature is that of memory.cpp, which writes at most `text.len()` bytes and a 0 at the end.
    unsafe { stand_in.driver.get::<Reports>(b"stand_in_reports").unwrap()(text.as_mut_ptr().cast(), text.len()) }
    CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
}

/// Settings hold for the whole process. A test that changes one, or that would mind, holds this; when it lets go,
/// all settings are back at their defaults.
pub struct Alone(#[allow(unused)] MutexGuard<'static, ()>);

pub fn alone() -> Alone {
    static LOCK: Mutex<()> = Mutex::new(());
    Alone(LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

impl Drop for Alone {
    fn drop(&mut self) {
        for (name, value) in DEFAULTS {
            set(name, value);
        }
        set_check(false);
    }
}

// ---- Finding, building, opening ------------------------------------------------------------------------------------

/// Asks a driver of this machine without cudarc, which would keep it.
fn has_real_gpu() -> bool {
    // SAFETY: two functions of the driver's API with the signatures of cuda.h.
    unsafe {
        let Ok(driver) = Library::new(DRIVER) else { return false };
        let Ok(init) = driver.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit") else { return false };
        let Ok(count) = driver.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount") else {
            return false;
        };
        let mut devices = 0;
        init(0) == 0 && count(&mut devices) == 0 && devices > 0
    }
}

fn open(with_nvrtc: bool) -> Result<StandIn, Missing> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Missing::Prerequisite("it needs Linux on x86-64".into()));
    }
    let folder = build()?;
    let open = |name: &str| {
        // SAFETY: our own libraries; what they run when they are opened reads environment variables only.
        unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|e| Missing::Broken(format!("{name} cannot be opened: {e}")))
    };
    let (driver, nvrtc) = (open(DRIVER)?, with_nvrtc.then(|| open(NVRTC)).transpose()?);
    // cudarc looks for `libcuda.so` first. Where a real driver has that name, it would be found.
    // SAFETY: as above; a real driver does nothing before it is called.
    if let Ok(found) = unsafe { Library::new("libcuda.so") } {
        // SAFETY: only looked up.
        if unsafe { found.get::<unsafe extern "C" fn()>(b"stand_in_set") }.is_err() {
            return Err(Missing::Prerequisite("this machine's driver hides it".into()));
        }
    }
    Ok(StandIn { driver, nvrtc, folder })
}

/// The folder of the two libraries, built if this version of the sources has not been built yet.
fn build() -> Result<PathBuf, Missing> {
    let mut hasher = DefaultHasher::new();
    SOURCES.hash(&mut hasher);
    let root = match option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from) {
        Some(folder) if folder.is_dir() => folder,
        _ => env::temp_dir().join(format!("dood-{}", env::var("USER").unwrap_or_default())),
    };
    let folder = root.join("stand_in_driver").join(format!("{:016x}", hasher.finish()));
    let fails = |what: &Path, e: std::io::Error| Missing::Prerequisite(format!("{}: {e}", what.display()));
    fs::create_dir_all(&folder).map_err(|e| fails(&folder, e))?;

    // Several test processes start at once: one builds, the others wait.
    let lock_path = folder.join("lock");
    let lock = File::create(&lock_path).map_err(|e| fails(&lock_path, e))?;
    lock.lock().map_err(|e| fails(&lock_path, e))?;
    let built = folder.join("built");
    if built.exists() {
        return Ok(folder);
    }
    for (name, text) in SOURCES {
        fs::write(folder.join(name), text).map_err(|e| fails(&folder.join(name), e))?;
    }
    compile(&folder)?;
    File::create(&built).map_err(|e| fails(&built, e))?;
    Ok(folder)
}

fn compile(folder: &Path) -> Result<(), Missing> {
    let compiler = env::var("STAND_IN_CXX").unwrap_or("g++".into());
    let start = |library: &str, sources: &[&str]| {
        Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"])
            .arg(format!("-Wl,-soname,{library}"))
            .args(["-o", library])
            .args(sources)
            .arg("-ldl")
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Missing::Prerequisite(format!("the C++ compiler {compiler} cannot be run ({e})")))
    };
    let driver = start(DRIVER, &["memory.cpp", "executor.cpp", "checks.cpp", "streams.cpp", "api.cpp"])?;
    let nvrtc = start(NVRTC, &["nvrtc.cpp"])?;
    let nccl = start(NCCL, &["nccl.cpp"])?;
    for (library, child) in [(DRIVER, driver), (NVRTC, nvrtc), (NCCL, nccl)] {
        let output = child.wait_with_output().map_err(|e| Missing::Broken(e.to_string()))?;
        if !output.status.success() {
            return Err(Missing::Broken(format!("{library}: {}", String::from_utf8_lossy(&output.stderr))));
        }
    }
    Ok(())
}
