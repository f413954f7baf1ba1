//! Opening a card: everything that may be missing is asked for before it is used, and missing things are sentences.

use super::{Gpu, State, arena, arena::Memory, compile};
use crate::{DType, Error, MathMode, Result};
use cudarc::driver::{CudaContext, DriverError, sys};
use std::{path::Path, sync::Mutex};

/// The oldest card whose tensor cores take tf32 and bf16: Ampere.
const OLDEST: (i32, i32) = (8, 0);
/// The oldest driver that is asked for anything, as the CUDA version that it supports.
const OLDEST_DRIVER: i32 = 12_000;

/// The oldest driver that lets a capture say what a kernel waits for.
const PARALLEL_DRIVER: i32 = 12_030;

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::Device(format!("device cuda cannot be used: {why}; --device cpu runs everything")))
}

impl Gpu {
    /// Opens card number `ordinal` for tensors of type `dtype`.
    ///
    /// # Errors
    /// [`Error::Device`], with what is missing and what to do about it.
    pub(crate) fn open(ordinal: usize, dtype: DType, math: MathMode) -> Result<Self> {
        let (driver, count) = ready()?;
        if count == 0 {
            return refuse("the NVIDIA driver finds no GPU (see nvidia-smi, CUDA_VISIBLE_DEVICES)".into());
        }
        if ordinal >= count {
            return refuse(format!("there is no GPU number {ordinal}: this machine has {count}, counted from 0"));
        }
        if !compile::is_nvrtc_present() {
            return refuse(
                "the CUDA compiler NVRTC was not found (libnvrtc.so); install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc` and \
                 put the folder of libnvrtc.so.* into LD_LIBRARY_PATH"
                    .into(),
            );
        }
        let opened = |e: DriverError| Error::Device(format!("GPU number {ordinal} cannot be opened: {e}"));
        let context = CudaContext::new(ordinal).map_err(opened)?;
        let card = context.name().map_err(opened)?;
        let (major, minor) = context.compute_capability().map_err(opened)?;
        if (major, minor) < OLDEST {
            return refuse(format!(
                "{card} has compute capability {major}.{minor}, and {}.{} (Ampere) or newer is needed",
                OLDEST.0, OLDEST.1
            ));
        }
        let target = compile::Target::new(major, minor, &card)?;
        if target.version.0 > driver / 1000 {
            return refuse(format!(
                "the NVIDIA driver is too old for the CUDA compiler found here: it supports CUDA {}, the compiler is NVRTC {}.{}; update the \
                 driver, or install NVRTC {}",
                dotted(driver),
                target.version.0,
                target.version.1,
                driver / 1000
            ));
        }
        // One stream does everything in order, so no event has to be recorded; those of a captured step would be in the way.
        // SAFETY: memory is used on this stream only.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(opened)?;
        let still = Memory::new(&context, arena::ALIGN).map_err(opened)?;
        let state = State {
            arena: Default::default(),
            depth: 0,
            recording: None,
            clock: still.span(),
            error: None,
            op: "setup",
            launches: 0,
        };
        let naive = std::env::var_os("DOOD_CUDA_NAIVE").is_some_and(|v| v != "0");
        let plain = if naive { ", naive kernels" } else { "" };
        let gpu = Gpu {
            description: format!("{card}, driver for CUDA {}{plain}", dotted(driver)),
            naive,
            context,
            stream,
            dtype,
            math: if dtype == DType::F64 { MathMode::F32 } else { math },
            target,
            constants: Default::default(),
            modules: Default::default(),
            functions: Default::default(),
            still,
            parallel: (driver >= PARALLEL_DRIVER && std::env::var("DOOD_CUDA_GRAPH").map_or(true, |v| v != "chain"))
                .into(),
            peers: Default::default(),
            state: Mutex::new(state),
        };
        gpu.clear(gpu.still.span());
        gpu.check()?;
        Ok(gpu)
    }
}

