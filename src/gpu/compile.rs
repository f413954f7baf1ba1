//! Kernel sources and NVRTC: CUDA C++ in, machine code for the card at hand out.

use super::{Gpu, cache};
use crate::{
    Error, Observer, Result,
    kernels::{Kernels, SOURCES, assemble, options, source},
    observer::Unit,
};
use cudarc::{
    driver::CudaModule,
    nvrtc::{self, Ptx, result, sys},
};
use rayon::prelude::*;
use std::{
    ffi::{CStr, CString},
    sync::Arc,
};

/// What kernels are compiled for.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `sm_90a` for machine code; `compute_90` for PTX, where NVRTC does not know the card.
    pub architecture: String,
    /// Of NVRTC.
    pub version: (i32, i32),
}

impl Target {
    /// The best that this NVRTC can do for a card of compute capability `major`.`minor`.
    pub fn new(major: i32, minor: i32, card: &str) -> Result<Self> {
        let broken = |e: result::NvrtcError| Error::Device(format!("the CUDA compiler NVRTC does not work: {e:?}"));
        let version = version().map_err(broken)?;
        let known = architectures().map_err(broken)?;
        let wanted = 10 * major + minor;
        let architecture = match known.iter().filter(|&&a| a <= wanted).max() {
            Some(&best) if best == wanted => format!("sm_{wanted}{}", if wanted >= 90 { "a" } else { "" }),
            Some(best) => format!("compute_{best}"),
            None => {
                return Err(Error::Device(format!(
                    "NVRTC {}.{} cannot compile for {card} (compute capability {major}.{minor}); use --device cpu, or another version \
                     of the CUDA toolkit",
                    version.0, version.1
                )));
            }
        };
        Ok(Target { architecture, version })
    }
}

fn version() -> Result<(i32, i32), result::NvrtcError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both places are valid.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result()?;
    Ok((major, minor))
}

fn architectures() -> Result<Vec<i32>, result::NvrtcError> {
    let mut n = 0;
    // SAFETY: the list has the length asked for.
    unsafe {
        sys::nvrtcGetNumSupportedArchs(&mut n).result()?;
        let mut list = vec![0; n as usize];
        sys::nvrtcGetSupportedArchs(list.as_mut_ptr()).result()?;
        Ok(list)
    }
}

/// Compiles `source` (as [`assemble`]d); the result is machine code, or PTX with a final 0.
fn compile(file: &str, source: &str, target: &Target, options: &[String]) -> Result<Vec<u8>> {
    let failed = |why: &str| {
        Error::Device(format!("kernels/{file}.cu does not compile for {}: {}", target.architecture, why.trim()))
    };
    let text = CString::new(source).map_err(|_| failed("it contains a zero byte"))?;
    let name = CString::new(format!("{file}.cu")).expect("names have no zero byte");
    let program = result::create_program(&text, Some(&name)).map_err(|e| failed(&format!("{e:?}")))?;
    // SAFETY: the program lives until it is destroyed at the end; buffers have the sizes asked for.
    unsafe {
        let compiled = result::compile_program(program, options);
        let image = match compiled {
            Ok(()) => image(program, target.architecture.starts_with("sm_")).map_err(|e| failed(&format!("{e:?}"))),
            Err(e) => {
                let log = result::get_program_log(program).unwrap_or_default();
                Err(failed(&format!("{e:?} {}", CStr::from_ptr(log.as_ptr()).to_string_lossy())))
            }
        };
        let _ = result::destroy_program(program);
        image
    }
}

unsafe fn image(program: sys::nvrtcProgram, machine_code: bool) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: see `compile`.
    unsafe {
        if machine_code {
            sys::nvrtcGetCUBINSize(program, &mut size).result()?;
            let mut image = vec![0u8; size];
            sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result()?;
            Ok(image)
        } else {
            sys::nvrtcGetPTXSize(program, &mut size).result()?;
            let mut image = vec![0u8; size];
            sys::nvrtcGetPTX(program, image.as_mut_ptr().cast()).result()?;
            Ok(image)
        }
    }
}

impl Gpu {
    /// The module of these kernels, from memory, from the cache on disk, or compiled.
    pub(super) fn module(&self, kernels: Kernels) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(module) = modules.get(kernels.key()) {
            return Ok(module.clone());
        }
        let file = kernels.name();
        let text = kernels.text().ok_or_else(|| Error::Device(format!("there is no kernels/{file}.cu")))?;
        let (source, options) = (assemble(file, &text), options(&self.target.architecture, self.dtype));
        let key = cache::key(&source, &options, self.target.version);
        let load = |image: Vec<u8>| self.context.load_module(Ptx::from_binary(image));
        // What the driver does not take came from elsewhere, or from another driver: it is made again.
        let cached = cache::read(&key).and_then(|image| load(image).ok());
        let module = match cached {
            Some(module) => module,
            None => {
                let image = compile(file, &source, &self.target, &options)?;
                cache::write(&key, &image);
                load(image).map_err(|e| {
                    Error::Device(format!("the driver refuses kernels/{file}.cu for {}: {e}", self.target.architecture))
                })?
            }
        };
        modules.insert(kernels.key(), module.clone());
        Ok(module)
    }
}

impl Gpu {
    /// Compiles what the cache on disk lacks, several files at a time: else each is compiled when its first kernel is launched. What
    /// goes wrong here is told there. An observer that stops leaves the rest to those launches.
    pub(crate) fn compile_all(&self, observer: &dyn Observer) {
        let options = options(&self.target.architecture, self.dtype);
        let prepare = |&(file, _): &(&'static str, &str)| {
            let source = assemble(file, &source(file)?);
            let key = cache::key(&source, &options, self.target.version);
            (!key.exists()).then_some((file, source, key))
        };
        let missing: Vec<_> = SOURCES.iter().filter_map(prepare).collect();
        if missing.is_empty() {
            return;
        }
        observer.begin("Compiling kernels", Some(missing.len() as u64), Unit::Items);
        missing.par_iter().filter(|_| !observer.stopped()).for_each(|(file, source, key)| {
            if let Ok(image) = compile(file, source, &self.target, &options) {
                cache::write(key, &image);
            }
            observer.advance(1);
        });
        observer.end();
    }
}

/// Whether libnvrtc can be opened.
pub(super) fn is_nvrtc_present() -> bool {
    // SAFETY: only looks for the library.
    unsafe { nvrtc::sys::is_culib_present() }
}
