//! Every kernel through NVIDIA's own compiler, which needs neither a GPU nor a driver: it must accept them without a
//! warning, and no float kernel may spill registers. The compiler is a Python package, fetched once into `target/cuda`;
//! where it cannot be had the tests are skipped with a line, or fail if `DOOD_REQUIRE_NVRTC=1`.
#![cfg(all(unix, feature = "cuda"))]

use dood::{DType, kernels};
use std::env;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use cudarc::nvrtc::{result, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

const PACKAGE: &str = "nvidia-cuda-nvrtc==13.0.88";
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

/// Spill bytes that are accepted of a float kernel, by its name. Kernels that are not listed must not spill.
const ACCEPTED_SPILLS: &[(&str, u32)] = &[];

// ---- The compiler --------------------------------------------------------------------------------------------------

/// Opens NVRTC; `false`, after a line that says why, where it cannot be had.
fn nvrtc_is_here() -> bool {
    static OPENED: OnceLock<Result<(), String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| fetch().and_then(|folder| open(&folder)));
    if let Err(why) = opened {
        let line = format!("skipped: kernels are not given to NVIDIA's compiler: {why}");
        assert!(env::var_os("DOOD_REQUIRE_NVRTC").is_none_or(|v| v != "1"), "{line}");
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    opened.is_ok()
}

/// The folder of its libraries, downloaded if need be (90 MB).
fn fetch() -> Result<PathBuf, String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("only tried on Linux on x86-64".into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target folder")?.to_owned();
    let (folder, partial) = (target.join("cuda"), target.join("cuda.partial"));
    let libraries = folder.join("nvidia/cu13/lib");
    let lock = File::create(target.join("cuda.lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    if libraries.join("libnvrtc.so.13").exists() {
        return Ok(libraries);
    }
    let _ = fs::remove_dir_all(&partial);
    let pip = Command::new("python3")
        .args(["-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--target"])
        .args([partial.as_os_str(), PACKAGE.as_ref()])
        .output()
        .map_err(|e| format!("python3 cannot be run ({e})"))?;
    if !pip.status.success() {
        let said = String::from_utf8_lossy(&pip.stderr).into_owned();
        return Err(format!("pip cannot install {PACKAGE}: {}", said.lines().last().unwrap_or_default()));
    }
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&partial, &folder).map_err(|e| e.to_string())?;
    Ok(libraries)
}

/// Opens both libraries by path: the first is what the second looks for by name, the second what cudarc does.
fn open(folder: &Path) -> Result<(), String> {
    for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
        // SAFETY: NVIDIA's libraries do nothing when they are opened.
        let library = unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.map_err(|e| format!("{name} cannot be opened: {e}"))?);
    }
    Ok(())
}

/// The compiler's log, which tells what each kernel uses; an error is its log too.
fn compile(source: &str, name: &str, options: &[String]) -> Result<String, String> {
    let (source, name) = (CString::new(source).unwrap(), CString::new(name).unwrap());
    let program = result::create_program(&source, Some(&name)).unwrap();
    // SAFETY: the program is alive until it is destroyed, the log ends with 0, and the image has the size asked for.
    unsafe {
        let compiled = result::compile_program(program, options);
        let log = CStr::from_ptr(result::get_program_log(program).unwrap().as_ptr()).to_string_lossy().into_owned();
        let mut bytes = 0;
        if compiled.is_ok() {
            sys::nvrtcGetCUBINSize(program, &mut bytes).result().unwrap();
            let mut image = vec![0u8; bytes];
            sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().unwrap();
            assert_eq!(&image[..4], b"\x7fELF", "machine code is an ELF file");
        }
        result::destroy_program(program).unwrap();
        compiled.map(|()| log.clone()).map_err(|e| format!("{e:?}\n{log}"))
    }
}

// ---- What a kernel uses --------------------------------------------------------------------------------------------

#[derive(Debug, Default, Clone, PartialEq)]
struct Usage {
    kernel: String,
    registers: u32,
    shared_bytes: u32,
    /// Memory of each thread: spills, and arrays that are not in registers.
    local_bytes: u32,
    spill_bytes: u32,
}

/// Reads the lines of ptxas: "Compiling entry function 'k' …", "40 bytes stack frame, 8 bytes spill stores, …",
/// "Used 32 registers, …".
fn usages(log: &str) -> Vec<Usage> {
    let mut kernels: Vec<Usage> = vec![];
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernels.push(Usage { kernel: rest.split('\'').next().unwrap_or_default().to_owned(), ..Usage::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        for item in line.split(',') {
            let number = || item.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0);
            if item.contains("bytes spill") {
                kernel.spill_bytes += number();
            } else if item.contains("bytes stack frame") {
                kernel.local_bytes = number();
            } else if item.contains("registers") {
                kernel.registers = number();
            } else if item.contains("bytes smem") {
                kernel.shared_bytes = number();
            }
        }
    }
    kernels
}

