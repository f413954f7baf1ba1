//! Kernel sources and NVRTC: CUDA C++ in, machine code for the card at hand out.

use super::{Gpu, cache};
use crate::{DType, Error, Result};
use cudarc::{
    driver::CudaModule,
    nvrtc::{self, Ptx, result, sys},
};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use std::{
    borrow::Cow,
    ffi::{CStr, CString},
    sync::Arc,
};

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../kernels/", $name, ".cu")))),*] };
}

/// Every file of `kernels/`, without its `.cu`, and its text.
pub const SOURCES: &[(&str, &str)] = sources![
    "adam",
    "affine",
    "batch",
    "bezier",
    "clock",
    "conv_pair",
    "dropout_linear",
    "elementwise",
    "gaussian",
    "gru",
    "likelihood",
    "linear",
    "log_mean_exp",
    "max_norm",
    "memory",
    "mixture",
    "naive",
    "noise",
    "nvil",
    "onoff",
    "place_points",
    "raster",
    "render_stroke",
    "report",
    "shape",
    "squash",
    "stn",
    "tanh_ratio",
];

macro_rules! headers {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../kernels/", $name)))),*] };
}

/// What all kernel files share, and what those share that ask for it by an `#include` on their first line.
const HEADERS: &[(&str, &str)] = headers!["common.cuh", "conv_pair.cuh", "gemm.cuh"];

/// The text of `kernels/<file>.cu`; that in the folder `DOOD_KERNELS` where it is set, so that a kernel can be changed without
/// building anything.
pub(super) fn source(file: &str) -> Option<Cow<'static, str>> {
    if let Some(folder) = std::env::var_os("DOOD_KERNELS") {
        return std::fs::read_to_string(std::path::Path::new(&folder).join(format!("{file}.cu"))).ok().map(Cow::from);
    }
    SOURCES.iter().find(|(name, _)| *name == file).map(|(_, text)| Cow::from(*text))
}

fn header(name: &str) -> Cow<'static, str> {
    if let Some(folder) = std::env::var_os("DOOD_KERNELS") {
        return std::fs::read_to_string(std::path::Path::new(&folder).join(name)).unwrap_or_default().into();
    }
    HEADERS.iter().find(|(header, _)| *header == name).map_or("", |(_, text)| text).into()
}

/// What NVRTC is given: the text of a kernel file after what all of them share, and with another header in the place where its first
/// line includes one.
pub fn assemble(file: &str, text: &str) -> String {
    let included = text.strip_prefix("#include \"").and_then(|rest| rest.split_once("\"\n"));
    let text = match included {
        None => Cow::from(text),
        Some((name, rest)) => {
            format!("#line 1 \"kernels/{name}\"\n{}\n#line 2 \"kernels/{file}.cu\"\n{rest}", header(name)).into()
        }
    };
    let common = header("common.cuh");
    format!("#line 1 \"kernels/common.cuh\"\n{common}\n#line 1 \"kernels/{file}.cu\"\n{text}\n")
}

/// NVRTC's options for an architecture (`sm_90a`, or `compute_90` for PTX) and a number type.
pub fn options(architecture: &str, dtype: DType) -> Vec<String> {
    let real = if dtype == DType::F32 { "float" } else { "double" };
    // Source lines let compute-sanitizer and the profilers say where; they cost nothing at run time.
    let architecture = format!("--gpu-architecture={architecture}");
    vec!["--std=c++17".into(), "--generate-line-info".into(), format!("-DREAL={real}"), architecture]
}

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
    /// The module of `kernels/<file>.cu`, from memory, from the cache on disk, or compiled.
    pub(super) fn module(&self, file: &'static str) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(module) = modules.get(file) {
            return Ok(module.clone());
        }
        let text = source(file).ok_or_else(|| Error::Device(format!("there is no kernels/{file}.cu")))?;
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
        modules.insert(file, module.clone());
        Ok(module)
    }
}

impl Gpu {
    /// Compiles what the cache on disk lacks, several files at a time: else each is compiled when its first kernel is launched. What
    /// goes wrong here is told there.
    pub fn compile_all(&self) {
        let options = options(&self.target.architecture, self.dtype);
        let prepare = |&(file, _): &(&'static str, &str)| {
            let source = assemble(file, &source(file)?);
            let key = cache::key(&source, &options, self.target.version);
            (!key.exists()).then_some((file, source, key))
        };
        let missing: Vec<_> = SOURCES.iter().filter_map(prepare).collect();
        let style = ProgressStyle::with_template("Compiling kernels {bar:40} {pos}/{len}").expect("a valid template");
        let bar = ProgressBar::new(missing.len() as u64).with_style(style);
        missing.par_iter().for_each(|(file, source, key)| {
            if let Ok(image) = compile(file, source, &self.target, &options) {
                cache::write(key, &image);
            }
            bar.inc(1);
        });
        bar.finish_and_clear();
    }
}

/// Whether libnvrtc can be opened.
pub(super) fn is_nvrtc_present() -> bool {
    // SAFETY: only looks for the library.
    unsafe { nvrtc::sys::is_culib_present() }
}