/// The driver's version, and the number of cards.
fn ready() -> Result<(i32, usize)> {
    // The bindings panic when a library is absent, so each is asked for first.
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return refuse("there is no NVIDIA driver on this machine (libcuda.so.1 was not found)".into());
    }
    let driver = driver_version();
    if driver < OLDEST_DRIVER {
        return refuse(format!(
            "the NVIDIA driver is too old: it supports CUDA {}, and {} or newer is needed; update the driver",
            dotted(driver),
            dotted(OLDEST_DRIVER)
        ));
    }
    let count = match CudaContext::device_count() {
        Ok(count) => count.max(0) as usize,
        Err(DriverError(NO_DEVICE)) => 0,
        Err(error) => return refuse(format!("the NVIDIA driver does not start: {}", reason(error))),
    };
    Ok((driver, count))
}

/// How many cards there are.
///
/// # Errors
/// [`Error::Device`] where there is no driver, or one that does not start.
pub(crate) fn count() -> Result<usize> {
    ready().map(|(_, count)| count)
}

/// 12020 for CUDA 12.2; 0 if the driver does not say.
fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the place is valid; this call needs no context.
    match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        Ok(()) => version,
        Err(_) => 0,
    }
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Whether there is a driver, and a card or something that hides it, or a card without a driver: whoever would have used a GPU should be
/// told why it was not.
pub(crate) fn is_expected() -> bool {
    // SAFETY: only looks for the library.
    match unsafe { sys::is_culib_present() } {
        true => !matches!(CudaContext::device_count(), Ok(0) | Err(DriverError(NO_DEVICE))),
        false => has_card(Path::new("/sys/bus/pci/devices")),
    }
}

/// Whether a card of NVIDIA's is among the devices of a folder as Linux has it.
fn has_card(devices: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(devices) else { return false };
    let says = |device: &Path, what: &str| std::fs::read_to_string(device.join(what)).unwrap_or_default();
    entries.flatten().map(|entry| entry.path()).any(|device| {
        // Displays and other things that draw or compute with graphics are class 3.
        says(&device, "vendor").trim() == "0x10de" && says(&device, "class").starts_with("0x03")
    })
}

const NO_DEVICE: sys::CUresult = sys::CUresult::CUDA_ERROR_NO_DEVICE;

/// What the driver says when it does not start, with its number, and what is known to help.
fn reason(error: DriverError) -> String {
    use sys::CUresult::*;
    let help = match error.0 {
        CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda.so that was found is the CUDA toolkit's stand-in for linking; take its folder `stubs` out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => {
            "is the service nvidia-fabricmanager running, in the driver's version? Machines with NVSwitch need it"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver was replaced while it was in use; restart the machine (in a container: the host's driver is another one)"
        }
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "the package cuda-compat does not support this card; take its folder out of LD_LIBRARY_PATH, or update the driver"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => "another process may have the card to itself (see nvidia-smi)",
        CUDA_ERROR_OPERATING_SYSTEM => "may this user open /dev/nvidia*? In a container, was it started with its GPUs?",
        CUDA_ERROR_UNKNOWN => {
            "reload the kernel module nvidia_uvm or restart the machine, most of all if it was asleep"
        }
        _ => "see nvidia-smi",
    };
    let said = error.error_string().map_or("it does not say why".into(), |said| said.to_string_lossy().into_owned());
    format!("{said} (error {}); {help}", error.0 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_without_a_driver_is_seen() {
        let devices = tempfile::tempdir().unwrap();
        let add = |name: &str, vendor: &str, class: &str| {
            std::fs::create_dir(devices.path().join(name)).unwrap();
            std::fs::write(devices.path().join(name).join("vendor"), vendor).unwrap();
            std::fs::write(devices.path().join(name).join("class"), class).unwrap();
        };
        assert!(!has_card(&devices.path().join("nowhere")));
        add("0000:00:01.0", "0x8086\n", "0x030000\n");
        // The sound of a card is no card.
        add("0000:01:00.1", "0x10de\n", "0x040300\n");
        assert!(!has_card(devices.path()));
        add("0000:01:00.0", "0x10de\n", "0x030200\n");
        assert!(has_card(devices.path()));
    }
}
