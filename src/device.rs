//! Where tensors live and in which precision. Chosen at run time; model code never names it.

use crate::{
    DType, Error, MathMode, Observer, Result,
    gpu::{self, Gpu},
    observer::Silent,
};
use std::sync::Arc;

/// A cheap handle; clone it freely. Two handles are equal if tensors of one can be used with the other.
#[derive(Clone, PartialEq, Eq)]
pub struct Device {
    place: Place,
    dtype: DType,
}

/// What runs the ops. A further backend is a variant here and an arm in `on_device!`.
#[derive(Clone)]
#[doc(hidden)]
pub enum Place {
    Cpu,
    Gpu(Arc<Gpu>),
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Place::Cpu, Place::Cpu) => true,
            (Place::Gpu(a), Place::Gpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for Place {}

impl Device {
    /// The default backend: single precision on the host, all rayon threads.
    pub fn cpu() -> Self {
        Device { place: Place::Cpu, dtype: DType::F32 }
    }

    /// Double precision on the host, for gradient checks and as the reference of everything else.
    pub fn cpu_f64() -> Self {
        Device { place: Place::Cpu, dtype: DType::F64 }
    }

    /// The first GPU (`ordinal` 0), the second, …: a stream of its own, so tensors of two such handles cannot be mixed.
    ///
    /// The kernels are the same in both precisions; double precision is for checks.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no driver, no card, no compiler, or none that can be used; the sentence says what to do.
    pub fn cuda(ordinal: usize, dtype: DType, math: MathMode) -> Result<Self> {
        Ok(Device { place: Place::Gpu(Arc::new(Gpu::open(ordinal, dtype, math)?)), dtype })
    }

    /// The device that a user names: `auto` (the first GPU if there is one that can be used, else the CPU), `cpu`, `cuda`, or
    /// `cuda:1` and so on for further GPUs. All kernels are compiled, where that was not done before, which `observer` can follow; it
    /// is also told why `auto` cannot use a GPU that should be there.
    ///
    /// # Errors
    /// [`Error::Usage`] for another word, [`Error::Device`] where no such device can be used.
    pub fn open(name: &str, math: MathMode, observer: &dyn Observer) -> Result<Self> {
        let ordinal = match name {
            "cpu" => return Ok(Device::cpu()),
            "auto" if !gpu::is_expected() => return Ok(Device::cpu()),
            "auto" => {
                return Device::open("cuda", math, observer).or_else(|why| {
                    observer.note(&format!("{why}; this run uses the CPU"));
                    Ok(Device::cpu())
                });
            }
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        match ordinal {
            Some(ordinal) => {
                let device = Device::cuda(ordinal, DType::F32, math)?;
                device.prepare(observer);
                Ok(device)
            }
            None => Err(Error::Usage(format!("unknown device {name:?}; choose auto, cpu, cuda or cuda:N"))),
        }
    }

    /// The GPU of a rank: the one with the rank's number among those of its machine, or the only one that it can see. Kernels are compiled
    /// as by [`Device::open`].
    ///
    /// # Errors
    /// [`Error::Device`] where there is none for it.
    pub fn of_rank(local: usize, math: MathMode, observer: &dyn Observer) -> Result<Self> {
        let cards = gpu::count()?;
        // Some launchers show each rank its own GPU only.
        let ordinal = if cards == 1 { 0 } else { local };
        if ordinal >= cards {
            return Err(Error::Device(format!(
                "rank {local} of this machine (counted from 0) has no GPU: {cards} can be seen (CUDA_VISIBLE_DEVICES), and every rank \
                 needs one of its own"
            )));
        }
        let device = Device::cuda(ordinal, DType::F32, math)?;
        device.prepare(observer);
        Ok(device)
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no driver, or one that does not start.
    pub fn cards() -> Result<usize> {
        gpu::count()
    }

    /// [`Device::open`] without an observer.
    ///
    /// # Errors
    /// As there.
    pub fn from_name(name: &str, math: MathMode) -> Result<Self> {
        Device::open(name, math, &Silent)
    }

    /// Compiles every kernel that the cache lacks now, several at a time, instead of each when it is first needed; nothing to do on the
    /// CPU.
    pub fn prepare(&self, observer: &dyn Observer) {
        if let Some(gpu) = self.gpu() {
            gpu.compile_all(observer);
        }
    }

    /// Waits until everything asked of the device is done. Ops do not return errors; the first one since the last call comes out
    /// here, and everything after it was skipped.
    ///
    /// # Errors
    /// [`Error::Device`] for a failed kernel, [`Error::DeviceMemory`] where memory ran out. Never on the CPU.
    pub fn check(&self) -> Result<()> {
        match &self.place {
            Place::Cpu => Ok(()),
            Place::Gpu(gpu) => gpu.check(),
        }
    }

    /// Waits until everything asked of the device is done; an error is kept for [`Device::check`].
    pub(crate) fn wait(&self) {
        if let Place::Gpu(gpu) = &self.place {
            gpu.wait();
        }
    }

    /// Kernels launched since the device was opened; 0 on the CPU.
    pub fn launches(&self) -> u64 {
        self.gpu().map_or(0, |gpu| gpu.launches())
    }

    /// Bytes of device memory that steps have needed so far; 0 on the CPU.
    pub fn step_memory(&self) -> usize {
        self.gpu().map_or(0, |gpu| gpu.arena_bytes())
    }

    /// Opens a step: until the guard is dropped, new tensors come from memory that is used again once it is closed and they are gone.
    pub(crate) fn step(&self) -> StepScope {
        let gpu = self.gpu().cloned();
        if let Some(gpu) = &gpu {
            gpu.begin_step();
        }
        StepScope(gpu)
    }

    pub(crate) fn gpu(&self) -> Option<&Arc<Gpu>> {
        match &self.place {
            Place::Cpu => None,
            Place::Gpu(gpu) => Some(gpu),
        }
    }

    /// The precision of this device's tensors.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    #[doc(hidden)]
    pub fn place(&self) -> &Place {
        &self.place
    }
}

/// An open step; see [`Device::step`].
pub(crate) struct StepScope(Option<Arc<Gpu>>);

impl Drop for StepScope {
    fn drop(&mut self) {
        if let Some(gpu) = &self.0 {
            gpu.end_step();
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Device({self}, {:?})", self.dtype)
    }
}

/// For people: `cpu`, or the card and its driver.
impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match &self.place {
            Place::Cpu => f.write_str("cpu"),
            Place::Gpu(gpu) => write!(f, "cuda ({}, {})", gpu.description(), gpu.math()),
        }
    }
}

/// Runs the CPU arm with `T` bound to the device's number type, or the GPU arm with `gpu` bound to the [`Gpu`](crate::extend::Gpu). The
/// only dispatch in the library.
#[macro_export]
macro_rules! on_device {
    ($device:expr, $T:ident => $cpu:expr) => {
        $crate::on_device!($device, $T => $cpu, _gpu => panic!("no kernel for this yet"))
    };
    ($device:expr, $T:ident => $cpu:expr, $gpu:ident => $cuda:expr) => {
        match ($device.place(), $device.dtype()) {
            ($crate::Place::Cpu, $crate::DType::F32) => {
                type $T = f32;
                $cpu
            }
            ($crate::Place::Cpu, $crate::DType::F64) => {
                type $T = f64;
                $cpu
            }
            ($crate::Place::Gpu($gpu), _) => $cuda,
        }
    };
}
pub(crate) use on_device;