/// The library's own options, and the figures of ptxas.
fn options(architecture: &str, dtype: DType) -> Vec<String> {
    let mut options = kernels::options(architecture, dtype);
    options.push("--ptxas-options=-v".into());
    options
}

// ---- Tests ---------------------------------------------------------------------------------------------------------

#[test]
fn every_kernel_compiles_without_warnings_or_spills() {
    if !nvrtc_is_here() {
        return;
    }
    let sources: Vec<_> = kernels::SOURCES.iter().map(|(file, text)| (*file, kernels::assemble(file, text))).collect();
    let mut jobs = vec![];
    for (file, source) in &sources {
        for architecture in ARCHITECTURES {
            jobs.extend(
                [("float", DType::F32), ("double", DType::F64)].map(|real| (*file, source, architecture, real)),
            );
        }
    }
    let (next, rows, faults) = (AtomicUsize::new(0), Mutex::new(vec![]), Mutex::new(vec![]));
    let work = || {
        while let Some(&(file, source, architecture, (real, dtype))) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = format!("kernels/{file}.cu");
            let fault = |text: String| faults.lock().unwrap().push(format!("{name} {architecture} {real}: {text}"));
            let log = match compile(source, &name, &options(architecture, dtype)) {
                Ok(log) => log,
                Err(log) => {
                    fault(log);
                    continue;
                }
            };
            if log.contains("warning") {
                fault(log.clone());
            }
            let found = usages(&log);
            if found.is_empty() {
                fault("it has no kernel".into());
            }
            for usage in found {
                let accepted = ACCEPTED_SPILLS.iter().find(|(kernel, _)| *kernel == usage.kernel).map_or(0, |a| a.1);
                if dtype == DType::F32 && usage.spill_bytes > accepted {
                    fault(format!("{} spills {} bytes, {accepted} are accepted", usage.kernel, usage.spill_bytes));
                }
                rows.lock().unwrap().push((name.clone(), usage.kernel.clone(), architecture, real, usage));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
        (0..workers).for_each(|_| drop(scope.spawn(work)));
    });

    let mut rows = rows.into_inner().unwrap();
    rows.sort_by(|a, b| (&a.0, &a.1, a.2, b.3).cmp(&(&b.0, &b.1, b.2, a.3)));
    println!("kernel                               arch     real    registers  shared   local  spills");
    for (_, kernel, architecture, real, u) in &rows {
        let Usage { registers, shared_bytes, local_bytes, spill_bytes, .. } = u;
        print!("{kernel:<36} {architecture:<8} {real:<7} {registers:>9} ");
        println!("{shared_bytes:>7} {local_bytes:>7} {spill_bytes:>7}");
    }
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_kernel_file_is_part_of_the_library() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".cu")?.to_owned())).collect();
    files.sort();
    assert_eq!(files, kernels::SOURCES.iter().map(|(file, _)| *file).collect::<Vec<_>>());
}

#[test]
fn spills_warnings_and_errors_are_seen() {
    if !nvrtc_is_here() {
        return;
    }
    // 64 threads × 200 live numbers in the registers of 1024 × 2 threads.
    let spilling = "
        extern \"C\" __global__ void __launch_bounds__(1024, 2) crowded(const REAL* x, REAL* y) {
            __shared__ REAL tile[64];
            REAL live[200];
            #pragma unroll
            for (int i = 0; i < 200; i++) live[i] = x[i * 64 + threadIdx.x];
            tile[threadIdx.x % 64] = live[7];
            __syncthreads();
            #pragma unroll
            for (int i = 0; i < 200; i++) y[i * 64 + threadIdx.x] = live[i] * live[199 - i] + tile[i % 64];
        }
        extern \"C\" __global__ void roomy(REAL* y) { y[threadIdx.x] = 1; }";
    for architecture in ARCHITECTURES {
        let log = compile(spilling, "spilling.cu", &options(architecture, DType::F32)).unwrap();
        let mut found = usages(&log);
        found.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        assert_eq!([&*found[0].kernel, &*found[1].kernel], ["crowded", "roomy"], "{log}");
        assert!(found[0].spill_bytes > 0 && found[0].registers == 32 && found[0].shared_bytes == 256, "{log}");
        assert!(found[1].spill_bytes == 0 && found[1].registers > 0 && found[1].shared_bytes == 0, "{log}");
        assert!(!log.contains("warning"), "{log}");
    }
    let unused = "extern \"C\" __global__ void k(REAL* y) { int unused; y[0] = 1; }";
    assert!(compile(unused, "unused.cu", &options("sm_80", DType::F32)).unwrap().contains("warning"));
    let wrong = "#line 7 \"kernels/wrong.cu\"\nextern \"C\" __global__ void k(REAL* y) { y[0] = nope; }";
    let error = compile(wrong, "wrong.cu", &options("sm_80", DType::F32)).unwrap_err();
    assert!(error.contains("kernels/wrong.cu(7)") && error.contains("nope"), "{error}");
}
